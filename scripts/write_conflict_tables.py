"""Write the tables of statistics and rules into docs/conflict-report.md, between their marks.

``--check`` writes nothing and fails when the page would change.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from rlmerge._advice import RULES
from rlmerge._statistics import SPECTRAL, STATISTICS, Statistic

PAGE = Path(__file__).parents[1] / "docs/conflict-report.md"


def cell(text: str) -> str:
    """Escape what ends a cell."""
    return text.replace("|", r"\|")


def statistics(rows: tuple[Statistic, ...]) -> str:
    """Return the tables of statistics."""
    lines = []
    for of, title in (("expert", "One expert"), ("pair", "A pair a, b"), ("together", "All experts together")):
        lines += ["", f"{title}:", "", "| key | formula | grows with | chance |", "| --- | --- | --- | --- |"]
        for row in (row for row in rows if row.of == of):
            chance = (
                "–"
                if row.chance is None
                else f"{row.chance:.4g}"
                if isinstance(row.chance, float)
                else f"`{row.chance}`"
            )
            if row.spread:
                chance += f" ± `{row.spread}`"
            scale = "–" if row.scale == "free" else row.scale
            lines.append(f"| `{row.name}` | {cell(row.meaning)} | {scale} | {chance} |")
    return "\n".join(lines[1:])


def rules() -> str:
    """Return the table of rules."""
    lines = ["| rule | when | source |", "| --- | --- | --- |"]
    lines += [f"| `{rule.name}` | {cell(rule.condition)} | {cell(rule.source)} |" for rule in RULES]
    return "\n".join(lines)


def written(text: str) -> str:
    """Return the page with its tables."""
    for mark, table in (
        ("statistics", statistics(STATISTICS)),
        ("spectral", statistics(SPECTRAL)),
        ("rules", rules()),
    ):
        pattern = re.compile(f"<!-- {mark} -->.*?<!-- /{mark} -->", re.DOTALL)
        text = pattern.sub(lambda _, m=mark, t=table: f"<!-- {m} -->\n\n{t}\n\n<!-- /{m} -->", text)
    return text


def main() -> int:
    """Write the page, or check it."""
    text = PAGE.read_text(encoding="utf-8")
    new = written(text)
    if "--check" in sys.argv:
        return int(new != text)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
