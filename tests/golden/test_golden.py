"""The recorded answers, against the references and against the engine at every SIMD level."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden import record

RECORDED = json.loads((record.FOLDER / "digests.json").read_text())
ROOT = Path(__file__).parents[2]
FLAGS = {"scalar": None, "avx2": "avx2", "avx512": "avx512f"}


def cpu_flags() -> set[str]:
    """What the processor can do, by the kernel's account."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return set()
    return next((set(line.split()) for line in info.read_text().splitlines() if line.startswith("flags")), set())


def test_the_references_still_give_the_recorded_digests():
    assert record.reference_digests() == RECORDED


def test_the_mask_is_still_the_recorded_one():
    assert record.mask_words() == json.loads((record.FOLDER / "mask.json").read_text())


@pytest.mark.parametrize("level", [None, *FLAGS])
def test_the_engine_gives_the_recorded_digests(level):
    """One process a level: it is chosen once."""
    if level is not None and FLAGS[level] is not None and FLAGS[level] not in cpu_flags():
        pytest.skip(f"this processor has no {level}")
    environment = {k: v for k, v in os.environ.items() if k != "RLMERGE_SIMD"}
    if level is not None:
        environment["RLMERGE_SIMD"] = level
    done = subprocess.run(
        [sys.executable, "-m", "tests.property.digests"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert {n: d for n, d in got.items() if RECORDED[n] != d} == {}
    assert got.keys() == RECORDED.keys()
