"""Progress of a merge: a bar on a terminal, one line each tenth of the way elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rlmerge.cli._output import size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rlmerge.cli._output import Output
    from rlmerge.report import Progress

__all__ = ["shown"]


@contextmanager
def shown(out: Output, verb: str = "merging") -> Iterator[Callable[[Progress], None] | None]:
    """Give a progress callback that fits the output mode, or None for silence."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    if out.mode == "quiet" or (out.mode == "json" and not terminal):
        yield None
    elif terminal:
        with _bar(verb) as update:
            yield update
    else:
        yield _Tenths(out)


class _Tenths:
    """Prints a line whenever another tenth of the bytes is done."""

    def __init__(self, out: Output) -> None:
        self.out = out
        self.start = time.monotonic()
        self.printed = 0

    def __call__(self, progress: Progress) -> None:
        done, total = progress["bytes_done"], progress["bytes_total"]
        tenth = 10 * done // total if total else 0
        # The summary at the end stands for the last tenth.
        if not self.printed < tenth < 10:
            return
        self.printed = tenth
        rate = done / max(time.monotonic() - self.start, 1e-3)
        tensors = f"{progress['tensors_done']:,} of {progress['tensors_total']:,} tensors"
        self.out.note(f"{10 * tenth} %: {size(done)} of {size(total)}, {tensors}, {size(rate)}/s")


@contextmanager
def _bar(verb: str) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Display

    display = Display(
        TextColumn(verb),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[tensors]} tensors"),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=True,
        expand=True,
    )
    with display:
        task = display.add_task("", total=None, tensors="0")

        def update(progress: Progress) -> None:
            tensors = f"{progress['tensors_done']}/{progress['tensors_total']}"
            display.update(task, completed=progress["bytes_done"], total=progress["bytes_total"], tensors=tensors)

        yield update
