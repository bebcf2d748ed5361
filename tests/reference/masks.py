"""Methods made of one mask a task: TALL masks, consensus, EMR; and a task's model out of its mask.

Wang et al., "Localizing task information for improved model merging and compression", ICML 2024, arXiv 2405.07813
(formulas from the project's notes, which follow nik-dim/tall_masks):

    t    = sum_i w_i d_i, or TIES' disjoint sum of them
    m_i  = |d_i| > lambda_i |t - d_i|
    consensus:   y = b + lambda [sum_i m_i >= k] t
    tall_masks:  y = b + t;  the model of task i is b + m_i t: where the mask is set the merged value, else the base's

Huang et al., "EMR-Merging", NeurIPS 2024, arXiv 2405.17461 (fusion_bench's program):

    g    = sign(sum_i d_i), minus where that is 0
    t    = g max{|d_i| : g d_i > 0}, 0 where no d_i agrees
    m_i  = g d_i > 0
    s_i  = sum over tensors of mean |d_i|  /  sum over tensors of mean |m_i t|
    emr: y = b + t;  the model of task i is b + s_i m_i t

t is one expert's delta there, so y is that expert's own value. Beyond the papers: where t is not finite masks are set
and the value comes out; sums for s_i leave out what is not finite; s_i is 1 where its denominator is 0.
"""

from collections.abc import Sequence

import numpy as np

from tests.reference import conventions as c
from tests.reference import task_arithmetic, ties
from tests.reference.rounding import round_to, wide


def merged_deltas(base, experts, weights, *, over, density, scope, normalize, compat):
    """For each tensor with arithmetic: deltas, t, and the sum of magnitudes that errors of t are proportional to."""
    out = {}
    masks = None
    if over == "ties":
        masks = ties.masks(base, experts, density, scope=scope, compat=compat)
    for name, start in base.items():
        if not c.has_arithmetic(start):
            continue
        inputs = [e[name] for e in experts]
        deltas = [c.delta(x, start, *inputs) for x in inputs]
        with np.errstate(all="ignore"):
            if masks is None:
                by = task_arithmetic.divisor(weights, normalize, compat)
                terms = [w * d for w, d in zip(weights, deltas, strict=True)]
                total = sum(terms[1:], terms[0]) / by
                scale = sum(np.abs(t) for t in terms) / abs(by)
            else:
                trimmed = [np.where(m, d, 0.0) for m, d in zip(masks[name], deltas, strict=True)]
                zero = np.zeros(start.shape)
                whole = ties.disjoint(
                    zero, [zero], trimmed, weights, [1.0] * len(weights), 1.0, normalize=normalize, lam=1.0,
                    dtype=np.dtype("f8"), compat=compat,
                )  # fmt: skip
                total, scale = whole.value, whole.scale
        out[name] = deltas, total, scale
    return out


def tall(delta, total, lam) -> np.ndarray:
    """The TALL mask of one task."""
    with np.errstate(all="ignore"):
        return np.abs(delta) > lam * np.abs(total - delta)


def unclear(delta, total, scale, lam) -> np.ndarray:
    """Where two correct evaluations of the mask may differ: both sides are equal up to rounding."""
    with np.errstate(all="ignore"):
        left, right = np.abs(delta), lam * np.abs(total - delta)
        return (left != right) & (np.abs(left - right) <= 2.0**-48 * (left + scale))


def taking_part(experts, weight, tall_lambda, density):
    count = len(experts)
    columns = [c.per_expert(v, count) for v in (weight, tall_lambda, density)]
    return c.without_zero_weights(experts, *columns)


def consensus(
    base: c.Model, experts, *, weight=1.0, tall_lambda=0.4, k=2, over="task_arithmetic", density=0.2, scope="tensor",
    normalize=False, dtype=None, compat="paper", **parameters,
):  # fmt: skip
    """`parameters` takes `lambda` (default 1)."""
    alpha = parameters.pop("lambda", 1.0)
    assert not parameters, parameters
    experts, weights, lambdas, densities = taking_part(experts, weight, tall_lambda, density)
    settings = {"over": over, "density": densities, "scope": scope, "normalize": normalize, "compat": compat}
    of = merged_deltas(base, experts, weights, **settings) if experts else {}
    out = {}
    for name, start in base.items():
        inputs = [e[name] for e in experts]
        target = c.output_dtype(start, dtype)
        if name not in of or all(c.same_bytes(x, start) for x in inputs):
            out[name] = c.verbatim(start, target)
            continue
        deltas, total, scale = of[name]
        votes = sum(tall(d, total, lam).astype(int) for d, lam in zip(deltas, lambdas, strict=True))
        close = np.any([unclear(d, total, scale, lam) for d, lam in zip(deltas, lambdas, strict=True)], axis=0)
        with np.errstate(all="ignore"):
            change = alpha * np.where((votes >= k) | ~np.isfinite(total), total, 0.0)
            scale = np.abs(alpha) * scale
        kept = (change == 0) & ((scale == 0) | (votes < k))
        merged = c.add_to_base(start, inputs, change, scale, target, kept)
        # An element whose mask hangs on a rounding may come out either way.
        merged.scale = np.where(close, 2.0**50 * (merged.scale + np.abs(total)), merged.scale)
        merged.kept = kept & ~close
        out[name] = merged
    return out


