"""The faults that rlmerge is tried with, one function each; `table` runs them all and writes docs/faults.md."""

import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.faults import power_cut
from tests.faults.kill_cycles import cycles
from tests.faults.merges import digest, identities
from tests.faults.scene import KILLED, CannotRun, Scene, interrupt
from tests.faults.sweep import ROWS, STRACE, STRACE_SIGNAL, injected, sweep


@dataclass(frozen=True)
class Fault:
    """A fault, what must come of it, and how it is made (a reason in `elsewhere` when it is not made here)."""

    number: str
    name: str
    expected: str
    run: Callable[[Scene], None] | None = None
    elsewhere: str = ""


FAULTS: list[Fault] = []
#: Places at which a sweep fails a call, at most.
PLACES = int(os.environ.get("RLMERGE_FAULT_PLACES", "10"))


def fault(number: str, name: str, expected: str):
    """Enters a function in the catalogue."""

    def enter(function: Callable[[Scene], None]) -> Callable[[Scene], None]:
        FAULTS.append(Fault(number, name, expected, function))
        return function

    return enter


def elsewhere(number: str, name: str, expected: str, why: str) -> None:
    """Enters a fault that this script does not make."""
    FAULTS.append(Fault(number, name, expected, None, why))


def swept(*words: str) -> Callable[[Scene], None]:
    """Fails a call at each of its places: the rows of `sweep` with these words in their names."""

    def run(scene: Scene) -> None:
        needs("strace")
        rows = [row for row in ROWS if any(word in row.name for word in words)]
        assert rows, words
        for row in rows:
            places, wrong = sweep(scene.merge, row, scene.expected, PLACES)
            scene.runs += places
            scene.wrong += wrong if places else [f"{row.name}: the merge makes no such call"]

    return run


def needs(program: str) -> None:
    """Gives up where a program is not here."""
    if shutil.which(program) is None:
        raise CannotRun(f"`{program}` is not here")


def as_nobody(scene: Scene, *command: str, **options) -> subprocess.CompletedProcess:
    """Runs a command as a user without rights: root may read and write everything."""
    needs("setpriv")
    if os.geteuid() != 0:
        raise CannotRun("only root can become another user")
    set_user = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    if scene.run(*set_user, sys.executable, "-c", "import rlmerge").returncode:
        raise CannotRun("another user cannot run this interpreter")
    return scene.run(*set_user, *command, **options)


# ---- kills ----------------------------------------------------------------------------------------------------------


@fault("F01", "kill −9 at random moments, then `--resume`", "output absent or whole, inputs untouched, one stage left")
def kills(scene: Scene) -> None:
    count = 5 * PLACES
    scene.remove("whole")  # it makes its own
    found = cycles(scene.merge, count, seed=2, quiet=True)
    scene.runs += count
    scene.wrong += found["wrong"]


FAULTS.append(
    Fault("F02", "kill −9 at each mkdir, fallocate, write, fsync, rename, unlink", "the same", swept("killed while"))
)

# ---- full disks -----------------------------------------------------------------------------------------------------

FAULTS.append(
    Fault(
        "F03",
        "ENOSPC or EDQUOT at each mkdir, fallocate, write",
        "exit 5, the stage gone (kept with `--resume`)",
        swept("no space for", "no space while reserving", "no space while writing", "over the quota"),
    )
)


@fault("F04", "a disk that is really full, 12 sizes, one page too small included", "exit 5, the disk as before")
def full_disk(scene: Scene) -> None:
    # 16 MiB are asked for besides, for the small files.
    enough = (3_000_000 + (16 << 20)) * 1.02
    sizes = [enough * at / 10 for at in range(1, 10)] + [enough - 300_000, enough + 500_000, 2 * enough]
    for size in sizes:
        run = scene.on_disk(size / 1e6, "$M -o disk/out; code=$?; ls -A disk | tr '\\n' ' ' >&2; exit $code")
        fits = size > enough
        scene.check(run, (0,) if fits else (5,), f"{size:.0f} bytes", "" if fits else "no_space")
        if run.stderr.endswith("out ") != fits or ".rlmerge-" in run.stderr.splitlines()[-1]:
            scene.wrong.append(f"{size:.0f} bytes: on the disk: {run.stderr[-100:]}")


@fault("F05", "another process fills the disk meanwhile", "exit 5 or 0; whole or gone")
def filled_meanwhile(scene: Scene) -> None:
    for pause in (0, 0.2, 0.35, 0.5, 0.8):
        fill = f"(sleep {pause}; dd if=/dev/zero of=disk/fill bs=64k 2>/dev/null) & "
        tail = "wait; rm -f disk/fill; ls -A disk | tr '\\n' ' ' >&2; exit $code"
        run = scene.on_disk(24, f"{fill} $M -o disk/out; code=$?; {tail}")
        scene.check(run, (0, 5), f"after {pause} s")
        left = run.stderr.splitlines()[-1] if run.stderr else ""
        if ("out" in left.split()) != (run.returncode == 0) or ".rlmerge-" in left:
            scene.wrong.append(f"after {pause} s: exit code {run.returncode}, on the disk: {left}")


