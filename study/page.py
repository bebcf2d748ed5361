"""The page of results: `index.html`, `index.md`, `results.json`, tables as CSV, figures."""

from __future__ import annotations

import csv
import html
import math
from typing import TYPE_CHECKING, Any

from study.analysis import SPOKEN
from study.answers import answers
from study.arms import ARMS
from study.facts import Facts
from study.figures import draw_all
from study.records import read_json, read_lines, versions, write_json
from study.results import analyse
from study.schedule import facts_lack, is_extra, keys_of
from study.stages import Places
from study.tables import (
    claim_rows,
    conflict_rows,
    expert_rows,
    flat,
    headline_rows,
    merge_rows,
    method_rows,
    percent,
    recipes,
    run_rows,
    topic_of,
    unit_rows,
)

if TYPE_CHECKING:
    from pathlib import Path

    from study.configuration import StudyConfig
    from study.schedule import Unit

CAPTIONS = {
    "experts": "Accuracy of every arm's experts on fresh questions of their own task.",
    "norms": "Update norms at equal steps; each point is an expert, lines are means.",
    "training": "Over training: means over tasks and seeds.",
    "degradation": "Relative drop of accuracy when two experts are merged, at equal steps, accuracy and norm.",
    "methods": "Mean accuracy of merged pairs at equal steps, by method; parameters chosen on validation.",
    "pairs": "Relative drop of each task with each partner at equal steps.",
    "conflict": "Conflict against the update norm, over checkpoints: most of the conflict norm is scale.",
    "predictors": "Which statistic orders the losses of merges.",
    "sweep": "Validation accuracy of merges over lambda.",
    "landscape": "Accuracy from each expert outwards.",
    "loss": "Loss of right answers from each expert outwards: mean over tasks, thin lines single tasks.",
    "plane": "Accuracy on the plane of two deltas.",
    "precision": "Weights that a bf16 checkpoint would show as changed.",
}

NOT_YET = "not run yet"
LONG_TABLE = 60  # rows; longer ones scroll


def write_page(config: StudyConfig, work: Path, folder: Path, units: list[Unit], *, vector: bool = True) -> None:
    """Analyse what is there and write the page; its figures are SVG, or PNG alone where space matters."""
    state = state_of(config, units, Places(work))
    facts = Facts(config, Places(work, known=keys_of(units)), without=state.pop("begun"))
    folder.mkdir(parents=True, exist_ok=True)
    results = analyse(facts)
    results["study"] = config.model_dump(mode="json")
    results["versions"] = versions()
    results["units"] = state
    results["answers"] = answers(results, config.reference)
    results["runs"] = {f"s{s}/{arm}/{task}": found["run"] for (s, arm, task), found in facts.expert.items()}
    results["matched"] = {f"s{seed}": found for seed, found in facts.match.items()}
    drawn = draw_all(facts, results, folder / "figures", vector=vector)
    write_json(folder / "results.json", strict(results))
    write_csv(folder / "experts.csv", results["experts"])
    write_csv(folder / "merges.csv", [flat(row) for row in results["merges"]])
    write_csv(folder / "claims.csv", results["claims"])
    write_csv(folder / "conflict.csv", results["conflict"])
    write_csv(folder / "methods.csv", [flat(row) for row in results["best_methods"]])
    write_csv(folder / "units.csv", unit_rows(units, Places(work)))
    write_json(folder / "recipes.json", recipes(config, facts), indent=None)
    blocks = compose(config, facts, results, drawn)
    (folder / "index.md").write_text(as_markdown(blocks))
    (folder / "index.html").write_text(as_html(config.name, blocks, vector=vector))


def few_seeds(count: int) -> str:
    """Say what so many seeds allow."""
    if count < 2:
        return "with one base they say nothing about other bases"
    return f"widened by the root of {count}/{count - 1} for so few bases, and rough even so"


