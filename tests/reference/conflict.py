"""Conflict statistics in NumPy f64, from their formulas (docs/conflict-report.md), one tensor at a time.

Deltas are subtracted in the arithmetic of the tensor (f32, or f64 where a model stores F64); everything after that is
f64. Sums are added in extended precision, so that they are as good as exact.
"""

import itertools
import math

import ml_dtypes
import numpy as np

TOP = (0.01, 0.1)


def wide(tensors):
    """Arrays of one tensor in all models, in the arithmetic of the tensor."""
    kind = np.float64 if any(t.dtype == np.float64 for t in tensors) else np.float32
    return [np.asarray(t).astype(kind).ravel() for t in tensors]


def fsum(values):
    return float(np.sum(np.asarray(values, dtype=np.longdouble)))


def truncated(magnitudes):
    """Magnitudes to eight significant bits, towards zero."""
    bits = np.asarray(magnitudes, dtype=np.float64).view(np.uint64) >> np.uint64(45) << np.uint64(45)
    return bits.view(np.float64)


def threshold(delta, share):
    """What the largest `share` of the deltas reach, to eight significant bits; the smallest positive if all do."""
    rank = math.ceil(share * delta.size)
    sizes = np.sort(np.abs(delta))[::-1]
    nonzero = sizes[sizes > 0]
    if nonzero.size < rank or nonzero.size == 0:
        return np.ldexp(1 + 1 / 128, -150)
    return truncated(nonzero[rank - 1])


def of_tensor(base, experts, *, epsilon=1e-5, relative=1e-3, density=0.2, low=0.3):
    """All sums and counts of one tensor: `{"experts": [...], "pairs": [...], ...}`."""
    with np.errstate(invalid="ignore", over="ignore"):
        return _of_tensor(base, experts, epsilon, relative, density, low)


def _of_tensor(base, experts, epsilon, relative, density, low):
    w, *others = wide([base, *experts])
    kind = w.dtype.type
    n = w.size
    deltas = [(x - w).astype(np.float64) for x in others]
    base_sizes = np.abs(w.astype(np.float64))
    # Whole keys of the base, from the smallest, until they hold the share.
    wanted = math.ceil(low * n)
    edges = truncated(np.sort(base_sizes)) if n else np.zeros(0)
    is_low = truncated(base_sizes) <= edges[wanted - 1] if wanted else np.zeros(n, bool)
    if n and edges[max(wanted, 1) - 1] == 0:
        is_low = base_sizes == 0
    masks = [np.abs(d) > epsilon for d in deltas]
    cuts = [threshold(d, density) for d in deltas]
    kept = [np.abs(d) >= cut for d, cut in zip(deltas, cuts, strict=True)]
    total = np.zeros(n)
    for d, k in zip(deltas, kept, strict=True):
        total += np.where(k, d, 0.0)
    owners = np.sum(masks, axis=0)
    out = {"elements": n, "base_square": fsum(w.astype(np.float64) ** 2), "low": int(is_low.sum()), "experts": []}
    for x, d, mask, keep in zip(others, deltas, masks, kept, strict=True):
        lost = keep & ((d < 0) != (total < 0))
        squares = d * d
        top = []
        for share in TOP:
            cut = threshold(d, share)
            inside = np.abs(d) >= cut
            excess = max(0, int(inside.sum()) - math.ceil(share * n))
            top.append(max(0.0, fsum(squares[inside]) - excess * cut**2))
        bits = np.uint64 if kind is np.float64 else np.uint32
        rounded = [v.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float32) for v in (x, w)]
        delta = x - w
        out["experts"].append(
            {
                "square": fsum(squares),
                "fourth": fsum(squares * squares),
                "changed_square": fsum(squares[mask]),
                "top": top,
                "kept_square": fsum(squares[keep]),
                "lost_square": fsum(squares[lost]),
                "max": float(np.max(np.abs(d), initial=0.0)),
                "counts": {
                    "different": int((x.view(bits) != w.view(bits)).sum()),
                    "changed": int(mask.sum()),
                    "changed_relative": int((np.abs(delta) > kind(relative) * np.maximum(np.abs(w), np.abs(x))).sum()),
                    "changed_bf16": int((rounded[0] != rounded[1]).sum()),
                    "changed_low": int((mask & is_low).sum()),
                    "low": int(is_low.sum()),
                    "shared": int((mask & (owners > 1)).sum()),
                    "kept": int(keep.sum()),
                    "lost": int(lost.sum()),
                    "non_finite": int((~np.isfinite(d)).sum()),
                },
                "histogram": histogram(d),
            }
        )
    out["pairs"] = []
    for a, b in itertools.combinations(range(len(deltas)), 2):
        x, y = deltas[a], deltas[b]
        c = x * y
        negative = np.where(c < 0, c, 0.0)
        both = masks[a] & masks[b]
        top = kept[a] & kept[b]
        out["pairs"].append(
            {
                "dot": fsum(c),
                "magnitude": fsum(np.abs(c)),
                "negative": fsum(-negative),
                "square": fsum(c * c),
                "negative_square": fsum(negative * negative),
                "overlap_dot": fsum(c[both]),
                "overlap_a": fsum(x[both] ** 2),
                "overlap_b": fsum(y[both] ** 2),
                "a_on_b": fsum(x[masks[b]] ** 2),
                "b_on_a": fsum(y[masks[a]] ** 2),
                "counts": {
                    "both": int(both.sum()),
                    "opposed": int((both & (c < 0)).sum()),
                    "top_both": int(top.sum()),
                    "top_opposed": int((top & (c < 0)).sum()),
                },
            }
        )
    return out


