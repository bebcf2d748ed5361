"""The arms of the study: what each trains with, what it is for, and whether it learns from rewards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of training an expert."""

    name: str
    family: str  # sft, rl or hybrid: what the page groups by
    meaning: str
    settings: dict[str, Any] = field(default_factory=dict)


def _table(*arms: Arm) -> dict[str, Arm]:
    return {arm.name: arm for arm in arms}


ARMS = _table(
    Arm("sft", "sft", "gold answers in the base's style", {"algorithm": "sft"}),
    Arm(
        "sft-offstyle",
        "sft",
        "right answers in a style that the base hardly uses",
        {"algorithm": "sft", "style": "foreign"},
    ),
    Arm("rft", "sft", "the base's own right answers", {"algorithm": "rft"}),
    Arm("grpo", "rl", "on-policy, advantage within the group", {"algorithm": "rl", "advantage": "grpo"}),
    Arm("grpo-pos", "rl", "GRPO, negative advantages set to 0", {"algorithm": "rl", "positives_only": True}),
    Arm("grpo-offpolicy", "rl", "GRPO on samples of the base", {"algorithm": "rl", "nu": 1.0}),
    Arm("grpo-offpolicy-half", "rl", "GRPO, half of the groups from the base", {"algorithm": "rl", "nu": 0.5}),
    Arm("dr-grpo", "rl", "no division by deviation or length", {"algorithm": "rl", "advantage": "dr_grpo"}),
    Arm("rloo", "rl", "leave-one-out baseline", {"algorithm": "rl", "advantage": "rloo"}),
    Arm("reinforce++", "rl", "advantage within the batch", {"algorithm": "rl", "advantage": "reinforce++"}),
    Arm("ppo", "rl", "a critic, two updates a batch", {"algorithm": "ppo", "num_iterations": 2}),
    Arm("reft", "hybrid", "SFT, then GRPO", {"algorithm": "reft"}),
    Arm("iw-sft", "hybrid", "importance-weighted SFT", {"algorithm": "iw-sft"}),
    Arm("chord", "hybrid", "both losses, SFT's weight falling", {"algorithm": "chord"}),
    Arm("sasr", "hybrid", "SFT or RL by their gradient norms", {"algorithm": "sasr"}),
    Arm("sft-bf16", "sft", "SFT with bf16 weights and states", {"algorithm": "sft", "dtype": "bfloat16"}),
    Arm("grpo-bf16", "rl", "GRPO with bf16 weights and states", {"algorithm": "rl", "dtype": "bfloat16"}),
)