def state_of(config: StudyConfig, units: list[Unit], places: Places) -> dict[str, Any]:
    """Say which units are done, how long each stage took, and why units are missing."""
    seconds: dict[str, dict[str, float]] = {"wall": {}, "processor": {}}
    missing: dict[str, str] = {}
    broken: set[str] = set()
    begun: set[int] = (
        set()
    )  # seeds with units still to come that claims need: without others, only methods are left out
    done = 0
    keys = keys_of(units)
    for unit in units:
        trace = places.failure(unit.name)
        behind = next((name for name in unit.needs if name in broken), None)
        if facts_lack(places, unit.name, keys[unit.name]) is not None:
            done += 1
            made = read_json(places.facts(unit.name))
            for clock, spent in (("wall", made["seconds"]), ("processor", made["processor_seconds"])):
                seconds[clock][unit.stage] = seconds[clock].get(unit.stage, 0.0) + spent
        elif trace.exists() or behind is not None:
            broken.add(unit.name)
            missing[unit.name] = (
                f"not begun, because {behind} failed" if behind else trace.read_text().strip().splitlines()[-1]
            )
        else:
            if not is_extra(config, unit):
                begun.add(unit.arguments["seed"])
            missing[unit.name] = NOT_YET
    sessions = read_lines(places.work / "sessions.jsonl")
    return {
        "done": done,
        "of": len(units),
        "seconds": {
            clock: {stage: round(spent, 1) for stage, spent in found.items()} for clock, found in seconds.items()
        },
        "wall": round(sum(session["wall"] for session in sessions), 1),
        "sessions": len(sessions),
        "begun": begun,
        "missing": missing,
    }


