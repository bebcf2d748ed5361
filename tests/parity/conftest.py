"""Skips the folder where mergekit is not installed."""

import importlib.util

import pytest

REASON = "mergekit is not installed: pip install mergekit==0.1.5 runs this stage"


def pytest_collection_modifyitems(items):
    """Marks every test of this folder, and skips it when there is no oracle."""
    missing = importlib.util.find_spec("mergekit") is None
    for item in items:
        if "parity" in item.path.parts:
            item.add_marker(pytest.mark.parity)
            if missing:
                item.add_marker(pytest.mark.skip(reason=REASON))
