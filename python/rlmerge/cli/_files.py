"""Small files that a command writes beside its result: never half, never over something that was not meant."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rlmerge.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["check_places", "write_text"]


def check_places(paths: Iterable[str | None], inputs: Iterable[Path], *, force: bool, made: Path | None = None) -> None:
    """Refuse paths at which something is, that cannot be written, or that lie in an input, before any work is done.

    ``made`` is the folder that the work itself makes.
    """
    for path in paths:
        if path is None:
            continue
        if os.path.lexists(path) and (not force or Path(path).is_dir()):
            msg = f"{path}: already exists"
            hint = "choose another path" if Path(path).is_dir() else "choose another path, or replace it with --force"
            raise OutputError(msg, code="output_exists", exit_code=6, path=path, hint=hint)
        parent = Path(path).parent
        for model in inputs:
            # What belongs to a model is never replaced, not its config.json either.
            if model.is_dir() and parent.is_dir() and model.samefile(parent):
                msg = f"output {path} is inside input {model}; an input is never written to"
                raise OutputError(msg, code="output_is_input", exit_code=6, path=path, hint="choose another path")
        if parent != made and not os.access(parent, os.W_OK | os.X_OK):
            reason = os.strerror(errno.EACCES if parent.is_dir() else errno.ENOENT)
            msg = f"{path}: cannot be written: {reason}: {parent}"
            raise OutputError(msg, path=path, hint="create that folder first, or choose another path")


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