def histogram(delta):
    """Counts of nonzero magnitudes by the power of two below them."""
    sizes = np.abs(delta[delta != 0])
    exponents, counts = np.unique(np.frexp(sizes)[1] - 1, return_counts=True)
    return {int(e): int(c) for e, c in zip(exponents, counts, strict=True)}


def added(parts):
    """The sums of several tensors."""

    def add(values):
        first = values[0]
        if isinstance(first, dict):
            return {key: add([v.get(key, 0) for v in values]) for key in {k for v in values for k in v}}
        if isinstance(first, list):
            return [add(list(column)) for column in zip(*values, strict=True)]
        return math.fsum(values) if isinstance(first, float) else sum(values)

    total = add(parts)
    for at, expert in enumerate(total["experts"]):
        expert["max"] = max(part["experts"][at]["max"] for part in parts)
    return total


def ratio(a, b):
    return None if b == 0 else a / b


def root(value):
    return None if value is None else math.sqrt(value)


def level(sums, model, *, lam=1.0):
    """The statistics of some sums, the whole model's sums beside them; None where there is no value."""
    n = sums["elements"]
    experts = []
    for at, e in enumerate(sums["experts"]):
        c = e["counts"]
        if c["non_finite"]:
            experts.append(None)
            continue
        whole = model["experts"][at]
        share = None if whole["counts"]["non_finite"] else ratio(e["square"], whole["square"])
        experts.append(
            {
                "norm": math.sqrt(e["square"]),
                "relative_norm": root(ratio(e["square"], sums["base_square"])),
                "max": e["max"],
                "changed": ratio(c["changed"], n),
                "changed_relative": ratio(c["changed_relative"], n),
                "changed_bf16": ratio(c["changed_bf16"], n),
                "energy_share": None if share is None or n == 0 else share / (n / model["elements"]),
                "kurtosis": ratio(n * e["fourth"], e["square"] ** 2),
                "top1_energy": ratio(e["top"][0], e["square"]),
                "top10_energy": ratio(e["top"][1], e["square"]),
                "low_overlap": ratio(c["changed_low"], c["changed"]),
                "low_overlap_chance": ratio(c["low"], n),
                "ram_overlap": ratio(c["shared"], c["changed"] - c["shared"]),
                "ties_density": ratio(c["kept"], n),
                "ties_interference": ratio(c["lost"], c["kept"]),
                "ties_trim_loss": ratio(e["square"] - e["kept_square"], e["square"]),
                "ties_election_loss": ratio(e["lost_square"], e["square"]),
                "ties_survival": ratio(e["kept_square"] - e["lost_square"], e["square"]),
            }
        )
    norms = [None if e["counts"]["non_finite"] else math.sqrt(e["square"]) for e in model["experts"]]
    moved = [x for x in norms if x]
    matched = math.exp(math.fsum(map(math.log, moved)) / len(moved)) if moved else None
    pairs = []
    for (a, b), p in zip(itertools.combinations(range(len(sums["experts"])), 2), sums["pairs"], strict=True):
        x, y = sums["experts"][a], sums["experts"][b]
        if x["counts"]["non_finite"] + y["counts"]["non_finite"]:
            pairs.append(None)
            continue
        c = p["counts"]
        product = math.sqrt(x["square"]) * math.sqrt(y["square"])
        whole = 0 if None in (norms[a], norms[b]) else norms[a] * norms[b]
        conflict = math.sqrt(p["negative_square"])

        def retention(own, other, p=p):
            total = own + 2 * lam * p["dot"] + lam**2 * other
            return ratio(own + lam * p["dot"], math.sqrt(own) * math.sqrt(max(total, 0.0)))

        pa, pb = ((e["counts"]["changed"] / n if n else 0.0) for e in (x, y))
        pairs.append(
            {
                "cosine": ratio(p["dot"], product),
                "cosine_chance": root(ratio(1, n)),
                "cosine_overlap": ratio(p["overlap_dot"], math.sqrt(p["overlap_a"] * p["overlap_b"])),
                "cosine_overlap_chance": root(ratio(1, c["both"])),
                "sign_disagreement": ratio(c["opposed"], c["both"]),
                "sign_disagreement_error": ratio(0.5, math.sqrt(c["both"])),
                "sign_disagreement_top": ratio(c["top_opposed"], c["top_both"]),
                "sign_disagreement_top_error": ratio(0.5, math.sqrt(c["top_both"])),
                "conflict_norm": conflict,
                "conflict_norm_matched": None if matched is None else ratio(conflict * matched**2, whole),
                "conflict_l2": root(ratio(p["negative_square"], p["square"])),
                "conflict_l1": ratio(p["negative"], p["magnitude"]),
                "conflict_cosine": ratio(conflict, product),
                "jaccard": ratio(c["both"], x["counts"]["changed"] + y["counts"]["changed"] - c["both"]),
                "jaccard_chance": ratio(pa * pb, pa + pb - pa * pb),
                "retention_a": retention(x["square"], y["square"]),
                "retention_b": retention(y["square"], x["square"]),
                "capture_a": ratio(p["b_on_a"], x["changed_square"]),
                "capture_b": ratio(p["a_on_b"], y["changed_square"]),
            }
        )
    together = None
    if all(not e["counts"]["non_finite"] for e in sums["experts"]):
        own = [math.sqrt(e["square"]) for e in sums["experts"]]
        total = math.sqrt(
            max(0.0, sum(e["square"] for e in sums["experts"]) + 2 * sum(p["dot"] for p in sums["pairs"]))
        )
        together = {
            "dilution": ratio(total, sum(own)),
            "dilution_chance": ratio(math.sqrt(sum(x * x for x in own)), sum(own)),
            "sum_norm": total,
            "mean_norm": total / len(own),
        }
    return {"experts": experts, "pairs": pairs, "together": together}
