"""Running answers that are code: in a process of their own, without network, files, children or much time.

The parent keeps the wanted outputs; only inputs go into the sandbox, so that an answer cannot look them up.
"""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("sandbox_worker.py")
SECONDS = 2.0  # of processor time for one answer, in whole seconds; as much by the clock for one that idles
MEGABYTES = 512  # of address space; an interpreter takes about 20 of them
CACHED_ANSWERS = 100_000


class SandboxError(RuntimeError):
    """The sandbox itself does not work here."""


@dataclass(frozen=True, slots=True)
class Call:
    """Source text that defines ``answer``, and the inputs it is called with; or tests that follow the source."""

    source: str
    inputs: tuple[Any, ...] = ()
    tests: str = ""


class Sandbox:
    """A server process that forks a fresh, locked-down child for every answer.

    Forking from a bare interpreter costs about a millisecond; starting one costs twenty.
    """

    def __init__(self, seconds: float = SECONDS, megabytes: int = MEGABYTES) -> None:
        self.seconds = seconds
        self.megabytes = megabytes
        self._server: subprocess.Popen[bytes] | None = None
        self._known: dict[Call, list[Any] | None] = {}

    def run(self, calls: list[Call]) -> list[list[Any] | None]:
        """Run answers.

        Returns
        -------
        list
            For each call its outputs, in the order of the inputs (``[True]`` for tests that passed), or None where
            the code was no code, failed, took too long or returned what is not plain data.

        Raises
        ------
        SandboxError
            The operating system does not let code be locked in.
        """
        new = [call for call in dict.fromkeys(calls) if call not in self._known]
        if len(self._known) + len(new) > CACHED_ANSWERS:
            self._known.clear()
            new = list(dict.fromkeys(calls))
        if new:
            self._known |= dict(zip(new, self._ask(new), strict=True))
        return [self._known[call] for call in calls]

    def close(self) -> None:
        """End the server."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            for pipe in (self._server.stdin, self._server.stdout):
                if pipe is not None:
                    pipe.close()
            self._server = None

    def _ask(self, calls: list[Call]) -> list[list[Any] | None]:
        requests = [{"source": call.source, "inputs": call.inputs, "tests": call.tests} for call in calls]
        for _ in range(2):  # once more with a new server, should the first one have died
            server = self._running()
            assert server.stdin is not None
            assert server.stdout is not None
            try:
                server.stdin.write(json.dumps(requests).encode() + b"\n")
                server.stdin.flush()
                line = server.stdout.readline()
            except BrokenPipeError:
                line = b""
            if line.endswith(b"\n"):
                answers: list[dict[str, Any]] = json.loads(line)
                refused = next((answer["refused"] for answer in answers if "refused" in answer), None)
                if refused is not None:
                    msg = f"code answers cannot be locked in here: {refused}"
                    raise SandboxError(msg)
                return [answer["outputs"] for answer in answers]
            self.close()
        msg = "the sandbox's server ended twice on the same answers"
        raise SandboxError(msg)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._server is None or self._server.poll() is not None:
            self.close()
            command = [sys.executable, "-I", "-S", str(WORKER), str(self.seconds), str(self.megabytes)]
            self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={})
        return self._server


@cache
def shared_sandbox() -> Sandbox:
    """Return the sandbox of this process."""
    sandbox = Sandbox()
    atexit.register(sandbox.close)
    return sandbox
