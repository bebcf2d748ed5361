"""Errors of the command line: exit code, words, hint, modes, hostile names, closed streams."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def test_error_in_all_modes(rlmerge):
    human = rlmerge("merge", "nosuch", "a", "-m", "linear")
    assert (human.code, human.out) == (3, "")
    assert human.err.startswith("error: nosuch: ")
    assert "\n\nhint: " in human.err
    quiet = rlmerge("merge", "nosuch", "a", "-m", "linear", "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (3, "", human.err)
    data = rlmerge("merge", "nosuch", "a", "-m", "linear", "--json")
    assert (data.code, data.err) == (3, human.err)
    assert data.json["error"]["code"] == "model_not_found"
    assert data.json["error"]["path"] == "nosuch"
    assert data.json["error"]["exit_code"] == 3


@pytest.mark.parametrize(
    ("arguments", "code", "words", "hint"),
    [
        (["a", "b", "-m", "tise"], 2, "unknown method `tise`", "`ties`"),
        (["a", "b"], 2, "no method", "task_arithmetic"),
        (["base", "a", "-m", "ties", "--density", "1.5"], 2, "density", None),
        (["base", "a", "-m", "ties", "--density", "0"], 2, "density", None),
        (["base", "a", "-m", "ties", "--density", "lots"], 2, "density", None),
        (["base", "a", "-m", "ties", "--param", "densty=1"], 2, "densty", "rlmerge methods ties"),
        (["base", "a", "-m", "ties", "--param", "density"], 2, "KEY=VALUE", "--param"),
        (["a", "b", "-m", "linear", "--weight", "1,2,3"], 2, "3 values for 2", "one for each"),
        (["a", "b", "-m", "linear", "--weight", "1,-1"], 2, "sum to 0", "normalize"),
        (["a", "b", "-m", "linear", "--weight", "nan"], 2, "weight", None),
        (["a", "b", "-m", "linear", "--dtype", "bfloat"], 2, "bfloat", "`bfloat16`"),
        (["a", "b", "-m", "linear", "--shard-size", "big"], 2, "big", "5GB"),
        (["a", "b", "-m", "linear", "--compat", "papr"], 2, "papr", "`paper`"),
        (["a", "b", "-m", "linear", "--seed", "-1"], 2, "seed", None),
        (["a", "b", "-m", "linear", "--threads", "0"], 2, "threads", None),
        (["a", "", "-m", "linear"], 3, "empty name", "variable"),
        (["a", "modeling", "-m", "linear"], 3, "modeling", None),
        (["a", "b", "-m", "linear", "-o", "a"], 6, "a", "-o"),
        (["a", "b", "-m", "slerp", "--base", "base"], 2, "slerp", None),
        (["no.yaml"], 2, "No such file", None),
    ],
)
def test_exit_codes_and_hints(rlmerge, arguments, code, words, hint):
    run = rlmerge("merge", *arguments)
    assert run.code == code, run.err
    assert run.err.count("error: ") == 1
    assert words in run.err
    assert run.out == ""
    assert "Traceback" not in run.err
    if hint is not None:
        assert hint in run.err.split("hint: ")[1]


def test_models_that_do_not_fit(rlmerge, here):
    from numpy import zeros
    from safetensors.numpy import save_file

    save_file({"other": zeros(3, "float32")}, here / "other.safetensors")
    run = rlmerge("merge", "a.safetensors", "other.safetensors", "-m", "linear")
    assert run.code == 4
    assert "model.norm.weight" in run.err
    assert "other" in run.err
    assert not (here / "merged.safetensors").exists()


def test_damaged_file(rlmerge, here):
    (here / "bad.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0notjson!")
    run = rlmerge("merge", "a.safetensors", "bad.safetensors", "-m", "linear")
    assert run.code == 3
    assert "bad.safetensors" in run.err


EVIL = "ev\x1b[31mil\n[bold]\u202ex"


def test_hostile_names_cannot_reach_the_terminal(rlmerge, here):
    (here / "a").rename(here / EVIL)
    runs = [
        rlmerge("inspect", EVIL),
        rlmerge("merge", EVIL, "b", "-m", "linear", "--dry-run"),
        rlmerge("merge", EVIL, "b", "-m", "linear", "-o", "out"),
        rlmerge("merge", EVIL + "x", "b", "-m", "linear"),
        rlmerge("merge", "base", "b", "-m", EVIL),
        rlmerge("merge", "base", "b", "-m", "linear", "--param", EVIL + "=1"),
        rlmerge("merge", EVIL + ".yaml"),
        rlmerge("inspect", EVIL, "--json"),
        rlmerge("merge", EVIL, "b", "-m", "linear", "--dry-run", "--json"),
    ]
    for run in runs:
        assert "\x1b" not in run.out + run.err
        assert "\u202e" not in run.out + run.err
        assert "Traceback" not in run.err
    for run in (rlmerge(EVIL), rlmerge("merge", "--" + EVIL), rlmerge("merge", "a", "--seed", EVIL)):
        assert run.code == 2
        assert "\x1b" not in run.err
        assert "\u202e" not in run.err
    card = (here / "out" / "README.md").read_text()
    assert "\x1b" not in card
    assert "\u202e" not in card


def test_names_that_are_not_utf8(rlmerge):
    run = rlmerge("merge", b"a\xff", "b", "-m", "linear")
    assert run.code == 2
    assert "UTF-8" in run.err


def test_debug_shows_the_traceback(rlmerge):
    assert "Traceback" in rlmerge("merge", "nosuch", "-m", "linear", RLMERGE_DEBUG="1").err
    assert "Traceback" not in rlmerge("merge", "nosuch", "-m", "linear", RLMERGE_DEBUG="0").err


def test_a_bug_of_ours(rlmerge):
    script = "import rlmerge.api\ndef broken(*a, **k): raise ZeroDivisionError('oh')\nrlmerge.api.plan = broken"
    run = rlmerge("merge", "a", "b", "-m", "linear", script=script)
    assert run.code == 1
    assert "internal error (a bug in rlmerge): ZeroDivisionError: oh" in run.err
    assert "RLMERGE_DEBUG=1" in run.err


@pytest.mark.parametrize(("signal", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals(rlmerge, here, signal, code):
    before = {p.name for p in here.iterdir()}
    script = f"""
