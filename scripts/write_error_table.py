"""Write docs/errors.md from the core's closed table of errors.

Codes, exit codes, examples and hints come from the build; what a code means is the documentation of its variant in
`rust/rlmerge-core/src/error.rs`.

Usage: python scripts/write_error_table.py [--check]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from rlmerge import _core
from rlmerge.errors import from_core

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "rust" / "rlmerge-core" / "src" / "error.rs"
PAGE = ROOT / "docs" / "errors.md"
VARIANT = re.compile(r"((?:    /// .*\n)+)    #\[error\(.*\)\]\n    (\w+)")
ARM = re.compile(r'Self::(\w+)(?: \{ \.\. \})? => "(\w+)"')
HEAD = """# Errors

Every way in which rlmerge can refuse or fail: a closed list, made by `make docs` and held against the build by a
test; another test fails as long as a code is not brought about in earnest. `error.code` in Python and `"code"` under
`--json` are stable, and so are the exit codes. Names from files are shown escaped and cut to 256 bytes.

| code | exit | Python | when |
| --- | --- | --- | --- |
"""
EXITS = """
## Exit codes

| exit | what it means |
| --- | --- |
| 0 | done |
| 1 | a bug of ours |
| 2 | the command line or the recipe |
| 3 | a bad input file |
| 4 | inputs that do not fit each other |
| 5 | input or output failed |
| 6 | the output exists, is locked, or is an input |
| 7 | values that are not finite |
| 8 | verification failed |
| 129, 130, 143 | ended by SIGHUP, by Ctrl-C, by SIGTERM |

## Examples

"""


def meanings() -> dict[str, str]:
    """Return what each code means, from the documentation of its variant."""
    source = SOURCE.read_text()
    codes = {name: code for name, code in ARM.findall(source)}
    found = VARIANT.findall(source)
    return {codes[name]: " ".join(re.findall(r"/// (.*)", text)) for text, name in found}


def cell(text: str) -> str:
    """Return text that cannot end a table cell."""
    return text.replace("|", "\\|")


def page() -> str:
    """Return the whole page."""
    means = meanings()
    rows, examples = [], []
    for row in json.loads(_core.errors()):
        error = from_core(row["code"], row["exit_code"], row["kind"], row["example"])
        bases = [type(error).__name__]
        bases += [b.__name__ for b in type(error).__bases__ if issubclass(b, OSError)]
        shown = "KeyboardInterrupt" if isinstance(error, KeyboardInterrupt) else ", ".join(bases)
        rows.append(f"| `{row['code']}` | {row['exit_code']} | `{shown}` | {cell(means[row['code']])} |\n")
        text = [f"error: {row['example']}"] + ([f"hint: {row['hint']}"] if row["hint"] else [])
        examples.append(f"`{row['code']}`\n\n```text\n" + "\n".join(text) + "\n```\n")
    return HEAD + "".join(rows) + EXITS + "\n".join(examples)


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is not up to date")
    if not parser.parse_args().check:
        PAGE.write_text(page())
    elif not PAGE.exists() or PAGE.read_text() != page():
        sys.exit("docs/errors.md is out of date; run `make docs`")


if __name__ == "__main__":
    main()
