"""The sandbox's server: reads calls as JSON lines, runs each in a forked child, writes outputs as JSON lines.

Run as ``python -I -S sandbox_worker.py SECONDS MEGABYTES`` by ``sandbox.py``; imports nothing of the project. What
holds a child: resource limits, and a seccomp filter that allows the few system calls an interpreter needs to compute.
Opening files for writing, sockets, new processes and signals to others are not among them.
"""

from __future__ import annotations

# What answers commonly import; loaded before the fork, so that a child need not look for it.
import bisect  # noqa: F401
import collections  # noqa: F401
import ctypes
import functools  # noqa: F401
import gc
import heapq  # noqa: F401
import itertools  # noqa: F401
import json
import math  # noqa: F401
import operator  # noqa: F401
import os
import platform
import re  # noqa: F401
import resource
import secrets
import select
import signal
import string  # noqa: F401
import struct
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

AT_ONCE = 8  # children
MOST_BYTES = 1 << 16  # of a child's outputs
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
ALLOW, DENY = 0x7FFF0000, 0x00050001  # DENY: the call fails with EPERM
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

# System calls by name of the machine: its audit number, openat, and what is allowed besides.
# read write close fstat lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn ioctl readv writev
# madvise getpid exit uname fcntl gettid futex sched_yield getdents64 clock_gettime exit_group readlinkat newfstatat
# getrandom mremap sigaltstack statx (and stat, lstat, readlink, access on x86-64)
MACHINES = {
    "x86_64": (
        0xC000003E,
        257,
        [0, 1, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 19, 20, 21, 24, 25, 28, 39, 60, 63, 72, 79, 89, 131]
        + [186, 202, 217, 228, 231, 262, 267, 318, 332],
    ),
    "aarch64": (
        0xC00000B7,
        56,
        [17, 25, 29, 57, 61, 62, 63, 64, 65, 66, 78, 79, 80, 93, 94, 98, 113, 124, 132, 134, 135, 139, 160, 172]
        + [178, 214, 215, 216, 222, 226, 233, 278, 291],
    ),
}


def seccomp_program() -> bytes:
    """Build the filter; raises OSError where the machine is not known."""
    if platform.machine() not in MACHINES or sys.platform != "linux":
        raise OSError(f"no seccomp filter for {sys.platform} on {platform.machine()}")
    audit, openat, allowed = MACHINES[platform.machine()]
    load, equal, mask, give = 0x20, 0x15, 0x45, 0x06  # BPF: load word, jump if equal, jump if bits set, return
    rows = [(load, 0, 0, 4), (equal, 1, 0, audit), (give, 0, 0, DENY), (load, 0, 0, 0)]
    for number in allowed:
        rows += [(equal, 0, 1, number), (give, 0, 0, ALLOW)]
    rows += [(equal, 1, 0, openat), (give, 0, 0, DENY)]
    rows += [(load, 0, 0, 16 + 2 * 8), (mask, 0, 1, WRITE_FLAGS), (give, 0, 0, DENY), (give, 0, 0, ALLOW)]
    return b"".join(struct.pack("HBBI", *row) for row in rows)


class Filter(ctypes.Structure):
    """A seccomp program, as prctl takes it."""

    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_void_p)]


def prepared_lock(seconds: float, megabytes: int) -> Callable[[], object]:
    """Make the function that takes from a process whatever an answer does not need.

    Everything that can be computed before the fork is: a child lives for about a millisecond.
    """
    program = seccomp_program()
    text = ctypes.create_string_buffer(program, len(program))
    described = Filter(len(program) // 8, ctypes.addressof(text))
    libc = ctypes.CDLL(None, use_errno=True)
    limits = (
        (resource.RLIMIT_CPU, max(1, math.ceil(seconds))),
        (resource.RLIMIT_AS, megabytes << 20),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 16),
        (resource.RLIMIT_CORE, 0),
    )

    def lock() -> object:
        for kind, most in limits:
            resource.setrlimit(kind, (most, most))
        if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
            PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(described), 0, 0
        ):
            raise OSError(ctypes.get_errno(), "seccomp: " + os.strerror(ctypes.get_errno()))
        return text  # kept alive until here

    return lock


