"""Five families of tasks, each with a generator, a verifier, and splits that cannot leak.

Examples
--------
>>> task = find_task("math")
>>> item = task.items("test", 1, seed=0)[0]
>>> task.score(item, item.answer)
1.0
"""

from __future__ import annotations

from study.tasks.arithmetic import Arithmetic
from study.tasks.families import Item, Task, split_of
from study.tasks.instructions import Instructions
from study.tasks.knights_and_knaves import KnightsAndKnaves
from study.tasks.programs import Programs
from study.tasks.ranking import Ranking

__all__ = ["TASKS", "Item", "Task", "find_task", "split_of"]

TASKS: dict[str, type[Task]] = {
    kind.name: kind for kind in (Arithmetic, Programs, Instructions, KnightsAndKnaves, Ranking)
}


def find_task(name: str, form: str = "compact", level: int = 1) -> Task:
    """Make the task of this name.

    Parameters
    ----------
    name
        ``math``, ``code``, ``instruct``, ``puzzle`` or ``rank``.
    form
        ``compact`` for character-level models, ``english`` for pretrained ones.
    level
        Difficulty, from 1.

    Raises
    ------
    ValueError
        No task has this name.
    """
    if name not in TASKS:
        msg = f"unknown task `{name}`: choose from {', '.join(TASKS)}"
        raise ValueError(msg)
    return TASKS[name](form=form, level=level)
