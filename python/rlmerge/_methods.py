"""The table of merge methods, as the Rust core exports it.

The module is private because ``rlmerge.methods`` is the function that returns the table.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from rlmerge import _core
from rlmerge.errors import RecipeError

__all__ = ["Method", "Parameter", "find_method", "load_methods"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a merge method.

    ``default`` and ``default_mergekit`` are None where the user has to say; ``per_expert`` parameters take one value
    for all experts or a list with one for each.
    """

    name: str
    kind: str
    choices: tuple[str, ...] | None
    range: str
    per_expert: bool
    default: float | int | bool | str | None
    default_mergekit: float | int | bool | str | None
    meaning: str


@dataclass(frozen=True, slots=True)
class Method:
    """One merge method: what it computes, what it needs and where it comes from."""

    name: str
    aliases: tuple[str, ...]
    title: str
    summary: str
    formula: str
    paper_title: str | None
    paper_url: str | None
    base: str
    min_experts: int
    max_experts: int | None
    reads: int
    memory: str
    seeded: bool
    parameters: tuple[Parameter, ...]
    modes: str

    def to_dict(self) -> dict[str, Any]:
        """Return the method as plain values."""
        return asdict(self)


def _parameter(row: dict[str, Any]) -> Parameter:
    choices = row["choices"]
    return Parameter(
        name=row["name"],
        kind=row["kind"],
        choices=tuple(choices) if choices is not None else None,
        range=row["range"],
        per_expert=row["per_expert"],
        default=row["default"],
        default_mergekit=row["default_mergekit"],
        meaning=row["meaning"],
    )


def _method(row: dict[str, Any]) -> Method:
    paper = row["paper"] or {}
    return Method(
        name=row["name"],
        aliases=tuple(row["aliases"]),
        title=row["title"],
        summary=row["summary"],
        formula=row["formula"],
        paper_title=paper.get("title"),
        paper_url=paper.get("url"),
        base=row["base"],
        min_experts=row["experts"]["min"],
        max_experts=row["experts"]["max"],
        reads=row["reads"],
        memory=row["memory"],
        seeded=row["seeded"],
        parameters=tuple(_parameter(p) for p in row["parameters"]),
        modes=row["modes"],
    )


@cache
def load_methods() -> tuple[Method, ...]:
    """Return all methods, in the order of the core's table."""
    return tuple(_method(row) for row in json.loads(_core.methods()))


def find_method(name: str) -> Method:
    """Return the method with this name or alias; ``-`` and ``_`` are the same, and so are cases.

    Raises
    ------
    RecipeError
        No method has this name; the hint holds the nearest one.
    """
    wanted = name.strip().lower().replace("-", "_")
    known: dict[str, Method] = {}
    for method in load_methods():
        for spelling in (method.name, *method.aliases):
            known[spelling.replace("-", "_")] = method
    if wanted in known:
        return known[wanted]
    near = difflib.get_close_matches(wanted, known, n=1)
    hint = "`rlmerge methods` lists them all"
    if near:
        hint = f"did you mean `{near[0]}`? {hint}"
    msg = f"unknown method `{name}`"
    raise RecipeError(msg, code="unknown_method", hint=hint)
