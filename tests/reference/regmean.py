"""RegMean.

Jin et al., "Dataless knowledge fusion by merging weights of language models", ICLR 2023, arXiv 2212.09849; for a
matrix W of outputs x inputs:

    W = (sum_i w_i W_i G~_i) (sum_i w_i G~_i)^-1,   G~ = alpha G + (1 - alpha) diag G,   G_i = X_i^T X_i

GPT-2's Conv1D holds the transpose. Tensors without a Gram matrix for every model that takes part are averaged by
weight. Project's rules: G counts as (G + G^T)/2; an input that is zero for all models keeps the weighted average of its
weights; equal rows stay as they are.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from tests.reference import conventions as c
from tests.reference.rounding import wide

_TRANSPOSED = re.compile(r"(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")


def solve(matrices: Sequence[np.ndarray], grams: Sequence[np.ndarray], weights: Sequence[float], alpha: float):
    """The merged matrix, outputs x inputs."""
    shrunk = [
        w * (alpha * (g + g.T) / 2 + (1 - alpha) * np.diag(np.diag(g))) for g, w in zip(grams, weights, strict=True)
    ]
    dead = sum(shrunk).diagonal() == 0
    shrunk = [g + np.diag(np.where(dead, w, 0.0)) for g, w in zip(shrunk, weights, strict=True)]
    product = sum(m @ g for m, g in zip(matrices, shrunk, strict=True))
    return np.linalg.solve(sum(shrunk), product.T).T


def merge(
    base: None,
    experts: Sequence[c.Model],
    *,
    gram: Sequence[Mapping[str, np.ndarray]],
    weight=1.0,
    alpha=0.9,
    dtype=None,
    compat="paper",
):
    """`gram` holds the matrices themselves, not their paths."""
    assert base is None
    first_model = experts[0]
    weights = c.per_expert(weight, len(experts))
    experts, weights, gram = c.without_zero_weights(experts, weights, list(gram))
    out = {}
    for name, start in first_model.items():
        inputs = [e[name] for e in experts]
        target = c.output_dtype(start, dtype)
        if not c.has_arithmetic(start) or len(inputs) == 1 or all(c.same_bytes(x, inputs[0]) for x in inputs):
            out[name] = c.verbatim(inputs[0], target, roundings=16)
            continue
        values = [wide(x) for x in inputs]
        scale = np.full(start.shape, max(float(np.abs(v).max()) if v.size else 0.0 for v in values))
        if not all(name in g for g in gram):
            value = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
            out[name] = c.Merged(value, scale, target)
            continue
        grams = [wide(g[name]) for g in gram]
        if start.ndim == 2:
            turned = [v.T if _TRANSPOSED.search(name) else v for v in values]
            value = solve(turned, grams, weights, alpha)
            value = value.T if _TRANSPOSED.search(name) else value
        else:
            batch = range(start.shape[0])
            value = np.stack([solve([v[i] for v in values], [g[i] for g in grams], weights, alpha) for i in batch])
        out[name] = c.Merged(value, scale, target, roundings=1 << 30)
    return out
