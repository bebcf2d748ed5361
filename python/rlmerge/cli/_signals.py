"""SIGTERM and SIGHUP end a merge as Ctrl-C does: the core cleans up, then the process exits with 128 + the signal.

A second Ctrl-C ends the process at once, whatever is still being removed.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["begin", "end", "exit_code", "handle"]

_received: list[int] = []
# Whether a command is at work that has something to remove. At other times a signal ends the process at once: an
# exception would come out of an import, or of the parser of the command line, which has exit codes of its own.
_at_work = [False]


def handle() -> None:
    """Turn the signals that ask a process to end into ``KeyboardInterrupt``."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # nohup sets SIGHUP to be ignored, and shells SIGINT of jobs in the background; that is a wish to respect.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def begin() -> None:
    """Say that from now on a command cleans up after an interruption."""
    _at_work[0] = True


def end() -> None:
    """Say that nothing is left to clean up."""
    _at_work[0] = False
    if not _received:
        return
    # The interpreter gives signals back to the system while it ends; one more would take the place of the exit code.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_IGN)


def exit_code() -> int:
    """Return the exit code of an interrupted command: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    if not _at_work[0] or (number == signal.SIGINT and number in _received):
        os._exit(128 + number)
    _received.append(number)
    raise KeyboardInterrupt
