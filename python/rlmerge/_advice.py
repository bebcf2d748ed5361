"""Advice by stated rules: each is a row with its thresholds, so that a study can test it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rlmerge._conflicts import ConflictReport, PairStatistics

__all__ = ["RULES", "Advice", "Rule", "advise"]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of the advice.

    Attributes
    ----------
    name
        Its name in JSON and in the documentation.
    when
        The condition in words; ``{...}`` stands for a threshold.
    thresholds
        Their values.
    says
        What follows, given the report and the thresholds; None when the condition does not hold.
    source
        Where the rule comes from.
    """

    name: str
    when: str
    thresholds: Mapping[str, float]
    says: Callable[[ConflictReport, Mapping[str, float]], str | None]
    source: str

    @property
    def condition(self) -> str:
        """The condition with its thresholds filled in."""
        return self.when.format(**{name: f"{value:g}" for name, value in self.thresholds.items()})


@dataclass(frozen=True, slots=True)
class Advice:
    """A rule that applies, and what it says."""

    rule: str
    text: str
    condition: str
    source: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"rule": self.rule, "text": self.text, "condition": self.condition, "source": self.source}


def advise(report: ConflictReport) -> tuple[Advice, ...]:
    """Apply every rule in order; when none applies, say that there is no evidence."""
    found = []
    for rule in RULES:
        text = rule.says(report, rule.thresholds)
        if text is not None:
            found.append(Advice(rule.name, text, rule.condition, rule.source))
    if not found:
        text = "No evidence: no rule applies to these numbers, so nothing here speaks for one method over another."
        found.append(Advice("no_evidence", text, "no other rule applies", "-"))
    return tuple(found)


def _cosines(report: ConflictReport) -> list[float] | None:
    values = [pair.cosine for pair in report.pairs]
    known = [value for value in values if value is not None]
    return known if known and len(known) == len(values) else None


def _norms(report: ConflictReport) -> list[float] | None:
    values = [expert.norm for expert in report.model.experts]
    known = [value for value in values if value]
    return known if len(known) == len(values) else None


def _ratio(report: ConflictReport) -> float | None:
    norms = _norms(report)
    return max(norms) / min(norms) if norms else None


def _undefined(report: ConflictReport, _: Mapping[str, float]) -> str | None:
    names = [e.expert for e in report.model.experts if e.counts["non_finite"]]
    if not names:
        return None
    return f"{', '.join(names)}: some deltas are NaN or infinite. Repair or leave out; a merge would carry them over."


def _unchanged(report: ConflictReport, _: Mapping[str, float]) -> str | None:
    names = [e.expert for e in report.model.experts if e.norm == 0]
    if not names:
        return None
    return f"{', '.join(names)}: equal to the base. Leave out; with averaging it only dilutes the others."


def _near_orthogonal(report: ConflictReport, t: Mapping[str, float]) -> str | None:
    cosines, ratio = _cosines(report), _ratio(report)
    if cosines is None or ratio is None or max(map(abs, cosines)) > t["cosine"] or ratio > t["ratio"]:
        return None
    kept = report.model.together.dilution
    left = f" (the mean would be {100 * kept:.0f} % as long as an expert)" if kept is not None else ""
    return (
        "The experts are nearly orthogonal and of like norm: sum them (task_arithmetic with lambda near 1) and do not "
        f"average{left}. Trimming and sign election have little to resolve."
    )


def _unequal(report: ConflictReport, t: Mapping[str, float]) -> str | None:
    norms, ratio = _norms(report), _ratio(report)
    if norms is None or ratio is None or len(norms) < 2 or ratio <= t["ratio"]:
        return None
    smallest = min(norms)
    weights = ",".join(f"{smallest / norm:.2g}" for norm in norms)
    return (
        f"The norms differ by a factor of {ratio:.1f}: the longest expert decides an election of signs and most of a "
        f"sum. To give each the same length, merge with --weight {weights} (in the order given)."
    )


def _aligned(report: ConflictReport, t: Mapping[str, float]) -> str | None:
    cosines = _cosines(report)
    together = report.model.together
    if cosines is None or min(cosines) < t["cosine"] or not together.sum_norm:
        return None
    mean = sum(e.norm or 0.0 for e in report.model.experts) / len(report.model.experts)
    scale = mean / together.sum_norm
    return (
        "The experts point the same way: their sum goes further than any of them. Average (linear), or use "
        f"task_arithmetic with lambda near {scale:.2g}, which makes the merged delta as long as an expert's."
    )


