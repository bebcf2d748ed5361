"""Every error of the closed table, brought about in earnest: a code without a scenario fails here."""

import _thread
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rlmerge
from rlmerge import _core
from tests import tensorfile

ROOT = Path(__file__).parents[2]
ROWS = {row["code"]: row for row in json.loads(_core.errors())}


class Here:
    """A folder with a base and two experts, and short words for merging them."""

    def __init__(self, root: Path):
        self.root = root
        rng = np.random.default_rng(0)
        for name in ("base", "a", "b"):
            self.write(name, {"w": rng.normal(size=(4, 6)).astype(np.float32), "v": np.arange(3, dtype=np.float32)})

    def path(self, name: str) -> Path:
        return self.root / f"{name}.safetensors"

    def write(self, name: str, tensors) -> Path:
        tensorfile.write(self.path(name), tensors)
        return self.path(name)

    def merge(self, *names: str, method="linear", base=None, **options):
        paths = [self.path(n) for n in names or ("a", "b")]
        options.setdefault("output", self.path("out"))
        return rlmerge.merge(paths, method=method, base=self.path(base) if base else None, **options)

    def command(self, *before: str, method="linear", more: tuple[str, ...] = ()):
        """Merges in another process, under `before`, and raises what its JSON says."""
        models = [str(self.path("a")), str(self.path("b"))]
        command = [*before, sys.executable, "-m", "rlmerge", "merge", *models, "-m", method, "--json", *more]
        done = subprocess.run(
            [*command, "-o", str(self.path("out"))], capture_output=True, text=True, timeout=60, cwd=self.root
        )
        fields = json.loads(done.stdout)["error"]
        assert done.returncode == fields["exit_code"], done.stderr
        raise rlmerge.errors.from_core(
            fields["code"], fields["exit_code"], ROWS[fields["code"]]["kind"], fields["message"], fields["path"],
            fields["tensor"], fields["hint"],
        )  # fmt: skip

    def strace(self, *options: str, more: tuple[str, ...] = ()):
        """Merges with system calls that fail by order."""
        strace = shutil.which("strace")
        if not strace or subprocess.run([strace, "-o", os.devnull, "true"], capture_output=True).returncode:
            pytest.skip("needs strace, and leave to trace")
        self.command(strace, "-f", "-qq", "-o", os.devnull, *options, more=more)


def input_changed(here):
    plan = rlmerge.plan([here.path("a"), here.path("b")], method="linear", output=here.path("out"))
    os.utime(here.path("b"), (1, 1))
    plan.run()


def input_shrank(here):
    plan = rlmerge.plan([here.path("a"), here.path("b")], method="linear", output=here.path("out"))
    os.truncate(here.path("b"), here.path("b").stat().st_size - 1)
    plan.run()


def adapter(here, kind):
    (folder := here.root / "lora").mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": kind, "r": 2, "target_modules": ["w"]}))
    tensorfile.write(folder / "adapter_model.safetensors", {"w": np.zeros(1, np.float32)})
    return folder


def no_space(here):
    size = 1 << 43
    header = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    with here.path("a").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        try:
            file.truncate(8 + len(header) + size)
        except OSError:
            pytest.skip("this file system has no sparse files of 8 TiB")
    here.merge("a", method="passthrough")


