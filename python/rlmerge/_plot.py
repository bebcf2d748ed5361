"""Pictures of a conflict report with matplotlib (extra ``plot``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlmerge._statistics import SPECTRAL, SPECTRAL_OF_EXPERT, SPECTRAL_OF_PAIR, STATISTICS
from rlmerge.errors import RecipeError

if TYPE_CHECKING:
    from rlmerge._conflicts import ConflictReport

__all__ = ["heat_map"]


def heat_map(report: ConflictReport, statistic: str, *, pair: int, expert: int) -> Any:
    """Draw a statistic by layer and kind of module; around its chance level where that is a number."""
    row = next((s for s in (*STATISTICS, *SPECTRAL) if s.name == statistic and s.of != "together"), None)
    if row is None:
        msg = f"no statistic {statistic!r} of pairs or experts"
        raise RecipeError(msg, hint="`rlmerge._statistics.STATISTICS` lists them, and docs/conflict-report.md")
    spectral = statistic in (*SPECTRAL_OF_EXPERT, *SPECTRAL_OF_PAIR)
    if spectral and not report.is_spectral:
        msg = f"{statistic}: the report was made without spectral statistics"
        raise RecipeError(msg, hint="ask for them with `spectral=True`, on the command line --spectral")
    from matplotlib import pyplot
    from matplotlib.colors import CenteredNorm

    at = expert if row.of == "expert" else pair
    layers = [level.layer for level in report.layers]
    kinds = [str(level.kind) for level in report.kinds]
    grid = [[float("nan")] * len(layers) for _ in kinds]
    for cell in report.cells:
        level = cell.spectral if spectral else cell
        if level is None:
            continue
        value = getattr((level.experts if row.of == "expert" else level.pairs)[at], statistic)
        if value is not None:
            grid[kinds.index(str(cell.kind))][layers.index(cell.layer)] = value
    of_one = report.experts[at] if row.of == "expert" else f"{report.pairs[at].a} × {report.pairs[at].b}"
    figure, axes = pyplot.subplots(figsize=(max(5.0, 1.5 + 0.25 * len(layers)), 1.2 + 0.3 * len(kinds)))
    centred = isinstance(row.chance, float)
    drawn = axes.imshow(
        grid,
        aspect="auto",
        cmap="RdBu_r" if centred else "viridis",
        norm=CenteredNorm(row.chance) if isinstance(row.chance, float) else None,
    )
    axes.set_xticks(range(len(layers)), ["–" if layer is None else str(layer) for layer in layers], fontsize=7)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xlabel("layer")
    chance = f" (chance {row.chance:g})" if isinstance(row.chance, float) else ""
    # A `$` would start a formula.
    axes.set_title(f"{row.title}{chance}: {of_one}".replace("$", r"\$"))
    figure.colorbar(drawn, ax=axes)
    figure.tight_layout()
    return figure
