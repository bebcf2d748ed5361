"""Small files that a command writes beside its result: never half, never over something that was not meant."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rlmerge.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["refuse_existing", "write_text"]


def refuse_existing(paths: Iterable[str | None], *, force: bool) -> None:
    """Refuse paths at which something is, before any work is done."""
    for path in paths:
        if path is not None and os.path.lexists(path) and (not force or Path(path).is_dir()):
            msg = f"{path}: already exists"
            hint = "choose another path" if Path(path).is_dir() else "choose another path, or replace it with --force"
            raise OutputError(msg, code="output_exists", exit_code=6, path=path, hint=hint)


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