def _strongest(report: ConflictReport, t: Mapping[str, float]) -> PairStatistics | None:
    def opposed(pair: PairStatistics) -> bool:
        share, error = pair.sign_disagreement, pair.sign_disagreement_error
        if share is None or error is None:
            return False
        return share >= t["share"] and share - 0.5 >= t["errors"] * error

    found = [pair for pair in report.pairs if opposed(pair)]
    return max(found, key=lambda pair: pair.sign_disagreement or 0.0, default=None)


def _opposed(report: ConflictReport, t: Mapping[str, float]) -> str | None:
    pair = _strongest(report, t)
    if pair is None:
        return None
    losses = [e.ties_election_loss for e in report.model.experts if e.ties_election_loss is not None]
    cost = f"; an election would cost up to {100 * max(losses):.0f} % of an expert's energy" if losses else ""
    return (
        f"{pair.a} and {pair.b} disagree in sign on {100 * (pair.sign_disagreement or 0):.1f} % of what both changed, "
        f"more than chance gives: a sum cancels there. Elect signs (ties or dare_ties) or merge fewer of them{cost}."
    )


def _trim_cheap(report: ConflictReport, t: Mapping[str, float]) -> str | None:
    losses = [e.ties_trim_loss for e in report.model.experts if e.ties_trim_loss is not None and e.norm]
    if not losses or max(losses) > t["loss"]:
        return None
    density = report.raw["settings"]["density"]
    return (
        f"Trimming to density {density:g} costs at most {100 * max(losses):.1f} % of the energy: ties keeps nearly all."
    )


def _trim_dear(report: ConflictReport, t: Mapping[str, float]) -> str | None:
    losses = [e.ties_trim_loss for e in report.model.experts if e.ties_trim_loss is not None and e.norm]
    if not losses or max(losses) < t["loss"]:
        return None
    density = report.raw["settings"]["density"]
    return (
        f"Trimming to density {density:g} would cost {100 * max(losses):.0f} % of an expert's energy: raise it, "
        "or use a method that does not trim by magnitude."
    )


def _unique(report: ConflictReport, t: Mapping[str, float]) -> str | None:
    pairs = [pair.jaccard for pair in report.pairs if pair.jaccard is not None]
    if not pairs or max(pairs) > t["jaccard"]:
        return None
    return (
        "The experts changed mostly different elements: averaging divides changes that nobody else touched. Sum them "
        "(task_arithmetic), or use ties with a disjoint mean."
    )


def _worst(report: ConflictReport, t: Mapping[str, float]) -> str | None:
    found = []
    for layer in report.worst_layers(5):
        worst = max((p.conflict_l1 for p in layer.pairs if p.conflict_l1 is not None), default=0.0)
        if worst >= t["conflict"]:
            found.append(f"{layer.label} ({worst:.2f})")
    return f"Conflict is above chance in {', '.join(found)}: look there first." if found else None


RULES: tuple[Rule, ...] = (
    Rule("undefined", "an expert has deltas that are not finite", {}, _undefined, "arithmetic"),
    Rule("unchanged", "an expert has norm 0", {}, _unchanged, "arithmetic"),
    Rule(
        "near_orthogonal",
        "every |cosine| ≤ {cosine} and norms within a factor of {ratio}",
        {"cosine": 0.1, "ratio": 2.0},
        _near_orthogonal,
        "sums keep what averages dilute: arXiv 2608.03573, 2601.13572",
    ),
    Rule(
        "aligned",
        "every cosine ≥ {cosine}",
        {"cosine": 0.5},
        _aligned,
        "geometry: the norm of a sum of aligned vectors grows with their number",
    ),
    Rule(
        "opposed",
        "a pair's sign disagreement ≥ {share}, {errors} standard errors above 0.5",
        {"share": 0.52, "errors": 5.0},
        _opposed,
        "TIES, arXiv 2306.01708",
    ),
    Rule(
        "unequal_norms",
        "norms differ by more than a factor of {ratio}",
        {"ratio": 3.0},
        _unequal,
        "the conflict norm of arXiv 2607.22039 is quadratic in scale",
    ),
    Rule(
        "different_elements",
        "every change-mask Jaccard ≤ {jaccard}",
        {"jaccard": 0.2},
        _unique,
        "RAM, arXiv 2601.13572",
    ),
    Rule("trim_is_cheap", "energy lost by trim ≤ {loss} for all", {"loss": 0.1}, _trim_cheap, "energy of the trim"),
    Rule("trim_is_dear", "energy lost by trim ≥ {loss} for one", {"loss": 0.3}, _trim_dear, "energy of the trim"),
    Rule(
        "worst_layers",
        "a layer's L1-normalised conflict ≥ {conflict} (chance 0.5)",
        {"conflict": 0.55},
        _worst,
        "arithmetic",
    ),
)
