"""The options that the benchmarks share."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import make_trio


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """Options of a benchmark of whole commands, so many rounds of each unless told otherwise."""
    beside = Path(sys.executable).with_name("rlmerge")
    found = str(beside) if beside.exists() else shutil.which("rlmerge") or "rlmerge"
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--rlmerge", default=found, metavar="COMMAND", help="what to measure")
    made.add_argument("--no-record", action="store_true", help="print only")
    return made


def parser_of_trio(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The same, with those that say where the generated models and what is made of them go."""
    made = parser(description, rounds)
    made.add_argument("--dir", type=Path, help="keep the models here (default: a temporary folder)")
    made.add_argument("--out", type=Path, help="write the outputs here (default: beside the models)")
    made.add_argument("--size", choices=make_trio.SIZES, default="1b")
    return made
