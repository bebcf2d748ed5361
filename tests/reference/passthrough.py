"""Copy of one model, optionally multiplied.

y = x           every byte, NaN payloads included
y = scale * x   when `scale` is given and is not 1
"""

import numpy as np

from tests.reference import conventions as c
from tests.reference.rounding import wide


def merge(base, experts, *, scale=None, dtype=None, compat="paper"):
    """`base` is not used."""
    del base, compat
    (model,) = experts
    out = {}
    for name, tensor in model.items():
        target = c.output_dtype(tensor, dtype)
        if not c.has_arithmetic(tensor) or scale in (None, 1):
            out[name] = c.verbatim(tensor, target)
        else:
            with np.errstate(all="ignore"):
                value = scale * wide(tensor)
            out[name] = c.Merged(value, np.abs(value), target, roundings=1)
    return out
