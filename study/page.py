"""The page of results: `index.html`, `index.md`, `results.json`, tables as CSV, figures."""

from __future__ import annotations

import csv
import html
from typing import TYPE_CHECKING, Any

from study.analysis import Facts, analyse
from study.arms import ARMS
from study.figures import draw_all
from study.records import read_json, versions, write_json
from study.stages import Places

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
    "plane": "Accuracy on the plane of two deltas.",
    "precision": "Weights that a bf16 checkpoint would show as changed.",
}


def write_page(config: StudyConfig, work: Path, folder: Path, units: list[Unit]) -> None:
    """Analyse what is there and write the page."""
    facts = Facts(config, Places(work))
    folder.mkdir(parents=True, exist_ok=True)
    results = analyse(facts)
    results["study"] = config.model_dump(mode="json")
    results["versions"] = versions()
    results["units"] = state_of(units, Places(work), work)
    results["runs"] = {f"s{s}/{arm}/{task}": found["run"] for (s, arm, task), found in facts.expert.items()}
    results["matched"] = {f"s{seed}": found for seed, found in facts.match.items()}
    drawn = draw_all(facts, results, folder / "figures")
    write_json(folder / "results.json", results)
    write_csv(folder / "experts.csv", results["experts"])
    write_csv(folder / "merges.csv", [flat(row) for row in results["merges"]])
    write_csv(folder / "claims.csv", results["claims"])
    blocks = compose(config, facts, results, drawn)
    (folder / "index.md").write_text(as_markdown(blocks))
    (folder / "index.html").write_text(as_html(config.name, blocks))


def few_seeds(count: int) -> str:
    """Say what so many seeds allow."""
    if count < 2:
        return "with one base they say nothing about other bases"
    return f"with {count} bases they are rough"


def state_of(units: list[Unit], places: Places, work: Path) -> dict[str, Any]:
    """Say which units are done, how long each stage took, and why units are missing."""
    seconds: dict[str, float] = {}
    missing = {}
    done = 0
    for unit in units:
        path = places.facts(unit.name)
        if path.exists():
            done += 1
            seconds[unit.stage] = seconds.get(unit.stage, 0.0) + read_json(path)["seconds"]
        else:
            trace = work / "failed" / f"{unit.name.replace('/', '_')}.txt"
            missing[unit.name] = trace.read_text().strip().splitlines()[-1] if trace.exists() else "not run"
    return {"done": done, "of": len(units), "seconds": {k: round(v, 1) for k, v in seconds.items()}, "missing": missing}


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """Spread the intervals of a row over columns."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            found |= {f"{name}_{part}": inner for part, inner in value.items()}
        elif not isinstance(value, list):
            found[name] = value
    return found


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a table; an empty one leaves an empty file."""
    with path.open("w", newline="") as file:
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


# --- contents ---------------------------------------------------------------------------------------------------------

Block = tuple[str, Any]  # heading, text, table or figure


def percent(number: dict[str, float]) -> str:
    """Write an interval in percent."""
    return f"{100 * number['value']:.1f} [{100 * number['low']:.1f}, {100 * number['high']:.1f}]"


def compose(config: StudyConfig, facts: Facts, results: dict[str, Any], drawn: list[str]) -> list[Block]:
    """Put the page together from blocks that both forms can show."""
    units = results["units"]
    blocks: list[Block] = [
        ("heading", f"Study: {config.name}"),
        (
            "text",
            f"{config.meaning}. {len(facts.seeds)} seeds, {len(config.tasks)} tasks, {len(config.arms)} arms; "
            f"{units['done']} of {units['of']} units done. Accuracy is that of one sampled answer to each of "
            f"{config.evaluation.test_items} test questions. Intervals are 95 % bootstraps that resample seeds and "
            f"test items together (1000 draws, paired between arms); {few_seeds(len(facts.seeds))}. "
            "Nothing here was seen in training: splits follow from a hash of each question.",
        ),
        ("heading", "What was reproduced"),
        (
            "text",
            "Each claim is a number that is positive where the claim holds. Reproduced: its interval is above 0. "
            "Opposite: below. Not reproduced: it holds 0 and nothing larger than the margin (0.02 for accuracies). "
            "Undecided: it holds 0 and more. The rule is in study/analysis.py; merges in claims are by "
            f"{results['method_of_claims']}, its lambda chosen on validation.",
        ),
        (
            "table",
            [
                ["claim", "number", "95 % interval", "unit", "verdict", "figure"],
                *(
                    [
                        claim["words"],
                        f"{claim['value']:.3f}",
                        f"[{claim['low']:.3f}, {claim['high']:.3f}]",
                        claim["unit"],
                        claim["verdict"],
                        claim["figure"],
                    ]
                    for claim in results["claims"]
                ),
            ],
        ),
    ]
    blocks += [("heading", "Experts"), ("text", learned_words(results)), ("table", expert_rows(config, results))]
    figures = {name: ("figure", name) for name in drawn}
    for name in ("experts", "norms", "training"):
        blocks += [figures[name]] if name in figures else []
    blocks.append(("heading", "Merges"))
    blocks.append(("text", seed_words(facts, results)))
    blocks.append(("table", merge_rows(results)))
    for name in ("degradation", "methods", "pairs", "sweep"):
        blocks += [figures[name]] if name in figures else []
    blocks.append(("heading", "Methods by family of training"))
    blocks.append(
        (
            "table",
            [
                ["family", "method", "mean accuracy of pairs at equal steps"],
                *([r["family"], r["method"], f"{r['merged']:.3f}"] for r in results["best_methods"]),
            ],
        )
    )
    blocks.append(("heading", "Conflict, and what predicts the loss of a merge"))
    for kind, rows in results["predictors"].items():
        if rows:
            table = [
                [r["statistic"], str(r["pairs"]), f"{r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"] for r in rows
            ]
            blocks.append(
                ("table", [[f"statistic ({kind.replace('_', ' ')})", "pairs", "rank correlation with loss"], *table])
            )
    for name in ("conflict", "predictors"):
        blocks += [figures[name]] if name in figures else []
    blocks.append(("heading", "Landscapes"))
    for name in ("landscape", "plane"):
        blocks += [figures[name]] if name in figures else []
    sparse = results["bf16_sparsity_follows_norm"]
    blocks += [
        ("heading", "Precision"),
        (
            "text",
            "Rank correlation over all experts between the update norm and the share of weights that change in bf16: "
            f"{sparse['value']:.2f} [{sparse['low']:.2f}, {sparse['high']:.2f}].",
        ),
    ]
    blocks += [figures["precision"]] if "precision" in figures else []
    blocks += [
        ("heading", "How it was run"),
        (
            "table",
            [
                ["stage", "seconds of one worker, all units"],
                *([stage, f"{seconds:.0f}"] for stage, seconds in units["seconds"].items()),
            ],
        ),
        ("text", "Versions: " + ", ".join(f"{name} {number}" for name, number in results["versions"].items()) + "."),
        ("text", "Arms: " + "; ".join(f"{arm}: {ARMS[arm].meaning}" for arm in config.arms) + "."),
    ]
    if units["missing"]:
        rows = [[name, why] for name, why in units["missing"].items()]
        blocks += [("heading", "What is missing"), ("table", [["unit", "why"], *rows])]
    return blocks


