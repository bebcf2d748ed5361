"""The pages of errors and of tests say what the build says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlmerge import _core

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("script", ["write_error_table.py", "write_test_counts.py"])
def test_the_page_is_up_to_date(script):
    command = [sys.executable, ROOT / "scripts" / script, "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_links_between_the_pages_lead_somewhere():
    for page in (ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+\.md)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_exit_code_is_explained():
    table = re.search(r"## Exit codes\n(.*)## Examples", (ROOT / "docs" / "errors.md").read_text(), re.DOTALL)
    explained = {int(n) for cell in re.findall(r"^\| ([\d, ]+) \|", table[1], re.MULTILINE) for n in cell.split(",")}
    assert {row["exit_code"] for row in json.loads(_core.errors())} <= explained
