"""How much is tested, counted where it is written down: for `docs/testing.md` and the last lines of a test run."""

import json
import re
from pathlib import Path

from tests.hostile.corpus import CASES

ROOT = Path(__file__).parents[1]
CORE = ROOT / "rust" / "rlmerge-core"


def number(pattern: str, file: Path) -> int:
    """The number that a constant has in a source."""
    found = re.search(pattern, file.read_text())
    assert found, f"{pattern} is not in {file.name}"
    return int(found[1].replace("_", ""))


def counts() -> dict[str, int]:
    """What is counted, by what it is called."""
    from rlmerge import _core

    bad = [case for case in CASES if case.code is not None]
    seeds = sum(file.is_file() for file in (CORE / "tests" / "corpus").rglob("*"))
    return {
        "hostile inputs, each with one clear answer": len(bad),
        "of which have a tensor to name": sum(case.tensor is not None for case in bad),
        "odd but good inputs, which must open": len(CASES) - len(bad),
        "error codes, each brought about in earnest": len(json.loads(_core.errors())),
        "seeds in the fuzzing corpus": seeds,
        "inputs of each of 4 fuzz targets in a run of the tests": number(
            r"const ROUNDS: u64 = ([\d_]+);", CORE / "tests" / "mutations.rs"
        ),
        "damaged files compared with the reference package": number(
            r'ROUNDS", "(\d+)"', ROOT / "tests" / "hostile" / "test_differential.py"
        ),
        "built headers compared with the reference crate": number(
            r"cases\((\d_?\d{3})\)", CORE / "tests" / "roundtrip.rs"
        ),
    }


def lines() -> list[str]:
    """One line a count."""
    return [f"{count:,} {what}" for what, count in counts().items()]
