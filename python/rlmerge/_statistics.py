"""The table of conflict statistics: what each is called, of what it is, and what chance gives."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "OF_EXPERT",
    "OF_PAIR",
    "SPECTRAL",
    "SPECTRAL_OF_EXPERT",
    "SPECTRAL_OF_PAIR",
    "SPECTRAL_TOGETHER",
    "STATISTICS",
    "TOGETHER",
    "Statistic",
    "statistic",
]


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

#: What ``--spectral`` adds: of each matrix, and as means over matrices.
SPECTRAL: tuple[Statistic, ...] = (
    _expert("stable_rank", "stable rank", "free", "‖δ‖_F² / ‖δ‖₂²", "stable_rank_chance"),
    _expert("stable_rank_chance", "its chance", "free", "that of noise of the same shape: s / (1 + √(s/l))²"),
    _expert(
        "effective_rank",
        "effective rank",
        "free",
        "exp of the entropy of the shares σᵢ² / Σσ²",
        "effective_rank_chance",
    ),
    _expert("effective_rank_chance", "its chance", "free", "that of noise: s · exp(−s/2l)"),
    _expert("noise_rank", "directions above noise", "free", "how many σ > ω(s/l) · median σ (Gavish and Donoho)", 0.0),
    _expert("signal_energy", "energy above noise", "free", "share of ‖δ‖² in the directions above noise", 0.0),
    _expert("energy_1", "energy in 1 direction", "free", "F(1) = σ₁² / Σσ²", "energy_1_chance"),
    _expert("energy_1_chance", "its chance", "free", "that of noise (Marchenko and Pastur)"),
    _expert("energy_8", "energy in 8 directions", "free", "F(8) = (σ₁² + … + σ₈²) / Σσ²", "energy_8_chance"),
    _expert("energy_8_chance", "its chance", "free", "that of noise"),
    _expert(
        "angle_left",
        "largest angle, left",
        "norm",
        "degrees between the k largest left directions of base and expert: the largest principal angle",
    ),
    _expert("angle_right", "largest angle, right", "norm", "the same on the right"),
    _expert(
        "angle_left_typical",
        "typical angle, left",
        "norm",
        "the angle of the mean sin² over these k principal angles",
        "angle_left_chance",
    ),
    _expert("angle_right_typical", "typical angle, right", "norm", "the same on the right", "angle_right_chance"),
    _expert("angle_left_chance", "its chance", "free", "that of unrelated directions: asin √(1 − k/rows)"),
    _expert("angle_right_chance", "its chance", "free", "the same with columns"),
    _expert("spectrum_shift", "spectrum shift", "norm", "‖σ(W′) − σ(W)‖ / ‖σ(W)‖"),
    _expert(
        "spectrum_shift_share",
        "share that shifts the spectrum",
        "free",
        "‖σ(W′) − σ(W)‖ / ‖δ‖, at most 1",
        "spectrum_shift_chance",
    ),
    _expert("spectrum_shift_chance", "its chance", "free", "that of a small random δ: 1/√l"),
    _expert(
        "principal_overlap",
        "principal-mask overlap",
        "free",
        "share of the changed elements among the largest 30 % of the rank-k part of the base",
        "principal_overlap_chance",
    ),
    _expert("principal_overlap_chance", "its chance", "free", "share of all elements that are among them"),
    _pair(
        "subspace_a",
        "alignment of a with b",
        "free",
        "‖P δa‖ / ‖δa‖, P on the left directions of δb that hold 95 % of its energy above noise",
        "subspace_a_chance",
    ),
    _pair("subspace_a_chance", "its chance", "free", "√(directions / rows)"),
    _pair(
        "subspace_b", "alignment of b with a", "free", "‖P δb‖ / ‖δb‖ with the directions of δa", "subspace_b_chance"
    ),
    _pair("subspace_b_chance", "its chance", "free", "√(directions / rows)"),
    _pair(
        "interference",
        "singular-task interference",
        "norm",
        "‖(UᵀU − I) Σ (VᵀV − I)‖₁ of the directions above noise side by side, at most s/T of each",
    ),
    _pair(
        "interference_share",
        "singular-task interference, share",
        "free",
        "the same over ‖Σ‖₁; 1 for two equal experts",
        "interference_chance",
    ),
    _pair("interference_chance", "its chance", "free", "that of unrelated directions"),
    Statistic(
        "interference",
        "singular-task interference",
        "together",
        "norm",
        "that of all experts",
    ),
    Statistic(
        "interference_share",
        "singular-task interference, share",
        "together",
        "free",
        "the same over ‖Σ‖₁",
        "interference_chance",
    ),
    Statistic("interference_chance", "its chance", "together", "free", "that of unrelated directions"),
)
SPECTRAL_OF_EXPERT = tuple(row.name for row in SPECTRAL if row.of == "expert")
SPECTRAL_OF_PAIR = tuple(row.name for row in SPECTRAL if row.of == "pair")
SPECTRAL_TOGETHER = tuple(row.name for row in SPECTRAL if row.of == "together")


def statistic(name: str) -> Statistic:
    """Return a row of the table."""
    return next(row for row in (*STATISTICS, *SPECTRAL) if row.name == name)
