"""ResMerge.

"ResMerge", arXiv 2606.02252, as the project's notes state it after the authors' release; here with an exact SVD:

    d_i = H_i + R_i           H_i the largest singular component
    q_i = R_i / |R_i|,  q = norm(sum_i q_i),  c = mean_i cos(q_i, q) in [0, 1],  s = mean_{i<j} cos(q_i, q_j)
    score = ((s + 1)/2 + (c + 1)/2) / 2 for attention and feed-forward matrices, else 0
    B = c**beta * mean_i |R_i| * q,  beta = beta_max - (beta_max - beta_min) * score
    B = mean_i R_i where c <= 1/sqrt(T)
    y = b + lambda (B + rho * mean_{i<j} max(0, cos(H_i, H_j)) * |B| * norm(sum_i H_i))

Embeddings, heads, norms, vectors and convolution kernels: mean of the deltas. Project's rules: routers and matrices
with a side of 1 too; stacked experts are batches of matrices; a residual below 1e-6 of its delta's norm is zero (rank
1), has no direction and counts as an expert; components that cancel do not come back. No epsilon in divisions.
"""

import re
from collections.abc import Sequence

import numpy as np

from tests.reference import conventions as c

_MEAN = re.compile(r"embed_tokens|wte|wpe|lm_head|norm|ln_|router|\bgate\b|\.bias$")
_SCORED = re.compile(r"attn|attention|[qkvo]_proj|mlp|ffn|feed_forward|experts")


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two matrices; 0 where one has no direction."""
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.sum(a * b) / norms) if norms > 0 else 0.0


def head(delta: np.ndarray) -> np.ndarray:
    """The largest singular component."""
    u, s, v = np.linalg.svd(delta, full_matrices=False)
    return s[0] * np.outer(u[:, 0], v[0])


def combine(deltas: Sequence[np.ndarray], scored: bool, beta_min: float, beta_max: float, budget: float) -> np.ndarray:
    """The merged delta of one matrix."""
    count = len(deltas)
    heads = [head(d) for d in deltas]
    residuals = [d - h for d, h in zip(deltas, heads, strict=True)]
    residuals = [
        r if np.linalg.norm(r) > 1e-6 * np.linalg.norm(d) else np.zeros_like(r)
        for r, d in zip(residuals, deltas, strict=True)
    ]
    norms = [float(np.linalg.norm(r)) for r in residuals]
    if not any(norms):
        return np.zeros_like(deltas[0])
    directions = [r / n if n else r for r, n in zip(residuals, norms, strict=True)]
    total = sum(directions)
    backbone = sum(residuals) / count
    if np.linalg.norm(total) > 1e-6:
        q = total / np.linalg.norm(total)
        coherence = min(1.0, max(0.0, sum(cosine(d, q) for d in directions) / count))
        if coherence > (1 + 1e-12) / np.sqrt(count):
            pairs = [cosine(directions[i], directions[j]) for i in range(count) for j in range(i + 1, count)]
            score = ((np.mean(pairs) + 1) / 2 + (coherence + 1) / 2) / 2 if scored else 0.0
            beta = beta_max - (beta_max - beta_min) * score
            backbone = coherence**beta * np.mean(norms) * q
    there = [h for h in heads if np.linalg.norm(h) > 0]
    pairs = [max(0.0, cosine(there[i], there[j])) for i in range(len(there)) for j in range(i + 1, len(there))]
    agreement = float(np.mean(pairs)) if pairs else float(bool(there))
    back = sum(heads)
    size = np.linalg.norm(back)
    if size > 1e-6 * np.sqrt(sum(np.sum(h * h) for h in heads)):
        backbone = backbone + budget * agreement * np.linalg.norm(backbone) * back / size
    return backbone


def merge(
    base: c.Model,
    experts: Sequence[c.Model],
    *,
    beta_min=0.7,
    beta_max=1.0,
    head_ratio_budget=0.2,
    looks=None,
    dtype=None,
    compat="paper",
    **parameters,
):
    """`parameters` takes `lambda` (default 1); `looks` is the engine's and changes nothing here."""
    lam = parameters.pop("lambda", 1.0)
    assert not parameters, parameters
    out = {}
    for name, start in base.items():
        inputs = [e[name] for e in experts]
        target = c.output_dtype(start, dtype)
        if not c.has_arithmetic(start) or all(c.same_bytes(x, start) for x in inputs):
            out[name] = c.verbatim(start, target)
            continue
        deltas = [c.delta(x, start, *inputs) for x in inputs]
        stacked = start.ndim == 3 and "experts" in name
        if _MEAN.search(name) or not (start.ndim == 2 or stacked) or min(start.shape[-2:]) < 2:
            total = sum(deltas) / len(deltas)
        else:
            scored = bool(_SCORED.search(name))
            batch = [np.reshape(d, (-1, *start.shape[-2:])) for d in deltas]
            total = np.stack(
                [
                    combine([b[i] for b in batch], scored, beta_min, beta_max, head_ratio_budget)
                    for i in range(batch[0].shape[0])
                ]
            ).reshape(start.shape)
        scale = abs(lam) * np.full(start.shape, max((float(np.max(np.abs(d))) for d in deltas if d.size), default=0.0))
        out[name] = c.add_to_base(start, inputs, lam * total, scale, target, None)
        # Where it stands out, the largest component is found to about 1e-9 of it, with three looks to 1e-7.
        out[name].roundings = 1 << (27 if start.size <= 1 << 18 else 30)
    return out
