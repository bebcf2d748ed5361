"""``rlmerge verify``: read an output back against what its merge wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rlmerge import api
from rlmerge.cli import _progress
from rlmerge.cli._errors import reported
from rlmerge.cli._output import Output, count, flush, size
from rlmerge.errors import RecipeError

if TYPE_CHECKING:
    from rlmerge import Finding, Verification

__all__ = ["EXAMPLES", "FAILED", "verify"]

EXAMPLES = (
    "Examples:\n\n"
    "rlmerge verify merged\n\n"
    "rlmerge verify merged --json | jq '.findings[] | .id, .file, .tensor'\n\n"
    "rlmerge merge a b -m linear -o out.safetensors --json > report.json; "
    "rlmerge verify out.safetensors --manifest report.json"
)
#: Exit code when the output is not what the merge wrote.
FAILED = 8


def verify(
    output: Annotated[
        str, typer.Argument(metavar="PATH", help="A merged folder, or a merged file together with --manifest.")
    ],
    manifest: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The merge's report (JSON). Default: rlmerge.json in the folder."),
    ] = None,
    threads: Annotated[str | None, typer.Option(metavar="N", help="Worker threads. Default: one a processor.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print findings only, one a line.")] = False,
) -> None:
    """Re-read a merged model: checksums, headers, index, configuration, masks. Exit code 8 if anything is wrong."""
    out = Output(json=json, quiet=quiet)
    with reported(out):
        with _progress.shown(out, "verifying") as progress:
            found = api.verify(output, manifest=manifest, threads=_threads(threads), progress=progress)
        out.result(
            human=lambda: _page(found, out),
            quiet=lambda: [_line(finding) for finding in found.findings],
            value=found.to_dict(),
        )
        seconds = found.elapsed_seconds
        rate = f", {size(found.bytes / seconds)}/s" if seconds > 0 else ""
        out.note(f"read {size(found.bytes)} in {seconds:.1f} s{rate}")
        if not found.ok:
            flush()
            raise typer.Exit(FAILED)


def _page(found: Verification, out: Output) -> list[str]:
    lines = []
    for finding in found.findings:
        lines += [f"{finding.severity} {_line(finding)}"]
        lines += out.paragraph(f"cause: {finding.cause}", "  ")
        lines += out.paragraph(f"remedy: {finding.remedy}", "  ")
    wrong = sum(finding.severity == "error" for finding in found.findings)
    whole = f"{found.tensors_verified:,} of {count(found.tensors, 'tensor')} in {count(found.shards, 'file')}"
    verdict = "is what the merge wrote" if found.ok else f"is not what the merge wrote: {count(wrong, 'problem')}"
    return [*lines, f"{found.path} {verdict} ({whole} verified)"]


def _line(finding: Finding) -> str:
    where = finding.file if finding.tensor is None else f"{finding.file}, tensor `{_cut(finding.tensor)}`"
    return f"{finding.id} {finding.name}: {where}: {finding.message}"


def _cut(name: str, limit: int = 256) -> str:
    return name if len(name) <= limit else f"{name[:limit]}… ({len(name)} characters)"


def _threads(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        msg = f"--threads {text}: not a whole number"
        raise RecipeError(msg)
    return int(text)
