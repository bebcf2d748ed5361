"""Merges, all of them made by rlmerge, and judged without leaving the merged folders behind."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from study.configuration import Merging

# Methods that copy one model are no merges; those that need calibration data would name it among their parameters.
NO_MERGES = ("passthrough",)


def usable_methods(wanted: list[str] | None) -> list[str]:
    """List the methods of rlmerge that merge two experts; ``wanted`` keeps only those named.

    Raises
    ------
    ValueError
        A method is wanted that this rlmerge does not offer.
    """
    import rlmerge

    known = {
        m.name: m
        for m in rlmerge.methods()
        if m.name not in NO_MERGES and m.min_experts <= 2 and (m.max_experts is None or m.max_experts >= 2)
    }
    usable = [name for name, m in known.items() if all(p.default is not None for p in m.parameters)]
    if wanted is None:
        return usable
    missing = [name for name in wanted if name not in usable]
    if missing:
        msg = f"rlmerge does not offer {', '.join(missing)} here: choose from {', '.join(usable)}"
        raise ValueError(msg)
    return [name for name in usable if name in wanted]


def row(method: str) -> Any:
    """Return what rlmerge's table says about a method."""
    import rlmerge

    return next(m for m in rlmerge.methods() if m.name == method)


def takes(method: str, parameter: str) -> bool:
    """Say whether a method has a parameter."""
    return any(p.name == parameter for p in row(method).parameters)


def fits(method: str, experts: int) -> bool:
    """Say whether a method merges so many experts."""
    most = row(method).max_experts
    return most is None or experts <= most


def task_sets(tasks: list[str], *, all_together: bool) -> list[tuple[str, ...]]:
    """List all pairs, and all tasks together."""
    sets: list[tuple[str, ...]] = list(combinations(tasks, 2))
    return [*sets, tuple(tasks)] if all_together and len(tasks) > 2 else sets


@contextmanager
def merged(
    base: Path | str, experts: list[Path], method: str, parameters: dict[str, Any], scratch: Path, seed: int = 0
) -> Iterator[Path]:
    """Merge into a folder that is gone afterwards."""
    import rlmerge

    folder = Path(tempfile.mkdtemp(dir=scratch))
    try:
        rlmerge.merge(
            experts,
            method=method,
            base=base if row(method).base in ("required", "optional") else None,
            output=folder / "merged",
            parameters=parameters,
            seed=seed,
            threads=1,
        )
        yield folder / "merged"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def rescale(base: Path | str, expert: Path, factor: float, output: Path) -> None:
    """Write base + factor * delta."""
    import rlmerge

    output.parent.mkdir(parents=True, exist_ok=True)
    rlmerge.merge(
        [expert],
        method="task_arithmetic",
        base=base,
        output=output,
        parameters={"weight": factor},
        threads=1,
        force=True,
    )


def scales(method: str, told: Merging, chosen: dict[str, Any]) -> list[dict[str, Any]]:
    """List the lambdas that validation decides between, at the default density."""
    return [{**chosen, "lambda": value} for value in told.lambdas] if takes(method, "lambda") else []


def densities(method: str, told: Merging, chosen: dict[str, Any]) -> list[dict[str, Any]]:
    """List the densities, with the lambda that was chosen: a method costs the sum of the two lists, not the product."""
    return [{**chosen, "density": value} for value in told.densities] if takes(method, "density") else []
