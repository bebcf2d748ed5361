"""What comes back: plans, reports and inspections, as plain data over the core's JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlmerge._conflicts import ConflictReport

__all__ = [
    "Finding",
    "Inspection",
    "ModelTensor",
    "Plan",
    "PlannedModel",
    "PlannedTensor",
    "Progress",
    "Report",
    "Stage",
    "TensorReport",
    "Verification",
]


class Progress(TypedDict):
    """How far a merge is; what a ``progress`` callback gets about ten times a second."""

    bytes_done: int
    bytes_total: int
    tensors_done: int
    tensors_total: int


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """An input of a plan, with its role and the parameters that hold for it."""

    path: Path
    role: str
    kind: str
    tensors: int
    bytes: int
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the output: ``action`` is ``compute``, ``copy`` or ``compare`` (copied when equal everywhere)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    action: str
    shard: str
    bytes: int


@dataclass(frozen=True)
class Plan:
    """A resolved merge that has not run: immutable, made from headers alone.

    Attributes
    ----------
    method, compat, seed, dtype, threads, parameters
        What holds for the whole merge.
    models, base
        The inputs in reading order, and the index of the base among them.
    output, output_kind
        Where the result goes, and whether it is a ``file`` or a ``folder``.
    bytes_to_read, bytes_to_write, memory_bound_bytes
        What it will cost.
    defaults
        The parameters that nobody gave, with the values used: one, or a list with one for each expert.
    notes, warnings
        What the user should know before running it.
    """

    method: str
    compat: str
    seed: int
    dtype: str | None
    threads: int
    parameters: dict[str, Any]
    base: int | None
    models: tuple[PlannedModel, ...]
    output: Path
    output_kind: str
    bytes_to_read: int
    bytes_to_write: int
    memory_bound_bytes: int
    defaults: dict[str, Any]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    raw: dict[str, Any] = field(repr=False)
    checker: Callable[[], None] = field(repr=False, compare=False)
    runner: Callable[[Callable[[Progress], None] | None, bool], Report] = field(repr=False, compare=False)
    canceller: Callable[[], None] = field(repr=False, compare=False)

    @cached_property
    def tensors(self) -> tuple[PlannedTensor, ...]:
        """The tensors of the output, in file order."""
        return tuple(
            PlannedTensor(t["name"], t["dtype"], tuple(t["shape"]), t["action"], t["shard"], t["bytes"])
            for t in self.raw["tensor_list"]
        )

    def check(self) -> None:
        """Check the place of the output without writing anything.

        Raises
        ------
        OutputError
            It exists already, is an input, has no room, or may not be written.

        Examples
        --------
        >>> rlmerge.plan(["a", "b"], method="linear", output="merged").check()  # doctest: +SKIP
        """
        self.checker()

    def run(self, progress: Callable[[Progress], None] | None = None, *, conflicts: bool = False) -> Report:
        """Do the merge.

        Parameters
        ----------
        progress
            Called about ten times a second; what it raises cancels the merge and comes out of this call.
        conflicts
            Gather a conflict report from the same read of the inputs; it is ``Report.conflicts``.

        Returns
        -------
        Report
            What was done.

        Raises
        ------
        RlmergeError
            Nothing was written.
        KeyboardInterrupt
            After Ctrl-C; nothing was written.

        Examples
        --------
        >>> plan = rlmerge.plan(["a", "b"], method="linear", output="merged")  # doctest: +SKIP
        >>> plan.run().output  # doctest: +SKIP
        PosixPath('merged')
        """
        return self.runner(progress, conflicts)

    def cancel(self) -> None:
        """Stop the runs of this plan that are at work, from any thread.

        Ctrl-C reaches the main thread only: a merge on another one is stopped by this, or by a ``progress`` that
        raises. Its ``run`` raises ``KeyboardInterrupt``, and nothing was written.

        Examples
        --------
        >>> plan = rlmerge.plan(["a", "b"], method="linear", output="merged")  # doctest: +SKIP
        >>> worker = threading.Thread(target=plan.run)  # doctest: +SKIP
        >>> worker.start(); plan.cancel(); worker.join()  # doctest: +SKIP
        """
        self.canceller()

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values of schema ``rlmerge.plan/1``."""
        return {**self.raw, "notes": list(self.notes), "warnings": list(self.warnings)}


