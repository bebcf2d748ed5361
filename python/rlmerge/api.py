"""The functions of the package: merge, plan, inspect, methods."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlmerge import _core
from rlmerge._methods import Method, find_method, load_methods
from rlmerge.errors import RecipeError
from rlmerge.modifiers import MATCH_SCOPES, Modifiers, parse_lines, parse_match_norm, parse_treat
from rlmerge.recipe import (
    COMPATS,
    DURABILITIES,
    IO_WAYS,
    MAX_SEED,
    Expert,
    Recipe,
    check_choice,
    check_integer,
    check_value,
    load_recipe,
    parse_dtype,
    parse_size,
)
from rlmerge.report import Inspection, Plan, PlannedModel, Progress, Report
from rlmerge.sidecars import Sidecar, collect_sidecars
from rlmerge.sources import check_paths, choose_base, is_folder, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["inspect", "merge", "method", "methods", "plan"]

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
    strict: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **method_parameters: Value,
) -> Report:
    """Merge checkpoints into one.

    Parameters
    ----------
    models
        The experts: safetensors files, Hugging Face folders, or hub ids. When the method needs a base and none is
        given, the base is the one that the models' own metadata name, if it is at hand, or else the first model.
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
    strict
        Raise when the output would hold values that are not finite.
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
        ``strict``, and the result is not finite.
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
        strict=strict,
        **method_parameters,
    )
    return made.run(progress)


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
    strict: bool = False,
    **method_parameters: Value,
) -> Plan:
    """Plan a merge without doing it: only headers are read.

    Parameters
    ----------
    models, method, base, output, recipe, parameters, treat, lines, match_norm, match_norm_scope, seed, dtype, compat,
    shard_size, threads, io, durability, force, strict
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
    wanted.strict = wanted.strict or strict
    return _prepare(wanted, force=force)


def inspect(path: StrPath) -> Inspection:
    """Describe a model from its headers.

    Parameters
    ----------
    path
        A safetensors file, a Hugging Face folder, or a hub id.

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


def _prepare(wanted: Recipe, *, force: bool) -> Plan:
    # The name is judged before anything is looked up or downloaded.
    method = find_method(wanted.method)
    names = [expert.path for expert in wanted.models]
    check_paths([*names, *([wanted.base] if wanted.base is not None else [])])
    written = {resolve(name): name for name in names}
    experts = [Expert(resolve(expert.path), expert.parameters) for expert in wanted.models]
    base = None
    if wanted.base is not None:
        base = resolve(wanted.base)
        written[base] = wanted.base
    notes = list(wanted.notes)
    modifiers = wanted.modifiers or Modifiers()
    if wanted.form == "mergekit" and wanted.compat == "mergekit":
        notes.insert(0, "a recipe in mergekit's form: its defaults and rules hold (compat: mergekit)")
    if base is None and method.base == "required":
        choice = choose_base([expert.path for expert in experts])
        base = choice.base
        experts = [experts[at] for at in choice.experts]
        notes.append(choice.note)

    paths = [expert.path for expert in experts] + ([base] if base is not None else [])
    folders = any(is_folder(path) for path in paths)
    output = wanted.output or ("merged" if folders else "merged.safetensors")
    request = {
        "method": method.name,
        "models": [{"path": expert.path, "parameters": expert.parameters} for expert in experts],
        "base": base,
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
        "strict": wanted.strict,
    }
    core = _core.prepare(json.dumps(request))
    raw: dict[str, Any] = json.loads(core.to_json())
    donor = Path(raw["models"][raw["config_donor"]]["path"])
    sidecars: list[Sidecar] = []
    if raw["output"]["kind"] == "folder":
        sidecars, more = collect_sidecars(donor, dtype=wanted.dtype, tie=raw["output"]["tie_word_embeddings"])
        notes += more
        sidecars.append(("README.md", _card(raw, method, wanted, written, sidecars)))
    notes += raw["notes"]

    def run(progress: Callable[[Progress], None] | None) -> Report:
        report = json.loads(core.run(sidecars, progress))
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
    )


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
    text = model_card(method=method, version=raw["version"], recipe=recipe, models=models, has_config=has_config)
    return text.encode()