import os, signal, rlmerge.report
# Whoever runs the tests may ignore signals (nohup does), and children inherit that.
signal.signal(signal.{signal}, signal.default_int_handler if "{signal}" == "SIGINT" else signal.SIG_DFL)
real = rlmerge.report.Plan.run
def run(self, progress, **options):
    os.kill(os.getpid(), signal.{signal})
    return real(self, progress, **options)
rlmerge.report.Plan.run = run
"""
    run = rlmerge("merge", "a", "b", "-m", "linear", script=script)
    assert run.code == code
    assert run.out == ""
    assert "interrupted; nothing was written" in run.err
    assert "Traceback" not in run.err
    assert {p.name for p in here.iterdir()} == before


@pytest.mark.parametrize("arguments", [["methods"], ["methods", "--json"], ["inspect", "a"]])
def test_stdout_that_is_full_or_gone(here, arguments):
    command = [sys.executable, "-m", "rlmerge", *arguments]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        run = subprocess.run(command, cwd=here, stdout=full, stderr=subprocess.PIPE, text=True)
    assert run.returncode == 5
    assert run.stderr.startswith("error: ")
    assert "Traceback" not in run.stderr
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(command, cwd=here, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (run.returncode, run.stderr) == (0, "")
    run = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], cwd=here, stderr=subprocess.PIPE, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def test_streams_in_another_encoding(rlmerge, here):
    (here / "a").rename(here / "modèle")
    run = rlmerge("inspect", "modèle", PYTHONIOENCODING="ascii")
    assert run.code == 0
    assert "mod\\xe8le" in run.out
