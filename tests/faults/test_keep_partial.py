"""What stays of a merge that failed, and what is said of it."""

import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import rlmerge
from tests import tensorfile
from tests.faults.merges import Merge, remove, write_models
from tests.faults.test_writer_errors import traced

MODELS = ["a.safetensors", "b.safetensors"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {f"t{i}": np.full(64, i, np.float32) for i in range(12)}
    for name in MODELS:
        tensorfile.write(tmp_path / name, values | {"t9": np.array([1.0, np.nan], np.float32)})
    return tmp_path


def stages(folder):
    return sorted(folder.glob(".*.rlmerge-*"))


def merge(**more):
    return rlmerge.merge(MODELS, method="linear", output="out", **more)


def command(*more):
    whole = [sys.executable, "-m", "rlmerge", "merge", *MODELS, "-m", "linear", "-o", "out", *more]
    return subprocess.run(whole, capture_output=True, text=True, env=os.environ | {"COLUMNS": "1000"})


@pytest.mark.parametrize("asked", [{}, {"keep_partial": True}, {"resume": True}])
def test_a_strict_merge_keeps_what_was_asked_for(here, asked):
    with pytest.raises(rlmerge.NumericsError) as caught:
        merge(strict=True, **asked)
    error = caught.value
    if not asked:
        assert stages(here) == []
        assert error.partial is None
        assert error.to_dict()["partial"] is None
        return
    (stage,) = stages(here)
    assert error.partial.resolve() == stage
    assert "resume=True" in error.__notes__[0]
    again = pickle.loads(pickle.dumps(error))
    assert (again.partial, copy.copy(error).partial) == (error.partial, error.partial)
    # `strict` changes no byte, so that nothing is left to do.
    assert merge(resume=True).tensors_reused == 12
    assert stages(here) == []


def test_an_interrupted_merge_says_where(tmp_path):
    write_models(tmp_path, 30)
    merge = Merge(tmp_path)
    for _ in range(30):
        process = merge.start("--keep-partial")
        while process.poll() is None and merge.records() < 2:
            time.sleep(0.0005)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
        if process.returncode == 143:
            break
        remove(merge.output)
    (stage,) = merge.stages()
    error = json.loads(out)["error"]
    assert (error["code"], error["partial"]) == ("cancelled", stage.name)
    run = merge.run("--resume")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["tensors_reused"] >= 2
    assert merge.stages() == []


def test_an_error_that_stays_the_same_keeps_it_only_when_told_to(here):
    for name in MODELS:
        tensorfile.write(here / name, {f"t{i}": np.full(64, 70_000, np.float32) for i in range(12)})
    for asked in ({}, {"resume": True}, {"keep_partial": True}):
        with pytest.raises(rlmerge.NumericsError) as caught:
            merge(dtype="float16", on_overflow="error", **asked)
        assert caught.value.code == "overflow"
        assert bool(stages(here)) == (caught.value.partial is not None) == ("keep_partial" in asked)


def test_the_command_names_the_stage_and_the_way_on(here):
    run = command("--strict", "--keep-partial")
    assert run.returncode == 7
    (stage,) = stages(here)
    assert stage.name in run.stderr
    assert "--resume goes on" in run.stderr
    assert "rlmerge clean" in run.stderr
    error = json.loads(command("--strict", "--resume", "--json").stdout)["error"]
    assert stages(here) == [here / Path(error["partial"]).name]
    again = command("--resume", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["tensors_reused"] == 12
    assert stages(here) == []


@pytest.mark.parametrize("asked", [(), ("--keep-partial",)])
def test_a_finished_merge_is_kept_when_the_output_came_to_be(here, asked):
    run = traced("-e", "trace=renameat2", "-e", "inject=renameat2:error=EEXIST", more=("-o", "out", *asked))
    assert run.returncode == 6, run.stderr
    error = json.loads(run.stdout)["error"]
    assert error["code"] == "output_exists"
    assert [error["partial"]] == ([stage.name for stage in stages(here)] or [None])
    assert bool(stages(here)) == bool(asked) == ("`mv`" in run.stderr)
    if asked:
        Path(error["partial"]).rename("out")
        assert rlmerge.verify("out").ok


def test_without_a_wish_nothing_stays(here):
    run = command("--strict", "--json")
    assert run.returncode == 7
    assert json.loads(run.stdout)["error"]["partial"] is None
    assert "kept" not in run.stderr
    assert stages(here) == []
