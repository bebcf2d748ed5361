"""What averaging does to four elements of three models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

BLUE, RED, GREEN, GREY = "#4477aa", "#ee6677", "#228833", "#888888"
MODELS = [[1.0, 0.2, -0.6, 0.9], [0.8, 0.9, 0.5, -0.7], [1.1, -0.2, 0.1, 0.8]]
NAMES = ["agree", "spread", "cancel", "one apart"]


def draw(merge: Callable[..., list[float]]) -> Any:
    """Return the figure: three models, their mean, a weighted mean, and a sum that is not divided."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 2.6), layout="constrained")
    cases: list[tuple[str, dict[str, Any]]] = [
        ("linear", {}),
        ("linear, weight 3, 1, 1", {"weight": [3, 1, 1]}),
        ("linear, normalize: false, weight 0.5", {"weight": 0.5, "normalize": False}),
    ]
    for axis, (title, parameters) in zip(figure.subplots(1, 3, sharey=True), cases, strict=True):
        for at, (model, color) in enumerate(zip(MODELS, (BLUE, RED, GREEN), strict=True)):
            places = [element + 0.18 * (at - 1) for element in range(len(NAMES))]
            axis.scatter(places, model, color=color, s=16, label=f"model {at + 1}")
        merged = merge("linear", None, MODELS, **parameters)
        left, right = [i - 0.38 for i in range(4)], [i + 0.38 for i in range(4)]
        axis.hlines(merged, left, right, color="black", linewidth=1.6, label="merged")
        axis.axhline(0, color=GREY, linewidth=0.5)
        axis.set_title(title, fontsize=9)
        axis.set_ylim(-1.2, 1.6)
        axis.set_xticks(range(4), NAMES, fontsize=8)
    figure.axes[0].legend(fontsize=7, frameon=False, loc="lower left", ncols=2)
    return figure
