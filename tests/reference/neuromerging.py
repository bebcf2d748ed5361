"""NeuroMerging.

Fang et al., "To see a world in a spark of neuron", EMNLP 2025, arXiv 2503.05320, and the authors' `NeuroMerging.py`:

    t_i   = d_i where |d_i| is among the k largest of the tensor (and all that equal the smallest of these), else 0
    for each neuron (a row with the inputs of one output) with base w:
    p_i   = t_i - (<t_i, w>/<w, w>) w
    [p_1 ... p_T] = U S V^T,  coordinates <p_i, v_r>
    m_r   = mean of the coordinates that have the sign of their sum over i
    y     = b + lambda_2/(1 - sigma) sum_r m_r v_r + lambda_1 (the same election over <t_i, w>/<w, w>) w
    sigma = max_i (1 - |t_i|_1 / |d_i|_1) over the tensor, with `auto_scale`

Tensors without neurons (vectors, norms, convolution kernels; routers by the project's rule): sign election and disjoint
mean of the untrimmed deltas, an exactly zero sum elects plus. Project's rules: a coordinate whose sum is zero (1e-10)
adds nothing, since the sign of v_r is arbitrary; coordinates below 1e-10 of the largest are zero; a base row of zeros
has no part along it; k = max(1, floor(density n + 1/2)). GPT-2's Conv1D stores neurons as columns.
"""

import re
from collections.abc import Sequence

import numpy as np

from tests.reference import conventions as c
from tests.reference.rounding import wide
from tests.reference.ties import disjoint, kept_count, largest, magnitude

_NO_NEURONS = re.compile(r"norm|ln_|router|\bgate\b|\.bias$")
_COLUMNS = re.compile(r"(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")


def elect(values: np.ndarray) -> np.ndarray:
    """The mean along the first axis of what has the sign of the sum."""
    total, most = values.sum(axis=0), np.abs(values).max(axis=0)
    sign = np.where(np.abs(total) <= 1e-10 * most, 0.0, np.sign(total))
    agree = (np.sign(values) == sign) & (np.abs(values) > 1e-10 * most) & (sign != 0)
    return np.where(agree, values, 0.0).sum(axis=0) / np.maximum(agree.sum(axis=0), 1)


def merge_neuron(w: np.ndarray, deltas: np.ndarray, along: float, across: float) -> np.ndarray:
    """The merged delta of one neuron."""
    square = float(w @ w)
    shares = deltas @ w / square if square > 0 else np.zeros(len(deltas))
    parts = deltas - np.outer(shares, w)
    _, s, v = np.linalg.svd(parts, full_matrices=False)
    v = v[s > 1e-10 * s[0]] if s.size and s[0] > 0 else v[:0]
    return across * (elect(parts @ v.T) @ v) + along * elect(shares) * w


def merge(
    base: c.Model,
    experts: Sequence[c.Model],
    *,
    density=0.2,
    lambda_1=0.0,
    lambda_2=1.0,
    auto_scale=True,
    dtype=None,
    compat="paper",
):
    """See the module."""
    densities = c.per_expert(density, len(experts))
    out = {}
    for name, start in base.items():
        inputs = [e[name] for e in experts]
        target = c.output_dtype(start, dtype)
        if not c.has_arithmetic(start) or all(c.same_bytes(x, start) for x in inputs):
            out[name] = c.verbatim(start, target)
            continue
        deltas = [c.delta(x, start, *inputs) for x in inputs]
        stacked = start.ndim == 3 and "experts" in name
        if _NO_NEURONS.search(name) or not (start.ndim == 2 or stacked):
            ones = [1.0] * len(deltas)
            out[name] = disjoint(
                start, inputs, deltas, ones, ones, 1.0, normalize=True, lam=1.0, dtype=target, compat="paper"
            )
            continue
        trimmed = [
            np.where(largest(magnitude(d), kept_count(r, d.size, "paper"), "all").reshape(d.shape), d, 0.0)
            if r < 1
            else d
            for d, r in zip(deltas, densities, strict=True)
        ]
        across = lambda_2
        if auto_scale:
            kept = [np.abs(t).sum() / np.abs(d).sum() for t, d in zip(trimmed, deltas, strict=True) if np.any(d)]
            across = lambda_2 / min([1.0, *kept])
        turn = (lambda x: np.swapaxes(x, -1, -2)) if _COLUMNS.search(name) else (lambda x: x)
        weights = turn(wide(start))
        neurons = np.stack([turn(t) for t in trimmed])
        total = np.zeros(weights.shape)
        for at in np.ndindex(*weights.shape[:-1]):
            total[at] = merge_neuron(weights[at], neurons[(slice(None), *at)], lambda_1, across)
        total = turn(total)
        scale = (abs(across) + abs(lambda_1)) * sum(np.abs(d).max() if d.size else 0.0 for d in deltas)
        out[name] = c.add_to_base(start, inputs, total, np.full(start.shape, scale), target, None)
        # Singular values that lie close turn their vectors by more than rounding does.
        out[name].roundings = 1 << 30
    return out
