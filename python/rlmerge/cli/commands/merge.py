"""``rlmerge merge``: plan a merge, say what it will do, do it."""

from __future__ import annotations

import json as as_json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlmerge import api
from rlmerge.cli import _progress
from rlmerge.cli._errors import reported
from rlmerge.cli._files import check_places, write_text
from rlmerge.cli._output import Output, columns, count, size
from rlmerge.errors import RecipeError

if TYPE_CHECKING:
    from rlmerge import ConflictReport, Plan, Report

__all__ = ["EXAMPLES", "merge"]

EXAMPLES = (
    "Examples:\n\n"
    "rlmerge merge math code --base base --method ties --density 0.2 -o merged\n\n"
    "rlmerge merge a.safetensors b.safetensors --method dare\n\n"
    "rlmerge merge lora-a lora-b --base base --method ties\n\n"
    "rlmerge merge a b --method linear --weight 0.7,0.3 --dtype bfloat16\n\n"
    "rlmerge merge recipe.yaml -o merged --dry-run"
)
_METHOD = "Method"
_MODIFIERS = "Any method"
_RESULT = "Output"
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")

Values = list[str] | None


def merge(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Safetensors files, Hugging Face folders, hub ids, or adapters (beside --base, or MODEL+ADAPTER); "
            "or one recipe (.yaml), mergekit's form included.",
        ),
    ],
    method: Annotated[
        str | None, typer.Option("--method", "-m", metavar="NAME", help="How to merge; see `rlmerge methods`.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", "-b", metavar="MODEL", help="What the experts were trained from.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="PATH", help="A .safetensors file or a folder. Default: merged[.safetensors]."
        ),
    ] = None,
    weight: Annotated[
        Values, typer.Option(metavar="NUMBER", help="Share of each expert.", rich_help_panel=_METHOD)
    ] = None,
    density: Annotated[
        Values, typer.Option(metavar="NUMBER", help="Fraction of each delta to keep.", rich_help_panel=_METHOD)
    ] = None,
    lambda_: Annotated[
        Values, typer.Option("--lambda", metavar="NUMBER", help="Scale of the merged delta.", rich_help_panel=_METHOD)
    ] = None,
    t: Annotated[
        Values, typer.Option("--t", metavar="NUMBER", help="Place between two models, 0 to 1.", rich_help_panel=_METHOD)
    ] = None,
    scale: Annotated[
        Values, typer.Option(metavar="NUMBER", help="Factor of `passthrough`.", rich_help_panel=_METHOD)
    ] = None,
    epsilon: Annotated[
        Values, typer.Option(metavar="NUMBER", help="Half-width of keep probabilities.", rich_help_panel=_METHOD)
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option("--normalize/--no-normalize", help="Divide by the sum of weights.", rich_help_panel=_METHOD),
    ] = None,
    rescale: Annotated[
        Values, typer.Option(metavar="WORD", help="How survivors are scaled.", rich_help_panel=_METHOD)
    ] = None,
    scope: Annotated[
        Values, typer.Option(metavar="WORD", help="Trim per tensor or over the model.", rich_help_panel=_METHOD)
    ] = None,
    ties: Annotated[
        Values, typer.Option(metavar="WORD", help="Which of equal magnitudes stay.", rich_help_panel=_METHOD)
    ] = None,
    fisher: Annotated[
        Values, typer.Option(metavar="PATH", help="Fisher diagonals of each expert.", rich_help_panel=_METHOD)
    ] = None,
    gram: Annotated[
        Values, typer.Option(metavar="PATH", help="Gram matrices of each expert's inputs.", rich_help_panel=_METHOD)
    ] = None,
    param: Annotated[
        Values, typer.Option(metavar="KEY=VALUE", help="Any parameter by name.", rich_help_panel=_METHOD)
    ] = None,
    treat: Annotated[
        Values,
        typer.Option(
            metavar="PATTERN=WHAT",
            help="mean, base or merge for embeddings, head, norms, ... or a name with *.",
            rich_help_panel=_MODIFIERS,
        ),
    ] = None,
    lines: Annotated[
        str | None,
        typer.Option(
            metavar="ALPHA,BETA", help="Scale deltas by depth; ALPHA may be auto.", rich_help_panel=_MODIFIERS
        ),
    ] = None,
    match_norm: Annotated[
        str | None,
        typer.Option(
            metavar="mean|min|N", help="Bring experts' deltas to one norm; N: an expert.", rich_help_panel=_MODIFIERS
        ),
    ] = None,
    match_norm_scope: Annotated[
        str | None,
        typer.Option(metavar="model|tensor", help="Where norms are matched.", rich_help_panel=_MODIFIERS),
    ] = None,
    seed: Annotated[
        str | None, typer.Option(metavar="N", help="Seed of random methods. Default: 0.", rich_help_panel=_METHOD)
    ] = None,
    compat: Annotated[
        str | None,
        typer.Option(metavar="paper|mergekit", help="Whose rules and defaults hold.", rich_help_panel=_METHOD),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Output dtype. Default: the inputs'.", rich_help_panel=_RESULT)
    ] = None,
    shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Largest output file. Default: 5GB.", rich_help_panel=_RESULT)
    ] = None,
    threads: Annotated[
        str | None, typer.Option(metavar="N", help="Worker threads. Default: one a processor.", rich_help_panel=_RESULT)
    ] = None,
    io: Annotated[
        str | None,
        typer.Option(metavar="pread|mmap", help="How tensors are read. Default: pread.", rich_help_panel=_RESULT),
    ] = None,
    durability: Annotated[
        str | None,
        typer.Option(
            metavar="full|file|none", help="What is synced before the end. Default: full.", rich_help_panel=_RESULT
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing output.", rich_help_panel=_RESULT)
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with what a killed run of this merge left.", rich_help_panel=_RESULT),
    ] = False,
    keep_partial: Annotated[
        bool,
        typer.Option("--keep-partial", help="Keep what was done if the merge fails.", rich_help_panel=_RESULT),
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read everything back before it is published.", rich_help_panel=_RESULT)
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail (exit 7) on NaN or infinity in the output.", rich_help_panel=_RESULT)
    ] = False,
    on_overflow: Annotated[
        str | None,
        typer.Option(
            metavar="inf|error|clamp",
            help="What becomes of values that the output's dtype cannot hold. Default: inf.",
            rich_help_panel=_RESULT,
        ),
    ] = None,
    int_from: Annotated[
        str | None,
        typer.Option(
            metavar="base|N",
            help="Whose integer and boolean tensors count where models differ in them. Default: none's, an error.",
            rich_help_panel=_RESULT,
        ),
    ] = None,
    verify_inputs: Annotated[
        bool,
        typer.Option("--verify-inputs", help="Read all inputs again before publishing.", rich_help_panel=_RESULT),
    ] = False,
    no_symlinks: Annotated[
        bool,
        typer.Option("--no-symlinks", help="Refuse models with symbolic links.", rich_help_panel=_RESULT),
    ] = False,
    report_to: Annotated[
        str | None,
        typer.Option(
            "--report",
            metavar="FILE",
            help="Also write a conflict report (.html, .md or .json), from the same read.",
            rich_help_panel=_RESULT,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan; write nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report, or the plan, as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the output path only.")] = False,
) -> None:
    """Merge checkpoints into one.

    An option of the method takes one value for all experts, or one for each, separated by commas or by repeating it.
    """
    out = Output(json=json, quiet=quiet)
    with reported(out):
        given = {
            "weight": weight,
            "density": density,
            "lambda": lambda_,
            "t": t,
            "scale": scale,
            "epsilon": epsilon,
            "rescale": rescale,
            "scope": scope,
            "ties": ties,
        }
        parameters = {name: _value(texts) for name, texts in given.items() if texts}
        parameters |= {name: _paths(texts) for name, texts in (("fisher", fisher), ("gram", gram)) if texts}
        if normalize is not None:
            parameters["normalize"] = normalize
        parameters |= _named(param or [], parameters)
        experts, recipe = _experts_or_recipe(models)
        plan = api.plan(
            experts,
            recipe=recipe,
            method=method,
            base=base,
            output=output,
            parameters=parameters,
            treat=_treatments(treat),
            lines=None if lines is None else [_scalar(part.strip()) for part in lines.split(",")],
            match_norm=match_norm,
            match_norm_scope=match_norm_scope,
            seed=_whole(seed, "--seed"),
            dtype=dtype,
            compat=compat,
            shard_size=shard_size,
            threads=_whole(threads, "--threads"),
            io=io,
            durability=durability,
            force=force,
            resume=resume,
            keep_partial=keep_partial,
            verify=verify,
            strict=strict,
            on_overflow=on_overflow,
            int_from=int_from,
            verify_inputs=verify_inputs,
            no_symlinks=no_symlinks,
        )
        plan.check()
        _check_report(report_to, plan, force=force)
        _announce(plan, out)
        if dry_run:
            out.result(human=lambda: _table(plan), quiet=lambda: [str(plan.output)], value=plan.to_dict())
            return
        if not resume:
            _mention_leftovers(plan, out)
        report = _run(plan, out, conflicts=report_to is not None)
        if report_to is not None and report.conflicts is not None:
            write_text(Path(report_to), _report_text(report_to, report.conflicts))
            out.note(f"wrote {report_to}")
        _summarise(report, plan, out)
        out.result(human=lambda: [str(report.output)], quiet=lambda: [str(report.output)], value=report.to_dict())


def _check_report(path: str | None, plan: Plan, *, force: bool) -> None:
    if path is not None and not path.endswith((".html", ".md", ".json")):
        msg = f"--report {path}: neither .html nor .md nor .json"
        raise RecipeError(msg)
    check_places([path], [model.path for model in plan.models], force=force, made=plan.output)


def _report_text(path: str, found: ConflictReport) -> str:
    if path.endswith(".html"):
        return found.to_html()
    return found.to_markdown() if path.endswith(".md") else as_json.dumps(found.to_dict(), indent=2) + "\n"


def _mention_leftovers(plan: Plan, out: Output) -> None:
    """Say what a killed run left beside the output; nobody removes it unasked."""
    for stage in api.clean(plan.output.parent, dry_run=True):
        mine = stage.path.name.startswith(f".{plan.output.name}.rlmerge-")
        if mine and stage.kept is None:
            out.note(
                f"{stage.path}: left by a killed run{_age(stage.path)} ({size(stage.bytes)}); "
                f"--resume goes on with it, `rlmerge clean {plan.output}` removes it"
            )


def _age(path: Path) -> str:
    try:
        seconds = time.time() - path.stat().st_mtime
    except OSError:
        return ""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            return f" {count(int(seconds // length), unit)} ago"
    return ""


def _run(plan: Plan, out: Output, *, conflicts: bool) -> Report:
    before = _identity(plan.output)
    try:
        with _progress.shown(out) as progress:
            return plan.run(progress, conflicts=conflicts)
    except KeyboardInterrupt as interrupt:
        # The signal may have come after the rename that made the output visible.
        written = _identity(plan.output) != before
        msg = f"interrupted; {f'{plan.output} had been written and is whole' if written else 'nothing was written'}"
        interrupt.args = (msg,)
        raise


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _experts_or_recipe(models: list[str]) -> tuple[list[str] | None, str | None]:
    recipes = [name for name in models if name.lower().endswith((".yaml", ".yml"))]
    if not recipes:
        return models, None
    if len(models) > 1:
        msg = f"recipe {recipes[0]} beside other models"
        raise RecipeError(msg, hint="a recipe names its models; give it alone")
    return None, recipes[0]


def _value(texts: list[str]) -> Any:
    """Return one value, or a list when the option was repeated or holds commas."""
    values = [_scalar(part.strip()) for text in texts for part in text.split(",")]
    return values[0] if len(values) == 1 else values


def _paths(texts: list[str]) -> list[str]:
    """Return paths, of an option that was repeated, or given once with commas."""
    return [part.strip() for part in texts[0].split(",")] if len(texts) == 1 else texts


def _scalar(text: str) -> float | int | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"[+-]?[0-9]{1,15}", text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text


def _whole(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[+-]?[0-9]{1,40}", text):
        msg = f"{option} {text}: not a whole number"
        raise RecipeError(msg)
    return int(text)


def _named(pairs: list[str], given: dict[str, Any]) -> dict[str, Any]:
    texts: dict[str, list[str]] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            msg = f"--param {pair}: not KEY=VALUE"
            raise RecipeError(msg, hint="write it as --param density=0.5")
        if name in given:
            msg = f"parameter `{name}` is given twice"
            raise RecipeError(msg, hint=f"give it as --{name} or as --param {name}=...")
        texts.setdefault(name, []).append(text)
    return {name: _value(values) for name, values in texts.items()}


def _modifiers(raw: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [(f"  treat {rule['pattern']}", rule["treatment"]) for rule in raw["treat"]]
    if raw["lines"] is not None:
        facts.append(("  lines", f"alpha {raw['lines']['alpha']}, beta {raw['lines']['beta']:g}"))
    if raw["match_norm"] is not None:
        facts.append(("  match_norm", f"{raw['match_norm']} ({raw['match_norm_scope']})"))
    return facts


def _treatments(rules: list[str] | None) -> dict[str, str] | None:
    if not rules:
        return None
    treatments: dict[str, str] = {}
    for rule in rules:
        # Names of tensors may hold anything; treatments have no `=`.
        pattern, equals, what = rule.rpartition("=")
        if not equals or not pattern:
            msg = f"--treat {rule}: not PATTERN=WHAT"
            raise RecipeError(msg, hint="write it as --treat embeddings=mean")
        if pattern in treatments:
            msg = f"--treat: `{pattern}` is given twice"
            raise RecipeError(msg)
        treatments[pattern] = what
    return treatments


def _announce(plan: Plan, out: Output) -> None:
    """Say on stderr what was chosen for the user."""
    for note in plan.notes:
        out.note(note)
    if plan.defaults:
        parts = [_spoken(name, value) for name, value in plan.defaults.items()]
        of = f"{plan.method}'s defaults" + (" in mergekit" if plan.compat == "mergekit" else "")
        out.note(f"using {', '.join(parts)} ({of})")
    for warning in plan.warnings:
        out.warning(warning)


def _spoken(name: str, value: object) -> str:
    if isinstance(value, list):
        same = all(item == value[0] for item in value)
        if same:
            return f"{name} {_plain(value[0])}" + (" each" if len(value) > 1 else "")
        return f"{name} {', '.join(_plain(item) for item in value)}"
    return f"{name} {_plain(value)}"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _summarise(report: Report, plan: Plan, out: Output) -> None:
    told = set(plan.warnings)
    for warning in report.warnings:
        if warning not in told:
            out.warning(warning)
    if report.tensors_reused:
        out.note(f"{count(report.tensors_reused, 'tensor')} had been finished by an earlier run")
    copied = report.totals["tensors_copied"]
    tensors = count(report.totals["tensors"], "tensor") + (f" ({copied:,} copied)" if copied else "")
    moved = report.bytes_read + report.bytes_written
    rate = f", {size(moved / report.elapsed_seconds)}/s" if report.elapsed_seconds > 0 else ""
    seconds = report.elapsed_seconds
    took = f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
    out.note(f"merged {tensors}: read {size(report.bytes_read)}, wrote {size(report.bytes_written)} in {took}{rate}")


def _table(plan: Plan) -> list[str]:
    counts = plan.raw["tensors"]
    facts = [
        ("method", f"{plan.method} (compat {plan.compat})"),
        *((f"  {name}", _plain(value)) for name, value in plan.parameters.items()),
        *_modifiers(plan.raw["modifiers"]),
        ("seed", str(plan.seed)),
        ("output", f"{plan.output} ({plan.output_kind})"),
        ("dtype", plan.dtype or "as the inputs"),
        ("tensors", f"{counts['total']:,}: {counts['computed']:,} computed, {counts['compared']:,} copied if equal"),
        ("to read", size(plan.bytes_to_read)),
        ("to write", size(plan.bytes_to_write)),
        ("memory", f"at most {size(plan.memory_bound_bytes)} with {count(plan.threads, 'thread')}"),
    ]
    models = [("ROLE", "TENSORS", "SIZE", "PARAMETERS", "MODEL")]
    for model in plan.models:
        values = " ".join(f"{name}={_plain(value)}" for name, value in model.parameters.items())
        models.append((model.role, f"{model.tensors:,}", size(model.bytes), values or "-", str(model.path)))
    shards = [("TENSORS", "SIZE", "OUTPUT FILE")]
    shards += [(f"{s['tensors']:,}", size(s["bytes"]), s["name"]) for s in plan.raw["output"]["shards"]]
    tensors = [("ACTION", "DTYPE", "SHAPE", "SIZE", "TENSOR")]
    for t in plan.tensors:
        shape = " x ".join(f"{n:,}" for n in t.shape) or "scalar"
        tensors.append((t.action, t.dtype, shape, size(t.bytes), t.name))
    return [
        *columns(facts, "<<"),
        "",
        *columns(models, "<>><<"),
        "",
        *columns(shards, ">><"),
        "",
        *columns(tensors, "<<>><"),
    ]
