"""`rlmerge conflict-report` and `rlmerge diff` as a user sees them."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest


def test_all_modes(rlmerge):
    human = rlmerge("conflict-report", "a", "b", "--base", "base")
    assert human.code == 0, human.err
    for word in ("COSINE (chance)", "a × b", "WORST LAYERS", "advice", "dilution"):
        assert word in human.out
    assert "read" in human.err
    data = rlmerge("conflict-report", "a", "b", "--base", "base", "--json")
    assert (data.code, data.err) == (0, "")
    assert data.json["schema"] == "rlmerge.conflicts/1"
    assert data.json["experts"] == ["a", "b"]
    assert data.json["advice"]
    quiet = rlmerge("conflict-report", "a", "b", "--base", "base", "--quiet")
    assert quiet.err == ""
    assert len(quiet.out.splitlines()) == len(data.json["advice"])
    text = rlmerge("conflict-report", "a", "b", "--base", "base", "--markdown")
    assert text.out.startswith("# Conflict report")


def test_spectral(rlmerge):
    run = rlmerge("conflict-report", "a", "b", "--base", "base", "--spectral")
    assert run.code == 0, run.err
    for word in ("Spectra", "STABLE RANK", "ABOVE NOISE", "Directions of pairs", "INTERFERENCE"):
        assert word in run.out
    data = rlmerge("conflict-report", "a", "b", "--base", "base", "--spectral", "--directions", "8", "--json").json
    assert (data["settings"]["spectral"], data["settings"]["directions"]) == (True, 8)
    assert {"matrices", "experts", "pairs", "together"} == set(data["model"]["spectral"])
    assert any("spectrum" in tensor for tensor in data["tensors"])
    plain = rlmerge("conflict-report", "a", "b", "--base", "base", "--json").json
    assert "spectral" not in plain["model"]
    for wrong in ("0", "129", "many"):
        assert rlmerge("conflict-report", "a", "b", "--base", "base", "--spectral", "--directions", wrong).code == 2


def test_base_by_rule_and_one_expert(rlmerge):
    run = rlmerge("conflict-report", "base", "a")
    assert run.code == 0
    assert "base: base (the first model" in run.err
    assert rlmerge("conflict-report", "a").code == 2


def test_groups(rlmerge):
    run = rlmerge("conflict-report", "--base", "base", "--group", "x=a,b", "--group", "y=a.safetensors,b.safetensors")
    assert run.code == 0, run.err
    assert "y beside x" in run.out
    assert "too few to say" in run.out
    for bad in (["x"], ["x="], ["x=a", "x=b"], ["x=a"]):
        arguments = [part for text in bad for part in ("--group", text)]
        assert rlmerge("conflict-report", "--base", "base", *arguments).code == 2


def test_files(rlmerge, here):
    run = rlmerge("conflict-report", "a", "b", "--base", "base", "--html", "out.html", "--csv", "tables")
    assert run.code == 0, run.err
    page = (here / "out.html").read_text()
    assert page.startswith("<!doctype html>") and "a × b" in page
    assert not list(here.glob(".out.html*"))
    with (here / "tables" / "pairs.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["a"], row["b"]) == ("a", "b")
    assert {p.name for p in (here / "tables").iterdir()} >= {"tensors-experts.csv", "layers-pairs.csv"}
    again = rlmerge("conflict-report", "a", "b", "--base", "base", "--html", "out.html")
    assert (again.code, "--force" in again.err) == (6, True)
    assert rlmerge("conflict-report", "a", "b", "--base", "base", "--html", "out.html", "--force").code == 0


@pytest.mark.parametrize(
    "arguments", [["--density", "0"], ["--density", "x"], ["--threads", "x"], ["--io", "x"], ["--low", "2"]]
)
def test_refusals(rlmerge, arguments):
    assert rlmerge("conflict-report", "a", "b", "--base", "base", *arguments).code == 2


def test_diff(rlmerge):
    run = rlmerge("diff", "base", "a")
    assert run.code == 0, run.err
    for word in ("tensors that differ", "2 of 2", "CHANGE", "model.embed.weight["):
        assert word in run.out
    data = rlmerge("diff", "base", "a", "--json").json
    assert data["schema"] == "rlmerge.diff/1"
    assert (data["equal"], len(data["different"])) == (False, 2)
    assert abs(data["largest"][0]["delta"]) == pytest.approx(data["model"]["max"])
    same = rlmerge("diff", "a", "a.safetensors")
    assert "equal: all 2 tensors hold the same bytes" in same.out
    assert json.loads(rlmerge("diff", "a", "a.safetensors", "--json").out)["equal"] is True
    assert rlmerge("diff", "a", "a.safetensors", "--quiet").out == ""


def test_diff_of_models_with_other_tensors(rlmerge, here):
    from tests.tensorfile import write

    write(here / "more.safetensors", {**_small(), "extra": np.ones((2, 3), np.float32)})
    write(here / "less.safetensors", {**_small(), "same": np.ones((4,), np.float32)})
    run = rlmerge("diff", "more.safetensors", "less.safetensors")
    assert run.code == 0, run.err
    for line in ("only in A", "extra (F32 [2, 3])", "only in B", "same (F32 [4])", "0 of 1"):
        assert line in run.out
    data = rlmerge("diff", "more.safetensors", "less.safetensors", "--json").json
    assert data["equal"] is False
    assert data["different"] == []
    assert data["unmatched"] == [
        {"name": "extra", "a": {"dtype": "F32", "shape": [2, 3]}, "b": None},
        {"name": "same", "a": None, "b": {"dtype": "F32", "shape": [4]}},
    ]
    assert rlmerge("diff", "more.safetensors", "less.safetensors", "--quiet").out.split() == ["extra", "same"]
    write(here / "other.safetensors", {"w": np.ones((5,), np.float32), "same": np.ones((4,), np.float32)})
    run = rlmerge("diff", "less.safetensors", "other.safetensors")
    assert "not comparable" in run.out and "w (F32 [2, 2], F32 [5])" in run.out
    write(here / "apart.safetensors", {"z": np.ones((5,), np.float32)})
    assert rlmerge("diff", "less.safetensors", "apart.safetensors").code == 4


def _small():
    return {"w": np.ones((2, 2), np.float32)}


def test_merge_with_a_report(rlmerge, here):
    merge = ("merge", "a", "b", "--base", "base", "--method", "ties", "-o", "m.safetensors")
    assert rlmerge(*merge, "--report", "out.pdf").code == 2
    run = rlmerge(*merge, "--report", "out.html")
    assert run.code == 0, run.err
    assert (here / "out.html").read_text().startswith("<!doctype html>")
    assert rlmerge(*merge, "--report", "out.html").code == 6
    again = rlmerge(*merge, "--report", "out.json", "--force")
    assert again.code == 0
    assert json.loads((here / "out.json").read_text())["schema"] == "rlmerge.conflicts/1"
