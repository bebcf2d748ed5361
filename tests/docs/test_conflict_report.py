"""docs/conflict-report.md says what the code does."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from rlmerge._conflicts import ExpertStatistics, PairStatistics, TogetherStatistics
from rlmerge._spectra import SpectralExpert, SpectralPair, SpectralTogether
from rlmerge._statistics import (
    OF_EXPERT,
    OF_PAIR,
    SPECTRAL,
    SPECTRAL_OF_EXPERT,
    SPECTRAL_OF_PAIR,
    SPECTRAL_TOGETHER,
    STATISTICS,
    TOGETHER,
)

ROOT = Path(__file__).parents[2]


def test_tables_are_up_to_date():
    script = ROOT / "scripts/write_conflict_tables.py"
    assert subprocess.run([sys.executable, script, "--check"], check=False).returncode == 0


def test_every_number_is_in_the_table():
    names = [row.name for row in STATISTICS]
    assert len(names) == len(set(names))
    for of, table in (
        (ExpertStatistics, OF_EXPERT),
        (PairStatistics, OF_PAIR),
        (TogetherStatistics, TOGETHER),
        (SpectralExpert, SPECTRAL_OF_EXPERT),
        (SpectralPair, SPECTRAL_OF_PAIR),
        (SpectralTogether, SPECTRAL_TOGETHER),
    ):
        own = {field.name for field in fields(of)} - {"expert", "a", "b", "counts", "histogram"}
        assert own == set(table)
    names += [row.name for row in SPECTRAL]
    for row in (*STATISTICS, *SPECTRAL):
        if isinstance(row.chance, str):
            assert row.chance in names
        assert row.spread is None or row.spread in names
