"""The errors that only the writer has, each brought about in earnest."""

import fcntl
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import rlmerge
from tests import tensorfile


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        tensorfile.write(tmp_path / f"{name}.safetensors", {f"t{i}": np.ones(64, np.float32) for i in range(12)})
    return tmp_path


def merge(**more):
    return rlmerge.merge(["a.safetensors", "b.safetensors"], method="linear", output="out.safetensors", **more)


def traced(*options, more=()):
    """Merges with system calls that fail by order."""
    strace = shutil.which("strace")
    if not strace or subprocess.run([strace, "-o", os.devnull, "true"], capture_output=True).returncode:
        pytest.skip("needs strace, and leave to trace")
    command = [sys.executable, "-m", "rlmerge", "merge", "a.safetensors", "b.safetensors", "-m", "linear", "--json"]
    command += ["-o", "out.safetensors", "--threads", "1", *more]
    return subprocess.run([strace, "-f", "-qq", "-o", os.devnull, *options, *command], capture_output=True, text=True)


def test_output_locked(here):
    # A folder with the name of a stage, and the lock that a living run would hold on it.
    stage = here / f".out.safetensors.rlmerge-{os.getpid()}-0123456789abcdef.partial"
    stage.mkdir()
    held = os.open(stage, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        with pytest.raises(rlmerge.OutputError) as caught:
            merge()
    finally:
        os.close(held)
    assert (caught.value.code, caught.value.exit_code) == ("output_locked", 6)
    assert str(os.getpid()) in str(caught.value)
    assert caught.value.hint
    # Whoever held it is gone.
    assert merge().output.exists()


def test_stage_differs(here):
    assert traced("-e", "trace=pwrite64", "-e", "inject=pwrite64:signal=KILL:when=6").returncode in (-9, 137)
    (stage,) = here.glob(".out.safetensors.rlmerge-*")
    with pytest.raises(rlmerge.OutputError) as caught:
        merge(resume=True, weight=[0.3, 0.7])
    assert (caught.value.code, caught.value.exit_code) == ("stage_differs", 6)
    assert caught.value.path.name == stage.name
    assert "rlmerge clean" in caught.value.hint
    assert merge(resume=True).tensors_reused > 0


@pytest.mark.parametrize("output", ["out.safetensors", "out"])
def test_read_back_differs(here, output):
    # The first write is the header's. Of the others one is said to be done, and is not.
    lie = ("-e", "trace=pwrite64", "-e", "inject=pwrite64:retval=256:when=5")
    run = traced(*lie, more=("-o", output, "--verify"))
    assert run.returncode == 8, run.stderr
    error = json.loads(run.stdout)["error"]
    assert error["code"] == "read_back_differs"
    assert error["tensor"].startswith("t")
    assert error["path"].startswith(output)
    assert error["hint"]
    assert sorted(path.name for path in here.iterdir()) == ["a.safetensors", "b.safetensors"]
    # Without --verify such a disk is found out later.
    run = traced(*lie, more=("-o", "folder"))
    assert run.returncode == 0
    found = rlmerge.verify("folder")
    assert [finding.name for finding in found.findings] == ["tensor-changed"]


def test_fewer_threads_than_wanted(here):
    # Of each thread the eighth one that it starts: the last worker. No other thread starts as many.
    refused = ("-e", "trace=clone,clone3", "-e", "inject=clone,clone3:error=EAGAIN:when=8")
    run = traced(*refused, more=("--threads", "8"))
    assert run.returncode == 0, run.stderr
    assert [w for w in json.loads(run.stdout)["warnings"] if "4 of 8 worker threads" in w]
    fewer = (here / "out.safetensors").read_bytes()
    assert merge(threads=8, force=True).output.read_bytes() == fewer
