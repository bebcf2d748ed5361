"""The same training through TRL, for models that need GPUs: SFT, RFT, GRPO and its variants, RLOO.

Tested with a tiny model on the CPU; the arithmetic is TRL's. REINFORCE++ here is the variant with the group's mean as
baseline and the batch's deviation (REINFORCE++-baseline, 2501.03262), which is what TRL's ``scale_rewards="batch"`` is.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.records import append_line, write_manifest
from study.tasks import find_task
from study.tasks.real import load_real
from study.tasks.rewards import verified
from study.training import checkpoint, distance

if TYPE_CHECKING:
    from collections.abc import Callable

    from study.settings import TrainSettings


def train(settings: TrainSettings, progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Train one expert with TRL; the output folder is the same as that of `study.training.train`."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    started = time.monotonic()
    output = settings.output_dir
    tokenizer: Any = AutoTokenizer.from_pretrained(settings.model_name_or_path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model: Any = AutoModelForCausalLM.from_pretrained(settings.model_name_or_path, dtype=getattr(torch, settings.dtype))
    rows = questions(settings)
    if settings.algorithm == "rft":
        rows = accepted(settings, model, tokenizer, rows)
    make = supervised if settings.algorithm in ("sft", "rft") else reinforced
    trainer = make(settings, model, tokenizer, Dataset.from_list(rows))
    trainer.add_callback(watcher(settings, trainer, progress))
    resume = settings.resume_from_checkpoint and any((output / "trl").glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=resume or None)
    if trainer.accelerator.is_main_process:
        whole = trainer.accelerator.unwrap_model(trainer.model)
        whole = whole.merge_and_unload() if hasattr(whole, "merge_and_unload") else whole
        whole.save_pretrained(output)
        tokenizer.save_pretrained(output)
    trainer.accelerator.wait_for_everyone()
    collect(settings, tokenizer)
    return write_manifest(
        output,
        settings.model_dump(mode="json"),
        Path(settings.model_name_or_path),
        data={"train_items": len(rows)},
        seconds=round(time.monotonic() - started, 2),
    )


def questions(settings: TrainSettings) -> list[dict[str, Any]]:
    """Return the training rows: the generator's, or a real data set's."""
    if settings.dataset_name is not None:
        return [dict(row) for row in load_real(settings.dataset_name, settings.train_items)]
    task = find_task(settings.task, settings.form, settings.level)
    return [
        {
            "prompt": item.prompt,
            "answer": task.restyle(item.answer, settings.style),
            "proof": item.proof,
            "task": item.task,
            "form": settings.form,
            "level": settings.level,
        }
        for item in task.items("train", settings.train_items, settings.seed)
    ]


def accepted(settings: TrainSettings, model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace gold answers by the base's own that the verifier accepts."""
    import torch

    from study.sampling import sample, texts

    model.to("cuda" if torch.cuda.is_available() else "cpu")
    found = []
    group = max(1, settings.per_device_train_batch_size // settings.rft_samples)
    for at in range(0, len(rows), group):
        part = rows[at : at + group]
        batch = sample(
            model,
            tokenizer,
            [row["prompt"] for row in part],
            copies=settings.rft_samples,
            limit=settings.max_completion_length,
            temperature=settings.temperature,
            seed=settings.seed * 1_000_003 + at,
        )
        asked = [row for row in part for _ in range(settings.rft_samples)]
        answers = texts(tokenizer, batch)
        columns = {name: [row[name] for row in asked] for name in asked[0] if name != "prompt"}
        scores = verified([row["prompt"] for row in asked], answers, **columns)
        found += [{**row, "answer": text} for row, text, score in zip(asked, answers, scores, strict=True) if score]
    if not found:
        msg = f"the base answered no question of {settings.task} rightly: RFT has no data"
        raise ValueError(msg)
    return found


def shared_arguments(settings: TrainSettings) -> dict[str, Any]:
    """Return what SFT's and RL's configurations have in common; every default that matters is stated."""
    import torch

    gpu = torch.cuda.is_available()
    return {
        "output_dir": str(settings.output_dir / "trl"),
        "seed": settings.seed,
        "max_steps": settings.max_steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": settings.warmup_steps,
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "max_grad_norm": settings.max_grad_norm,
        "weight_decay": settings.weight_decay,
        "adam_beta2": settings.adam_beta2,
        "bf16": gpu and settings.dtype == "bfloat16",
        "use_cpu": not gpu,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": settings.save_steps,
        "logging_steps": 1,
        "report_to": settings.report_to or "none",
        "disable_tqdm": True,
    }


def adapter(settings: TrainSettings) -> Any:
    """Return the LoRA configuration, if one is asked for."""
    if not settings.use_peft:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=settings.lora_r, lora_alpha=settings.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def supervised(settings: TrainSettings, model: Any, tokenizer: Any, rows: Any) -> Any:
    """Make TRL's trainer for gold or accepted answers; the loss is on answers only."""
    from trl import SFTConfig, SFTTrainer

    rows = rows.rename_column("answer", "completion").select_columns(["prompt", "completion"])
    arguments = SFTConfig(**shared_arguments(settings), completion_only_loss=True, packing=False)
    return SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=adapter(settings),
    )


