"""Fisher-weighted averages.

Matena and Raffel, "Merging models with Fisher-weighted averaging", NeurIPS 2022, arXiv 2111.09832, and the
authors' code (`model_merging/merging.py`) for the floor and the norms:

    y = sum_i c_i max(F_i, floor) x_i / sum_i c_i max(F_i, floor),   c_i = w_i / |F_i|

with |F_i| the L2 norm over all tensors whose statistics are used (1 where it is 0, and without `normalize`).
`favor_target_model` keeps the floor for the first model alone. Project's rules: where no model has any information
the plain weighted average; a tensor that lacks statistics for any model that takes part is averaged by weight and
does not count towards the norms. Elements that are equal in all models stay as they are, NaN and infinity included.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tests.reference import conventions as c
from tests.reference.rounding import wide


def merge(
    base: None,
    experts: Sequence[c.Model],
    *,
    fisher: Sequence[Mapping[str, np.ndarray]],
    weight=1.0,
    floor=1e-6,
    normalize=True,
    favor_target_model=False,
    dtype=None,
    compat="paper",
):
    """`fisher` holds the statistics themselves, not their paths."""
    assert base is None
    first_model = experts[0]
    weights = c.per_expert(weight, len(experts))
    experts, weights, fisher = c.without_zero_weights(experts, weights, list(fisher))
    used = [n for n, t in first_model.items() if c.has_arithmetic(t) and all(n in f for f in fisher)]
    factors = []
    for w, statistics in zip(weights, fisher, strict=True):
        norm = np.sqrt(sum(float(np.sum(wide(statistics[n]) ** 2)) for n in used)) if normalize else 1.0
        factors.append(w / (norm if norm > 0 else 1.0))
    floors = [0.0 if favor_target_model and i > 0 else floor for i in range(len(experts))]

    out = {}
    for name, start in first_model.items():
        inputs = [e[name] for e in experts]
        target = c.output_dtype(start, dtype)
        if not c.has_arithmetic(start):
            out[name] = c.verbatim(start, target)
            continue
        if len(inputs) == 1:
            out[name] = c.verbatim(inputs[0], target)
            continue
        values = [wide(x) for x in inputs]
        with np.errstate(all="ignore"):
            plain = [np.full(start.shape, w) for w in weights]
            shares = plain
            if name in used:
                shares = [k * np.maximum(wide(f[name]), low) for k, f, low in zip(factors, fisher, floors, strict=True)]
            total = sum(shares)
            shares = [np.where(total > 0, s, p) for s, p in zip(shares, plain, strict=True)]
            total = sum(shares)
            value = sum(s * x for s, x in zip(shares, values, strict=True)) / total
            scale = sum(s * np.abs(x) for s, x in zip(shares, values, strict=True)) / total
        equal = np.all([x == values[0] for x in values], axis=0)
        value, scale = np.where(equal, values[0], value), np.where(equal, np.abs(values[0]), scale)
        out[name] = c.Merged(value, scale, target, roundings=256)
    return out
