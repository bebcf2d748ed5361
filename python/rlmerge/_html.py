"""A conflict report as one HTML page that needs no network.

Tables are HTML made here, with every name escaped; pictures are drawn by the page's own script from a block of JSON.
"""

from __future__ import annotations

import html
import json
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from rlmerge._spectra import spectra, spectral_tables
from rlmerge._statistics import (
    OF_EXPERT,
    OF_PAIR,
    SPECTRAL,
    SPECTRAL_OF_EXPERT,
    SPECTRAL_OF_PAIR,
    STATISTICS,
    Statistic,
)
from rlmerge._text import advice_html, group_tables, static_html, tables

if TYPE_CHECKING:
    from rlmerge._conflicts import ConflictReport

__all__ = ["page"]


def page(report: ConflictReport) -> str:
    """Return the page."""
    template = files("rlmerge").joinpath("_page.html").read_text(encoding="utf-8")
    found = tables(report)
    parts = {
        "SUBTITLE": html.escape(f"base {report.base} · experts {', '.join(report.experts)}"),
        "WARNINGS": "".join(f"<p class=warning>{html.escape(text)}</p>" for text in report.warnings),
        "VERDICT": static_html([table for table in found if table[0] in ("Pairs", "Together")]),
        "ADVICE": advice_html(report),
        "EXPERTS": static_html([table for table in found if table[0] == "Experts"]),
        "WORST": static_html([table for table in found if table[0] == "Worst layers"]),
        "SPECTRA": _spectra(report),
        "GROUPS": _groups(report),
        "STATISTICS": _meanings(report),
        "INPUTS": _inputs(report),
        # No `<` is left in it, so no name can end the script block.
        "DATA": json.dumps(_data(report), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    out = []
    for at, piece in enumerate(template.split("@@")):
        out.append(parts[piece] if at % 2 else piece)
    return "".join(out)


def _groups(report: ConflictReport) -> str:
    if report.groups is None:
        return ""
    words = "".join(f"<p>{html.escape(text)}</p>" for text in report.groups.words)
    return f"<section><h1>Groups</h1>{words}<div id=forest></div>{static_html(group_tables(report))}</section>"


def _spectra(report: ConflictReport) -> str:
    if report.model.spectral is None:
        return ""
    lead = (
        "Singular values of each expert's change, by their rank; of a tensor of several matrices, those of the first. "
        "Dashed: noise of the same norm. Dotted: above it a direction counts as signal. Numbers below are means over "
        f"{report.model.spectral.matrices:,} matrices."
    )
    return (
        f"<section><h1>Spectra</h1><p class=lead>{html.escape(lead)}</p>"
        "<div class=tools><label>tensor <select id=tensor></select></label></div><div class=grid id=spectra></div>"
        f"{static_html(spectral_tables(report))}</section>"
    )


def _rows(report: ConflictReport) -> tuple[Statistic, ...]:
    """Return the statistics that the report has."""
    return (*STATISTICS, *SPECTRAL) if report.is_spectral else STATISTICS


def _meanings(report: ConflictReport) -> str:
    rows = [["STATISTIC", "OF", "GROWS WITH", "CHANCE", "MEANING"]]
    for row in _rows(report):
        chance = "-" if row.chance is None else f"{row.chance:.3g}" if isinstance(row.chance, float) else row.chance
        rows.append([row.title, row.of, "-" if row.scale == "free" else row.scale, chance, row.meaning])
    return static_html([("What the numbers mean", rows, "<<<<<")])


def _inputs(report: ConflictReport) -> str:
    rows = [["ROLE", "FILE", "BYTES", "BLAKE3 OF ITS HEADER"]]
    for model in report.raw["models"]:
        for shard in model["shards"]:
            rows.append([model["role"], shard["path"], f"{shard['bytes']:,}", shard["header_blake3"][:16]])
    settings = ", ".join(f"{name} {value:g}" for name, value in report.raw["settings"].items())
    about = html.escape(f"rlmerge {report.raw['version']} · schema {report.raw['schema']} · {settings}")
    return static_html([("Inputs", rows, "<<><")]) + f"<p class=rule>{about}</p>"


def _short(value: Any) -> Any:
    """Round to four significant digits, which is more than a picture shows."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _numbers(row: dict[str, Any], *, spectral: bool) -> list[Any]:
    experts = [[_short(expert[name]) for name in OF_EXPERT] for expert in row["experts"]]
    pairs = [[_short(pair[name]) for name in OF_PAIR] for pair in row["pairs"]]
    if spectral:
        # Levels without matrices have none.
        more = row.get("spectral", {})
        for names, found, of in ((SPECTRAL_OF_EXPERT, experts, "experts"), (SPECTRAL_OF_PAIR, pairs, "pairs")):
            for at, numbers in enumerate(found):
                numbers += [_short(more[of][at][name]) if more else None for name in names]
    return [experts, pairs]


def _data(report: ConflictReport) -> dict[str, Any]:
    raw = report.raw
    rows = _rows(report)
    of_expert, of_pair = (tuple(row.name for row in rows if row.of == of) for of in ("expert", "pair"))
    numbers = partial(_numbers, spectral=report.is_spectral)
    kinds = [row["kind"] for row in raw["kinds"]]
    return {
        "experts": list(report.experts),
        "pairs": [[pair["a"], pair["b"]] for pair in raw["model"]["pairs"]],
        "kinds": kinds,
        "layers": [row["layer"] for row in raw["layers"]],
        "statistics": [
            {
                "name": row.name,
                "title": row.title,
                "of": row.of,
                "chance": row.chance,
                "meaning": row.meaning,
                "free": row.scale == "free",
            }
            for row in rows
            if row.of != "together"
        ],
        "ofExpert": list(of_expert),
        "ofPair": list(of_pair),
        "model": numbers(raw["model"]),
        "byLayer": [numbers(row) for row in raw["layers"]],
        "byKind": [numbers(row) for row in raw["kinds"]],
        "cells": [[row["layer"], kinds.index(row["kind"]), *numbers(row)] for row in raw["cells"]],
        "histograms": [expert["histogram"] for expert in raw["model"]["experts"]],
        "parameters": raw["model"]["parameters"],
        "quantiles": raw["quantiles"],
        "settings": raw["settings"],
        "groups": report.groups.to_dict() if report.groups is not None else None,
        "titles": {row.name: row.title for row in rows},
        "spectra": spectra(report),
    }
