"""From exceptions to words, hints and exit codes."""

from __future__ import annotations

import os
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from rlmerge.cli import _signals
from rlmerge.cli._output import flush
from rlmerge.errors import InternalError, OutputError, RlmergeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rlmerge.cli._output import Output

__all__ = ["reported"]


@contextmanager
def reported(out: Output) -> Iterator[None]:
    """Run a command's body; print what it raises and exit with the documented code."""
    _signals.begin()
    try:
        yield
        flush()
    except typer.Exit:
        raise
    except KeyboardInterrupt as interrupt:
        message = str(interrupt) or "interrupted"
        partial = getattr(interrupt, "partial", None)
        fields = {"code": "cancelled", "exit_code": _signals.exit_code(), "message": message}
        fields["partial"] = str(partial) if partial else None
        out.error(message, _way_on(partial, "cancelled"), fields)
        raise typer.Exit(_signals.exit_code()) from None
    except RlmergeError as error:
        raise typer.Exit(_print(error, out)) from None
    except BrokenPipeError:
        # The reader went away (`| head`), which is its right.
        raise typer.Exit(0) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        wrapped = OutputError(f"{where}{error.strerror or error}", path=error.filename, errno=error.errno)
        wrapped.__traceback__ = error.__traceback__
        raise typer.Exit(_print(wrapped, out)) from None
    except MemoryError as error:
        wrapped = OutputError(f"out of memory{f': {error}' if str(error) else ''}", code="out_of_memory")
        wrapped.__traceback__ = error.__traceback__
        raise typer.Exit(_print(wrapped, out)) from None
    except BaseException as error:
        # A panic of the core in a short call is no `Exception`; whatever else is none has a meaning of its own.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        message = f"internal error (a bug in rlmerge): {type(error).__name__}: {error}"
        hint = "please report it with the command and what RLMERGE_DEBUG=1 prints"
        bug = InternalError(message, hint=hint)
        bug.__traceback__ = error.__traceback__
        raise typer.Exit(_print(bug, out)) from None


def _print(error: RlmergeError, out: Output) -> int:
    if os.environ.get("RLMERGE_DEBUG", "0") not in ("", "0"):
        out.trace("".join(traceback.format_exception(error)))
    hints = [hint for hint in (error.hint, _way_on(error.partial, error.code)) if hint]
    out.error(error.message, "; ".join(hints) or None, error.to_dict())
    return error.exit_code


def _way_on(partial: Path | None, code: str) -> str | None:
    """Say what to do with the stage that a failed merge left."""
    if partial is None:
        return None
    if code == "output_exists":
        return f"what this merge made is whole, and kept in {partial}: `mv` gives it another name"
    return (
        f"what was done is kept in {partial}: the same command with --resume goes on from there, "
        f"`rlmerge clean {partial.parent}` removes it"
    )
