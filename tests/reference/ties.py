"""TIES: trim, elect sign, disjoint mean.

Yadav et al., "TIES-Merging: resolving interference when merging models", NeurIPS 2023, arXiv 2306.01708:

    trim    t_i = d_i where |d_i| is among the k largest of its scope, else 0
    elect   s   = sign(sum_i w_i t_i)
    mean    m   = sum_{i: sign(w_i t_i) = s} w_i t_i / sum_{same i} |w_i|
    y       = b + lambda m

Modes. `scope`: k and the threshold over each tensor (default) or over the whole model (the paper's).
k = max(1, floor(density * n + 1/2)). `ties`: "index" keeps exactly k, lowest flat index first (whole
model: tensors in the order of their names); "all" keeps every |d| at the threshold, the paper's rule. Zeros
may count towards k and contribute nothing. `zero_sign` says what an exactly zero sum elects: "plus"
(default), "minus", or "majority" = the sign of the sum over the scope of all elected signs, computed
from the elements at or above the threshold; a zero majority is plus. `normalize: false` leaves out
the division. `rescale` multiplies the kept elements, before weights and election, by 1/density
("inverse_p") or by the ratio of the L1 or L2 norms of the scope before and after the trim.

mergekit's mode (arcee-ai/mergekit 0.1.5, described in words by the project's notes): per tensor only,
k = max(1, int(density * n)), no trim at density 1, `rescale: true` is "l1" unless either norm is below
1e-7, zero sum is plus, division by the *signed* sum of the agreeing weights, 0 replaced by 1.
"""

from collections.abc import Sequence

import numpy as np

from tests.reference import conventions as c


def magnitude(delta: np.ndarray) -> np.ndarray:
    """Sort key of |delta|: the pattern without its sign, so that NaN ranks above infinity.

    As an f64 it orders deltas of f32 and of f64 alike.
    """
    return np.abs(np.asarray(delta, np.float64)).reshape(-1).view(np.uint64)


def kept_count(density: float, n: int, compat: str) -> int:
    """How many of `n` elements a trim keeps."""
    if n == 0:
        return 0
    if compat == "mergekit":
        return min(n, max(1, int(density * n)))
    return min(n, max(1, int(np.floor(density * n + 0.5))))


def largest(keys: np.ndarray, k: int, rule: str) -> np.ndarray:
    """Mask of the `k` largest keys; equal keys by `rule`."""
    if k == 0:
        return np.zeros(keys.shape, bool)
    order = np.argsort(~keys, kind="stable")
    if rule == "all":
        return keys >= keys[order[k - 1]]
    mask = np.zeros(keys.shape, bool)
    mask[order[:k]] = True
    return mask


def rescale_factor(kind, density: float, before: np.ndarray, after: np.ndarray, compat: str) -> float:
    """What the kept elements are multiplied by."""
    kind = {True: "l1", False: "none", None: "none"}.get(kind, kind)
    if kind == "none":
        return 1.0
    if kind == "inverse_p":
        return 1.0 / density
    order = {"l1": 1, "l2": 2}[kind]
    norms = [float(np.sum(np.abs(x) ** order) ** (1 / order)) for x in (before, after)]
    if compat == "mergekit" and min(norms) < 1e-7:
        return 1.0
    return norms[0] / norms[1] if norms[1] else 1.0


def roundings_of(kind) -> int:
    """Norms are sums over the scope, whose order no one prescribes; 16 operations otherwise."""
    return 1 << 13 if kind in ("l1", "l2", True) else 16


def elect(terms: Sequence[np.ndarray], zero_sign: float) -> np.ndarray:
    """+1 or -1 an element: the sign of the sum, or `zero_sign` where it is exactly 0; NaN where it is NaN."""
    with np.errstate(all="ignore"):
        total = sum(terms[1:], terms[0])
        return np.where(total == 0, zero_sign, np.sign(total))


def disjoint(
    base, inputs, trimmed, weights, factors, zero_sign, *, normalize, lam, dtype, compat, roundings=16
) -> c.Merged:
    """Election and disjoint mean of deltas that are already sparse, added to the base."""
    with np.errstate(all="ignore"):
        terms = [w * f * t for w, f, t in zip(weights, factors, trimmed, strict=True)]
        sign = elect(terms, zero_sign)
        agree = [np.sign(t) == sign for t in terms]
        mix = sum((np.where(a, t, 0.0) for a, t in zip(agree, terms, strict=True)), np.zeros(base.shape))
        size = sum((np.where(a, np.abs(t), 0.0) for a, t in zip(agree, terms, strict=True)), np.zeros(base.shape))
        if normalize:
            signed = compat == "mergekit"
            by = sum((a * (w if signed else abs(w)) for a, w in zip(agree, weights, strict=True)), np.zeros(base.shape))
            by = np.where(by == 0, 1.0, by)
            mix, size = mix / by, size / np.abs(by)
        # A sum that is NaN has no sign to elect; the NaN must come out, not vanish.
        mix = np.where(np.isnan(sign), np.nan, mix)
        total = lam * mix
    merged = c.add_to_base(base, inputs, total, abs(lam) * size, dtype, total == 0)
    merged.roundings = roundings
    return merged


