"""A conflict report in words: tables for terminals, Markdown and notebooks."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from rlmerge._statistics import statistic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlmerge._conflicts import ConflictReport, LevelStatistics, PairStatistics
    from rlmerge._groups import GroupRow

__all__ = ["Table", "group_tables", "markdown", "notebook", "number", "percent", "static_html", "tables"]

Table = tuple[str, list[list[str]], str]
"""Title, rows (the first is the header), and alignment."""


def number(value: float | None, digits: int = 3) -> str:
    """Return a number for people; ``undefined`` where there is none.

    Examples
    --------
    >>> number(0.0213456), number(None), number(1234567.0)
    ('0.0213', 'undefined', '1.23e+06')
    """
    return "undefined" if value is None else f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    """Return a share in per cent.

    Examples
    --------
    >>> percent(0.256), percent(None)
    ('25.6 %', 'undefined')
    """
    return "undefined" if value is None else f"{100 * value:.1f} %"


def _beside(value: float | None, chance: float | None, spread: float | None) -> str:
    """Return a value with chance beside it."""
    if value is None:
        return "undefined"
    text = f"{value:.3f}"
    if chance is None:
        return text
    around = f" ± {spread:.2g}" if spread is not None else ""
    return f"{text} (chance {chance:.3g}{around})"


def _verdict(pair: PairStatistics) -> list[str]:
    return [
        f"{pair.a} × {pair.b}",
        _beside(pair.cosine, 0.0, pair.cosine_chance),
        _beside(pair.sign_disagreement, 0.5, pair.sign_disagreement_error),
        _beside(pair.conflict_l2, 0.5**0.5, None),
        _beside(pair.jaccard, pair.jaccard_chance, None),
        number(pair.conflict_norm),
        number(pair.conflict_norm_matched),
    ]


def _layer_row(layer: LevelStatistics) -> list[str]:
    known = [pair for pair in layer.pairs if pair.conflict_l1 is not None]
    worst = max(known, key=lambda pair: pair.conflict_l1 or 0.0)
    return [
        layer.label,
        f"{worst.a} × {worst.b}",
        f"{worst.conflict_l1:.3f}",
        _beside(worst.sign_disagreement, 0.5, worst.sign_disagreement_error),
        _beside(worst.cosine, 0.0, worst.cosine_chance),
    ]


def tables(report: ConflictReport) -> list[Table]:
    """Return the report's main tables."""
    experts = [["EXPERT", "NORM", "RELATIVE", "CHANGED", "IN BF16", "TOP 1 % ENERGY", "LOST BY TRIM", "BY ELECTION"]]
    for e in report.model.experts:
        experts.append(
            [
                e.expert,
                number(e.norm),
                number(e.relative_norm),
                percent(e.changed),
                percent(e.changed_bf16),
                percent(e.top1_energy),
                percent(e.ties_trim_loss),
                percent(e.ties_election_loss),
            ]
        )
    found: list[Table] = [("Experts", experts, "<>>>>>>>")]
    if report.pairs:
        header = ["PAIR", "COSINE", "SIGN DISAGREEMENT", "NORMALISED CONFLICT", "JACCARD", "CONFLICT NORM", "MATCHED"]
        found.append(("Pairs", [header, *(_verdict(pair) for pair in report.pairs)], "<<<<<>>"))
        worst = report.worst_layers()
        if worst:
            header = ["LAYER", "WORST PAIR", "CONFLICT L1 (chance 0.5)", "SIGN DISAGREEMENT", "COSINE"]
            found.append(("Worst layers", [header, *map(_layer_row, worst)], "<<><<"))
        found.append(("Together", _together(report), "<>>"))
    return found


def all_tables(report: ConflictReport) -> list[Table]:
    """Return the main tables, the spectral ones and those of groups."""
    from rlmerge._spectra import spectral_tables

    return [*tables(report), *spectral_tables(report), *group_tables(report)]


