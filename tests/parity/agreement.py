"""Compare every method of mergekit 0.1.5 with ours, in both modes, and write the table into docs/agreement.md.

    make agreement          (python -m tests.parity.agreement, where mergekit is installed)

Both sides get the same f32 models: tensors of 16x24, 4x96, 37, 6x5x3x3 and 1 elements, two or three experts, one delta
in five exactly zero. Where a method draws, mergekit is given our random numbers, so that only the rules differ. The
number is the largest difference in any tensor, relative to the largest element of mergekit's tensor.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

import rlmerge
from tests import merging
from tests.parity import oracle
from tests.reference import mask

PAGE = Path(__file__).parents[2] / "docs" / "agreement.md"
MARKS = re.compile(r"(<!-- agreement -->\n).*?(<!-- /agreement -->)", re.DOTALL)
#: What f32 arithmetic in another order may leave (the tolerance of the tests).
SAME = 3e-6

Case = dict[str, Any]
TWO: Case = {"weight": [0.7, 0.4]}
#: Settings of each method; `weight` says how many experts there are.
CASES: dict[str, list[Case]] = {
    "linear": [TWO, {"weight": [0.2, 0.5, 0.9]}],
    "task_arithmetic": [TWO, {"weight": [0.7, 0.4, 0.2], "lambda": 0.6, "normalize": True}],
    "ties": [{**TWO, "density": 0.3}, {"weight": [0.7, 0.4, 0.9], "density": 0.5, "lambda": 1.5}],
    "dare_linear": [{**TWO, "density": 0.5}],
    "dare_ties": [{**TWO, "density": 0.5}],
    "della": [{**TWO, "density": 0.5, "epsilon": 0.2}],
    "della_linear": [{**TWO, "density": 0.5, "epsilon": 0.2}],
    "breadcrumbs": [{**TWO, "density": 0.5, "gamma": 0.1}],
    "breadcrumbs_ties": [{**TWO, "density": 0.5, "gamma": 0.1}],
    "sce": [{"weight": [1.0, 1.0, 1.0], "select_topk": 0.5}],
    "ram": [{"weight": [1.0, 1.0, 1.0]}],
    "ramplus_tl": [{"weight": [1.0, 1.0, 1.0]}],
    "slerp": [{"weight": [1.0], "t": 0.3}],
    "nuslerp": [{"weight": [0.6, 0.4]}],
    "multislerp": [{"weight": [0.5, 0.3, 0.2]}],
    "karcher": [{"weight": [1.0, 1.0, 1.0]}],
    "model_stock": [{"weight": [1.0, 1.0, 1.0]}],
    "nearswap": [{"weight": [1.0], "t": 0.02}],
    "arcee_fusion": [{"weight": [1.0]}],
    "passthrough": [{"weight": [1.0], "scale": 0.5}],
}
#: Methods of which mergekit takes no weights.
UNWEIGHTED = {"ram", "ramplus_tl", "sce", "slerp", "karcher", "model_stock", "nearswap", "arcee_fusion", "passthrough"}
#: Methods whose first model is a base (slerp's, nearswap's and arcee_fusion's first model included).
WITHOUT_BASE = {"linear", "nuslerp", "multislerp", "karcher", "passthrough"}
#: mergekit stops at tensors of one column here.
STOPS = {"della", "della_linear"}


def main() -> None:
    """Write the table."""
    import torch
    from mergekit.merge_methods.registry import registered_methods

    theirs = {method.spec.name for method in registered_methods()}
    if theirs != set(CASES):
        sys.exit(f"methods without a case: {theirs ^ set(CASES)}")
    modes = {method.name: method.modes for method in rlmerge.methods()}
    lines = ["| method | `compat: mergekit` | `compat: paper` | how they differ |", "| --- | --- | --- | --- |"]
    for name, cases in CASES.items():
        worst = {mode: max(difference(torch, name, case, mode) for case in cases) for mode in ("mergekit", "paper")}
        cells = [f"{value:.0e}" + ("" if value <= SAME else " (differs)") for value in worst.values()]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {modes[name]} |")
        print(lines[-1])
    PAGE.write_text(MARKS.sub(lambda m: m[1] + "\n".join(lines) + "\n" + m[2], PAGE.read_text()))


def difference(torch: Any, method: str, case: Case, mode: str) -> float:
    """Return the largest relative difference between mergekit's answer and ours in a mode."""
    count = len(case["weight"])
    base, experts = oracle.models(count)
    if method in STOPS:
        base, *experts = [{n: t for n, t in m.items() if n != "one"} for m in (base, *experts)]
    given = {key: value for key, value in case.items() if key != "weight" or method not in UNWEIGHTED}
    start = None if method in WITHOUT_BASE else base
    original = torch.bernoulli
    torch.bernoulli = injected(torch, list(experts[0]), count)
    try:
        theirs = oracle.mergekit(method, start, experts, **given)
    finally:
        torch.bernoulli = original
    ours = merging.merge(method, experts, start, parameters=given, compat=mode)
    sizes = {name: np.abs(want).max() for name, want in theirs.items()}
    return max(float(np.abs(np.asarray(ours[n], np.float64) - want).max() / sizes[n]) for n, want in theirs.items())


def injected(torch: Any, names: list[str], experts: int) -> Any:
    """Return a `bernoulli` that draws the numbers of our masks: tensor after tensor, expert after expert."""
    queue = [(name, at) for name in names for at in range(experts)]

    def bernoulli(p: Any, **options: Any) -> Any:
        del options
        name, at = queue.pop(0)
        words = mask.words(0, name, at, p.numel()).astype(np.float64).reshape(tuple(p.shape))
        return torch.from_numpy(words / 2**32 < p.double().numpy()).to(p.dtype)

    return bernoulli


if __name__ == "__main__":
    main()
