"""What a process is given by whoever starts it: little memory, closed descriptors, odd floats, readers that leave."""

import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys

import numpy as np
import pytest

import rlmerge
from tests import tensorfile

LIMITED = """
import os, resource, sys
limit = int(sys.argv[1]) << 20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
os.execv(sys.executable, [sys.executable, "-m", "rlmerge", *sys.argv[2:]])
"""


@pytest.fixture
def trio(tmp_path):
    """A base and two experts of 8 MB."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "a", "b")]
    for path in paths:
        tensorfile.write(path, {f"t{i}": rng.normal(size=(512, 1024)).astype(np.float32) for i in range(4)})
    return paths


def limited(megabytes, *arguments):
    command = [sys.executable, "-c", LIMITED, str(megabytes), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_little_memory_is_an_error_and_never_a_crash(trio, tmp_path):
    base, a, b = trio
    output = tmp_path / "out.safetensors"
    codes = {}
    # From where the interpreter has room to load what a merge imports.
    start = next(
        m for m in range(32, 400, 16) if limited(m, "merge", a, "-m", "passthrough", "--dry-run").returncode == 0
    )
    for megabytes in [*range(start, start + 200, 32), 384, 512, 1024]:
        merge = ["merge", a, b, "--base", base, "-m", "ties", "-o", output, "--force", "--threads", "2"]
        done = limited(megabytes, *merge)
        codes[megabytes] = done.returncode
        assert done.returncode in (0, 5), (megabytes, done.returncode, done.stderr)
        if done.returncode == 5:
            assert "out of memory" in done.stderr or "worker thread" in done.stderr, done.stderr
            assert "Traceback" not in done.stderr
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert codes[1024] == 0
    assert 5 in codes.values()


def test_a_header_that_needs_more_memory_than_there_is(tmp_path):
    entries = ",".join(f'"{i:07}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(300_000))
    path = tmp_path / "many.safetensors"
    raw = f"{{{entries}}}".encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    codes = set()
    for megabytes in (96, 160, 256, 400, 1200):
        done = limited(megabytes, "inspect", path, "--quiet")
        codes.add(done.returncode)
        assert done.returncode in (0, 5), (megabytes, done.returncode, done.stderr)
        assert "Traceback" not in done.stderr
    assert codes == {0, 5}


def test_the_exception_is_a_memory_error_too(trio):
    code = (
        "import resource, rlmerge, sys\n"
        "plan = rlmerge.plan(sys.argv[2:4], base=sys.argv[1], method='ties', output=sys.argv[1] + '.out', threads=64)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20))\n"
        "try:\n"
        "    plan.run()\n"
        "except MemoryError as error:\n"
        "    print(error.code, error.exit_code, isinstance(error, rlmerge.OutputError))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *trio], capture_output=True, text=True, timeout=60)
    assert done.stdout == "out_of_memory 5 True\n", done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_stay_out_of_the_output(trio, tmp_path, closed):
    base, a, b = trio
    whole = rlmerge.merge([a, b], base=base, method="ties", output=tmp_path / "expected.safetensors")
    output = tmp_path / "out.safetensors"
    command = [sys.executable, "-X", "faulthandler", "-m", "rlmerge", "merge", a, b, "--base", base, "-m", "ties"]
    line = " ".join(f"'{word}'" for word in [*command, "-o", output])
    done = subprocess.run(["sh", "-c", f"{line} {closed}"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == whole.output.read_bytes()


def test_closed_descriptors_are_filled(trio):
    # A new file gets no number below 3 once the engine was called.
    code = "import os, sys, rlmerge; rlmerge.inspect(sys.argv[1]); os._exit(0 if os.open(os.devnull, 0) > 2 else 9)"
    line = f"'{sys.executable}' -c '{code}' '{trio[0]}' <&- >&- 2>&-"
    done = subprocess.run(["sh", "-c", line], timeout=60)
    assert done.returncode == 0


def test_a_reader_of_the_talk_that_leaves_changes_nothing(trio, tmp_path):
    base, a, b = trio
    output = tmp_path / "out.safetensors"
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "rlmerge", "merge", a, b, "--base", base, "-m", "ties", "-o", output]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=writer, text=True, timeout=60)
    os.close(writer)
    assert done.returncode == 0
    assert str(output) in done.stdout
    assert output.exists()


def test_an_error_that_nobody_reads_still_has_its_code(trio, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "rlmerge", "merge", trio[0], "absent", "-m", "linear", "-o", tmp_path / "out"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=writer, timeout=60)
    os.close(writer)
    assert done.returncode == 3


@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("sh"), reason="about a register of x86-64")
def test_subnormals_are_kept_whatever_another_library_has_asked_for(tmp_path):
    tiny = np.float32(1e-41) * np.arange(1, 1001, dtype=np.float32)
    for name in ("a", "b"):
        tensorfile.write(tmp_path / f"{name}.safetensors", {"w": tiny})
    models = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    expected = rlmerge.merge(models, method="linear", weight=[0.5, 1], output=tmp_path / "expected.safetensors")
    libm = ctypes.CDLL("libm.so.6")
    # `fenv_t` of x86-64: 28 bytes of the x87's, then MXCSR.
    saved, odd = ctypes.create_string_buffer(32), ctypes.create_string_buffer(32)
    libm.fegetenv(saved)
    ctypes.memmove(odd, saved, 32)
    flush = int.from_bytes(saved.raw[28:32], "little") | 0x8040
    ctypes.memmove(ctypes.addressof(odd) + 28, flush.to_bytes(4, "little"), 4)
    libm.fesetenv(odd)
    try:
        report = rlmerge.merge(models, method="linear", weight=[0.5, 1], output=tmp_path / "out.safetensors")
        now = ctypes.create_string_buffer(32)
        libm.fegetenv(now)
    finally:
        libm.fesetenv(saved)
    assert int.from_bytes(now.raw[28:32], "little") & 0x8040 == 0x8040, "what the other library asked for is gone"
    assert report.output.read_bytes() == expected.output.read_bytes()


def test_a_bare_environment_changes_nothing(trio, tmp_path):
    base, a, b = trio
    whole = rlmerge.merge([a, b], base=base, method="ties", output=tmp_path / "expected.safetensors")
    output = tmp_path / "out.safetensors"
    command = [sys.executable, "-m", "rlmerge", "merge", a, b, "--base", base, "-m", "ties", "-o", output]
    bare = {"LC_ALL": "C", "TMPDIR": "/nonexistent", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=bare)
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == whole.output.read_bytes()


@pytest.mark.parametrize("where", ["model", "output"])
def test_names_that_are_not_utf8_are_refused_in_words(trio, tmp_path, where):
    odd = os.fsencode(tmp_path) + b"/odd\xff.safetensors"
    model, output = (odd, tmp_path / "out") if where == "model" else (trio[0], odd)
    command = [sys.executable, "-m", "rlmerge", "merge", model, trio[1], "-m", "linear", "-o", output]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 2
    assert b"odd\\udcff.safetensors" in done.stderr
    assert b"not a UTF-8 name" in done.stderr


@pytest.mark.parametrize("kind", ["folder missing", "a folder", "in an input"])
def test_a_report_that_cannot_be_written_is_told_before_the_merge(trio, tmp_path, kind):
    base, a, b = trio
    (folder := tmp_path / "model").mkdir()
    a.rename(folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (tmp_path / "r.html").mkdir()
    places = {"folder missing": tmp_path / "no" / "r.html", "a folder": tmp_path / "r.html"}
    place = places.get(kind, folder / "config.json")
    command = [sys.executable, "-m", "rlmerge", "merge", folder, b, "--base", base, "-m", "ties"]
    more = ["-o", tmp_path / "out", "--report", place, "--force"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=60)
    assert done.returncode == (5 if kind == "folder missing" else 6)
    assert str(place) in "".join(done.stderr.split("\n"))
    assert not (tmp_path / "out").exists()
    assert (folder / "config.json").read_text() == "{}"


@pytest.mark.parametrize("descriptors", [10, 16, 32, 256])
def test_few_descriptors_are_an_error_with_a_way_out(tmp_path, descriptors):
    (model := tmp_path / "model").mkdir()
    names = {f"t{i}": f"model-{i + 1:05}-of-00100.safetensors" for i in range(100)}
    for tensor, name in names.items():
        tensorfile.write(model / name, {tensor: np.ones(1, np.float32)})
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    code = LIMITED.replace("RLIMIT_AS", "RLIMIT_NOFILE").replace("<< 20", "<< 0")
    command = [sys.executable, "-c", code, str(descriptors), "merge", model, "-m", "passthrough"]
    done = subprocess.run([*command, "-o", tmp_path / "out"], capture_output=True, text=True, timeout=60)
    if descriptors == 256:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 5, done.stderr
    assert "Too many open files" in done.stderr
    assert "ulimit -n" in done.stderr
    assert ".safetensors" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
