"""Skips the folder where transformers or torch is not installed."""

import importlib.util

import pytest

REASON = "torch and transformers are not installed: pip install torch transformers runs this stage"


def pytest_collection_modifyitems(items):
    """Marks every test of this folder, and skips it without torch."""
    missing = any(importlib.util.find_spec(m) is None for m in ("torch", "transformers"))
    for item in items:
        if "interop" in item.path.parts:
            item.add_marker(pytest.mark.interop)
            if missing:
                item.add_marker(pytest.mark.skip(reason=REASON))
