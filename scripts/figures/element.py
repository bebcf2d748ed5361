"""What the element-wise methods do to deltas of eight elements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

DELTAS = [[1.0, 0.9, 0.6, 0.0, -0.5, 0.4, 0.2, 0.0], [0.0, 0.7, -0.4, -0.8, -0.7, 0.15, -0.25, 0.0]]
#: Method, parameters, number of the deltas that it takes, title.
PANELS = [
    ("magmax", {"lambda": 1.0}, 2, "magmax, λ = 1"),
    ("sce", {"select_topk": 0.5}, 2, "sce, select_topk = 0.5"),
    ("pcb", {"ratio": 0.5, "lambda": 1.0}, 2, "pcb, ratio = 0.5, λ = 1"),
    ("metagpt", {}, 2, "metagpt"),
    ("nearswap", {"t": 0.3}, 1, "nearswap, t = 0.3, blue only"),
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
    for axis, (method, parameters, experts, title) in zip(axes[1:], PANELS, strict=True):
        axis.bar(places, merge(method, [0.0] * 8, DELTAS[:experts], **parameters), width=0.6, color="#555555")
        axis.set_title(title, fontsize=9)
    for axis in axes:
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_xticks(list(places), [str(p) for p in places])
        axis.set_ylim(-1.1, 1.1)
    return figure
