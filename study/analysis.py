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
from study.intervals import bounds, correlation_interval, interval, resample, standard_error

if TYPE_CHECKING:
    from collections.abc import Callable

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
)


@dataclass(slots=True)
class Claim:
    """One claim of the paper, as a number that is positive where the claim holds."""

    name: str
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
    """All facts of a study, by seed, arm and task; what is missing is missing."""

    def __init__(self, config: StudyConfig, places: Places) -> None:
        self.config = config
        self.seeds = [s for s in config.seeds if places.read(f"base/s{s}") is not None]
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
                    self._take(self.merge, (s, arm, comparison), places.read(f"merge/s{s}/{arm}/{comparison}"))
                self._take(self.conflict, (s, arm), places.read(f"conflict/s{s}/{arm}"))
                self._take(self.landscape, (s, arm), places.read(f"landscape/s{s}/{arm}"))

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


# --- what predicts ----------------------------------------------------------------------------------------------------


def pair_losses(facts: Facts, method: str, comparison: str) -> list[dict[str, Any]]:
    """List every merged pair with its statistics and its loss: the mean relative drop of its two tasks."""
    rows = []
    for (seed, arm, kind), found in facts.merge.items():
        conflict = facts.conflict.get((seed, arm), {}).get(comparison)
        if kind != comparison or conflict is None or method not in found["merged"]:
            continue
        for name, scores in found["merged"][method].items():
            if name.count("+") != 1 or name not in conflict["pairs"]:
                continue
            drops = [1 - bits(scores[t]).mean() / max(bits(found["alone"][t]).mean(), 1e-9) for t in scores]
            rows.append(
                {"seed": seed, "arm": arm, "pair": name, "loss": float(np.mean(drops)), **conflict["pairs"][name]}
            )
    return rows


def predictors(facts: Facts, method: str, comparison: str) -> list[dict[str, Any]]:
    """Rank statistics by how well they order merge losses, with intervals over groups of one seed and arm."""
    rows = pair_losses(facts, method, comparison)
    if len(rows) < 6:
        return []
    found = []
    for name in PREDICTORS:
        usable = [row for row in rows if math.isfinite(row[name])]
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
    low, high = bounds(np.array(draws))
    return {"value": float(np.nanmean(values)), "low": low, "high": high}


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
            made.append(Claim(name, words, number, unit, figure, verdict(number, margin), note))

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
            "deltas of different tasks have smaller cosines in magnitude under GRPO than under SFT",
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
    return made


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
    families = sorted({ARMS[arm].family for arm in facts.config.arms})
    method = "task_arithmetic" if any(row["method"] == "task_arithmetic" for row in at_steps) else "linear"
    best = []
    for family in families:
        rows = [row for row in at_steps if ARMS[row["arm"]].family == family]
        by_method = {
            name: np.mean([r["merged"] for r in rows if r["method"] == name]) for name in {r["method"] for r in rows}
        }
        best += [
            {"family": family, "method": name, "merged": by_method[name]}
            for name in sorted(by_method, key=lambda n: -by_method[n])
        ]
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
        "best_methods": best,
        "claims": [
            {
                "name": c.name,
                "words": c.words,
                **c.number,
                "unit": c.unit,
                "figure": c.figure,
                "verdict": c.verdict,
            }
            for c in claims(facts, method)
        ],
        "predictors": {
            kind: predictors(facts, method, kind) for kind in facts.config.merging.comparisons if kind != "equal_norm"
        },
        "bf16_sparsity_follows_norm": dict(zip(("value", "low", "high"), sparse, strict=True)),
        "precision": precision,
    }
