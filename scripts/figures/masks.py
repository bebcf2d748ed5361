"""What the methods made of masks do to two deltas of eight elements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

DELTAS = [[1.0, 0.9, 0.6, 0.0, -0.5, 1.0, 0.2, 0.0], [0.0, 0.7, -0.4, -0.8, -0.7, 0.15, -0.25, 0.0]]
PANELS = [
    ("ram", {}, "ram"),
    ("ram_plus", {"r": 1.5}, "ram_plus, r = 1.5"),
    ("task_arithmetic", {}, "task_arithmetic (τ)"),
    ("consensus", {}, "consensus, k = 2"),
    ("emr", {}, "emr"),
]


def draw(merge: Callable[..., list[float]]) -> Any:
    """Return the figure: both deltas, then the merged delta of each method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True).ravel()
    places = range(8)
    for side, delta, colour in ((-0.2, DELTAS[0], "#4477aa"), (0.2, DELTAS[1], "#ee6677")):
        axes[0].bar([p + side for p in places], delta, width=0.38, color=colour)
    axes[0].set_title("deltas of two experts", fontsize=9)
    for axis, (method, parameters, title) in zip(axes[1:], PANELS, strict=True):
        axis.bar(places, merge(method, [0.0] * 8, DELTAS, **parameters), width=0.6, color="#555555")
        axis.set_title(title, fontsize=9)
    for axis in axes:
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_xticks(list(places), [str(p) for p in places])
        axis.set_ylim(-1.6, 1.9)
    return figure
