"""`rlmerge inspect` and `rlmerge methods`, in all modes."""

from __future__ import annotations

import numpy as np
import pytest

import rlmerge as package
from tests import adapters


def test_inspect_in_all_modes(rlmerge):
    human = rlmerge("inspect", "a")
    assert (human.code, human.err) == (0, "")
    for word in ("LlamaForCausalLM", "model.norm.weight", "F32", "16 x 8", "136", "a/model.safetensors"):
        assert word in human.out
    quiet = rlmerge("inspect", "a", "--quiet")
    assert sorted(quiet.out.split()) == ["model.embed.weight", "model.norm.weight"]
    data = rlmerge("inspect", "a", "--json")
    assert data.json["schema"] == "rlmerge.inspect/1"
    assert data.json["parameters"] == 136
    assert rlmerge("inspect", "a.safetensors").code == 0
    assert rlmerge("inspect", "nosuch").code == 3


def test_methods_in_all_modes(rlmerge):
    names = [m.name for m in package.methods()]
    human = rlmerge("methods", COLUMNS="80")
    assert (human.code, human.err) == (0, "")
    for name in names:
        assert name in human.out
    assert max(map(len, human.out.splitlines())) <= 80
    assert rlmerge("methods", "--quiet").out.split() == names
    assert [m["name"] for m in rlmerge("methods", "--json").json] == names


@pytest.mark.parametrize("name", [m.name for m in package.methods()])
def test_page_of_a_method(rlmerge, name):
    method = next(m for m in package.methods() if m.name == name)
    human = rlmerge("methods", name.replace("_", "-"), COLUMNS="80")
    assert human.code == 0
    for parameter in method.parameters:
        assert parameter.name in human.out
    if method.paper_url:
        assert method.paper_url in human.out
    assert rlmerge("methods", name, "--json").json["name"] == name
    assert rlmerge("methods", name, "--quiet").out == name + "\n"


def test_misspelt_method(rlmerge):
    run = rlmerge("methods", "sler")
    assert run.code == 2
    assert "`slerp`" in run.err


def test_inspect_an_adapter(rlmerge, tmp_path):
    tensors = adapters.lora({"q_proj": (16, 8)}, 4, np.random.default_rng(0))
    path = adapters.write(tmp_path / "adapter", tensors, lora_alpha=6, target_modules=["q_proj"])
    run = rlmerge("inspect", str(path), COLUMNS="100")
    assert (run.code, run.err) == (0, "")
    for words in ("(adapter)", "LORA, rank 4, alpha 6", "1.5", "q_proj.lora_A.weight"):
        assert words in run.out
    made = rlmerge("inspect", str(path), "--json").json
    assert (made["kind"], made["adapter"]["scale"], made["adapter"]["dora"]) == ("adapter", 1.5, False)
    assert made["parameters"] == 4 * (16 + 8)
