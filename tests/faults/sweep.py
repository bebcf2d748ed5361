"""Fails, interrupts or kills a merge at its first, second, third … system call of a kind, and looks at what is left.

    python -m tests.faults.sweep

Every row is one fault of one call, injected by strace at each place in turn until a run no longer meets it. After each
run the output must be absent or whole, the inputs what they were, and only a stage may be left, where the row allows
one; `--resume` must then end with the same bytes. Prints a table; exits with 1 when anything was otherwise. Needs
strace.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.faults.merges import Merge, digest, identities, remove, write_models


@dataclass(frozen=True)
class Row:
    """A fault and what must come of it."""

    name: str
    call: str
    fault: str
    #: Exit codes of runs that met it; 0 with a whole output is right wherever a run may go on all the same.
    codes: tuple[int, ...]
    #: Whether a stage may be left.
    stage: bool = False
    #: Whether the output may be there although the run failed.
    output: bool = False
    more: tuple[str, ...] = ()
    #: The first call that is the merge's own: the interpreter is loaded by the ones before.
    first: int = 1


KILLED = (-9, 137)
#: Only the calls that are asked for stop the merge; without that it takes five times as long.
STRACE = ("strace", "-f", "--seccomp-bpf")
#: The same for faults that are signals: with the former, only the first call of a thread gets one (strace 6.1).
STRACE_SIGNAL = ("strace", "-f")
ROWS = (
    Row("killed while making the stage", "mkdirat", "signal=KILL", KILLED, stage=True),
    Row("killed while reserving", "fallocate", "signal=KILL", KILLED, stage=True),
    Row("killed while writing a tensor", "pwrite64", "signal=KILL", KILLED, stage=True),
    Row("killed while syncing", "fsync", "signal=KILL", KILLED, stage=True, output=True),
    Row("killed while renaming", "renameat2", "signal=KILL", KILLED, stage=True, output=True),
    Row("killed while removing", "unlinkat", "signal=KILL", KILLED, stage=True, output=True),
    Row("no space for the stage", "mkdirat", "error=ENOSPC", (5,)),
    Row("no space while reserving", "fallocate", "error=ENOSPC", (5,)),
    Row("over the quota while reserving", "fallocate", "error=EDQUOT", (5,)),
    Row("no space while writing", "pwrite64", "error=ENOSPC", (5,)),
    Row("no space while writing, --resume", "pwrite64", "error=ENOSPC", (5,), stage=True, more=("--resume",)),
    Row("file too large", "pwrite64", "error=EFBIG", (5,)),
    Row("the disk fails while writing", "pwrite64", "error=EIO", (5,)),
    Row("the disk fails while syncing", "fsync", "error=EIO", (5,), output=True),
    Row("no space while syncing (NFS)", "fsync", "error=ENOSPC", (5,), output=True),
    Row("interrupted while writing", "pwrite64", "error=EINTR", (0,)),
    Row("interrupted while reading", "pread64", "error=EINTR", (0,), first=4),
    Row("interrupted while reserving", "fallocate", "error=EINTR", (0,)),
    Row("reserving is not supported", "fallocate", "error=EOPNOTSUPP", (0,)),
    Row("locks are not supported", "flock", "error=ENOLCK", (0,)),
    Row("renameat2 is not supported", "renameat2", "error=EINVAL", (0,)),
    Row("renameat2 does not exist", "renameat2", "error=ENOSYS", (0,)),
    Row("the stage is on another file system", "renameat2", "error=EXDEV", (5,), stage=True),
    Row("the rename is refused", "renameat2", "error=EACCES", (5,), stage=True),
    Row("another output came meanwhile", "renameat2", "error=EEXIST", (6,)),
    Row("the journal cannot be written", "write", "error=ENOSPC", (0, 5, 120), output=True),
)


def injected(merge: Merge, row: Row, at: int) -> subprocess.CompletedProcess:
    """Runs the merge with the fault at this call of each thread."""
    strace = [
        *(STRACE_SIGNAL if row.fault.startswith("signal") else STRACE),
        "-qq",
        "-o",
        "trace",
        "-e",
        f"trace={row.call}",
    ]
    strace += ["-e", f"inject={row.call}:{row.fault}:when={at}", *merge.command(*row.more)]
    return subprocess.run(strace, cwd=merge.root, capture_output=True, text=True, timeout=120)


def sweep(merge: Merge, row: Row, expected: str, most: int) -> tuple[int, list[str]]:
    """The number of places at which the fault was met, and what was wrong."""
    wrong = []
    before = identities(merge.root)
    for at in range(row.first, row.first + most):
        run = injected(merge, row, at)
        trace = (merge.root / "trace").read_text()
        met = "INJECTED" in trace or "killed by" in trace
        if not met:
            return at - row.first, wrong + _check(merge, row, run, expected, at, met=False)
        wrong += _check(merge, row, run, expected, at, met=True)
        if identities(merge.root) != before:
            wrong.append(f"{row.name}, call {at}: an input was changed")
    return most, wrong


def _check(merge: Merge, row: Row, run: subprocess.CompletedProcess, expected: str, at: int, *, met: bool) -> list[str]:
    wrong = []
    codes = row.codes if met else (0,)
    where = f"{row.name}, call {at}"
    if run.returncode not in codes:
        wrong.append(f"{where}: exit code {run.returncode}: {run.stderr[-300:]}")
    if merge.output.exists():
        if digest(merge.output) != expected:
            wrong.append(f"{where}: the output is not whole")
        if run.returncode != 0 and not row.output:
            wrong.append(f"{where}: an output after exit code {run.returncode}")
        remove(merge.output)
    elif run.returncode == 0:
        wrong.append(f"{where}: no output")
    if merge.stages() and not (row.stage and met):
        wrong.append(f"{where}: a stage is left")
    if run.returncode not in KILLED and run.returncode != 0 and "Traceback" in run.stderr:
        wrong.append(f"{where}: a traceback")
    if merge.stages():
        again = merge.run("--resume")
        if again.returncode or digest(merge.output) != expected:
            wrong.append(f"{where}: --resume: {again.stderr[-300:]}")
        remove(merge.output)
        subprocess.run([sys.executable, "-m", "rlmerge", "clean", "."], cwd=merge.root, capture_output=True)
    return wrong


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=40, help="calls of a kind that are tried, at most")
    parser.add_argument("--rows", default="", help="only rows with this in their name")
    given = parser.parse_args()
    if shutil.which("strace") is None:
        print("strace is not here", file=sys.stderr)
        return 2
    failed = False
    with tempfile.TemporaryDirectory(prefix="rlmerge-sweep-") as folder:
        root = Path(folder)
        write_models(root, 3, tensors=6)
        merge = Merge(root, "ties", 2, ["--shard-size", "2MB"])
        whole = merge.run(output="whole", check=True)
        expected = digest(root / "whole")
        print(f"a merge of {json.loads(whole.stdout)['totals']['tensors']} tensors\n")
        print("| fault | call | places | expected | wrong |\n| --- | --- | --- | --- | --- |")
        for row in (row for row in ROWS if given.rows in row.name):
            places, wrong = sweep(merge, row, expected, given.most)
            end = "killed" if row.codes == KILLED else " or ".join(f"exit {code}" for code in row.codes)
            print(f"| {row.name} | `{row.call}`: {row.fault} | {places} | {end} | {len(wrong)} |", flush=True)
            print("".join(f"{line}\n" for line in wrong), end="", file=sys.stderr)
            failed = failed or bool(wrong)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
