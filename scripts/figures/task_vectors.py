"""What task arithmetic, TIES and DARE make of the deltas of two experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

BLUE, RED = "#4477aa", "#ee6677"
COUNT = 16
#: Alike, opposite, one alone, and small in both.
FIRST = [0.9, 0.8, 0.7, 0.6, 0.9, 0.8, 0.7, 0.6, 0.9, 0.7, 0.0, 0.0, 0.1, -0.08, 0.06, -0.1]
SECOND = [0.7, 0.9, 0.5, 0.8, -0.5, -0.9, -0.6, -0.7, 0.0, 0.0, 0.8, -0.6, -0.05, -0.1, 0.1, 0.08]


def draw(merge: Callable[..., list[float]]) -> Any:
    """Return the figure: the deltas as bars behind what each method adds to the base."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    zero, at = [0.0] * COUNT, range(COUNT)
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("task_arithmetic", "task_arithmetic", {}),
        ("task_arithmetic, λ = 0.5", "task_arithmetic", {"lambda": 0.5}),
        ("ties, density 0.7", "ties", {"density": 0.7}),
        ("dare_linear, density 0.5", "dare_linear", {}),
        ("dare_ties, density 0.5", "dare_ties", {}),
        ("ties, density 0.7, normalize: false", "ties", {"density": 0.7, "normalize": False}),
    ]
    axes = figure.subplots(3, 2, sharex=True, sharey=True).ravel()
    for axis, (title, method, parameters) in zip(axes, cases, strict=True):
        axis.bar([i - 0.2 for i in at], FIRST, width=0.4, color=BLUE, alpha=0.35, label="first expert")
        axis.bar([i + 0.2 for i in at], SECOND, width=0.4, color=RED, alpha=0.35, label="second expert")
        added = merge(method, zero, [FIRST, SECOND], **parameters)
        axis.hlines(added, [i - 0.42 for i in at], [i + 0.42 for i in at], color="black", linewidth=1.8, label="added")
        axis.axhline(0, color="black", linewidth=0.5)
        axis.set_title(title, fontsize=9)
        axis.set_xticks([1.5, 5.5, 9.5, 13.5], ["alike", "opposite", "one alone", "small"], fontsize=8)
    figure.axes[0].legend(fontsize=7, frameon=False, loc="upper right", ncols=3)
    return figure
