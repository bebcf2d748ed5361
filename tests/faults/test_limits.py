"""Disks that are full and limits on files: one clear error, and the disk is as before."""

import json
import resource
import shutil
import subprocess

import pytest

from tests.faults.merges import Merge, identities, write_models


@pytest.fixture
def merge(tmp_path):
    write_models(tmp_path, 3, tensors=8)
    return Merge(tmp_path)


def test_file_size_limit(merge):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    run = merge.run(preexec_fn=limit)
    assert run.returncode == 5, run.stderr
    error = json.loads(run.stdout)["error"]
    assert error["code"] == "io"
    assert "file size limit" in error["message"]
    assert merge.stages() == []
    assert not merge.output.exists()


def on_small_disk(root, megabytes, script, more="mode=0755"):
    """Runs a shell script with a disk of this size at `root/disk`; skips where nothing can be mounted."""
    (root / "disk").mkdir(exist_ok=True)
    mount = f"mount -t tmpfs -o size={int(megabytes * 1_000_000)},{more} rlmerge-test disk"
    run = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{mount} || exit 99\n{script}"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=100,
    )
    if run.returncode == 99 or "unshare" in run.stderr:
        pytest.skip("nothing can be mounted here")
    return run


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare")
class TestFullDisk:
    def test_preflight_tells_before_anything_is_read(self, merge):
        before = identities(merge.root)
        command = " ".join(merge.command(output="disk/out"))
        run = on_small_disk(merge.root, 2, f"{command}; code=$?; ls -A disk >&2; exit $code")
        assert run.returncode == 5, run.stderr
        error = json.loads(run.stdout)["error"]
        assert error["code"] == "no_space"
        assert "disk/out" in error["message"]
        assert ".rlmerge-" not in run.stderr
        assert identities(merge.root) == before

    def test_every_size_up_to_enough(self, merge):
        # Too small by anything is told; the output is there whole, or nothing is.
        merge.extra = ["--durability", "none"]
        needed = 3_000_000 + (16 << 20)
        codes = {}
        for size in (1_000_000, needed // 2, needed - 500_000, needed + 1_000_000):
            command = " ".join(merge.command(output="disk/out"))
            run = on_small_disk(merge.root, size / 1e6, f"{command}; code=$?; ls -A disk >&2; exit $code")
            codes[size] = run.returncode
            left = run.stderr.rstrip().splitlines()[-1:]
            assert (left == ["out"]) == (run.returncode == 0), run.stderr
        assert list(codes.values()) == [5, 5, 5, 0]

    def test_no_inode_left_for_the_second_file(self, merge):
        # The disk itself, the stage, its journal and the first shard.
        merge.extra = ["--shard-size", "1MB"]
        command = " ".join(merge.command(output="disk/out"))
        run = on_small_disk(merge.root, 60, f"{command}; code=$?; ls -A disk >&2; exit $code", "nr_inodes=4")
        assert run.returncode == 5, run.stderr
        assert "no free inodes" in json.loads(run.stdout)["error"]["message"]
        assert ".rlmerge-" not in run.stderr.splitlines()[-1], "the stage is gone"
