#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy>=2", "safetensors>=0.8"]
# ///
"""Unpack models to try rlmerge on: a base, and experts that SFT and RL made of it for three tasks.

They come from the study's tiny-cpu run (study/trio/README.md): Llamas of 0.8 M parameters over characters, 3 MB each,
that add, write expressions, and put words under constraints. `study/evaluate.py` scores them and their merges.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from study.trio import unpack  # noqa: E402


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description="Unpack a base and its experts: base, sft-math, rl-math, ...")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo"), help="where (default: demo)")
    for folder in unpack(ROOT / "study" / "trio", parser.parse_args().folder):
        print(folder)


if __name__ == "__main__":
    main()