def _together(report: ConflictReport) -> list[list[str]]:
    both = report.model.together
    return [
        ["ALL EXPERTS", "VALUE", "CHANCE"],
        ["dilution: ‖mean δ‖ / mean ‖δ‖", number(both.dilution), number(both.dilution_chance)],
        ["norm of the sum", number(both.sum_norm), "-"],
        ["norm of the mean", number(both.mean_norm), "-"],
    ]


def _group_row(row: GroupRow) -> list[str]:
    if row.effect is None:
        effect = "undefined"
    else:
        effect = f"{'Δ ' if row.by == 'difference' else '×'}{row.effect:.3g}"
    interval = "-" if row.low is None or row.high is None else f"{row.low:.3g} to {row.high:.3g}"
    return [
        statistic(row.statistic).title,
        number(row.first),
        number(row.second),
        effect,
        interval,
        row.verdict,
    ]


def group_tables(report: ConflictReport) -> list[Table]:
    """Return a table for each group that is compared with the first."""
    if report.groups is None:
        return []
    return [
        (
            f"{second} beside {first}",
            [
                ["STATISTIC", first.upper(), second.upper(), "EFFECT", "95 % INTERVAL", "VERDICT"],
                *(_group_row(row) for row in rows),
            ],
            "<>>>><",
        )
        for first, second, rows in report.groups.rows
    ]


def markdown(report: ConflictReport) -> str:
    """Return the main tables and the advice as Markdown; names are escaped."""
    lines = ["# Conflict report", "", f"Base: {_plain(str(report.base))}", ""]
    for title, rows, align in all_tables(report):
        lines += [f"## {_plain(title)}", ""]
        lines += ["| " + " | ".join(_plain(cell) for cell in rows[0]) + " |"]
        lines += ["| " + " | ".join("---:" if a == ">" else "---" for a in align) + " |"]
        lines += ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in rows[1:]]
        lines.append("")
    if report.groups is not None:
        lines += [*(_plain(words) for words in report.groups.words), ""]
    lines += ["## Advice", ""]
    lines += [f"- {_plain(a.text)} *Rule {a.rule}: {_plain(a.condition)}; {_plain(a.source)}.*" for a in report.advice]
    lines += [f"- warning: {_plain(warning)}" for warning in report.warnings]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Escape what Markdown or HTML in Markdown would act on."""
    for character in "\\`*_[]|<>#!~":
        text = text.replace(character, "&lt;" if character == "<" else "\\" + character)
    return " ".join(text.split())


def _marked(escaped: str) -> str:
    """Set the chance level of a cell apart."""
    value, found, rest = escaped.partition(" (chance ")
    return f"{value} <small>chance {rest.removesuffix(')')}</small>" if found else escaped


def static_html(found: Sequence[Table]) -> str:
    """Return tables as HTML; everything in them is escaped."""
    parts = []
    for title, rows, align in found:
        head = _html_row(rows[0], "th", align)
        body = "".join(_html_row(row, "td", align) for row in rows[1:])
        parts.append(
            f"<h2>{html.escape(title)}</h2><div class=scroll><table><thead>{head}</thead>"
            f"<tbody>{body}</tbody></table></div>"
        )
    return "".join(parts)


def _html_row(cells: Sequence[str], tag: str, align: str) -> str:
    sides = ["r" if side == ">" else "l" for side in align]
    found = zip(cells, sides, strict=True)
    inside = "".join(f'<{tag} class="{side}">{_marked(html.escape(cell))}</{tag}>' for cell, side in found)
    return f"<tr>{inside}</tr>"


def advice_html(report: ConflictReport) -> str:
    """Return the advice as an HTML list; everything in it is escaped."""
    items = "".join(
        f"<li><p>{html.escape(a.text)}</p><p class=rule>rule <code>{html.escape(a.rule)}</code>: "
        f"{html.escape(a.condition)} · {html.escape(a.source)}</p></li>"
        for a in report.advice
    )
    return f"<ul class=advice>{items}</ul>"


def notebook(report: ConflictReport) -> str:
    """Return the main tables and the advice as an HTML fragment."""
    return static_html(all_tables(report)) + "<h2>Advice</h2>" + advice_html(report)