def strict(data: Any) -> Any:
    """Put null for numbers that JSON has no word for."""
    if isinstance(data, dict):
        return {name: strict(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [strict(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a table; an empty one leaves an empty file."""
    with path.open("w", newline="") as file:
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


# --- contents ---------------------------------------------------------------------------------------------------------

Block = tuple[str, Any]  # heading, text, table or figure


def compose(config: StudyConfig, facts: Facts, results: dict[str, Any], drawn: list[str]) -> list[Block]:
    """Put the page together from blocks that both forms can show."""
    units = results["units"]
    blocks: list[Block] = [
        ("heading", f"Study: {config.name}"),
        (
            "text",
            f"{config.meaning[:1].upper()}{config.meaning[1:]}. "
            f"Seeds {', '.join(map(str, facts.seeds))} of {len(config.seeds)}, {len(config.tasks)} tasks, "
            f"{len(config.arms)} arms; {units['done']} of {units['of']} units done. "
            "Accuracy is that of one sampled answer to each of "
            f"{config.evaluation.test_items} test questions. Intervals are 95 % bootstraps that resample seeds and "
            f"test items together (1000 draws, paired between arms); {few_seeds(len(facts.seeds))}. "
            "Nothing here was seen in training: splits follow from a hash of each question.",
        ),
        ("heading", "Answers"),
        ("table", [["question", "answer"], *results["answers"]]),
        ("heading", "What was reproduced"),
        (
            "text",
            "Each claim is a number that is positive where the claim holds. Reproduced: its interval is above 0. "
            "Opposite: below. Not reproduced: it holds 0 and nothing larger than the margin (0.02 for accuracies). "
            "Undecided: it holds 0 and more. Not comparable: the note says why. The rule is in study/claims.py; "
            f"merges in claims are by {results['method_of_claims']}, its lambda chosen on validation. There are "
            f"{len(results['claims'])} claims, and at 95 % about one in twenty intervals that should hold 0 does not.",
        ),
    ]
    for topic in dict.fromkeys(topic_of(claim) for claim in results["claims"]):
        blocks += [("subheading", topic), ("table", claim_rows(results, topic))]
    blocks += [("heading", "Experts"), ("text", learned_words(results)), ("table", expert_rows(config, results))]
    figures = {name: ("figure", name) for name in drawn}
    for name in ("experts", "norms", "training"):
        blocks += [figures[name]] if name in figures else []
    blocks.append(("heading", "Merges"))
    if results["headline"]:
        words = (
            "The paper's main table at equal steps: accuracy on test in percent, each task's mean over its pairs, and "
            "half the width of the 95 % interval."
        )
        blocks += [("text", words), ("table", headline_rows(config, results))]
    blocks += [("text", seed_words(facts, results)), ("text", reached_words(facts)), ("table", merge_rows(results))]
    for name in ("degradation", "methods", "pairs", "sweep"):
        blocks += [figures[name]] if name in figures else []
    blocks += [
        ("heading", "Methods by family of training"),
        (
            "text",
            "Mean accuracy of pairs at equal steps, and its paired distance from the family's best method. The best of "
            "many is partly luck: methods whose interval reaches 0 are not told apart from it.",
        ),
        ("table", method_rows(results)),
        ("heading", "Conflict, and what predicts the loss of a merge"),
        (
            "text",
            "Means over pairs of tasks and over bases. Chance: cosine 0, sign disagreement 0.5, normalised conflict "
            f"0.707, dilution {len(config.tasks) ** -0.5:.3f} (orthogonal deltas of one length). The conflict norm "
            "grows with the square of the update norm; the one of unit deltas does not.",
        ),
        ("table", conflict_rows(results)),
    ]
    for kind, rows in results["predictors"].items():
        if rows:
            table = [
                [
                    SPOKEN.get(r["statistic"], r["statistic"].replace("_", " ")),
                    str(r["pairs"]),
                    f"{r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"
                    if math.isfinite(r["value"])
                    else "always equal",
                ]
                for r in rows
            ]
            blocks.append(
                ("table", [[f"statistic ({kind.replace('_', ' ')})", "pairs", "rank correlation with loss"], *table])
            )
    for name in ("conflict", "predictors"):
        blocks += [figures[name]] if name in figures else []
    blocks.append(("heading", "Landscapes"))
    for name in ("landscape", "loss", "plane"):
        blocks += [figures[name]] if name in figures else []
    if results["barriers"]:
        blocks.append(("text", barrier_words(results)))
    sparse = results["bf16_sparsity_follows_norm"]
    processor = sum(units["seconds"]["processor"].values())
    blocks += [
        ("heading", "Precision"),
        (
            "text",
            "Rank correlation over all experts between the update norm and the share of weights that change in bf16: "
            f"{sparse['value']:.2f} [{sparse['low']:.2f}, {sparse['high']:.2f}]. {precision_words(results)}",
        ),
    ]
    blocks += [figures["precision"]] if "precision" in figures else []
    blocks += [
        ("heading", "Runs"),
        (
            "text",
            "Every number above comes from these experts. A run's id is the hash of its settings and of its base; the "
            "unit that made a number (`merge/s0/sft/equal_steps/ties`, say), its id and its inputs are in units.csv.",
        ),
        ("table", run_rows(config, facts)),
        ("heading", "How it was run"),
        (
            "table",
            [
                ["stage", "wall seconds, all units", "processor seconds"],
                *(
                    [stage, f"{seconds:.0f}", f"{units['seconds']['processor'][stage]:.0f}"]
                    for stage, seconds in units["seconds"]["wall"].items()
                ),
            ],
        ),
        (
            "text",
            f"Processor time: {processor / 60:.0f} minutes, {processor / 60 / config.workers:.0f} for each of "
            f"{config.workers} workers. Wall time: {units['wall'] / 60:.0f} minutes in {units['sessions']} session(s); "
            "whatever else the machine did meanwhile is in it.",
        ),
        ("text", "Versions: " + ", ".join(f"{name} {number}" for name, number in results["versions"].items()) + "."),
        ("text", "Arms: " + "; ".join(f"{arm}: {ARMS[arm].meaning}" for arm in config.arms) + "."),
    ]
    failed = [[name, why] for name, why in units["missing"].items() if why != NOT_YET]
    if units["missing"]:
        blocks += [
            ("heading", "What is missing"),
            (
                "text",
                f"{len(failed)} units failed or could not be begun; {len(units['missing']) - len(failed)} are to come.",
            ),
        ]
    if failed:
        blocks.append(("table", [["unit", "why"], *failed]))
    return blocks


def barrier_words(results: dict[str, Any]) -> str:
    """Say what lies between two experts."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in results["barriers"]:
        found.setdefault(row["arm"], []).append(row)
    if not found:
        return ""
    parts = []
    for arm, rows in found.items():
        losses = ", ".join(f"{row['loss_barrier']:+.3f}" for row in rows)
        levels = ", ".join(f"{100 * row['accuracy_barrier']:+.1f}" for row in rows)
        parts.append(f"{arm}: loss {losses}, accuracy {levels} points")
    return (
        f"Half-way between the experts of {results['barriers'][0]['tasks'].replace('+', ' and ')}, less the mean of "
        "the two ends, for each base (loss of right answers in nats a token; above 0 is a barrier): "
        f"{'; '.join(parts)}. "
        "One pair of tasks and no intervals: an illustration, not a test."
    )


def precision_words(results: dict[str, Any]) -> str:
    """Compare training in bf16 with training in f32, where both were done."""
    if not results["twins"]:
        return "No arm of this study was trained in bf16; `tiny-cpu-full` does so."
    return " ".join(
        f"{row['twin']} against {row['arm']}: accuracy {percent(row['accuracy'])} points; norm {row['norm_bf16']:.3f} "
        f"against {row['norm_f32']:.3f}; weights changed by more than 1e-5 {100 * row['changed_bf16']:.1f} % against "
        f"{100 * row['changed_f32']:.1f} %, in bf16 {100 * row['changed_bf16_bf16']:.1f} % against "
        f"{100 * row['changed_bf16_f32']:.1f} %."
        for row in results["twins"]
    )


def learned_words(results: dict[str, Any]) -> str:
    """Say which experts learned."""
    rows = results["experts"]
    failed = [f"{row['arm']}/{row['task']}/s{row['seed']}" for row in rows if not row["learned"]]
    told = f"{len(rows) - len(failed)} of {len(rows)} experts beat their base by more than two standard errors on test."
    return told + (f" Not so: {', '.join(failed)}." if failed else "")


def seed_words(facts: Facts, results: dict[str, Any]) -> str:
    """Say whether the base decides the sign of the difference between SFT and the reference."""
    words = []
    for kind, found in results["headline_by_seed"].items():
        if not found:
            continue
        above = sum(gap["low"] > 0 for gap in found)
        below = sum(gap["high"] < 0 for gap in found)
        listed = ", ".join(f"s{seed} {percent(gap)}" for seed, gap in zip(facts.seeds, found, strict=True))
        words.append(
            f"at {kind.replace('_', ' ')} {listed}: above 0 for {above}, below for {below}, not decided for "
            f"{len(found) - above - below} of {len(found)} bases"
        )
    if not words:
        return "No merges to compare."
    return (
        f"Does the base decide the sign? Relative drop of sft less that of {facts.config.reference}, in points, "
        f"for each base alone, with intervals over test questions: {'; '.join(words)}."
    )


def reached_words(facts: Facts) -> str:
    """Say how often each arm reached the accuracy that matched comparisons aim at."""
    counts: dict[str, list[bool]] = {}
    for match in facts.match.values():
        for arm, chosen in (match or {}).get("equal_accuracy", {}).items():
            counts.setdefault(arm, []).extend(one["reached"] for one in chosen.values())
    told = ", ".join(f"{arm} {sum(reached)} of {len(reached)}" for arm, reached in counts.items())
    return (
        "For equal accuracy, each arm's first checkpoint counts that reaches the accuracy aimed at for its task; where "
        f"none does, its best. Reached: {told}."
    )


# --- forms ------------------------------------------------------------------------------------------------------------


def as_markdown(blocks: list[Block]) -> str:
    """Write the page as Markdown."""
    parts = []
    for at, (kind, what) in enumerate(blocks):
        if kind == "heading":
            parts.append(f"{'#' if at == 0 else '##'} {what}")
        elif kind == "subheading":
            parts.append(f"### {what}")
        elif kind == "text":
            parts.append(what)
        elif kind == "figure":
            parts.append(f"![{CAPTIONS[what]}](figures/{what}.png)\n\n*{what}: {CAPTIONS[what]}*")
        else:
            head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in what]
            lines = [head, ["---"] * len(head), *rows]
            parts.append("\n".join(f"| {' | '.join(row)} |" for row in lines))
    return "\n\n".join(parts) + "\n"


def as_html(title: str, blocks: list[Block], *, vector: bool) -> str:
    """Write the page as one HTML file that needs nothing from the network."""
    parts = []
    for at, (kind, what) in enumerate(blocks):
        if kind == "heading":
            level = "h1" if at == 0 else "h2"
            parts.append(f"<{level}>{html.escape(what)}</{level}>")
        elif kind == "subheading":
            parts.append(f"<h3>{html.escape(what)}</h3>")
        elif kind == "text":
            parts.append(f"<p>{html.escape(what)}</p>")
        elif kind == "figure":
            caption = html.escape(f"{what}: {CAPTIONS[what]}")
            shown = "svg" if vector else "png"
            other = f' <a href="figures/{what}.png">PNG</a>' if vector else ""
            parts.append(
                f'<figure id="{what}"><img src="figures/{what}.{shown}" alt="{caption}">'
                f"<figcaption>{caption}{other}</figcaption></figure>"
            )
        else:
            head, *rows = what
            cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
            body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
            kind_of = "wide long" if len(rows) > LONG_TABLE else "wide"
            parts.append(
                f"<div class='{kind_of}'><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"
            )
    style = (
        "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
        "table{border-collapse:collapse;font-size:.85rem}td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;"
        "text-align:left;font-variant-numeric:tabular-nums}.wide{overflow-x:auto}.long{max-height:40rem}"
        "figure{margin:1.5rem 0}img{max-width:100%}figcaption{color:#555;font-size:.9rem}"
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(title)}</title><style>{style}</style><body>{''.join(parts)}</body></html>\n"
    )
