"""`rlmerge expand`, in all modes."""

from __future__ import annotations

import json

import pytest
from safetensors.numpy import load_file


@pytest.fixture
def merged(rlmerge):
    """A merge by EMR of the folders a and b."""
    run = rlmerge("merge", "a", "b", "--base", "base", "-m", "emr", "-o", "merged")
    assert run.code == 0, run.err
    return "merged"


def test_expand_in_all_modes(rlmerge, here, merged):
    human = rlmerge("expand", merged, "--task", "a")
    assert (human.code, human.out) == (0, "merged-a\n")
    assert "rebuilt 2 tensors" in human.err
    assert {p.name for p in (here / "merged-a").iterdir()} == {
        "README.md", "config.json", "model.safetensors", "rlmerge.json", "tokenizer.json"
    }  # fmt: skip
    quiet = rlmerge("expand", merged, "-t", "a", "-o", "a-again.safetensors", "--quiet", "--threads", "1")
    assert (quiet.code, quiet.out, quiet.err) == (0, "a-again.safetensors\n", "")
    data = rlmerge("expand", merged, "-t", "b", "-o", "b-again", "--json", "--base", "base")
    assert data.code == 0
    assert data.json["plan"]["method"] == "expand"
    assert data.json["plan"]["parameters"]["task"] == "b"
    one, two = load_file(here / "merged-a" / "model.safetensors"), load_file(here / "a-again.safetensors")
    assert all((one[name] == two[name]).all() for name in one)
    scales = [t["scale"] for t in json.loads((here / "merged" / "rlmerge.json").read_text())["masks"]["tasks"]]
    assert data.json["plan"]["parameters"]["scale"] == scales[1]
    assert all(0 < s < 1.5 for s in scales)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["merged", "--task", "c"], 2, "`a`, `b`"),
        (["merged"], 2, "--task"),
        (["a", "--task", "a"], 3, "rlmerge.json"),
        (["nosuch", "--task", "a"], 3, "nosuch"),
        (["merged", "--task", "a", "--base", "b"], 8, "--base"),
        (["merged", "--task", "a", "-o", "base"], 6, "base"),
        (["merged", "--task", "a", "-o", "merged/inside"], 6, "inside"),
        (["merged", "--task", "a", "--threads", "x"], 2, "threads"),
        (["merged", "--task", "a", "--io", "x"], 2, "pread"),
    ],
)
def test_exit_codes(rlmerge, here, merged, arguments, code, words):
    before = sorted(p.name for p in here.iterdir())
    run = rlmerge("expand", *arguments)
    assert run.code == code, run.err
    assert words in run.err
    assert run.out == ""
    assert "Traceback" not in run.err
    assert sorted(p.name for p in here.iterdir()) == before
