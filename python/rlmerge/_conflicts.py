"""Conflict reports: what a request becomes, and what comes back."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlmerge import _core
from rlmerge._groups import Group, GroupComparison, compare_groups
from rlmerge._spectra import SpectralStatistics, spectral_of
from rlmerge._statistics import OF_EXPERT, OF_PAIR, SPECTRAL_OF_EXPERT, SPECTRAL_OF_PAIR, TOGETHER
from rlmerge.errors import RecipeError
from rlmerge.recipe import IO_WAYS, check_choice, check_integer
from rlmerge.sources import check_paths, choose_base, resolve_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from rlmerge._advice import Advice
    from rlmerge.report import Progress

__all__ = ["ConflictReport", "ExpertStatistics", "LevelStatistics", "PairStatistics", "TogetherStatistics", "conflicts"]

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class ExpertStatistics:
    """What one expert changed, in some tensors; ``rlmerge._statistics`` says what each number means.

    A number is None where it has no value: a share of nothing, or deltas that are not finite.
    """

    expert: str
    norm: float | None
    relative_norm: float | None
    max: float | None
    changed: float | None
    changed_relative: float | None
    changed_bf16: float | None
    energy_share: float | None
    kurtosis: float | None
    top1_energy: float | None
    top10_energy: float | None
    low_overlap: float | None
    low_overlap_chance: float | None
    ram_overlap: float | None
    ties_density: float | None
    ties_interference: float | None
    ties_trim_loss: float | None
    ties_election_loss: float | None
    ties_survival: float | None
    counts: dict[str, int]
    histogram: dict[str, Any]


@dataclass(frozen=True, slots=True)
class PairStatistics:
    """How two experts conflict, in some tensors; None where a number has no value."""

    a: str
    b: str
    cosine: float | None
    cosine_chance: float | None
    cosine_overlap: float | None
    cosine_overlap_chance: float | None
    sign_disagreement: float | None
    sign_disagreement_error: float | None
    sign_disagreement_top: float | None
    sign_disagreement_top_error: float | None
    conflict_norm: float | None
    conflict_norm_matched: float | None
    conflict_l2: float | None
    conflict_l1: float | None
    conflict_cosine: float | None
    jaccard: float | None
    jaccard_chance: float | None
    retention_a: float | None
    retention_b: float | None
    capture_a: float | None
    capture_b: float | None
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class TogetherStatistics:
    """What all experts do together."""

    dilution: float | None
    dilution_chance: float | None
    sum_norm: float | None
    mean_norm: float | None


@dataclass(frozen=True, slots=True)
class LevelStatistics:
    """Some tensors: one, a layer, a kind of module, both, or all.

    Attributes
    ----------
    label
        What they are, in words.
    layer, kind
        Number of the layer and kind of module, where there is one.
    tensors, parameters
        How many.
    experts, pairs, together
        Their statistics.
    spectral
        Means over their matrices, where spectral statistics were asked for and there are any.
    """

    label: str
    layer: int | None
    kind: str | None
    tensors: int
    parameters: int
    base_norm: float | None
    experts: tuple[ExpertStatistics, ...]
    pairs: tuple[PairStatistics, ...]
    together: TogetherStatistics
    spectral: SpectralStatistics | None = None


@dataclass(frozen=True)
class ConflictReport:
    """What some experts changed in their base, and where they conflict.

    Attributes
    ----------
    base, experts
        The base, and the experts' names in order.
    model
        The whole model.
    groups
        The groups of experts, compared; None without groups.
    advice
        What the numbers suggest, each with the rule and the thresholds that it rests on.
    elapsed_seconds, bytes_read
        What it cost; None when it was gathered during a merge.
    notes, warnings
        What the user should know.
    raw
        The core's JSON of schema ``rlmerge.conflicts/1``.
    """

    base: Path
    experts: tuple[str, ...]
    groups: GroupComparison | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    elapsed_seconds: float | None
    bytes_read: int | None
    raw: dict[str, Any] = field(repr=False)

    @cached_property
    def model(self) -> LevelStatistics:
        """The whole model."""
        return self._level(self.raw["model"], "model")

    @property
    def is_spectral(self) -> bool:
        """Whether spectral statistics were asked for."""
        return bool(self.raw["settings"].get("spectral"))

    @cached_property
    def pairs(self) -> tuple[PairStatistics, ...]:
        """The pairs of experts, over the whole model."""
        return self.model.pairs

    @cached_property
    def kinds(self) -> tuple[LevelStatistics, ...]:
        """Each kind of module, over all layers."""
        return tuple(self._level(row, row["kind"]) for row in self.raw["kinds"])

    @cached_property
    def layers(self) -> tuple[LevelStatistics, ...]:
        """Each layer, and last what belongs to none."""
        return tuple(self._level(row, _layer(row["layer"])) for row in self.raw["layers"])

    @cached_property
    def cells(self) -> tuple[LevelStatistics, ...]:
        """Each kind of module in each layer."""
        return tuple(self._level(row, f"{_layer(row['layer'])}, {row['kind']}") for row in self.raw["cells"])

    @cached_property
    def tensors(self) -> tuple[LevelStatistics, ...]:
        """Each tensor with arithmetic."""
        return tuple(self._level(row, row["name"]) for row in self.raw["tensors"] if "experts" in row)

    @cached_property
    def advice(self) -> tuple[Advice, ...]:
        """What the numbers suggest."""
        from rlmerge._advice import advise

        return advise(self)

    def worst_layers(self, count: int = 5) -> tuple[LevelStatistics, ...]:
        """Return the layers in which the experts conflict most.

        Parameters
        ----------
        count
            How many, at most.

        Returns
        -------
        tuple of LevelStatistics
            By the largest L1-normalised conflict of any pair (chance: 0.5), worst first; layers without one are left
            out.
        """
        scored = [(worst, at) for at, layer in enumerate(self.layers) if (worst := _worst(layer)) is not None]
        scored.sort(key=lambda item: (-item[0], item[1]))
        return tuple(self.layers[at] for _, at in scored[:count])

    def table(self, level: str) -> list[dict[str, Any]]:
        """Return the numbers of a level as rows.

        Parameters
        ----------
        level
            ``pairs`` or ``experts`` of the whole model; ``layers``, ``kinds``, ``cells`` or ``tensors``, one row for
            each pair or, with ``.experts`` behind it, for each expert.

        Returns
        -------
        list of dict
            One mapping a row, counts among the other columns.
        """
        name, _, of = level.partition(".")
        whole = name in ("pairs", "experts")
        if name not in ("pairs", "experts", "layers", "kinds", "cells", "tensors") or of not in (
            "",
            "experts",
            "pairs",
        ):
            msg = f"no table {level!r}"
            raise RecipeError(
                msg, hint="choose pairs, experts, layers, kinds, cells or tensors, or e.g. layers.experts"
            )
        levels = (self.model,) if whole else getattr(self, name)
        of_experts = name == "experts" or of == "experts"
        rows = []
        for part in levels:
            where = {} if whole else {"label": part.label, "layer": part.layer, "kind": part.kind}
            found = (
                [({"expert": e.expert}, OF_EXPERT, e) for e in part.experts]
                if of_experts
                else [({"a": p.a, "b": p.b}, OF_PAIR, p) for p in part.pairs]
            )
            spectral = part.spectral
            more = None if spectral is None else spectral.experts if of_experts else spectral.pairs
            for at, (who, names, item) in enumerate(found):
                numbers = {key: getattr(item, key) for key in names}
                if self.is_spectral:
                    # Vectors have none.
                    keys = SPECTRAL_OF_EXPERT if of_experts else SPECTRAL_OF_PAIR
                    numbers |= {key: None if more is None else getattr(more[at], key) for key in keys}
                counts = {f"count_{key}": value for key, value in item.counts.items()}
                rows.append({**where, **who, "parameters": part.parameters, **numbers, **counts})
        return rows

    def to_dataframe(self, level: str = "pairs") -> Any:
        """Return a table as a pandas data frame.

        Parameters
        ----------
        level
            As for ``table``.

        Returns
        -------
        pandas.DataFrame
            One row a pair, or an expert.

        Raises
        ------
        ImportError
            pandas is not installed; ``table`` gives the same rows without it.
        """
        import pandas

        return pandas.DataFrame(self.table(level))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values of schema ``rlmerge.conflicts/1``."""
        return {
            **self.raw,
            "experts": list(self.experts),
            "groups": self.groups.to_dict() if self.groups is not None else None,
            "advice": [row.to_dict() for row in self.advice],
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }

    def to_html(self) -> str:
        """Return the report as one HTML page that needs no network."""
        from rlmerge._html import page

        return page(self)

    def to_markdown(self) -> str:
        """Return the report's main tables as Markdown."""
        from rlmerge._text import markdown

        return markdown(self)

    def to_csv(self, folder: StrPath) -> list[Path]:
        """Write every table as a CSV file.

        Parameters
        ----------
        folder
            Where to; it is created if it is missing.

        Returns
        -------
        list of Path
            The files.
        """
        import csv

        root = Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        written = []
        for level in (
            "pairs",
            "experts",
            *(f"{n}.{of}" for n in ("layers", "kinds", "tensors") for of in ("pairs", "experts")),
        ):
            rows = self.table(level)
            path = root / f"{level.replace('.', '-')}.csv"
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]) if rows else ["empty"])
                writer.writeheader()
                writer.writerows({key: _spreadsheet_safe(value) for key, value in row.items()} for row in rows)
            written.append(path)
        return written

    def plot(self, statistic: str = "cosine", *, pair: int = 0, expert: int = 0) -> Any:
        """Draw a statistic as a heat map of layers and kinds of module.

        Parameters
        ----------
        statistic
            Name of a statistic of pairs or of experts.
        pair, expert
            Which pair or expert, counted from 0.

        Returns
        -------
        matplotlib.figure.Figure
            The figure.

        Raises
        ------
        ImportError
            matplotlib is not installed (extra ``plot``).
        """
        from rlmerge._plot import heat_map

        return heat_map(self, statistic, pair=pair, expert=expert)

    def _repr_html_(self) -> str:
        from rlmerge._text import notebook

        return notebook(self)

    def _level(self, row: Mapping[str, Any], label: str) -> LevelStatistics:
        experts = tuple(
            ExpertStatistics(expert=name, **{key: stats[key] for key in (*OF_EXPERT, "counts", "histogram")})
            for name, stats in zip(self.experts, row["experts"], strict=True)
        )
        pairs = tuple(
            PairStatistics(
                a=self.experts[stats["a"]],
                b=self.experts[stats["b"]],
                **{key: stats[key] for key in (*OF_PAIR, "counts")},
            )
            for stats in row["pairs"]
        )
        return LevelStatistics(
            label=label,
            layer=row.get("layer"),
            kind=row.get("kind"),
            tensors=row["tensors"],
            parameters=row["parameters"],
            base_norm=row["base_norm"],
            experts=experts,
            pairs=pairs,
            together=TogetherStatistics(**{key: row["together"][key] for key in TOGETHER}),
            spectral=spectral_of(row.get("spectral"), self.experts),
        )


