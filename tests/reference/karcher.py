"""The mean of directions on the sphere, at the mean of lengths.

Karcher, "Riemannian center of mass and mollifier smoothing", 1977; for models mergekit's `karcher`, and arXiv
2603.04972. With u_i = x_i / |x_i| and equal shares a = 1/k:

    u = sum_i a u_i / |...|
    at most `max_iter` (10) times:  c_i = <u, u_i>,  o_i = acos(c_i)
        T = sum_i a (o_i / sin o_i) (u_i - c_i u);  stop if |T| < tol (1e-5);  u = cos|T| u + sin|T| T/|T|, normalised
    y = u * mean_i |x_i|

Models whose tensor is zero have no direction and are left out of it (k counts the others), not out of the mean of
lengths. A start shorter than tol is the first direction. A direction opposite to u has no shortest way to it and is
left out of that step (numerically: sin^2 <= 1e-6; at the other end, below 1e-12, o/sin o is 1).

mergekit's mode: tensors of norm up to tol are left out, and angles below tol ignored. Here everything happens in the
space of the elements, while the engine works on coefficients.
"""

import numpy as np

from tests.reference import conventions as c
from tests.reference import vectors as v
from tests.reference.rounding import wide


def direction(units: list[np.ndarray], max_iter: int, tol: float, compat: str) -> np.ndarray:
    """The Karcher mean of unit vectors."""
    share = 1 / len(units)
    u = sum(share * x for x in units)
    u = units[0] if v.norm(u) < max(tol, 1e-7) else u / v.norm(u)
    for _ in range(max_iter):
        tangent = np.zeros_like(u)
        for x in units:
            cosine = min(1.0, max(-1.0, float(np.dot(u, x))))
            angle, square = np.arccos(cosine), 1 - cosine * cosine
            if compat == "mergekit" and angle < tol:
                continue
            if cosine < 0 and square <= 1e-6:
                continue
            factor = angle / np.sqrt(square) if square > 1e-12 else 1.0
            tangent += share * factor * (x - cosine * u)
        step = v.norm(tangent)
        if step < tol:
            break
        u = np.cos(step) * u + np.sin(step) / step * tangent
        u /= v.norm(u)
    return u


def merge(base, experts, *, max_iter=10, tol=1e-5, dtype=None, compat="paper"):
    """Of any number of models; there is no base."""
    assert base is None
    out = {}
    for name, start in experts[0].items():
        inputs = [e[name] for e in experts]
        target = c.output_dtype(start, dtype)
        if not c.has_arithmetic(start) or len(inputs) == 1:
            out[name] = c.verbatim(start, target)
            continue
        if all(c.same_bytes(x, start) for x in inputs):
            out[name] = c.verbatim(start, target, roundings=64)
            continue
        flat = [wide(x).ravel() for x in inputs]
        norms = [v.norm(x) for x in flat]
        tiny = tol if compat == "mergekit" else 0.0
        units = [x / n for x, n in zip(flat, norms, strict=True) if n > tiny]
        value = direction(units, max_iter, tol, compat) * np.mean(norms) if units else np.zeros(start.size)
        # Elements of the result come from differences of elements of all models, each to the same length.
        scale = sum((np.abs(u) for u in units), np.zeros(start.size)) * np.mean(norms) if units else value
        out[name] = c.Merged(value.reshape(start.shape), scale.reshape(start.shape), target, roundings=1 << 20)
    return out
