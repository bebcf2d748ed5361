"""``rlmerge methods``: the table of merge methods, or one of them in full."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rlmerge import api
from rlmerge.cli._errors import reported
from rlmerge.cli._output import Output, columns

if TYPE_CHECKING:
    from rlmerge import Method

__all__ = ["EXAMPLES", "methods"]

EXAMPLES = "Examples:\n\nrlmerge methods\n\nrlmerge methods dare-ties\n\nrlmerge methods --json"


def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this method in full.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print names only.")] = False,
) -> None:
    """List the merge methods, or show one with its formula, parameters, defaults and paper."""
    out = Output(json=json, quiet=quiet)
    with reported(out):
        if name is None:
            table = api.methods()
            value: object = [method.to_dict() for method in table]
            out.result(human=lambda: _table(table, out), quiet=lambda: [m.name for m in table], value=value)
        else:
            method = api.method(name)
            out.result(human=lambda: _page(method, out), quiet=lambda: [method.name], value=method.to_dict())


def _table(table: list[Method], out: Output) -> list[str]:
    rows = [("NAME", "BASE", "EXPERTS", "TITLE")]
    for method in table:
        rows.append((method.name, method.base, _experts(method), method.title))
    return [*columns(rows, "<<<<"), "", "`rlmerge methods NAME` shows formula, parameters, defaults and paper"]


def _page(method: Method, out: Output) -> list[str]:
    also = f" (also {', '.join(method.aliases)})" if method.aliases else ""
    facts = [
        ("base", method.base),
        ("experts", _experts(method)),
        ("reads", "the inputs once" if method.reads == 1 else f"the inputs {method.reads} times"),
        ("memory", f"grows with the {method.memory}"),
        ("random", "yes, by --seed" if method.seeded else "no"),
    ]
    if method.paper_title or method.paper_url:
        first, *rest = [part for part in (method.paper_title, method.paper_url) if part]
        facts += [("paper", first), *(("", part) for part in rest)]
    lines = [out.heading(f"{method.name}: {method.title}{also}"), "", *out.paragraph(method.summary), ""]
    # The table has formulas on one line; their clauses fit a narrow terminal.
    lines += [f"    {clause}" for clause in method.formula.split("; ")]
    lines += ["", *columns(facts, "<<")]
    if method.parameters:
        rows = [("PARAMETER", "DEFAULT", "IN MERGEKIT", "RANGE", "EACH EXPERT")]
        for p in method.parameters:
            range_ = " | ".join(p.choices) if p.choices else p.range
            each = "yes" if p.per_expert else "no"
            rows.append((p.name, _value(p.default), _value(p.default_mergekit), range_, each))
        lines += ["", *columns(rows, "<<<<<"), ""]
        width = max(len(p.name) for p in method.parameters)
        for p in method.parameters:
            first, *rest = out.paragraph(f"{p.name:{width}}  {p.meaning}")
            lines += [first, *(" " * (width + 2) + line for line in rest)]
    if method.modes:
        lines += ["", *out.paragraph(f"compat mergekit: {method.modes}")]
    return lines


def _experts(method: Method) -> str:
    low, high = method.min_experts, method.max_experts
    if high is None:
        return f"{low} or more"
    return str(low) if low == high else f"{low} to {high}"


def _value(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)
