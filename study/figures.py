"""The figures of the page, each as SVG and PNG. Colours tell arms apart; markers and dashes do so too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from study.analysis import Facts, bits, pair_losses, pair_matrix

if TYPE_CHECKING:
    from pathlib import Path

# Okabe and Ito's colours, which people with any kind of colour vision tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31", "#7F7F7F")
MARKERS = "osD^vP*Xh"


def style_of(facts: Facts, arm: str) -> dict[str, Any]:
    """Return an arm's colour and marker: the same in every figure."""
    at = facts.config.arms.index(arm)
    return {"color": COLOURS[at % len(COLOURS)], "marker": MARKERS[at % len(MARKERS)], "markersize": 4}


def draw_all(facts: Facts, results: dict[str, Any], folder: Path) -> list[str]:
    """Draw every figure for which there are data; return their names."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.hashsalt": "rlmerge",
            "legend.frameon": False,
            "figure.constrained_layout.use": True,
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, draw in (
        ("experts", experts),
        ("norms", norms),
        ("training", training),
        ("degradation", degradations),
        ("methods", methods),
        ("pairs", pairs),
        ("conflict", conflict),
        ("predictors", predictors),
        ("sweep", sweep),
        ("landscape", landscape),
        ("plane", plane),
        ("precision", precision),
    ):
        figure = draw(plt, facts, results)
        if figure is None:
            continue
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})
        plt.close(figure)
        drawn.append(name)
    return drawn


def experts(plt: Any, facts: Facts, results: dict[str, Any]) -> Any:
    """Accuracy of every arm's experts by task, base drawn as a line, standard errors over items and seeds."""
    rows = results["experts"]
    if not rows:
        return None
    tasks, arms = facts.config.tasks, facts.config.arms
    figure, axes = plt.subplots(1, len(tasks), figsize=(2.1 * len(tasks), 3.0), sharey=True)
    for axis, task in zip(np.atleast_1d(axes), tasks, strict=True):
        for at, arm in enumerate(arms):
            mine = [row for row in rows if row["arm"] == arm and row["task"] == task]
            if mine:
                error = np.sqrt(sum(row["standard_error"] ** 2 for row in mine)) / len(mine)
                axis.bar(
                    at, np.mean([r["accuracy"] for r in mine]), yerr=2 * error, color=style_of(facts, arm)["color"]
                )
        axis.axhline(np.mean([bits(facts.base[s][task]["test"]).mean() for s in facts.seeds]), color="k", ls="--", lw=1)
        axis.set_title(task)
        axis.set_xticks(range(len(arms)), arms, rotation=90)
    np.atleast_1d(axes)[0].set_ylabel("sampled accuracy on test\n(bars: ±2 s.e.; dashed: base)")
    return figure


def norms(plt: Any, facts: Facts, results: dict[str, Any]) -> Any:
    """Update norm of every expert, by arm."""
    rows = results["experts"]
    if not rows:
        return None
    figure, axis = plt.subplots(figsize=(5.5, 3.2))
    for at, arm in enumerate(facts.config.arms):
        values = [row["norm"] for row in rows if row["arm"] == arm]
        if values:
            look = style_of(facts, arm)
            axis.plot(at + np.linspace(-0.2, 0.2, len(values)), values, ls="", alpha=0.6, **look)
            axis.plot([at - 0.3, at + 0.3], [np.mean(values)] * 2, color="k", lw=1.5)
    axis.set_xticks(range(len(facts.config.arms)), facts.config.arms, rotation=30, ha="right")
    axis.set_ylabel("update norm at equal steps (L2)")
    axis.set_ylim(bottom=0)
    return figure