def plain(value: Any) -> Any:
    """Let only plain data out: an object of the answer's own class could claim to equal anything."""
    if type(value) in (bool, int, float, str, type(None)):
        return value
    if type(value) in (list, tuple):
        return [plain(part) for part in value]
    if type(value) is dict:
        return {str(key): plain(part) for key, part in value.items()}
    raise TypeError("not plain data")


def compute(request: dict[str, Any], nonce: str) -> list[Any]:
    """Run one answer."""
    space: dict[str, Any] = {"__name__": "answer"}
    exec(compile(request["source"], "<answer>", "exec"), space)
    if request["tests"]:
        exec(compile(request["tests"], "<tests>", "exec"), space)
        return [nonce]
    answer = space["answer"]
    return [plain(answer(value)) for value in request["inputs"]]


def child(request: dict[str, Any], nonce: str, pipe: int, null: int, lock: Callable[[], object]) -> NoReturn:
    """Run one answer and never return."""
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    try:
        lock()
    except OSError as error:
        os.write(pipe, json.dumps({"refused": str(error)}).encode())
        os._exit(0)
    try:
        text = json.dumps({"outputs": compute(request, nonce)})
    except BaseException:  # whatever an answer does wrong, it is a wrong answer
        text = json.dumps({"outputs": None})
    os.write(pipe, text.encode()[:MOST_BYTES])
    os._exit(0)


class Child:
    """A forked process that runs one answer, and the pipe that it speaks through."""

    def __init__(
        self, place: int, request: dict[str, Any], seconds: float, null: int, lock: Callable[[], object]
    ) -> None:
        self.place = place
        self.tests = bool(request["tests"])
        self.nonce = secrets.token_hex(16)
        self.text = b""
        self.end = time.monotonic() + seconds
        self.pipe, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.pipe)
            child(request, self.nonce, writing, null, lock)
        os.close(writing)

    def read(self) -> bool:
        """Read what is there; True when the child has nothing more to say, or says too much."""
        part = os.read(self.pipe, MOST_BYTES)
        self.text += part
        return not part or len(self.text) > MOST_BYTES

    def idles(self) -> bool:
        """Say whether the process waits for something that is not its turn.

        On a busy machine, or in a run that was stopped for a while, a right answer must not be called wrong: only
        processor time counts, and that is limited by the system.
        """
        with open(f"/proc/{self.pid}/stat", "rb") as file:  # noqa: PTH123 - pathlib is not loaded here
            return file.read().rpartition(b")")[2].split()[0] == b"S"

    def finish(self) -> dict[str, Any]:
        """End the process and judge what it said."""
        os.close(self.pipe)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        try:
            said = json.loads(self.text)
            if "refused" in said and isinstance(said["refused"], str):
                return {"refused": said["refused"]}
            outputs = said["outputs"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return {"outputs": None}
        if self.tests:
            return {"outputs": [True] if outputs == [self.nonce] else None}
        return {"outputs": outputs if isinstance(outputs, list) else None}


def run(requests: list[dict[str, Any]], seconds: float, null: int, lock: Callable[[], object]) -> list[dict[str, Any]]:
    """Run answers, some at a time: most of a child's life is spent waiting for its turn."""
    found: list[dict[str, Any]] = [{}] * len(requests)
    waiting = list(enumerate(requests))[::-1]
    running: dict[int, Child] = {}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            started = Child(*waiting.pop(), seconds, null, lock)
            running[started.pipe] = started
        left = max(0, min(one.end for one in running.values()) - time.monotonic())
        ready = select.select(list(running), [], [], left)[0]
        now = time.monotonic()
        for one in list(running.values()):
            ended = one.pipe in ready and one.read()
            if not ended and now >= one.end:
                ended = one.idles()
                one.end = now + seconds
            if ended:
                del running[one.pipe]
                found[one.place] = one.finish()
    return found


def main() -> None:
    """Serve until standard input ends."""
    seconds, megabytes = float(sys.argv[1]), int(sys.argv[2])
    null = os.open(os.devnull, os.O_RDWR)
    lock: Callable[[], object] = dict
    refused = None
    try:
        lock = prepared_lock(seconds, megabytes)
    except OSError as error:
        refused = {"refused": str(error)}
    gc.freeze()  # children share what is here, and must not copy it to collect it
    for line in sys.stdin.buffer:
        requests = json.loads(line)
        answers = [refused] * len(requests) if refused else run(requests, seconds, null, lock)
        sys.stdout.write(json.dumps(answers) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
