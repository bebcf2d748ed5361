"""DELLA: drop by rank, then task arithmetic or TIES' election.

Deep, Bhardwaj, Poria, "DELLA-Merging: reducing interference in model merging through magnitude-based sampling", 2024,
arXiv 2406.11617. In each row of L elements, rank r = 1 .. L by |d| ascending:

    p = (density - epsilon) + 2 epsilon (r - 1) / (L - 1),   m ~ Bernoulli(p),   t = m d / p

A row of one element has p = density. Equal magnitudes share the mean of their ranks. Rows are those of a matrix as
it is stored, of each matrix of a stack of experts too; all weights of one output channel of a convolution; a vector
is one row. Density 1 keeps everything. `rescale`: "inverse_p" (default: the element's own p), "none", "l1", "l2".

mergekit's mode ranks along the second axis of every tensor that has one, restores the L1 norm instead of dividing by
p, and has density 1 by default. The numbers that decide are those of `tests.reference.mask`, so that with epsilon 0
the mask is DARE's.
"""

import numpy as np

from tests.reference import conventions as c
from tests.reference import mask, sparse, ties


def mean_ranks(row: np.ndarray) -> np.ndarray:
    """Ranks of the magnitudes, 1 the smallest; equal ones share their mean."""
    _, inverse, counts = np.unique(ties.magnitude(row), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse.reshape(-1)]


def probabilities(name: str, delta: np.ndarray, density: float, epsilon: float, compat: str) -> np.ndarray:
    """Keep probability of each element."""
    if delta.size == 0 or density >= 1:
        return np.ones(delta.shape)
    stacked = delta.ndim == 3 and "experts" in name.split(".")
    if delta.ndim < 2:
        rows = delta.reshape(1, -1)
    elif compat == "mergekit":
        rows = np.moveaxis(delta, 1, -1)
    elif delta.ndim == 2 or stacked:
        rows = delta
    else:
        rows = delta.reshape(delta.shape[0], -1)
    flat = rows.reshape(-1, rows.shape[-1])
    length = flat.shape[1]
    if length == 1:
        return np.full(delta.shape, density)
    step = 2 * epsilon / (length - 1)
    p = np.array([(density - epsilon) + step * (mean_ranks(row) - 1) for row in flat]).reshape(rows.shape)
    return (np.moveaxis(p, -1, 1) if compat == "mergekit" and delta.ndim > 2 else p).reshape(delta.shape)


def keep(seed: int, name: str, expert: int, p: np.ndarray) -> np.ndarray:
    """The mask of one tensor of one expert, each element with its own probability."""
    u = mask.words(seed, name, expert, p.size).astype(np.uint64).reshape(p.shape)
    return u < np.floor(p * 2.0**32 + 0.5).astype(np.uint64)


def merge(
    base, experts, how, *, weight, density, epsilon, normalize, rescale, seed, dtype, compat, zero_sign="plus", lam
):
    """Both variants."""
    count = len(experts)
    mergekit = compat == "mergekit"
    densities = c.per_expert((1.0 if mergekit else 0.5) if density is None else density, count)
    numbers = list(zip(densities, c.per_expert(epsilon, count), strict=True))

    def masks(deltas, numbers):
        kept, probability = {}, {}
        for name, ds in deltas.items():
            ps = [probabilities(name, d, *n, compat) for d, n in zip(ds, numbers, strict=True)]
            kept[name] = [keep(seed, name, i, p) for i, p in enumerate(ps)]
            probability[name] = ps
        return sparse.Masks(kept, probability=probability)

    return sparse.merge(
        base, experts, masks, how, weights=c.per_expert(weight, count), per_expert=numbers, densities=densities,
        normalize=normalize, rescale=("l1" if mergekit else "inverse_p") if rescale is None else rescale,
        zero_sign=zero_sign, dtype=dtype, compat=compat, lam=lam,
    )  # fmt: skip


def merge_linear(
    base, experts, *, weight=1.0, density=None, epsilon=0.15, normalize=False, rescale=None, seed=0, dtype=None,
    compat="paper", **parameters,
):  # fmt: skip
    """della_linear; `parameters` takes `lambda` (default 1)."""
    lam = parameters.pop("lambda", 1.0)
    assert not parameters, parameters
    return merge(
        base, experts, "sum", weight=weight, density=density, epsilon=epsilon, normalize=normalize, rescale=rescale,
        seed=seed, dtype=dtype, compat=compat, lam=lam,
    )  # fmt: skip


def merge_ties(
    base, experts, *, weight=1.0, density=None, epsilon=0.15, normalize=True, rescale=None, zero_sign="plus", seed=0,
    dtype=None, compat="paper", **parameters,
):  # fmt: skip
    """della; `parameters` takes `lambda` (default 1)."""
    lam = parameters.pop("lambda", 1.0)
    assert not parameters, parameters
    return merge(
        base, experts, "elect", weight=weight, density=density, epsilon=epsilon, normalize=normalize, rescale=rescale,
        seed=seed, dtype=dtype, compat=compat, zero_sign=zero_sign, lam=lam,
    )  # fmt: skip