def training(plt: Any, facts: Facts, results: dict[str, Any]) -> Any:
    """Over steps, mean of tasks and seeds: reward, size of the advantage, gradient, applied update and task vector."""
    del results
    panels = (
        ("reward", "reward"),
        ("advantage_mean_abs", "mean size of the advantage"),
        ("frac_reward_zero_std", "share of dead groups"),
        ("grad_norm", "gradient norm"),
        ("update_norm", "applied update norm"),
        ("task_vector_norm", "task-vector norm"),
    )
    figure, axes = plt.subplots(2, 3, figsize=(9.5, 5.2), sharex=True)
    for axis, (name, title) in zip(axes.flat, panels, strict=True):
        for arm in facts.config.arms:
            found: dict[int, list[float]] = {}
            for (_, kind, _), run in facts.expert.items():
                for line in run["metrics"] if kind == arm else []:
                    if name in line:
                        found.setdefault(line["step"], []).append(line[name])
            if found:
                look = style_of(facts, arm)
                steps = sorted(found)
                axis.plot(steps, [np.mean(found[s]) for s in steps], label=arm, color=look["color"], lw=1.2)
        axis.set_title(title)
    for axis in axes[1]:
        axis.set_xlabel("step")
    handles, labels = axes[1, 2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6))
    return figure


def degradations(plt: Any, facts: Facts, results: dict[str, Any]) -> Any:
    """Relative drop by arm at equal steps, equal accuracy and equal norm, with intervals."""
    method = results["method_of_claims"]
    kinds = [k for k in facts.config.merging.comparisons if any(r["comparison"] == k for r in results["merges"])]
    if not kinds:
        return None
    figure, axes = plt.subplots(1, len(kinds), figsize=(3.3 * len(kinds), 3.4), sharey=True, squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        for at, arm in enumerate(facts.config.arms):
            row = next(
                (r for r in results["merges"] if (r["comparison"], r["arm"], r["method"]) == (kind, arm, method)), None
            )
            if row is None:
                continue
            whole = row["degradation"]
            look = style_of(facts, arm)
            axis.plot([at, at], [100 * whole["low"], 100 * whole["high"]], color=look["color"], lw=2)
            axis.plot(at, 100 * whole["value"], ls="", **{**look, "markersize": 7})
            axis.plot([at + 0.25] * len(row["by_seed"]), [100 * v for v in row["by_seed"]], "k.", ms=3)
        axis.axhline(0, color="grey", lw=0.8)
        axis.set_title(kind.replace("_", " "))
        axis.set_xticks(range(len(facts.config.arms)), facts.config.arms, rotation=45, ha="right")
    axes[0, 0].set_ylabel(f"relative drop in pairs, % ({method})\n95 % intervals; dots: single seeds")
    return figure


def methods(plt: Any, facts: Facts, results: dict[str, Any]) -> Any:
    """Merged accuracy at equal steps: methods by arms, the best for the arms with most methods above."""
    rows = [row for row in results["merges"] if row["comparison"] == "equal_steps"]
    if not rows:
        return None
    arms = [arm for arm in facts.config.arms if any(row["arm"] == arm for row in rows)]
    found = {(row["method"], row["arm"]): row["merged"] for row in rows}
    most = [arm for arm in arms if sum(a == arm for _, a in found) == max(sum(a == b for _, a in found) for b in arms)]
    names = sorted({method for method, _ in found}, key=lambda m: -np.mean([found.get((m, arm), 0) for arm in most]))
    table = np.array([[found.get((name, arm), np.nan) for arm in arms] for name in names])
    alone = [[next(row["alone"] for row in rows if row["arm"] == arm) for arm in arms]]
    figure, axis = plt.subplots(figsize=(0.85 * len(arms) + 2.0, 0.27 * len(names) + 1.9))
    whole = np.concatenate([alone, table])
    return heat(figure, axis, whole, ["unmerged", *names], arms, "viridis", "mean accuracy of pairs")


def heat(
    figure: Any, axis: Any, table: np.ndarray, rows: list[str], columns: list[str], colours: str, title: str
) -> Any:
    """Draw a table of numbers in colours."""
    image = axis.imshow(table, cmap=colours, aspect="auto")
    axis.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axis.set_yticks(range(len(rows)), rows)
    for (r, c), value in np.ndenumerate(table):
        if np.isfinite(value):
            shade = image.norm(value)
            axis.text(c, r, f"{value:.2f}", ha="center", va="center", color="w" if shade < 0.5 else "k", fontsize=8)
    axis.set_title(title)
    for side in axis.spines.values():
        side.set_visible(False)
    return figure


def pairs(plt: Any, facts: Facts, results: dict[str, Any]) -> Any:
    """Relative drop of each task with each partner, for SFT and the reference."""
    method = results["method_of_claims"]
    arms = [arm for arm in ("sft", facts.config.reference) if arm in facts.config.arms]
    tables = {arm: pair_matrix(facts, arm, method) for arm in arms}
    if not any(np.isfinite(table).any() for table in tables.values()):
        return None
    figure, axes = plt.subplots(1, len(arms), figsize=(3.8 * len(arms), 3.3), squeeze=False)
    for axis, (arm, table) in zip(axes[0], tables.items(), strict=True):
        heat(
            figure,
            axis,
            table,
            facts.config.tasks,
            facts.config.tasks,
            "cividis",
            f"{arm}: relative drop of row\nwhen merged with column",
        )
    return figure


def conflict(plt: Any, facts: Facts, results: dict[str, Any]) -> Any:
    """Conflict norm, norm-matched conflict and cosine against the update norm, over training."""
    del results
    if not facts.conflict:
        return None
    panels = (
        ("conflict_norm", "conflict norm (grows with norm squared)"),
        ("matched_conflict", "conflict norm of unit deltas"),
        ("cosine", "cosine (chance: 0)"),
    )
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4))
    for axis, (name, title) in zip(axes, panels, strict=True):
        for arm in facts.config.arms:
            grown = [found["growth"] for (_, kind), found in facts.conflict.items() if kind == arm]
            for at, rows in enumerate(grown):
                look = style_of(facts, arm)
                axis.plot(
                    [r["norm"] for r in rows], [r[name] for r in rows], lw=1, label=arm if at == 0 else None, **look
                )
        axis.set_title(title)
        axis.set_xlabel("mean update norm")
    if any(row["conflict_norm"] > 0 for found in facts.conflict.values() for row in found["growth"]):
        axes[0].set(xscale="log", yscale="log")
    axes[2].axhline(0, color="grey", lw=0.8)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6))
    return figure