@fault("F06", "the last byte does not fit", "exit 5 before a tensor is read")
def last_byte(scene: Scene) -> None:
    needs("strace")
    total = sum(path.stat().st_size for path in (scene.root / "whole").iterdir())
    trace = " ".join([*STRACE, "-qq -y -o trace -e trace=pread64"])
    run = scene.on_disk((total - 1) / 1e6, f"{trace} $M -o disk/out; code=$?; ls -A disk >&2; exit $code")
    scene.check(run, (5,), "one byte short", "no_space")
    # A header is read in two calls: its length, and its text.
    longest = 0
    for line in (scene.root / "trace").read_text().splitlines():
        if ".safetensors>" in line and "= " in line:
            longest = max(longest, int(line.rpartition("= ")[2].split()[0]))
    if longest > 100_000:
        scene.wrong.append(f"{longest} bytes of a model were read")


@fault("F07", "room for the shards, none for index and report", "exit 5 before anything is written")
def shards_only(scene: Scene) -> None:
    shards = sum(path.stat().st_size for path in (scene.root / "whole").glob("*.safetensors"))
    run = scene.on_disk(shards / 1e6 + 0.05, "$M -o disk/out; code=$?; ls -A disk >&2; exit $code")
    scene.check(run, (5,), "shards only", "no_space")


@fault("F08", "no inodes left; a quota", "exit 5 that says which")
def inodes(scene: Scene) -> None:
    for count in (2, 3, 4, 5, 6):
        run = scene.on_disk(60, "$M -o disk/out; code=$?; ls -A disk >&2; exit $code", f",nr_inodes={count}")
        scene.check(run, (5,), f"{count} inodes", "no free inodes")
        if ".rlmerge-" in run.stderr.splitlines()[-1]:
            scene.wrong.append(f"{count} inodes: a stage is left")
    swept("over the quota")(scene)


