"""From facts to numbers: tables with intervals, and a verdict on each claim of the paper.

A verdict follows from an interval by one rule (`verdict`), never by hand. All numbers are shares unless said otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from study.arms import ARMS
from study.intervals import bounds, correlation_interval, interval, resample, standard_error, widened
from study.schedule import methods_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from study.configuration import StudyConfig
    from study.stages import Places

# Differences smaller than this do not matter, whatever their sign: an interval inside is "not reproduced".
MARGIN = 0.02
PREDICTORS = (
    "cosine",
    "conflict_norm",
    "normalized_conflict",
    "matched_conflict",
    "sign_disagreement",
    "sign_disagreement_top",
    "jaccard",
    "norm_product",
    # From rlmerge's report: of the pair, then means over its two experts.
    "conflict_l1",
    "retention_a",
    "ties_interference",
    "ties_survival",
    "relative_norm",
    "top10_energy",
    "low_overlap",
    "changed_bf16",
    # Of the models and not of their weights: means over the two experts, at equal steps only.
    "forward_kl",
    "hidden",
)
# What the page calls them, where the name alone would not say.
SPOKEN = {
    "normalized_conflict": "conflict norm / norm of product",
    "matched_conflict": "conflict norm of unit deltas",
    "sign_disagreement_top": "sign disagreement, largest 20 %",
    "norm_product": "product of the norms",
    "conflict_l1": "share of the product that conflicts",
    "retention_a": "direction kept by the sum",
    "ties_interference": "share outvoted in TIES",
    "ties_survival": "energy that TIES keeps",
    "top10_energy": "energy in the largest 10 %",
    "low_overlap": "share of change in small weights",
    "changed_bf16": "share changed in bf16",
    "forward_kl": "forward KL to the base (of models)",
    "hidden": "hidden-state distance (of models)",
}
# Methods that were made for experts trained by RL.
RL_METHODS = ("ram", "ram_plus", "ramplus_tl", "resmerge", "iso_merger")


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


def bits(text: str) -> np.ndarray:
    """Turn a string of 0 and 1 into numbers."""
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(float) - ord("0")


class Facts:
    """All facts of a study, by seed, arm and task; what is missing is missing.

    Seeds in ``without`` have only been begun, and are left out unless nothing else is there.
    """

    def __init__(self, config: StudyConfig, places: Places, without: Collection[int] = ()) -> None:
        self.config = config
        have = [s for s in config.seeds if places.read(f"base/s{s}") is not None]
        self.seeds = [s for s in have if s not in without] or have
        self.base = {s: places.read(f"base/s{s}") or {} for s in self.seeds}
        self.match = {s: places.read(f"match/s{s}") for s in self.seeds}
        self.expert: dict[tuple[int, str, str], dict[str, Any]] = {}
        self.curve: dict[tuple[int, str, str], dict[str, Any]] = {}
        self.merge: dict[tuple[int, str, str], dict[str, Any]] = {}
        self.conflict: dict[tuple[int, str], dict[str, Any]] = {}
        self.landscape: dict[tuple[int, str], dict[str, Any]] = {}
        for s in self.seeds:
            for arm in config.arms:
                for task in config.tasks:
                    self._take(self.expert, (s, arm, task), places.read(f"expert/s{s}/{arm}/{task}"))
                    self._take(self.curve, (s, arm, task), places.read(f"curve/s{s}/{arm}/{task}"))
                for comparison in config.merging.comparisons:
                    self._take(self.merge, (s, arm, comparison), self._merges(places, s, arm, comparison))
                self._take(self.conflict, (s, arm), places.read(f"conflict/s{s}/{arm}"))
                self._take(self.landscape, (s, arm), places.read(f"landscape/s{s}/{arm}"))

    def _merges(self, places: Places, seed: int, arm: str, comparison: str) -> dict[str, Any] | None:
        """Put the merges of all methods together: ``alone``, and ``merged``, ``parameters`` and ``sweep`` by method."""
        alone = places.read(f"alone/s{seed}/{arm}/{comparison}")
        if alone is None:
            return None
        read = {
            m: places.read(f"merge/s{seed}/{arm}/{comparison}/{m}") for m in methods_of(self.config, arm, comparison)
        }
        parts = ("merged", "parameters", "sweep")
        return {"alone": alone, **{part: {m: f[part] for m, f in read.items() if f is not None} for part in parts}}

    @staticmethod
    def _take(table: dict[Any, Any], key: Any, found: dict[str, Any] | None) -> None:
        if found is not None:
            table[key] = found

    def has(self, arm: str) -> bool:
        """Say whether an arm has experts of all tasks and seeds."""
        return all((s, arm, task) in self.curve for s in self.seeds for task in self.config.tasks)

    def arms(self) -> list[str]:
        """List the arms that are complete."""
        return [arm for arm in self.config.arms if self.has(arm)]


# --- experts ----------------------------------------------------------------------------------------------------------


def expert_table(facts: Facts) -> list[dict[str, Any]]:
    """Describe every expert: accuracy and standard error, gain over the base, whether it learned, norms, distances."""
    rows = []
    for (seed, arm, task), curve in facts.curve.items():
        base = facts.base[seed][task]
        now, start = bits(curve["test"]), bits(base["test"])
        gain = now - start
        error = float(gain.std(ddof=1) / math.sqrt(len(gain)))
        last = curve["points"][-1]
        rows.append(
            {
                "run": facts.expert[seed, arm, task]["run"],
                "seed": seed,
                "arm": arm,
                "task": task,
                "base": start.mean(),
                "accuracy": now.mean(),
                "standard_error": standard_error([int(v) for v in now]),
                "gain": gain.mean(),
                "gain_standard_error": error,
                "learned": bool(gain.mean() > 2 * error),
                "greedy": bits(curve["greedy"]).mean(),
                "out": bits(curve["out"]).mean(),
                "norm": last["norm"],
                "changed": last["changed"],
                "changed_bf16": last["changed_bf16"],
                "forward_kl": curve["forward_kl"],
                "hidden": curve["hidden"],
            }
        )
    return rows


def arm_accuracy(facts: Facts, arm: str, what: str = "test") -> np.ndarray:
    """Return right answers of an arm's experts, [seeds, tasks, items]."""
    return np.stack([np.stack([bits(facts.curve[s, arm, t][what]) for t in facts.config.tasks]) for s in facts.seeds])