def reinforced(settings: TrainSettings, model: Any, tokenizer: Any, rows: Any) -> Any:
    """Make TRL's trainer for verified answers."""
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    told = {
        **shared_arguments(settings),
        "num_generations": settings.num_generations,
        "max_completion_length": settings.max_completion_length,
        "temperature": settings.temperature,
        "beta": settings.beta,
        "epsilon": settings.epsilon,
        "num_iterations": settings.num_iterations,
    }
    # In-memory models fail where TRL loads a reference of its own, so the path is given.
    common = {
        "model": settings.model_name_or_path,
        "reward_funcs": verified,
        "train_dataset": rows,
        "processing_class": tokenizer,
        "peft_config": adapter(settings),
    }
    loading = {"model_init_kwargs": {"dtype": settings.dtype}}
    if settings.advantage == "rloo":
        if settings.positives_only or settings.nu > 0:
            msg = "positives_only and nu go with grpo, dr_grpo and reinforce++ under TRL, not with rloo"
            raise ValueError(msg)
        return RLOOTrainer(args=RLOOConfig(**told, **loading), **common)
    scale = {"grpo": "group", "dr_grpo": "none", "reinforce++": "batch"}[settings.advantage]
    kind = "dr_grpo" if settings.advantage == "dr_grpo" else "grpo"
    arguments = GRPOConfig(**told, **loading, scale_rewards=scale, loss_type=kind)
    if settings.nu > 0:
        common["rollout_func"] = mixed_rollout(settings, model, tokenizer)

    class PositivesOnly(GRPOTrainer):  # type: ignore[misc] # its type is not known where types are checked
        """GRPO whose negative advantages are 0."""

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            scored = super()._generate_and_score_completions(inputs)
            scored["advantages"] = scored["advantages"].clamp(min=0)
            return scored

    return (PositivesOnly if settings.positives_only else GRPOTrainer)(args=arguments, **common)


def mixed_rollout(settings: TrainSettings, base: Any, tokenizer: Any) -> Callable[[list[Any], Any], dict[str, Any]]:
    """Make a rollout that takes a share of the groups from the base and the rest from the policy."""
    from study.sampling import completion_logits, log_probabilities, sample

    base.eval().requires_grad_(requires_grad=False)

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        group = settings.num_generations
        asked = [str(prompt) for prompt in prompts[::group]]
        foreign = round(settings.nu * len(asked))
        policy = trainer.accelerator.unwrap_model(trainer.model)
        base.to(trainer.accelerator.device)
        found: dict[str, Any] = {"prompt_ids": [], "completion_ids": [], "logprobs": []}
        for at, (model, part) in enumerate(((base, asked[:foreign]), (policy, asked[foreign:]))):
            if not part:
                continue
            seed = (settings.seed * 1_000_003 + trainer.state.global_step) * 2 + at
            batch = sample(
                model,
                tokenizer,
                part,
                copies=group,
                limit=settings.max_completion_length,
                temperature=settings.temperature,
                seed=seed,
            )
            logs = log_probabilities(completion_logits(model, batch).detach(), batch)
            for row in range(len(batch.prompt)):
                found["prompt_ids"].append(batch.prompt[row][batch.prompt_mask[row].bool()].tolist())
                keep = batch.completion_mask[row].bool()
                found["completion_ids"].append(batch.completion[row][keep].tolist())
                found["logprobs"].append(logs[row][keep].tolist())
        return found

    return rollout


def watcher(settings: TrainSettings, trainer: Any, progress: Callable[[str], None]) -> Any:
    """Make the callback that measures what reached the weights, and writes a line of metrics for each step."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):  # type: ignore[misc] # as above
        """Copies of the trained weights before the first step and before each step, on the CPU."""

        def __init__(self) -> None:
            self.start: dict[str, Any] | None = None
            self.before: dict[str, Any] = {}
            self.facts: dict[str, float] = {}

        def weights(self) -> dict[str, Any]:
            """Return the weights that are trained."""
            model = trainer.accelerator.unwrap_model(trainer.model)
            return {name: w.detach().cpu() for name, w in model.named_parameters() if w.requires_grad}

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            """Remember the weights."""
            self.before = {name: weight.clone() for name, weight in self.weights().items()}
            if self.start is None:
                self.start = self.before

        def on_step_end(self, *_: Any, **__: Any) -> None:
            """Measure the step."""
            now = self.weights()
            assert self.start is not None
            self.facts = {"update_norm": distance(now, self.before), "task_vector_norm": distance(now, self.start)}

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **__: Any) -> None:
            """Write TRL's numbers with ours."""
            del args, control
            if state.is_world_process_zero and logs and "loss" in logs:
                numbers = {name: value for name, value in logs.items() if isinstance(value, (int, float))}
                settings.output_dir.mkdir(parents=True, exist_ok=True)
                append_line(settings.output_dir / "metrics.jsonl", {"step": state.global_step, **numbers, **self.facts})
                progress(f"step {state.global_step}/{settings.max_steps}")

    return Watcher()


def collect(settings: TrainSettings, tokenizer: Any) -> None:
    """Put TRL's checkpoints where the study looks for them; adapters are merged into the base."""
    for saved in sorted((settings.output_dir / "trl").glob("checkpoint-*")):
        step = int(saved.name.removeprefix("checkpoint-"))
        target = checkpoint(settings.output_dir, step)
        target.parent.mkdir(parents=True, exist_ok=True)
        if settings.use_peft:
            from peft import AutoPeftModelForCausalLM

            AutoPeftModelForCausalLM.from_pretrained(saved).merge_and_unload().save_pretrained(target)
            tokenizer.save_pretrained(target)
        else:
            for heavy in ("optimizer.pt", "scheduler.pt", "training_args.bin"):
                (saved / heavy).unlink(missing_ok=True)
            shutil.move(saved, target)
    shutil.rmtree(settings.output_dir / "trl", ignore_errors=True)