def _layer(number: int | None) -> str:
    return "outside layers" if number is None else f"layer {number}"


def _worst(layer: LevelStatistics) -> float | None:
    found = [pair.conflict_l1 for pair in layer.pairs if pair.conflict_l1 is not None]
    return max(found, default=None)


def _spreadsheet_safe(value: object) -> object:
    """Keep a spreadsheet from taking a hostile name for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def conflicts(
    experts: Iterable[StrPath] | None = None,
    *,
    base: StrPath | None = None,
    groups: Mapping[str, Sequence[StrPath]] | None = None,
    epsilon: float = 1e-5,
    relative: float = 1e-3,
    density: float = 0.2,
    low: float = 0.3,
    lambda_: float = 1.0,
    spectral: bool = False,
    directions: int = 32,
    threads: int | None = None,
    io: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ConflictReport:
    """Measure what experts changed in their base, and where they conflict, in one read of the files.

    Parameters
    ----------
    experts
        The experts: safetensors files, Hugging Face folders, or hub ids. Those that only groups name are added.
    base
        What they were trained from; when it is not given, the rule of ``merge`` chooses it.
    groups
        Names of groups with their experts, to be compared: ``{"sft": ["a", "b", "c"], "rl": ["d", "e", "f"]}``.
    epsilon, relative
        A delta above ``epsilon`` is a change; above ``relative`` times the larger weight, a relative change.
    density
        Share of each tensor's deltas that TIES keeps and that count as its largest.
    low
        Share of each tensor's base weights that count as its smallest.
    lambda_
        Scale of the other expert in the direction retention.
    spectral
        Also measure singular values and directions of every matrix, which takes much longer.
    directions
        Most directions of a matrix that spectral statistics follow.
    threads, io
        As for ``merge``; the numbers do not depend on them.
    progress
        Called about ten times a second; what it raises cancels the report and comes out of this call.

    Returns
    -------
    ConflictReport
        Statistics of the whole model, kinds of module, layers and tensors, with chance levels and advice.

    Raises
    ------
    RecipeError
        The request itself is wrong.
    CheckpointError
        A model is missing, damaged or not a model.
    AlignmentError
        The models do not fit each other.
    KeyboardInterrupt
        After Ctrl-C.

    Examples
    --------
    >>> report = rlmerge.conflicts(["math", "code"], base="base")  # doctest: +SKIP
    >>> report.pairs[0].cosine  # doctest: +SKIP
    0.0213
    """
    if isinstance(experts, (str, os.PathLike)):
        msg = "`experts` is one path; it has to be a list of paths"
        raise RecipeError(msg, hint=f"write [{os.fspath(experts)!r}]")
    wanted = [os.fspath(path) for path in experts or ()]
    named = {name: [os.fspath(path) for path in members] for name, members in (groups or {}).items()}
    for members in named.values():
        wanted += [path for path in members if path not in wanted]
    check_paths([*wanted, *([os.fspath(base)] if base is not None else [])])
    notes: list[str] = []
    if base is None:
        if len(wanted) < 2:
            msg = "a report needs a base and at least one expert"
            raise RecipeError(msg, code="model_count", hint="give the base with `base`, on the command line --base")
        choice = choose_base([resolve_model(path) for path in wanted])
        chosen = choice.base
        wanted = [wanted[at] for at in choice.experts]
        notes.append(choice.note)
    else:
        chosen = resolve_model(os.fspath(base))
    if not wanted:
        msg = "no experts to compare with the base"
        raise RecipeError(msg, code="model_count", hint="give at least one expert; two for a conflict")
    names = _names(wanted)
    found = [Group(name, [_member(wanted, path) for path in members]) for name, members in named.items()]
    request = {
        "base": chosen.path,
        "base_adapter": chosen.adapter,
        "experts": [{"path": found.path, "adapter": found.adapter} for found in map(resolve_model, wanted)],
        "threads": None if threads is None else check_integer("threads", threads, 1, 1024),
        "io": check_choice("io", io, IO_WAYS) if io is not None else IO_WAYS[0],
    }
    settings = settings_json(
        epsilon=epsilon,
        relative=relative,
        density=density,
        low=low,
        lambda_=lambda_,
        spectral=bool(spectral),
        directions=check_integer("directions", directions, 1, 128),
    )
    raw: dict[str, Any] = json.loads(_core.conflicts(json.dumps(request), settings, progress))
    return report_of(raw, names, found, notes)


def difference(
    before: str, after: str, *, threads: int | None = None, progress: Callable[[Progress], None] | None = None
) -> ConflictReport:
    """Measure what changed between two checkpoints in the tensors that both have; ``raw["unmatched"]`` lists others."""
    check_paths([before, after])
    a, b = resolve_model(before), resolve_model(after)
    request = {
        "base": a.path,
        "base_adapter": a.adapter,
        "experts": [{"path": b.path, "adapter": b.adapter}],
        "threads": None if threads is None else check_integer("threads", threads, 1, 1024),
        "common": True,
    }
    raw: dict[str, Any] = json.loads(_core.conflicts(json.dumps(request), "{}", progress))
    return report_of(raw, _names([after]), [], [])


def settings_json(
    *,
    epsilon: float,
    relative: float,
    density: float,
    low: float,
    lambda_: float,
    spectral: bool = False,
    directions: int = 32,
) -> str:
    """Return what counts as changed, large and small, and what is wanted, for the core."""
    settings = {"epsilon": epsilon, "relative": relative, "density": density, "low": low, "lambda": lambda_}
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            msg = f"{name}: {value!r} is not a number"
            raise RecipeError(msg)
    return json.dumps({**settings, "spectral": spectral, "directions": directions})


def report_of_merge(raw: dict[str, Any]) -> ConflictReport:
    """Make a report of what a merge gathered."""
    paths = [model["path"] for model in raw["models"] if model["role"] == "expert"]
    return report_of(raw, _names(paths), [], [])


def report_of(
    raw: dict[str, Any], names: Sequence[str], groups: Sequence[Group], notes: Sequence[str]
) -> ConflictReport:
    """Make a report of the core's JSON."""
    report = ConflictReport(
        base=Path(next(model["path"] for model in raw["models"] if model["role"] == "base")),
        experts=tuple(names),
        groups=None,
        notes=(*notes, *raw["notes"]),
        warnings=tuple(raw["warnings"]),
        elapsed_seconds=raw.get("elapsed_seconds"),
        bytes_read=raw.get("bytes_read"),
        raw=raw,
    )
    odd = [(expert.expert, n) for expert in report.model.experts if (n := expert.counts["non_finite"])]
    told = tuple(f"{name}: {n:,} deltas are not finite, so its statistics are undefined there" for name, n in odd)
    report = replace(report, warnings=(*report.warnings, *told))
    return replace(report, groups=compare_groups(report, groups)) if groups else report


def _member(paths: list[str], path: str) -> int:
    if path not in paths:
        msg = f"{path}: in a group, but it is the base"
        raise RecipeError(msg, hint="a group holds experts; give the base with `base`")
    return paths.index(path)


def _names(paths: list[str]) -> list[str]:
    """Return short names that tell the experts apart: the last part of each path, or as many as it takes."""
    parts = [
        [p for p in Path(path).with_suffix("" if path.endswith(".safetensors") else Path(path).suffix).parts]
        for path in paths
    ]
    depth = 1
    while depth < max(map(len, parts), default=1) and len({tuple(p[-depth:]) for p in parts}) < len(parts):
        depth += 1
    return ["/".join(p[-depth:]) or path for p, path in zip(parts, paths, strict=True)]
