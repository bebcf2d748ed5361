"""``rlmerge expand``: one task's model out of a merged folder with masks."""

from __future__ import annotations

from typing import Annotated

import typer

from rlmerge._expansion import plan_expansion
from rlmerge.cli import _progress
from rlmerge.cli._errors import reported
from rlmerge.cli._output import Output, count, size
from rlmerge.errors import RecipeError
from rlmerge.recipe import DURABILITIES, IO_WAYS, check_choice, check_integer, parse_size

__all__ = ["EXAMPLES", "expand"]

EXAMPLES = (
    "Examples:\n\n"
    "rlmerge merge math code --base base --method emr -o merged\n\n"
    "rlmerge expand merged --task math -o math-again"
)


def expand(
    merged: Annotated[
        str, typer.Argument(metavar="MERGED", help="A folder merged with `tall_masks` or `emr`, with its masks.")
    ],
    task: Annotated[str, typer.Option("--task", "-t", metavar="NAME", help="The task: the name of its expert.")],
    base: Annotated[
        str | None, typer.Option("--base", "-b", metavar="MODEL", help="The base; where the merge found it if unset.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="PATH", help="A .safetensors file or a folder. Default: MERGED-NAME."),
    ] = None,
    shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Largest output file.")] = "5GB",
    threads: Annotated[str | None, typer.Option(metavar="N", help="Worker threads. Default: one a processor.")] = None,
    io: Annotated[str, typer.Option(metavar="pread|mmap", help="How tensors are read.")] = IO_WAYS[0],
    durability: Annotated[
        str, typer.Option(metavar="full|file|none", help="What is synced before the end.")
    ] = DURABILITIES[0],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the output path only.")] = False,
) -> None:
    """Rebuild one task's model from a merged folder, its masks and its base."""
    out = Output(json=json, quiet=quiet)
    with reported(out):
        plan = plan_expansion(
            merged,
            task,
            output=output,
            base=base,
            shard_size=parse_size(shard_size),
            threads=_threads(threads),
            io=check_choice("io", io, IO_WAYS),
            durability=check_choice("durability", durability, DURABILITIES),
            force=force,
        )
        plan.check()
        for note in plan.notes:
            out.note(note)
        with _progress.shown(out) as progress:
            report = plan.run(progress)
        for warning in report.warnings:
            out.warning(warning)
        tensors = count(report.totals["tensors"], "tensor")
        out.note(f"rebuilt {tensors}: read {size(report.bytes_read)}, wrote {size(report.bytes_written)}")
        out.result(human=lambda: [str(report.output)], quiet=lambda: [str(report.output)], value=report.to_dict())


def _threads(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        msg = f"--threads {text}: not a whole number"
        raise RecipeError(msg)
    return check_integer("threads", int(text), 1, 1024)
