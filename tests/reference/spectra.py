"""Spectral statistics of one matrix in NumPy f64, by LAPACK's singular value decomposition, from their formulas
(docs/conflict-report.md).

Deltas are subtracted in f32, as everywhere in a report; everything after that is f64.
"""

import itertools
import math

import numpy as np


def omega(beta):
    """Gavish and Donoho's approximation of the threshold for unknown noise, in medians."""
    return 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43


def decomposed(matrix):
    """U, σ, V of a matrix; None where it has a NaN or an infinity."""
    if not np.isfinite(matrix).all():
        return None
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return u, s, vt.T


def noise_rank(sizes, beta):
    edge = max(omega(beta) * float(np.median(sizes)), sizes[0] * 2.0**-21)
    return int((sizes > edge).sum())


def angles(a, b):
    """The largest principal angle, and the one of the mean squared sine, in degrees."""
    cosines = np.linalg.svd(a.T @ b, compute_uv=False)
    sines = np.sqrt(np.clip(1 - np.minimum(cosines, 1) ** 2, 0, 1))
    return math.degrees(math.asin(sines.max())), math.degrees(math.asin(math.sqrt(np.mean(sines**2))))


def interference(parts):
    """‖(UᵀU − I) Σ (VᵀV − I)‖₁ of the stacked directions, over ‖Σ‖₁ too."""
    u = np.concatenate([p[0] for p in parts], axis=1)
    s = np.concatenate([p[1] for p in parts])
    v = np.concatenate([p[2] for p in parts], axis=1)
    if not s.size or s.sum() == 0:
        return None, None
    one = np.eye(s.size)
    total = float(np.abs((u.T @ u - one) @ np.diag(s) @ (v.T @ v - one)).sum())
    return total, total / float(s.sum())


def of_matrix(base, experts, *, directions=32, epsilon=1e-5, low=0.3, aligned=0.95):
    """All statistics of one matrix: experts, pairs and all together; None where there is no value."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return _of_matrix(base, experts, directions, epsilon, low, aligned)


def _of_matrix(base, experts, directions, epsilon, low, aligned):
    rows, columns = base.shape
    short, long = min(rows, columns), max(rows, columns)
    beta = short / long
    deltas = [(x.astype(np.float32) - base.astype(np.float32)).astype(np.float64) for x in experts]
    own = [decomposed(d) for d in deltas]
    weight = decomposed(base.astype(np.float64))
    tuned = [decomposed(x.astype(np.float64)) for x in experts]
    k = min(directions, -(-short // 4))
    mask = None
    if weight is not None and weight[1][0] > 0:
        k = min(k, int((weight[1] > 0).sum()))
        near = np.abs(weight[0][:, :k] * weight[1][:k] @ weight[2][:, :k].T)
        # Thresholds by rank hold ties of eight significant bits together.
        bits = (near.view(np.uint64) >> np.uint64(45)).ravel()
        mask = (bits >= np.sort(bits)[::-1][math.ceil(low * near.size) - 1]).reshape(near.shape)
    out = {"experts": [], "pairs": []}
    ranks, tops = [], []
    for delta, parts, new in zip(deltas, own, tuned, strict=True):
        if parts is None:
            out["experts"].append(None)
            ranks.append(0)
            tops.append(None)
            continue
        s = parts[1]
        energy = float((s**2).sum())
        rank = noise_rank(s, beta) if energy > 0 else 0
        ranks.append(rank)
        count = min(rank, directions)
        tops.append(tuple(p[..., :count] for p in parts))
        share = s**2 / energy if energy > 0 else None
        row = {
            "stable_rank": energy / s[0] ** 2 if energy > 0 else None,
            "effective_rank": math.exp(-float((share[share > 0] * np.log(share[share > 0])).sum()))
            if energy > 0
            else None,
            "noise_rank": float(rank),
            "signal_energy": float(share[:rank].sum()) if energy > 0 else None,
            "energy_1": float(share[0]) if energy > 0 else None,
            "energy_8": float(share[:8].sum()) if energy > 0 else None,
            **dict.fromkeys(
                ("angle_left", "angle_right", "angle_left_typical", "angle_right_typical", "spectrum_shift")
            ),
            **dict.fromkeys(("spectrum_shift_share", "principal_overlap", "principal_overlap_chance")),
        }
        if weight is not None and new is not None:
            if mask is not None and new[1][0] > 0:
                row["angle_left"], row["angle_left_typical"] = angles(weight[0][:, :k], new[0][:, :k])
                row["angle_right"], row["angle_right_typical"] = angles(weight[2][:, :k], new[2][:, :k])
                changed = np.abs(delta) > epsilon
                row["principal_overlap"] = float(mask[changed].mean()) if changed.any() else None
                row["principal_overlap_chance"] = float(mask.mean())
            moved = float(np.linalg.norm(new[1] - weight[1]))
            row["spectrum_shift"] = moved / float(np.linalg.norm(weight[1])) if mask is not None else None
            row["spectrum_shift_share"] = moved / math.sqrt(energy) if energy > 0 else None
        out["experts"].append(row)

    def inside(delta, at):
        """Share of the norm of a delta in the left directions of another."""
        top, rank = tops[at], ranks[at]
        norm = np.linalg.norm(delta)
        if top is None or not top[1].size or norm == 0:
            return None
        held = np.cumsum(top[1] ** 2) >= aligned * (own[at][1][:rank] ** 2).sum()
        count = int(np.argmax(held)) + 1 if held.any() else top[1].size
        return float(np.linalg.norm(top[0][:, :count].T @ delta) / norm)

    def met(which):
        if any(tops[at] is None for at in which):
            return None, None
        most = short // len(which)
        return interference([tuple(p[..., :most] for p in tops[at]) for at in which])

    for a, b in itertools.combinations(range(len(experts)), 2):
        if tops[a] is None or tops[b] is None:
            out["pairs"].append(None)
            continue
        total, share = met([a, b])
        out["pairs"].append(
            {
                "subspace_a": inside(deltas[a], b),
                "subspace_b": inside(deltas[b], a),
                "interference": total,
                "interference_share": share,
            }
        )
    total, share = met(range(len(experts))) if len(experts) > 1 else (None, None)
    out["together"] = {"interference": total, "interference_share": share}
    return out
