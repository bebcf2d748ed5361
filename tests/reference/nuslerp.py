"""Spherical interpolation of two deltas (without a base, of two models), for each tensor, row or column.

mergekit's method, after Shoemake 1985:

    t = w_2 / (w_1 + w_2),   cos = <d_1, d_2> / (|d_1| |d_2|),   o = acos(cos)
    y = b + sin((1 - t) o) / sin(o) * d_1 + sin(t o) / sin(o) * d_2

Straight, (1 - t) d_1 + t d_2, where the two are parallel (1 - cos^2 <= 1e-16), one of them is zero, or they are all
but opposite (cos < -0.9995, where the factors above grow without bound). `nuslerp_flatten` (default true): one angle a
tensor; otherwise one for each vector that belongs to an output (`nuslerp_row_wise`) or to an input (default).
Weights that sum to zero are refused; an expert of weight 0 takes no part.

mergekit's mode: t = 1/2 where |w_1 + w_2| < 1e-6; a norm counts as 1e-7 at least, so that a zero delta is orthogonal
to everything; no rule for opposite deltas; its vectors run along the first axis with `nuslerp_row_wise`, along the last
one without (the reverse of what its documentation says). Its test for parallel deltas is made for cosines in f32.
"""

import numpy as np

from tests.reference import conventions as c
from tests.reference import vectors as v
from tests.reference.rounding import wide


def coefficients(x: np.ndarray, y: np.ndarray, t: float, compat: str) -> tuple[float, float]:
    """What two vectors are multiplied by."""
    nx, ny = v.norm(x), v.norm(y)
    if compat == "mergekit":
        nx, ny = max(nx, 1e-7), max(ny, 1e-7)
    elif 0.0 in (nx, ny):
        return 1 - t, t
    cosine = min(1.0, max(-1.0, float(np.dot(x, y)) / nx / ny))
    if compat == "mergekit":
        rounded = np.float32(cosine)
        straight = np.float32(1) - rounded * rounded <= 1e-16
    else:
        straight = cosine < -0.9995 or 1 - cosine * cosine <= 1e-16
    if straight:
        return 1 - t, t
    angle = np.arccos(cosine)
    return float(np.sin((1 - t) * angle) / np.sin(angle)), float(np.sin(t * angle) / np.sin(angle))


def merge(base, experts, *, weight=1.0, nuslerp_flatten=True, nuslerp_row_wise=False, dtype=None, compat="paper"):
    """Of two experts; with a base of their deltas."""
    first, second = experts
    weights = c.per_expert(weight, 2)
    if compat == "mergekit" and abs(sum(weights)) < 1e-6:
        t = 0.5
    else:
        assert sum(weights) != 0, "zero weight sum"
        t = weights[1] / sum(weights)
    if nuslerp_flatten:
        cut = "whole"
    elif compat == "mergekit":
        cut = "first" if nuslerp_row_wise else "last"
    else:
        cut = "outputs" if nuslerp_row_wise else "inputs"
    out = {}
    for name, start in (base if base is not None else first).items():
        inputs = [first[name], second[name]]
        target = c.output_dtype(start, dtype)
        if not c.has_arithmetic(start) or (base is not None and all(c.same_bytes(x, start) for x in inputs)):
            out[name] = c.verbatim(start, target)
        elif t in (0, 1):
            out[name] = c.verbatim(inputs[int(t)], target)
        elif base is None and c.same_bytes(*inputs):
            out[name] = c.verbatim(start, target, roundings=16)
        else:
            out[name] = one(name, start if base is not None else None, inputs, t, cut, target, compat)
    return out


def one(name, base, inputs, t, cut, target, compat) -> c.Merged:
    """One tensor."""
    deltas = [c.delta(x, base, *inputs) if base is not None else wide(x) for x in inputs]
    along = v.axes(name, deltas[0].shape, cut)
    pieces = [v.split(d, along) for d in deltas]
    value, scale = np.zeros(pieces[0].shape), np.zeros(pieces[0].shape)
    with np.errstate(all="ignore"):
        for at, (x, y) in enumerate(zip(*pieces, strict=True)):
            left, right = coefficients(x, y, t, compat)
            value[at] = left * x + right * y
            scale[at] = np.abs(left * x) + np.abs(right * y)
            # Near opposite ends the factors are large because a small sine is known to few digits.
            scale[at] *= 1 + abs(left) + abs(right)
    value, scale = v.join(value, deltas[0].shape, along), v.join(scale, deltas[0].shape, along)
    if base is None:
        return c.Merged(value, scale, target, roundings=1 << 16)
    merged = c.add_to_base(base, inputs, value, scale, target, kept=scale == 0)
    merged.roundings = 1 << 16
    return merged
