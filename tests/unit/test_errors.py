"""Exceptions: classes, fields, and the core's closed table of codes."""

from __future__ import annotations

import errno
import json
import pickle
from pathlib import Path

import pytest

from rlmerge import _core
from rlmerge.errors import (
    AlignmentError,
    CheckpointError,
    InternalError,
    NumericsError,
    OutputError,
    RecipeError,
    RlmergeError,
    from_core,
)

CLASSES = {
    "recipe": RecipeError,
    "checkpoint": CheckpointError,
    "alignment": AlignmentError,
    "output": OutputError,
    "numerics": NumericsError,
    "bug": InternalError,
}


def test_every_code_of_the_core_has_its_class():
    for row in json.loads(_core.errors()):
        error = from_core(row["code"], row["exit_code"], row["kind"], "message")
        if row["kind"] == "interrupt":
            assert type(error) is KeyboardInterrupt
            continue
        assert isinstance(error, CLASSES[row["kind"]])
        assert (error.code, error.exit_code, str(error)) == (row["code"], row["exit_code"], "message")


@pytest.mark.parametrize(
    ("code", "kind", "number", "builtin"),
    [
        ("model_not_found", "checkpoint", None, FileNotFoundError),
        ("model_not_found", "checkpoint", errno.ENOENT, FileNotFoundError),
        ("io", "output", errno.EACCES, PermissionError),
        ("io", "output", errno.ENOENT, FileNotFoundError),
        ("io", "output", errno.EIO, OSError),
        ("io", "output", None, OSError),
        ("output_exists", "output", None, FileExistsError),
        ("no_space", "output", errno.ENOSPC, OSError),
    ],
)
def test_input_and_output_keep_their_builtin(code, kind, number, builtin):
    error = from_core(code, 5, kind, "words", "some/path", None, "a hint", number)
    assert isinstance(error, builtin)
    assert isinstance(error, CLASSES[kind])
    assert error.errno == number
    assert error.filename == "some/path"
    assert error.path == Path("some/path")
    assert str(error) == "words"
    assert type(error).__name__ == CLASSES[kind].__name__


@pytest.mark.parametrize("code", ["recipe_invalid", "io", "model_not_found"])
def test_pickle_keeps_everything(code):
    kind = {"recipe_invalid": "recipe", "io": "output", "model_not_found": "checkpoint"}[code]
    error = from_core(code, 5, kind, "words", "p", "t", "h", 13 if code == "io" else None)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert again.to_dict() == error.to_dict()


def test_errors_raised_in_python_have_defaults():
    error = RecipeError("no")
    assert (error.code, error.exit_code, error.path, error.tensor, error.hint) == (
        "recipe_invalid",
        2,
        None,
        None,
        None,
    )
    assert isinstance(error, RlmergeError)
    assert not isinstance(error, OSError)
    assert from_core("new_code", 9, "new kind", "words").exit_code == 9
