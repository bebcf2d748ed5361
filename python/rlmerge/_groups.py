"""Groups of experts side by side: at their own scale and with their norms matched, and how sure a difference is."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlmerge._conflicts import ConflictReport

__all__ = ["MIN_PAIRS", "Group", "GroupComparison", "GroupRow", "compare_groups"]

#: Pairs in each group from which on a bootstrap interval is given.
MIN_PAIRS = 3
RESAMPLES = 2000
#: Statistics that are compared by their difference and not by their ratio: they may be zero or change sign.
BY_DIFFERENCE = ("cosine", "cosine_overlap")
#: What is compared of experts, and of pairs within a group.
OF_EXPERTS = ("norm", "changed", "changed_bf16", "ties_trim_loss", "low_overlap")
OF_PAIRS = (
    "cosine",
    "cosine_overlap",
    "sign_disagreement",
    "conflict_norm",
    "conflict_norm_matched",
    "conflict_l2",
    "conflict_l1",
    "jaccard",
)


@dataclass(frozen=True, slots=True)
class Group:
    """A name, and the numbers of its experts."""

    name: str
    experts: list[int]


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One statistic of two groups.

    ``effect`` is ``second / first``, or ``second − first`` where ``by`` is ``difference``; ``low`` and ``high`` are the
    95 % bootstrap interval over pairs (over experts for statistics of experts), None below three of them in a group.
    """

    statistic: str
    of: str
    first: float | None
    second: float | None
    by: str
    effect: float | None
    low: float | None
    high: float | None
    n_first: int
    n_second: int

    @property
    def verdict(self) -> str:
        """``differs``, ``no difference shown`` or ``too few to say``."""
        if self.low is None or self.high is None:
            return "too few to say"
        neutral = 0.0 if self.by == "difference" else 1.0
        return "no difference shown" if self.low <= neutral <= self.high else "differs"


@dataclass(frozen=True, slots=True)
class GroupComparison:
    """Groups of experts, and every later group beside the first."""

    groups: tuple[Group, ...]
    rows: tuple[tuple[str, str, tuple[GroupRow, ...]], ...]
    words: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "groups": {group.name: group.experts for group in self.groups},
            "comparisons": [
                {
                    "first": first,
                    "second": second,
                    "rows": [{**asdict(row), "verdict": row.verdict} for row in rows],
                }
                for first, second, rows in self.rows
            ],
            "words": list(self.words),
        }


def compare_groups(report: ConflictReport, groups: Sequence[Group]) -> GroupComparison:
    """Compare every group with the first, by pairs within each group."""
    compared = []
    words: list[str] = []
    for second in groups[1:]:
        rows = tuple(_rows(report, groups[0], second))
        compared.append((groups[0].name, second.name, rows))
        words += _words(groups[0], second, rows)
    return GroupComparison(tuple(groups), tuple(compared), tuple(words))


def _rows(report: ConflictReport, first: Group, second: Group) -> list[GroupRow]:
    rows = []
    for name in OF_EXPERTS:
        rows.append(_row(name, "expert", *(_of_experts(report, group, name) for group in (first, second))))
    for name in OF_PAIRS:
        rows.append(_row(name, "pair", *(_of_pairs(report, group, name) for group in (first, second))))
    return rows


def _of_experts(report: ConflictReport, group: Group, name: str) -> list[float]:
    values = [getattr(report.model.experts[at], name) for at in group.experts]
    return [value for value in values if value is not None]


def _of_pairs(report: ConflictReport, group: Group, name: str) -> list[float]:
    members = {report.experts[at] for at in group.experts}
    values = [getattr(pair, name) for pair in report.pairs if pair.a in members and pair.b in members]
    return [value for value in values if value is not None]


def _row(name: str, of: str, first: list[float], second: list[float]) -> GroupRow:
    by = "difference" if name in BY_DIFFERENCE else "ratio"
    low = high = None
    if min(len(first), len(second)) >= MIN_PAIRS:
        low, high = _interval(first, second, by)
    mean = (_mean(first), _mean(second))
    return GroupRow(name, of, *mean, by, _effect(*mean, by), low, high, len(first), len(second))


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _effect(first: float | None, second: float | None, by: str) -> float | None:
    if first is None or second is None:
        return None
    if by == "difference":
        return second - first
    return second / first if first != 0 else None


def _interval(first: list[float], second: list[float], by: str) -> tuple[float | None, float | None]:
    import random

    # Seeded, so that equal inputs give equal reports.
    draw = random.Random(0)
    found = []
    for _ in range(RESAMPLES):
        a = math.fsum(draw.choices(first, k=len(first))) / len(first)
        b = math.fsum(draw.choices(second, k=len(second))) / len(second)
        effect = _effect(a, b, by)
        if effect is not None:
            found.append(effect)
    if not found:
        return None, None
    found.sort()
    return found[int(0.025 * (len(found) - 1))], found[math.ceil(0.975 * (len(found) - 1))]


def _words(first: Group, second: Group, rows: tuple[GroupRow, ...]) -> list[str]:
    """Say what differs and what does not, without taking a side."""
    by_name = {row.statistic: row for row in rows}
    words = []
    for verdict, text in (("differs", "differ in"), ("no difference shown", "show no difference in")):
        names = [_spoken(row) for row in rows if row.verdict == verdict]
        if names:
            words.append(f"{first.name} and {second.name} {text} {', '.join(names)}.")
    unsaid = [row for row in rows if row.verdict == "too few to say"]
    if unsaid:
        fewest = min(min(row.n_first, row.n_second) for row in unsaid)
        words.append(
            f"{len(unsaid)} of {len(rows)} statistics have no interval: one takes {MIN_PAIRS} or more pairs (or "
            f"experts) in each group, and a group here has {fewest}."
        )
    raw, matched = by_name["conflict_norm"], by_name["conflict_norm_matched"]
    if raw.verdict == "differs" and matched.verdict == "no difference shown":
        words.append(
            f"The conflict norm of {first.name} and {second.name} differs at raw scale and not with norms matched: "
            "what differs is how far the experts moved, not how they conflict."
        )
    elif raw.verdict == "differs" and matched.verdict == "differs":
        words.append(f"The conflict norm of {first.name} and {second.name} differs with norms matched too.")
    return words


def _spoken(row: GroupRow) -> str:
    from rlmerge._statistics import statistic

    title = statistic(row.statistic).title
    if row.effect is None or row.low is None or row.high is None:
        return title
    sign = "Δ " if row.by == "difference" else "×"
    return f"{title} ({sign}{row.effect:.3g}, 95 % {row.low:.3g} to {row.high:.3g})"