def tall_masks(
    base: c.Model, experts, *, weight=1.0, tall_lambda=0.4, over="task_arithmetic", density=0.2, scope="tensor",
    normalize=False, dtype=None, compat="paper",
):  # fmt: skip
    """The merged model; `tall_bits` has the masks."""
    keep_all = {"k": 0, "over": over, "density": density, "scope": scope, "normalize": normalize}
    return consensus(base, experts, weight=weight, tall_lambda=tall_lambda, dtype=dtype, compat=compat, **keep_all)


def tall_bits(
    base, experts, *, weight=1.0, tall_lambda=0.4, over="task_arithmetic", density=0.2, scope="tensor",
    normalize=False, compat="paper",
) -> dict[str, list[np.ndarray]]:  # fmt: skip
    """For each tensor the mask of each task."""
    experts, weights, lambdas, densities = taking_part(experts, weight, tall_lambda, density)
    settings = {"over": over, "density": densities, "scope": scope, "normalize": normalize, "compat": compat}
    of = merged_deltas(base, experts, weights, **settings)
    return {
        name: [tall(d, total, lam) | ~np.isfinite(total) for d, lam in zip(deltas, lambdas, strict=True)]
        for name, (deltas, total, _) in of.items()
    }


def unify(deltas: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """EMR's unified vector and masks."""
    with np.errstate(all="ignore"):
        total = sum(deltas[1:], deltas[0])
        sign = np.where(total > 0, 1.0, -1.0)
        agree = [d * sign > 0 for d in deltas]
        largest = np.max([np.where(a, np.abs(d), 0.0) for a, d in zip(agree, deltas, strict=True)], axis=0)
        unified = np.where(np.isnan(total), np.nan, sign * largest)
    return unified, [a & ~np.isnan(total) | np.isnan(total) for a in agree]


def emr(base: c.Model, experts, *, dtype=None, compat="paper"):
    """The merged model; `emr_bits` has masks and scales."""
    out = {}
    for name, start in base.items():
        inputs = [e[name] for e in experts]
        target = c.output_dtype(start, dtype)
        if not c.has_arithmetic(start) or all(c.same_bytes(x, start) for x in inputs):
            out[name] = c.verbatim(start, target)
            continue
        deltas = [c.delta(x, start, *inputs) for x in inputs]
        unified, _ = unify(deltas)
        with np.errstate(all="ignore"):
            value = np.where(unified == 0, wide(start), wide(start) + unified)
        for x, d in zip(inputs[::-1], deltas[::-1], strict=True):
            value = np.where((d == unified) & (unified != 0), wide(x), value)
        equal = np.all([wide(x) == wide(start) for x in inputs], axis=0)
        nan = np.isnan(wide(start))
        open_ = (equal | nan) & ~np.isfinite(wide(start))
        out[name] = c.Merged(value, np.zeros(start.shape), target, kept=unified == 0, open=open_)
    return out


def emr_bits(base, experts) -> tuple[dict[str, list[np.ndarray]], list[float]]:
    """For each tensor the mask of each task, and the scale of each task."""
    bits, whole, masked = {}, np.zeros(len(experts)), np.zeros(len(experts))
    for name, start in sorted(base.items()):
        if not c.has_arithmetic(start):
            continue
        inputs = [e[name] for e in experts]
        deltas = [c.delta(x, start, *inputs) for x in inputs]
        unified, bits[name] = unify(deltas)
        if start.size:
            finite = np.where(np.isfinite(unified), np.abs(unified), 0.0)
            whole += [np.where(np.isfinite(d), np.abs(d), 0.0).mean() for d in deltas]
            masked += [np.where(m, finite, 0.0).mean() for m in bits[name]]
    return bits, [w / m if m > 0 else 1.0 for w, m in zip(whole, masked, strict=True)]


def expand(base, merged, mask, scale: float) -> np.ndarray:
    """One tensor of a task's model from the base's, the merged one and the mask."""
    if scale == 1:
        return np.where(mask, merged, round_to(wide(base), merged.dtype))
    step = scale * c.delta(merged, base)
    with np.errstate(all="ignore"):
        moved = np.where(step == 0, wide(base), wide(base) + step)
    return round_to(np.where(mask, moved, wide(base)), merged.dtype)
