"""What the methods that look at angles do to vectors of two elements."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

BLUE, RED, GREEN, GREY = "#4477aa", "#ee6677", "#228833", "#888888"
ENDS = [[2.0, 0.2], [0.1, 1.0]]
THREE = [[2.2, 0.25], [1.5, 0.55], [-0.9, 1.7]]


def draw(merge: Callable[..., list[float]]) -> Any:
    """Return the figure: an arc between two deltas, means of three, and how far Model Stock goes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.0), layout="constrained")
    arc, means, stock = figure.subplots(1, 3, width_ratios=[1, 1, 1.15])
    _arc(arc, merge)
    _means(means, merge)
    _stock(stock, merge)
    for axis in (arc, means):
        axis.set_aspect("equal")
        axis.axhline(0, color="black", linewidth=0.5)
        axis.axvline(0, color="black", linewidth=0.5)
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


def _arrows(axis: Any, vectors: list[list[float]]) -> None:
    for x, y in vectors:
        axis.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "->", "color": BLUE})


def _arc(axis: Any, merge: Callable[..., list[float]]) -> None:
    _arrows(axis, ENDS)
    zero = [0.0, 0.0]
    steps = [n / 20 for n in range(21)]
    curve = [merge("nuslerp", zero, ENDS, weight=[1 - t, t]) for t in steps]
    line = [merge("task_arithmetic", zero, ENDS, weight=[1 - t, t]) for t in steps]
    axis.plot(*zip(*line, strict=True), color=GREY, linestyle="--", linewidth=1, label="weighted sum")
    axis.plot(*zip(*curve, strict=True), color=RED, label="nuslerp, slerp")
    axis.plot(*curve[10], "o", color=RED, markersize=4)
    axis.plot(*line[10], "o", color=GREY, markersize=4)
    axis.set_title("from one delta to another", fontsize=9)
    axis.set_ylim(-0.1, 1.75)
    axis.legend(fontsize=7, frameon=False, loc="upper right")


def _means(axis: Any, merge: Callable[..., list[float]]) -> None:
    _arrows(axis, THREE)
    zero = [0.0, 0.0]
    points = [
        ("plain mean", merge("task_arithmetic", zero, THREE, weight=1 / 3), "s", GREY),
        ("multislerp", merge("multislerp", zero, THREE), "o", RED),
        ("karcher", merge("karcher", None, THREE), "^", GREEN),
    ]
    for label, point, marker, colour in points:
        axis.plot(*point, marker, color=colour, markersize=5, label=label)
    length = math.hypot(*points[1][1])
    circle = [(length * math.cos(a / 50), length * math.sin(a / 50)) for a in range(100)]
    axis.plot(*zip(*circle, strict=True), color=GREY, linewidth=0.6, linestyle=":")
    axis.set_title("mean of three; dotted: mean length", fontsize=9)
    axis.set_ylim(-0.1, 2.9)
    axis.legend(fontsize=7, frameon=False, loc="upper right")


def _stock(axis: Any, merge: Callable[..., list[float]]) -> None:
    angles = [n * 5 for n in range(37)]
    for compat, colour, style, label in (
        (None, RED, "-", "model_stock"),
        ("mergekit", GREY, "--", "compat: mergekit"),
    ):
        reached = []
        for angle in angles:
            half = math.radians(angle) / 2
            deltas = [[math.cos(half), math.sin(half)], [math.cos(half), -math.sin(half)]]
            options = {"compat": compat} if compat else {}
            merged = merge("model_stock", [0.0, 0.0], deltas, **options)[0]
            reached.append(merged / math.cos(half) if angle < 180 else 0.0)
        axis.plot(angles, reached, color=colour, linestyle=style, linewidth=1.2, label=label)
    axis.set_xlabel("angle between two deltas, degrees")
    axis.set_ylabel("t: 0 base, 1 mean")
    axis.set_xticks([0, 60, 90, 120, 180])
    axis.set_ylim(-2.2, 1.1)
    axis.set_title("how far Model Stock goes", fontsize=9)
    axis.legend(fontsize=7, frameon=False, loc="lower left")
