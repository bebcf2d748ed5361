# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.9", "transformers>=4.57", "pydantic>=2.12", "ruamel.yaml>=0.18", "numpy>=2"]
# ///
"""Pretrain a tiny base that knows all five tasks but samples badly.

    python study/pretrain.py output_dir=base seed=0
    python study/pretrain.py --config pretrain.yaml steps=1400

Reinforcement learning needs a base that is often right when it samples, and not always. So answers are clean for most
of the training, and then some have a slip of the pen: the likeliest answer stays right, and a sample is right about
half the time. A quarter of the answers are in a second style throughout, and a few in a third, foreign one.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the folder of `study` belongs on the path, and `study` itself does not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from study.settings import SettingsError, explain, parse_value, read_yaml
from study.tiny_model import TinyShape

STATE = "resume.pt"  # beside the model, until that is whole
SAVE_STEPS = 200  # between states


class PretrainSettings(BaseModel):
    """Settings of one pretraining."""

    model_config = ConfigDict(extra="forbid")

    output_dir: Path
    seed: int = Field(default=0, ge=0)
    steps: int = Field(default=1300, ge=1)
    batch: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0)  # of embeddings and norms, by AdamW
    matrix_learning_rate: float = Field(default=0.02, gt=0)  # of matrices, by Muon: half the steps AdamW needs
    clean_share: float = Field(default=0.75, ge=0, le=1)  # of the steps, before slips begin
    slip_rate: float = Field(default=0.35, ge=0, le=1)
    second_style_rate: float = Field(default=0.25, ge=0, le=1)
    foreign_style_rate: float = Field(default=0.04, ge=0, le=1)  # 0 makes a style that no short training can teach
    outside_rate: float = Field(default=0.1, ge=0, le=1)  # of questions from outside the experts' domain
    level: int = Field(default=1, ge=1)
    items: int = Field(default=3000, ge=1)  # different questions of each task
    weights: dict[str, float] = Field(
        default_factory=lambda: {"math": 1.4, "code": 0.5, "instruct": 0.8, "puzzle": 1.2, "rank": 1.1}
    )
    shape: TinyShape = Field(default_factory=lambda: TinyShape())


def pretrain(settings: PretrainSettings) -> dict[str, Any]:
    """Pretrain, and write the folder.

    Returns
    -------
    dict
        What the manifest says.
    """
    import time

    import torch

    from study.records import append_line, write_manifest
    from study.sampling import Batch, completion_logits, encode_answers, encode_prompts, log_probabilities
    from study.tasks import find_task
    from study.tiny_model import make_model, make_tokenizer, save_folder

    torch.use_deterministic_algorithms(True)
    started = time.process_time()
    tokenizer = make_tokenizer()
    model = make_model(settings.shape, settings.seed)
    tasks = {name: find_task(name, level=settings.level) for name in settings.weights}
    pools = {
        (name, domain): task.items("train", share, settings.seed, domain)
        for name, task in tasks.items()
        for domain, share in (("in", settings.items), ("out", settings.items))
    }
    named = [(name, weights) for name, weights in model.named_parameters()]
    matrices = [w for name, w in named if w.ndim == 2 and "embed" not in name]
    others = [w for name, w in named if not (w.ndim == 2 and "embed" not in name)]
    optimizers: list[Any] = [
        torch.optim.Muon(matrices, lr=settings.matrix_learning_rate, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=settings.learning_rate, betas=(0.9, 0.98)),
    ]
    peaks = [settings.matrix_learning_rate, settings.learning_rate]
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    log = settings.output_dir / "metrics.jsonl"
    rng = random.Random(f"pretrain/{settings.seed}")
    names = list(settings.weights)
    begun = restore(settings, model, optimizers, rng, log)
    for step in range(begun, settings.steps):
        scale = min(1.0, (step + 1) / 50) * max(0.05, 1 - step / settings.steps)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * scale
        spoiled = step >= settings.clean_share * settings.steps
        prompts, answers = [], []
        for name in rng.choices(names, list(settings.weights.values()), k=settings.batch):
            domain = "out" if rng.random() < settings.outside_rate else "in"
            item = rng.choice(pools[name, domain])
            answer = item.answer
            if spoiled and rng.random() < settings.slip_rate:
                answer = tasks[name].slip(answer, rng)
            point = rng.random() - settings.foreign_style_rate
            style = "foreign" if point < 0 else "second" if point < settings.second_style_rate else "plain"
            prompts.append(item.prompt)
            answers.append(tasks[name].restyle(answer, style))
        batch = Batch(*encode_prompts(tokenizer, prompts, "cpu"), *encode_answers(tokenizer, answers, "cpu"))
        logs = log_probabilities(completion_logits(model, batch), batch)
        loss = -logs.sum() / batch.completion_mask.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % 50 == 0 or step + 1 == settings.steps:
            append_line(log, {"step": step + 1, "loss": loss.item(), "seconds": time.process_time() - started})
        if (step + 1) % SAVE_STEPS == 0 and step + 1 < settings.steps:
            save_state(settings, step + 1, model, optimizers, rng)
    save_folder(model, tokenizer, settings.output_dir)
    (settings.output_dir / STATE).unlink(missing_ok=True)
    return write_manifest(settings.output_dir, settings.model_dump(mode="json"), None)


def save_state(settings: PretrainSettings, step: int, model: Any, optimizers: list[Any], rng: random.Random) -> None:
    """Write what a stopped pretraining needs to go on; it is replaced whole each time."""
    import torch

    state = {
        "settings": settings.model_dump(mode="json"),
        "step": step,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "rng": rng.getstate(),
    }
    staged = settings.output_dir / f"{STATE}.new"
    torch.save(state, staged)
    staged.replace(settings.output_dir / STATE)


def restore(settings: PretrainSettings, model: Any, optimizers: list[Any], rng: random.Random, log: Path) -> int:
    """Load the state of a stopped pretraining of the same settings; return the steps it had made."""
    import torch

    from study.records import append_line, read_lines

    path = settings.output_dir / STATE
    lines = read_lines(log)
    log.unlink(missing_ok=True)
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=False)
    if state["settings"] != settings.model_dump(mode="json"):
        return 0
    model.load_state_dict(state["model"])
    for optimizer, held in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(held)
    rng.setstate(state["rng"])
    for line in lines:
        if line["step"] <= state["step"]:
            append_line(log, line)
    return int(state["step"])


def main() -> None:
    """Read the settings and pretrain."""
    parser = argparse.ArgumentParser(description="Pretrain a tiny base.")
    parser.add_argument("--config", type=Path, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="name=value")
    told = parser.parse_args()
    try:
        given = read_yaml(told.config) if told.config else {}
        given |= {name: parse_value(value) for name, _, value in (text.partition("=") for text in told.overrides)}
        settings = PretrainSettings.model_validate(given)
    except ValidationError as error:
        sys.exit(f"error: {explain(error, str(told.config or 'command line'))}")
    except SettingsError as error:
        sys.exit(f"error: {error}")
    print(pretrain(settings)["run"])


if __name__ == "__main__":
    main()
