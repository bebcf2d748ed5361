"""Task arithmetic.

Ilharco et al., "Editing models with task arithmetic", ICLR 2023, arXiv 2212.04089:

    y = b + lambda sum_i w_i d_i,   d_i = x_i - b

`normalize` (default false) divides the sum by sum_i w_i. mergekit's mode divides by 1 when that sum
is below 1e-8 in magnitude; the paper's mode refuses a sum of 0.
"""

from collections.abc import Sequence

import numpy as np

from tests.reference import conventions as c


def divisor(weights: Sequence[float], normalize: bool, compat: str) -> float:
    """What the weighted sum of deltas is divided by."""
    total = sum(weights)
    if not normalize:
        return 1.0
    if compat == "mergekit" and abs(total) < 1e-8:
        return 1.0
    assert total != 0, "zero weight sum"
    return total


def combine(base, inputs, deltas, weights, lam: float, by: float, dtype) -> c.Merged:
    """base + lam * (sum of weighted deltas) / by; shared with DARE, whose deltas are masked."""
    with np.errstate(all="ignore"):
        terms = [w * d for w, d in zip(weights, deltas, strict=True)]
        total = lam * sum(terms, np.zeros(base.shape)) / by
        scale = abs(lam / by) * sum((np.abs(t) for t in terms), np.zeros(base.shape))
    # Sums that cancel only in one order of operations are not held to the sign of the base's zero.
    plain = len({abs(w) for w in weights}) <= 1
    kept = (total == 0) & ((scale == 0) | plain)
    return c.add_to_base(base, inputs, total, scale, dtype, kept)


def merge(base: c.Model, experts, *, weight=1.0, normalize=False, dtype=None, compat="paper", **parameters):
    """`parameters` takes `lambda` (default 1)."""
    lam = parameters.pop("lambda", 1.0)
    assert not parameters, parameters
    weights = c.per_expert(weight, len(experts))
    experts, weights = c.without_zero_weights(experts, weights)
    by = divisor(weights, normalize, compat)
    out = {}
    for name, start in base.items():
        inputs = [e[name] for e in experts]
        target = c.output_dtype(start, dtype)
        if not c.has_arithmetic(start) or all(c.same_bytes(x, start) for x in inputs):
            out[name] = c.verbatim(start, target)
        elif len(inputs) == 1 and lam == 1 and weights[0] / by == 1:
            out[name] = c.verbatim(inputs[0], target)
        else:
            deltas = [c.delta(x, start, *inputs) for x in inputs]
            out[name] = combine(start, inputs, deltas, weights, lam, by, target)
    return out
