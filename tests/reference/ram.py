"""Reinforced Agent Merging.

Yuan et al., "Behavior knowledge merge in reinforced agentic models", arXiv 2601.13572; formulas from the project's
notes, which follow the authors' program (xiangchi-yuan/mrl) and mergekit 0.1.5:

    a_i = |d_i| > epsilon,   c = sum_i a_i
    y   = b + (the changed d_i times s_i where c = 1, the mean of the changed d_i where c > 1, 0 where c = 0)

`ram`: s_i = 1. `ram_plus`, over the whole model: s_i = 1 + (r - 1) min(1, shared_i / unique_i), where shared_i
counts the elements of a_i with c > 1 and unique_i those with c = 1; r = 1.05, as in the authors' command.
`ramplus_tl` is mergekit's, over each tensor: s_i = 1 + r min(alpha, shared_i / unique_i), r = 0.1, alpha = 0.2.
NaN counts as a change, so that it comes out: the project's rule that nothing is dropped silently.
"""

import numpy as np

from tests.reference import conventions as c


def changes(base, inputs, epsilon):
    """Deltas of one tensor, and which of their elements count as changed."""
    deltas = [c.delta(x, base, *inputs) for x in inputs]
    with np.errstate(all="ignore"):
        return deltas, [~(np.abs(d) <= epsilon) for d in deltas]


def overlaps(changed) -> np.ndarray:
    """For each expert, how many of its changed elements others changed too, and how many it alone did."""
    count = sum(a.astype(np.int64) for a in changed)
    return np.array([[np.sum(a & (count > 1)), np.sum(a & (count == 1))] for a in changed])


def scales(counts: np.ndarray, gain: float, most: float) -> list[float]:
    """Factor of each expert's unique elements."""
    return [1 + gain * min(most, shared / unique) if unique else 1.0 for shared, unique in counts]


def combine(base, inputs, epsilon, factors, dtype) -> c.Merged:
    """One tensor."""
    deltas, changed = changes(base, inputs, epsilon)
    count = sum(a.astype(np.int64) for a in changed)
    with np.errstate(all="ignore"):
        kept = [np.where(a, d, 0.0) for a, d in zip(changed, deltas, strict=True)]
        shared = sum(kept) / np.maximum(count, 1)
        unique = sum(np.where(a, f * d, 0.0) for a, d, f in zip(changed, deltas, factors, strict=True))
        total = np.where(count > 1, shared, unique)
        scale = sum(np.abs(f * k) for k, f in zip(kept, factors, strict=True))
    # Sums that cancel only in one order of operations are not held to the sign of the base's zero.
    return c.add_to_base(base, inputs, total, scale, dtype, (total == 0) & ((count < 2) | (len(inputs) < 3)))


def merge(base, experts, factors_of, epsilon, dtype):
    """`factors_of(name)` gives each expert's factor in a tensor."""
    out = {}
    for name, start in base.items():
        inputs = [e[name] for e in experts]
        target = c.output_dtype(start, dtype)
        if not c.has_arithmetic(start) or all(c.same_bytes(x, start) for x in inputs):
            out[name] = c.verbatim(start, target)
        elif len(inputs) == 1 and epsilon == 0:
            out[name] = c.verbatim(inputs[0], target)
        else:
            out[name] = combine(start, inputs, epsilon, factors_of(name), target)
    return out


def merge_ram(base: c.Model, experts, *, epsilon=1e-5, dtype=None, compat="paper"):
    return merge(base, experts, lambda _: [1.0] * len(experts), epsilon, dtype)


def merge_ram_plus(base: c.Model, experts, *, r=1.05, epsilon=1e-5, dtype=None, compat="paper"):
    names = [n for n, t in base.items() if c.has_arithmetic(t)]
    of = {n: overlaps(changes(base[n], [e[n] for e in experts], epsilon)[1]) for n in names}
    total = sum(of.values(), np.zeros((len(experts), 2), np.int64))
    factors = scales(total, r - 1, 1.0)
    return merge(base, experts, lambda _: factors, epsilon, dtype)


def merge_ramplus_tl(base: c.Model, experts, *, r=0.1, alpha=0.2, epsilon=1e-5, dtype=None, compat="paper"):
    def factors_of(name):
        return scales(overlaps(changes(base[name], [e[name] for e in experts], epsilon)[1]), r, alpha)

    return merge(base, experts, factors_of, epsilon, dtype)
