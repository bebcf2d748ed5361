"""Run one command as a whole process and measure it: wall time, CPU time, peak resident memory, bytes from the disk.

A process starts with the peak memory of the one that forked it, so a benchmark with arrays in memory would report its
own size for every child. Hence this file is also a program: a small launcher, started afresh for each command, that
forks the command and prints what `wait4` says about it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# Arguments: how many files to read, these files, then pairs of what to copy and where to.
FLOOR = """
cat "${@:2:$1}" >/dev/null
shift $(($1 + 1))
while (($#)); do dd if="$1" of="$2" bs=8M conv=fsync status=none; shift 2; done
"""


@dataclass(frozen=True)
class Measurement:
    wall_s: float
    cpu_s: float
    peak_rss_mb: float
    disk_reads_mb: float  # zero when the page cache was warm


def measure(command: Sequence[str | os.PathLike[str]], env: Mapping[str, str] | None = None) -> Measurement:
    """Run the command; its output goes nowhere unless it fails."""
    launcher = [sys.executable, "-I", "-S", __file__, *(os.fspath(part) for part in command)]
    done = subprocess.run(launcher, capture_output=True, text=True, env={**os.environ, **(env or {})}, check=False)
    if done.returncode != 0:
        raise SystemExit(f"failed: {' '.join(launcher[4:])}\n{done.stderr}")
    return Measurement(**json.loads(done.stdout))


def launch(command: list[str]) -> int:
    # Output of the command goes to stderr, stdout carries the measurement.
    begin = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - begin
    rss_unit = 1 if sys.platform == "darwin" else 1024
    print(
        json.dumps(
            {
                "wall_s": round(wall, 4),
                "cpu_s": round(usage.ru_utime + usage.ru_stime, 4),
                "peak_rss_mb": round(usage.ru_maxrss * rss_unit / 1e6, 1),
                "disk_reads_mb": round(usage.ru_inblock * 512 / 1e6, 1),
            }
        )
    )
    return os.waitstatus_to_exitcode(status)


def floor_command(read: Sequence[Path], copy: Sequence[tuple[Path, Path]]) -> list[str]:
    """`cat` of the files to nowhere, then a copy of some of them with fsync: what no merge can avoid."""
    pairs = [str(path) for pair in copy for path in pair]
    return ["bash", "-euc", FLOOR, "floor", str(len(read)), *map(str, read), *pairs]


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
