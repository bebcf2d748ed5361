"""MetaGPT: task arithmetic with weights in closed form.

Zhou et al., "MetaGPT: merging large language models using model exclusive task arithmetic", EMNLP 2024,
arXiv 2406.11385:

    y = b + sum_i w_i d_i,   w_i = |d_i|^2 / sum_j |d_j|^2   over the whole model, or each tensor (`scope`)

Norms leave out elements at which the sum over experts is not finite. Nothing changed: the base.
"""

import numpy as np

from tests.reference import conventions as c


def clean(deltas):
    """The deltas, with zeros where their sum is not finite, and that sum."""
    with np.errstate(all="ignore"):
        total = sum(deltas[1:], deltas[0])
    return [np.where(np.isfinite(total), d, 0.0) for d in deltas], total


def merge(base: c.Model, experts, *, scope="model", dtype=None, compat="paper"):
    """The weights are those of the model unless `scope` is "tensor"."""
    del compat
    names = [n for n, t in base.items() if c.has_arithmetic(t)]
    deltas = {n: [c.delta(e[n], base[n], *(x[n] for x in experts)) for e in experts] for n in names}
    squares = {n: np.array([np.sum(d**2) for d in clean(deltas[n])[0]]) for n in names}
    out = {}
    for name, start in base.items():
        inputs = [e[name] for e in experts]
        target = c.output_dtype(start, dtype)
        if not c.has_arithmetic(start) or all(c.same_bytes(x, start) for x in inputs):
            out[name] = c.verbatim(start, target)
            continue
        if len(inputs) == 1:
            out[name] = c.verbatim(inputs[0], target)
            continue
        of = squares[name] if scope == "tensor" else sum(squares.values())
        weights = of / of.sum() if of.sum() > 0 else np.zeros(len(inputs))
        cleaned, raw = clean(deltas[name])
        terms = [w * d for w, d in zip(weights, cleaned, strict=True)]
        total = np.where(np.isfinite(raw), sum(terms[1:], terms[0]), raw)
        scale = np.where(np.isfinite(raw), sum(np.abs(t) for t in terms), raw)
        merged = c.add_to_base(start, inputs, total, scale, target, (total == 0) & (scale == 0))
        # Norms are sums, whose order no one prescribes.
        merged.roundings = 1 << 13
        out[name] = merged
    return out
