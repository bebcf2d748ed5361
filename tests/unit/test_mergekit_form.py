"""mergekit's form of a recipe: what runs unchanged, what is refused by name."""

from __future__ import annotations

import copy

import pytest

from rlmerge.errors import RecipeError
from rlmerge.recipe import load_recipe

TIES = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [
        {"model": "base"},
        {"model": "a", "parameters": {"weight": 0.5, "density": 0.5}},
        {"model": "b", "parameters": {"weight": 0.3, "density": 0.4}},
    ],
    "parameters": {"normalize": True, "int8_mask": True},
    "dtype": "bfloat16",
}


def changed(**keys):
    recipe = copy.deepcopy(TIES)
    recipe.update(keys)
    return recipe


def test_runs_unchanged():
    recipe = load_recipe(TIES)
    assert (recipe.method, recipe.base, recipe.compat, recipe.dtype) == ("ties", "base", "mergekit", "BF16")
    assert [(m.path, m.parameters) for m in recipe.models] == [
        ("a", {"weight": 0.5, "density": 0.5}),
        ("b", {"weight": 0.3, "density": 0.4}),
    ]
    assert recipe.parameters == {"normalize": True}
    assert any("int8_mask" in note for note in recipe.notes)
    assert recipe.form == "mergekit"


def test_base_among_the_models_loses_its_weight_with_a_note():
    recipe = load_recipe(changed(models=[{"model": "base", "parameters": {"weight": 1}}, *TIES["models"][1:]]))
    assert [m.path for m in recipe.models] == ["a", "b"]
    assert any("`base` is the base" in note for note in recipe.notes)


@pytest.mark.parametrize("models", [["a", "b"], ["b", "a"], ["b"]])
def test_slerp_starts_at_the_base(models):
    recipe = load_recipe(
        {"merge_method": "slerp", "base_model": "a", "models": [{"model": m} for m in models], "parameters": {"t": 0.3}}
    )
    assert recipe.base == "a"
    assert [m.path for m in recipe.models] == ["b"]


def test_linear_has_no_base():
    models = [{"model": "a", "parameters": {"weight": 1}}, {"model": "b", "parameters": {"weight": 1}}]
    assert load_recipe({"merge_method": "linear", "models": models}).base is None
    recipe = load_recipe({"merge_method": "linear", "models": models, "base_model": "b"})
    assert recipe.base is None
    assert len(recipe.models) == 2
    with pytest.raises(RecipeError, match="no base"):
        load_recipe({"merge_method": "linear", "models": models, "base_model": "c"})


def test_out_dtype_wins_over_dtype():
    assert load_recipe(changed(dtype="float32", out_dtype="float16")).dtype == "F16"


def test_long_form_of_a_model():
    recipe = load_recipe(changed(models=[{"model": {"model": {"path": "org/a", "revision": "main"}}}]))
    assert recipe.models[0].path == "org/a@main"


def test_idle_parameters_of_task_arithmetic():
    recipe = load_recipe(changed(merge_method="task_arithmetic"))
    assert recipe.models[0].parameters == {"weight": 0.5}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"slices": []}, "`slices`"),
        ({"modules": {}}, "`modules`"),
        ({"tokenizer_source": "union"}, "`tokenizer_source: union`"),
        ({"tokenizer": {"source": "union"}}, "`tokenizer.source: union`"),
        ({"tokenizer": {"source": "base", "tokens": {}}}, "`tokenizer.tokens`"),
        ({"tokenizer": {"pad_to_multiple_of": 8}}, "`tokenizer.pad_to_multiple_of`"),
        ({"chat_template": "chatml"}, "`chat_template`"),
        ({"parameters": {"density": [0, 0.5, 1]}}, "gradient"),
        ({"parameters": {"t": [{"filter": "mlp", "value": 1}, {"value": 0}]}}, "filters"),
        ({"models": [{"model": "a", "parameters": {"weight": [0, 1]}}]}, "gradient"),
        ({"models": [{"model": {"model": "a", "override_architecture": "x"}}]}, "`override_architecture`"),
        ({"dtype": "int64"}, "int64"),
        ({"base_model": None}, "needs `base_model`"),
        ({"merge_method": "tise"}, "unknown method `tise`"),
        ({"densty": 0.1}, "unknown key `densty`"),
        ({"method": "ties"}, "both"),
    ],
)
def test_refused_by_name_with_what_to_do(keys, words):
    with pytest.raises(RecipeError) as caught:
        load_recipe(changed(**keys))
    assert words in str(caught.value)
    assert caught.value.exit_code == 2
    assert caught.value.hint


@pytest.mark.parametrize(
    "keys",
    [{"tokenizer_source": "base"}, {"tokenizer": {"source": "base"}}, {"tokenizer_source": "base", "dtype": None}],
)
def test_harmless_keys(keys):
    assert load_recipe(changed(**keys)).method == "ties"


def test_line_numbers(tmp_path):
    path = tmp_path / "m.yml"
    path.write_text(
        "merge_method: slerp\nbase_model: a\nmodels:\n  - model: a\n  - model: b\n"
        "parameters:\n  t:\n    - filter: mlp\n      value: 1\n"
    )
    with pytest.raises(RecipeError, match=r"m\.yml:7: .*`t`"):
        load_recipe(path)


@pytest.mark.parametrize("long", [False, True])
def test_a_model_with_a_lora(long):
    model = {"model": {"path": "a", "revision": "v1"}, "lora": {"path": "b"}} if long else "a@v1+b"
    recipe = load_recipe(changed(models=[{"model": model, "parameters": {"weight": 1.0, "density": 0.5}}]))
    assert [expert.path for expert in recipe.models] == ["a@v1+b"]
