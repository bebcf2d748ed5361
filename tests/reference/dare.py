"""DARE: drop and rescale, then task arithmetic or TIES' election.

Yu et al., "Language models are super Mario", ICML 2024, arXiv 2311.03099:

    t_i = m_i * d_i / density,   m_i ~ Bernoulli(density), one mask an expert   (density = kept fraction)
    dare_linear  y = b + lambda sum_i w_i t_i
    dare_ties    y = b + lambda m,  m = TIES' elected-sign mean of the t_i, without its trim

Default density 0.5. `rescale`: "inverse_p" (the paper, default), "none", "l1", "l2" (restores that norm
of the tensor's delta). A zero sum elects `zero_sign`, as in `tests.reference.ties`. mergekit's mode:
rescale "l1" (skipped when either norm is below 1e-7), density 1, `normalize` false for both. The masks
are those of `tests.reference.mask`; experts are counted after those of weight 0 were left out.
"""

import numpy as np

from tests.reference import conventions as c
from tests.reference import mask, ties
from tests.reference.task_arithmetic import combine, divisor


def sparse(base, experts, name, densities, rescale, seed, compat):
    """Masked deltas of one tensor, and the factor that rescales each."""
    inputs = [e[name] for e in experts]
    dropped, factors = [], []
    for i, (x, density) in enumerate(zip(inputs, densities, strict=True)):
        d = c.delta(x, base[name], *inputs)
        kept = np.where(mask.keep(seed, name, i, d.shape, density), d, 0.0)
        whole = density == 1
        factors.append(1.0 if whole else ties.rescale_factor(rescale, density, d, kept, compat))
        dropped.append(kept)
    return dropped, factors


def merge(
    base: c.Model,
    experts,
    elect: bool,
    *,
    weight,
    density,
    normalize,
    rescale,
    seed,
    dtype,
    compat,
    lam,
    zero_sign="plus",
):
    """Both variants; `elect` chooses dare_ties."""
    mergekit = compat == "mergekit"
    density = (1.0 if mergekit else 0.5) if density is None else density
    rescale = ("l1" if mergekit else "inverse_p") if rescale is None else rescale
    normalize = (elect and not mergekit) if normalize is None else normalize
    weights = c.per_expert(weight, len(experts))
    densities = c.per_expert(density, len(experts))
    experts, weights, densities = c.without_zero_weights(experts, weights, densities)
    by = 1.0 if elect else divisor(weights, normalize, compat)
    out = {}
    for name, start in base.items():
        inputs = [e[name] for e in experts]
        target = c.output_dtype(start, dtype)
        if not c.has_arithmetic(start) or all(c.same_bytes(x, start) for x in inputs):
            out[name] = c.verbatim(start, target)
            continue
        if elect and normalize:
            effective = 1.0 if weights[0] > 0 or mergekit else -1.0
        else:
            effective = weights[0] / by
        alone = len(inputs) == 1 and densities[0] == 1 and lam == 1 and effective == 1
        if alone:
            out[name] = c.verbatim(inputs[0], target)
            continue
        deltas, factors = sparse(base, experts, name, densities, rescale, seed, compat)
        if elect:
            with np.errstate(all="ignore"):
                terms = [w * f * d for w, f, d in zip(weights, factors, deltas, strict=True)]
            zero = ties.zero_sign_value(zero_sign, [terms])
            out[name] = ties.disjoint(
                start, inputs, deltas, weights, factors, zero,
                normalize=normalize, lam=lam, dtype=target, compat=compat, roundings=ties.roundings_of(rescale),
            )  # fmt: skip
        else:
            scaled = [w * f for w, f in zip(weights, factors, strict=True)]
            out[name] = combine(start, inputs, deltas, scaled, lam, by, target)
            out[name].roundings = ties.roundings_of(rescale)
    return out


def merge_linear(
    base, experts, *, weight=1.0, density=None, normalize=None, rescale=None, seed=0, dtype=None,
    compat="paper", **parameters,
):  # fmt: skip
    """dare_linear; `parameters` takes `lambda` (default 1)."""
    lam = parameters.pop("lambda", 1.0)
    assert not parameters, parameters
    return merge(
        base, experts, False, weight=weight, density=density, normalize=normalize, rescale=rescale, seed=seed,
        dtype=dtype, compat=compat, lam=lam,
    )  # fmt: skip


def merge_ties(
    base, experts, *, weight=1.0, density=None, normalize=None, rescale=None, zero_sign="plus", seed=0, dtype=None,
    compat="paper", **parameters,
):  # fmt: skip
    """dare_ties; `parameters` takes `lambda` (default 1)."""
    lam = parameters.pop("lambda", 1.0)
    assert not parameters, parameters
    return merge(
        base, experts, True, weight=weight, density=density, normalize=normalize, rescale=rescale, seed=seed,
        dtype=dtype, compat=compat, lam=lam, zero_sign=zero_sign,
    )  # fmt: skip
