"""The figures of the page, each as SVG and PNG. Colours tell arms apart; markers and dashes do so too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from study.analysis import SPOKEN, pair_losses, pair_matrix
from study.facts import Facts, bits

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# Okabe and Ito's colours, which people with any kind of colour vision tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31", "#7F7F7F")
MARKERS = "osD^vP*Xh"


def style_of(facts: Facts, arm: str) -> dict[str, Any]:
    """Return an arm's colour and marker: the same in every figure."""
    at = facts.config.arms.index(arm)
    return {"color": COLOURS[at % len(COLOURS)], "marker": MARKERS[at % len(MARKERS)], "markersize": 4}


def draw_all(facts: Facts, results: dict[str, Any], folder: Path, *, vector: bool) -> list[str]:
    """Draw every figure for which there are data, as PNG and, if asked for, as SVG; return their names."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    plt.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.hashsalt": "rlmerge",
            "svg.fonttype": "none",  # text stays text: half the size, and it can be searched
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
        ("loss", loss),
        ("plane", plane),
        ("precision", precision),
    ):
        figure = draw(plt, facts, results)
        if figure is None:
            continue
        if vector:
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})
        with Image.open(folder / f"{name}.png") as picture:  # a third of the size, and it looks the same
            few = picture.convert("RGB").quantize(128)
        few.save(folder / f"{name}.png", optimize=True)
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
        ("conflict_norm", "conflict norm (mean of pairs)"),
        ("entropy", "entropy of tokens, nats"),
    )
    figure, axes = plt.subplots(2, 4, figsize=(11.5, 5.2), sharex=True)
    for axis, (name, title) in zip(axes.flat, panels, strict=True):
        for arm in facts.config.arms:
            found: dict[int, list[float]] = {}
            for (_, kind, _), run in facts.expert.items():
                for line in run["metrics"] if kind == arm else []:
                    if name in line:
                        found.setdefault(line["step"], []).append(line[name])
            for (_, kind), measured in facts.conflict.items():
                for row in measured["growth"] if kind == arm and name == "conflict_norm" else []:
                    found.setdefault(row["step"], []).append(row[name])
            if found:
                look = style_of(facts, arm)
                steps = sorted(found)
                axis.plot(steps, [np.mean(found[s]) for s in steps], label=arm, color=look["color"], lw=1.2)
        axis.set_title(title)
    for axis in axes[1]:
        axis.set_xlabel("step")
    handles, labels = axes[1, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8))
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
    """Merged accuracy at equal steps by method, for the arms on which all methods were tried."""
    rows = results["best_methods"]
    if not rows:
        return None
    families = list(dict.fromkeys(row["family"] for row in rows))
    found = {(row["family"], row["method"]): row for row in rows}
    mean = {
        name: np.mean([found[family, name]["merged"] for family in families if (family, name) in found])
        for _, name in found
    }
    names = sorted(mean, key=mean.__getitem__)
    figure, axis = plt.subplots(figsize=(7.0, 0.24 * len(names) + 1.6))
    for at, family in enumerate(families):
        arms = next(row["arms"] for row in rows if row["family"] == family)
        look = style_of(facts, arms[0])
        label = ", ".join(arms)
        axis.plot([], [], ls="", label=label, **look)
        for place, name in enumerate(names):
            row = found.get((family, name))
            if row is not None:
                y = place + 0.16 * (at - (len(families) - 1) / 2)
                axis.plot([row["accuracy"]["low"], row["accuracy"]["high"]], [y, y], color=look["color"], lw=1.2)
                axis.plot(row["merged"], y, ls="", **look)
        ends = [r for r in results["merges"] if r["arm"] in arms and r["comparison"] == "equal_steps"]
        alone = np.mean([r["alone"] for r in ends])
        axis.axvline(alone, color=look["color"], lw=1, ls="--", label=f"{label}, not merged")
    base = np.mean([bits(facts.base[s][t]["test"]).mean() for s in facts.seeds for t in facts.config.tasks])
    axis.axvline(base, color="grey", lw=1, ls=":", label="base")
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(-0.7, len(names) - 0.3)
    axis.set_xlabel("mean accuracy of merged pairs on test, 95 % intervals")
    axis.grid(axis="y", color="#eee")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def heat(
    axis: Any,
    table: np.ndarray,
    rows: list[str],
    columns: list[str],
    colours: str,
    title: str,
    limits: tuple[float, float],
) -> None:
    """Draw a table of numbers in colours, which mean the same in all panels of a figure."""
    image = axis.imshow(table, cmap=colours, aspect="auto", vmin=limits[0], vmax=limits[1])
    axis.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axis.set_yticks(range(len(rows)), rows)
    for (r, c), value in np.ndenumerate(table):
        if np.isfinite(value):
            shade = image.norm(value)
            axis.text(c, r, f"{value:.2f}", ha="center", va="center", color="w" if shade < 0.5 else "k", fontsize=8)
    axis.set_title(title)
    for side in axis.spines.values():
        side.set_visible(False)


def limits_of(tables: Iterable[np.ndarray]) -> tuple[float, float]:
    """Return the smallest and the largest number of all tables."""
    whole = np.concatenate([table.ravel() for table in tables])
    return float(np.nanmin(whole)), float(np.nanmax(whole))


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
            axis,
            table,
            facts.config.tasks,
            facts.config.tasks,
            "cividis",
            f"{arm}: relative drop of row\nwhen merged with column",
            limits_of(tables.values()),
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
        axes[0].xaxis.set_major_formatter("{x:g}")
        axes[0].xaxis.set_minor_formatter("")
        axes[0].set_xticks([tick for tick in (0.01, 0.03, 0.1, 0.3, 1, 3, 10) if within(axes[0].get_xlim(), tick)])
    axes[2].axhline(0, color="grey", lw=0.8)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6))
    return figure


def within(limits: tuple[float, float], value: float) -> bool:
    """Say whether a value lies between limits."""
    return limits[0] <= value <= limits[1]


def predictors(plt: Any, facts: Facts, results: dict[str, Any]) -> Any:
    """Rank correlation of each statistic with the merge loss; beside it, the best statistic against the loss."""
    rows = results["predictors"].get("equal_steps")
    if not rows:
        return None
    rows = [row for row in rows if np.isfinite(row["value"])]
    if not rows:
        return None
    names = [SPOKEN.get(row["statistic"], row["statistic"].replace("_", " ")) for row in rows]
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.22 * len(rows) + 1.5))
    for at, row in enumerate(reversed(rows)):
        axes[0].plot([row["low"], row["high"]], [at, at], color="#0072B2", lw=2)
        axes[0].plot(row["value"], at, "o", color="#0072B2")
    axes[0].set_yticks(range(len(rows)), names[::-1])
    axes[0].set_title("equal steps")
    axes[0].axvline(0, color="grey", lw=0.8)
    axes[0].set_xlim(-1, 1)
    axes[0].set_xticks([-1, -0.5, 0, 0.5, 1])
    axes[0].set_xlabel("rank correlation with merge loss, 95 % interval")
    best = rows[0]["statistic"]
    for row in pair_losses(facts, results["method_of_claims"], "equal_steps"):
        axes[1].plot(row[best], row["loss"], ls="", alpha=0.7, **style_of(facts, row["arm"]))
    axes[1].set_xlabel(f"{names[0]} (the strongest)")
    axes[1].set_ylabel("relative drop of a pair")
    axes[1].axhline(0, color="grey", lw=0.8)
    seen = list(dict.fromkeys(row["arm"] for row in pair_losses(facts, results["method_of_claims"], "equal_steps")))
    for arm in seen:
        axes[1].plot([], [], ls="", label=arm, **style_of(facts, arm))
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(seen), 8))
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
            if any("density" not in row for row in rows)
        }
    )
    if not names:
        return None
    wide = min(5, len(names))
    tall = -(-len(names) // wide)
    figure, axes = plt.subplots(
        tall, wide, figsize=(2.1 * wide, 1.6 * tall + 0.8), sharey=True, sharex=True, squeeze=False
    )
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
        axis.set_title(name, fontsize=9)
    for at in range(wide):  # the lowest panel of each column
        low = axes.flat[max(range(at, len(names), wide), default=at)]
        low.set_xlabel("lambda")
        low.xaxis.set_tick_params(labelbottom=True)
    figure.supylabel("validation accuracy", fontsize=9)
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
    size = (2.1 * len(tasks), 1.9 * len(arms) + 0.6)
    figure, axes = plt.subplots(len(arms), len(tasks), figsize=size, sharex=True, sharey=True, squeeze=False)
    for row, arm in zip(axes, arms, strict=True):
        look = style_of(facts, arm)
        for axis, task in zip(row, tasks, strict=True):
            found = [f for (_, kind), f in facts.landscape.items() if kind == arm and task in f["lines"]]
            if not found:
                continue
            far = [0.0, *found[0]["distances"]]
            other = [
                [bits(b).mean() for b in (f["lines"][task]["here"], *f["lines"][task]["along_other"])] for f in found
            ]
            walks = [
                [bits(b).mean() for b in (f["lines"][task]["here"], *walk)]
                for f in found
                for walk in f["lines"][task]["along_random"]
            ]
            axis.fill_between(far, np.min(walks, axis=0), np.max(walks, axis=0), color="grey", alpha=0.25, lw=0)
            axis.plot(far, np.mean(walks, axis=0), lw=1, ls=":", color="k")
            axis.plot(far, np.mean(other, axis=0), lw=1.4, **look)
            base = np.mean([bits(facts.base[s][task]["validation"]).mean() for s in facts.seeds])
            axis.axhline(base, color="grey", lw=0.8, ls="--")
        row[0].set_ylabel(f"{arm}\naccuracy")
    for axis, task in zip(axes[0], tasks, strict=True):
        axis.set_title(f"{task}'s expert")
    figure.supxlabel(
        "distance / norm of the other delta (marks: along another task's delta; dotted, band: random directions of its "
        "norm, mean and range over bases; dashed: base)",
        fontsize=8,
    )
    return figure


def loss(plt: Any, facts: Facts, results: dict[str, Any]) -> Any:
    """Loss of right answers from the expert outwards, mean over tasks and bases, for each arm."""
    del results
    arms = [
        arm
        for arm in facts.config.arms
        if any(
            kind == arm and all("loss" in line for line in f["lines"].values())
            for (_, kind), f in facts.landscape.items()
        )
    ]
    if not arms:
        return None
    figure, axes = plt.subplots(1, len(arms), figsize=(3.2 * len(arms), 3.0), sharey=True, squeeze=False)
    for axis, arm in zip(axes[0], arms, strict=True):
        look = style_of(facts, arm)
        lines = [
            (task, line["loss"])
            for (_, kind), f in facts.landscape.items()
            if kind == arm
            for task, line in f["lines"].items()
        ]
        far = [0.0, *next(f["distances"] for (_, kind), f in facts.landscape.items() if kind == arm)]
        other = np.array([[line["here"], *line["along_other"]] for _, line in lines])
        walks = np.array([[[line["here"], *walk] for walk in line["along_random"]] for _, line in lines])
        for task in facts.config.tasks:
            axis.plot(far, other[[name == task for name, _ in lines]].mean(0), lw=0.6, color=look["color"], alpha=0.6)
        axis.fill_between(far, walks.mean(0).min(0), walks.mean(0).max(0), color="grey", alpha=0.25, lw=0)
        axis.plot(far, walks.mean((0, 1)), lw=1, ls=":", color="k", label="random directions")
        axis.plot(far, other.mean(0), lw=1.6, label="another task's delta", **look)
        axis.set_title(arm)
        axis.set_xlabel("distance / norm of the other delta")
        axis.legend(fontsize=7, loc="upper left")
    axes[0, 0].set_ylabel("loss of right answers, nats a token")
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
    steps = facts.config.landscape.plane
    grids = {}
    for arm, rows in found.items():
        first, second = rows[0]["axes"]
        table = np.mean([[(p[first] + p[second]) / 2 for p in f["plane"]] for f in rows], axis=0)
        grids[arm] = table.reshape(len(steps), len(steps))[::-1]
    for axis, (arm, grid) in zip(axes[0], grids.items(), strict=True):
        names = [f"{a:g}" for a in reversed(steps)], [f"{b:g}" for b in steps]
        heat(axis, grid, *names, "viridis", f"{arm}: mean accuracy of both", limits_of(grids.values()))
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
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper")
    return figure
