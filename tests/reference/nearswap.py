"""NearSwap: take what is near, step towards what is far.

alchemonaut, QuartetAnemoi-70B-t0.0001 (model card), and mergekit's words for it:

    q = min(t / |d|, 1),   y = b + q d        so y = x where |d| <= t, otherwise b + t sign(d)

mergekit's mode divides by max(|d|, 1e-6). An infinite or undefined delta stays what it is.
"""

import numpy as np

from tests.reference import conventions as c
from tests.reference.rounding import wide


def merge(base: c.Model, experts, *, t=None, dtype=None, compat="paper"):
    """Exactly one expert; `t` is 1e-4 unless given, in mergekit's mode it must be given."""
    assert t is not None or compat == "paper"
    t = 1e-4 if t is None else t
    (expert,) = experts
    least = 1e-6 if compat == "mergekit" else 0.0
    out = {}
    for name, start in base.items():
        x = expert[name]
        target = c.output_dtype(start, dtype)
        if not c.has_arithmetic(start) or c.same_bytes(x, start) or t == 0:
            out[name] = c.verbatim(start, target)
            continue
        d = c.delta(x, start)
        with np.errstate(all="ignore"):
            size = np.abs(d)
            q = np.minimum(t / np.maximum(size, least), 1.0)
            step = (
                np.where(size > t, np.copysign(t, d), d)
                if t >= least
                else np.where(size < least, d * q, np.copysign(t, d))
            )
            step = np.where(np.isfinite(d), step, d)
        merged = c.add_to_base(start, [x], step, np.abs(step), target, d == 0)
        if t >= least:
            merged.value = np.where((size <= t) & (d != 0), wide(x), merged.value)
        out[name] = merged
    return out
