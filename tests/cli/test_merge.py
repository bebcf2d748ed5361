"""`rlmerge merge`, in all its output modes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file


def test_two_files_and_a_method_are_enough(rlmerge, here):
    run = rlmerge("merge", "a.safetensors", "b.safetensors", "--method", "dare")
    assert run.code == 0
    assert run.out == "merged.safetensors\n"
    assert "base: a.safetensors" in run.err
    assert "--base" in run.err
    assert "density 0.5" in run.err
    assert "seed 0" in run.err
    assert "dare_linear's defaults" in run.err
    assert "merged 2 tensors" in run.err
    assert (here / "merged.safetensors").is_file()


def test_folders_give_a_folder(rlmerge, here):
    run = rlmerge("merge", "a", "b", "--base", "base", "--method", "ties", "--dtype", "bf16")
    assert run.code == 0
    assert run.out == "merged\n"
    assert {p.name for p in (here / "merged").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "rlmerge.json",
        "tokenizer.json",
    }
    assert json.loads((here / "merged" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_all_modes_of_a_merge(rlmerge):
    human = rlmerge("merge", "a", "b", "-m", "linear", "-o", "one")
    assert (human.code, human.out) == (0, "one\n")
    assert "using weight 1 each" in human.err
    quiet = rlmerge("merge", "a", "b", "-m", "linear", "-o", "two", "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "two\n", "")
    data = rlmerge("merge", "a", "b", "-m", "linear", "-o", "three", "--json")
    assert (data.code, data.err) == (0, "")
    assert data.json["schema"] == "rlmerge.report/1"
    assert data.json["totals"]["tensors"] == 2
    data = rlmerge("merge", "base", "a", "-m", "ties", "-o", "four", "--json")
    assert any(note.startswith("base: base ") for note in data.json["plan"]["notes"])


def test_durability(rlmerge):
    data = rlmerge("merge", "a", "b", "-m", "linear", "-o", "out", "--durability", "none", "--json")
    assert (data.code, data.json["plan"]["durability"]) == (0, "none")
    wrong = rlmerge("merge", "a", "b", "-m", "linear", "-o", "other", "--durability", "some")
    assert wrong.code == 2
    assert "none of full, file, none" in wrong.err


def test_all_modes_of_a_dry_run(rlmerge, here):
    arguments = ("merge", "a", "b", "--base", "base", "-m", "ties", "--density", "0.3,0.2", "-o", "out", "--dry-run")
    human = rlmerge(*arguments)
    assert human.code == 0
    for word in (
        "model.norm.weight",
        "density=0.3",
        "density=0.2",
        "to read",
        "to write",
        "memory",
        "model.safetensors",
    ):
        assert word in human.out
    quiet = rlmerge(*arguments, "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "out\n", "")
    data = rlmerge(*arguments, "--json")
    assert (data.code, data.err) == (0, "")
    assert data.json["schema"] == "rlmerge.plan/1"
    assert [t["name"] for t in data.json["tensor_list"]]
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    "weights", [["--weight", "0.75", "--weight", "0.25"], ["--weight", "0.75,0.25"], ["--param", "weight=0.75,0.25"]]
)
def test_one_value_for_each_expert(rlmerge, here, weights):
    run = rlmerge("merge", "a.safetensors", "b.safetensors", "-m", "linear", *weights)
    assert run.code == 0
    a, b, out = (load_file(here / f"{name}.safetensors") for name in ("a", "b", "merged"))
    for name in a:
        np.testing.assert_allclose(out[name], 0.75 * a[name].astype(float) + 0.25 * b[name], rtol=1e-6)
    assert "weight" not in run.err


@pytest.mark.parametrize(
    ("flags", "given"),
    [
        (["--no-normalize"], {"normalize": False}),
        (["--param", "normalize=false"], {"normalize": False}),
        (["--normalize"], {"normalize": True}),
    ],
)
def test_flags_reach_the_plan(rlmerge, flags, given):
    plan = rlmerge("merge", "a", "b", "-m", "linear", "--dry-run", "--json", *flags).json
    assert {name: plan["parameters"][name] for name in given} == given


def test_numbers_reach_the_plan(rlmerge):
    flags = ["--lambda", "-0.5", "--density", ".25", "--weight", "1e-1", "--seed", "18446744073709551615"]
    plan = rlmerge("merge", "base", "a", "b", "-m", "dare_linear", "--dry-run", "--json", *flags).json
    assert plan["parameters"]["lambda"] == -0.5
    assert plan["seed"] == 2**64 - 1
    assert [m["parameters"]["weight"] for m in plan["models"] if m["role"] == "expert"] == [0.1, 0.1]


def test_shard_size(rlmerge, here):
    assert rlmerge("merge", "a", "b", "-m", "linear", "--shard-size", "300B", "-o", "s").code == 0
    assert (here / "s" / "model.safetensors.index.json").is_file()
    assert len(list((here / "s").glob("model-*-of-*.safetensors"))) == 2


def test_recipe_and_what_overrides_it(rlmerge, here):
    (here / "r.yaml").write_text("method: linear\nmodels: [a, b]\nparameters: {weight: [3, 1]}\noutput: x\nseed: 1\n")
    assert rlmerge("merge", "r.yaml").out == "x\n"
    run = rlmerge("merge", "r.yaml", "-o", "y.safetensors", "--dtype", "fp16", "--seed", "2", "--dry-run", "--json")
    assert run.json["output"]["path"].endswith("y.safetensors")
    assert (run.json["dtype"], run.json["seed"]) == ("F16", 2)
    for flags in (["-m", "ties"], ["--base", "base"], ["--weight", "1"]):
        run = rlmerge("merge", "r.yaml", *flags)
        assert run.code == 2
        assert "recipe" in run.err
    run = rlmerge("merge", "r.yaml", "a")
    assert run.code == 2


def test_mergekit_recipe(rlmerge, here):
    (here / "m.yaml").write_text(
        "merge_method: ties\nbase_model: base\nmodels:\n"
        "  - model: base\n"
        "  - model: a\n    parameters: {weight: 0.5, density: 0.5}\n"
        "  - model: b\n    parameters: {weight: 0.5, density: 0.5}\n"
        "parameters: {normalize: true, int8_mask: true}\ndtype: float16\n"
    )
    run = rlmerge("merge", "m.yaml", "-o", "out")
    assert run.code == 0
    assert "compat: mergekit" in run.err
    assert "int8_mask" in run.err
    assert json.loads((here / "out" / "config.json").read_text())["torch_dtype"] == "float16"


def test_force(rlmerge, here):
    assert rlmerge("merge", "a", "b", "-m", "linear").code == 0
    assert rlmerge("merge", "a", "b", "-m", "linear").code == 6
    assert rlmerge("merge", "a", "b", "-m", "linear", "--dry-run").code == 6
    assert rlmerge("merge", "a", "b", "-m", "linear", "--force").code == 0


def test_nothing_is_left_beside_the_output(rlmerge, here):
    before = {p.name for p in here.iterdir()}
    assert rlmerge("merge", "a", "b", "-m", "linear", "-o", "out").code == 0
    assert {p.name for p in here.iterdir()} - before == {"out"}