def base_accuracy(facts: Facts) -> np.ndarray:
    """Return right answers of the bases, [seeds, tasks, items]."""
    return np.stack([np.stack([bits(facts.base[s][t]["test"]) for t in facts.config.tasks]) for s in facts.seeds])


# --- merges -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Merged:
    """Right answers of one arm under one method and comparison, [seeds, tasks, items]; ``merged`` over partners."""

    alone: np.ndarray
    merged: np.ndarray
    base: np.ndarray
    together: np.ndarray | None


def merged_answers(facts: Facts, arm: str, method: str, comparison: str) -> Merged | None:
    """Collect the answers of an arm's merges; None where a seed or a task is missing."""
    tasks = facts.config.tasks
    alone, merged, together = [], [], []
    for s in facts.seeds:
        found = facts.merge.get((s, arm, comparison))
        if found is None or method not in found["merged"] or set(found["alone"]) != set(tasks):
            return None
        sets = found["merged"][method]
        pairs = {name: scores for name, scores in sets.items() if name.count("+") == 1}
        alone.append([bits(found["alone"][t]) for t in tasks])
        merged.append([np.mean([bits(sc[t]) for sc in pairs.values() if t in sc], axis=0) for t in tasks])
        everything = sets.get("+".join(tasks)) if len(tasks) > 2 else None
        if everything is not None:
            together.append([bits(everything[t]) for t in tasks])
    whole = np.array(together) if len(together) == len(facts.seeds) else None
    return Merged(np.array(alone), np.array(merged), base_accuracy(facts), whole)


def degradation(found: Merged, seeds: np.ndarray, items: np.ndarray) -> float:
    """Return the mean over tasks of 1 - merged / alone: the paper's relative drop."""
    alone = found.alone[seeds][:, :, items].mean((0, 2))
    merged = found.merged[seeds][:, :, items].mean((0, 2))
    return float(np.mean(1 - merged / np.maximum(alone, 1e-9)))


