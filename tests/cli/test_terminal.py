"""What a terminal gets: progress and colour, and neither where they do not belong."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest


def in_terminal(here, *arguments: str, **env: str) -> tuple[int, str]:
    """Run with stderr and stdout on a pseudo-terminal of 80 columns."""
    ours, theirs = pty.openpty()
    own = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "rlmerge", *arguments],
        cwd=here,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**own, "TERM": "xterm-256color", "COLUMNS": "80", **env},
    )
    os.close(theirs)
    text = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        text += part
    os.close(ours)
    return process.wait(), text.decode()


def test_a_merge_on_a_terminal(here):
    code, text = in_terminal(here, "merge", "a", "b", "-m", "linear")
    assert code == 0
    assert "merged 2 tensors" in text
    assert text.rstrip().endswith("merged")


@pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colour_of_errors(here, env, coloured):
    code, text = in_terminal(here, "merge", "nosuch", "-m", "linear", **env)
    assert code == 3
    assert ("\x1b[" in text) is coloured
    assert "error:" in text
    assert "hint:" in text


def test_quiet_shows_no_progress(here):
    assert in_terminal(here, "merge", "a", "b", "-m", "linear", "--quiet") == (0, "merged\r\n")


def test_lines_of_progress_elsewhere():
    from rlmerge.cli._output import Output
    from rlmerge.cli._progress import _Tenths

    lines = []
    out = Output()
    out.note = lines.append
    show = _Tenths(out)
    for done in range(0, 1001):
        show({"bytes_done": done, "bytes_total": 1000, "tensors_done": done // 100, "tensors_total": 10})
    assert [line.split(":")[0] for line in lines] == [f"{10 * tenth} %" for tenth in range(1, 10)]
    assert "of 10 tensors" in lines[0]
    show({"bytes_done": 0, "bytes_total": 0, "tensors_done": 0, "tensors_total": 0})
