"""``rlmerge conflict-report``: where experts conflict, before they are merged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import rlmerge
from rlmerge._spectra import spectral_tables
from rlmerge._text import group_tables, number, percent
from rlmerge.cli import _progress
from rlmerge.cli._errors import reported
from rlmerge.cli._files import check_places, write_text
from rlmerge.cli._output import Output, clean, columns, count, size
from rlmerge.errors import RecipeError

if TYPE_CHECKING:
    from rlmerge import ConflictReport
    from rlmerge._conflicts import LevelStatistics, PairStatistics
    from rlmerge._text import Table

__all__ = ["EXAMPLES", "announce", "conflict_report", "fraction", "whole"]

EXAMPLES = (
    "Examples:\n\n"
    "rlmerge conflict-report math code --base base\n\n"
    "rlmerge conflict-report math code chat --base base --html report.html --csv tables\n\n"
    "rlmerge conflict-report --base base --group sft=a,b,c --group rl=d,e,f\n\n"
    "rlmerge conflict-report math code --base base --spectral --html report.html\n\n"
    "rlmerge conflict-report math code --base base --json | jq .model.pairs"
)


def conflict_report(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", help="The experts; without --base, the base is found as for `merge`."),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", "-b", metavar="MODEL", help="What the experts were trained from.")
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=A,B,C", help="A group of experts, compared with the first group. Repeat it."),
    ] = None,
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also write one HTML page, readable offline.")
    ] = None,
    csv: Annotated[str | None, typer.Option(metavar="DIR", help="Also write every table as CSV.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    epsilon: Annotated[str, typer.Option(metavar="NUMBER", help="A larger |δ| is a change.")] = "1e-5",
    relative: Annotated[str, typer.Option(metavar="NUMBER", help="Threshold of a relative change.")] = "1e-3",
    density: Annotated[str, typer.Option(metavar="NUMBER", help="Share that a trim keeps.")] = "0.2",
    low: Annotated[str, typer.Option(metavar="NUMBER", help="Share of base weights that count as small.")] = "0.3",
    lambda_: Annotated[str, typer.Option("--lambda", metavar="NUMBER", help="λ of the direction retention.")] = "1",
    spectral: Annotated[
        bool, typer.Option("--spectral", help="Also measure singular values and directions; takes much longer.")
    ] = False,
    directions: Annotated[
        str, typer.Option(metavar="N", help="Most directions of a matrix that --spectral follows.")
    ] = "32",
    threads: Annotated[str | None, typer.Option(metavar="N", help="Worker threads. Default: one a processor.")] = None,
    io: Annotated[str | None, typer.Option(metavar="pread|mmap", help="How tensors are read.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON (schema rlmerge.conflicts/1).")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the advice only.")] = False,
) -> None:
    """Measure what experts changed in their base and where they conflict, each number beside its chance level."""
    out = Output(json=json, quiet=quiet)
    with reported(out):
        settings = {
            "epsilon": fraction(epsilon, "--epsilon"),
            "relative": fraction(relative, "--relative"),
            "density": fraction(density, "--density"),
            "low": fraction(low, "--low"),
            "lambda_": fraction(lambda_, "--lambda"),
        }
        groups = _groups(group or [])
        check_places([html], [Path(model) for model in [*(models or []), base] if model], force=force)
        with _progress.shown(out, "measuring") as progress:
            report = rlmerge.conflicts(
                models or [],
                base=base,
                groups=groups,
                spectral=spectral,
                directions=whole(directions, "--directions") or 0,
                threads=whole(threads, "--threads"),
                io=io,
                progress=progress,
                **settings,
            )
        announce(report, out)
        if html is not None:
            write_text(Path(html), report.to_html())
            out.note(f"wrote {html}")
        if csv is not None:
            files = report.to_csv(csv)
            out.note(f"wrote {count(len(files), 'table')} into {csv}")
        if markdown and not json:
            out.result(
                human=lambda: report.to_markdown().splitlines(),
                quiet=lambda: report.to_markdown().splitlines(),
                value=None,
            )
            return
        out.result(
            human=lambda: _page(report, out),
            quiet=lambda: [f"{a.rule}: {a.text}" for a in report.advice],
            value=report.to_dict(),
        )


def announce(report: ConflictReport, out: Output) -> None:
    """Say on stderr what was chosen, what is odd, and what it cost."""
    for note in report.notes:
        out.note(note)
    for warning in report.warnings:
        out.warning(warning)
    if report.elapsed_seconds is not None and report.bytes_read is not None:
        seconds = report.elapsed_seconds
        took = f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
        rate = f", {size(report.bytes_read / seconds)}/s" if seconds > 0 else ""
        out.note(f"read {size(report.bytes_read)} in {took}{rate}")


def fraction(text: str, option: str) -> float:
    """Return the number that an option was given."""
    try:
        return float(text)
    except ValueError:
        msg = f"{option} {text}: not a number"
        raise RecipeError(msg) from None


def whole(text: str | None, option: str) -> int | None:
    """Return the whole number that an option was given."""
    if text is None:
        return None
    if not re.fullmatch(r"[+-]?[0-9]{1,40}", text):
        msg = f"{option} {text}: not a whole number"
        raise RecipeError(msg)
    return int(text)


def _groups(texts: list[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for text in texts:
        name, equals, members = text.partition("=")
        name = name.strip()
        if not equals or not name or not all(member.strip() for member in members.split(",")):
            msg = f"--group {text}: not NAME=A,B,C"
            raise RecipeError(msg, hint="write it as --group sft=a,b,c --group rl=d,e,f")
        if name in groups:
            msg = f"--group {name}: given twice"
            raise RecipeError(msg, hint="give each group once, with all its experts")
        groups[name] = [member.strip() for member in members.split(",")]
    if len(groups) == 1:
        msg = "one group has nothing to be compared with"
        raise RecipeError(msg, hint="give two or more, as --group sft=a,b,c --group rl=d,e,f")
    return groups


def _chance(value: float | None, chance: float | None, spread: float | None = None) -> str:
    if value is None:
        return "undefined"
    beside = "" if chance is None else f"{chance:.3g}" + (f" ± {spread:.1g}" if spread is not None else "")
    return f"{value:.3f} ({beside})" if beside else f"{value:.3f}"


def _pair(pair: PairStatistics) -> tuple[str, ...]:
    return (
        _chance(pair.cosine, 0.0, pair.cosine_chance),
        _chance(pair.sign_disagreement, 0.5, pair.sign_disagreement_error),
        _chance(pair.conflict_l2, 0.5**0.5),
        _chance(pair.jaccard, pair.jaccard_chance),
        f"{pair.a} × {pair.b}",
    )


def _layer(layer: LevelStatistics) -> tuple[str, ...]:
    known = [pair for pair in layer.pairs if pair.conflict_l1 is not None]
    worst = max(known, key=lambda pair: pair.conflict_l1 or 0.0)
    return (
        layer.label,
        _chance(worst.conflict_l1, 0.5),
        _chance(worst.sign_disagreement, 0.5, worst.sign_disagreement_error),
        _chance(worst.cosine, 0.0, worst.cosine_chance),
        f"{worst.a} × {worst.b}",
    )


def _narrow(table: Table) -> Table:
    """Say `chance` once, at the head of a column."""
    title, (head, *rows), align = table
    heads = [f"{name} (chance)" if any("(chance " in row[at] for row in rows) else name for at, name in enumerate(head)]
    return title, [heads, *([cell.replace("(chance ", "(") for cell in row] for row in rows)], align


def _page(report: ConflictReport, out: Output) -> list[str]:
    experts: list[tuple[str, ...]] = [
        ("NORM", "RELATIVE", "CHANGED", "IN BF16", "LOST BY TRIM", "BY ELECTION", "EXPERT")
    ]
    for e in report.model.experts:
        shares = (e.changed, e.changed_bf16, e.ties_trim_loss, e.ties_election_loss)
        experts.append((number(e.norm), number(e.relative_norm), *map(percent, shares), e.expert))
    lines = [*columns(experts, ">>>>>><")]
    if report.pairs:
        pairs: list[tuple[str, ...]] = [
            ("COSINE (chance)", "SIGNS DIFFER (chance)", "CONFLICT (chance)", "JACCARD (chance)", "PAIR")
        ]
        pairs += [_pair(pair) for pair in report.pairs]
        lines += ["", *columns(pairs, "<<<<<")]
        both = report.model.together
        lines += ["", f"dilution by averaging: {number(both.dilution)} (chance {number(both.dilution_chance)})"]
        worst = report.worst_layers()
        if worst:
            layers: list[tuple[str, ...]] = [
                ("WORST LAYERS", "CONFLICT L1 (chance)", "SIGNS DIFFER (chance)", "COSINE (chance)", "PAIR")
            ]
            layers += [_layer(layer) for layer in worst]
            lines += ["", *columns(layers, "<<<<<")]
    for title, rows, align in [*map(_narrow, spectral_tables(report)), *group_tables(report)]:
        lines += ["", out.heading(clean(title)), *columns(rows, align)]
    if report.groups is not None:
        lines.append("")
        for words in report.groups.words:
            lines += out.paragraph(words)
    lines += ["", out.heading("advice")]
    for advice in report.advice:
        lines += [*out.paragraph(advice.text, "  "), *out.paragraph(f"[{advice.rule}: {advice.condition}]", "    ")]
    return lines