def retention(found: Merged, seeds: np.ndarray, items: np.ndarray) -> float:
    """Return the share of the gain over the base that merging keeps, over all tasks together."""
    alone = found.alone[seeds][:, :, items].mean()
    base = found.base[seeds][:, :, items].mean()
    merged = found.merged[seeds][:, :, items].mean()
    return float((merged - base) / (alone - base)) if alone > base else float("nan")


def merge_table(facts: Facts) -> list[dict[str, Any]]:
    """Describe every arm under every method and comparison, with intervals."""
    rows = []
    for comparison in facts.config.merging.comparisons:
        for arm in facts.config.arms:
            names = {m for s in facts.seeds for m in facts.merge.get((s, arm, comparison), {"merged": {}})["merged"]}
            for method in sorted(names):
                found = merged_answers(facts, arm, method, comparison)
                if found is None:
                    continue
                seeds, _, items = found.alone.shape

                def drop(s: np.ndarray, i: np.ndarray, found: Merged = found) -> float:
                    return degradation(found, s, i)

                def kept(s: np.ndarray, i: np.ndarray, found: Merged = found) -> float:
                    return retention(found, s, i)

                rows.append(
                    {
                        "comparison": comparison,
                        "arm": arm,
                        "method": method,
                        "alone": found.alone.mean(),
                        "merged": found.merged.mean(),
                        "gain_over_base": found.merged.mean() - found.base.mean(),
                        "all_together": found.together.mean() if found.together is not None else None,
                        "degradation": interval(drop, seeds, items),
                        "retention": interval(kept, seeds, items),
                        "by_task": dict(zip(facts.config.tasks, (found.merged.mean((0, 2))).tolist(), strict=True)),
                        "alone_by_task": dict(
                            zip(facts.config.tasks, (found.alone.mean((0, 2))).tolist(), strict=True)
                        ),
                        "by_seed": [degradation(found, np.array([s]), np.arange(items)) for s in range(seeds)],
                        "parameters": [facts.merge[s, arm, comparison]["parameters"][method] for s in facts.seeds],
                    }
                )
    return rows


def pair_matrix(facts: Facts, arm: str, method: str, comparison: str = "equal_steps") -> np.ndarray:
    """Return the relative drop of each task (row) when merged with each other (column), mean over seeds."""
    tasks = facts.config.tasks
    found = np.full((len(tasks), len(tasks)), np.nan)
    for a, b in combinations(range(len(tasks)), 2):
        drops: dict[tuple[int, int], list[float]] = {(a, b): [], (b, a): []}
        for s in facts.seeds:
            merges = facts.merge.get((s, arm, comparison))
            scores = merges["merged"].get(method, {}).get(f"{tasks[a]}+{tasks[b]}") if merges else None
            if merges is None or scores is None:
                continue
            for own, other in ((a, b), (b, a)):
                alone = bits(merges["alone"][tasks[own]]).mean()
                drops[own, other].append(1 - bits(scores[tasks[own]]).mean() / max(alone, 1e-9))
        for place, values in drops.items():
            if values:
                found[place] = np.mean(values)
    return found


def difference(facts: Facts, worse: str, better: str, method: str, comparison: str) -> dict[str, float] | None:
    """Return degradation(worse) - degradation(better), paired over seeds and items."""
    first = merged_answers(facts, worse, method, comparison)
    second = merged_answers(facts, better, method, comparison)
    if first is None or second is None:
        return None
    seeds, _, items = first.alone.shape
    return interval(lambda s, i: degradation(first, s, i) - degradation(second, s, i), seeds, items)


def difference_by_seed(
    facts: Facts, worse: str, better: str, method: str, comparison: str
) -> list[dict[str, float]] | None:
    """Return the same difference for each base alone, with an interval over items."""
    first = merged_answers(facts, worse, method, comparison)
    second = merged_answers(facts, better, method, comparison)
    if first is None or second is None:
        return None

    def gap(base: int, _: np.ndarray, items: np.ndarray) -> float:
        here = np.array([base])
        return degradation(first, here, items) - degradation(second, here, items)

    return [interval(partial(gap, at), 1, first.alone.shape[2]) for at in range(len(facts.seeds))]


