"""The configuration of a whole study: what `run.py` reads, checked before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from study.arms import ARMS
from study.pretrain import PretrainSettings
from study.settings import SettingsError, TrainSettings, explain, read_yaml
from study.tasks import TASKS

COMPARISONS = ("equal_steps", "equal_accuracy", "equal_norm")


class Evaluation(BaseModel):
    """How much is asked of each model."""

    model_config = ConfigDict(extra="forbid")

    test_items: int = Field(default=200, ge=10)
    out_items: int = Field(default=100, ge=10)
    validation_items: int = Field(default=100, ge=10)
    limit: int = Field(default=20, ge=1)  # most tokens of an answer
    batch: int = Field(default=256, ge=1)


class Merging(BaseModel):
    """Which merges are made, and between which parameters validation chooses."""

    model_config = ConfigDict(extra="forbid")

    methods: list[str] | None = None  # at equal steps; every method that needs no extra data unless given
    method_arms: list[str] | None = None  # the arms on which all of them are tried; all arms unless given
    # In matched comparisons, and at equal steps on the other arms.
    matched_methods: list[str] = Field(default_factory=lambda: ["linear", "task_arithmetic", "ties"])
    comparisons: list[Literal["equal_steps", "equal_accuracy", "equal_norm"]] = Field(
        default_factory=lambda: list(COMPARISONS)  # type: ignore[arg-type]
    )
    lambdas: list[float] = Field(default_factory=lambda: [0.4, 0.7, 1.0, 1.4])
    densities: list[float] = Field(default_factory=lambda: [0.2, 0.5, 0.8])
    tuning_pairs: int = Field(default=3, ge=1)  # pairs on whose validation items parameters are chosen
    all_together: bool = True  # also merge the experts of all tasks


class Landscape(BaseModel):
    """Lines and planes around the experts."""

    model_config = ConfigDict(extra="forbid")

    arms: list[str] = Field(default_factory=lambda: ["sft", "grpo"])
    random_directions: int = Field(default=5, ge=5)
    distances: list[float] = Field(default_factory=lambda: [0.5, 1.0, 1.5, 2.0])  # in norms of the other delta
    plane: list[float] = Field(default_factory=lambda: [0.0, 0.5, 1.0, 1.5])  # empty: no plane
    items: int = Field(default=100, ge=10)


class StudyConfig(BaseModel):
    """A study from the base to the page."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    meaning: str = ""
    workers: int = Field(default=2, ge=1)
    seeds: list[int] = Field(default_factory=lambda: [0, 1, 2], min_length=1)
    tasks: list[str] = Field(default_factory=lambda: list(TASKS), min_length=2)
    arms: list[str] = Field(min_length=1)
    reference: str = "grpo"  # whose norms and gains the matched comparisons aim at
    base: str | None = None  # a model folder or hub id instead of pretraining
    form: Literal["compact", "english"] = "compact"
    level: int = Field(default=1, ge=1)
    pretrain: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    overrides: dict[str, dict[str, Any]] = Field(default_factory=dict)  # settings of single arms
    evaluation: Evaluation = Field(default_factory=lambda: Evaluation())
    merging: Merging = Field(default_factory=lambda: Merging())
    landscape: Landscape = Field(default_factory=lambda: Landscape())
    keep_checkpoints: bool = True

    @model_validator(mode="after")
    def check_names(self) -> StudyConfig:
        """Refuse names that nothing has, and settings that no run could use."""
        for what, given, known in (
            ("task", self.tasks, TASKS),
            (
                "arm",
                [*self.arms, *self.overrides, self.reference, *self.landscape.arms, *(self.merging.method_arms or [])],
                ARMS,
            ),
        ):
            for name in given:
                if name not in known:
                    msg = f"unknown {what} `{name}`: choose from {', '.join(known)}"
                    raise ValueError(msg)
        if self.reference not in self.arms:
            msg = f"reference `{self.reference}` is not among the arms"
            raise ValueError(msg)
        if len(set(self.arms)) < len(self.arms) or len(set(self.tasks)) < len(self.tasks):
            msg = "an arm or a task is named twice"
            raise ValueError(msg)
        if self.base is not None and self.pretrain:
            msg = "`base` and `pretrain` exclude each other: give one"
            raise ValueError(msg)
        if self.base is None and self.form != "compact":
            msg = "a base pretrained here knows characters only: form has to be compact"
            raise ValueError(msg)
        for arm in self.arms:
            self.training(arm, self.tasks[0], self.seeds[0], Path("base"), Path("out"))
        if self.base is None:
            self.pretraining(0, Path("out"))
        return self

    def training(self, arm: str, task: str, seed: int, base: Path | str, output: Path) -> TrainSettings:
        """Resolve the settings of one expert."""
        return TrainSettings.model_validate(
            {
                "form": self.form,
                "level": self.level,
                "max_completion_length": self.evaluation.limit,
                **self.train,
                **ARMS[arm].settings,
                **self.overrides.get(arm, {}),
                "task": task,
                "seed": seed,
                "model_name_or_path": str(base),
                "output_dir": output,
            }
        )

    def pretraining(self, seed: int, output: Path) -> PretrainSettings:
        """Resolve the settings of one base."""
        return PretrainSettings.model_validate(
            {"level": self.level, **self.pretrain, "seed": seed, "output_dir": output}
        )


def load_config(path: Path) -> StudyConfig:
    """Read and check a configuration.

    Raises
    ------
    SettingsError
        Something in it is wrong; the message says where.
    """
    try:
        return StudyConfig.model_validate(read_yaml(path))
    except ValidationError as error:
        raise SettingsError(explain(error, str(path))) from None
