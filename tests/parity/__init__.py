"""mergekit as the oracle: `compat: mergekit` computes what mergekit 0.1.5 computes.

A second stage, because mergekit brings torch: `pytest tests/parity` in an environment with mergekit 0.1.5 and rlmerge.
Without mergekit the whole folder is skipped, and says so.
"""
