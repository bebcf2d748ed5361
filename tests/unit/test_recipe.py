"""Recipes: sizes, dtypes, values, our own form, and YAML that means harm."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from rlmerge.errors import RecipeError
from rlmerge.recipe import check_integer, check_value, load_recipe, parse_dtype, parse_size


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("5GB", 5_000_000_000),
        ("500MB", 500_000_000),
        ("4GiB", 4 * 2**30),
        ("4 gib", 4 * 2**30),
        ("1.5KB", 1500),
        ("2G", 2_000_000_000),
        ("77", 77),
        (77, 77),
        ("9007199254740993", 2**53 + 1),
    ],
)
def test_sizes(text, count):
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "GB", "5XB", "-1GB", "0", 0, "1e3", True, 1.5, "9" * 30, "nan", None])
def test_sizes_that_are_none(text):
    with pytest.raises(RecipeError):
        parse_size(text)


@pytest.mark.parametrize(
    ("word", "name"),
    [
        *[(w, "BF16") for w in ("bf16", "bfloat16", "BF16", "torch.bfloat16")],
        *[(w, "F16") for w in ("f16", "float16", "fp16", "F16")],
        *[(w, "F32") for w in ("f32", "float32", "fp32", "F32")],
        *[(w, "F64") for w in ("f64", "float64", "F64")],
    ],
)
def test_dtypes(word, name):
    assert parse_dtype(word) == name


def test_unknown_dtype_gets_a_suggestion():
    with pytest.raises(RecipeError) as caught:
        parse_dtype("bfloat")
    assert "`bfloat16`" in caught.value.hint


def test_values():
    assert check_value("w", (1, 0.5)) == [1, 0.5]
    assert check_value("w", np.float32(0.5)) == 0.5
    assert check_value("w", np.int64(3)) == 3
    assert check_value("w", True) is True
    for bad in (math.nan, math.inf, [], [[1]], None, {}, 2**60, object()):
        with pytest.raises(RecipeError):
            check_value("w", bad)
    assert check_integer("seed", np.int64(3), 0, 10) == 3
    for bad in (True, 1.0, "1", -1, 11):
        with pytest.raises(RecipeError):
            check_integer("seed", bad, 0, 10)


OWN = """\
method: ties
base: base
models:
  - a
  - path: b
    parameters: {weight: 0.5}
parameters:
  density: [0.2, 0.3]
  lambda: 1e-1
  scope: model
seed: 7
dtype: bfloat16
compat: paper
output: out
shard_size: 2GB
threads: 3
strict: true
"""


def test_own_form(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(OWN)
    recipe = load_recipe(path)
    assert (recipe.method, recipe.base, recipe.seed, recipe.dtype) == ("ties", "base", 7, "BF16")
    assert [(m.path, m.parameters) for m in recipe.models] == [("a", {}), ("b", {"weight": 0.5})]
    assert recipe.parameters == {"density": [0.2, 0.3], "lambda": 0.1, "scope": "model"}
    assert (recipe.output, recipe.shard_size, recipe.threads, recipe.strict) == ("out", 2_000_000_000, 3, True)
    assert recipe.compat == "paper"


def test_mapping_is_the_same_form():
    recipe = load_recipe({"method": "linear", "models": [{"model": "a"}, {"path": "b"}]})
    assert [m.path for m in recipe.models] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "line", "words", "hint"),
    [
        ("method: ties\nmodles: [a]\n", 2, "modles", "`models`"),
        ("method: ties\nmodels: [a]\nsed: 1\n", 3, "sed", "`seed`"),
        ("method: ties\nmodels:\n  - path: a\n    paramters: {}\n", 4, "paramters", "`parameters`"),
        ("method: ties\nmodels:\n  - path: a\n    weight: 1\n", 4, "weight", "parameters:"),
        ("method: ties\nmodels: [a]\ndensity: 0.2\n", 3, "density", "parameters:"),
        ("method: ties\nmodels: [a]\nseed: -1\n", 3, "seed", None),
        ("method: ties\nmodels: [a]\nseed: 1.5\n", 3, "seed", None),
        ("method: ties\nmodels: [a]\nseed: yes\n", 3, "seed", None),
        ("method: ties\nmodels: [a]\ndtype: bfloat\n", 3, "bfloat", "`bfloat16`"),
        ("method: ties\nmodels: [a]\ncompat: megekit\n", 3, "megekit", "`mergekit`"),
        ("method: ties\nmodels: [a]\nparameters:\n  density: .nan\n", 4, "density", None),
        ("method: ties\nmodels: [a]\nshard_size: big\n", 3, "big", "5GB"),
        ("method: ties\nmodels: []\n", 2, "models", None),
        ("method: ties\nmodels: a\n", 2, "models", None),
        ("method: 3\nmodels: [[a]]\n", 2, "models.0", None),
        ("method: a\nmethod: b\n", 2, "given twice (first on line 1)", None),
        ("method: a\nx: {b: 1, b: 2}\n", 2, "`b` is given twice", None),
        ("method: !!python/object:os.system x\n", 1, "tag", None),
        ("method: !x y\n", 1, "tag", None),
        ("a: 1\n---\nb: 2\n", 2, "second document", None),
        ("method: ties\nmodels: [a\n", 3, "", None),
        ("method: *nothing\n", 1, "alias", None),
        ("? [a]\n: b\n", 1, "key", None),
        ("method: ties\nmerge_method: ties\nmodels: [a]\n", 2, "both", None),
    ],
)
def test_errors_name_line_and_key(tmp_path, text, line, words, hint):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert f"r.yaml:{line}: " in message
    assert words in message
    assert caught.value.exit_code == 2
    assert caught.value.path == path
    if hint is not None:
        assert hint in caught.value.hint


def bomb() -> str:
    text, last = "a: &a [x,x,x,x,x,x,x,x,x]\n", "a"
    for name in "bcdefghijklm":
        text += f"{name}: &{name} [{','.join(['*' + last] * 9)}]\n"
        last = name
    return text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (bomb(), "more than 20000 values"),
        ("a: &a [*a]\n", "nested deeper"),
        ("a: " + "[" * 50_000 + "]" * 50_000, "nested deeper"),
        ("#" * 300_000, "at most"),
        ("- a\n- b\n", "mapping"),
        ("", "mapping"),
        ("just words", "mapping"),
        ("method: \x00\n", "r.yaml"),
        ("method: [1" + "1" * 5000 + "]\n", "not a number"),
    ],
    ids=["bomb", "cycle", "deep", "large", "list", "empty", "scalar", "nul", "digits"],
)
def test_hostile_yaml_ends_at_once(tmp_path, text, words):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    start = time.perf_counter()
    with pytest.raises(RecipeError, match=words):
        load_recipe(path)
    assert time.perf_counter() - start < 5


def test_not_text(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"method: ties\nmodels: [\xff]\n")
    with pytest.raises(RecipeError, match=r"r\.yaml:2: not UTF-8"):
        load_recipe(path)


def test_missing_recipe_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load_recipe(tmp_path / "no.yaml")
    assert isinstance(caught.value, RecipeError)
    assert caught.value.exit_code == 2


def test_aliases_of_plain_data_are_fine(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "method: ties\nmodels:\n  - path: a\n    parameters: &p {weight: 0.5}\n  - {path: b, parameters: *p}\n"
    )
    assert [m.parameters for m in load_recipe(path).models] == [{"weight": 0.5}] * 2
