"""The table of conflict statistics: what each is called, of what it is, and what chance gives."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["OF_EXPERT", "OF_PAIR", "STATISTICS", "TOGETHER", "Statistic", "statistic"]


@dataclass(frozen=True, slots=True)
class Statistic:
    """A statistic of the report.

    Attributes
    ----------
    name, title
        Its key in JSON, and in words.
    of
        ``expert``, ``pair`` or ``together``.
    scale
        How it grows with the size of the updates: ``free`` (not at all), ``norm`` or ``norm squared``.
    chance
        The value that independent deltas give: a number, or the key of the statistic that holds it.
    spread
        The key of the statistic that holds one standard deviation around chance, if there is one.
    meaning
        A formula or a sentence.
    """

    name: str
    title: str
    of: str
    scale: str
    meaning: str
    chance: float | str | None = None
    spread: str | None = None


def _expert(name: str, title: str, scale: str, meaning: str, chance: float | str | None = None) -> Statistic:
    return Statistic(name, title, "expert", scale, meaning, chance)


def _pair(
    name: str,
    title: str,
    scale: str,
    meaning: str,
    chance: float | str | None = None,
    spread: str | None = None,
) -> Statistic:
    return Statistic(name, title, "pair", scale, meaning, chance, spread)


STATISTICS: tuple[Statistic, ...] = (
    _expert("norm", "update norm", "norm", "‖δ‖₂"),
    _expert("relative_norm", "relative norm", "norm", "‖δ‖₂ / ‖base‖₂"),
    _expert("max", "largest change", "norm", "max |δ|"),
    _expert("changed", "changed, absolute", "norm", "share of elements with |δ| > ε (1e-5)"),
    _expert("changed_relative", "changed, relative", "norm", "share with |w′ − w| > r · max(|w|, |w′|) (r = 1e-3)"),
    _expert(
        "changed_bf16",
        "changed, bf16-visible",
        "norm",
        "share with bf16(w′) ≠ bf16(w); small updates vanish in bf16, so this follows the norm",
    ),
    _expert(
        "energy_share", "energy share", "free", "share of the model's ‖δ‖² here ÷ share of its parameters here", 1.0
    ),
    _expert("kurtosis", "kurtosis", "free", "N Σδ⁴ / (Σδ²)², about zero; 3 for Gaussian deltas", 3.0),
    _expert("top1_energy", "energy in top 1 %", "free", "share of ‖δ‖² in the largest 1 % of each tensor"),
    _expert("top10_energy", "energy in top 10 %", "free", "share of ‖δ‖² in the largest 10 % of each tensor"),
    _expert(
        "low_overlap",
        "low-magnitude overlap",
        "free",
        "share of the changed elements whose base is among the smallest 30 % of its tensor",
        "low_overlap_chance",
    ),
    _expert("low_overlap_chance", "its chance", "free", "share of all elements that are among the smallest 30 %"),
    _expert("ram_overlap", "RAM overlap", "free", "elements changed by this and another expert ÷ by this one alone"),
    _expert("ties_density", "TIES density", "free", "share that a trim at the density keeps (ties are kept together)"),
    _expert(
        "ties_interference", "TIES interference", "free", "of the kept elements, the share whose sign is not elected"
    ),
    _expert("ties_trim_loss", "energy lost by trim", "free", "share of ‖δ‖² below the trim's threshold"),
    _expert("ties_election_loss", "energy lost by election", "free", "share of ‖δ‖² kept by the trim, then outvoted"),
    _expert("ties_survival", "TIES survival", "free", "share of ‖δ‖² that trim and election leave"),
    _pair("cosine", "cosine", "free", "⟨δa, δb⟩ / (‖δa‖ ‖δb‖)", 0.0, "cosine_chance"),
    _pair("cosine_chance", "its spread by chance", "free", "1/√N"),
    _pair("cosine_overlap", "cosine on overlap", "free", "the cosine where both changed", 0.0, "cosine_overlap_chance"),
    _pair("cosine_overlap_chance", "its spread by chance", "free", "1/√(elements both changed)"),
    _pair(
        "sign_disagreement",
        "sign disagreement",
        "free",
        "of the elements both changed, the share with δa δb < 0",
        0.5,
        "sign_disagreement_error",
    ),
    _pair("sign_disagreement_error", "its spread by chance", "free", "0.5/√(elements both changed)"),
    _pair(
        "sign_disagreement_top",
        "sign disagreement, largest",
        "free",
        "the same among elements that are in both experts' largest 20 %",
        0.5,
        "sign_disagreement_top_error",
    ),
    _pair("sign_disagreement_top_error", "its spread by chance", "free", "0.5/√(elements in both)"),
    _pair("conflict_norm", "conflict norm", "norm squared", "‖c⁻‖₂ with c = δa ⊙ δb, c⁻ its negative part"),
    _pair(
        "conflict_norm_matched",
        "conflict norm, norms matched",
        "free",
        "the conflict norm after scaling every expert to one common norm",
    ),
    _pair("conflict_l2", "normalised conflict", "free", "‖c⁻‖₂ / ‖c‖₂", 0.5**0.5),
    _pair("conflict_l1", "normalised conflict, L1", "free", "Σ|c⁻| / Σ|c|", 0.5),
    _pair("conflict_cosine", "conflict per norms", "free", "‖c⁻‖₂ / (‖δa‖ ‖δb‖)"),
    _pair("jaccard", "change-mask Jaccard", "free", "|Ma ∩ Mb| / |Ma ∪ Mb| of the changed elements", "jaccard_chance"),
    _pair("jaccard_chance", "its chance", "free", "pa pb / (pa + pb − pa pb) at the two densities"),
    _pair("retention_a", "direction retention of a", "free", "cos(δa, δa + λ δb)"),
    _pair("retention_b", "direction retention of b", "free", "cos(δb, δb + λ δa)"),
    _pair("capture_a", "energy capture by a", "free", "‖δb on Ma‖² / ‖δa on Ma‖²; follows the ratio of norms"),
    _pair("capture_b", "energy capture by b", "free", "‖δa on Mb‖² / ‖δb on Mb‖²"),
    Statistic("dilution", "dilution", "together", "free", "‖mean δ‖ / mean ‖δ‖", "dilution_chance"),
    Statistic(
        "dilution_chance", "its chance", "together", "free", "√Σ‖δ‖² / Σ‖δ‖: orthogonal deltas; 1/√T at equal norms"
    ),
    Statistic("sum_norm", "norm of the sum", "together", "norm", "‖Σ δ‖₂"),
    Statistic("mean_norm", "norm of the mean", "together", "norm", "‖mean δ‖₂"),
)
OF_EXPERT = tuple(row.name for row in STATISTICS if row.of == "expert")
OF_PAIR = tuple(row.name for row in STATISTICS if row.of == "pair")
TOGETHER = tuple(row.name for row in STATISTICS if row.of == "together")


def statistic(name: str) -> Statistic:
    """Return a row of the table."""
    return next(row for row in STATISTICS if row.name == name)
