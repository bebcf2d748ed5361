"""Inputs that shrink while they are mapped: an error and exit 3, never a signal; other people's SIGBUS stays theirs."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import rlmerge
from tests import tensorfile

# Eight tensors of two tiles each: long enough to be hit half way, short enough for a test.
SHAPE = (2, 1 << 18)


@pytest.fixture
def pair(tmp_path):
    """Two models of 16 MB."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        tensorfile.write(path, {f"t{i}": rng.normal(size=SHAPE).astype(np.float32) for i in range(4)})
    return paths


@pytest.mark.parametrize("io", ["mmap", "pread"])
@pytest.mark.parametrize("moment", range(6))
def test_a_file_that_shrinks_during_a_merge(pair, tmp_path, io, moment):
    a, b = pair
    output = tmp_path / "out.safetensors"
    arguments = [str(a), str(b), str(output), io]
    script = (
        "import sys, rlmerge\n"
        "from rlmerge.cli.app import main\n"
        "print('ready', flush=True)\n"
        "sys.argv = ['rlmerge', 'merge', *sys.argv[1:3], '-m', 'linear', '-o', sys.argv[3], '--io', sys.argv[4]]\n"
        "sys.exit(main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.01 * moment)
    with b.open("r+b") as file:
        file.truncate(1 << 20)
    _, stderr = process.communicate(timeout=60)
    # At the first moments the file is already too short when it is opened; at the last the merge may be done.
    assert process.returncode in (0, 3), stderr
    if process.returncode == 3:
        assert "b.safetensors" in stderr
        assert "Traceback" not in stderr
        assert not output.exists()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("io", ["mmap", "pread"])
def test_a_file_that_shrinks_between_plan_and_run(pair, tmp_path, io):
    a, b = pair
    plan = rlmerge.plan([a, b], method="linear", output=tmp_path / "out.safetensors", io=io)
    size = b.stat().st_size
    with b.open("r+b") as file:
        file.truncate(1 << 20)
    with pytest.raises(rlmerge.CheckpointError) as raised:
        plan.run()
    error = raised.value
    assert (error.code, error.exit_code, error.path) == ("input_shrank", 3, b)
    assert error.tensor in ("t0", "t1", "t2", "t3")
    assert f"shrank from {size} to {1 << 20} bytes" in str(error)
    assert "at byte" in str(error)
    assert not (tmp_path / "out.safetensors").exists()


FOREIGN = """
import faulthandler, mmap, os, sys, rlmerge
order, folder = sys.argv[1], sys.argv[2]
if order == "faulthandler first":
    faulthandler.enable()
rlmerge.merge([folder + "/a.safetensors", folder + "/b.safetensors"], method="linear",
              output=folder + "/out.safetensors", io="mmap")
if order == "faulthandler last":
    faulthandler.enable()
    rlmerge.merge([folder + "/a.safetensors", folder + "/b.safetensors"], method="linear",
                  output=folder + "/out2.safetensors", io="mmap")
if order == "sent":
    import signal
    os.kill(os.getpid(), signal.SIGBUS)
with open(folder + "/foreign", "w+b") as file:
    file.truncate(1 << 16)
    mapped = mmap.mmap(file.fileno(), 0)
    file.truncate(0)
    print(mapped[5000], flush=True)
"""


@pytest.mark.parametrize("order", ["faulthandler first", "faulthandler last", "no faulthandler", "sent"])
def test_other_mappings_fail_as_they_would_without_us(pair, tmp_path, order):
    command = [sys.executable, "-c", FOREIGN, order, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == -signal.SIGBUS, done.stderr
    assert done.stdout == ""
    assert ("Bus error" in done.stderr) == order.startswith("faulthandler")
    assert (tmp_path / "out.safetensors").exists()
