"""The tables of the page and of its CSV files, from the analysis."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from study.records import read_json
from study.schedule import facts_lack, keys_of

if TYPE_CHECKING:
    from study.configuration import StudyConfig
    from study.facts import Facts
    from study.schedule import Unit
    from study.stages import Places


def unit_rows(units: list[Unit], places: Places) -> list[dict[str, Any]]:
    """List every unit that is done: its id, what it was made from, and its times."""
    rows, keys = [], keys_of(units)
    for unit in units:
        if facts_lack(places, unit.name, keys[unit.name]) is not None:
            made = read_json(places.facts(unit.name))
            rows.append(
                {
                    "unit": unit.name,
                    "id": keys[unit.name],
                    "run": made["found"].get("run", ""),
                    "made_from": " ".join(unit.needs),
                    "seconds": made["seconds"],
                    "processor_seconds": made["processor_seconds"],
                }
            )
    return rows


def recipes(config: StudyConfig, facts: Facts) -> dict[str, Any]:
    """Give each merge's recipe, as `rlmerge merge` takes it from the working folder; pairs take two of the models."""
    found: dict[str, Any] = {}
    for (seed, arm, comparison), made in facts.merge.items():
        match = facts.match[seed] or {}
        for method, parameters in made["parameters"].items():
            step = {t: match["equal_accuracy"][arm][t]["step"] for t in made["alone"] if comparison == "equal_accuracy"}
            models = [
                {"path": f"experts/s{seed}/{arm}/{t}" + (f"/checkpoints/step-{step[t]:05d}" if step else "")}
                for t in made["alone"]
            ]
            recipe = {"method": method, "base": config.base or f"bases/s{seed}", "models": models}
            if comparison == "equal_norm":
                factors = match["equal_norm"][arm]
                recipe["scaled"] = {task: factors[task]["factor"] for task in made["alone"]}
            found[f"merge/s{seed}/{arm}/{comparison}/{method}"] = {**recipe, "parameters": parameters, "seed": seed}
    return found


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """Spread the intervals of a row over columns."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            found |= {f"{name}_{part}": inner for part, inner in value.items()}
        elif not isinstance(value, list):
            found[name] = value
    return found


def percent(number: dict[str, float]) -> str:
    """Write an interval in percent."""
    if not math.isfinite(number["value"]):
        return "–"
    return f"{100 * number['value']:.1f} [{100 * number['low']:.1f}, {100 * number['high']:.1f}]"


TOPICS = {
    "norm": "Update norms (cause 1: on-policy data make small updates)",
    "degradation": "Merging",
    "feast": "Cause 2: enough is as good as a feast",
    "negatives": "Cause 3: positives and negatives together",
    "subspace": "Cause 3: positives and negatives together",
    "landscape": "Landscape",
    "methods": "Methods",
    "advice": "Advice of the conflict report",
}


def topic_of(claim: dict[str, Any]) -> str:
    """Return the heading under which a claim stands."""
    words: str = claim["name"].partition(":")[0]
    kind = words.split()[0]
    return TOPICS[kind] + words.removeprefix(kind)


def claim_rows(results: dict[str, Any], topic: str) -> list[list[str]]:
    """Make the table of the claims of one topic."""
    table = [["claim", "number", "95 % interval", "unit", "verdict", "note", "figure"]]
    for claim in results["claims"]:
        if topic_of(claim) == topic:
            number = [f"{claim['value']:.3f}", f"[{claim['low']:.3f}, {claim['high']:.3f}]"]
            tail = [claim["unit"], claim["verdict"], claim["note"], claim["figure"]]
            table.append([claim["words"], *number, *tail])
    return table


def headline_rows(config: StudyConfig, results: dict[str, Any]) -> list[list[str]]:
    """Make the paper's main table."""
    table = [["arm", "merged by", *config.tasks, "mean", "relative drop, %"]]
    for row in results["headline"]:
        cells = [short(row["tasks"][task]) for task in config.tasks]
        drop = percent(row["drop"]) if row["drop"] else ""
        table.append([row["arm"], row["method"], *cells, short(row["mean"]), drop])
    return table


