"""What a folder output takes over from its donor, and its model card."""

from __future__ import annotations

import json

import pytest
from ruamel.yaml import YAML

from rlmerge import api
from rlmerge._card import model_card
from rlmerge.errors import CheckpointError
from rlmerge.recipe import load_recipe
from rlmerge.sidecars import COPIED, collect_sidecars


@pytest.fixture
def donor(tmp_path):
    folder = tmp_path / "donor"
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"torch_dtype": "float32", "rms_norm_eps": 1e-05, "tie_word_embeddings": true}'
    )
    for name in (
        *COPIED,
        "modeling_x.py",
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "optimizer.pt",
        "adapter_config.json",
    ):
        (folder / name).write_text("x")
    return folder


def test_what_is_copied_and_what_is_not(donor):
    sidecars, notes = collect_sidecars(donor, dtype=None, tie=None)
    names = [name for name, _ in sidecars]
    assert names == ["config.json", *COPIED]
    assert all(content == str(donor / name) for name, content in sidecars)
    assert notes == []


def test_config_follows_the_output(donor):
    sidecars, _ = collect_sidecars(donor, dtype="BF16", tie=False)
    config = json.loads(dict(sidecars)["config.json"])
    assert config == {"torch_dtype": "bfloat16", "rms_norm_eps": 1e-05, "tie_word_embeddings": False}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        ({}, {"torch_dtype": "bfloat16"}),
        (
            {
                "torch_dtype": "float32",
                "text_config": {"torch_dtype": "float32"},
                "quantization_config": {"dtype": "x"},
            },
            {
                "torch_dtype": "bfloat16",
                "text_config": {"torch_dtype": "bfloat16"},
                "quantization_config": {"dtype": "x"},
            },
        ),
    ],
)
def test_dtype_keys(donor, before, after):
    (donor / "config.json").write_text(json.dumps(before))
    sidecars, _ = collect_sidecars(donor, dtype="BF16", tie=None)
    assert json.loads(dict(sidecars)["config.json"]) == after


def test_tied_embeddings_of_a_multi_modal_config(donor):
    (donor / "config.json").write_text(json.dumps({"text_config": {"tie_word_embeddings": True}}))
    sidecars, _ = collect_sidecars(donor, dtype=None, tie=False)
    assert json.loads(dict(sidecars)["config.json"]) == {"text_config": {"tie_word_embeddings": False}}


def test_code_is_noted_and_not_copied(donor):
    (donor / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "modeling_x.X"}}))
    sidecars, notes = collect_sidecars(donor, dtype=None, tie=None)
    assert "auto_map" in notes[0]
    assert not any(name.endswith(".py") for name, _ in sidecars)


@pytest.mark.parametrize("text", ["[", "3", "[" * 100_000])
def test_damaged_config(donor, text):
    (donor / "config.json").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        collect_sidecars(donor, dtype=None, tie=None)
    assert caught.value.code == "bad_config"


def test_a_file_gives_nothing(tmp_path):
    (tmp_path / "a.safetensors").write_text("")
    assert collect_sidecars(tmp_path / "a.safetensors", dtype="BF16", tie=True) == ([], [])


HOSTILE = "a\n---\n```\n`x`\x1b[31m"


def card(**keys):
    given = {
        "method": api.method("ties"),
        "version": "1.2.3",
        "recipe": {"method": "ties", "models": [{"path": "org/math"}, {"path": HOSTILE}], "base": "../base"},
        "models": [("base", "../base"), ("expert", "org/math"), ("expert", HOSTILE)],
        "has_config": True,
    }
    return model_card(**{**given, **keys})


def test_card_front_matter_and_recipe(tmp_path):
    text = card()
    assert text == card()
    _, front, body = text.split("---\n", 2)
    data = YAML(typ="safe", pure=True).load(front)
    assert data["base_model"] == ["base", "org/math", HOSTILE]
    assert data["tags"] == ["merge", "rlmerge"]
    assert data["library_name"] == "transformers"
    assert "\x1b" not in text
    fence = next(line for line in body.splitlines() if line.endswith("yaml") and line.startswith("`"))
    recipe = body.split(fence + "\n")[1].split("\n" + fence.removesuffix("yaml") + "\n")[0]
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    again = load_recipe(path)
    assert [m.path for m in again.models] == ["org/math", HOSTILE]
    assert again.base == "../base"


def test_card_without_config_names_no_library():
    assert "library_name" not in card(has_config=False)
