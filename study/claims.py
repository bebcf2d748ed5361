"""The paper's claims, each a number with an interval, and a verdict that follows from the interval by one rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from study.analysis import arm_accuracy, difference, incomparable, mean_interval, merged_answers
from study.facts import bits
from study.intervals import bounds, interval, resample, widened

if TYPE_CHECKING:
    from collections.abc import Callable

    from study.facts import Facts

# Differences smaller than this do not matter, whatever their sign: an interval inside is "not reproduced".
MARGIN = 0.02

# Fewer seeds and tasks than this together make no interval.
FEWEST_CELLS = 3

# Methods that were made for experts trained by RL.
RL_METHODS = ("ram", "ram_plus", "ramplus_tl", "resmerge", "dots_trim", "iso_merger")


@dataclass(slots=True)
class Claim:
    """One claim of the paper, as a number that is positive where the claim holds."""

    name: str  # "topic: what"
    words: str
    number: dict[str, float]
    unit: str
    figure: str
    verdict: str
    note: str = ""


def verdict(number: dict[str, float], margin: float = MARGIN) -> str:
    """Judge a claim by its interval.

    ``reproduced``: the whole interval is above 0. ``opposite``: below. ``not reproduced``: it holds 0 and nothing that
    matters. ``undecided``: it holds 0 and things that would matter.

    Examples
    --------
    >>> verdict({"value": 0.1, "low": 0.05, "high": 0.2}), verdict({"value": 0.0, "low": -0.2, "high": 0.2})
    ('reproduced', 'undecided')
    """
    low, high = number["low"], number["high"]
    if not (math.isfinite(low) and math.isfinite(high)):
        return "no data"
    if low > 0:
        return "reproduced"
    if high < 0:
        return "opposite"
    return "not reproduced" if -margin <= low and high <= margin else "undecided"


def over_cells(facts: Facts, measure: Callable[[int, str], float | None]) -> dict[str, float]:
    """Average a number of each seed and task; the interval resamples seeds and tasks, both of which are few."""
    cells = [[measure(s, t) for t in facts.config.tasks] for s in facts.seeds]
    values = np.array([[np.nan if v is None else v for v in row] for row in cells], dtype=float)
    if np.isfinite(values).sum() < FEWEST_CELLS:
        return {"value": float("nan"), "low": float("nan"), "high": float("nan")}
    draws = [np.nanmean(values[s][:, t]) for s, t in resample(*values.shape) if np.isfinite(values[s][:, t]).any()]
    whole = float(np.nanmean(values))
    low, high = bounds(widened(np.array(draws), whole, len(facts.seeds)))
    return {"value": whole, "low": low, "high": high}


def claims(facts: Facts, method: str) -> list[Claim]:
    """Judge the paper's claims, each at the method that is the paper's closest: ``method``."""
    made: list[Claim] = []

    def last(s: int, arm: str, t: str, what: str = "norm") -> float | None:
        curve = facts.curve.get((s, arm, t))
        return float(curve["points"][-1][what]) if curve else None

    def log_ratio(first: str, second: str) -> Callable[[int, str], float | None]:
        def measure(s: int, t: str) -> float | None:
            a, b = last(s, first, t), last(s, second, t)
            return math.log2(a / b) if a and b else None

        return measure

    def add(
        name: str,
        words: str,
        number: dict[str, float] | None,
        unit: str,
        figure: str,
        note: str = "",
        margin: float = MARGIN,
    ) -> None:
        if number is not None and math.isfinite(number["value"]):
            judged = "not comparable" if note else verdict(number, margin)
            made.append(Claim(name, words, number, unit, figure, judged, note))

    for first, second in (("sft", "rft"), ("rft", "grpo"), ("sft-offstyle", "sft"), ("grpo-offpolicy", "grpo")):
        add(
            f"norm: {first} > {second}",
            f"at equal steps, {first} moves the weights further than {second}",
            over_cells(facts, log_ratio(first, second)),
            "log2 of the ratio of update norms",
            "norms",
            margin=0.1,
        )
    for comparison in facts.config.merging.comparisons:
        words = comparison.replace("_", " ")
        for first, second in (
            ("sft", "grpo"),
            ("sft", "rft"),
            ("rft", "grpo"),
            ("sft-offstyle", "sft"),
            ("grpo-offpolicy", "grpo"),
            ("grpo-pos", "grpo"),
            ("sft", "grpo-pos"),
        ):
            add(
                f"degradation at {words}: {first} > {second}",
                f"at {words}, merges of {first} experts lose more than merges of {second} experts",
                difference(facts, first, second, method, comparison),
                f"difference of relative drops ({method})",
                "degradation",
                incomparable(facts, (first, second), method, comparison),
            )
        # The headline once more by the other methods: it must not hang on one of them.
        for other in facts.config.merging.matched_methods:
            if other != method:
                add(
                    f"degradation at {words}: sft > grpo ({other})",
                    f"at {words}, merges of sft experts lose more than merges of grpo experts, merged by {other}",
                    difference(facts, "sft", "grpo", other, comparison),
                    f"difference of relative drops ({other})",
                    "degradation",
                    incomparable(facts, ("sft", "grpo"), other, comparison),
                )
    reference = facts.config.reference
    add(
        "feast: the advantage decays",
        f"the mean size of {reference}'s advantage is smaller in the last third of training than in the first",
        over_cells(facts, lambda s, t: decay(facts, s, reference, t)),
        "E|A| of the first third less that of the last",
        "training",
    )
    add(
        "feast: SFT's norm grows faster",
        f"from the middle of training to its end, SFT's update norm grows by a larger factor than {reference}'s",
        over_cells(facts, lambda s, t: growth_difference(facts, s, "sft", reference, t)),
        "difference of log2 growth over the second half",
        "training",
        margin=0.05,
    )
    add(
        "feast: SFT's conflict grows faster",
        f"from the middle of training to its end, the conflict norm of SFT's experts grows by more than {reference}'s",
        conflict_growth(facts, "sft", reference),
        "difference of log2 growth over the second half",
        "conflict",
        margin=0.05,
    )
    if facts.has("grpo") and facts.has("grpo-pos"):
        full, positives = arm_accuracy(facts, "grpo"), arm_accuracy(facts, "grpo-pos")
        add(
            "negatives: experts are better with them",
            "GRPO experts are more accurate than experts trained with positive advantages only",
            mean_interval(full - positives),
            "difference of accuracies",
            "experts",
        )
    for kind in ("equal_steps", "equal_accuracy"):
        add(
            f"subspace: RL is more orthogonal at {kind.replace('_', ' ')}",
            f"at {kind.replace('_', ' ')}, deltas of different tasks have smaller cosines in magnitude under GRPO than "
            "under SFT",
            cosine_difference(facts, "sft", "grpo", kind),
            "difference of mean |cosine|",
            "conflict",
        )
    for far in sorted({1.0, facts.config.landscape.distances[-1]} & set(facts.config.landscape.distances)):
        for arm in ("sft", "grpo"):
            add(
                f"landscape: {arm} is flat along random directions, distance {far:g}",
                f"at distance {far:g}, {arm} experts lose less along random directions than along another task's delta",
                over_cells(facts, partial(fall, facts, arm, far)),
                "difference of accuracy lost",
                "landscape",
            )
        add(
            f"landscape: SFT falls along another task's delta, RL does not, distance {far:g}",
            f"at distance {far:g} along another task's delta, SFT experts lose more than GRPO experts",
            over_cells(facts, partial(fall_between, facts, "sft", "grpo", far)),
            "difference of accuracy lost",
            "landscape",
        )
    for name in RL_METHODS:
        add(
            f"methods: {name} > {method} on {reference}",
            f"{name}, made for experts trained by RL, merges {reference} experts better than {method}",
            method_difference(facts, reference, name, method),
            "difference of accuracies of pairs at equal steps",
            "methods",
        )
    for arm in ("sft", reference):
        rules = advised(facts, arm)
        for rule, other, why in (
            ("near_orthogonal", "linear", "to sum and not to average"),
            ("trim_is_dear", "ties", "that trimming costs too much"),
        ):
            if rule in rules and other != method:
                add(
                    f"advice: {rule} on {arm}",
                    f"{arm} experts, of whom the conflict report says {why}, merge better by {method} than by {other}",
                    method_difference(facts, arm, method, other),
                    "difference of accuracies of pairs at equal steps",
                    "methods",
                )
    return made


def advised(facts: Facts, arm: str) -> set[str]:
    """Return the rules that the conflict report on an arm's experts gives advice by, for all bases."""
    groups = [facts.conflict.get((s, arm), {}).get("equal_steps", {}).get("report", {}) for s in facts.seeds]
    rules = [set(report.get("advice", [])) for report in groups]
    return set.intersection(*rules) if rules else set()