def zero_sign_value(rule: str, terms_by_tensor: Sequence[Sequence[np.ndarray]]) -> float:
    """The sign that a zero sum elects, given all weighted deltas of the scope."""
    if rule != "majority":
        return {"plus": 1.0, "minus": -1.0}[rule]
    votes = sum(float(np.nansum(elect(terms, 0.0))) for terms in terms_by_tensor)
    return -1.0 if votes < 0 else 1.0


def masks(base: c.Model, experts, densities, *, scope="tensor", ties="index", compat="paper"):
    """For each tensor with arithmetic, one boolean mask an expert: what the trim keeps."""
    # By name, so that the ties of a whole model do not depend on how its files are laid out.
    names = sorted(n for n, t in base.items() if c.has_arithmetic(t))
    keys = {n: [magnitude(c.delta(e[n], base[n], *(x[n] for x in experts))) for e in experts] for n in names}
    out: dict[str, list[np.ndarray]] = {n: [] for n in names}
    for i, density in enumerate(densities):
        if compat == "mergekit" and density >= 1:
            flat = [np.ones(keys[n][i].shape, bool) for n in names]
        elif scope == "tensor":
            flat = [largest(keys[n][i], kept_count(density, keys[n][i].size, compat), ties) for n in names]
        else:
            whole = np.concatenate([keys[n][i] for n in names]) if names else np.zeros(0, np.uint64)
            mask = largest(whole, kept_count(density, whole.size, compat), ties)
            flat = np.split(mask, np.cumsum([keys[n][i].size for n in names])[:-1]) if names else []
        for name, mask in zip(names, flat, strict=True):
            out[name].append(mask.reshape(base[name].shape))
    return out


def merge(
    base: c.Model,
    experts,
    *,
    weight=1.0,
    density=None,
    normalize=True,
    rescale=None,
    scope="tensor",
    ties="index",
    zero_sign="plus",
    dtype=None,
    compat="paper",
    **parameters,
):
    """`parameters` takes `lambda` (default 1); density defaults to 0.2, in mergekit's mode to 1."""
    lam = parameters.pop("lambda", 1.0)
    assert not parameters, parameters
    if density is None:
        density = 1.0 if compat == "mergekit" else 0.2
    weights = c.per_expert(weight, len(experts))
    densities = c.per_expert(density, len(experts))
    experts, weights, densities = c.without_zero_weights(experts, weights, densities)

    kept = masks(base, experts, densities, scope=scope, ties=ties, compat=compat)
    at_threshold = masks(base, experts, densities, scope=scope, ties="all", compat=compat)
    deltas = {n: [c.delta(e[n], base[n], *(x[n] for x in experts)) for e in experts] for n in kept}
    scopes = [list(kept)] if scope == "model" else [[n] for n in kept]

    out = {}
    for names in scopes:
        factors, voters = [], {n: [] for n in names}
        for i, density_i in enumerate(densities):
            with np.errstate(all="ignore"):
                before = np.concatenate([deltas[n][i].ravel() for n in names])
                after = np.concatenate([np.where(kept[n][i], deltas[n][i], 0.0).ravel() for n in names])
                factors.append(rescale_factor(rescale, density_i, before, after, compat))
                for n in names:
                    voters[n].append(weights[i] * factors[i] * np.where(at_threshold[n][i], deltas[n][i], 0.0))
        zero = zero_sign_value(zero_sign, list(voters.values())) if experts else 1.0
        for name in names:
            start, inputs = base[name], [e[name] for e in experts]
            target = c.output_dtype(start, dtype)
            alone = len(inputs) == 1 and densities[0] == 1 and factors[0] == 1 and lam == 1
            sign_of = 1.0 if compat == "mergekit" else (-1.0 if inputs and weights[0] < 0 else 1.0)
            effective = sign_of if normalize else (weights[0] if weights else 0.0)
            if all(c.same_bytes(x, start) for x in inputs):
                out[name] = c.verbatim(start, target)
            elif alone and effective == 1:
                out[name] = c.verbatim(inputs[0], target)
            else:
                trimmed = [np.where(m, d, 0.0) for m, d in zip(kept[name], deltas[name], strict=True)]
                out[name] = disjoint(
                    start, inputs, trimmed, weights, factors, zero,
                    normalize=normalize, lam=lam, dtype=target, compat=compat, roundings=roundings_of(rescale),
                )  # fmt: skip
    return {n: out.get(n) or c.verbatim(t, t.dtype) for n, t in base.items()}
