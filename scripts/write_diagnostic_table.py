"""Write the table of diagnostics into docs/outputs.md, between its marks.

``--check`` writes nothing and fails when the page would change.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from rlmerge import _core

PAGE = Path(__file__).parents[1] / "docs/outputs.md"
#: A bar that does not end a cell; Python 3.11 takes no backslash within an f-string.
BAR = r"\|"


def diagnostics() -> str:
    """Return the table of diagnostics."""
    lines = ["| id | name | severity | cause | what to do |", "| --- | --- | --- | --- | --- |"]
    for row in json.loads(_core.diagnostics()):
        cells = [row["id"], f"`{row['name']}`", row["severity"], row["cause"], row["remedy"]]
        lines.append(f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |")
    return "\n".join(lines)


def written(text: str) -> str:
    """Return the page with its table."""
    pattern = re.compile("<!-- diagnostics -->.*?<!-- /diagnostics -->", re.DOTALL)
    return pattern.sub(lambda _: f"<!-- diagnostics -->\n\n{diagnostics()}\n\n<!-- /diagnostics -->", text)


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