def short(number: dict[str, float]) -> str:
    """Write an accuracy in percent with half the width of its interval."""
    return f"{100 * number['value']:.1f} ± {50 * (number['high'] - number['low']):.1f}"


def run_rows(config: StudyConfig, facts: Facts) -> list[list[str]]:
    """Make the table of run ids."""
    table = [["arm", "seed", *config.tasks]]
    for arm in config.arms:
        for seed in facts.seeds:
            runs = [facts.expert.get((seed, arm, task), {}).get("run", "") for task in config.tasks]
            if any(runs):
                table.append([arm, str(seed), *runs])
    return table


def method_rows(results: dict[str, Any]) -> list[list[str]]:
    """Make the table of methods by family."""
    table = [["family", "arms", "method", "mean accuracy", "less than the best, points"]]
    for row in results["best_methods"]:
        behind = percent(row["behind_best"]) if row["behind_best"]["value"] else "best"
        table.append([row["family"], ", ".join(row["arms"]), row["method"], f"{row['merged']:.3f}", behind])
    return table


def conflict_rows(results: dict[str, Any]) -> list[list[str]]:
    """Make the table of conflict by arm."""
    names = {
        "cosine": "cosine",
        "sign_disagreement": "sign disagreement",
        "normalized_conflict": "normalised conflict",
        "conflict_norm": "conflict norm",
        "matched_conflict": "conflict norm of unit deltas",
        "dilution": "dilution",
    }
    table = [["comparison", "arm", *names.values()]]
    for row in results["conflict"]:
        small = ("conflict_norm", "matched_conflict")
        numbers = [f"{row[name]:.2e}" if name in small else f"{row[name]:.3f}" for name in names]
        table.append([row["comparison"].replace("_", " "), row["arm"], *numbers])
    return table


def expert_rows(config: StudyConfig, results: dict[str, Any]) -> list[list[str]]:
    """Make the table of experts: arms by tasks, means over seeds."""
    table = [["arm", *config.tasks, "mean gain", "norm", "forward KL", "greedy", "out of domain"]]
    for arm in config.arms:
        rows = [row for row in results["experts"] if row["arm"] == arm]
        if not rows:
            continue

        def mean(name: str, rows: list[dict[str, Any]] = rows) -> float:
            return float(sum(row[name] for row in rows) / len(rows))

        cells = []
        for task in config.tasks:
            mine = [row for row in rows if row["task"] == task]
            if mine:
                level = sum(r["accuracy"] for r in mine) / len(mine)
                error = sum(r["standard_error"] ** 2 for r in mine) ** 0.5 / len(mine)
                cells.append(f"{level:.3f} ± {error:.3f}")
            else:
                cells.append("")
        tail = [f"{mean('gain'):+.3f}", f"{mean('norm'):.2f}", f"{mean('forward_kl'):.3f}"]
        table.append([arm, *cells, *tail, f"{mean('greedy'):.3f}", f"{mean('out'):.3f}"])
    return table


def merge_rows(results: dict[str, Any]) -> list[list[str]]:
    """Make the table of merges."""
    head = [
        "comparison",
        "arm",
        "method",
        "unmerged",
        "merged pairs",
        "over base",
        "all tasks",
        "drop, %",
        "gain kept, %",
    ]
    table = [head]
    for row in results["merges"]:
        everything = f"{row['all_together']:.3f}" if row["all_together"] is not None else ""
        table.append(
            [
                row["comparison"].replace("_", " "),
                row["arm"],
                row["method"],
                f"{row['alone']:.3f}",
                f"{row['merged']:.3f}",
                f"{row['gain_over_base']:+.3f}",
                everything,
                percent(row["degradation"]),
                percent(row["retention"]),
            ]
        )
    return table
