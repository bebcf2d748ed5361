"""Start-up: version, help, usage errors, and how quick they are."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

import rlmerge as package


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(rlmerge, flag):
    assert rlmerge(flag) == type(rlmerge(flag))(0, f"rlmerge {package.__version__}\n", "")


def test_version_is_quick():
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "rlmerge", "--version"], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.25


def test_version_imports_no_command(rlmerge):
    script = (
        "import atexit, sys; atexit.register(lambda: print(sorted({'typer', 'rich', 'pydantic'} & set(sys.modules))))"
    )
    assert rlmerge("--version", script=script).out.endswith("[]\n")


def test_no_command_prints_help(rlmerge):
    run = rlmerge()
    assert run.code == 0
    assert run.out.rstrip() == rlmerge("--help").out.rstrip()
    for word in ("merge", "inspect", "methods", "--version"):
        assert word in run.out
    assert run.err == ""


@pytest.mark.parametrize("command", ["merge", "inspect", "methods", "verify", "clean"])
def test_help_has_examples_and_fits_80_columns(rlmerge, command):
    run = rlmerge(command, "--help", COLUMNS="80")
    assert run.code == 0
    assert "Examples:" in run.out
    assert f"rlmerge {command}" in run.out.split("Examples:")[1]
    assert max(map(len, run.out.splitlines())) <= 80
    assert "--json" in run.out
    assert "--quiet" in run.out
    assert "\x1b" not in run.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mrge"], "merge"),
        (["merge", "a", "--densty", "1"], "--density"),
        (["merge"], "MODEL"),
        (["inspect"], "MODEL"),
        (["merge", "a", "--seed", "x"], "--seed"),
        (["merge", "a", "b", "--method"], "--method"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_usage_errors(rlmerge, arguments, words):
    run = rlmerge(*arguments)
    assert run.code == 2
    assert words in run.err
    assert run.out == ""
    assert "Traceback" not in run.err


def test_interrupt_while_starting_shows_no_traceback(rlmerge):
    script = "import builtins\nreal = builtins.__import__\n"
    script += (
        "def stop(name, *a, **k):\n    if name == 'typer': raise KeyboardInterrupt\n    return real(name, *a, **k)\n"
    )
    script += "builtins.__import__ = stop"
    run = rlmerge("methods", script=script)
    assert (run.code, run.out, run.err) == (130, "", "")
