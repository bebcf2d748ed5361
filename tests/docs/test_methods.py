"""The pages of methods say what the engine's table says, and every method has its place on one of them."""

import re
import subprocess
import sys
from pathlib import Path

import rlmerge

ROOT = Path(__file__).parents[2]


def test_what_is_generated_is_up_to_date():
    script = ROOT / "scripts" / "write_method_tables.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_method_is_described_once():
    text = "".join(page.read_text() for page in (ROOT / "docs" / "methods").glob("*.md"))
    described = re.findall(r"^<!-- method (\w+) -->$", text, re.MULTILINE)
    assert sorted(described) == sorted(m.name for m in rlmerge.methods())


def test_the_readme_lists_every_method():
    text = (ROOT / "README.md").read_text()
    (table,) = re.findall(r"<!-- methods -->\n(.*?)<!-- /methods -->", text, re.DOTALL)
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [m.name for m in rlmerge.methods()]
