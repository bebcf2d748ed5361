"""Write into docs/testing.md how much is tested, between the marks made for it.

Usage: python scripts/write_test_counts.py [--check]
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "testing.md"
BLOCK = re.compile(r"(<!-- counts -->\n).*?(<!-- /counts -->)", re.DOTALL)

sys.path.insert(0, str(ROOT))

from tests.counts import lines  # noqa: E402


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is not up to date")
    check = parser.parse_args().check
    text = PAGE.read_text()
    made = "".join(f"- {line}\n" for line in lines())
    new = BLOCK.sub(lambda found: found[1] + made + found[2], text)
    if check and new != text:
        sys.exit("docs/testing.md is out of date; run `make docs`")
    if not check:
        PAGE.write_text(new)


if __name__ == "__main__":
    main()
