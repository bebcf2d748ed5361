"""The functions of the package: merge, plan, expand, inspect, methods, verify, clean."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlmerge import _core
from rlmerge._conflicts import report_of_merge
from rlmerge._methods import Method, find_method, load_methods
from rlmerge.errors import RecipeError
from rlmerge.modifiers import MATCH_SCOPES, Modifiers, parse_lines, parse_match_norm, parse_treat
from rlmerge.recipe import (
    COMPATS,
    DURABILITIES,
    IO_WAYS,
    MAX_SEED,
    OVERFLOWS,
    Expert,
    Recipe,
    check_choice,
    check_integer,
    check_value,
    load_recipe,
    parse_dtype,
    parse_int_from,
    parse_size,
)
from rlmerge.report import Inspection, Plan, PlannedModel, Progress, Report, Stage, Verification
from rlmerge.sidecars import Sidecar, collect_sidecars
from rlmerge.sources import Source, check_paths, choose_base, is_adapter, is_folder, named_base, resolve, resolve_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["clean", "expand", "inspect", "merge", "method", "methods", "plan", "verify"]

StrPath = str | os.PathLike[str]
Value = float | int | bool | StrPath | Sequence[float | int | bool | StrPath]


def merge(
    models: Iterable[StrPath] | None = None,
    *,
    method: str | None = None,
    base: StrPath | None = None,
    output: StrPath | None = None,
    recipe: StrPath | Mapping[str, Any] | None = None,
    parameters: Mapping[str, Value] | None = None,
    treat: Mapping[str, str] | None = None,
    lines: Sequence[float | str] | Mapping[str, float | str] | None = None,
    match_norm: str | int | None = None,
    match_norm_scope: str | None = None,
    seed: int | None = None,
    dtype: str | None = None,
    compat: str | None = None,
    shard_size: str | int | None = None,
    threads: int | None = None,
    io: str | None = None,
    durability: str | None = None,
    force: bool = False,
    resume: bool = False,
    keep_partial: bool = False,
    verify: bool = False,
    strict: bool = False,
    on_overflow: str | None = None,
    int_from: str | int | None = None,
    verify_inputs: bool = False,
    no_symlinks: bool = False,
    conflicts: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **method_parameters: Value,
) -> Report:
    """Merge checkpoints into one.

    Parameters
    ----------
    models
        The experts: safetensors files, Hugging Face folders, hub ids, or PEFT adapters, alone (on the base) or as
        ``"MODEL+ADAPTER"``. When the method needs a base and none is given, the base is the one that the models' own
        metadata name, if it is at hand, or else the first model.
    method
        Name of the method; ``methods()`` lists them. ``-`` and ``_`` are the same.
    base
        The checkpoint that the experts were trained from.
    output
        A ``.safetensors`` file or a folder. Unset, it is ``merged.safetensors`` for single files and ``merged`` for
        folders.
    recipe
        A YAML file or a mapping that says the same, in rlmerge's form or in mergekit's. ``models``, ``method`` and
        parameters then come from it; the other arguments win over it.
    parameters
        The method's parameters by name, each one value or a list with one for each expert.
    treat
        What is done with some tensors instead of the method: a mapping from a role (``embeddings``, ``head``,
        ``norms``, ``biases``, ``attention``, ``feed_forward``, ``routers``) or a name with ``*`` to ``"mean"`` of the
        experts, ``"base"``, or ``"merge"``. The first that names a tensor counts.
    lines
        Alpha and beta: what the method adds to the base in layer l of L is scaled by alpha + beta * l / (L - 1), and
        outside the layers by alpha (LiNeS, Wang et al. 2025). Alpha ``"auto"`` is found from the norms.
    match_norm
        Bring the experts' deltas to one L2 norm before the method: ``"mean"``, ``"min"``, or an expert's number from 1.
    match_norm_scope
        ``"model"`` (the default: one factor an expert) or ``"tensor"``.
    seed
        Seed of random methods; 0 unless given.
    dtype
        Dtype of the output, such as ``"bfloat16"``; the inputs' own unless given.
    compat
        ``"paper"`` (the default) or ``"mergekit"``: whose rules and defaults hold.
    shard_size
        Largest size of an output file in a folder; ``"5GB"`` unless given.
    threads
        Worker threads; one for each processor unless given. The result does not depend on it.
    io
        ``"pread"`` (the default) or ``"mmap"``: how tensor bytes are read. The result does not depend on it.
    durability
        ``"full"`` (the default), ``"file"`` or ``"none"``: what is synced to the disk before the call returns. An
        error, Ctrl-C or a kill never leaves half an output. A power cut cannot take a ``"full"`` output away; it may
        take a ``"file"`` output away as a whole; it may damage a ``"none"`` output, for which nothing is waited for.
    force
        Replace an existing output.
    resume
        Go on with what a killed run of this very merge left beside the output, if there is anything: tensors that it
        had finished, and whose bytes are still there, are not merged again. The output is the same to the byte. When
        such a call is interrupted in turn, or the disk or the memory is full, what it did is kept for the next.
    keep_partial
        Keep what was done when the merge fails, for a later call with ``resume``; the exception's ``partial`` says
        where. An interrupted merge keeps it unasked from a gigabyte of finished tensors on. After an error of the disk
        nothing is kept.
    verify
        Read everything back from the disk before the output appears, and compare it with what was computed.
    strict
        Raise when the output would hold values that are not finite.
    on_overflow
        What becomes of a finite value that the output's dtype cannot hold: ``"inf"`` (the default; counted and warned
        of), ``"error"``, or ``"clamp"`` for the largest value of the dtype.
    int_from
        Whose integers, truth values and other tensors without arithmetic are taken where models differ in them:
        ``"base"``, or the number of an expert, from 1. Unless given, a difference is an error.
    verify_inputs
        Read every input tensor again before publishing, and raise if its bytes are not those that were merged.
    no_symlinks
        Refuse models that are, or whose folders hold, symbolic links.
    conflicts
        Gather a conflict report from the same read of the inputs; it is ``Report.conflicts``.
    progress
        Called about ten times a second; what it raises cancels the merge and comes out of this call.
    **method_parameters
        Like ``parameters``, as keywords; ``lambda_`` stands for ``lambda``.

    Returns
    -------
    Report
        What was done.

    Raises
    ------
    RecipeError
        The request itself is wrong.
    CheckpointError
        An input is missing, damaged or not a model.
    AlignmentError
        The inputs do not fit each other.
    OutputError
        The output exists already, is an input, or cannot be written.
    NumericsError
        ``strict`` and the result is not finite, or ``on_overflow="error"`` and a value does not fit the dtype.
    KeyboardInterrupt
        After Ctrl-C; nothing was written.

    Examples
    --------
    >>> report = rlmerge.merge(["math", "code"], base="base", method="ties", density=0.2)  # doctest: +SKIP
    >>> report.output  # doctest: +SKIP
    PosixPath('merged')
    """
    made = plan(
        models,
        method=method,
        base=base,
        output=output,
        recipe=recipe,
        parameters=parameters,
        treat=treat,
        lines=lines,
        match_norm=match_norm,
        match_norm_scope=match_norm_scope,
        seed=seed,
        dtype=dtype,
        compat=compat,
        shard_size=shard_size,
        threads=threads,
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
        **method_parameters,
    )
    return made.run(progress, conflicts=conflicts)


def plan(
    models: Iterable[StrPath] | None = None,
    *,
    method: str | None = None,
    base: StrPath | None = None,
    output: StrPath | None = None,
    recipe: StrPath | Mapping[str, Any] | None = None,
    parameters: Mapping[str, Value] | None = None,
    treat: Mapping[str, str] | None = None,
    lines: Sequence[float | str] | Mapping[str, float | str] | None = None,
    match_norm: str | int | None = None,
    match_norm_scope: str | None = None,
    seed: int | None = None,
    dtype: str | None = None,
    compat: str | None = None,
    shard_size: str | int | None = None,
    threads: int | None = None,
    io: str | None = None,
    durability: str | None = None,
    force: bool = False,
    resume: bool = False,
    keep_partial: bool = False,
    verify: bool = False,
    strict: bool = False,
    on_overflow: str | None = None,
    int_from: str | int | None = None,
    verify_inputs: bool = False,
    no_symlinks: bool = False,
    **method_parameters: Value,
) -> Plan:
    """Plan a merge without doing it: only headers are read.

    Parameters
    ----------
    models, method, base, output, recipe, parameters, treat, lines, match_norm, match_norm_scope, seed, dtype, compat,
    shard_size, threads, io, durability, force, resume, keep_partial, verify, strict, on_overflow, int_from,
    verify_inputs, no_symlinks
        As for ``merge``.
    **method_parameters
        As for ``merge``.

    Returns
    -------
    Plan
        What would be read, computed and written; ``Plan.run`` does it.

    Raises
    ------
    RlmergeError
        Whatever the request and the headers can tell before a merge.

    Examples
    --------
    >>> plan = rlmerge.plan(["base", "math"], method="task-arithmetic")  # doctest: +SKIP
    >>> plan.bytes_to_read, plan.bytes_to_write  # doctest: +SKIP
    (4400000000, 2200000000)
    """
    given = {name.rstrip("_"): value for name, value in method_parameters.items()}
    if parameters is not None:
        both = given.keys() & parameters.keys()
        if both:
            msg = f"parameter `{min(both)}` is given twice"
            raise RecipeError(msg, hint="give it as a keyword or in `parameters`")
        given = {**parameters, **given}
    wanted = _request(models, method, base, recipe, given)
    modifiers = wanted.modifiers = wanted.modifiers or Modifiers()
    if treat is not None:
        modifiers.treat = parse_treat(treat)
    if lines is not None:
        modifiers.lines = parse_lines(lines)
    if match_norm is not None:
        modifiers.match_norm = parse_match_norm(match_norm)
    if match_norm_scope is not None:
        modifiers.match_norm_scope = check_choice("match_norm_scope", match_norm_scope, MATCH_SCOPES)
    if modifiers.match_norm_scope is not None and modifiers.match_norm is None:
        msg = "`match_norm_scope` without `match_norm`"
        raise RecipeError(msg, hint="add `match_norm`: mean, min, or the number of an expert")
    if output is not None:
        wanted.output = os.fspath(output)
    if seed is not None:
        wanted.seed = check_integer("seed", seed, 0, MAX_SEED)
    if dtype is not None:
        wanted.dtype = parse_dtype(dtype)
    if compat is not None:
        wanted.compat = check_choice("compat", compat, COMPATS)
    if shard_size is not None:
        wanted.shard_size = parse_size(shard_size)
    if threads is not None:
        wanted.threads = check_integer("threads", threads, 1, 1024)
    if io is not None:
        wanted.io = check_choice("io", io, IO_WAYS)
    if durability is not None:
        wanted.durability = check_choice("durability", durability, DURABILITIES)
    if on_overflow is not None:
        wanted.on_overflow = check_choice("on_overflow", on_overflow, OVERFLOWS)
    if int_from is not None:
        wanted.int_from = parse_int_from(int_from)
    wanted.strict = wanted.strict or strict
    wanted.verify_inputs = wanted.verify_inputs or verify_inputs
    wanted.no_symlinks = wanted.no_symlinks or no_symlinks
    return _prepare(wanted, force=force, resume=resume, keep_partial=keep_partial, verify=verify)


def expand(
    merged: StrPath,
    task: str,
    *,
    output: StrPath | None = None,
    base: StrPath | None = None,
    shard_size: str | int | None = None,
    threads: int | None = None,
    io: str | None = None,
    durability: str | None = None,
    force: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Rebuild one task's model from a folder that was merged with ``tall_masks`` or ``emr``.

    Everything that is read is compared with the checksums of the merge: nothing is built from other bytes.

    Parameters
    ----------
    merged
        The merged folder, with its file of masks.
    task
        The task: the name of its expert, as the folder's ``rlmerge.json`` lists it.
    output
        A ``.safetensors`` file or a folder; the merged folder's name, a dash and the task unless given.
    base
        The base of the merge; where the merge found it unless given.
    shard_size, threads, io, durability, force, progress
        As for ``merge``.

    Returns
    -------
    Report
        What was done.

    Raises
    ------
    RecipeError
        There is no such task.
    CheckpointError
        The folder has no masks, or something in it or in the base is not what it was.
    OutputError
        The output exists already, is an input, or cannot be written.

    Examples
    --------
    >>> rlmerge.expand("merged", "math", output="math-again").output  # doctest: +SKIP
    PosixPath('math-again')
    """
    from rlmerge._expansion import plan_expansion

    made = plan_expansion(
        os.fspath(merged),
        task,
        output=os.fspath(output) if output is not None else None,
        base=os.fspath(base) if base is not None else None,
        shard_size=parse_size(shard_size) if shard_size is not None else parse_size("5GB"),
        threads=check_integer("threads", threads, 1, 1024) if threads is not None else None,
        io=check_choice("io", io, IO_WAYS) if io is not None else IO_WAYS[0],
        durability=check_choice("durability", durability, DURABILITIES) if durability is not None else DURABILITIES[0],
        force=force,
    )
    return made.run(progress)


