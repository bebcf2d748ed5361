"""Reward functions in the form that TRL takes, importable by dotted path: ``study.tasks.rewards.verified``.

TRL calls them with the completions and every column of the data set, one value for each completion.
"""

from __future__ import annotations

from typing import Any

from study.tasks import Item, find_task
from study.tasks.real import judge_real


def words_of(completion: str | list[dict[str, str]]) -> str:
    """Return the text of a completion, plain or conversational."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def verified(
    prompts: list[Any],
    completions: list[Any],
    task: list[str],
    answer: list[str],
    proof: list[str],
    form: list[str] | None = None,
    level: list[int] | None = None,
    **columns: Any,
) -> list[float]:
    """Reward 1.0 for answers that the task's verifier accepts and 0.0 for others."""
    del columns
    rewards = [0.0] * len(completions)
    groups: dict[tuple[str, str, int], list[int]] = {}
    for at, name in enumerate(task):
        groups.setdefault((name, form[at] if form else "real", level[at] if level else 1), []).append(at)
    for (name, kind, hard), places in groups.items():
        told = [words_of(completions[at]) for at in places]
        if kind == "real":
            scores = judge_real(name, [(answer[at], proof[at]) for at in places], told)
        else:
            items = [Item(name, "in", str(prompts[at]), answer[at], proof[at], "") for at in places]
            scores = find_task(name, kind, hard).score_all(items, told)
        for at, score in zip(places, scores, strict=True):
            rewards[at] = score
    return rewards
