"""The Typer application: the root command and its sub-commands."""

from __future__ import annotations

from typing import Annotated

import typer

import rlmerge
from rlmerge.cli.commands import clean, conflict_report, diff, expand, inspect, merge, methods, verify

__all__ = ["app"]

app = typer.Typer(
    name="rlmerge",
    help="Merge fine-tuned LLM checkpoints at the speed of the disk.",
    epilog="Start with: rlmerge merge BASE EXPERT EXPERT --method ties -o merged",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version and exit.")] = False,  # noqa: FBT001
) -> None:
    """Merge fine-tuned LLM checkpoints at the speed of the disk."""
    if version:
        typer.echo(f"rlmerge {rlmerge.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        text = context.get_help()
        if text:
            typer.echo(text)
        raise typer.Exit


app.command("merge", epilog=merge.EXAMPLES)(merge.merge)
app.command("expand", epilog=expand.EXAMPLES)(expand.expand)
app.command("conflict-report", epilog=conflict_report.EXAMPLES)(conflict_report.conflict_report)
app.command("diff", epilog=diff.EXAMPLES)(diff.diff)
app.command("inspect", epilog=inspect.EXAMPLES)(inspect.inspect)
app.command("methods", epilog=methods.EXAMPLES)(methods.methods)
app.command("verify", epilog=verify.EXAMPLES)(verify.verify)
app.command("clean", epilog=clean.EXAMPLES)(clean.clean)
