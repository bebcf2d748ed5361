"""Arcee Fusion: take the elements whose change stands out.

Arcee AI's method, in mergekit's words:

    KL = sum over the row (the last axis) of P ln(P / Q),  P = softmax(x) + 1e-8,  Q = softmax(b) + 1e-8
    s  = |x - b| KL;  threshold = median + 1.5 (Q3 - Q1), element floor(q (n - 1)) of the sorted scores each
    y  = x where s >= threshold, otherwise b

In f64, and over all elements: mergekit takes scores in the dtype of the checkpoint and quartiles of a sample above a
million elements. Elements whose delta is not finite have no part in a distribution and the score 0, and come out as
b + (x - b).
"""

import numpy as np

from tests.reference import conventions as c
from tests.reference.rounding import wide

FLOOR = 1e-8
#: How far two correct f64 evaluations of a divergence may lie apart: relatively, and absolutely, since it is a
#: small difference of terms that sum to one.
APART = 1e-12, 1e-13


def softmax(values: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """Along the last axis, over the finite elements."""
    shown = np.where(finite, values, -np.inf)
    top = np.max(shown, axis=-1, keepdims=True)
    raised = np.exp(shown - np.where(np.isfinite(top), top, 0.0))
    total = raised.sum(axis=-1, keepdims=True)
    return raised / np.where(total > 0, total, 1.0)


def scores(x: np.ndarray, base: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The importance of each element."""
    finite = np.isfinite(d)
    p, q = (softmax(np.atleast_1d(wide(v)), np.atleast_1d(finite)) + FLOOR for v in (x, base))
    divergence = np.maximum(np.sum(p * np.log(p / q), axis=-1, keepdims=True), 0.0)
    return (np.abs(np.atleast_1d(np.where(finite, d, 0.0))) * divergence).reshape(d.shape)


def quartiles(s: np.ndarray) -> list[float]:
    """The elements a quarter, a half and three quarters up."""
    flat, n = np.sort(s, axis=None), s.size
    return [flat[(n - 1) * quarters // 4] for quarters in (1, 2, 3)]


def threshold(lows, highs) -> float:
    """Where scores begin to stand out; with bounds of the quartiles, a bound of it."""
    return highs[1] + 1.5 * (highs[2] - lows[0])


def merge(base: c.Model, experts, *, dtype=None, compat="paper"):
    """Exactly one expert."""
    del compat
    (expert,) = experts
    out = {}
    for name, start in base.items():
        x = expert[name]
        target = c.output_dtype(start, dtype)
        if not c.has_arithmetic(start) or c.same_bytes(x, start) or start.size == 0:
            out[name] = c.verbatim(start, target)
            continue
        d = c.delta(x, start)
        with np.errstate(all="ignore"):
            s = scores(x, start, d)
            error = np.where(np.isfinite(d), APART[0] * s + APART[1] * np.abs(d), 0.0)
            low, middle, high = (quartiles(v) for v in (s - error, s, s + error))
            at = threshold(middle, middle)
            value = np.where((s >= at) & (d != 0), wide(x), wide(start))
            value = np.where(np.isfinite(d), value, wide(start) + d)
            surely_kept = s - error > threshold(low, high)
            surely_dropped = s + error < threshold(high, low)
        merged = c.Merged(value, np.zeros(start.shape), target, kept=d == 0)
        # Rounding decides between expert and base.
        merged.unsure = np.isfinite(d) & (d != 0) & ~surely_kept & ~surely_dropped
        out[name] = merged
    return out
