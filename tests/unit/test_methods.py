"""The typed view of the method table."""

from __future__ import annotations

import json

import pytest

import rlmerge
from rlmerge import _core
from rlmerge._methods import find_method
from rlmerge.errors import RecipeError


def test_the_table_is_the_core_table():
    rows = json.loads(_core.methods())
    assert [m.name for m in rlmerge.methods()] == [row["name"] for row in rows]
    for method, row in zip(rlmerge.methods(), rows, strict=True):
        assert [p.name for p in method.parameters] == [p["name"] for p in row["parameters"]]
        assert len(method.to_dict()["parameters"]) >= len(row["parameters"])
        assert method.base in ("required", "optional", "model", "none")
        assert json.dumps(method.to_dict())


def test_the_methods_of_the_first_release():
    names = {m.name for m in rlmerge.methods()}
    assert names >= {"linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "slerp", "passthrough"}


@pytest.mark.parametrize("name", ["dare", "dare_linear", "dare-linear", "DARE-Linear", " dare "])
def test_spellings(name):
    assert find_method(name).name == "dare_linear"


def test_every_alias_is_found():
    for method in rlmerge.methods():
        for alias in (method.name, *method.aliases):
            assert find_method(alias) is method
            assert find_method(alias.replace("_", "-")) is method


@pytest.mark.parametrize(
    ("name", "near"), [("tise", "ties"), ("lineer", "linear"), ("dare_tie", "dare_ties"), ("zzzzz", None)]
)
def test_unknown_method(name, near):
    with pytest.raises(RecipeError) as caught:
        find_method(name)
    assert caught.value.code == "unknown_method"
    assert "`rlmerge methods`" in caught.value.hint
    assert near is None or f"`{near}`" in caught.value.hint