@fault("F09", "a file size limit (RLIMIT_FSIZE)", "exit 5, not SIGXFSZ")
def file_size(scene: Scene) -> None:
    for limit in (0, 1, 100_000, 500_000, 1_000_000):

        def lower(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        run = scene.run(*scene.merge.command(), preexec_fn=lower)
        scene.look(run, (5,), f"{limit} bytes", "file size limit")
    swept("file too large")(scene)


# ---- disks that fail ------------------------------------------------------------------------------------------------

FAULTS.append(Fault("F10", "EIO at each write", "exit 5, the stage gone", swept("the disk fails while writing")))


@fault("F11", "EIO at each fsync", "exit 5; fsync is never called again on that file; nothing is published")
def sync_fails(scene: Scene) -> None:
    swept("the disk fails while syncing")(scene)
    row = next(row for row in ROWS if row.name == "the disk fails while syncing")
    run = injected(scene.merge, row, 1)
    synced = [line.split("(")[1].split(")")[0] for line in trace(scene) if "fsync(" in line]
    if len(synced) != 1:
        scene.wrong.append(f"fsync was called {len(synced)} times")
    scene.look(run, (5,), "the first fsync")


def trace(scene: Scene) -> list[str]:
    """The log of the last run under strace."""
    return (scene.root / "trace").read_text().splitlines()


@fault("F12", "EIO at the fsync after the rename", "the output stays, whole; exit 5: may not survive a power cut")
def last_sync(scene: Scene) -> None:
    row = next(row for row in ROWS if row.name == "the disk fails while syncing")
    for at in range(1, 40):
        run = injected(scene.merge, row, at)
        scene.runs += 1
        if run.returncode == 0:
            break
        last = scene.merge.output.exists(), run
        scene.look(run, (5,), f"fsync {at}", output=True)
    if not last[0] or "may not survive a power cut" not in last[1].stderr:
        scene.wrong.append(f"the last fsync: {last[1].stderr[-200:]}")
    scene.clear()


STORM = """
import os, signal, sys
import rlmerge
seen = []
signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
signal.siginterrupt(signal.SIGALRM, True)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
for i in range(5):
    rlmerge.merge(["a", "b"], base="base", method="ties", output=f"storm{i}", threads=2, shard_size="2MB")
signal.setitimer(signal.ITIMER_REAL, 0)
assert len(seen) > 20, len(seen)
"""


@fault("F13", "EINTR at each read, write, fallocate; a signal every millisecond", "success, the same bytes")
def interrupted(scene: Scene) -> None:
    swept("interrupted while")(scene)
    run = scene.python(STORM)
    scene.check(run, (0,), "a signal every millisecond")
    for i in range(5):
        shards = [path.read_bytes() for path in sorted((scene.root / f"storm{i}").glob("*.safetensors"))]
        if shards != [path.read_bytes() for path in sorted((scene.root / "whole").glob("*.safetensors"))]:
            scene.wrong.append(f"storm {i}: other bytes")
        scene.remove(f"storm{i}")


@fault("F14", "EIO on an input", "exit 5, names the file")
def input_fails(scene: Scene) -> None:
    needs("strace")
    for shard in sorted((scene.root / "b").glob("*.safetensors")):
        for at in (1, 2, 3, 5):
            command = [*STRACE, "-qq", "-o", "trace", "-P", str(shard), "-e", "trace=pread64"]
            command += ["-e", f"inject=pread64:error=EIO:when={at}+", *scene.merge.command()]
            run = scene.run(*command)
            if any("INJECTED" in line for line in trace(scene)):
                scene.look(run, (5,), f"{shard.name}, read {at}", shard.name)


# ---- inputs that change ---------------------------------------------------------------------------------------------


def with_changing_input(scene: Scene, change: str, io: str, codes: tuple[int, ...], moments: int = 4) -> None:
    """Changes an input at some moments of a merge of copies that takes a while."""
    drawn = random.Random(moments)
    folder = scene.root / "changing"
    if not folder.exists():
        slow = Scene(folder, 60, tensors=20)
        slow.clear()
    slow = Scene.__new__(Scene)
    slow.root, slow.runs, slow.wrong, slow.merge = folder, 0, [], type(scene.merge)(folder, "ties", 1, ["--io", io])
    slow.expected = digest(folder / "whole")
    victim = sorted((folder / "b").glob("*.safetensors"))[-1]
    kept = victim.read_bytes()
    for moment in range(moments):
        before = victim.stat()
        process = slow.merge.start()
        if slow.merge.wait_for_stage(process):
            time.sleep(drawn.uniform(0, 0.15))
        scene.runs += 1
        if change == "truncate":
            os.truncate(victim, len(kept) // (moment + 1) - 1)
        elif change == "empty":
            os.truncate(victim, 0)
        elif change == "overwrite":
            with victim.open("r+b") as file:
                file.seek(len(kept) // 2)
                file.write(b"\x7f" * 64)
        elif change == "grow":
            with victim.open("ab") as file:
                file.write(b"more")
        elif change == "delete":
            victim.unlink()
        else:
            other = victim.with_name("other")
            other.write_bytes(b"something else")
            other.replace(victim)
        ended = process.poll() is not None
        run = slow.end(process)
        where = f"{change}, {io}, moment {moment}"
        wanted = (0, 3) if ended or codes == (0,) else codes
        # A change after the last look at the inputs is none of this merge.
        scene.check(run, (*wanted, 0) if change in ("truncate", "empty", "overwrite", "grow") else wanted, where)
        if run.returncode and victim.name not in run.stderr:
            scene.wrong.append(f"{where}: the file is not named: {run.stderr[-200:]}")
        if (folder / "out").exists() != (run.returncode == 0):
            scene.wrong.append(f"{where}: exit code {run.returncode}, output there: {(folder / 'out').exists()}")
        if slow.merge.stages():
            scene.wrong.append(f"{where}: a stage is left")
        slow.clear()
        victim.write_bytes(kept)
        os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))


@fault("F15", "an input is truncated while it is read, with pread and mapped", "exit 3, never a signal")
def truncated(scene: Scene) -> None:
    with_changing_input(scene, "truncate", "pread", (3,), PLACES // 2)
    with_changing_input(scene, "truncate", "mmap", (3,), PLACES // 2)


@fault("F16", "an input is emptied; deleted; replaced", "emptied: exit 3; else success on what was opened")
def emptied(scene: Scene) -> None:
    with_changing_input(scene, "empty", "pread", (3,))
    with_changing_input(scene, "empty", "mmap", (3,))
    with_changing_input(scene, "delete", "pread", (0,), 2)
    with_changing_input(scene, "replace", "pread", (0,), 2)


@fault("F17", "bytes of an input are changed in place", "exit 3, nothing published")
def overwritten(scene: Scene) -> None:
    with_changing_input(scene, "overwrite", "pread", (3,))


@fault("F18", "an input grows", "exit 3")
def grown(scene: Scene) -> None:
    with_changing_input(scene, "grow", "pread", (3,))


@fault("F19", "an input changes between plan and run", "exit 3 (`input_changed`)")
def stale_plan(scene: Scene) -> None:
    script = """
import os, glob, rlmerge
plan = rlmerge.plan(["a", "b"], base="base", method="ties", output="out")
path = sorted(glob.glob("a/*.safetensors"))[0]
before = os.stat(path)
os.utime(path, ns=(1, 1))
try:
    plan.run()
except rlmerge.RlmergeError as error:
    print(error.code, error.exit_code)
os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
"""
    run = scene.python(script)
    if run.stdout.split() != ["input_changed", "3"] or scene.merge.output.exists() or scene.merge.stages():
        scene.wrong.append(f"{run.stdout} {run.stderr[-200:]}")


# ---- the rename -----------------------------------------------------------------------------------------------------

FAULTS.append(Fault("F20", "EXDEV at the rename", "exit 5, the stage kept and named", swept("on another file system")))
FAULTS.append(Fault("F21", "renameat2 without flags, or without itself", "another way, success", swept("renameat2 ")))
FAULTS.append(
    Fault("F22", "EEXIST, EACCES at the rename", "exit 6, 5", swept("another output came", "the rename is refused"))
)


@fault("F23", "something is at the output: file, folder, empty folder, links", "exit 6, untouched")
def exists(scene: Scene) -> None:
    out = scene.merge.output
    for kind in ("file", "folder", "empty", "link", "dangling"):
        if kind == "file":
            out.write_text("mine")
        elif kind in ("folder", "empty"):
            out.mkdir()
            if kind == "folder":
                (out / "notes").write_text("mine")
        else:
            out.symlink_to("a" if kind == "link" else "nowhere")
        before = out.lstat()
        run = scene.run(*scene.merge.command())
        # Where a link leads to an input, that is what is said.
        scene.check(run, (6,), kind)
        forced = scene.run(*scene.merge.command("--force")) if kind != "empty" else None
        if forced is not None:
            scene.check(forced, (6,), f"{kind}, --force")
        after = out.lstat()
        if (before.st_ino, before.st_mtime_ns, before.st_mode) != (after.st_ino, after.st_mtime_ns, after.st_mode):
            scene.wrong.append(f"{kind}: changed")
        scene.clear()
    if identities(scene.root) != scene.inputs:
        scene.wrong.append("an input was changed")


@fault("F24", "`--force`, killed at each call", "the old or the new output, whole, at each moment")
def force_killed(scene: Scene) -> None:
    needs("strace")
    scene.run(*scene.merge.command("--density", "0.4"))
    old = scene.root / "old"
    scene.merge.output.rename(old)
    either = (digest(old), scene.expected)
    for call in ("mkdirat", "fallocate", "pwrite64", "fsync", "renameat2", "unlinkat"):
        for at in range(1, PLACES + 1):
            shutil.copytree(old, scene.merge.output)
            strace = [*STRACE_SIGNAL, "-qq", "-o", "trace", "-e", f"trace={call}"]
            run = scene.run(*strace, "-e", f"inject={call}:signal=KILL:when={at}", *scene.merge.command("--force"))
            if not scene.merge.output.exists() or digest(scene.merge.output) not in either:
                scene.wrong.append(f"{call} {at}: neither the old nor the new output")
            scene.clear()
            if run.returncode not in KILLED:
                break
    scene.remove("old")


@fault("F25", "the output is an input: same path, `..`, links, a bind mount", "exit 6, names both")
def output_is_input(scene: Scene) -> None:
    base = scene.merge.command()
    links = scene.root / "links"
    links.mkdir(exist_ok=True)
    (links / "a").symlink_to("../a")
    shard = sorted((scene.root / "a").glob("*.safetensors"))[0]
    os.link(shard, links / "hard.safetensors")
    for output in ("a", "./a", "b/../a", str(scene.root / "a"), "links/a", "links/hard.safetensors", "base"):
        for force in ([], ["--force"]):
            run = scene.run(*[word if word != "out" else output for word in base], *force)
            scene.check(run, (6,), f"{output} {force}")
            if force and "output_is_input" not in run.stdout and "output_not_replaceable" not in run.stdout:
                scene.wrong.append(f"{output}: {run.stdout[-200:]}")
    run = scene.shell("mkdir -p bound && mount --bind a bound || exit 99\n$M -o bound --force", "unshare", "-m")
    if run.returncode != 99:
        scene.check(run, (6,), "a bind mount", "output_is_input")
    (links / "hard.safetensors").unlink()
    shutil.rmtree(links)
    shutil.rmtree(scene.root / "bound", ignore_errors=True)
    if identities(scene.root) != scene.inputs:
        scene.wrong.append("an input was changed")


@fault("F26", "the output inside an input, an input inside the output", "exit 6")
def inside(scene: Scene) -> None:
    for output in ("a/out", "base/deep.safetensors", ".", ".."):
        base = [word if word != "out" else output for word in scene.merge.command()]
        scene.check(scene.run(*base, "--force"), (6,), output)
    if identities(scene.root) != scene.inputs:
        scene.wrong.append("an input was changed")


# ---- others at work -------------------------------------------------------------------------------------------------


def two_at_once(scene: Scene, rounds: int, strace: list[str]) -> None:
    for at in range(rounds):
        pair = [
            subprocess.Popen(
                [*strace, *scene.merge.command()],
                cwd=scene.root,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        scene.runs += 2
        codes = sorted(scene.end(process).returncode for process in pair)
        if codes not in ([0, 6], [6, 6]) or (codes == [6, 6]) or digest(scene.merge.output) != scene.expected:
            scene.wrong.append(f"round {at}: exit codes {codes}")
        if scene.merge.stages():
            scene.wrong.append(f"round {at}: a stage is left")
        scene.clear()


@fault("F27", "two merges into one output, 20 rounds", "one whole output; the other exits with 6")
def two(scene: Scene) -> None:
    two_at_once(scene, 2 * PLACES, [])


@fault("F28", "the same where nothing can be locked", "the same")
def two_without_locks(scene: Scene) -> None:
    needs("strace")
    inject = [*STRACE, "-qq", "-o", "/dev/null", "-e", "trace=flock", "-e", "inject=flock:error=ENOLCK"]
    two_at_once(scene, PLACES // 2, inject)
    swept("locks are not supported")(scene)


@fault("F29", "somebody polls the output path", "nothing, then a whole checkpoint")
def polled(scene: Scene) -> None:
    names = sorted(path.name for path in (scene.root / "whole").iterdir())
    for _ in range(5):
        process = scene.merge.start()
        scene.runs += 1
        while process.poll() is None:
            try:
                seen = sorted(path.name for path in scene.merge.output.iterdir())
            except FileNotFoundError:
                continue
            if seen != names:
                scene.wrong.append(f"seen: {seen}")
        scene.look(scene.end(process), (0,), "polled")


# ---- rights ---------------------------------------------------------------------------------------------------------


@fault("F30", "the folder of the output may not be written; is read-only", "exit 5 before anything is read")
def read_only(scene: Scene) -> None:
    run = as_nobody(scene, *scene.merge.command())
    scene.look(run, (5,), "as another user", "ermission denied")
    run = scene.shell(
        "mkdir -p ro && mount -t tmpfs none ro && mount -o remount,ro ro || exit 99\n$M -o ro/out", "unshare", "-m"
    )
    if run.returncode != 99:
        scene.check(run, (5,), "a read-only file system", "ead-only")


@fault("F31", "an input may not be read", "exit 5, names the file")
def unreadable(scene: Scene) -> None:
    victim = sorted((scene.root / "b").glob("*.safetensors"))[0]
    where = scene.root / "open"
    where.mkdir(exist_ok=True)
    where.chmod(0o777)
    command = [word if word != "out" else "open/out" for word in scene.merge.command()]
    victim.chmod(0)
    try:
        scene.check(as_nobody(scene, *command), (5,), "mode 000", victim.name)
    finally:
        victim.chmod(0o644)
        shutil.rmtree(where)


# ---- signals --------------------------------------------------------------------------------------------------------


@fault("F32", "SIGINT, SIGTERM, SIGHUP at 20 moments", "130, 143, 129 within a second; the stage gone; one line")
def signals(scene: Scene) -> None:
    drawn = random.Random(1)
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        for at in range(2 * PLACES // 3):
            process = scene.merge.start(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
            if at % 2:
                scene.wait_for_stage(process)
            else:
                scene.runs += 1
                time.sleep(drawn.uniform(0.15, 0.5))
            sent = interrupt(process, number)
            run = scene.end(process)
            took = time.monotonic() - sent
            # Before the command line has its handlers the system's own hold.
            early = -number if at % 2 == 0 else code
            scene.look(run, (0, code, early), f"{number.name}, moment {at}", output=True)
            if took > 3:
                scene.wrong.append(f"{number.name}: took {took:.1f} s")


@fault("F33", "Ctrl-C twice, 50 ms apart", "ends at once with 130; a stage may be left")
def twice(scene: Scene) -> None:
    for _ in range(PLACES):
        process = scene.merge.start(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
        scene.wait_for_stage(process)
        interrupt(process)
        time.sleep(0.05)
        sent = interrupt(process)
        run = scene.end(process)
        took = time.monotonic() - sent
        scene.look(run, (130, 0), "twice", stage=True, output=True)
        if took > 3:
            scene.wrong.append(f"took {took:.1f} s")


TESTED = "in the test suite: "
elsewhere("F34", "Ctrl-C in Python on a terminal", "KeyboardInterrupt; threads and stage gone; the next merge works",
          TESTED + "`tests/faults/test_embedding.py::test_ctrl_c_on_the_main_thread`")  # fmt: skip
elsewhere("F35", "Ctrl-C while another thread merges", "the main thread gets it; `Plan.cancel()` stops the merge",
          TESTED + "`tests/faults/test_embedding.py::test_ctrl_c_while_another_thread_merges`")  # fmt: skip


@fault("F36", "SIGSTOP for 3 seconds, SIGCONT", "success")
def stopped(scene: Scene) -> None:
    for _ in range(2):
        process = scene.merge.start()
        scene.wait_for_stage(process)
        interrupt(process, signal.SIGSTOP)
        time.sleep(3)
        interrupt(process, signal.SIGCONT)
        scene.look(scene.end(process), (0,), "stopped")


# ---- limits ---------------------------------------------------------------------------------------------------------


@fault("F37", "memory limits (RLIMIT_AS) from 40 MiB to 2 GiB", "success or exit 5 (out of memory), no signal")
def memory(scene: Scene) -> None:
    for megabytes in (40, 48, 56, 64, 72, 80, 96, 112, 128, 160, 192, 256, 512, 1024, 2048):

        def lower(limit: int = megabytes << 20) -> None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

        if scene.rlmerge("methods", "--quiet", preexec_fn=lower).returncode:
            continue  # not even the interpreter starts
        run = scene.run(*scene.merge.command(), preexec_fn=lower)
        scene.look(run, (0, 5), f"{megabytes} MiB", "out of memory" if run.returncode == 5 else "")


@fault("F38", "a cgroup of 128 MiB, models of 3 × 150 MB", "success: memory does not grow with the model")
def cgroup(scene: Scene) -> None:
    group = Path("/sys/fs/cgroup/memory/rlmerge-faults")
    try:
        group.mkdir(exist_ok=True)
        (group / "memory.limit_in_bytes").write_text(str(128 << 20))
    except OSError as error:
        raise CannotRun(f"no memory group can be made: {error.strerror}") from None
    try:
        folder = scene.root / "big"
        big = Scene(folder, 150, tensors=30)
        # A file system in memory would be counted with the group.
        kind = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True).stdout.strip()
        if kind == "tmpfs":
            raise CannotRun("the models lie in memory here, which counts as the merge's")
        run = big.shell(f"echo $$ > {group}/tasks; exec $M -o out")
        scene.runs += 1
        big.look(run, (0,), "128 MiB")
        scene.wrong += big.wrong
    finally:
        shutil.rmtree(scene.root / "big", ignore_errors=True)
        group.rmdir()


@fault("F39", "8, 16, 32 descriptors; 300 shards under 256", "success, or exit 5 that says so")
def descriptors(scene: Scene) -> None:
    for count in (8, 16, 24, 32, 64):
        run = scene.shell(f"ulimit -n {count}; $M -o out")
        scene.look(run, (0, 5), f"{count} descriptors", "" if run.returncode == 0 else "oo many open files")
    many = scene.root / "many"
    many.mkdir()
    from tests import models

    tensors = {f"t{i}": np.full(4, i, np.float32) for i in range(300)}
    models.write_folder(many / "in", tensors, shards=300, family=None)
    run = scene.shell("ulimit -n 256; $R merge many/in many/in -m linear -o many/out --json")
    scene.check(run, (0, 5), "300 shards", "" if run.returncode == 0 else "oo many open files")
    shutil.rmtree(many)


@fault("F40", "threads: 0, −1, a million; a limit on processes", "exit 2; or fewer, or exit 5; no panic")
def threads(scene: Scene) -> None:
    for count in ("0", "-1", "1000000", "x"):
        command = [word if word != "2" else count for word in scene.merge.command()]
        scene.look(scene.run(*command), (2,), f"{count} threads")
    where = scene.root / "open"
    where.mkdir(exist_ok=True)
    where.chmod(0o777)
    command = [word if word != "out" else "open/out" for word in scene.merge.command()]
    for limit in (1, 2, 3):

        def lower(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))

        run = as_nobody(scene, *command, preexec_fn=lower)
        scene.check(run, (0, 5), f"{limit} processes", "" if run.returncode == 0 else "worker threads")
        shutil.rmtree(where / "out", ignore_errors=True)
    shutil.rmtree(where)


# ---- streams and surroundings ---------------------------------------------------------------------------------------


@fault("F41", "the reader of stdout goes away", "exit 0, no traceback")
def closed_pipe(scene: Scene) -> None:
    for command in ("inspect base", "methods", "inspect base --json"):
        run = scene.shell(f"{{ $R {command}; echo $? > code; }} | head -1")
        code = int((scene.root / "code").read_text())
        scene.check(subprocess.CompletedProcess("", code, "", run.stderr), (0,), command)


@fault("F42", "stdout is full", "exit 5: a report that was not written is an error")
def full_stdout(scene: Scene) -> None:
    for command in ("$R inspect base", "$R methods --json", "$M -o out"):
        run = scene.shell(f"{command} > /dev/full")
        scene.check(run, (5,), command)
    scene.look(run, (5,), "the merge", output=True)


@fault("F43", "descriptors 0, 1, 2 are closed", "works; no word lands in a shard")
def closed_streams(scene: Scene) -> None:
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        run = scene.shell(f"$M -o out {closed}")
        scene.look(run, (0,), closed)


@fault("F44", "`--report` cannot be written, is a folder, is there already", "exit 5 or 6; no stage")
def report(scene: Scene) -> None:
    (scene.root / "folder.md").mkdir(exist_ok=True)
    (scene.root / "there.md").write_text("mine")
    for path, codes in (("no/such/report.md", (5,)), ("folder.md", (6,)), ("there.md", (6,)), ("x.txt", (2,))):
        run = scene.run(*scene.merge.command("--report", path))
        scene.look(run, codes, path, output=path.startswith("no/"))
    if (scene.root / "there.md").read_text() != "mine":
        scene.wrong.append("a report was overwritten")
    (scene.root / "folder.md").rmdir()
    (scene.root / "there.md").unlink()


@fault("F45", "no TMPDIR, no HOME, `LC_ALL=C`, names that are not UTF-8", "no effect; names are escaped")
def surroundings(scene: Scene) -> None:
    for setting in ("TMPDIR=/no/such", "TMPDIR=/dev/full", "-u HOME", "LC_ALL=C", "LC_ALL=C PYTHONUTF8=0", "-u PATH"):
        run = scene.shell(f"env {setting} $M -o out")
        scene.look(run, (0,), setting)
    name = os.fsdecode(b"b\xff\x1b[31m")
    (scene.root / name).symlink_to("b")
    command = [word if word != "b" else name for word in scene.merge.command()]
    run = scene.run(*command)
    scene.check(run, (0, 2, 3), "a name that is not UTF-8")
    if "\x1b" in run.stderr + run.stdout:
        scene.wrong.append("a name reached the terminal")
    (scene.root / name).unlink()
    scene.clear()


@fault("F46", "umask 077, 000, 022, 027", "modes 600, 666, 644, 640 on every file")
def umask(scene: Scene) -> None:
    for mask in (0o077, 0o000, 0o022, 0o027):
        run = scene.shell(f"umask {mask:03o}; $M -o out")
        scene.check(run, (0,), f"{mask:03o}")
        modes = {path.stat().st_mode & 0o777 for path in scene.merge.output.iterdir()}
        if modes != {0o666 & ~mask} or scene.merge.output.stat().st_mode & 0o777 != 0o777 & ~mask:
            scene.wrong.append(f"{mask:03o}: {sorted(map(oct, modes))}")
        scene.clear()


@fault("F47", "the clock jumps (faketime)", "no panic, the same bytes")
def clock(scene: Scene) -> None:
    needs("faketime")
    for when in ("1970-01-02", "2038-01-20", "-1y"):
        scene.look(scene.run("faketime", when, *scene.merge.command()), (0,), when)


@fault("F48", "a pipe, a device, a folder, a socket, links in a circle as model and as output", "an error in 2 s")
def odd_files(scene: Scene) -> None:
    odd = scene.root / "odd"
    odd.mkdir(exist_ok=True)
    os.mkfifo(odd / "pipe.safetensors")
    (odd / "device.safetensors").symlink_to("/dev/zero")
    (odd / "folder.safetensors").mkdir()
    listening = socket.socket(socket.AF_UNIX)
    os.chdir(odd)
    listening.bind("socket.safetensors")
    os.chdir("/")
    (odd / "circle.safetensors").symlink_to("circle.safetensors")
    (odd / "dangling.safetensors").symlink_to("nowhere")
    for path in sorted(odd.iterdir()):
        start = time.monotonic()
        run = scene.rlmerge("merge", "a", f"odd/{path.name}", "-m", "linear", "-o", "out", wait=20)
        scene.look(run, (3, 5), path.name)
        scene.check(
            scene.rlmerge("merge", "a", "b", "-m", "linear", "-o", f"odd/{path.name}", wait=20), (6,), path.name
        )
        if time.monotonic() - start > 15:
            scene.wrong.append(f"{path.name}: took {time.monotonic() - start:.1f} s")
    # As the configuration of a model, beside its tensors.
    shutil.copytree(scene.root / "a", odd / "model")
    for config in ("config.json", "tokenizer.json", "generation_config.json"):
        (odd / "model" / config).unlink(missing_ok=True)
        os.mkfifo(odd / "model" / config)
        run = scene.rlmerge("merge", "odd/model", "b", "-m", "linear", "-o", "out", wait=20)
        # What is only copied is left out.
        scene.check(run, (3, 5) if config == "config.json" else (0, 3, 5), f"a pipe as {config}")
        scene.clear()
        (odd / "model" / config).unlink()
    listening.close()
    shutil.rmtree(odd)
    scene.clear()


@fault("F49", "names of 255 bytes, a path of 4 096, a working folder that is gone", "works, or exit 5 with the path")
def long_paths(scene: Scene) -> None:
    run = scene.shell(f"$M -o {'n' * 255}")
    scene.check(run, (0,), "255 bytes")
    shutil.rmtree(scene.root / ("n" * 255), ignore_errors=True)
    scene.check(scene.shell(f"$M -o {'n' * 256}"), (5,), "256 bytes")
    deep = "/".join(["d" * 200] * 25)
    scene.check(scene.shell(f"$M -o {deep}"), (5,), "5 000 bytes")
    gone = "mkdir -p gone; cd gone; rmdir ../gone"
    models = f"{scene.root}/a {scene.root}/b -m linear"
    scene.check(scene.shell(f"{gone}; $R merge {models} -o out"), (5,), "the folder is gone")
    scene.check(scene.shell(f"{gone}; $R merge {models} -o {scene.root}/out"), (0,), "the folder is gone, whole paths")
    scene.clear()


# ---- going on -------------------------------------------------------------------------------------------------------


@fault("F50", "killed after each tensor in turn, then `--resume`", "finished files keep their inode; the same bytes")
def resumed(scene: Scene) -> None:
    needs("strace")
    strace = [*STRACE_SIGNAL, "-qq", "-o", "trace", "-e", "trace=write", "-e"]
    for at in range(1, 40):
        # Each line of the journal is one write.
        command = [*strace, f"inject=write:signal=KILL:when={at}", *scene.merge.command("--resume", "--threads", "1")]
        run = scene.run(*command)
        if run.returncode not in KILLED:
            break
        files = {
            path.name: path.stat().st_ino for stage in scene.merge.stages() for path in stage.glob("*.safetensors")
        }
        again = scene.run(*scene.merge.command("--resume"))
        if again.returncode == 0:
            kept = {path.name: path.stat().st_ino for path in scene.merge.output.glob("*.safetensors")}
            if any(kept.get(name) != inode for name, inode in files.items()):
                scene.wrong.append(f"write {at}: a file was made anew")
        # Before the journal has its first two lines nothing says what a stage is for: it stays.
        scene.look(again, (0,), f"write {at}", stage=at <= 2)
    scene.clear()


elsewhere("F51", "`--resume` with another recipe, seed or input; a damaged shard or journal", "refused, or done again",
          TESTED + "`tests/faults/test_kills.py`, and 60 s a target of mutated journals in "
          "`rust/rlmerge-core/tests/journal_mutations.rs`")  # fmt: skip
elsewhere("F52", "stages of a dead run, of a living one, of another user", "named; exit 6; left alone",
          TESTED + "`tests/faults/test_kills.py`, `rust/rlmerge-core/tests/resume.rs`")  # fmt: skip


@fault("F53", "one bit of an output flips", "`rlmerge verify`: exit 8, names file and tensor")
def flipped(scene: Scene) -> None:
    scene.merge.run(output="flip")
    drawn = random.Random(3)
    for path in sorted((scene.root / "flip").glob("*.safetensors")):
        whole = path.read_bytes()
        length = int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8 : 8 + length])
        for _ in range(3):
            at = drawn.randrange(8 + length, len(whole))
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            spans = ((name, entry["data_offsets"]) for name, entry in header.items() if name != "__metadata__")
            tensor = next(name for name, (begin, end) in spans if begin <= at - 8 - length < end)
            run = scene.rlmerge("verify", "flip")
            scene.check(run, (8,), f"{path.name}, byte {at}", path.name)
            scene.check(run, (8,), f"{path.name}, byte {at}", tensor)
        path.write_bytes(whole)
    scene.check(scene.rlmerge("verify", "flip"), (0,), "put back")
    scene.remove("flip")


elsewhere("F54", "a panic in a worker", "exit 1, a bug; the other workers stop",
          TESTED + "`exec/pass.rs`, `a_panic_is_a_bug_and_stops_the_other_workers`")  # fmt: skip
for number, what, right, test in (
    (
        "F55",
        "a callback that raises, is slow, merges",
        "comes through with its traceback; no dead-lock",
        "TestCallbacks",
    ),
    ("F56", "fork, spawn, fork in the middle of a merge", "works", "TestProcesses"),
    ("F58", "eight threads merge; eight want one output", "all whole; one wins", "TestThreads"),
):
    elsewhere(number, what, right, f"{TESTED}`tests/faults/test_embedding.py::{test}`")
elsewhere("F57", "use after close, an array that outlives its model", "no crash",
          "does not arise: the module hands out no arrays and has nothing to close")  # fmt: skip
elsewhere("F59", "a processor without AVX2", "the same bytes",
          "no emulator here; the test suite holds each instruction set of the processor against plain Rust, bit by bit "
          "(`rust/rlmerge-core/tests/kernels.rs`)")  # fmt: skip


@fault("F60", "a power cut after each call (the log of calls replayed; what was not synced is lost)", "absent or whole")
def power(scene: Scene) -> None:
    needs("strace")
    root = str(scene.root.resolve())
    states = 0
    for more in ([], ["--threads", "2"]):
        command = [*STRACE, "-y", "-qq", "-s", "0", "-o", "trace", "-e", f"trace={power_cut.CALLS}"]
        run = scene.run(*command, *scene.merge.command(*more))
        disk = power_cut.Disk(root)
        seen, wrong = disk.replay(trace(scene), "out")
        states += seen
        scene.wrong += wrong
        inside = disk.names[root].get("out")
        if not isinstance(inside, str) or len(disk.names[inside]) != len(list((scene.root / "whole").iterdir())):
            scene.wrong.append("when the merge had ended, the output was not on the disk")
        scene.look(run, (0,), "under strace")
    scene.runs = states


FAULTS.append(
    Fault("F61", "the disk is full while the journal is written", "success without it", swept("the journal cannot"))
)


@fault("F62", "a slow disk: each write takes 0.2 s (FUSE is not here); Ctrl-C meanwhile", "130 within a second")
def slow_disk(scene: Scene) -> None:
    needs("strace")
    slow = [*STRACE_SIGNAL, "-qq", "-o", "/dev/null", "-e", "trace=pwrite64", "-e"]
    slow += ["inject=pwrite64:delay_enter=200000"]
    scene.look(scene.run(*slow, *scene.merge.command()), (0,), "slow")
    for _ in range(3):
        process = subprocess.Popen(
            [*slow, *scene.merge.command()],
            cwd=scene.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Jobs in the background have it ignored, and what they start inherits that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        scene.runs += 1
        end = time.monotonic() + 30
        while not scene.merge.stages() and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(0.2)
        for stage in scene.merge.stages():
            os.kill(int(stage.name.split(".rlmerge-")[1].split("-")[0]), signal.SIGINT)
        sent = time.monotonic()
        scene.look(scene.end(process), (130,), "Ctrl-C")
        if time.monotonic() - sent > 3:
            scene.wrong.append(f"took {time.monotonic() - sent:.1f} s")


FAULTS.append(Fault("F63", "ENOSPC at each fsync (NFS)", "exit 5, nothing published", swept("no space while syncing")))


@fault("F64", "hostile recipes: tags, bombs of aliases, deep nesting, keys twice", "exit 2 in 5 s and 256 MiB")
def recipes(scene: Scene) -> None:
    pairs = zip("abcdefghij", "bcdefghijk", strict=True)
    bomb = "a: &a [x, x]\n" + "\n".join(f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]" for a, b in pairs)
    texts = {
        "tag": "method: !!python/object/apply:os.system ['touch owned']\nmodels: [a, b]\n",
        "bomb": bomb + "\nmethod: *k\nmodels: *k\n",
        "deep": "method: " + "[" * 100_000 + "]" * 100_000,
        "twice": "method: linear\nmethod: ties\nmodels: [a, b]\n",
        "unknown": "method: linear\nmodles: [a, b]\n",
        "binary": "\x00\x01\x02",
        "empty": "",
    }

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))

    for name, text in texts.items():
        (scene.root / f"{name}.yaml").write_text(text)
        start = time.monotonic()
        run = scene.rlmerge("merge", f"{name}.yaml", "-o", "out", preexec_fn=lower)
        scene.look(run, (2,), name)
        if time.monotonic() - start > 5:
            scene.wrong.append(f"{name}: took {time.monotonic() - start:.1f} s")
        (scene.root / f"{name}.yaml").unlink()
    if (scene.root / "owned").exists():
        scene.wrong.append("a tag was obeyed")


@fault(
    "§2.2 step 5", "a disk that says it wrote and did not, `--verify`", "exit 8, names the tensor; nothing published"
)
def lying_disk(scene: Scene) -> None:
    needs("strace")
    strace = [*STRACE, "-qq", "-o", "trace", "-y", "-e", "trace=pwrite64", "-e"]
    met = 0
    for at in range(1, PLACES):
        lie = f"inject=pwrite64:retval=64:when={at}"
        run = scene.run(*strace, lie, *scene.merge.command("--verify", "--threads", "1"))
        if not any("INJECTED" in line for line in trace(scene)):
            break
        met += 1
        scene.look(run, (8,), f"write {at}", "reads back otherwise")
    if not met:
        scene.wrong.append("no write was made up")
    scene.look(scene.run(*scene.merge.command("--verify")), (0,), "a disk that does not lie")


elsewhere("§2.2 step 8", "dm-flakey, dm-log-writes: a block device that drops or reorders writes", "absent or whole",
          "no device mapper here; F60 replays the calls instead")  # fmt: skip
