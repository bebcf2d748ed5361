"""MagMax: the largest change of all experts.

Marczak et al., "MagMax: leveraging model merging for seamless continual learning", ECCV 2024, arXiv 2407.06322:

    k = argmax_i |d_i| for each element, the last of equals
    y = b + lambda d_k,   lambda = 0.5

NaN counts as the largest magnitude, so that it comes out. One expert at lambda 1 gives its own bytes.
"""

import numpy as np

from tests.reference import conventions as c
from tests.reference.ties import magnitude


def merge(base: c.Model, experts, *, dtype=None, compat="paper", **parameters):
    """`parameters` takes `lambda` (default 0.5)."""
    del compat
    lam = parameters.pop("lambda", 0.5)
    assert not parameters, parameters
    out = {}
    for name, start in base.items():
        inputs = [e[name] for e in experts]
        target = c.output_dtype(start, dtype)
        if not c.has_arithmetic(start) or all(c.same_bytes(x, start) for x in inputs):
            out[name] = c.verbatim(start, target)
        elif len(inputs) == 1 and lam == 1:
            out[name] = c.verbatim(inputs[0], target)
        else:
            best = c.delta(inputs[0], start, *inputs)
            for x in inputs[1:]:
                d = c.delta(x, start, *inputs)
                later = (magnitude(d) >= magnitude(best)).reshape(start.shape)
                best = np.where(later, d, best)
            with np.errstate(all="ignore"):
                total = lam * best
            out[name] = c.add_to_base(start, inputs, total, np.abs(total), target, total == 0)
    return out