def mean_interval(values: np.ndarray) -> dict[str, float]:
    """Return the mean of [seeds, tasks, items] with its interval."""
    return interval(lambda s, i: float(values[s][:, :, i].mean()), values.shape[0], values.shape[2])


def incomparable(facts: Facts, arms: tuple[str, ...], method: str, comparison: str) -> str:
    """Say why arms cannot be compared; nothing where they can.

    A relative drop means nothing for experts that learned nothing, and equal accuracy is equal only where it was
    reached.
    """
    words = []
    for arm in arms:
        found = merged_answers(facts, arm, method, comparison)
        if found is not None and found.alone.mean() <= found.base.mean():
            words.append(f"{arm} experts are no better than their base")
        if comparison == "equal_accuracy":
            cells = [
                chosen["reached"]
                for match in facts.match.values()
                for chosen in (match or {}).get("equal_accuracy", {}).get(arm, {}).values()
            ]
            if not all(cells):
                words.append(f"{arm} reached the accuracy in {sum(cells)} of {len(cells)} cases")
    return "; ".join(words)


PAPERS_METHODS = ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties")


def headline(facts: Facts) -> list[dict[str, Any]]:
    """Make the paper's main table at equal steps: experts and their merges by task, each mean over its partners."""
    rows = []
    for arm in facts.config.arms:
        for method in PAPERS_METHODS:
            found = merged_answers(facts, arm, method, "equal_steps")
            if found is None:
                continue
            if not any(row["arm"] == arm for row in rows):
                rows.append({"arm": arm, "method": "expert", **by_task(facts, found.alone), "drop": None})
            seeds, _, items = found.alone.shape
            drop = interval(partial(degradation, found), seeds, items)
            rows.append({"arm": arm, "method": method, **by_task(facts, found.merged), "drop": drop})
    return rows


def by_task(facts: Facts, answers: np.ndarray) -> dict[str, Any]:
    """Return the mean and its interval for each task, and over all, of [seeds, tasks, items]."""
    tasks = {task: mean_interval(answers[:, at : at + 1]) for at, task in enumerate(facts.config.tasks)}
    return {"tasks": tasks, "mean": mean_interval(answers)}


def best_methods(facts: Facts) -> list[dict[str, Any]]:
    """Order the methods for each family of training, with the paired distance from the family's best.

    Only the arms on which most methods were tried take part, so that all methods are judged by the same arms.
    """
    rows = []
    for family in dict.fromkeys(ARMS[arm].family for arm in facts.config.arms):
        tried: dict[str, dict[str, Merged]] = {}
        for arm in facts.config.arms:
            if ARMS[arm].family == family:
                for method in methods_of(facts.config, arm, "equal_steps"):
                    found = merged_answers(facts, arm, method, "equal_steps")
                    if found is not None:
                        tried.setdefault(arm, {})[method] = found
        most = max((len(found) for found in tried.values()), default=0)
        arms = [arm for arm, found in tried.items() if len(found) == most]
        names = [name for name in (tried[arms[0]] if arms else {}) if all(name in tried[arm] for arm in arms)]
        merged = {name: np.mean([tried[arm][name].merged for arm in arms], axis=0) for name in names}
        names.sort(key=lambda name: -merged[name].mean())
        for name in names:
            rows.append(
                {
                    "family": family,
                    "arms": arms,
                    "method": name,
                    "merged": float(merged[name].mean()),
                    "accuracy": mean_interval(merged[name]),
                    "behind_best": mean_interval(merged[name] - merged[names[0]]),
                }
            )
    return rows


def conflict_table(facts: Facts) -> list[dict[str, Any]]:
    """Describe the conflict between each arm's experts: means over pairs and seeds, at equal steps and accuracy."""
    rows = []
    names = ("cosine", "sign_disagreement", "normalized_conflict", "conflict_norm", "matched_conflict")
    for comparison in ("equal_steps", "equal_accuracy"):
        for arm in facts.config.arms:
            groups = [facts.conflict.get((s, arm), {}).get(comparison) for s in facts.seeds]
            pairs = [pair for group in groups if group for pair in group["pairs"].values()]
            if pairs:
                dilution = float(np.mean([group["dilution"] for group in groups if group]))
                means = {name: float(np.mean([pair[name] for pair in pairs])) for name in names}
                row = {"comparison": comparison, "arm": arm, **means, "dilution": dilution}
                for part in ("pairs", "experts"):
                    row |= report_means(groups, part, row)
                rows.append(row)
    return rows


