"""The examples in the docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import rlmerge

MODULES = ["rlmerge", *(m.name for m in pkgutil.walk_packages(rlmerge.__path__, "rlmerge.") if "_core" not in m.name)]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_examples(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"rlmerge": rlmerge})
    assert result.failed == 0


def test_public_functions_have_examples():
    for name in ("merge", "plan", "inspect", "methods", "verify", "clean"):
        text = getattr(rlmerge, name).__doc__
        for heading in ("Returns", "Examples"):
            assert heading in text, (name, heading)
