"""``rlmerge clean``: remove what killed runs left."""

from __future__ import annotations

from typing import Annotated

import typer

from rlmerge import api
from rlmerge.cli._errors import reported
from rlmerge.cli._output import Output, columns, count, size

__all__ = ["EXAMPLES", "clean"]

EXAMPLES = "Examples:\n\nrlmerge clean . --dry-run\n\nrlmerge clean merged"


def clean(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A folder in which outputs were being written, or an output's path.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the stages as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the removed paths only.")] = False,
) -> None:
    """Remove the stages of killed runs; those in which a run is at work stay."""
    out = Output(json=json, quiet=quiet)
    with reported(out):
        found = api.clean(path, dry_run=dry_run)
        gone = [stage for stage in found if stage.kept is None]
        rows = [
            ("left" if stage.kept else "would remove" if dry_run else "removed", size(stage.bytes), str(stage.path))
            for stage in found
        ]
        out.result(
            human=lambda: columns(rows, "<><"),
            quiet=lambda: [str(stage.path) for stage in gone],
            value=[
                {
                    "path": str(stage.path),
                    "bytes": stage.bytes,
                    "pid": stage.pid,
                    "removed": stage.removed,
                    "kept": stage.kept,
                }
                for stage in found
            ],
        )
        for stage in found:
            if stage.kept:
                out.note(f"{stage.path}: {stage.kept}")
        what = "would be removed" if dry_run else "removed"
        out.note(f"{count(len(gone), 'stage')} {what}, {size(sum(stage.bytes for stage in gone))}")