def report_means(groups: list[Any], part: str, known: dict[str, Any]) -> dict[str, float]:
    """Return the means of the statistics of rlmerge's report that are not known yet."""
    found = [one for group in groups if group for one in group.get("report", {}).get(part, {}).values()]
    names = [name for name in (found[0] if found else {}) if name not in known and all(name in one for one in found)]
    return {name: float(np.mean([one[name] for one in found])) for name in names}


# --- what predicts ----------------------------------------------------------------------------------------------------


def pair_losses(facts: Facts, method: str, comparison: str) -> list[dict[str, Any]]:
    """List every merged pair with its statistics and its loss: the mean relative drop of its two tasks.

    Arms whose experts are no better than their base are left out: there is nothing to lose.
    """
    rows = []
    for (seed, arm, kind), found in facts.merge.items():
        conflict = facts.conflict.get((seed, arm), {}).get(comparison)
        if kind != comparison or conflict is None or method not in found["merged"]:
            continue
        alone = np.mean([bits(answers).mean() for answers in found["alone"].values()])
        if alone <= np.mean([bits(facts.base[seed][task]["test"]).mean() for task in found["alone"]]):
            continue
        for name, scores in found["merged"][method].items():
            if name.count("+") != 1 or name not in conflict["pairs"]:
                continue
            drops = [1 - bits(scores[t]).mean() / max(bits(found["alone"][t]).mean(), 1e-9) for t in scores]
            row = {"seed": seed, "arm": arm, "pair": name, "loss": float(np.mean(drops)), **pair_statistics(conflict, name)}
            if comparison == "equal_steps":
                for what in ("forward_kl", "hidden"):
                    row[what] = float(np.mean([facts.curve[seed, arm, t][what] for t in scores]))
            rows.append(row)
    return rows


def pair_statistics(conflict: dict[str, Any], name: str) -> dict[str, float]:
    """Return all statistics of a pair: of the weights' products, and the means of its two experts'."""
    report = conflict.get("report", {"experts": {}, "pairs": {}})
    ones = [report["experts"].get(task, {}) for task in name.split("+")]
    means = {key: float(np.mean([one[key] for one in ones])) for key in ones[0] if all(key in one for one in ones)}
    return {**means, **report["pairs"].get(name, {}), **conflict["pairs"][name]}


def predictors(facts: Facts, method: str, comparison: str) -> list[dict[str, Any]]:
    """Rank statistics by how well they order merge losses, with intervals over groups of one seed and arm."""
    rows = pair_losses(facts, method, comparison)
    if len(rows) < 6:
        return []
    found = []
    for name in PREDICTORS:
        usable = [row for row in rows if math.isfinite(row.get(name, math.nan))]
        if len(usable) < 6:
            continue
        value, low, high = correlation_interval(
            [row[name] for row in usable],
            [row["loss"] for row in usable],
            [(row["seed"], row["arm"]) for row in usable],
        )
        found.append({"statistic": name, "pairs": len(usable), "value": value, "low": low, "high": high})
    return sorted(found, key=lambda row: -abs(row["value"]) if math.isfinite(row["value"]) else 0)


# --- claims -----------------------------------------------------------------------------------------------------------


def over_cells(facts: Facts, measure: Callable[[int, str], float | None]) -> dict[str, float]:
    """Average a number of each seed and task; the interval resamples seeds and tasks, both of which are few."""
    cells = [[measure(s, t) for t in facts.config.tasks] for s in facts.seeds]
    values = np.array([[np.nan if v is None else v for v in row] for row in cells], dtype=float)
    if not np.isfinite(values).any():
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
            interval(
                lambda s, i: float(full[s][:, :, i].mean() - positives[s][:, :, i].mean()), full.shape[0], full.shape[2]
            ),
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
    return made


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


