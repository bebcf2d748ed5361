"""`rlmerge conflict-report` and `rlmerge diff` as a user sees them."""

from __future__ import annotations

import csv
import json

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
