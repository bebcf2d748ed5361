"""The weighted mean of directions, at the weighted mean of lengths.

mergekit's method (with a base of the deltas d_i, without one of the models as they are):

    u_i = d_i / |d_i|,   m = sum_i w_i u_i,   y = b + (sum_i w_i |d_i|) m / |m|

As published it goes on: tangents g_i = u_i - <u_i, m> m at m/|m|, and an exponential map of sum_i w_i g_i. That sum is
identically zero, as sum_i w_i u_i is m itself, so that the map does nothing; `tangents` below shows it.
`normalize_weights` (default true) divides the weights by their sum, which must not be zero. A zero delta has no
direction and the length zero. Where |m| < eps (1e-8), or is no more than rounding (1e-7 of sum |w_i|), there is no
direction: y = b + sum_i w_i d_i. One expert is returned as it is.

mergekit's mode: u_i = d_i / (|d_i| + eps). (Where |m| < eps with more than two models, mergekit stops with an error; a
tensor that no fine-tuning changed is such a case.)
"""

import numpy as np

from tests.reference import conventions as c
from tests.reference import vectors as v
from tests.reference.rounding import wide


def directions(deltas, weights, eps, compat):
    """The units, their weighted sum, and the weighted mean of lengths."""
    norms = [v.norm(d) for d in deltas]
    added = eps if compat == "mergekit" else 0.0
    units = [d / (n + added) if n > 0 else np.zeros_like(d) for d, n in zip(deltas, norms, strict=True)]
    mean = sum((w * u for w, u in zip(weights, units, strict=True)), np.zeros_like(deltas[0]))
    return units, mean, sum(w * n for w, n in zip(weights, norms, strict=True))


def tangents(deltas, weights) -> np.ndarray:
    """The weighted sum of the published tangents, which is zero."""
    units, mean, _ = directions(deltas, weights, 0.0, "paper")
    mean = mean / v.norm(mean)
    return sum(w * (u - np.dot(u, mean) * mean) for w, u in zip(weights, units, strict=True))


def combine(deltas: list[np.ndarray], weights, eps: float, compat: str) -> tuple[np.ndarray, np.ndarray]:
    """The mean of flat vectors, and the size of its terms."""
    terms = [np.abs(w * d) for w, d in zip(weights, deltas, strict=True)]
    plain = sum((w * d for w, d in zip(weights, deltas, strict=True)), np.zeros_like(deltas[0]))
    units, mean, length = directions(deltas, weights, eps, compat)
    size = v.norm(mean)
    if size < eps or size <= 1e-7 * sum(map(abs, weights)):
        return plain, sum(terms)
    parts = sum(np.abs(w * u) for w, u in zip(weights, units, strict=True))
    # A short mean of directions is what is left of a difference: its length has lost the square of the ratio.
    lost = 1 + (sum(map(abs, weights)) / size) ** 2
    return mean / size * length, parts / size * abs(length) * lost


def merge(base, experts, *, weight=1.0, normalize_weights=True, eps=1e-8, dtype=None, compat="paper"):
    """Of any number of experts."""
    weights = c.per_expert(weight, len(experts))
    if len(experts) == 1:
        weights = [1.0]
    elif normalize_weights:
        assert sum(weights) != 0, "zero weight sum"
        weights = [w / sum(weights) for w in weights]
    first = base if base is not None else experts[0]
    experts, weights = c.without_zero_weights(experts, weights)
    out = {}
    for name, start in first.items():
        inputs = [e[name] for e in experts]
        target = c.output_dtype(start, dtype)
        if not c.has_arithmetic(start) or (base is not None and all(c.same_bytes(x, start) for x in inputs)):
            out[name] = c.verbatim(start, target)
        elif weights == [1.0]:
            out[name] = c.verbatim(inputs[0], target)
        elif base is None and inputs and abs(sum(weights) - 1) < 1e-12 and all(c.same_bytes(x, start) for x in inputs):
            out[name] = c.verbatim(start, target, roundings=64)
        else:
            deltas = [c.delta(x, start, *inputs) if base is not None else wide(x) for x in inputs]
            with np.errstate(all="ignore"):
                value, scale = combine([d.ravel() for d in deltas], weights, eps, compat)
            value, scale = value.reshape(start.shape), scale.reshape(start.shape)
            if base is None:
                merged = c.Merged(value, scale, target)
            else:
                merged = c.add_to_base(start, inputs, value, scale, target, kept=scale == 0)
            merged.roundings = 1 << 12
            out[name] = merged
    return out
