"""Model Stock.

Jang et al., "Model Stock: All we need is just a few fine-tuned models", ECCV 2024, arXiv 2403.19522:

    y = t * mean_i x_i + (1 - t) * b,   t = N c / (1 + (N - 1) c)

with c the cosine of the angle between two deltas, here its mean over all pairs (mergekit's rule for more than two),
for each tensor, or with `filter_wise` for each output unit. A zero delta has cosine 0 with everything. The derivation
is for acute angles: where c <= 0, t = 0, the base.

mergekit's mode: the product of two norms counts as 1e-6 at least; t = 0 only where |1 + (N - 1) c| < 1e-6, otherwise
without bound; filters are runs along the last axis.
"""

import itertools

import numpy as np

from tests.reference import conventions as c
from tests.reference import vectors as v


def position(deltas: list[np.ndarray], compat: str) -> float:
    """t for flat deltas."""
    n = len(deltas)
    cosines = []
    for x, y in itertools.combinations(deltas, 2):
        size = v.norm(x) * v.norm(y)
        if compat == "mergekit":
            size = max(size, 1e-6)
        cosines.append(0.0 if size == 0 else min(1.0, max(-1.0, float(np.dot(x, y)) / size)))
    cosine = float(np.mean(cosines))
    divisor = 1 + (n - 1) * cosine
    if compat == "mergekit":
        return 0.0 if abs(divisor) < 1e-6 else n * cosine / divisor
    return 0.0 if cosine <= 0 else n * cosine / divisor


def merge(base, experts, *, filter_wise=False, dtype=None, compat="paper"):
    """Of two or more experts and their base."""
    cut = "whole" if not filter_wise else "last" if compat == "mergekit" else "outputs"
    out = {}
    for name, start in base.items():
        inputs = [e[name] for e in experts]
        target = c.output_dtype(start, dtype)
        if not c.has_arithmetic(start) or all(c.same_bytes(x, start) for x in inputs):
            out[name] = c.verbatim(start, target)
            continue
        deltas = [c.delta(x, start, *inputs) for x in inputs]
        along = v.axes(name, start.shape, cut)
        pieces = [v.split(d, along) for d in deltas]
        total, scale = np.zeros(pieces[0].shape), np.zeros(pieces[0].shape)
        with np.errstate(all="ignore"):
            for at, vectors in enumerate(zip(*pieces, strict=True)):
                t = position(list(vectors), compat)
                total[at] = sum(t / len(vectors) * x for x in vectors)
                # Near the pole of t its digits are lost as those of the divisor are.
                scale[at] = sum((1 + abs(t)) ** 2 * np.abs(x) for x in vectors) / len(vectors)
        total, scale = v.join(total, start.shape, along), v.join(scale, start.shape, along)
        # Sums that cancel in one order of operations only are not held to the sign of the base's zero.
        merged = c.add_to_base(start, inputs, total, scale, target, kept=scale == 0)
        merged.roundings = 1 << 12
        out[name] = merged
    return out
