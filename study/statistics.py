"""Conflict statistics of deltas: rlmerge's report, and a second count of the few that claims rest on.

`reported` is `rlmerge.conflicts`, whose statistics docs/conflict-report.md defines. The others are written here in
NumPy from their formulas, for every checkpoint; a test holds both against each other. Deltas are differences in f32;
sums are in f64.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

CHANGED = 1e-5  # the paper's threshold


def read_delta(base: Path, expert: Path) -> dict[str, Any]:
    """Read expert less base.

    Returns
    -------
    dict
        ``delta`` and ``base``: all floating tensors as one f32 vector each, in the order of their names.
    """
    theirs, ours = read_folder(base), read_folder(expert)
    missing = theirs.keys() ^ ours.keys()
    if missing:
        msg = f"{expert} and {base} do not have the same tensors: {', '.join(sorted(missing)[:3])}"
        raise ValueError(msg)
    names = sorted(theirs)
    start = np.concatenate([theirs[name].ravel() for name in names])
    return {"delta": np.concatenate([ours[name].ravel() for name in names]) - start, "base": start}


def read_folder(folder: Path) -> dict[str, np.ndarray]:
    """Read all tensors of a folder as f32."""
    from safetensors.torch import load_file

    found: dict[str, np.ndarray] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        found |= {name: tensor.float().numpy() for name, tensor in load_file(file).items()}
    return found


def of_expert(base: np.ndarray, delta: np.ndarray) -> dict[str, float]:
    """Describe one delta."""
    import torch

    size = np.abs(delta)
    norm = float(np.sqrt(np.square(delta, dtype=np.float64).sum()))
    visible = torch.from_numpy(base).bfloat16() != torch.from_numpy(base + delta).bfloat16()
    top = np.sort(np.square(size.astype(np.float64)))[::-1]
    return {
        "norm": norm,
        "relative_norm": norm / float(np.sqrt(np.square(base, dtype=np.float64).sum())),
        "changed": float((size > CHANGED).mean()),
        "changed_bf16": float(visible.float().mean()),
        "top_1_percent": float(top[: max(1, len(top) // 100)].sum() / max(top.sum(), 1e-30)),
    }


def of_pair(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Describe two deltas of one base.

    Returns
    -------
    dict
        ``conflict_norm`` is the paper's, and grows with the product of the norms; ``normalized_conflict`` is its share
        of the norm of the whole product (chance: 0.707); ``matched_conflict`` is that of deltas scaled to norm 1.
        ``sign_disagreement`` is over elements that both changed (chance: 0.5).
    """
    product = first.astype(np.float64) * second
    negative = np.minimum(product, 0)
    norms = float(np.linalg.norm(first.astype(np.float64)) * np.linalg.norm(second.astype(np.float64)))
    conflict = float(np.sqrt(np.square(negative).sum()))
    whole = float(np.sqrt(np.square(product).sum()))
    changed = [np.abs(delta) > CHANGED for delta in (first, second)]
    both, either = changed[0] & changed[1], changed[0] | changed[1]
    large = [np.abs(d) >= np.quantile(np.abs(d), 0.8) for d in (first, second)]
    heavy = large[0] & large[1]
    return {
        "cosine": float(product.sum()) / max(norms, 1e-30),
        "conflict_norm": conflict,
        "normalized_conflict": conflict / max(whole, 1e-30),
        "matched_conflict": conflict / max(norms, 1e-30),
        "sign_disagreement": float((product[both] < 0).mean()) if both.any() else float("nan"),
        "sign_disagreement_top": float((product[heavy] < 0).mean()) if heavy.any() else float("nan"),
        "jaccard": float(both.sum() / max(1, either.sum())),
        "norm_product": norms,
    }


def of_group(base: Path, experts: dict[str, Path]) -> dict[str, Any]:
    """Describe experts of one base, and all their pairs.

    Returns
    -------
    dict
        ``experts`` by name, ``pairs`` by ``a+b``, and ``dilution``: the norm of the mean delta by the mean norm
        (1/sqrt(T) for orthogonal deltas of one length).
    """
    read = {name: read_delta(base, folder) for name, folder in experts.items()}
    deltas = {name: found["delta"] for name, found in read.items()}
    singles = {name: of_expert(found["base"], found["delta"]) for name, found in read.items()}
    mean = np.mean(np.stack(list(deltas.values())), axis=0, dtype=np.float64)
    return {
        "experts": singles,
        "pairs": {f"{a}+{b}": of_pair(deltas[a], deltas[b]) for a, b in combinations(deltas, 2)},
        "dilution": float(np.linalg.norm(mean)) / max(float(np.mean([s["norm"] for s in singles.values()])), 1e-30),
    }


def reported(base: Path, experts: dict[str, Path]) -> dict[str, Any]:
    """Return what rlmerge's conflict report says of the whole model.

    Returns
    -------
    dict
        ``experts`` by name, ``pairs`` by ``a+b``, and ``together``; the statistics have the report's names. ``advice``
        lists the rules that the report's advice follows from.
    """
    import rlmerge

    names = list(experts)
    if len(names) < 2:
        return {"experts": {}, "pairs": {}, "together": {}, "advice": []}
    found = rlmerge.conflicts(list(experts.values()), base=base, threads=1)
    model = found.to_dict()["model"]

    def numbers(found: dict[str, Any]) -> dict[str, float]:
        return {key: value for key, value in found.items() if isinstance(value, float)}

    return {
        "experts": {name: numbers(found) for name, found in zip(names, model["experts"], strict=True)},
        "pairs": {f"{names[pair['a']]}+{names[pair['b']]}": numbers(pair) for pair in model["pairs"]},
        "together": numbers(model["together"]),
        "advice": [advice.rule for advice in found.advice],
    }
