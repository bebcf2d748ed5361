"""The one place that prints: data to stdout, talk to stderr, in one of three modes.

``human`` is the default; ``json`` prints one JSON value on stdout; ``quiet`` prints the bare result on stdout and only
errors on stderr. Colour is decoration: every line can be read without it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["Output", "clean", "columns", "count", "flush", "hides", "size"]

#: Entries of a list in JSON beyond which nobody reads it number by number.
_LONG = 100
_COLOURS = {"error": "1;31", "warning": "1;33", "hint": "36", "bold": "1"}
# Characters that move the cursor, hide text or change its direction.
_HIDDEN = {*range(0x20), *range(0x7F, 0xA0), *range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x206A)}
_HIDDEN |= {0xFEFF, 0x061C, *range(0xD800, 0xE000)}


class Output:
    """Where a command's results and talk go.

    Parameters
    ----------
    json
        Print one JSON value instead of text.
    quiet
        Print the bare result only.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.mode = "json" if json else "quiet" if quiet else "human"
        self._stdout_failed = False
        for stream in (sys.stdout, sys.stderr):
            # A terminal or a log in another encoding gets escapes instead of a crash.
            if stream is not None and hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")

    def result(self, *, human: Callable[[], Iterable[str]], quiet: Callable[[], Iterable[str]], value: Any) -> None:
        """Print the command's data in the chosen mode; every command gives all three forms."""
        if self.mode == "json":
            self._write(sys.stdout, _json(value))
            return
        for line in human() if self.mode == "human" else quiet():
            self._write(sys.stdout, clean(line))

    def note(self, text: str) -> None:
        """Say something on stderr, in human mode."""
        if self.mode == "human":
            self._write(sys.stderr, clean(text, newlines=True))

    def warning(self, text: str) -> None:
        """Warn on stderr; JSON mode has its warnings in the data."""
        if self.mode == "human":
            self._labelled("warning", text)

    def error(self, text: str, hint: str | None, fields: dict[str, Any]) -> None:
        """Print an error on stderr in every mode, and as JSON on stdout in JSON mode."""
        self._labelled("error", text)
        if hint:
            self._write(sys.stderr, "")
            self._labelled("hint", hint)
        if self.mode == "json" and not self._stdout_failed:
            self._write(sys.stdout, json.dumps({"error": fields}, indent=2))

    def trace(self, text: str) -> None:
        """Print a traceback on stderr."""
        self._write(sys.stderr, clean(text.rstrip(), newlines=True))

    def heading(self, text: str) -> str:
        """Return a line that stands out on a terminal."""
        return _styled(text, "bold", sys.stdout)

    def paragraph(self, text: str, indent: str = "") -> list[str]:
        """Return text broken at the terminal's width."""
        width = min(shutil.get_terminal_size().columns, 100)
        return textwrap.wrap(clean(text), max(width, 40), initial_indent=indent, subsequent_indent=indent) or [""]

    def _labelled(self, label: str, text: str) -> None:
        self._write(sys.stderr, f"{_styled(label + ':', label, sys.stderr)} {clean(text, newlines=True)}")

    def _write(self, stream: TextIO | None, text: str) -> None:
        if stream is None:
            return
        try:
            stream.write(text + "\n")
        except OSError:
            # Talk that nobody listens to changes nothing; data that could not be written does.
            if stream is not sys.stdout:
                return
            # The error is reported on stderr; what is left of stdout goes nowhere, or its own last flush would fail.
            self._stdout_failed = True
            drop_stdout()
            raise


def _json(value: Any) -> str:
    """Return JSON text: indented, unless a list in it is long; then every entry of such lists has one line."""
    if not isinstance(value, dict) or not any(isinstance(v, list) and len(v) > _LONG for v in value.values()):
        return json.dumps(value, indent=2)
    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {_rows(entry)}" for key, entry in value.items()) + "\n}"


def _rows(value: Any) -> str:
    if not isinstance(value, list) or not value:
        return json.dumps(value)
    return "[\n" + ",\n".join(f"    {json.dumps(entry)}" for entry in value) + "\n  ]"


def flush() -> None:
    """Flush stdout, here and not in the interpreter's last breath."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        drop_stdout()
        raise


def drop_stdout() -> None:
    """Send the rest of stdout nowhere, so that the interpreter's own last flush cannot fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def clean(text: str, *, newlines: bool = False) -> str:
    """Return text that is safe on a terminal: characters that act on it are shown as escapes."""
    if text.isascii() and text.isprintable():
        return text
    keep = {0x0A} if newlines else set()
    return "".join(c.encode("unicode_escape").decode() if ord(c) in _HIDDEN and ord(c) not in keep else c for c in text)


def hides(text: str) -> bool:
    """Tell whether a text holds characters that act on a terminal."""
    return clean(text) != text


def columns(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Return rows as aligned lines; ``align`` has ``<`` or ``>`` for each column.

    The last column is not padded, so that long names wrap on a narrow terminal and are never cut.
    """
    rows = [[clean(cell) for cell in row] for row in rows]
    widths = [max((len(row[at]) for row in rows), default=0) for at in range(len(align))]
    widths[-1] = max(widths[-1], 0) if align[-1] == ">" else 0
    return ["  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(row, align, widths, strict=True)).rstrip() for row in rows]


def size(number: float) -> str:
    """Return a number of bytes for people, in powers of 1000.

    Examples
    --------
    >>> size(999), size(2_200_000_000)
    ('999 B', '2.2 GB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 999.5 or unit == "TB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" or number >= 99.95 else f"{number:.1f} {unit}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun.

    Examples
    --------
    >>> count(1, "tensor"), count(1200, "tensor")
    ('1 tensor', '1,200 tensors')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _styled(text: str, style: str, stream: TextIO | None) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if plain or stream is None or not stream.isatty():
        return text
    return f"\x1b[{_COLOURS[style]}m{text}\x1b[0m"
