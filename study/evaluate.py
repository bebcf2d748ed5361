# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.9", "transformers>=4.57", "pydantic>=2.12", "ruamel.yaml>=0.18", "numpy>=2"]
# ///
"""Evaluate a model folder on the tasks: sampled and greedy answers judged by the verifiers, distances to the base.

python study/evaluate.py math-grpo --base base --task math --task code --items 250
python study/evaluate.py merged --lm-eval                   prints the lm-eval command for a real model
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the folder of `study` belongs on the path, and `study` itself does not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from study.tasks import TASKS, Task, find_task

# Samples of an evaluation use this seed and never one of training; the same for all models, so that they are paired.
SEED = 77_000_001


def open_model(folder: Path | str) -> tuple[Any, Any]:
    """Open a model folder for evaluation, in f32 on the CPU and in its own dtype on a GPU."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gpu = torch.cuda.is_available()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto" if gpu else torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to("cuda" if gpu else "cpu").eval(), tokenizer


def answers(
    model: Any,
    tokenizer: Any,
    task: Task,
    *,
    split: str,
    count: int,
    domain: str = "in",
    temperature: float = 1.0,
    limit: int = 20,
    batch: int = 256,
) -> list[int]:
    """Ask a model questions of a split and judge its answers.

    Parameters
    ----------
    count
        Questions; always the same ones for a task, split and domain.
    temperature
        0 is greedy.

    Returns
    -------
    list of int
        1 for each right answer, else 0, in the order of the questions.
    """
    from study.sampling import sample, texts

    items = task.items(split, count, seed=0, domain=domain)
    found: list[int] = []
    for at in range(0, count, batch):
        part = items[at : at + batch]
        drawn = sample(
            model, tokenizer, [item.prompt for item in part], limit=limit, temperature=temperature, seed=SEED + at
        )
        found += [int(score) for score in task.score_all(part, texts(tokenizer, drawn))]
    return found


def distances(
    model: Any, base: Any, tokenizer: Any, task: Task, *, count: int = 64, limit: int = 20
) -> dict[str, float]:
    """Compare a model with its base on a task's validation questions, answered by the model.

    Returns
    -------
    dict
        ``forward_kl``: mean over tokens of KL(model, base), in nats. ``reverse_kl``: KL(base, model).
        ``hidden``: mean distance of the last hidden states, relative to the base's norm.
    """
    import torch

    from study.sampling import completion_logits, sample

    items = task.items("validation", count, seed=0)
    drawn = sample(model, tokenizer, [item.prompt for item in items], limit=limit, seed=SEED)
    keep = drawn.completion_mask.bool()
    with torch.no_grad():
        ours = completion_logits(model, drawn).log_softmax(-1)[keep]
        theirs = completion_logits(base, drawn).log_softmax(-1)[keep]
        ids = torch.cat([drawn.prompt, drawn.completion], 1)
        mask = torch.cat([drawn.prompt_mask, drawn.completion_mask], 1)
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        states = [
            m.model(input_ids=ids, attention_mask=mask, position_ids=places).last_hidden_state[mask.bool()].float()
            for m in (model, base)
        ]
    return {
        "forward_kl": float((ours.exp() * (ours - theirs)).sum(-1).mean()),
        "reverse_kl": float((theirs.exp() * (theirs - ours)).sum(-1).mean()),
        "hidden": float(((states[0] - states[1]).norm(dim=-1) / states[1].norm(dim=-1)).mean()),
    }


def main() -> None:
    """Evaluate one folder and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--base", type=Path, help="also measure distances to it")
    parser.add_argument("--task", action="append", choices=list(TASKS), help="repeat for several; all unless given")
    parser.add_argument("--form", default="compact", choices=("compact", "english"))
    parser.add_argument("--level", type=int, default=1)
    parser.add_argument("--items", type=int, default=250)
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--limit", type=int, default=20, help="most tokens of an answer")
    parser.add_argument("--lm-eval", action="store_true", help="print the lm-eval command for the real test sets")
    told = parser.parse_args()
    if told.lm_eval:
        print(
            f"lm_eval --model hf --model_args pretrained={told.model},dtype=bfloat16 "
            "--tasks gsm8k,minerva_math500,humaneval,mbpp,ifeval --apply_chat_template --batch_size auto "
            "--confirm_run_unsafe_code"
        )
        return
    if not (told.model / "config.json").exists():
        sys.exit(f"error: {told.model} is no model folder: it has no config.json")
    model, tokenizer = open_model(told.model)
    base = open_model(told.base)[0] if told.base else None
    report: dict[str, Any] = {}
    for name in told.task or TASKS:
        task = find_task(name, told.form, told.level)
        scores = {
            f"{domain}/{way}": answers(
                model,
                tokenizer,
                task,
                split=told.split,
                count=told.items,
                domain=domain,
                temperature=temperature,
                limit=told.limit,
            )
            for domain in ("in", "out")
            for way, temperature in (("sampled", 1.0), ("greedy", 0.0))
        }
        report[name] = {way: sum(right) / len(right) for way, right in scores.items()}
        if base is not None:
            report[name] |= distances(model, base, tokenizer, task, limit=told.limit)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