@dataclass(frozen=True, slots=True)
class TensorReport:
    """What became of one tensor: ``action`` is ``computed`` or ``copied``; norms are None where they have no value."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    action: str
    blake3: str
    norm: float | None
    expert_norms: tuple[float | None, ...]
    non_finite_inputs: tuple[int, ...]
    non_finite_output: int
    non_finite_made_here: int = 0


@dataclass(frozen=True)
class Report:
    """What a merge did.

    Attributes
    ----------
    output
        The file or folder that was written.
    elapsed_seconds, bytes_read, bytes_written
        What it cost. They are not in the output's ``rlmerge.json``, which holds no clock.
    totals
        Counts of tensors and tiles, of those that were copied, and of non-finite values.
    notes, warnings
        What the user should know about the result.
    tensors_reused
        Tensors that an earlier run had finished (``resume``).
    conflicts
        The conflict report, if it was asked for.
    """

    output: Path
    elapsed_seconds: float
    bytes_read: int
    bytes_written: int
    totals: dict[str, int]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    raw: dict[str, Any] = field(repr=False)
    tensors_reused: int = 0
    conflicts: ConflictReport | None = field(default=None, repr=False)

    @cached_property
    def tensors(self) -> tuple[TensorReport, ...]:
        """One entry for each tensor of the output, with checksum and norms."""
        return tuple(
            TensorReport(
                name=t["name"],
                dtype=t["dtype"],
                shape=tuple(t["shape"]),
                shard=t["shard"],
                action=t["action"],
                blake3=t["blake3"],
                norm=t["norm"],
                expert_norms=tuple(t["expert_norms"] or ()),
                non_finite_inputs=tuple(t["non_finite"]["inputs"]),
                non_finite_output=t["non_finite"]["output"],
                non_finite_made_here=t["non_finite"]["made_here"],
            )
            for t in self.raw["tensors"]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values of schema ``rlmerge.report/1``."""
        return dict(self.raw)


@dataclass(frozen=True, slots=True)
class ModelTensor:
    """A tensor of a model, from its header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    shard: str


@dataclass(frozen=True)
class Inspection:
    """What the headers of a model say; no tensor byte was read.

    Attributes
    ----------
    path, kind
        The model, and whether it is a ``file``, a ``folder`` or an ``adapter``.
    parameters, bytes
        Size of all tensors together.
    dtypes
        Tensors, parameters and bytes for each dtype.
    metadata
        The free-text metadata of the safetensors header.
    adapter
        Kind, rank, scale, base and the like of an adapter, from its configuration; None for a model.
    warnings
        What is unusual about the model.
    """

    path: Path
    kind: str
    parameters: int
    bytes: int
    dtypes: dict[str, dict[str, int]]
    shards: tuple[dict[str, Any], ...]
    metadata: dict[str, str] | None
    config: dict[str, Any] | None
    adapter: dict[str, Any] | None
    warnings: tuple[str, ...]
    raw: dict[str, Any] = field(repr=False)

    @cached_property
    def tensors(self) -> tuple[ModelTensor, ...]:
        """The tensors, in the core's order."""
        return tuple(
            ModelTensor(t["name"], t["dtype"], tuple(t["shape"]), t["bytes"], t["shard"]) for t in self.raw["tensors"]
        )

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Inspection:
        """Make one from the core's JSON of schema ``rlmerge.inspect/1``."""
        return cls(
            path=Path(raw["path"]),
            kind=raw["kind"],
            parameters=raw["parameters"],
            bytes=raw["bytes"],
            dtypes=raw["dtypes"],
            shards=tuple(raw["shards"]),
            metadata=raw["metadata"],
            config=raw["config"],
            adapter=raw["adapter"],
            warnings=tuple(raw["warnings"]),
            raw=raw,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the inspection as plain values of schema ``rlmerge.inspect/1``."""
        return dict(self.raw)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that ``verify`` found: a kind with a stable ``id``, a cause and a remedy, and where it is."""

    id: str
    name: str
    severity: str
    cause: str
    remedy: str
    file: str
    tensor: str | None
    message: str


@dataclass(frozen=True)
class Verification:
    """What verifying an output gave.

    Attributes
    ----------
    path
        The output.
    ok
        Whether it is what the merge wrote; findings are then warnings at most.
    shards, tensors
        Files and tensors that the merge wrote.
    tensors_verified, bytes
        Tensors whose checksum held, and bytes that were read.
    findings
        What is wrong or odd.
    """

    path: Path
    ok: bool
    shards: int
    tensors: int
    tensors_verified: int
    bytes: int
    elapsed_seconds: float
    findings: tuple[Finding, ...]
    raw: dict[str, Any] = field(repr=False)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Verification:
        """Make one from the core's JSON of schema ``rlmerge.verify/1``."""
        return cls(
            path=Path(raw["path"]),
            ok=raw["ok"],
            shards=raw["shards"],
            tensors=raw["tensors"],
            tensors_verified=raw["tensors_verified"],
            bytes=raw["bytes"],
            elapsed_seconds=raw["elapsed_seconds"],
            findings=tuple(Finding(**finding) for finding in raw["findings"]),
            raw=raw,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values of schema ``rlmerge.verify/1``."""
        return dict(self.raw)


@dataclass(frozen=True, slots=True)
class Stage:
    """The hidden folder of a run: ``kept`` says why it was left alone, and is None when nothing speaks against it."""

    path: Path
    bytes: int
    pid: int
    removed: bool
    kept: str | None
