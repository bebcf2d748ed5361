"""The example in docs/conflict-report.md is what rlmerge prints for the demo's models."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_example_is_true(tmp_path):
    text = (ROOT / "docs" / "conflict-report.md").read_text()
    (block,) = re.findall(r"```text\n\$ cd demo\n(.*?)```", text, re.DOTALL)
    command, _, shown = block.replace("\\\n", " ").partition("\n")
    script = ROOT / "scripts" / "make_demo_trio.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, capture_output=True, timeout=60)
    words = command.removeprefix("$ rlmerge ").split()
    done = subprocess.run(
        [sys.executable, "-m", "rlmerge", *words],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    printed = [line.rstrip() for line in done.stdout.splitlines()]
    lines = [line.rstrip() for line in shown.splitlines() if line.strip() not in ("", "...")]
    assert len(lines) > 15
    assert [line for line in lines if line not in printed] == []
