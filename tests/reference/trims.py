"""The trims of TIES with other combinations: DoTS and Localize-and-Stitch.

Yuan et al., "Decouple before integration: test-time synthesis of SFT and RLVR task vectors" (DoTS), 2026, as its
code has it: keep the largest 30 % of each tensor's delta with all ties, add the weighted sum; `rescale: l2` restores
the norm.

He et al., "Localize-and-Stitch: efficient model merging via sparse task arithmetic", TMLR 2025, arXiv 2408.13656,
without data: g_i = 1 where |d_i| is among the largest 5 % of the whole model, y = b + lambda sum_i g_i d_i / sum_i
g_i. With weights, sum_i w_i g_i d_i / sum_i |w_i| g_i. An unchanged element is not counted as kept.

The trim itself, its counts and its ties are those of `tests.reference.ties`.
"""

from tests.reference import conventions as c
from tests.reference import sparse, ties


def merge(
    base, experts, how, share, *, weight=1.0, density=None, normalize=False, rescale="none", scope, ties_rule,
    dtype=None, compat="paper", **parameters,
):  # fmt: skip
    """Both methods; `parameters` takes `lambda` (default 1)."""
    lam = parameters.pop("lambda", 1.0)
    assert not parameters, parameters
    count = len(experts)
    densities = c.per_expert((1.0 if compat == "mergekit" else share) if density is None else density, count)
    active = [e for e, w in zip(experts, c.per_expert(weight, count), strict=True) if w != 0]

    def masks(deltas, numbers):
        del deltas
        return sparse.Masks(ties.masks(base, active, numbers, scope=scope, ties=ties_rule, compat=compat))

    return sparse.merge(
        base, experts, masks, how, weights=c.per_expert(weight, count), per_expert=densities, densities=densities,
        normalize=normalize, rescale=rescale, scope=scope, dtype=dtype, compat=compat, lam=lam,
    )  # fmt: skip


def merge_dots(base, experts, *, scope="tensor", ties="all", **parameters):
    """dots_trim."""
    return merge(base, experts, "sum", 0.3, scope=scope, ties_rule=ties, **parameters)


def merge_stitch(base, experts, *, scope="model", ties="index", **parameters):
    """localize_and_stitch."""
    return merge(base, experts, "stitch", 0.05, scope=scope, ties_rule=ties, **parameters)
