"""PCB-Merging: parameters compete within their expert and with the other experts.

Du et al., "Parameter competition balancing for model merging", NeurIPS 2024, arXiv 2410.02396, by the authors' code
(duguodong7/pcb-merging, pcb-merging.py), whose constants are the defaults. Per scope (tensor, or the whole model):

    |d_i| is clipped to its elements floor(q n) and n - 1 - floor(q n) in ascending order, q = 1e-4;  m_i = minmax of it
    beta_i = exp(N m_i^2) tanh(d_i sum_j d_j)
    omega_i = minmax of max(beta_i, its element floor((1 - r) n) in ascending order), r = 0.1
    y = b + lambda sum_i omega_i clipped(d_i) / max(sum_i omega_i, 1e-12),   lambda = 1.2

Ours where the authors divide by zero: a minmax of equal magnitudes is 1; an omega of equal scores is 1 for
those that are above zero. The clip at the upper end drops as many as at the lower (theirs one more where q n
is no whole number). beta_i is divided by exp(N), which changes no omega and keeps it finite. Elements at
which the sum over experts is not finite count as unchanged, and come out as that sum.
"""

import numpy as np

from tests.reference import conventions as c
from tests.reference.metagpt import clean

#: Relative distance within which two correct f64 evaluations of a score lie.
APART = 1e-14
ROUNDINGS = 64


def rival(d: np.ndarray, total: np.ndarray, count: int, ratio: float, clip: float):
    """Clipped deltas and their scales, flat; how far evaluations of these may lie apart; where rounding decides."""
    n, size = d.size, np.abs(d)
    order = np.sort(size)
    out = min(int(clip * n), (n - 1) // 2)
    low, high = order[out], order[n - 1 - out]
    clipped = np.clip(size, low, high)
    m = (clipped - low) / (high - low) if high > low else np.ones(n)
    beta = np.exp(count * (m**2 - 1)) * np.tanh(np.where(d == 0, 0.0, d * np.where(d == 0, 0.0, total)))
    cut, peak = np.sort(beta)[min(int((1 - ratio) * n), n - 1)], beta.max()
    if peak > cut:
        omega = (np.maximum(beta, cut) - cut) / (peak - cut)
    else:
        omega = ((beta >= cut) & (beta > 0)).astype(float)
    error = APART * (np.abs(beta) + abs(cut) + abs(peak))
    apart = error / (peak - cut) if peak > cut else np.zeros(n)
    near = (np.abs(beta - cut) <= error) & (beta != 0)
    # The element at the cut alone is there in any evaluation.
    unsure = near if near.sum() > 1 else np.zeros(n, bool)
    return np.sign(d) * clipped, omega, apart, unsure


def merge(base: c.Model, experts, *, ratio=0.1, clip=1e-4, scope="tensor", dtype=None, compat="paper", **parameters):
    """`parameters` takes `lambda` (default 1.2)."""
    del compat
    lam = parameters.pop("lambda", 1.2)
    assert not parameters, parameters
    names = [n for n, t in base.items() if c.has_arithmetic(t)]
    deltas = {n: [c.delta(e[n], base[n], *(x[n] for x in experts)) for e in experts] for n in names}
    changes = {}
    for group in [names] if scope == "model" else [[n] for n in names]:
        if sum(base[n].size for n in group) == 0:
            continue
        flat = [np.concatenate([deltas[n][i].ravel() for n in group]) for i in range(len(experts))]
        flat, raw = clean(flat)
        rivals = [rival(d, raw, len(experts), ratio, clip) for d in flat]
        mix = sum(omega * clipped for clipped, omega, *_ in rivals)
        share = np.maximum(sum(omega for _, omega, *_ in rivals), 1e-12)
        change = np.where(np.isfinite(raw), mix / share, raw)
        size = sum(omega * np.abs(clipped) for clipped, omega, *_ in rivals) / share
        # A scale is a difference of scores: what is lost there is relative to the score, not to the scale.
        lost = sum(apart * (np.abs(clipped) + np.abs(mix / share)) for clipped, _, apart, _ in rivals) / share
        size += lost / (ROUNDINGS * 2.0**-53)
        unsure = np.logical_or.reduce([near for *_, near in rivals])
        ends = np.cumsum([base[n].size for n in group])[:-1]
        for name, *parts in zip(group, *(np.split(v, ends) for v in (change, size, unsure)), strict=True):
            changes[name] = [p.reshape(base[name].shape) for p in parts]
    out = {}
    for name, start in base.items():
        inputs = [e[name] for e in experts]
        target = c.output_dtype(start, dtype)
        if name not in changes or all(c.same_bytes(x, start) for x in inputs):
            out[name] = c.verbatim(start, target)
            continue
        change, size, unsure = changes[name]
        with np.errstate(all="ignore"):
            total = lam * change
        merged = c.add_to_base(start, inputs, total, abs(lam) * size, target, (total == 0) & (size == 0))
        merged.roundings = ROUNDINGS
        merged.unsure = unsure
        out[name] = merged
    return out
