"""What the ways to make a delta sparse do to forty elements, and how overlaps are combined."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

BLUE, RED, GREY, LIGHT = "#4477aa", "#ee6677", "#888888", "#dddddd"
COUNT = 40
#: Falling magnitudes with changing signs.
DELTA = [(-1) ** (i // 3) * math.exp(-i / 14) for i in range(COUNT)]
OTHER = [0.9 * math.cos(i / 3) * math.exp(-((i - 14) ** 2) / 300) for i in range(COUNT)]

ALONE: list[tuple[str, str, dict[str, Any]]] = [
    ("dots_trim (and ties): top 30 %", "dots_trim", {}),
    ("dots_trim with rescale: l2", "dots_trim", {"rescale": "l2"}),
    ("breadcrumbs: 30 % after 10 % outliers", "breadcrumbs", {"density": 0.3, "gamma": 0.1}),
    ("dare_linear: half, twice as large", "dare_linear", {}),
    ("della_linear: half, ε 0.4", "della_linear", {"epsilon": 0.4}),
]


def draw(merge: Callable[..., list[float]]) -> Any:
    """Return the figure: five sparse deltas of one expert, and two ways for two experts to share elements."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 6.4), layout="constrained")
    axes = figure.subplots(4, 2, sharex=True).ravel()
    zero, at = [0.0] * COUNT, range(COUNT)
    for axis, (title, method, parameters) in zip(axes, ALONE, strict=False):
        axis.bar(at, DELTA, color=LIGHT, width=0.9)
        axis.bar(at, merge(method, zero, [DELTA], **parameters), color=BLUE, width=0.5)
        axis.set_title(title, fontsize=9)
    chances = [0.1 + 0.8 * (COUNT - 1 - i) / (COUNT - 1) for i in at]
    axes[4].plot(at, chances, color=GREY, linewidth=1, label="keep probability")
    axes[4].legend(fontsize=7, frameon=False, loc="lower right")
    both = [DELTA, OTHER]
    for axis, title, method, parameters in (
        (axes[5], "task_arithmetic: both experts, summed", "task_arithmetic", {}),
        (axes[6], "cabs 2:8: each expert where the other is not", "cabs", {"n": 2, "m": 8}),
        (axes[7], "localize_and_stitch 40 %: the mean on overlaps", "localize_and_stitch", {"density": 0.4}),
    ):
        axis.bar(at, merge(method, zero, both, **parameters), color=BLUE, width=0.6)
        axis.step(at, DELTA, where="mid", color=GREY, linewidth=0.8, label="first expert")
        axis.step(at, OTHER, where="mid", color=RED, linewidth=0.8, label="second expert")
        axis.set_title(title, fontsize=9)
    axes[5].legend(fontsize=7, frameon=False, loc="upper right", ncols=2)
    for axis in axes:
        axis.axhline(0, color="black", linewidth=0.5)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylim(-2.1, 2.1)
    return figure
