"""What the task-vector methods with masks share: sparse deltas in, merged tensors out.

A method decides which elements of each expert's delta are kept; from there on all of them are

    t_i = f_i m_i * d_i            f_i: `rescale`
    sum     y = b + lambda sum_i w_i t_i / (sum_i w_i with `normalize`)
    elect   y = b + lambda (TIES' elected-sign mean of the t_i), see `tests.reference.ties`
    stitch  y = b + lambda sum_i w_i t_i / sum_{i: t_i != 0} |w_i|

`rescale` is "none", "inverse_p" (divide by the density, or by each element's own probability where it has one), "l1"
or "l2" (restore that norm of the delta); norms, and the majority that a zero sum may elect, are taken over `scope`:
each tensor, or the whole model. mergekit's mode leaves out an L1 rescale when either norm is below 1e-7.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tests.reference import conventions as c
from tests.reference import ties
from tests.reference.task_arithmetic import combine, divisor

#: For each tensor, one array an expert.
ByTensor = Mapping[str, list[np.ndarray]]


@dataclass
class Masks:
    """What a method keeps."""

    kept: ByTensor
    """Whether each element is kept."""
    voting: ByTensor | None = None
    """Whether it votes when a majority decides what a zero sum elects; by default, what is kept votes."""
    probability: ByTensor | None = None
    """Each element's own keep probability, where it has one."""


def stitch(base, inputs, terms, weights, lam, dtype) -> c.Merged:
    """Where several experts keep an element, their mean."""
    with np.errstate(all="ignore"):
        covered = sum((abs(w) * (t != 0) for w, t in zip(weights, terms, strict=True)), np.zeros(base.shape))
        by = np.where(covered == 0, 1.0, covered)
        total = lam * (sum(terms, np.zeros(base.shape)) / by)
        scale = abs(lam) * sum((np.abs(t) for t in terms), np.zeros(base.shape)) / by
    # Sums that cancel only in one order of operations are not held to the sign of the base's zero.
    return c.add_to_base(base, inputs, total, scale, dtype, (total == 0) & (scale == 0))


def merge(
    base: c.Model,
    experts: Sequence[c.Model],
    masks: Callable[[ByTensor, list], Masks],
    how: str,
    *,
    weights: list[float],
    per_expert: list,
    densities: list[float],
    normalize=False,
    rescale="none",
    scope="tensor",
    zero_sign="plus",
    dtype=None,
    compat="paper",
    lam=1.0,
) -> dict[str, c.Merged]:
    """Merges by `how`; `masks` gets the deltas and the `per_expert` numbers of the experts that take part."""
    experts, weights, densities, per_expert = c.without_zero_weights(experts, weights, densities, per_expert)
    rescale = {True: "l1" if compat == "mergekit" else "inverse_p", False: "none"}.get(rescale, rescale)
    by = divisor(weights, normalize, compat) if how == "sum" else 1.0
    # By name, so that the ties of a whole model do not depend on how its files are laid out.
    names = sorted(n for n, t in base.items() if c.has_arithmetic(t))
    deltas = {n: [c.delta(e[n], base[n], *(x[n] for x in experts)) for e in experts] for n in names}
    made = masks(deltas, per_expert)
    voting = made.voting or made.kept
    out = {}
    for group in [names] if scope == "model" else [[n] for n in names]:
        sparse: dict[str, list[np.ndarray]] = {n: [] for n in group}
        voters: dict[str, list[np.ndarray]] = {n: [] for n in group}
        factors = []
        for i, (weight, density) in enumerate(zip(weights, densities, strict=True)):
            own = rescale == "inverse_p" and made.probability is not None and density < 1
            with np.errstate(all="ignore"):
                for n in group:
                    d = deltas[n][i] / made.probability[n][i] if own else deltas[n][i]
                    sparse[n].append(np.where(made.kept[n][i], d, 0.0))
                    voters[n].append(np.where(voting[n][i], d, 0.0))
                before = np.concatenate([deltas[n][i].ravel() for n in group])
                after = np.concatenate([sparse[n][i].ravel() for n in group])
                whole = density >= 1 or own
                factors.append(1.0 if whole else ties.rescale_factor(rescale, density, before, after, compat))
                for n in group:
                    voters[n][i] = weight * factors[i] * voters[n][i]
        zero = ties.zero_sign_value(zero_sign, list(voters.values())) if how == "elect" and experts else 1.0
        for name in group:
            start, inputs = base[name], [e[name] for e in experts]
            target = c.output_dtype(start, dtype)
            if all(c.same_bytes(x, start) for x in inputs):
                out[name] = c.verbatim(start, target)
                continue
            averaged = how == "stitch" or (how == "elect" and normalize)
            effective = np.sign(weights[0]) if averaged else weights[0] / by
            if compat == "mergekit" and how == "elect" and normalize:
                effective = 1.0
            if len(inputs) == 1 and densities[0] == 1 and lam == 1 and effective == 1:
                out[name] = c.verbatim(inputs[0], target)
                continue
            if how == "elect":
                out[name] = ties.disjoint(
                    start, inputs, sparse[name], weights, factors, zero,
                    normalize=normalize, lam=lam, dtype=target, compat=compat,
                )  # fmt: skip
            else:
                scaled = [w * f for w, f in zip(weights, factors, strict=True)]
                if how == "sum":
                    out[name] = combine(start, inputs, sparse[name], scaled, lam, by, target)
                else:
                    with np.errstate(all="ignore"):
                        terms = [s * t for s, t in zip(scaled, sparse[name], strict=True)]
                    out[name] = stitch(start, inputs, terms, weights, lam, target)
            out[name].roundings = ties.roundings_of(rescale)
    return {n: out.get(n) or c.verbatim(t, t.dtype) for n, t in base.items()}
