"""Weighted average ("model soup").

Wortsman et al., "Model soups", ICML 2022, arXiv 2203.05482:

    y = sum_i w_i x_i / sum_i w_i        (normalize, the default)
    y = sum_i w_i x_i                    (normalize: false)

The sum is in f64 from the exact stored values, in the order of the models. Models that are equal byte
for byte give their own bytes under normalize: the average of equal numbers is that number.
"""

from collections.abc import Sequence

import numpy as np

from tests.reference import conventions as c
from tests.reference.rounding import wide


def merge(base, experts: Sequence[c.Model], *, weight=1.0, normalize=True, dtype=None, compat="paper"):
    """`base` is not used; the output has the tensors of the first expert."""
    del base, compat
    first = experts[0]
    weights = c.per_expert(weight, len(experts))
    experts, weights = c.without_zero_weights(experts, weights)
    total = sum(weights)
    assert not (normalize and total == 0), "zero weight sum"
    out = {}
    for name, tensor in first.items():
        inputs = [e[name] for e in experts]
        target = c.output_dtype(tensor, dtype)
        if not c.has_arithmetic(tensor):
            out[name] = c.verbatim(tensor, target)
            continue
        effective = weights[0] / total if normalize else weights[0]
        alone = len(inputs) == 1 and effective == 1
        equal = normalize and all(c.same_bytes(x, inputs[0]) for x in inputs)
        if alone or equal:
            out[name] = c.verbatim(inputs[0], target, roundings=0 if alone else 16)
            continue
        divisor = total if normalize else 1.0
        with np.errstate(all="ignore"):
            terms = [w * wide(x) for w, x in zip(weights, inputs, strict=True)]
            value = sum(terms[1:], terms[0]) / divisor
            scale = sum(np.abs(t) for t in terms) / abs(divisor)
        out[name] = c.Merged(value, scale, target)
    return out