def out_of_memory(here):
    for name in ("a", "b"):
        here.write(name, {f"t{i}": np.ones(1, np.float32) for i in range(600)})
    limit = (
        "import os, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    here.command(sys.executable, "-c", limit, more=("--threads", "600"))


def expanded(here):
    here.merge("a", "b", method="tall_masks", base="base", output=here.root / "merged")
    here.write("base", {"w": np.ones((4, 6), np.float32), "v": np.ones(3, np.float32)})
    rlmerge.expand(here.root / "merged", task="a", base=here.path("base"), output=here.path("out"))


def statistics(here):
    bad = here.write("fisher", {"w": np.full((4, 6), -1, np.float32), "v": np.ones(3, np.float32)})
    here.merge(method="fisher", parameters={"fisher": [str(bad), str(bad)]})


def read_failed(here):
    # Calls are counted for each thread: headers take two, and the worker reads every tensor.
    for name in ("a", "b"):
        here.write(name, {f"t{i}": np.ones(1, np.float32) for i in range(64)})
    here.strace("-P", str(here.path("b")), "-e", "trace=pread64", "-e", "inject=pread64:error=EIO:when=10+")


def replaced(here):
    (folder := here.root / "mine").mkdir()
    (folder / "notes.txt").write_text("mine")
    here.merge(output=folder, force=True)


def cancelled(here):
    for name in ("a", "b"):
        here.write(name, {f"t{i}": np.ones((1 << 18), np.float32) for i in range(12)})

    def interrupt(_):
        _thread.interrupt_main()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for _ in range(20):
            here.merge(force=True, progress=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)


def damaged(here, name, content):
    (here.root / name).write_bytes(content)
    return rlmerge.inspect(here.root / name)


def sharded(here, index):
    (folder := here.root / "sharded").mkdir()
    (folder / "model.safetensors.index.json").write_text(index)
    rlmerge.inspect(folder)


def configured(here, config):
    (folder := here.root / "configured").mkdir()
    here.path("a").rename(folder / "model.safetensors")
    (folder / "config.json").write_text(config)
    rlmerge.merge([folder], method="passthrough", output=here.path("out"))


def with_values(here, name, values, **options):
    here.write(name, {"w": np.full((4, 6), values, np.float32), "v": np.arange(3, dtype=np.float32)})
    here.merge(**options)


def opaque(here):
    for i, name in enumerate(("a", "b")):
        here.write(name, {"w": np.zeros(2, np.float32), "ids": np.array([0, i])})
    here.merge()


def output_locked(here):
    # A folder with the name of a stage, and the lock that a living run would hold on it.
    stage = here.root / f".out.safetensors.rlmerge-{os.getpid()}-0123456789abcdef.partial"
    stage.mkdir()
    held = os.open(stage, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        here.merge()
    finally:
        os.close(held)


def stage_differs(here):
    for name in ("a", "b"):
        here.write(name, {f"t{i}": np.ones(64, np.float32) for i in range(12)})
    # Whoever is killed says nothing.
    with contextlib.suppress(json.JSONDecodeError):
        here.strace("-e", "trace=pwrite64", "-e", "inject=pwrite64:signal=KILL:when=6", more=("--threads", "1"))
    here.merge(resume=True, weight=[0.3, 0.7])


def read_back_differs(here):
    # The first write is the header's. Of the others the system says of one that it is done, and does nothing.
    for name in ("a", "b"):
        here.write(name, {f"t{i}": np.ones(64, np.float32) for i in range(12)})
    lie = ("-e", "trace=pwrite64", "-e", "inject=pwrite64:retval=256:when=5")
    here.strace(*lie, more=("--verify", "--threads", "1"))


SCENARIOS = {
    "output_locked": output_locked,
    "stage_differs": stage_differs,
    "read_back_differs": read_back_differs,
    "recipe_invalid": lambda here: here.merge(dtype="I8"),
    "unknown_method": lambda here: here.merge(method="tise"),
    "unknown_parameter": lambda here: here.merge(parameters={"wieght": 1}),
    "parameter_out_of_range": lambda here: here.merge(method="ties", base="base", density=1.5),
    "parameter_count": lambda here: here.merge(weight=[1, 1, 1]),
    "missing_parameter": lambda here: here.merge(method="fisher"),
    "zero_weight_sum": lambda here: here.merge(weight=[1, -1]),
    "model_count": lambda here: here.merge("a", method="slerp"),
    "adapter_without_base": lambda here: rlmerge.merge(
        [adapter(here, "LORA")], method="linear", output=here.path("out")
    ),
    "model_not_found": lambda here: here.merge("a", "absent"),
    "not_a_checkpoint": lambda here: rlmerge.inspect(here.root / "sub"),
    "wrong_format": lambda here: damaged(here, "x.safetensors", b"GGUF\x03\0\0\0\0\0\0\0"),
    "bad_header": lambda here: damaged(here, "x.safetensors", b"\x02\0\0\0\0\0\0\0{}x"),
    "bad_index": lambda here: sharded(here, '{"weight_map":{"w":"../a.safetensors"}}'),
    "bad_config": lambda here: configured(here, "import os"),
    "quantised": lambda here: configured(here, '{"quantization_config":{"quant_method":"gptq"}}'),
    "bad_statistics": statistics,
    "adapter_unsupported": lambda here: rlmerge.merge(
        [adapter(here, "LOHA")], base=here.path("base"), method="linear", output=here.path("out")
    ),
    "input_changed": input_changed,
    "input_shrank": input_shrank,
    "models_do_not_fit": lambda here: here.merge("a", here.write("c", {"w": np.zeros(5, np.float32)}).stem),
    "opaque_tensors_differ": opaque,
    "io": lambda here: here.merge(output=here.root / "no" / "such" / "folder" / "out.safetensors"),
    "read_failed": read_failed,
    "no_space": no_space,
    "not_durable": lambda here: here.strace("-P", str(here.root), "-e", "trace=fsync", "-e", "inject=fsync:error=EIO"),
    "threads": lambda here: here.strace("-e", "trace=clone,clone3", "-e", "inject=clone,clone3:error=EAGAIN"),
    "out_of_memory": out_of_memory,
    "output_exists": lambda here: here.merge(output=here.root / "sub"),
    "output_not_replaceable": replaced,
    "output_is_input": lambda here: here.merge(output=here.path("a"), force=True),
    "non_finite": lambda here: with_values(here, "b", np.nan, method="slerp"),
    "non_finite_output": lambda here: with_values(here, "b", np.inf, strict=True),
    "overflow": lambda here: with_values(here, "b", 2e5, dtype="F16", on_overflow="error"),
    "checksum_mismatch": expanded,
    "cancelled": cancelled,
}  # fmt: skip
# A bug cannot be asked for; these tests make one.
ELSEWHERE = {"internal": ("rust/rlmerge-core/src/error/examples.rs", "panics_keep_their_words")}


@pytest.mark.parametrize("code", ROWS)
def test_every_error_can_be_brought_about(code, tmp_path):
    row = ROWS[code]
    if code in ELSEWHERE:
        file, test = ELSEWHERE[code]
        text = (ROOT / file).read_text()
        assert f"fn {test}" in text
        assert f'"{code}"' in text
        return
    here = Here(tmp_path)
    (tmp_path / "sub").mkdir()
    expected = KeyboardInterrupt if row["kind"] == "interrupt" else rlmerge.RlmergeError
    with pytest.raises(expected) as raised:
        SCENARIOS[code](here)
    if row["kind"] == "interrupt":
        return
    error = raised.value
    assert (error.code, error.exit_code) == (code, row["exit_code"]), error
    assert str(error)
    assert error.hint or row["hint"] is None
    assert "Error {" not in str(error), "a debug form instead of a message"


def test_no_scenario_is_left_over():
    assert set(SCENARIOS) | set(ELSEWHERE) == set(ROWS)


def test_python_raises_only_codes_of_the_table():
    for file in (ROOT / "python" / "rlmerge").rglob("*.py"):
        for code in re.findall(r'code="(\w+)"', file.read_text()):
            assert code in ROWS, (file.name, code)
