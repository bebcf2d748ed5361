"""Which model is the base when nobody says so, and what a name stands for."""

from __future__ import annotations

import builtins
import os

import pytest

from rlmerge.errors import CheckpointError, RecipeError
from rlmerge.sources import Source, choose_base, resolve, resolve_model


def choice(*models):
    found = choose_base([Source(str(m)) for m in models])
    return found.base.name, found.experts


def test_first_model_when_nothing_is_named(write_model):
    a, b = write_model("a.safetensors"), write_model("b.safetensors")
    assert choice(a, b) == (str(a), [1])
    assert "first model" in choose_base([Source(str(a)), Source(str(b))]).note


@pytest.mark.parametrize("how", ["config", "card", "card list", "metadata"])
def test_base_named_in_the_metadata_and_beside_the_models(write_model, how):
    base = write_model("org-base", config={})
    kept = {
        "config": {"config": {"_name_or_path": "some/org-base"}},
        "card": {"card": "---\nlicense: mit\nbase_model: some/org-base\n---\n# text\n"},
        "card list": {"card": "---\nbase_model:\n- some/org-base\n---\n"},
        "metadata": {"meta": {"base_model": "org-base"}},
    }[how]
    a, b = write_model("a", **kept), write_model("b", **kept)
    found = choose_base([Source(str(a)), Source(str(b))])
    assert os.path.realpath(found.base.path) == str(base)
    assert found.experts == [0, 1]
    assert "--base" in found.note


def test_base_named_relative_to_the_working_directory(write_model, here):
    write_model("hub/base", config={})
    named = {"config": {"_name_or_path": "hub/base"}}
    write_model("x/a", **named)
    write_model("y/b", **named)
    assert choice("x/a", "y/b") == ("hub/base", [0, 1])


def test_named_base_among_the_models(write_model):
    base = write_model("base", config={"_name_or_path": "base"})
    named = {"config": {"_name_or_path": "base"}}
    a, b = write_model("a", **named), write_model("b", **named)
    assert choice(a, b, base) == (str(base), [0, 1])
    assert choice(base, a, b) == (str(base), [1, 2])


def test_experts_that_disagree_or_are_silent(write_model):
    write_model("one", config={})
    write_model("two", config={})
    a = write_model("a", config={"_name_or_path": "one"})
    b = write_model("b", config={"_name_or_path": "two"})
    c = write_model("c", config={})
    assert choice(a, b) == (str(a), [1])
    assert choice(a, c) == (str(a), [1])


def test_named_base_that_is_not_at_hand(write_model):
    named = {"config": {"_name_or_path": "far/away"}}
    a, b = write_model("a", **named), write_model("b", **named)
    assert choice(a, b) == (str(a), [1])


def test_a_folder_without_weights_is_no_base(write_model, tmp_path):
    (tmp_path / "base").mkdir()
    named = {"config": {"_name_or_path": "base"}}
    a, b = write_model("a", **named), write_model("b", **named)
    assert choice(a, b) == (str(a), [1])


@pytest.mark.parametrize("name", ["", ".", "..", "../..", "/", "\0", "x" * 5000, 7, None, ["a"], {"a": 1}])
def test_odd_names_in_the_metadata(write_model, name):
    a, b = write_model("a", config={"_name_or_path": name}), write_model("b", config={"_name_or_path": name})
    assert choice(a, b) == (str(a), [1])


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, "3", "null"])
def test_damaged_config_is_left_to_the_plan(write_model, text):
    a, b = write_model("a"), write_model("b")
    (a / "config.json").write_text(text)
    assert choice(a, b) == (str(a), [1])


def test_damaged_cards(write_model):
    a = write_model("a", card="---\nbase_model: !!x [\n---\n")
    b = write_model("b", card="---\nbase_model: &a [*a]\n---\n")
    assert choice(a, b) == (str(a), [1])


def test_paths_stay_as_they_are(write_model, here):
    write_model("org/name")
    assert resolve("org/name") == "org/name"
    assert resolve("no-such-file") == "no-such-file"
    assert resolve("./no/such") == "./no/such"
    with pytest.raises(RecipeError):
        resolve("a\udcff")


def test_hub_id_without_the_extra(here, monkeypatch):
    real = builtins.__import__

    def no_hub(name, *args, **kwargs):
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_hub)
    with pytest.raises(CheckpointError) as caught:
        resolve("org/name")
    assert isinstance(caught.value, FileNotFoundError)
    assert "rlmerge[hub]" in caught.value.hint


def test_hub_id_with_the_extra(here, monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision))
        assert not any(pattern.endswith(".py") for pattern in allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert resolve("org/name@v1") == str(tmp_path)
    assert asked == [("org/name", "v1")]

    def fail(*_args, **_kwargs):
        raise ConnectionError("no network\nmany lines")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match="no network$"):
        resolve("org/name")


def test_a_model_with_an_adapter_is_split_where_both_halves_are(write_model, here):
    write_model("a+b", config={})
    write_model("c+d", config={})
    assert resolve_model("a+b") == Source("a+b")
    assert resolve_model("a+b+c+d") == Source("a+b", "c+d")
    assert resolve_model("a+b+c+d").name == "a+b+c+d"
    assert resolve_model("gone+c+d") == Source("gone", "c+d")
    assert resolve_model("a+b+") == Source("a", "b+")
    with pytest.raises(CheckpointError):
        resolve_model("+a+b")


def test_the_base_is_what_the_adapters_change(write_model):
    base, expert = str(write_model("base", config={})), str(write_model("expert", config={}))
    found = choose_base([Source(base, "x"), Source(expert), Source(base, "y"), Source(base)])
    assert (found.base, found.experts) == (Source(base), [0, 1, 2])
    assert "what the adapters change" in found.note
