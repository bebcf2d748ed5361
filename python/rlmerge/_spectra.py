"""The spectral part of a conflict report: typed numbers, tables, and what the page draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlmerge._statistics import SPECTRAL_OF_EXPERT, SPECTRAL_OF_PAIR, SPECTRAL_TOGETHER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rlmerge._conflicts import ConflictReport
    from rlmerge._text import Table

__all__ = [
    "SpectralExpert",
    "SpectralPair",
    "SpectralStatistics",
    "SpectralTogether",
    "spectra",
    "spectral_of",
    "spectral_tables",
]


@dataclass(frozen=True, slots=True)
class SpectralExpert:
    """Singular values and directions of what one expert changed: means over matrices; None without a value."""

    expert: str
    stable_rank: float | None
    stable_rank_chance: float | None
    effective_rank: float | None
    effective_rank_chance: float | None
    noise_rank: float | None
    signal_energy: float | None
    energy_1: float | None
    energy_1_chance: float | None
    energy_8: float | None
    energy_8_chance: float | None
    angle_left: float | None
    angle_right: float | None
    angle_left_typical: float | None
    angle_right_typical: float | None
    angle_left_chance: float | None
    angle_right_chance: float | None
    spectrum_shift: float | None
    spectrum_shift_share: float | None
    spectrum_shift_chance: float | None
    principal_overlap: float | None
    principal_overlap_chance: float | None


@dataclass(frozen=True, slots=True)
class SpectralPair:
    """How the directions of two experts meet."""

    a: str
    b: str
    subspace_a: float | None
    subspace_a_chance: float | None
    subspace_b: float | None
    subspace_b_chance: float | None
    interference: float | None
    interference_share: float | None
    interference_chance: float | None


@dataclass(frozen=True, slots=True)
class SpectralTogether:
    """How the directions of all experts meet."""

    interference: float | None
    interference_share: float | None
    interference_chance: float | None


@dataclass(frozen=True, slots=True)
class SpectralStatistics:
    """Spectral statistics of some tensors: means over so many matrices, weighted by their elements."""

    matrices: int
    experts: tuple[SpectralExpert, ...]
    pairs: tuple[SpectralPair, ...]
    together: SpectralTogether


def spectral_of(row: Mapping[str, Any] | None, names: Sequence[str]) -> SpectralStatistics | None:
    """Return typed numbers out of the core's; None where there are none."""
    if row is None:
        return None
    return SpectralStatistics(
        matrices=row["matrices"],
        experts=tuple(
            SpectralExpert(expert=name, **{key: numbers[key] for key in SPECTRAL_OF_EXPERT})
            for name, numbers in zip(names, row["experts"], strict=True)
        ),
        pairs=tuple(
            SpectralPair(
                a=names[numbers["a"]], b=names[numbers["b"]], **{key: numbers[key] for key in SPECTRAL_OF_PAIR}
            )
            for numbers in row["pairs"]
        ),
        together=SpectralTogether(**{key: row["together"][key] for key in SPECTRAL_TOGETHER}),
    )


def _beside(value: float | None, chance: float | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.3g}" + ("" if chance is None else f" (chance {chance:.3g})")


def spectral_tables(report: ConflictReport) -> list[Table]:
    """Return the spectral tables; none without ``--spectral``."""
    found = report.model.spectral
    if found is None:
        return []
    experts = [["EXPERT", "STABLE RANK", "ABOVE NOISE", "ENERGY", "LEFT ANGLE", "RIGHT ANGLE", "SHIFT", "PRINCIPAL"]]
    for e in found.experts:
        experts.append(
            [
                e.expert,
                _beside(e.stable_rank, e.stable_rank_chance),
                _beside(e.noise_rank, None),
                _beside(e.signal_energy, None),
                _beside(e.angle_left_typical, e.angle_left_chance),
                _beside(e.angle_right_typical, e.angle_right_chance),
                _beside(e.spectrum_shift, None),
                _beside(e.principal_overlap, e.principal_overlap_chance),
            ]
        )
    tables: list[Table] = [("Spectra", experts, "<<<<<<<<")]
    if found.pairs:
        pairs = [["PAIR", "A IN B", "B IN A", "INTERFERENCE"]]
        for p in found.pairs:
            pairs.append(
                [
                    f"{p.a} × {p.b}",
                    _beside(p.subspace_a, p.subspace_a_chance),
                    _beside(p.subspace_b, p.subspace_b_chance),
                    _beside(p.interference_share, p.interference_chance),
                ]
            )
        tables.append(("Directions of pairs", pairs, "<<<<"))
    return tables


def spectra(report: ConflictReport) -> list[dict[str, Any]]:
    """Return what the page draws of each tensor: its spectra, to four digits."""

    def short(values: Sequence[float | None]) -> list[float | None]:
        return [None if value is None else float(f"{value:.4g}") for value in values]

    drawn = []
    for tensor in report.raw["tensors"]:
        if (curves := tensor.get("spectrum")) is not None:
            drawn.append(
                {
                    "name": tensor["name"],
                    "sides": curves["sides"],
                    "index": curves["index"],
                    "base": short(curves["base"]),
                    "deltas": [short(values) for values in curves["deltas"]],
                    "edges": short(curves["edges"]),
                    "noise": short(curves["noise"]),
                    "norms": short([expert["norm"] for expert in tensor["experts"]]),
                }
            )
    return drawn
