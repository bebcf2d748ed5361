"""Exceptions of rlmerge, named after what the user must look at.

Each carries a stable ``code``, the ``exit_code`` of the command line, and, where they are known, the ``path``, the
``tensor`` and a ``hint`` that says what to do next. Plain input/output trouble is also the built-in exception of its
kind: ``except FileNotFoundError`` works.
"""

from __future__ import annotations

import errno as _errno
from pathlib import Path

__all__ = [
    "AlignmentError",
    "CheckpointError",
    "InternalError",
    "NumericsError",
    "OutputError",
    "RecipeError",
    "RlmergeError",
    "from_core",
    "keep_partial",
    "model_not_found",
]


class RlmergeError(Exception):
    """Base class of all errors of rlmerge.

    Parameters
    ----------
    message
        What went wrong and where.
    code
        Stable name of the cause, for programs, such as ``"shape_mismatch"``.
    exit_code
        What the command line exits with.
    path, tensor
        The file or folder and the tensor concerned.
    hint
        What to do next.
    errno
        The system's error number, when the operating system refused.

    Attributes
    ----------
    partial
        Where what a merge had done is kept, for ``resume``; None when nothing was. The ``KeyboardInterrupt`` of an
        interrupted merge has it too, if anything is kept.
    """

    default_code = "internal"
    default_exit_code = 1
    kind = "bug"
    partial: Path | None = None

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        exit_code: int | None = None,
        path: str | Path | None = None,
        tensor: str | None = None,
        hint: str | None = None,
        errno: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code if code is not None else self.default_code
        self.exit_code = exit_code if exit_code is not None else self.default_exit_code
        self.path = Path(path) if path is not None else None
        self.tensor = tensor
        self.hint = hint
        if isinstance(self, OSError):
            self.errno = errno
            self.strerror = message
            self.filename = str(path) if path is not None else None

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        state = {"partial": self.partial} if self.partial is not None else None
        # The classes with a built-in second base are made on demand, so pickle cannot find them by name.
        path = str(self.path) if self.path is not None else None
        number = self.errno if isinstance(self, OSError) else None
        arguments = (self.code, self.exit_code, self.kind, self.message, path, self.tensor, self.hint, number)
        return (from_core, arguments, state)

    def to_dict(self) -> dict[str, object]:
        """Return the fields as plain values, as ``--json`` prints them."""
        return {
            "code": self.code,
            "exit_code": self.exit_code,
            "message": self.message,
            "path": str(self.path) if self.path is not None else None,
            "tensor": self.tensor,
            "hint": self.hint,
            "partial": str(self.partial) if self.partial is not None else None,
        }


class RecipeError(RlmergeError):
    """The recipe, the arguments or the command line: change what was asked for."""

    default_code = "recipe_invalid"
    default_exit_code = 2
    kind = "recipe"


class CheckpointError(RlmergeError):
    """An input is missing, damaged, or not a model that can be merged."""

    default_code = "not_a_checkpoint"
    default_exit_code = 3
    kind = "checkpoint"


class AlignmentError(RlmergeError):
    """The inputs do not fit each other: names, shapes or dtypes differ."""

    default_code = "models_do_not_fit"
    default_exit_code = 4
    kind = "alignment"


class OutputError(RlmergeError):
    """Reading or writing failed, or the output exists already or is an input."""

    default_code = "io"
    default_exit_code = 5
    kind = "output"


class NumericsError(RlmergeError):
    """Values that are not finite stand in the way."""

    default_code = "non_finite"
    default_exit_code = 7
    kind = "numerics"


class InternalError(RlmergeError):
    """A bug in rlmerge."""


_BY_KIND: dict[str, type[RlmergeError]] = {
    cls.kind: cls for cls in (RecipeError, CheckpointError, AlignmentError, OutputError, NumericsError, InternalError)
}
_BY_CODE: dict[str, type[Exception]] = {
    "model_not_found": FileNotFoundError,
    "output_exists": FileExistsError,
    "io": OSError,
    "read_failed": OSError,
    "no_space": OSError,
    "not_durable": OSError,
    "threads": OSError,
    "out_of_memory": MemoryError,
}
_BY_ERRNO: dict[int, type[OSError]] = {
    _errno.ENOENT: FileNotFoundError,
    _errno.EACCES: PermissionError,
    _errno.EPERM: PermissionError,
    _errno.EEXIST: FileExistsError,
    _errno.ENOTDIR: NotADirectoryError,
    _errno.EISDIR: IsADirectoryError,
}


_mixed: dict[tuple[type[RlmergeError], type[Exception]], type[RlmergeError]] = {}


def _with_builtin(cls: type[RlmergeError], builtin: type[Exception]) -> type[RlmergeError]:
    """Return the class that is both, made once so that equal errors have equal types."""
    if (cls, builtin) not in _mixed:
        body = {"__doc__": cls.__doc__, "__module__": cls.__module__}
        _mixed[cls, builtin] = type(cls.__name__, (cls, builtin), body)
    return _mixed[cls, builtin]


def from_core(
    code: str,
    exit_code: int,
    kind: str,
    message: str,
    path: str | None = None,
    tensor: str | None = None,
    hint: str | None = None,
    errno: int | None = None,
) -> BaseException:
    """Make the exception for an error of the Rust core.

    Parameters
    ----------
    code, exit_code, kind
        The row of the core's table of errors.
    message, path, tensor, hint, errno
        The fields of this error; unknown ones are None.

    Returns
    -------
    BaseException
        An instance to raise: a ``RlmergeError``, or ``KeyboardInterrupt`` for an interrupted merge.
    """
    if kind == "interrupt":
        return KeyboardInterrupt()
    cls = _BY_KIND.get(kind, InternalError)
    builtin = _BY_CODE.get(code)
    if errno is not None:
        builtin = _BY_ERRNO.get(errno, builtin or OSError)
    if builtin is not None:
        cls = _with_builtin(cls, builtin)
    return cls(message, code=code, exit_code=exit_code, path=path, tensor=tensor, hint=hint, errno=errno)


def keep_partial(error: BaseException, path: str) -> None:
    """Note on the exception of a merge that what was done is kept in this stage."""
    # Of any class: that of Ctrl-C, ours, or what a caller's `progress` raised.
    vars(error)["partial"] = Path(path)
    if getattr(error, "code", None) == "output_exists":
        error.add_note(f"what this merge made is whole, and kept in {path}")
    else:
        error.add_note(f"what was done is kept in {path}; the same merge with resume=True goes on from there")


def model_not_found(message: str, path: str, hint: str) -> BaseException:
    """Make the exception for a model that is not there; it is a ``FileNotFoundError`` besides."""
    return from_core("model_not_found", 3, "checkpoint", message, path, hint=hint)
