"""From facts to numbers: experts, merges, conflict, landscapes and precision, with intervals.

All numbers are shares unless said otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from study.arms import ARMS
from study.facts import bits
from study.intervals import correlation_interval, interval_of, resampled_means, standard_error
from study.schedule import methods_of

if TYPE_CHECKING:
    from study.facts import Facts

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


def degradation(found: Merged) -> np.ndarray:
    """Return the mean over tasks of 1 - merged / alone, the paper's relative drop: of the whole and of each draw."""
    alone, merged = resampled_means(found.alone), resampled_means(found.merged)
    drop: np.ndarray = (1 - merged / np.maximum(alone, 1e-9)).mean(1)
    return drop


def retention(found: Merged) -> np.ndarray:
    """Return the share of the gain over the base that merging keeps, over all tasks together."""
    alone, base, merged = (resampled_means(part).mean(1) for part in (found.alone, found.base, found.merged))
    gain = alone - base
    return np.where(gain > 0, (merged - base) / np.where(gain > 0, gain, 1), np.nan)


def of_seed(found: Merged, at: int) -> Merged:
    """Return what was found for one base."""
    here = slice(at, at + 1)
    whole = found.together[here] if found.together is not None else None
    return Merged(found.alone[here], found.merged[here], found.base[here], whole)


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
                seeds = len(facts.seeds)
                rows.append(
                    {
                        "comparison": comparison,
                        "arm": arm,
                        "method": method,
                        "alone": found.alone.mean(),
                        "merged": found.merged.mean(),
                        "gain_over_base": found.merged.mean() - found.base.mean(),
                        "all_together": found.together.mean() if found.together is not None else None,
                        "degradation": interval_of(degradation(found), seeds),
                        "retention": interval_of(retention(found), seeds),
                        "by_task": dict(zip(facts.config.tasks, (found.merged.mean((0, 2))).tolist(), strict=True)),
                        "alone_by_task": dict(
                            zip(facts.config.tasks, (found.alone.mean((0, 2))).tolist(), strict=True)
                        ),
                        "by_seed": [float(degradation(of_seed(found, at))[0]) for at in range(seeds)],
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
    return interval_of(degradation(first) - degradation(second), len(facts.seeds))


def difference_by_seed(
    facts: Facts, worse: str, better: str, method: str, comparison: str
) -> list[dict[str, float]] | None:
    """Return the same difference for each base alone, with an interval over items."""
    first = merged_answers(facts, worse, method, comparison)
    second = merged_answers(facts, better, method, comparison)
    if first is None or second is None:
        return None

    return [
        interval_of(degradation(of_seed(first, at)) - degradation(of_seed(second, at)), 1)
        for at in range(len(facts.seeds))
    ]


def mean_interval(values: np.ndarray) -> dict[str, float]:
    """Return the mean of [seeds, tasks, items] with its interval."""
    return interval_of(resampled_means(values).mean(1), values.shape[0])


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
    rows: list[dict[str, Any]] = []
    for arm in facts.config.arms:
        for method in PAPERS_METHODS:
            found = merged_answers(facts, arm, method, "equal_steps")
            if found is None:
                continue
            if not any(row["arm"] == arm for row in rows):
                rows.append({"arm": arm, "method": "expert", **by_task(facts, found.alone), "drop": None})
            drop = interval_of(degradation(found), len(facts.seeds))
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
            row = {
                "seed": seed,
                "arm": arm,
                "pair": name,
                "loss": float(np.mean(drops)),
                **pair_statistics(conflict, name),
            }
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


def barriers(facts: Facts) -> list[dict[str, Any]]:
    """Describe the way between the plane's two experts: loss and accuracy at its middle, less the mean of its ends.

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
