"""Modifiers around any method of the oracle.

- treat: the first rule whose pattern is the tensor's role or matches its name says what is done instead of the
  method: the mean of the experts, or the base.
- match_norm: before the method, expert i becomes b + f_i (x_i - b) in f64, with f_i = n / ||x_i - b||_2, where n is the
  mean or the least of the experts' norms, or that of one of them; over all tensors that are merged, or in each.
  Norms that are zero or not finite do not count, and such experts stay as they are.
- lines (Wang et al., "LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging", ICLR 2025,
  arXiv 2410.17146): the method's delta in layer l of L is scaled by alpha + beta l / (L - 1), outside the layers by
  alpha. alpha "auto" is ||sum_i d_i||_1 / (T ||d||_1) over all tensors that are merged, d the method's delta.
"""

import re
from fnmatch import fnmatchcase

import numpy as np

from tests.reference import linear
from tests.reference.conventions import Merged, add_to_base, delta, has_arithmetic
from tests.reference.rounding import NAMES, wide

#: Roles of the names that the tests use.
ROLES = {
    "embeddings": r"embed_tokens\.weight$",
    "head": r"lm_head\.weight$",
    "norms": r"norm\.weight$",
    "attention": r"self_attn\..*weight$",
    "feed_forward": r"mlp\.(up|down|gate)_proj\.weight$",
    "routers": r"mlp\.gate\.weight$",
    "biases": r"\.bias$",
}


def treatment(name: str, treat: dict[str, str]) -> str:
    """merge, mean or base."""
    for pattern, what in treat.items():
        if re.search(ROLES[pattern], name) if pattern in ROLES else fnmatchcase(name, pattern):
            return what
    return "merge"


def depth(name: str, names) -> float:
    """0 in the first layer and outside the layers, 1 in the last."""
    number = {n: int(m[1]) for n in names if (m := re.search(r"layers\.(\d+)\.", n))}
    last = max(number.values(), default=0)
    return number.get(name, 0) / last if last else 0.0


def factors(norms: list[float], match) -> list[float]:
    """What each expert's delta is multiplied by."""
    good = [n for n in norms if n > 0 and np.isfinite(n)]
    if not good:
        return [1.0] * len(norms)
    target = {"mean": np.mean(good), "min": min(good)}.get(match)
    target = norms[match - 1] if target is None else target
    usable = target > 0 and np.isfinite(target)
    return [target / n if usable and n > 0 and np.isfinite(n) else 1.0 for n in norms]


def matched(base, experts, names, match):
    """The experts with their deltas over these tensors brought to one norm, in f64."""
    deltas = [{n: wide(e[n]) - wide(base[n]) for n in names} for e in experts]
    norms = [float(np.sqrt(sum((d**2).sum() for d in delta.values()))) for delta in deltas]
    by = factors(norms, match)
    return [{n: wide(base[n]) + f * delta[n] for n in names} for f, delta in zip(by, deltas, strict=True)]


def merge(
    method, base, experts, parameters=None, *, treat=None, lines=None, match_norm=None, match_norm_scope="model"
) -> dict[str, Merged]:
    """`method` is a function of the oracle; all models store one dtype, which is the output's."""
    treat = treat or {}
    names = [n for n in base if treatment(n, treat) == "merge" and has_arithmetic(base[n])]
    inputs = [{n: e[n] for n in names} for e in experts]
    start = {n: base[n] for n in names}
    options = {}
    if match_norm is not None:
        groups = [names] if match_norm_scope == "model" else [[n] for n in names]
        parts = [matched(base, experts, group, match_norm) for group in groups]
        inputs = [{n: t for part in parts for n, t in part[i].items()} for i in range(len(experts))]
        start = {n: wide(t) for n, t in start.items()}
        options["dtype"] = NAMES[next(iter(base.values())).dtype]
    out = method(start, inputs, **(parameters or {}), **options)

    if lines is not None:
        alpha, beta = lines
        if alpha == "auto":
            change = sum(np.abs(out[n].value - wide(base[n])).sum() for n in names)
            total = sum(np.abs(sum(delta(x[n], base[n]) for x in inputs)).sum() for n in names)
            alpha = total / change / len(experts)
        for n in names:
            by = alpha + beta * depth(n, base)
            merged = out[n]
            kept = merged.value == wide(base[n])
            # An expert that would be copied has a delta like any other here.
            change = merged.value - wide(base[n]) if merged.own is None else delta(merged.own, base[n])
            scaled = add_to_base(base[n], [], by * change, abs(by) * merged.scale, merged.dtype, kept)
            # Alpha comes out of sums over the whole model, in another order than the engine's.
            scaled.roundings = 64 if lines[0] != "auto" else 1 << 14
            out[n] = scaled if by != 1 else merged
    for n in base:
        what = treatment(n, treat)
        if what != "merge":
            one = {n: base[n]}
            alike = [{n: e[n]} for e in experts]
            out |= linear.merge(None, [one] if what == "base" else alike)
    return {n: out[n] for n in base}
