"""Spherical interpolation between two models, one angle a tensor.

Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985:

    cos = <a, c> / (|a| |c|),  o = acos(cos)
    y   = sin((1 - t) o) / sin(o) * a + sin(t o) / sin(o) * c       a at t = 0, c at t = 1

The ends are not normalised in the combination. When |cos| > 0.9995, or an end is zero, the straight
line y = (1 - t) a + t c. mergekit's mode replaces norms <= 1e-8 by 1 instead of taking the line for a zero
end. Norms and the dot product in f64; t default 0.5. At t = 0 and t = 1 the result is that end itself,
and two ends that are equal byte for byte give their own bytes.
"""

import numpy as np

from tests.reference import conventions as c
from tests.reference.rounding import wide


def coefficients(a: np.ndarray, b: np.ndarray, t: float, compat: str) -> tuple[float, float]:
    """What the two ends are multiplied by."""
    a, b = a.ravel(), b.ravel()
    with np.errstate(all="ignore"):
        norms = [float(np.sqrt(np.dot(x, x))) for x in (a, b)]
        if compat == "mergekit":
            norms = [n if n > 1e-8 else 1.0 for n in norms]
        elif 0.0 in norms:
            return 1 - t, t
        cosine = min(1.0, max(-1.0, float(np.dot(a, b)) / (norms[0] * norms[1])))
        if abs(cosine) > 0.9995:
            return 1 - t, t
        angle = np.arccos(cosine)
        return float(np.sin((1 - t) * angle) / np.sin(angle)), float(np.sin(t * angle) / np.sin(angle))


def merge(base, experts, *, t=0.5, dtype=None, compat="paper"):
    """From `base` to the one expert, or without a base from the first expert to the second."""
    first, second = (base, experts[0]) if base is not None else experts
    out = {}
    for name, a in first.items():
        b = second[name]
        target = c.output_dtype(a, dtype)
        if not c.has_arithmetic(a) or t == 0:
            out[name] = c.verbatim(a, target)
        elif c.same_bytes(a, b):
            out[name] = c.verbatim(a, target, roundings=16)
        elif t == 1:
            out[name] = c.verbatim(b, target)
        else:
            left, right = coefficients(wide(a), wide(b), t, compat)
            with np.errstate(all="ignore"):
                value = left * wide(a) + right * wide(b)
                scale = np.abs(left * wide(a)) + np.abs(right * wide(b))
            # The angle of nearly parallel ends loses up to three digits of the dot product's sixteen.
            out[name] = c.Merged(value, scale, target, roundings=1 << 16)
    return out
