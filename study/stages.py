"""The work of each unit of a study. Every function writes one JSON file of facts and can be run again at any time."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.merging import densities, fits, merged, rescale, scales, task_sets
from study.records import read_json, read_lines
from study.tasks import find_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from study.configuration import StudyConfig


@dataclass(frozen=True, slots=True)
class Places:
    """Where things lie under the working folder.

    ``known`` holds the keys of facts that are to be believed; all are, where it is None.
    """

    work: Path
    known: dict[str, str] | None = None

    def base(self, config: StudyConfig, seed: int) -> Path | str:
        """Return the base of a seed."""
        return config.base if config.base is not None else self.work / "bases" / f"s{seed}"

    def expert(self, seed: int, arm: str, task: str) -> Path:
        """Return the folder of an expert."""
        return self.work / "experts" / f"s{seed}" / arm / task

    def scratch(self) -> Path:
        """Return the folder of what is deleted again."""
        folder = self.work / "scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def facts(self, unit: str) -> Path:
        """Return the file that says that a unit is done, and what it found."""
        return self.work / "facts" / f"{unit}.json"

    def failure(self, unit: str) -> Path:
        """Return the file that says why a unit failed."""
        return self.work / "failed" / f"{unit.replace('/', '_')}.txt"

    def read(self, unit: str) -> dict[str, Any] | None:
        """Return what a unit found, if it is done."""
        path = self.facts(unit)
        if not path.exists():
            return None
        facts = read_json(path)
        if self.known is not None and facts["key"] != self.known.get(unit):
            return None  # of other settings
        return dict(facts["found"])


def run_unit(config: StudyConfig, places: Places, stage: str, **names: Any) -> dict[str, Any]:
    """Do the work of one unit."""
    work: dict[str, Callable[..., dict[str, Any]]] = {
        "pretrain": pretrain_base,
        "base": evaluate_base,
        "expert": train_expert,
        "curve": evaluate_expert,
        "match": match_experts,
        "conflict": measure_conflict,
        "alone": ask_alone,
        "merge": merge_experts,
        "landscape": walk_landscape,
    }
    return work[stage](config, places, **names)


# --- bases and experts ------------------------------------------------------------------------------------------------


def pretrain_base(config: StudyConfig, places: Places, seed: int) -> dict[str, Any]:
    """Pretrain the base of a seed."""
    from study.pretrain import pretrain

    return {"run": pretrain(config.pretraining(seed, Path(places.base(config, seed))))["run"]}


def evaluate_base(config: StudyConfig, places: Places, seed: int) -> dict[str, Any]:
    """Ask the base everything that experts and merges will be asked."""
    asker = Asker(config, places.base(config, seed))
    return {
        task: {
            "test": asker.ask(task, "test"),
            "greedy": asker.ask(task, "test", temperature=0.0),
            "out": asker.ask(task, "test", domain="out"),
            "validation": asker.ask(task, "validation"),
        }
        for task in config.tasks
    }


def train_expert(config: StudyConfig, places: Places, seed: int, arm: str, task: str) -> dict[str, Any]:
    """Train one expert; a run that was stopped goes on from its last checkpoint."""
    settings = config.training(arm, task, seed, places.base(config, seed), places.expert(seed, arm, task))
    if settings.engine == "trl":
        from study.trl_training import train
    else:
        from study.training import train
    manifest = train(settings)
    return {"run": manifest["run"], "metrics": read_lines(settings.output_dir / "metrics.jsonl")}


def evaluate_expert(config: StudyConfig, places: Places, seed: int, arm: str, task: str) -> dict[str, Any]:
    """Follow an expert over its checkpoints on validation, and examine the last one on test."""
    from study.evaluate import distances, open_model
    from study.statistics import of_expert, read_delta

    folder = places.expert(seed, arm, task)
    base = places.base(config, seed)
    asker = Asker(config, folder)
    points = []
    for path in sorted((folder / "checkpoints").glob("step-*")):
        asker.load(path)
        read = read_delta(Path(base), path)
        points.append(
            {
                "step": int(path.name.removeprefix("step-")),
                "validation": asker.ask(task, "validation"),
                **of_expert(read["base"], read["delta"]),
            }
        )
    asker.load(folder)
    ours = open_model(base)[0]
    return {
        "points": points,
        "test": asker.ask(task, "test"),
        "greedy": asker.ask(task, "test", temperature=0.0),
        "out": asker.ask(task, "test", domain="out"),
        **distances(asker.model, ours, asker.tokenizer, find_task(task, config.form, config.level)),
    }


class Asker:
    """A model in memory whose weights can be exchanged, and the questions it is asked."""

    def __init__(self, config: StudyConfig, folder: Path | str) -> None:
        from study.evaluate import open_model

        self.config = config
        self.model, self.tokenizer = open_model(folder)

    def load(self, folder: Path) -> None:
        """Put other weights into the model; much faster than opening a folder."""
        from safetensors.torch import load_file

        weights: dict[str, Any] = {}
        for file in sorted(folder.glob("*.safetensors")):
            weights |= load_file(file)
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        tied = {"lm_head.weight"} if self.model.config.tie_word_embeddings else set()
        if unexpected or set(missing) - tied:
            msg = f"{folder} is not a model of the same shape: {[*missing, *unexpected][:3]}"
            raise ValueError(msg)

    def ask(
        self, task: str, split: str, *, temperature: float = 1.0, domain: str = "in", count: int | None = None
    ) -> str:
        """Return a string of 0 and 1, one for each question."""
        from study.evaluate import answers

        told = self.config.evaluation
        if count is None:
            count = told.validation_items if split == "validation" else told.test_items
            count = told.out_items if domain == "out" else count
        right = answers(
            self.model,
            self.tokenizer,
            find_task(task, self.config.form, self.config.level),
            split=split,
            count=count,
            domain=domain,
            temperature=temperature,
            limit=told.limit,
            batch=told.batch,
        )
        return "".join(map(str, right))

    def gold_loss(self, task: str, style: str, count: int) -> float:
        """Return the mean negative log probability of the tokens of right answers, in nats, on validation."""
        import torch

        from study.sampling import Batch, completion_logits, encode_answers, encode_prompts, log_probabilities

        family = find_task(task, self.config.form, self.config.level)
        items = family.items("validation", count, seed=0)
        device = next(self.model.parameters()).device
        batch = Batch(
            *encode_prompts(self.tokenizer, [item.prompt for item in items], device),
            *encode_answers(self.tokenizer, [family.restyle(item.answer, style) for item in items], device),
        )
        with torch.no_grad():
            logs = log_probabilities(completion_logits(self.model, batch), batch)
        return float(-logs.sum() / batch.completion_mask.sum())


def share(bits: str) -> float:
    """Return the share of right answers."""
    return bits.count("1") / len(bits)


# --- matched experts --------------------------------------------------------------------------------------------------


def match_experts(config: StudyConfig, places: Places, seed: int) -> dict[str, Any]:
    """Choose the checkpoints of equal accuracy and the factors of equal norm.

    The accuracy aimed at for a task is the lowest final one among the arms, but at least half of the reference's gain:
    an arm that learned nothing must not turn the comparison into one of untrained models.
    """
    base = places.read(f"base/s{seed}")
    assert base is not None
    found: dict[str, Any] = {"targets": {}, "equal_accuracy": {}, "equal_norm": {}}
    for task in config.tasks:
        curves = {arm: places.read(f"curve/s{seed}/{arm}/{task}") for arm in config.arms}
        present = {arm: curve["points"] for arm, curve in curves.items() if curve is not None}
        if config.reference not in present:
            continue  # nothing to aim at
        start = share(base[task]["validation"])
        finals = {arm: smooth(points)[-1] for arm, points in present.items()}
        floor = start + 0.5 * (finals[config.reference] - start)
        aim = max(min(finals.values()), floor)
        length = present[config.reference][-1]["norm"]
        found["targets"][task] = {"accuracy": aim, "norm": length}
        for arm, points in present.items():
            levels = smooth(points)
            reached = [at for at, level in enumerate(levels) if level >= aim]
            at = reached[0] if reached else max(range(len(levels)), key=levels.__getitem__)
            chosen = {"step": points[at]["step"], "validation": levels[at], "reached": bool(reached)}
            found["equal_accuracy"].setdefault(arm, {})[task] = {**chosen, "norm": points[at]["norm"]}
            own = points[-1]["norm"]
            found["equal_norm"].setdefault(arm, {})[task] = {"factor": length / own if own else 1.0, "norm": own}
    return found


def smooth(points: list[dict[str, Any]]) -> list[float]:
    """Average accuracy over neighbouring checkpoints, since a single one is noisy."""
    raw = [share(point["validation"]) for point in points]
    return [sum(raw[max(0, at - 1) : at + 2]) / len(raw[max(0, at - 1) : at + 2]) for at in range(len(raw))]


@contextmanager
def compared_experts(
    config: StudyConfig, places: Places, seed: int, arm: str, comparison: str
) -> Iterator[dict[str, Path]]:
    """Give the experts of an arm as a comparison wants them; those that failed are left out.

    Rescaled experts are made for the caller and gone afterwards.
    """
    done = {task: places.expert(seed, arm, task) for task in config.tasks if places.read(f"curve/s{seed}/{arm}/{task}")}
    if comparison == "equal_steps":
        yield done
        return
    match = places.read(f"match/s{seed}")
    assert match is not None
    chosen = match[comparison].get(arm, {})
    done = {task: folder for task, folder in done.items() if task in chosen}
    if comparison == "equal_accuracy":
        yield {task: folder / "checkpoints" / f"step-{chosen[task]['step']:05d}" for task, folder in done.items()}
        return
    with tempfile.TemporaryDirectory(dir=places.scratch()) as made:
        scaled = {task: Path(made) / task for task in done}
        for task, folder in done.items():
            rescale(places.base(config, seed), folder, chosen[task]["factor"], scaled[task])
        yield scaled


# --- merges -----------------------------------------------------------------------------------------------------------


def ask_alone(config: StudyConfig, places: Places, seed: int, arm: str, comparison: str) -> dict[str, Any]:
    """Ask the experts themselves what their merges are asked."""
    asker = Asker(config, places.base(config, seed))
    found = {}
    with compared_experts(config, places, seed, arm, comparison) as experts:
        for task, folder in experts.items():
            asker.load(folder)
            found[task] = asker.ask(task, "test")
    if not found:
        msg = f"{arm} has no experts for {comparison}"
        raise ValueError(msg)
    return found


def merge_experts(
    config: StudyConfig, places: Places, seed: int, arm: str, comparison: str, method: str
) -> dict[str, Any]:
    """Merge all pairs and all tasks by a method; parameters are chosen on validation, scores are on test."""
    told = config.merging
    base = places.base(config, seed)
    asker = Asker(config, base)
    with compared_experts(config, places, seed, arm, comparison) as experts:
        if len(experts) < 2:
            msg = f"{arm} has {len(experts)} experts for {comparison}: nothing to merge"
            raise ValueError(msg)

        def score(parameters: dict[str, Any], group: tuple[str, ...], split: str) -> dict[str, str]:
            with merged(base, [experts[task] for task in group], method, parameters, places.scratch(), seed) as folder:
                asker.load(folder)
            return {task: asker.ask(task, split) for task in group}

        sets = task_sets(list(experts), all_together=told.all_together)
        pairs = [s for s in sets if len(s) == 2]
        # Every n-th pair, so that all tasks take part in the choice.
        tuning = pairs[:: max(1, len(pairs) // told.tuning_pairs)][: told.tuning_pairs]
        sweep: list[dict[str, Any]] = []
        chosen: dict[str, Any] = {}
        best = -1.0
        for list_options in (scales, densities):
            for option in list_options(method, told, chosen):
                right = [share(b) for s in tuning for b in score(option, s, "validation").values()]
                sweep.append({**option, "validation": sum(right) / len(right)})
            for row in sweep:
                if row["validation"] > best:
                    best = row["validation"]
                    chosen = {name: value for name, value in row.items() if name != "validation"}
        return {
            "parameters": chosen,
            "sweep": sweep,
            "merged": {"+".join(s): score(chosen, s, "test") for s in sets if fits(method, len(s))},
        }


def measure_conflict(config: StudyConfig, places: Places, seed: int, arm: str) -> dict[str, Any]:
    """Measure the conflict statistics of an arm's experts: at the end, matched, and at every checkpoint."""
    from study.statistics import of_group, reported

    base = Path(places.base(config, seed))
    with compared_experts(config, places, seed, arm, "equal_steps") as final:
        found: dict[str, Any] = {"equal_steps": {**of_group(base, final), "report": reported(base, final)}}
    if places.read(f"match/s{seed}"):
        with compared_experts(config, places, seed, arm, "equal_accuracy") as matched:
            found["equal_accuracy"] = {**of_group(base, matched), "report": reported(base, matched)}
    found["growth"] = []
    steps = sorted({path.name for folder in final.values() for path in (folder / "checkpoints").glob("step-*")})
    for step in steps:
        here = {task: f / "checkpoints" / step for task, f in final.items() if (f / "checkpoints" / step).is_dir()}
        if len(here) > 1:
            group = of_group(base, here)
            pairs = list(group["pairs"].values())
            row = {"step": int(step.removeprefix("step-"))}
            for name in ("conflict_norm", "cosine", "matched_conflict"):
                row[name] = sum(pair[name] for pair in pairs) / len(pairs)
            row["norm"] = sum(one["norm"] for one in group["experts"].values()) / len(here)
            found["growth"].append(row)
    return found


def walk_landscape(config: StudyConfig, places: Places, seed: int, arm: str) -> dict[str, Any]:
    """Walk from each expert along another's delta and along random directions; survey one plane."""
    from study.landscape import survey

    base = places.base(config, seed)
    style = config.training(arm, config.tasks[0], seed, base, Path("out")).style
    with compared_experts(config, places, seed, arm, "equal_steps") as experts:
        return survey(config, Asker(config, base), Path(base), experts, seed, style)
