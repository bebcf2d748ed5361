"""CABS: n:m sparsity with masks that keep out of each other's way, then task arithmetic.

Yang et al., "CABS: conflict-aware and balanced sparsification for enhancing model merging", 2025, arXiv 2503.01874.
The flat tensor falls into blocks of m elements. In each block every expert, in their order, keeps n elements: the
largest |d| among those that no expert before it keeps; only when fewer than n are left, all of those and the largest
of the others. Equal magnitudes go by their flat index. An unchanged element (d = 0) counts as kept by nobody. A last
block of r < m elements keeps max(1, floor(n r / m + 1/2)). y = b + lambda sum_i w_i t_i; defaults n 64, m 256, no
rescale.
"""

import numpy as np

from tests.reference import conventions as c
from tests.reference import sparse, ties


def block_masks(deltas: list[np.ndarray], n: int, m: int) -> list[np.ndarray]:
    """The masks of one tensor."""
    size = deltas[0].size if deltas else 0
    taken = np.zeros(size, bool)
    out = []
    for delta in deltas:
        keys, kept = ties.magnitude(delta), np.zeros(size, bool)
        for begin in range(0, size, m):
            block = slice(begin, min(begin + m, size))
            length = block.stop - begin
            count = max(1, (2 * n * length + m) // (2 * m))
            # Free ones first, then by falling magnitude, then by index.
            order = np.lexsort((np.arange(length), ~keys[block], taken[block]))
            kept[block][order[:count]] = True
        kept &= delta.ravel() != 0
        taken |= kept
        out.append(kept.reshape(delta.shape))
    return out


def merge(
    base, experts, *, weight=1.0, n=64, m=256, normalize=False, rescale="none", dtype=None, compat="paper", **parameters
):
    """`parameters` takes `lambda` (default 1)."""
    lam = parameters.pop("lambda", 1.0)
    assert not parameters, parameters
    count = len(experts)

    def masks(deltas, numbers):
        del numbers
        if n == m:
            return sparse.Masks({name: [np.ones(d.shape, bool) for d in ds] for name, ds in deltas.items()})
        return sparse.Masks({name: block_masks(ds, n, m) for name, ds in deltas.items()})

    return sparse.merge(
        base, experts, masks, "sum", weights=c.per_expert(weight, count), per_expert=[None] * count,
        densities=[n / m] * count, normalize=normalize, rescale=rescale, dtype=dtype, compat=compat, lam=lam,
    )  # fmt: skip