def barriers(facts: Facts) -> list[dict[str, Any]]:
    """Describe the way between the two experts of the plane: the loss and the accuracy at its middle, less its ends' mean.

    The middle of the way from expert to expert is the average of the two; the loss is that of right answers of both
    tasks.
    """
    rows = []
    for (seed, arm), found in facts.landscape.items():
        first, second = found["axes"]
        at = {(p["a"], p["b"]): p for p in found["plane"]}
        needed = [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.0, 0.0)]
        if not all(place in at and f"{first}_loss" in at[place] for place in needed):
            continue

        def mean(place: tuple[float, float], what: str, at: Any = at, both: Any = (first, second)) -> float:
            return float(np.mean([at[place][task + what] for task in both]))

        row = {"seed": seed, "arm": arm, "tasks": f"{first}+{second}", "base_loss": mean((0.0, 0.0), "_loss")}
        for name, what in (("loss_barrier", "_loss"), ("accuracy_barrier", "")):
            row[name] = mean((0.5, 0.5), what) - (mean((1.0, 0.0), what) + mean((0.0, 1.0), what)) / 2
        rows.append(row)
    return rows


def fall(facts: Facts, arm: str, far: float, seed: int, task: str) -> float | None:
    """Return how much more is lost along another task's delta than along random directions."""
    other, noise = (line_fall(facts, seed, arm, task, way, far) for way in ("other", "random"))
    return other - noise if other is not None and noise is not None else None


def fall_between(facts: Facts, first: str, second: str, far: float, seed: int, task: str) -> float | None:
    """Return how much more one arm loses than another along another task's delta."""
    a, b = (line_fall(facts, seed, arm, task, "other", far) for arm in (first, second))
    return a - b if a is not None and b is not None else None


# --- precision --------------------------------------------------------------------------------------------------------


def twins(facts: Facts) -> list[dict[str, Any]]:
    """Compare arms that were trained in f32 with their twins in bf16: what they learned, how far and how many moved."""
    rows = []
    for arm in facts.config.arms:
        twin = f"{arm}-bf16"
        if not (facts.has(arm) and facts.has(twin)):
            continue
        row: dict[str, Any] = {"arm": arm, "twin": twin}
        row["accuracy"] = mean_interval(arm_accuracy(facts, twin) - arm_accuracy(facts, arm))
        for what in ("norm", "changed", "changed_bf16"):
            for name in (arm, twin):
                last = [facts.curve[s, name, t]["points"][-1][what] for s in facts.seeds for t in facts.config.tasks]
                row[f"{what}_{'f32' if name == arm else 'bf16'}"] = float(np.mean(last))
        rows.append(row)
    return rows


# --- everything -------------------------------------------------------------------------------------------------------


def analyse(facts: Facts) -> dict[str, Any]:
    """Compute everything that the page shows.

    Returns
    -------
    dict
        Plain data: the contents of ``results.json``.
    """
    merges = merge_table(facts)
    at_steps = [row for row in merges if row["comparison"] == "equal_steps"]
    method = "task_arithmetic" if any(row["method"] == "task_arithmetic" for row in at_steps) else "linear"
    experts = expert_table(facts)
    precision = [{"arm": row["arm"], "norm": row["norm"], "changed_bf16": row["changed_bf16"]} for row in experts]
    sparse = (
        correlation_interval(
            [row["norm"] for row in experts],
            [row["changed_bf16"] for row in experts],
            [(row["seed"], row["arm"]) for row in experts],
        )
        if len(experts) > 5
        else (float("nan"),) * 3
    )
    return {
        "method_of_claims": method,
        "experts": experts,
        "merges": merges,
        "headline": headline(facts),
        "best_methods": best_methods(facts),
        "barriers": barriers(facts),
        "twins": twins(facts),
        "conflict": conflict_table(facts),
        "headline_by_seed": {
            kind: difference_by_seed(facts, "sft", facts.config.reference, method, kind)
            for kind in facts.config.merging.comparisons
        },
        "claims": [
            {
                "name": c.name,
                "words": c.words,
                **c.number,
                "unit": c.unit,
                "figure": c.figure,
                "verdict": c.verdict,
                "note": c.note,
            }
            for c in claims(facts, method)
        ],
        "predictors": {
            kind: predictors(facts, method, kind) for kind in facts.config.merging.comparisons if kind != "equal_norm"
        },
        "bf16_sparsity_follows_norm": dict(zip(("value", "low", "high"), sparse, strict=True)),
        "precision": precision,
    }
