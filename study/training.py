"""Our own training loop: small, exact, and honest about what it applied to the weights.

It exists beside TRL's because the study needs what TRL does not log (the update that reached the weights) or does not
have (PPO, the hybrids). Batches are functions of the seed and the step, so a resumed run is the run that was stopped.
"""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.learners import make_learner
from study.records import append_line, hash_weights, read_json, read_lines, write_json, write_manifest

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from study.settings import TrainSettings


def train(settings: TrainSettings, progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Train one expert and write its folder.

    The folder holds the model after the last step, ``checkpoints/step-N`` every ``save_steps`` steps,
    ``metrics.jsonl`` with a line for each step, and ``manifest.json``.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    FileNotFoundError
        The base is not a model folder.
    ValueError
        The output folder is the base's own.
    FloatingPointError
        The loss was not finite; the checkpoints until then are kept.
    """
    import torch

    output, source = settings.output_dir, Path(settings.model_name_or_path)
    if output.resolve() == source.resolve():
        msg = f"output_dir {output} is the base itself: choose another folder"
        raise ValueError(msg)
    base_hash = hash_weights(source) if source.is_dir() else None
    finished = output / "manifest.json"
    if settings.resume_from_checkpoint and finished.exists():
        manifest: dict[str, Any] = read_json(finished)
        if manifest["settings"] == settings.model_dump(mode="json") and manifest["base_hash"] == base_hash:
            return manifest
    torch.manual_seed(settings.seed)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    started = time.process_time()
    model, tokenizer = load_model(settings)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    base = {name: weight.detach().clone() for name, weight in trained.items()}
    optimizer = torch.optim.AdamW(
        trained.values(),
        lr=settings.learning_rate,
        betas=(0.9, settings.adam_beta2),
        weight_decay=settings.weight_decay,
    )
    learner = make_learner(settings, model, tokenizer)
    step = restore(settings, base_hash, model, optimizer, learner)
    if step == 0:
        clear(output)
    rivals = [read_rival(folder, base) for folder in settings.rivals]
    while step < settings.max_steps:
        scale = min(1.0, (step + 1) / max(1, settings.warmup_steps))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * scale
        facts: dict[str, float] = {}
        before = {name: weight.detach().clone() for name, weight in trained.items()}
        for loss, found in learner.losses(step):
            if not torch.isfinite(loss):
                msg = f"step {step + 1}: the loss is {loss.item()}; a lower learning_rate or a longer warm-up may help"
                raise FloatingPointError(msg)
            optimizer.zero_grad()
            # No answer was right, or all were: the gradient is zero, but momentum still moves the weights.
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(trained.values(), settings.max_grad_norm)
            optimizer.step()
            learner.after_update(float(norm))
            facts |= {"loss": loss.item(), "grad_norm": float(norm), **found}
        step += 1
        facts["learning_rate"] = settings.learning_rate * scale
        facts["update_norm"] = distance(trained, before)
        facts["task_vector_norm"] = distance(trained, base)
        if not math.isfinite(facts["task_vector_norm"]):
            msg = f"step {step}: the weights are not finite; a lower learning_rate or a longer warm-up may help"
            raise FloatingPointError(msg)
        for folder, rival in zip(settings.rivals, rivals, strict=True):
            facts[f"conflict_norm/{folder.name}"] = conflict_with(trained, base, rival)
        append_line(output / "metrics.jsonl", {"step": step, "seconds": time.process_time() - started, **facts})
        if step % settings.save_steps == 0 or step == settings.max_steps:
            save_weights(model, tokenizer, checkpoint(output, step))
            if step < settings.max_steps:
                save_state(settings, base_hash, step, model, optimizer, learner)
            progress(f"step {step}/{settings.max_steps}")
    save_weights(model, tokenizer, output)
    shutil.rmtree(output / "resume", ignore_errors=True)
    return write_manifest(
        output,
        settings.model_dump(mode="json"),
        source,
        data=learner.facts(),
        seconds=round(time.process_time() - started, 2),
    )


def load_model(settings: TrainSettings) -> tuple[Any, Any]:
    """Load the base in the dtype of the training, on the GPU if there is one, with LoRA if asked for."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = getattr(torch, settings.dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(settings.model_name_or_path, dtype=dtype).to(device)
    tokenizer: Any = AutoTokenizer.from_pretrained(settings.model_name_or_path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if settings.use_peft:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=settings.lora_r, lora_alpha=settings.lora_alpha, target_modules="all-linear")
        model = get_peft_model(model, config)
    model.train()
    return model, tokenizer


# --- checkpoints ------------------------------------------------------------------------------------------------------


def checkpoint(folder: Path, step: int) -> Path:
    """Return the folder of a checkpoint."""
    return folder / "checkpoints" / f"step-{step:05d}"


def save_weights(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a folder that rlmerge and transformers open; LoRA weights are merged into a copy."""
    import copy

    whole = copy.deepcopy(model).merge_and_unload() if hasattr(model, "merge_and_unload") else model
    whole.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def clear(folder: Path) -> None:
    """Make the output folder, without what a run of other settings left in it; files of others stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("checkpoints", "resume"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("manifest.json", "metrics.jsonl"):
        (folder / name).unlink(missing_ok=True)


def save_state(
    settings: TrainSettings, base_hash: str | None, step: int, model: Any, optimizer: Any, learner: Any
) -> None:
    """Write what a resumed run needs; it is replaced whole each time."""
    import torch

    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "learner": learner.state()}
    resume = settings.output_dir / "resume"
    resume.mkdir(exist_ok=True)
    staged = resume / f"state-{step}.pt"
    torch.save(state, staged)
    told = {"step": step, "state": staged.name, "settings": settings.model_dump(mode="json"), "base_hash": base_hash}
    # The file that names the state is replaced last, so a kill at any moment leaves a whole state named.
    write_json(resume / "latest.json", told)
    for old in resume.glob("state-*.pt"):
        if old != staged:
            old.unlink()


def restore(settings: TrainSettings, base_hash: str | None, model: Any, optimizer: Any, learner: Any) -> int:
    """Load the state of a stopped run of the same settings and base; return the steps it had made."""
    import torch

    latest = settings.output_dir / "resume" / "latest.json"
    if not settings.resume_from_checkpoint or not latest.exists():
        return 0
    told = read_json(latest)
    if told["settings"] != settings.model_dump(mode="json") or told["base_hash"] != base_hash:
        return 0
    state = torch.load(latest.with_name(told["state"]), weights_only=False)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    learner.load_state(state["learner"])
    metrics = settings.output_dir / "metrics.jsonl"
    lines = [line for line in read_lines(metrics) if line["step"] <= told["step"]]
    metrics.unlink(missing_ok=True)
    for line in lines:
        append_line(metrics, line)
    return int(told["step"])


# --- norms ------------------------------------------------------------------------------------------------------------


def distance(now: dict[str, Any], then: dict[str, Tensor]) -> float:
    """Return the norm of the difference over all tensors: differences in f32, the sum in f64."""
    total = 0.0
    for name, weight in now.items():
        total += float((weight.detach().float() - then[name].float()).double().square().sum())
    return float(total**0.5)


def read_rival(folder: Path, base: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read the delta of another task's expert."""
    from safetensors.torch import load_file

    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return {
        name: found[name].to(weight.device).float() - weight.float() for name, weight in base.items() if name in found
    }


def conflict_with(now: dict[str, Any], base: dict[str, Tensor], rival: dict[str, Tensor]) -> float:
    """Return the paper's conflict norm with a rival: the norm of the negative part of the product of the deltas."""
    total = 0.0
    for name, delta in rival.items():
        product = (now[name].detach().float() - base[name].float()) * delta
        total += float(product.clamp(max=0).double().square().sum())
    return float(total**0.5)
