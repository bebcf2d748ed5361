"""Runs that are killed, and runs that go on with them. `kill_cycles` does many more."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from tests.faults.kill_cycles import cycles
from tests.faults.merges import Merge, digest, identities, kill, remove, write_models


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    write_models(root, 30)
    return root


@pytest.fixture
def merge(inputs, tmp_path):
    """A merge over its own links to the models."""
    for name in ("base", "a", "b"):
        shutil.copytree(inputs / name, tmp_path / name)
    return Merge(tmp_path)


def rlmerge(merge, *arguments):
    command = [sys.executable, "-m", "rlmerge", *arguments]
    return subprocess.run(command, cwd=merge.root, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("method", ["ties", "tall_masks"])
def test_random_kills_end_in_the_same_bytes(merge, method):
    merge.method = method
    result = cycles(merge, 8, seed=3, quiet=True)
    assert result["wrong"] == []
    assert result["seen"]["outputs"] >= 1


def test_a_killed_run_leaves_its_stage_and_nothing_else(merge):
    before = identities(merge.root)
    stage = merge.leave_stage()
    assert stage.name.startswith(".out.rlmerge-")
    assert not merge.output.exists()
    assert identities(merge.root) == before
    again = merge.run()
    assert again.returncode == 0, again.stderr
    assert merge.stages() == [stage], "a run without --resume leaves it alone"


def test_what_was_finished_is_taken_over(merge):
    stage = merge.leave_stage(records=3)
    inodes = {path.stat().st_ino for path in stage.glob("*.safetensors")}
    run = merge.run("--resume")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["tensors_reused"] >= 3
    assert {path.stat().st_ino for path in merge.output.glob("*.safetensors")} == inodes
    assert merge.stages() == []
    whole = merge.run(output="whole")
    assert whole.returncode == 0
    assert digest(merge.output) == digest(merge.root / "whole")


def test_a_killed_run_is_mentioned(merge):
    stage = merge.leave_stage()
    merge.extra = []
    command = [word for word in merge.command() if word != "--json"]
    run = subprocess.run(command, cwd=merge.root, capture_output=True, text=True)
    assert run.returncode == 0
    assert stage.name in run.stderr
    assert "--resume" in run.stderr


@pytest.mark.parametrize("change", ["recipe", "input", "seed"])
def test_what_another_merge_left_is_refused(merge, change):
    stage = merge.leave_stage()
    if change == "input":
        file = next((merge.root / "a").glob("*.safetensors"))
        os.utime(file, ns=(0, 1_700_000_000_000_000_000))
    merge.extra = {"recipe": ["--density", "0.4"], "seed": ["--seed", "5"], "input": []}[change]
    run = merge.run("--resume")
    assert run.returncode == 6, run.stderr
    error = json.loads(run.stdout)["error"]
    assert error["code"] == "stage_differs"
    assert ("inputs" if change == "input" else "recipe") in error["message"]
    assert "rlmerge clean" in error["hint"]
    assert stage.is_dir()
    assert not merge.output.exists()


@pytest.mark.parametrize(
    "damage", ["bit", "journal cut", "journal garbage", "journal empty", "shard gone", "shard cut"]
)
def test_what_was_damaged_is_done_again(merge, damage):
    stage = merge.leave_stage(records=3)
    journal = stage / "rlmerge.journal"
    # The shard that holds the last tensor of the journal's first record.
    shard = sorted(stage.glob("*.safetensors"))[0]
    if damage == "bit":
        length = int.from_bytes(shard.read_bytes()[:8], "little")
        with shard.open("r+b") as file:
            file.seek(8 + length + 10)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
    elif damage == "journal cut":
        os.truncate(journal, journal.stat().st_size - 7)
    elif damage == "journal garbage":
        with journal.open("ab") as file:
            file.write(os.urandom(200) + b"\n" + b"0123456789abcdef {}\n")
    elif damage == "journal empty":
        os.truncate(journal, 0)
    elif damage == "shard gone":
        shard.unlink()
    else:
        os.truncate(shard, 1000)
    run = merge.run("--resume")
    assert run.returncode == 0, run.stderr
    whole = merge.run(output="whole")
    assert whole.returncode == 0
    assert digest(merge.output) == digest(merge.root / "whole")


def test_two_runs_do_not_write_one_output(merge):
    first = merge.start()
    assert merge.wait_for_stage(first)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        second = merge.run()
        third = merge.run("--resume")
    finally:
        os.kill(first.pid, signal.SIGCONT)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 0, err
    for refused in (second, third):
        assert refused.returncode == 6
        assert json.loads(refused.stdout)["error"]["code"] == "output_locked"
        assert str(first.pid) in refused.stderr
    assert merge.stages() == []


def test_clean_removes_what_is_dead(merge):
    stage = merge.leave_stage()
    would = rlmerge(merge, "clean", ".", "--dry-run", "--json")
    assert [row["removed"] for row in json.loads(would.stdout)] == [False]
    assert stage.is_dir()
    living = merge.start()
    merge_stages = merge.stages()
    while len(merge_stages) < 2 and living.poll() is None:
        merge_stages = merge.stages()
    os.kill(living.pid, signal.SIGSTOP)
    done = rlmerge(merge, "clean", "out", "--json")
    os.kill(living.pid, signal.SIGCONT)
    living.communicate(timeout=60)
    assert done.returncode == 0, done.stderr
    assert living.returncode == 0
    rows = {row["path"].rpartition("/")[2]: row for row in json.loads(done.stdout)}
    assert rows[stage.name]["removed"]
    assert not stage.exists()
    assert all(not row["removed"] and "at work" in row["kept"] for name, row in rows.items() if name != stage.name)
    assert rlmerge(merge, "clean", "no/such").returncode == 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("resume", [False, True])
def test_signals_while_at_work(merge, number, code, resume):
    process = merge.start(*["--resume"] * resume)
    while process.poll() is None and merge.records() < 1:
        pass
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    if merge.output.exists():
        pytest.skip("the run ended before the signal")
    assert process.returncode == code, err
    assert "nothing was written" in err
    assert "Traceback" not in err
    assert bool(merge.stages()) == resume
    if resume:
        assert "the same command with --resume goes on from there" in err
        run = merge.run("--resume")
        assert run.returncode == 0, run.stderr
        assert json.loads(run.stdout)["tensors_reused"] >= 1


def test_force_shows_the_old_or_the_new_output(merge):
    assert merge.run().returncode == 0
    old = digest(merge.output)
    merge.extra = ["--density", "0.5"]
    assert merge.run(output="new").returncode == 0
    new = digest(merge.root / "new")
    assert old != new
    for _ in range(4):
        process = merge.start("--force")
        while process.poll() is None and merge.records() < 2:
            pass
        kill(process)
        assert digest(merge.output) in (old, new)
    rlmerge(merge, "clean", ".")
    assert merge.stages() == []
    remove(merge.root / "new")
