"""What a training run is told: one model of settings for all training scripts, with TRL's names where TRL has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Algorithm = Literal["sft", "iw-sft", "rft", "rl", "reft", "chord", "sasr", "ppo"]
# Settings that each algorithm cannot do without or must not be given, said once for the checks below.
SAMPLING = ("rl", "reft", "chord", "sasr", "ppo")


class SettingsError(ValueError):
    """The settings are wrong; the message says which and what to do."""


class TrainSettings(BaseModel):
    """Settings of one training run."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    algorithm: Algorithm
    model_name_or_path: str
    output_dir: Path

    # The task, and how its questions are put.
    task: str
    form: Literal["compact", "english"] = "compact"
    level: int = Field(default=1, ge=1)
    dataset_name: str | None = None  # a real data set by name instead of the generator
    train_items: int = Field(default=2000, ge=1)
    style: Literal["plain", "second", "foreign"] = "plain"  # of gold answers

    # Training. Warm-up is linear, and the rate is constant after it: a decay would hide that steps differ.
    engine: Literal["own", "trl"] = "own"
    seed: int = Field(default=0, ge=0)
    max_steps: int = Field(default=30, ge=1)
    learning_rate: float = Field(default=5e-5, gt=0)
    warmup_steps: int = Field(default=10, ge=0)
    per_device_train_batch_size: int = Field(default=128, ge=1)  # sequences, as in TRL
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    adam_beta2: float = Field(default=0.999, gt=0, lt=1)
    dtype: Literal["float32", "bfloat16"] = "float32"  # of weights and optimizer states alike
    gradient_checkpointing: bool = False
    use_peft: bool = False
    lora_r: int = Field(default=16, ge=1)
    lora_alpha: int = Field(default=32, ge=1)

    # Sampling, for everything that learns from its own answers.
    num_generations: int = Field(default=8, ge=2)
    max_completion_length: int = Field(default=20, ge=1)
    temperature: float = Field(default=1.0, gt=0)

    # Reinforcement learning.
    advantage: Literal["grpo", "dr_grpo", "rloo", "reinforce++"] = "grpo"
    positives_only: bool = False  # negative advantages become 0
    nu: float = Field(default=0.0, ge=0, le=1)  # share of groups sampled from the base instead of the policy
    importance: Literal["none", "clip"] = "none"  # what is done about samples that are not the policy's own
    epsilon: float = Field(default=0.2, gt=0)  # clip range of the ratio
    beta: float = Field(default=0.0, ge=0)  # weight of the KL penalty towards the base
    num_iterations: int = Field(default=1, ge=1)  # updates on each batch of samples

    # Rejection-sampling fine-tuning.
    rft_samples: int = Field(default=4, ge=1)  # of the base, for each question

    # Hybrids.
    sft_share: float = Field(default=0.3, ge=0, le=1)  # reft: of the steps, at the start
    mu_start: float = Field(default=0.9, ge=0, le=1)  # chord: weight of the SFT loss, falling in a line
    mu_end: float = Field(default=0.05, ge=0, le=1)
    weight_clip: float = Field(default=5.0, gt=1)  # iw-sft: importance weights stay within 1/clip .. clip

    # PPO.
    value_learning_rate: float = Field(default=1e-3, gt=0)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)

    # Records.
    save_steps: int = Field(default=5, ge=1)
    resume_from_checkpoint: bool = True
    report_to: list[str] = Field(default_factory=list)  # TRL's engine only: wandb, tensorboard, trackio, ...
    rivals: list[Path] = Field(default_factory=list)  # experts of other tasks: the conflict norm with each is logged

    @model_validator(mode="after")
    def check_together(self) -> TrainSettings:
        """Refuse settings that do not fit each other."""
        if self.algorithm in SAMPLING and self.per_device_train_batch_size % self.num_generations:
            msg = (
                f"per_device_train_batch_size {self.per_device_train_batch_size} counts completions and has to be a "
                f"multiple of num_generations {self.num_generations}"
            )
            raise ValueError(msg)
        if self.engine == "trl" and self.algorithm not in ("sft", "rft", "rl"):
            msg = f"TRL has no trainer for {self.algorithm}: leave `engine` at own"
            raise ValueError(msg)
        if self.engine == "own" and self.report_to:
            msg = "report_to needs engine: trl; our own trainers write metrics.jsonl"
            raise ValueError(msg)
        if self.engine == "own" and self.dataset_name is not None:
            msg = "dataset_name needs engine: trl; our own trainers draw from the generators"
            raise ValueError(msg)
        return self


def read_settings(algorithms: tuple[str, ...], config: Path | None, overrides: list[str]) -> TrainSettings:
    """Read settings from a YAML file and ``name=value`` overrides; the overrides win.

    Raises
    ------
    SettingsError
        A name or a value is wrong.
    """
    given: dict[str, Any] = read_yaml(config) if config is not None else {}
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            msg = f"`{text}`: write overrides as name=value"
            raise SettingsError(msg)
        given[name.lstrip("-").replace("-", "_")] = parse_value(value)
    given.setdefault("algorithm", algorithms[0])
    if given["algorithm"] not in algorithms:
        msg = f"this script trains with {', '.join(algorithms)}, not with {given['algorithm']}"
        raise SettingsError(msg)
    try:
        return TrainSettings.model_validate(given)
    except ValidationError as error:
        raise SettingsError(explain(error, str(config or "command line"))) from None


def explain(error: ValidationError, source: str) -> str:
    """Put a validation error into a line for each problem."""
    lines = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"]) or "settings"
        lines.append(f"{source}: {place}: {problem['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; YAML 1.2, so that ``5e-5`` is a number and keys are not given twice."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        data = YAML(typ="safe", pure=True).load(path)
    except FileNotFoundError:
        msg = f"{path}: no such file"
        raise SettingsError(msg) from None
    except YAMLError as error:
        msg = f"{path}: {error}"
        raise SettingsError(msg) from None
    if not isinstance(data, dict):
        msg = f"{path}: a mapping of names to values is wanted"
        raise SettingsError(msg)
    return data


def parse_value(text: str) -> Any:
    """Read the value of an override as YAML would: ``5e-5``, ``true``, ``[a, b]``, or a word."""
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).load(text)
