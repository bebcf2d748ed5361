"""Write docs/hostile-files.md: what rlmerge says of every hostile input, and what share of them it can name.

Usage: python -m tests.hostile.table [--check]
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.hostile.corpus import CASES
from tests.hostile.outcome import Outcome, outcome

PAGE = Path(__file__).parents[2] / "docs" / "hostile-files.md"
HEAD = """# Hostile files

Every rule of the format and of indexes, broken on purpose, and what `rlmerge inspect` says. Made by `python -m
tests.hostile.table` and held against the build by a test; `python -m tests.hostile.corpus FOLDER` writes the files, so
that other readers can be tried on them. *Reference* is the `safetensors` package, given the same bytes; it reads no
indexes.
"""


def outcomes() -> list[Outcome]:
    """The answers to all cases, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        answers = []
        for case in CASES:
            (at := root / case.name).mkdir()
            answers.append(outcome(case, at))
        return answers


def cell(text: str) -> str:
    """Text that cannot leave its cell, cut to a readable length."""
    line = text.split("\n")[0]
    line = line if len(line) <= 160 else line[:160] + "…"
    return line.replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def page(answers: list[Outcome]) -> str:
    """The whole page."""
    bad = [a for a in answers if a.case.code is not None]
    tensors = [a for a in bad if a.case.tensor is not None]
    asked = [a for a in answers if a.reference is not None]
    named = sum(a.names_tensor is True for a in tensors)
    opened = sum(a.code is None for a in answers if a.case.code is None)
    stricter = [a.case.name for a in asked if a.reference and a.code is not None]
    laxer = [a.case.name for a in asked if not a.reference and a.code is None]
    facts = [
        f"- {len(bad)} malformed inputs, {sum(a.code is not None for a in bad)} refused",
        f"- message names the file: {sum(a.names_file for a in bad)} of {len(bad)}",
        f"- message names the tensor where there is one: {named} of {len(tensors)}",
        f"- error has a hint: {sum(a.hint is not None for a in bad)} of {len(bad)}",
        f"- {len(answers) - len(bad)} odd but good inputs, {opened} opened",
        f"- laxer than the reference: {', '.join(laxer) or 'never'}",
        f"- stricter than the reference: {', '.join(stricter)}",
    ]
    rows = ["| input | rule | reference | code | rlmerge says |", "| --- | --- | --- | --- | --- |"]
    for a in answers:
        theirs = {None: "", True: "opens", False: "refuses"}[a.reference]
        says = a.message if a.code else "opens" + "".join(f"; warns: {w}" for w in a.warnings)
        rows.append(f"| {a.case.name} | {cell(a.case.rule)} | {theirs} | {a.code or ''} | {cell(says)} |")
    return "\n".join([HEAD, *facts, "", *rows, ""])


def main() -> None:
    """Writes the page, or compares it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is not up to date")
    check = parser.parse_args().check
    text = page(outcomes())
    if check:
        sys.exit(None if PAGE.read_text() == text else "docs/hostile-files.md is out of date; run `make docs`")
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
