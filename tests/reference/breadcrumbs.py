"""Model Breadcrumbs: drop the outliers and the small elements, then task arithmetic or TIES' election.

Davari, Belilovsky, "Model Breadcrumbs: scaling multi-task model merging with sparse masks", ECCV 2024, arXiv
2312.06795, with the counts of the project's notes. Of the n elements of a scope, in the order of falling |d| and,
among equal ones, of their flat index (whole model: tensors in the order of their names):

    kept = max(1, floor(density n + 1/2)),   out = min(floor(gamma n), n - kept)
    t_i  = d_i at the places out + 1 .. out + kept of that order, else 0

so that a small tensor loses no outlier, and density 1 keeps everything. Defaults: density 0.1, gamma 0.01, no rescale.
When a zero sum elects the sign of the majority, elements between the two cuts vote, those at a cut included.

mergekit's mode: kept = int(density n), which may be 0; density 1 by default; `breadcrumbs_ties` sums.
"""

import numpy as np

from tests.reference import conventions as c
from tests.reference import sparse, ties


def band(keys: np.ndarray, density: float, gamma: float, compat: str) -> tuple[np.ndarray, np.ndarray]:
    """What is kept of a scope, and what votes."""
    n = keys.size
    if density >= 1:
        return np.ones(n, bool), np.ones(n, bool)
    if compat == "mergekit":
        kept = int(density * n)
    else:
        kept = min(n, max(1, int(np.floor(density * n + 0.5))))
    none = np.zeros(n, bool)
    if kept == 0:
        return none, none
    dropped = min(int(np.floor(gamma * n)), n - kept)
    order = np.argsort(~keys, kind="stable")
    inside = none.copy()
    inside[order[dropped : dropped + kept]] = True
    voting = keys >= keys[order[dropped + kept - 1]]
    if dropped:
        voting &= keys <= keys[order[dropped - 1]]
    return inside, voting


def merge(
    base, experts, how, *, weight=1.0, density=None, gamma=0.01, normalize=None, rescale="none", scope="tensor",
    zero_sign="plus", dtype=None, compat="paper", **parameters,
):  # fmt: skip
    """Both variants; `parameters` takes `lambda` (default 1)."""
    lam = parameters.pop("lambda", 1.0)
    assert not parameters, parameters
    count, mergekit = len(experts), compat == "mergekit"
    densities = c.per_expert((1.0 if mergekit else 0.1) if density is None else density, count)
    numbers = list(zip(densities, c.per_expert(gamma, count), strict=True))

    def masks(deltas, numbers):
        kept, voting = ({n: [np.zeros(0)] * len(ds) for n, ds in deltas.items()} for _ in range(2))
        for group in [list(deltas)] if scope == "model" else [[n] for n in deltas]:
            for i, (density, gamma) in enumerate(numbers):
                keys = [ties.magnitude(deltas[n][i]) for n in group]
                inside, votes = band(np.concatenate(keys) if keys else np.zeros(0, np.uint64), density, gamma, compat)
                ends = np.cumsum([k.size for k in keys])[:-1]
                for n, a, b in zip(group, np.split(inside, ends), np.split(votes, ends), strict=True):
                    kept[n][i], voting[n][i] = a.reshape(deltas[n][i].shape), b.reshape(deltas[n][i].shape)
        return sparse.Masks(kept, voting=voting)

    return sparse.merge(
        base, experts, masks, how, weights=c.per_expert(weight, count), per_expert=numbers, densities=densities,
        normalize=(how == "elect" and not mergekit) if normalize is None else normalize, rescale=rescale, scope=scope,
        zero_sign=zero_sign, dtype=dtype, compat=compat, lam=lam,
    )  # fmt: skip


def merge_linear(base, experts, **parameters):
    """breadcrumbs."""
    return merge(base, experts, "sum", **parameters)


def merge_ties(base, experts, **parameters):
    """breadcrumbs_ties."""
    return merge(base, experts, "elect", **parameters)