def predictors(plt: Any, facts: Facts, results: dict[str, Any]) -> Any:
    """Rank correlation of each statistic with the merge loss; beside it, the best statistic against the loss."""
    rows = results["predictors"].get("equal_steps")
    if not rows:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for at, row in enumerate(reversed(rows)):
        axes[0].plot([row["low"], row["high"]], [at, at], color="#0072B2", lw=2)
        axes[0].plot(row["value"], at, "o", color="#0072B2")
    axes[0].set_yticks(range(len(rows)), [row["statistic"] for row in reversed(rows)])
    axes[0].axvline(0, color="grey", lw=0.8)
    axes[0].set_xlim(-1, 1)
    axes[0].set_xlabel("rank correlation with merge loss, 95 % interval")
    best = rows[0]["statistic"]
    for row in pair_losses(facts, results["method_of_claims"], "equal_steps"):
        axes[1].plot(row[best], row["loss"], ls="", alpha=0.7, **style_of(facts, row["arm"]))
    axes[1].set_xlabel(best)
    axes[1].set_ylabel("relative drop of a pair")
    return figure


def sweep(plt: Any, facts: Facts, results: dict[str, Any]) -> Any:
    """Validation accuracy over lambda, for each method that has one."""
    del results
    names = sorted(
        {
            m
            for (_, _, kind), f in facts.merge.items()
            if kind == "equal_steps"
            for m, rows in f["sweep"].items()
            if rows
        }
    )
    if not names:
        return None
    wide = min(5, len(names))
    tall = -(-len(names) // wide)
    figure, axes = plt.subplots(tall, wide, figsize=(2.3 * wide, 2.2 * tall + 0.7), sharey=True, squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        for arm in facts.config.arms:
            found: dict[float, list[float]] = {}
            for (_, kind, comparison), facts_of in facts.merge.items():
                if kind == arm and comparison == "equal_steps":
                    for row in facts_of["sweep"].get(name, []):
                        if "density" not in row:
                            found.setdefault(row["lambda"], []).append(row["validation"])
            if found:
                scales = sorted(found)
                axis.plot(scales, [np.mean(found[x]) for x in scales], lw=1, label=arm, **style_of(facts, arm))
        axis.set_title(name)
        axis.set_xlabel("lambda")
    for axis in axes[:, 0]:
        axis.set_ylabel("validation accuracy")
    labelled: dict[str, Any] = {}
    for axis in axes.flat:  # not every arm is in every panel
        handles, labels = axis.get_legend_handles_labels()
        labelled |= dict(zip(labels, handles, strict=True))
    figure.legend(labelled.values(), labelled.keys(), loc="outside lower center", ncols=min(len(labelled), 5))
    return figure


def landscape(plt: Any, facts: Facts, results: dict[str, Any]) -> Any:
    """Accuracy from the expert outwards: along another task's delta and along random directions."""
    del results
    arms = [arm for arm in facts.config.arms if any(kind == arm for _, kind in facts.landscape)]
    if not arms:
        return None
    tasks = facts.config.tasks
    figure, axes = plt.subplots(1, len(tasks), figsize=(2.2 * len(tasks), 3.2), sharey=True, squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for arm in arms:
            look = style_of(facts, arm)
            found = [f for (_, kind), f in facts.landscape.items() if kind == arm and task in f["lines"]]
            if not found:
                continue
            far = [0.0, *found[0]["distances"]]
            other = [
                [bits(b).mean() for b in (f["lines"][task]["here"], *f["lines"][task]["along_other"])] for f in found
            ]
            axis.plot(far, np.mean(other, axis=0), lw=1.4, label=f"{arm}, other task's delta", **look)
            walks = [
                [bits(b).mean() for b in (f["lines"][task]["here"], *walk)]
                for f in found
                for walk in f["lines"][task]["along_random"]
            ]
            axis.fill_between(far, np.min(walks, axis=0), np.max(walks, axis=0), color=look["color"], alpha=0.15, lw=0)
            axis.plot(
                far, np.mean(walks, axis=0), lw=1, ls=":", color=look["color"], label=f"{arm}, random (band: all)"
            )
        axis.set_title(task)
        axis.set_xlabel("distance / norm of other delta")
    axes[0, 0].set_ylabel("accuracy")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def plane(plt: Any, facts: Facts, results: dict[str, Any]) -> Any:
    """Mean accuracy of two tasks at base + a * first delta + b * second delta."""
    del results
    found = {
        arm: [f for (_, kind), f in facts.landscape.items() if kind == arm and f["plane"]] for arm in facts.config.arms
    }
    found = {arm: rows for arm, rows in found.items() if rows}
    if not found:
        return None
    figure, axes = plt.subplots(1, len(found), figsize=(3.6 * len(found), 3.2), squeeze=False)
    for axis, (arm, rows) in zip(axes[0], found.items(), strict=True):
        first, second = rows[0]["axes"]
        steps = facts.config.landscape.plane
        table = np.mean([[(p[first] + p[second]) / 2 for p in f["plane"]] for f in rows], axis=0)
        grid = table.reshape(len(steps), len(steps))[::-1]
        heat(
            figure,
            axis,
            grid,
            [f"{a:g}" for a in reversed(steps)],
            [f"{b:g}" for b in steps],
            "viridis",
            f"{arm}: mean accuracy of both",
        )
        axis.set_ylabel(f"times {first} delta")
        axis.set_xlabel(f"times {second} delta")
    return figure


def precision(plt: Any, facts: Facts, results: dict[str, Any]) -> Any:
    """Share of weights whose bf16 value changed, against the update norm."""
    rows = results["precision"]
    if not rows:
        return None
    figure, axis = plt.subplots(figsize=(4.6, 3.4))
    for arm in facts.config.arms:
        mine = [row for row in rows if row["arm"] == arm]
        if mine:
            axis.plot(
                [r["norm"] for r in mine],
                [r["changed_bf16"] for r in mine],
                ls="",
                alpha=0.7,
                label=arm,
                **style_of(facts, arm),
            )
    axis.set_xlabel("update norm (L2)")
    axis.set_ylabel("share of weights changed in bf16")
    axis.legend(fontsize=7)
    return figure
