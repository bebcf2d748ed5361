"""SCE: select, calculate, erase.

Wan et al., "FuseChat: knowledge fusion of chat models", arXiv 2408.07990, and mergekit's words for it:

    select     v = variance of d_1 ... d_n for each element; of its z non-zero ones the k = floor(topk z + 1/2) largest
               (one at least), equal ones in index order; topk = 1 keeps everything
    calculate  w_i = mean d_i^2 / sum_j mean d_j^2 of what is kept
    erase      s = sign(sum_i d_i), zero is plus; y = b + sum_{sign d_i = s} w_i d_i / sum_{same i} w_i

Variances are taken around the first expert's delta, so that equal deltas have exactly none. Elements at which the sum
over experts is not finite count as unchanged, and come out as that sum. One expert is copied.

mergekit's mode: k = floor(topk z), even 0; w_i = 1/n where sum_j mean d_j^2 < 1e-6; the divisor is 1e-6 at least;
topk = 1 by default; of one expert nothing is selected.
"""

import numpy as np

from tests.reference import conventions as c
from tests.reference.metagpt import clean


def variance(deltas) -> np.ndarray:
    """n times the population variance over experts."""
    apart = [d - deltas[0] for d in deltas]
    mean = sum(apart, np.zeros(deltas[0].shape)) / len(deltas)
    return sum(((a - mean) ** 2 for a in apart), np.zeros(deltas[0].shape))


def kept(v: np.ndarray, topk: float, compat: str) -> np.ndarray:
    """Mask of the selected elements."""
    if topk >= 1:
        return np.ones(v.shape, bool)
    count = int(np.count_nonzero(v))
    k = int(topk * count) if compat == "mergekit" else min(max(1, int(topk * count + 0.5)), count)
    mask = np.zeros(v.size, bool)
    mask[np.argsort(-v.ravel(), kind="stable")[:k]] = True
    return mask.reshape(v.shape)


def merge(base: c.Model, experts, *, select_topk=None, dtype=None, compat="paper"):
    """`select_topk` is 0.1 unless given, in mergekit's mode 1."""
    mergekit = compat == "mergekit"
    topk = (1.0 if mergekit else 0.1) if select_topk is None else select_topk
    out = {}
    for name, start in base.items():
        inputs = [e[name] for e in experts]
        target = c.output_dtype(start, dtype)
        nothing = topk == 0 or (len(inputs) == 1 and topk < 1 and mergekit)
        if not c.has_arithmetic(start) or all(c.same_bytes(x, start) for x in inputs) or nothing:
            out[name] = c.verbatim(start, target)
        elif len(inputs) == 1:
            out[name] = c.verbatim(inputs[0], target)
        else:
            out[name] = fuse(start, inputs, topk, target, mergekit)
    return out


def fuse(start, inputs, topk, target, mergekit):
    """One tensor of at least two experts."""
    deltas, raw = clean([c.delta(x, start, *inputs) for x in inputs])
    mask = kept(variance(deltas), topk, "mergekit" if mergekit else "paper")
    deltas = [np.where(mask, d, 0.0) for d in deltas]
    squares = np.array([np.sum(d**2) for d in deltas]) / (max(start.size, 1) if mergekit else 1)
    total = squares.sum()
    alike = total < 1e-6 if mergekit else total == 0
    weights = np.full(len(inputs), 1 / len(inputs)) if alike else squares / total
    sign = np.where(raw < 0, -1.0, 1.0)
    agree = [d * sign > 0 for d in deltas]
    mix = sum(np.where(a, w * d, 0.0) for a, w, d in zip(agree, weights, deltas, strict=True))
    share = sum(np.where(a, w, 0.0) for a, w in zip(agree, weights, strict=True))
    least = 1e-6 if mergekit else 0.0
    by = np.maximum(share, least)
    change = np.where(by > 0, mix / np.where(by > 0, by, 1.0), 0.0)
    change = np.where(np.isfinite(raw), change, raw)
    merged = c.add_to_base(start, inputs, change, np.abs(change), target, change == 0)
    merged.roundings = 1 << 13
    return merged
