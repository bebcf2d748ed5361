"""Tests of rlmerge, one folder a kind: see `tests/conftest.py` for the fixtures they share."""
