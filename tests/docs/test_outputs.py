"""docs/outputs.md says what `rlmerge verify` can find."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_is_up_to_date():
    script = ROOT / "scripts/write_diagnostic_table.py"
    assert subprocess.run([sys.executable, script, "--check"], check=False).returncode == 0
