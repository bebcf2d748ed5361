"""merge, plan and inspect on real files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import rlmerge


@pytest.fixture
def trio(write_model):
    config = {"architectures": ["LlamaForCausalLM"], "torch_dtype": "float32"}
    models = [
        write_model("base", config=config),
        write_model("a", step=0.01, config=config),
        write_model("b", step=0.01, config=config),
    ]
    for model in models:
        (model / "tokenizer.json").write_text('{"model": {}}')
    return [str(model) for model in models]


def test_linear_of_files(write_model, here):
    a, b = write_model("a.safetensors", step=0.1), write_model("b.safetensors", step=0.1)
    report = rlmerge.merge([a, b], method="linear", weight=[3, 1])
    assert str(report.output) == "merged.safetensors"
    one, two, out = load_file(a), load_file(b), load_file("merged.safetensors")
    for name in one:
        np.testing.assert_allclose(out[name], (3 * one[name].astype(float) + two[name]) / 4, rtol=1e-6)
    assert report.totals["tensors"] == 2
    assert report.bytes_written > 0
    assert {t.name for t in report.tensors} == set(one)
    assert json.dumps(report.to_dict())


def test_ties_of_folders_gives_a_whole_folder(trio, here):
    base, a, b = trio
    report = rlmerge.merge([a, b], base=base, method="ties", density=0.5, dtype="bfloat16")
    out = here / "merged"
    assert report.output.resolve() == out
    names = {p.name for p in out.iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer.json", "README.md", "rlmerge.json"}
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert rlmerge.inspect(out).dtypes.keys() == {"BF16"}
    assert not list(here.glob(".*rlmerge*"))


def test_card_recipe_gives_the_same_bytes(trio, here):
    base, a, b = trio
    rlmerge.merge([a, b], base=base, method="dare", seed=3, density=[0.5, 0.7], lambda_=0.8, output="one")
    text = (here / "one" / "README.md").read_text()
    recipe = text.split("```yaml\n")[1].split("```")[0]
    (here / "recipe.yaml").write_text(recipe)
    rlmerge.merge(recipe="recipe.yaml", output="two")
    for name in ("model.safetensors", "README.md"):
        assert (here / "one" / name).read_bytes() == (here / "two" / name).read_bytes(), name


def test_plan_then_run(trio, here):
    base, a, b = trio
    plan = rlmerge.plan([a, b], base=base, method="task-arithmetic", output="out")
    assert (plan.method, plan.output_kind, plan.compat, plan.seed) == ("task_arithmetic", "folder", "paper", 0)
    assert [m.role for m in plan.models].count("base") == 1
    assert plan.models[plan.base].role == "base"
    assert plan.bytes_to_read > 0
    assert {t.action for t in plan.tensors} <= {"compute", "copy", "compare"}
    assert plan.defaults["weight"] == [1, 1]
    assert "seed" not in plan.defaults
    assert json.dumps(plan.to_dict())
    assert not (here / "out").exists()
    assert plan.run().output == plan.output
    assert (here / "out" / "config.json").exists()


def test_defaults_leave_out_what_was_given(trio):
    base, a, b = trio
    plan = rlmerge.plan([a, b], base=base, method="dare", density=0.9, parameters={"lambda": 0.5})
    assert "density" not in plan.defaults
    assert "lambda" not in plan.defaults
    assert plan.defaults["seed"] == 0
    assert plan.parameters["lambda"] == 0.5


def test_base_rule_is_noted(trio, here):
    plan = rlmerge.plan(trio, method="ties")
    assert plan.models[plan.base].path.name == "base"
    assert any(note.startswith("base: ") for note in plan.notes)


def test_base_rule_and_a_list_for_all_models(trio):
    with pytest.raises(rlmerge.RecipeError) as caught:
        rlmerge.plan(trio, method="ties", weight=[1, 1, 1])
    assert caught.value.code == "parameter_count"


def test_recipe_mapping_with_overrides(trio, here):
    base, a, b = trio
    recipe = {"method": "linear", "models": [a, b], "seed": 5, "dtype": "f16", "output": "x.safetensors"}
    plan = rlmerge.plan(recipe=recipe, dtype="bf16", output="y.safetensors")
    assert (plan.dtype, plan.seed, str(plan.output), plan.output_kind) == ("BF16", 5, "y.safetensors", "file")


def test_mergekit_recipe(trio, here):
    base, a, b = trio
    recipe = {
        "merge_method": "ties",
        "base_model": base,
        "models": [{"model": m, "parameters": {"weight": 0.5, "density": 0.5}} for m in (a, b)],
        "dtype": "float32",
    }
    plan = rlmerge.plan(recipe=recipe)
    assert plan.compat == "mergekit"
    assert len(plan.models) == 3
    assert any("compat: mergekit" in note for note in plan.notes)
    paper = rlmerge.plan(recipe=recipe, compat="paper")
    assert paper.compat == "paper"
    assert not any("compat: mergekit" in note for note in paper.notes)
    assert plan.run().output.name == "merged"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"models": []}, "model_count"),
        ({}, "model_count"),
        ({"models": "a"}, "recipe_invalid"),
        ({"models": ["a"]}, "unknown_method"),
        ({"models": ["a"], "method": "tise"}, "unknown_method"),
        ({"models": ["a"], "method": "linear", "recipe": {}}, "recipe_invalid"),
        ({"recipe": {"method": "linear", "models": ["a"]}, "weight": 1}, "recipe_invalid"),
        ({"models": ["a"], "method": "linear", "dtype": "int"}, "recipe_invalid"),
        ({"models": ["a"], "method": "linear", "seed": -1}, "parameter_out_of_range"),
        ({"models": ["a"], "method": "linear", "threads": 0}, "parameter_out_of_range"),
        ({"models": ["a"], "method": "linear", "compat": "other"}, "recipe_invalid"),
        ({"models": ["a"], "method": "linear", "weight": float("nan")}, "parameter_out_of_range"),
        ({"models": ["a"], "method": "linear", "weight": 1, "parameters": {"weight": 1}}, "recipe_invalid"),
    ],
)
def test_wrong_requests(arguments, code, here):
    with pytest.raises(rlmerge.RecipeError) as caught:
        rlmerge.plan(**arguments)
    assert caught.value.code == code
    assert caught.value.exit_code == 2


def test_wrong_parameters_are_judged_by_the_core(trio):
    base, a, b = trio
    for parameters, code in (
        ({"densty": 0.2}, "unknown_parameter"),
        ({"density": 1.5}, "parameter_out_of_range"),
        ({"density": 0}, "parameter_out_of_range"),
        ({"density": [0.1, 0.2, 0.3]}, "parameter_count"),
    ):
        with pytest.raises(rlmerge.RecipeError) as caught:
            rlmerge.plan([a, b], base=base, method="ties", parameters=parameters)
        assert caught.value.code == code


def test_missing_model(here):
    with pytest.raises(FileNotFoundError) as caught:
        rlmerge.plan(["nosuch.safetensors"], method="linear")
    assert isinstance(caught.value, rlmerge.CheckpointError)
    assert caught.value.exit_code == 3
    with pytest.raises(FileNotFoundError):
        rlmerge.inspect("nosuch")


def test_existing_output(trio, here):
    (here / "merged").mkdir()
    with pytest.raises(FileExistsError):
        rlmerge.plan(trio[1:], method="linear").check()
    rlmerge.plan(trio[1:], method="linear", force=True).check()
    with pytest.raises(FileExistsError) as caught:
        rlmerge.merge(trio[1:], method="linear")
    assert isinstance(caught.value, rlmerge.OutputError)
    assert caught.value.exit_code == 6


def test_progress_that_raises_cancels(trio, here):
    class Stop(Exception):
        pass

    calls = []

    def stop(progress):
        calls.append(progress)
        raise Stop

    with pytest.raises(Stop):
        rlmerge.merge(trio[1:], method="linear", progress=stop)
    (call,) = calls
    assert set(call) == {"bytes_done", "bytes_total", "tensors_done", "tensors_total"}
    # So small a merge may be over at the first call.
    assert call["tensors_done"] == call["tensors_total"] or not (here / "merged").exists()
    assert not list(here.glob(".*rlmerge*"))


def test_inspect(trio):
    found = rlmerge.inspect(trio[0])
    assert found.kind == "folder"
    assert found.parameters == 54
    assert {t.name: t.shape for t in found.tensors} == {"layer.weight": (8, 6), "norm.weight": (6,)}
    assert found.config["architecture"] == "LlamaForCausalLM"
    assert json.dumps(found.to_dict())


@pytest.mark.parametrize("durability", ["full", "file", "none"])
def test_durability_changes_no_byte_and_is_in_the_report(trio, here, durability):
    base, a, b = trio
    rlmerge.merge([a, b], base=base, method="ties", output="default")
    report = rlmerge.merge([a, b], base=base, method="ties", output="out", durability=durability)
    assert report.raw["plan"]["durability"] == durability
    assert json.loads((here / "out" / "rlmerge.json").read_text())["plan"]["durability"] == durability
    for name in ("model.safetensors", "README.md", "config.json"):
        assert (here / "out" / name).read_bytes() == (here / "default" / name).read_bytes(), name
    # The stage is gone and nothing is replaced unasked, whatever is synced.
    assert {path.name for path in here.iterdir() if "rlmerge" in path.name} == set()
    with pytest.raises(rlmerge.OutputError):
        rlmerge.merge([a, b], base=base, method="ties", output="out", durability=durability)


def test_durability_of_a_recipe_gives_way_to_the_argument(trio):
    base, a, b = trio
    recipe = {"method": "ties", "base": base, "models": [a, b], "durability": "none"}
    assert rlmerge.plan(recipe=recipe).raw["durability"] == "none"
    assert rlmerge.plan(recipe=recipe, durability="file").raw["durability"] == "file"
    with pytest.raises(rlmerge.RecipeError, match="durability"):
        rlmerge.plan(recipe={**recipe, "durability": "most"})