def inspect(path: StrPath) -> Inspection:
    """Describe a model from its headers.

    Parameters
    ----------
    path
        A safetensors file, a Hugging Face folder, a PEFT adapter's folder, or a hub id.

    Returns
    -------
    Inspection
        Tensors, dtypes, sizes, shards and warnings.

    Raises
    ------
    CheckpointError
        It is missing, damaged or not a model.

    Examples
    --------
    >>> rlmerge.inspect("model.safetensors").parameters  # doctest: +SKIP
    1100048384
    """
    name = os.fspath(path)
    check_paths([name])
    return Inspection.from_json(json.loads(_core.inspect(resolve(name))))


def verify(
    path: StrPath,
    *,
    manifest: StrPath | None = None,
    threads: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Verification:
    """Read an output back and compare it with what its merge wrote.

    Every tensor's checksum, every header, the index both ways, ``config.json`` and the masks are compared with the
    folder's ``rlmerge.json``.

    Parameters
    ----------
    path
        A merged folder; or a single merged file, together with ``manifest``.
    manifest
        The report of the merge, instead of the one in the folder: ``Report.to_dict()`` as JSON.
    threads
        Worker threads; one for each processor unless given.
    progress
        Called about ten times a second; what it raises comes out of this call.

    Returns
    -------
    Verification
        What was found; its ``ok`` is true when nothing is wrong.

    Raises
    ------
    CheckpointError
        There is nothing to verify against.

    Examples
    --------
    >>> found = rlmerge.verify("merged")  # doctest: +SKIP
    >>> found.ok, [f.tensor for f in found.findings]  # doctest: +SKIP
    (False, ['model.layers.3.mlp.up_proj.weight'])
    """
    name, other = os.fspath(path), os.fspath(manifest) if manifest is not None else None
    check_paths([name, *([other] if other is not None else [])])
    count = check_integer("threads", threads, 1, 1024) if threads is not None else None
    return Verification.from_json(json.loads(_core.verify(name, other, count, progress)))


def clean(path: StrPath, *, dry_run: bool = False) -> list[Stage]:
    """Remove what killed runs left: the hidden folders in which their outputs were growing.

    Stages in which a run is at work are left alone, and so are those of other users.

    Parameters
    ----------
    path
        A folder in which outputs were being written, or the path of an output.
    dry_run
        Only say what would be removed.

    Returns
    -------
    list of Stage
        All stages that were found, with those that were left alone and why.

    Raises
    ------
    OutputError
        A stage could not be removed.

    Examples
    --------
    >>> [(stage.path.name, stage.removed) for stage in rlmerge.clean("merged")]  # doctest: +SKIP
    [('.merged.rlmerge-4711-2c1f0a9b8d7e6f50.partial', True)]
    """
    name = os.fspath(path)
    check_paths([name])
    return [Stage(**{**raw, "path": Path(raw["path"])}) for raw in json.loads(_core.clean(name, dry_run))]


def methods() -> list[Method]:
    """List the merge methods, with their parameters, defaults and papers.

    Returns
    -------
    list of Method
        In the order of ``rlmerge methods``.

    Examples
    --------
    >>> "ties" in [method.name for method in methods()]
    True
    """
    return list(load_methods())


def method(name: str) -> Method:
    """Return one merge method.

    Parameters
    ----------
    name
        Its name or an alias; ``-`` and ``_`` are the same.

    Returns
    -------
    Method
        Formula, parameters, defaults and paper.

    Raises
    ------
    RecipeError
        No method has this name; the hint holds the nearest one.

    Examples
    --------
    >>> method("dare-ties").name
    'dare_ties'
    """
    return find_method(name)


def _request(
    models: Iterable[StrPath] | None,
    method: str | None,
    base: StrPath | None,
    recipe: StrPath | Mapping[str, Any] | None,
    parameters: Mapping[str, Value],
) -> Recipe:
    """Make one recipe from the arguments, or from the recipe that stands for them."""
    if recipe is not None:
        clashes = {"models": models is not None, "method": method is not None, "base": base is not None}
        clash = next((name for name, given in clashes.items() if given), next(iter(parameters), None))
        if clash is not None:
            msg = f"both a recipe and `{clash}`: the recipe says which models are merged and how"
            raise RecipeError(
                msg,
                hint="change the recipe; modifiers, seed, dtype, compat, output and shard size may be given besides",
            )
        return load_recipe(Path(recipe) if isinstance(recipe, (str, os.PathLike)) else recipe)
    if isinstance(models, (str, os.PathLike)):
        msg = "`models` is one path; it has to be a list of paths"
        raise RecipeError(msg, hint=f"write [{os.fspath(models)!r}, ...]")
    if models is None or not (paths := [os.fspath(model) for model in models]):
        msg = "no models to merge"
        raise RecipeError(msg, code="model_count", hint="give the models, or a recipe")
    if method is None:
        names = ", ".join(row.name for row in load_methods())
        msg = "no method to merge with"
        raise RecipeError(msg, code="unknown_method", hint=f"choose one of {names}")
    return Recipe(
        method=method,
        models=[Expert(path) for path in paths],
        base=os.fspath(base) if base is not None else None,
        parameters={name: check_value(name, value) for name, value in parameters.items()},
    )


def _prepare(wanted: Recipe, *, force: bool, resume: bool, keep_partial: bool, verify: bool) -> Plan:
    # The name is judged before anything is looked up or downloaded.
    method = find_method(wanted.method)
    names = [expert.path for expert in wanted.models]
    check_paths([*names, *([wanted.base] if wanted.base is not None else [])])
    experts = [resolve_model(expert.path) for expert in wanted.models]
    parameters = [expert.parameters for expert in wanted.models]
    base = resolve_model(wanted.base) if wanted.base is not None else None
    written = {source.name: name for source, name in zip(experts, names, strict=True)}
    if base is not None and wanted.base is not None:
        written[base.name] = wanted.base
    notes = list(wanted.notes)
    modifiers = wanted.modifiers or Modifiers()
    if wanted.form == "mergekit" and wanted.compat == "mergekit":
        notes.insert(0, "a recipe in mergekit's form: its defaults and rules hold (compat: mergekit)")
    if base is None and method.base == "required":
        choice = choose_base(experts)
        base = choice.base
        experts = [experts[at] for at in choice.experts]
        parameters = [parameters[at] for at in choice.experts]
        notes.append(choice.note)
    experts, base = _seat_adapters(experts, base, method, notes, written)

    # What an adapter belongs to decides: the adapter itself is no place for a model.
    paths = [source.path for source in ([*experts, base] if base is not None else experts)]
    folders = any(is_folder(path) and not is_adapter(path) for path in paths)
    output = wanted.output or ("merged" if folders else "merged.safetensors")
    try:
        output.encode()
    except UnicodeEncodeError:
        msg = f"{output!a}: not a UTF-8 name"
        raise RecipeError(msg, hint="choose another path for the output") from None
    request = {
        "method": method.name,
        "models": [
            {
                "path": source.path,
                "adapter": source.adapter,
                "name": _last_part(source.adapter or written.get(source.name)),
                "parameters": values,
            }
            for source, values in zip(experts, parameters, strict=True)
        ],
        "base": base.path if base is not None else None,
        "base_adapter": base.adapter if base is not None else None,
        "parameters": wanted.parameters,
        "modifiers": modifiers.to_core(),
        "seed": wanted.seed or 0,
        "dtype": wanted.dtype,
        "compat": wanted.compat or "paper",
        "output": output,
        "output_kind": "file" if output.endswith(".safetensors") else "folder",
        "shard_size": wanted.shard_size or parse_size("5GB"),
        "threads": wanted.threads,
        "io": wanted.io or IO_WAYS[0],
        "durability": wanted.durability or DURABILITIES[0],
        "force": force,
        "resume": resume,
        "keep_partial": keep_partial,
        "verify": verify,
        "strict": wanted.strict,
        "on_overflow": wanted.on_overflow or OVERFLOWS[0],
        "int_from": wanted.int_from,
        "verify_inputs": wanted.verify_inputs,
        "no_symlinks": wanted.no_symlinks,
    }
    core = _core.prepare(json.dumps(request))
    raw: dict[str, Any] = json.loads(core.to_json())
    first = raw["models"][raw["config_donor"]]
    donor = Path(first["adapter"]["base"] if first["adapter"] else first["path"])
    sidecars: list[Sidecar] = []
    if raw["output"]["kind"] == "folder":
        sidecars, more = collect_sidecars(donor, dtype=wanted.dtype, tie=raw["output"]["tie_word_embeddings"])
        notes += more
        sidecars.append(("README.md", _card(raw, method, wanted, written, sidecars)))
    notes += raw["notes"]

    def run(progress: Callable[[Progress], None] | None, conflicts: bool) -> Report:  # noqa: FBT001
        report = json.loads(core.run(sidecars, progress, "{}" if conflicts else None))
        found = report.pop("conflicts", None)
        report["plan"]["notes"] = list(notes)  # the core knows nothing of how the recipe was read
        return Report(
            output=Path(output),
            elapsed_seconds=report["elapsed_seconds"],
            bytes_read=report["bytes_read"],
            bytes_written=report["bytes_written"],
            totals=report["totals"],
            notes=tuple(notes),
            warnings=tuple(report["warnings"]),
            raw=report,
            tensors_reused=report["tensors_reused"],
            conflicts=None if found is None else report_of_merge(found),
        )

    return Plan(
        method=raw["method"],
        compat=raw["compat"],
        seed=raw["seed"],
        dtype=raw["dtype"],
        threads=raw["threads"],
        parameters=raw["parameters"],
        base=raw["base"],
        models=tuple(
            PlannedModel(Path(m["path"]), m["role"], m["kind"], m["tensors"], m["bytes"], m["parameters"])
            for m in raw["models"]
        ),
        output=Path(output),
        output_kind=raw["output"]["kind"],
        bytes_to_read=raw["bytes_to_read"],
        bytes_to_write=raw["bytes_to_write"],
        memory_bound_bytes=raw["memory_bound_bytes"],
        defaults=_defaults(raw, method, wanted),
        notes=tuple(notes),
        warnings=tuple(raw["warnings"]),
        raw=raw,
        checker=core.check,
        runner=run,
        canceller=core.cancel,
    )


def _last_part(name: str | None) -> str | None:
    """Return the last part of a path or hub id as the user wrote it: what its task is called."""
    return Path(name).name or None if name is not None else None


def _seat_adapters(
    experts: list[Source], base: Source | None, method: Method, notes: list[str], written: dict[str, str]
) -> tuple[list[Source], Source | None]:
    """Give adapters that stand alone a base where the method has none for them.

    A base given for a method that takes none is theirs; without any base it is the one that their configuration names,
    when that is at hand. What is left is for the core to refuse.
    """
    alone = [source.adapter is None and is_adapter(source.path) for source in experts]
    if not any(alone) or (base is not None and (method.base != "none" or base.adapter is not None)):
        return experts, base
    seated = []
    for source, is_alone in zip(experts, alone, strict=True):
        found = base.path if base is not None else named_base(source.path)
        if not is_alone or found is None:
            seated.append(source)
            continue
        whole = Source(found, source.path)
        written[whole.name] = f"{written.get(found, found)}+{written.get(source.path, source.path)}"
        if base is None:
            notes.append(
                f"{source.path}: an adapter of {found} (named in its configuration; BASE+ADAPTER chooses another)"
            )
        seated.append(whole)
    if base is not None:
        notes.append(f"`{method.name}` has no base: {base.path} is only what the adapters change")
    return seated, None


def _defaults(raw: dict[str, Any], method: Method, wanted: Recipe) -> dict[str, Any]:
    """Return the parameters that nobody gave, with the values that the plan uses."""
    given = {name.replace("-", "_") for name in wanted.parameters}
    experts = [model["parameters"] for model in raw["models"] if model["role"] == "expert"]
    own = [{name.replace("-", "_") for name in expert.parameters} for expert in wanted.models]
    defaults: dict[str, Any] = {}
    for parameter in method.parameters:
        name = parameter.name
        if name in given or (own and all(name in names for names in own)):
            continue
        if parameter.per_expert:
            values = [values[name] for values in experts if name in values]
            if values:
                defaults[name] = values
        elif name in raw["parameters"]:
            defaults[name] = raw["parameters"][name]
    if method.seeded and wanted.seed is None:
        defaults["seed"] = raw["seed"]
    return defaults


def _card(
    raw: dict[str, Any], method: Method, wanted: Recipe, written: dict[str, str], sidecars: list[Sidecar]
) -> bytes:
    from rlmerge._card import model_card

    recipe: dict[str, Any] = {"method": raw["method"], "models": []}
    models = []
    for model in raw["models"]:
        name = written.get(model["path"], model["path"])
        models.append((model["role"], name))
        if model["role"] == "base":
            recipe["base"] = name
        else:
            values = {key: value for key, value in model["parameters"].items() if value is not None}
            recipe["models"].append({"path": name, "parameters": values} if values else {"path": name})
    values = {key: value for key, value in raw["parameters"].items() if value is not None}
    if values:
        recipe["parameters"] = values
    if wanted.modifiers is not None:
        recipe |= wanted.modifiers.to_recipe()
    recipe["compat"] = raw["compat"]
    if method.seeded:
        recipe["seed"] = raw["seed"]
    if wanted.dtype is not None:
        recipe["dtype"] = wanted.dtype
    if wanted.shard_size is not None:
        recipe["shard_size"] = wanted.shard_size
    has_config = any(name == "config.json" for name, _ in sidecars)
    text = model_card(
        method=method,
        version=raw["version"],
        recipe=recipe,
        models=models,
        has_config=has_config,
        tasks=raw.get("masks", {}).get("tasks"),
    )
    return text.encode()