def learned_words(results: dict[str, Any]) -> str:
    """Say which experts learned."""
    rows = results["experts"]
    failed = [f"{row['arm']}/{row['task']}/s{row['seed']}" for row in rows if not row["learned"]]
    told = f"{len(rows) - len(failed)} of {len(rows)} experts beat their base by more than two standard errors on test."
    return told + (f" Not so: {', '.join(failed)}." if failed else "")


def seed_words(facts: Facts, results: dict[str, Any]) -> str:
    """Say whether the base decides the sign of the difference between SFT and the reference."""
    words = []
    for kind in facts.config.merging.comparisons:
        rows = {
            r["arm"]: r["by_seed"]
            for r in results["merges"]
            if r["comparison"] == kind and r["method"] == results["method_of_claims"]
        }
        if "sft" not in rows or facts.config.reference not in rows:
            continue
        gaps = [a - b for a, b in zip(rows["sft"], rows[facts.config.reference], strict=True)]
        signs = {gap > 0 for gap in gaps}
        told = "the same sign for every base" if len(signs) == 1 else "not the same sign for every base"
        listed = ", ".join(f"{100 * gap:+.1f}" for gap in gaps)
        words.append(f"at {kind.replace('_', ' ')}, sft less {facts.config.reference}: {listed} points ({told})")
    return "Relative drops by base: " + "; ".join(words) + "." if words else "No merges to compare."


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


# --- forms ------------------------------------------------------------------------------------------------------------


def as_markdown(blocks: list[Block]) -> str:
    """Write the page as Markdown."""
    parts = []
    for at, (kind, what) in enumerate(blocks):
        if kind == "heading":
            parts.append(f"{'#' if at == 0 else '##'} {what}")
        elif kind == "text":
            parts.append(what)
        elif kind == "figure":
            parts.append(f"![{CAPTIONS[what]}](figures/{what}.png)\n\n*{what}: {CAPTIONS[what]}*")
        else:
            head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in what]
            lines = [head, ["---"] * len(head), *rows]
            parts.append("\n".join(f"| {' | '.join(row)} |" for row in lines))
    return "\n\n".join(parts) + "\n"


def as_html(title: str, blocks: list[Block]) -> str:
    """Write the page as one HTML file that needs nothing from the network."""
    parts = []
    for at, (kind, what) in enumerate(blocks):
        if kind == "heading":
            level = "h1" if at == 0 else "h2"
            parts.append(f"<{level}>{html.escape(what)}</{level}>")
        elif kind == "text":
            parts.append(f"<p>{html.escape(what)}</p>")
        elif kind == "figure":
            caption = html.escape(f"{what}: {CAPTIONS[what]}")
            parts.append(
                f'<figure id="{what}"><img src="figures/{what}.svg" alt="{caption}">'
                f'<figcaption>{caption} <a href="figures/{what}.png">PNG</a></figcaption></figure>'
            )
        else:
            head, *rows = what
            cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
            body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
            parts.append(f"<div class=wide><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>")
    style = (
        "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
        "table{border-collapse:collapse;font-size:.85rem}td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;"
        "text-align:left;font-variant-numeric:tabular-nums}.wide{overflow-x:auto;max-height:32rem}"
        "figure{margin:1.5rem 0}img{max-width:100%}figcaption{color:#555;font-size:.9rem}"
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(title)}</title><style>{style}</style><body>{''.join(parts)}</body></html>\n"
    )
