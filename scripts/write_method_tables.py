"""Write what the table of methods knows into the documentation, between the marks made for it.

Two kinds of marks, each with its closing mark; what stands between them is replaced:

    <!-- methods -->          one line for each method
    <!-- method ties -->      formula, source, requirements and parameters of one method

Usage: python scripts/write_method_tables.py [--check]
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import rlmerge

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- (methods|method (\w+)) -->\n).*?(<!-- /method(?:s)? -->)", re.DOTALL)


def pages() -> list[Path]:
    """Return every file that may have marks; the page about adding a method shows marks without meaning them."""
    docs = sorted((ROOT / "docs").rglob("*.md"))
    return [ROOT / "README.md", *(page for page in docs if page.name != "add-a-method.md")]


def overview() -> str:
    """Return one table row for each method."""
    rows = ["| method | what it does | base |", "| --- | --- | --- |"]
    rows += [f"| `{m.name}` | {cell(m.summary)} | {m.base} |" for m in rlmerge.methods()]
    return "\n".join(rows) + "\n"


def description(name: str) -> str:
    """Return everything that the table says of one method."""
    method = next((m for m in rlmerge.methods() if m.name == name), None)
    if method is None:
        sys.exit(f"no method is called {name}")
    most = "or more" if method.max_experts is None else f"to {method.max_experts}"
    experts = str(method.min_experts) if method.max_experts == method.min_experts else f"{method.min_experts} {most}"
    facts = [
        f"base {method.base}",
        f"experts {experts}",
        f"reads {method.reads}",
        f"memory grows with the {method.memory}",
        "random, by seed" if method.seeded else "deterministic",
    ]
    lines = [f"{method.summary}", "", "```text", *method.formula.split("; "), "```", ""]
    lines.append(f"Source: [{method.paper_title}]({method.paper_url}). " + " · ".join(facts) + ".")
    if method.aliases:
        lines[-1] += " Also called " + ", ".join(f"`{a}`" for a in method.aliases) + "."
    if method.parameters:
        lines += ["", "| parameter | default | with mergekit's | range | each expert | meaning |"]
        lines.append("| --- | --- | --- | --- | --- | --- |")
        for p in method.parameters:
            values = " ".join(f"`{c}`" for c in p.choices) if p.choices else p.range
            each = "yes" if p.per_expert else "no"
            facts = [f"`{p.name}`", value(p.default), value(p.default_mergekit), values, each, cell(p.meaning)]
            lines.append("| " + " | ".join(facts) + " |")
    lines += ["", f"`compat: mergekit`: {method.modes}", ""]
    return "\n".join(lines)


def value(default: object) -> str:
    """Return a default as documentation shows it."""
    if default is None:
        return "none"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def cell(text: str) -> str:
    """Return text that cannot end a table cell."""
    return text.replace("|", "\\|")


def written(text: str) -> str:
    """Return the page with its marks filled in."""

    def fill(found: re.Match[str]) -> str:
        return found[1] + (overview() if found[2] == "methods" else description(found[3])) + found[4]

    return BLOCK.sub(fill, text)


def main() -> None:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is not up to date")
    check = parser.parse_args().check
    stale = []
    for page in pages():
        text = page.read_text()
        new = written(text)
        if new != text:
            stale.append(str(page.relative_to(ROOT)))
            if not check:
                page.write_text(new)
    if check and stale:
        sys.exit(f"out of date: {', '.join(stale)}; run `make docs`")


if __name__ == "__main__":
    main()
