"""``rlmerge diff``: what changed between two checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlmerge._conflicts import difference
from rlmerge._text import number, percent
from rlmerge.cli import _progress
from rlmerge.cli._errors import reported
from rlmerge.cli._output import Output, columns, count
from rlmerge.cli.commands.conflict_report import announce, whole

if TYPE_CHECKING:
    from rlmerge import ConflictReport

__all__ = ["EXAMPLES", "diff"]

EXAMPLES = "Examples:\n\nrlmerge diff base merged\n\nrlmerge diff base merged --json | jq .equal"
_LARGEST = 10


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="The checkpoint before.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The checkpoint after.")],
    threads: Annotated[str | None, typer.Option(metavar="N", help="Worker threads. Default: one a processor.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON (schema rlmerge.diff/1).")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the names of tensors that differ.")] = False,
) -> None:
    """Show what changed between two checkpoints: which tensors, how much in each layer, the largest elements."""
    out = Output(json=json, quiet=quiet)
    with reported(out):
        with _progress.shown(out, "comparing") as progress:
            report = difference(a, b, threads=whole(threads, "--threads"), progress=progress)
        announce(report, out)
        value = _value(report)
        names = [*value["different"], *(row["name"] for row in value["unmatched"])]
        out.result(human=lambda: _page(report, value), quiet=lambda: names, value=value)


def _equal(tensor: dict[str, Any]) -> bool:
    if "equal" in tensor:
        return bool(tensor["equal"][0])
    return bool(tensor["experts"][0]["counts"]["different"] == 0)


def _value(report: ConflictReport) -> dict[str, Any]:
    tensors = report.raw["tensors"]
    unmatched = [
        {"name": row["name"], **dict(zip(("a", "b"), row["models"], strict=True))}
        for row in report.raw.get("unmatched", [])
    ]
    largest = [
        {"tensor": t["name"], "index": _place(peak["index"], t["shape"]), "delta": peak["delta"]}
        for t in tensors
        if "peaks" in t and (peak := t["peaks"][0]) is not None
    ]
    largest.sort(key=lambda row: (row["delta"] is None, -abs(row["delta"] or 0.0), row["tensor"]))
    one = report.raw["model"]["experts"][0]
    keys = ("norm", "relative_norm", "max", "changed", "changed_relative", "changed_bf16")
    return {
        "schema": "rlmerge.diff/1",
        "version": report.raw["version"],
        "models": report.raw["models"],
        "equal": not unmatched and all(_equal(t) for t in tensors),
        "unmatched": unmatched,
        "different": [t["name"] for t in tensors if not _equal(t)],
        "tensors": len(tensors),
        "model": {key: one[key] for key in keys} | {"counts": one["counts"]},
        "layers": [
            {"layer": row["layer"], "parameters": row["parameters"]}
            | {key: row["experts"][0][key] for key in keys}
            | {"counts": row["experts"][0]["counts"]}
            for row in report.raw["layers"]
        ],
        "largest": largest[:_LARGEST],
        "warnings": list(report.warnings),
    }


def _place(index: int, shape: list[int]) -> list[int]:
    """Return the indices of an element by its flat index."""
    place = []
    for length in reversed(shape):
        index, at = divmod(index, length)
        place.append(at)
    return place[::-1]


def _page(report: ConflictReport, value: dict[str, Any]) -> list[str]:
    different = len(value["different"])
    if value["equal"]:
        return [f"equal: all {count(value['tensors'], 'tensor')} hold the same bytes"]
    model = value["model"]
    facts = [
        *_unmatched(value["unmatched"]),
        ("tensors that differ", f"{different:,} of {value['tensors']:,}"),
        ("elements that differ", f"{model['counts']['different']:,} of {report.model.parameters:,}"),
        ("changed by more than 1e-5", percent(model["changed"])),
        ("visible in bf16", percent(model["changed_bf16"])),
        ("norm of the change", f"{number(model['norm'])} ({number(model['relative_norm'])} of A's norm)"),
    ]
    layers = [("NORM", "RELATIVE", "CHANGED", "LARGEST", "LAYER")]
    for row in value["layers"]:
        label = "outside layers" if row["layer"] is None else str(row["layer"])
        layers.append(
            (number(row["norm"]), number(row["relative_norm"]), percent(row["changed"]), number(row["max"]), label)
        )
    largest = [("CHANGE", "ELEMENT")]
    for row in value["largest"]:
        largest.append((number(row["delta"]), f"{row['tensor']}{row['index']}"))
    return [*columns(facts, "<<"), "", *columns(layers, ">>>><"), "", *columns(largest, "><")]


def _unmatched(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Say which tensors could not be compared, and why."""
    facts = []
    for row in rows:
        a, b = row["a"], row["b"]
        if a is None or b is None:
            stored = f"{(a or b)['dtype']} {(a or b)['shape']}"
            facts.append((f"only in {'B' if a is None else 'A'}", f"{row['name']} ({stored})"))
        else:
            facts.append(("not comparable", f"{row['name']} ({a['dtype']} {a['shape']}, {b['dtype']} {b['shape']})"))
    return facts