def method_difference(facts: Facts, arm: str, first: str, second: str) -> dict[str, float] | None:
    """Return how much more accurate an arm's pairs are by one method than by another."""
    found = [merged_answers(facts, arm, method, "equal_steps") for method in (first, second)]
    if found[0] is None or found[1] is None:
        return None
    return mean_interval(found[0].merged - found[1].merged)


def conflict_growth(facts: Facts, first: str, second: str) -> dict[str, float] | None:
    """Return how much more the mean conflict norm of the first arm grows over the second half, resampling seeds."""
    rows = []
    for s in facts.seeds:
        grown = []
        for arm in (first, second):
            growth = facts.conflict.get((s, arm), {"growth": []})["growth"]
            if len(growth) < 2 or not growth[(len(growth) - 1) // 2]["conflict_norm"]:
                break
            grown.append(math.log2(growth[-1]["conflict_norm"] / growth[(len(growth) - 1) // 2]["conflict_norm"]))
        if len(grown) == 2:
            rows.append([grown[0] - grown[1]])
    if len(rows) < 2:  # one base says nothing about others
        return None
    values = np.array(rows)
    return interval(lambda s, i: float(values[s][:, i].mean()), *values.shape)


def decay(facts: Facts, seed: int, arm: str, task: str) -> float | None:
    """Return how much smaller the mean size of the advantage is in the last third than in the first."""
    run = facts.expert.get((seed, arm, task))
    sizes = [line["advantage_mean_abs"] for line in run["metrics"] if "advantage_mean_abs" in line] if run else []
    third = len(sizes) // 3
    return float(np.mean(sizes[:third]) - np.mean(sizes[-third:])) if third else None


def growth_difference(facts: Facts, seed: int, first: str, second: str, task: str) -> float | None:
    """Return how much more the first arm's norm grows over the second half of training, in doublings."""
    found = []
    for arm in (first, second):
        run = facts.expert.get((seed, arm, task))
        if run is None or len(run["metrics"]) < 4:
            return None
        norms = [line["task_vector_norm"] for line in run["metrics"]]
        found.append(math.log2(norms[-1] / norms[len(norms) // 2 - 1]))
    return found[0] - found[1]


def cosine_difference(facts: Facts, first: str, second: str, comparison: str) -> dict[str, float] | None:
    """Return mean |cosine| of the first arm's pairs less that of the second's, resampling seeds and pairs."""
    pairs = [f"{a}+{b}" for a, b in combinations(facts.config.tasks, 2)]
    rows = []
    for s in facts.seeds:
        found = [facts.conflict.get((s, arm), {}).get(comparison, {"pairs": {}})["pairs"] for arm in (first, second)]
        if all(name in group for group in found for name in pairs):
            rows.append([abs(found[0][name]["cosine"]) - abs(found[1][name]["cosine"]) for name in pairs])
    if not rows:
        return None
    values = np.array(rows)
    return interval(lambda s, i: float(values[s][:, i].mean()), *values.shape)


def line_fall(facts: Facts, seed: int, arm: str, task: str, way: str, far: float) -> float | None:
    """Return the accuracy that an expert loses at a distance along a line."""
    found = facts.landscape.get((seed, arm))
    if found is None or task not in found["lines"]:
        return None
    line, at = found["lines"][task], found["distances"].index(far)
    here = bits(line["here"]).mean()
    there = (
        bits(line["along_other"][at]).mean()
        if way == "other"
        else np.mean([bits(walk[at]).mean() for walk in line["along_random"]])
    )
    return float(here - there)


def fall(facts: Facts, arm: str, far: float, seed: int, task: str) -> float | None:
    """Return how much more is lost along another task's delta than along random directions."""
    other, noise = (line_fall(facts, seed, arm, task, way, far) for way in ("other", "random"))
    return other - noise if other is not None and noise is not None else None


def fall_between(facts: Facts, first: str, second: str, far: float, seed: int, task: str) -> float | None:
    """Return how much more one arm loses than another along another task's delta."""
    a, b = (line_fall(facts, seed, arm, task, "other", far) for arm in (first, second))
    return a - b if a is not None and b is not None else None
