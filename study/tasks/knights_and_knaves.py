"""Puzzle: Knights and Knaves, with a solver that proves that each puzzle has one solution.

Everybody is a knight, who only tells the truth, or a knave, who only lies. Statements are formulas:
``["is", person, knight?]``, ``["same", a, b]``, ``["not", f]``, ``["and", f, g]``, ``["or", f, g]``,
``["if", f, g]``.
"""

from __future__ import annotations

import json
import re
from itertools import product
from typing import TYPE_CHECKING, Any

from study.tasks.families import Item, Task

if TYPE_CHECKING:
    import random

Formula = list[Any]
KINDS = "-+"  # knave, knight
NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gwen", "Hugo")


def holds(formula: Formula, world: tuple[bool, ...]) -> bool:
    """Say whether a formula is true where ``world[i]`` says that person i is a knight."""
    head, *rest = formula
    if head == "is":
        return bool(world[rest[0]] == rest[1])
    if head == "same":
        return world[rest[0]] == world[rest[1]]
    if head == "not":
        return not holds(rest[0], world)
    left, right = (holds(part, world) for part in rest)
    return {"and": left and right, "or": left or right, "if": right or not left}[head]


def solve(statements: list[Formula]) -> list[tuple[bool, ...]]:
    """Return every solution, by trying all 2**n worlds: more than one, or none, is for the caller to refuse.

    Examples
    --------
    >>> solve([["same", 0, 1], ["is", 0, False]])  # A: we are of one kind. B: A is a knave.
    [(False, True)]
    >>> solve([["is", 0, False]])  # A: I am a knave.
    []
    """
    worlds = product((False, True), repeat=len(statements))
    return [w for w in worlds if all(holds(s, w) == w[speaker] for speaker, s in enumerate(statements))]


class KnightsAndKnaves(Task):
    """Puzzles of ``level + 2`` people; outside the domain there is one more."""

    name = "puzzle"
    mark = "c"
    symbols = KINDS

    def draw(self, rng: random.Random, domain: str) -> Item:
        """Draw statements until they have exactly one solution."""
        people = self.level + 2 + (domain == "out")
        while True:
            statements = [self.statement(rng, speaker, people) for speaker in range(people)]
            solutions = solve(statements)
            if len(solutions) == 1:
                break
        answer = "".join(KINDS[knight] for knight in solutions[0])
        compact = ",".join(self.compact(s) for s in statements)
        if self.form == "compact":
            prompt = f"p{compact}:"
        else:
            prompt = self.english(statements)
            answer = ", ".join(f"{NAMES[i]} is a {self.kind(k)}" for i, k in enumerate(solutions[0]))
        return Item(self.name, domain, prompt, answer, json.dumps(statements), compact)

    def statement(self, rng: random.Random, speaker: int, people: int) -> Formula:
        """Draw what one person says; never only about himself, which would say nothing."""
        others = [person for person in range(people) if person != speaker]
        rng.shuffle(others)
        shape = rng.random()
        first: Formula = ["is", others[0], rng.random() < 0.5]
        if shape < 0.45:
            return first
        if shape < 0.9:
            # "X and I are of one kind" settles X whoever speaks: these are the footholds of a puzzle.
            same: Formula = ["same", speaker, others[0]]
            return same if rng.random() < 0.5 else ["not", same]
        second: Formula = ["is", others[1] if len(others) > 1 else speaker, rng.random() < 0.5]
        return [rng.choice(["and", "or"]), first, second]

    def compact(self, formula: Formula) -> str:
        """Write a formula in a few characters: ``b+``, ``a=b``, ``a/b``, ``b+&c-``, ``b+|c-``."""
        head, *rest = formula
        if head == "is":
            return "abcdefgh"[rest[0]] + KINDS[rest[1]]
        if head == "same":
            return "=".join("abcdefgh"[p] for p in rest)
        if head == "not":
            return self.compact(rest[0]).replace("=", "/")
        return {"and": "&", "or": "|"}[head].join(self.compact(part) for part in rest)

    def english(self, statements: list[Formula]) -> str:
        """Tell the puzzle in words."""
        told = [f'{NAMES[i]} says: "{self.words(s)}."' for i, s in enumerate(statements)]
        return f"Knights always tell the truth and knaves always lie. {' '.join(told)} Who is a knight, who is a knave?"

    def words(self, formula: Formula) -> str:
        """Put a formula into words."""
        head, *rest = formula
        if head == "is":
            return f"{NAMES[rest[0]]} is a {self.kind(rest[1])}"
        if head == "same":
            return f"{NAMES[rest[0]]} and {NAMES[rest[1]]} are of the same kind"
        if head == "not":
            return f"It is not true that {self.words(rest[0])}"
        return f" {head} ".join(self.words(part) for part in rest)

    @staticmethod
    def kind(knight: bool) -> str:  # noqa: FBT001 - who is what is the subject here
        """Name the kind."""
        return "knight" if knight else "knave"

    def judge(self, item: Item, answer: str) -> bool:
        """Check the answer against the statements themselves, not against a stored solution."""
        statements = json.loads(item.proof)
        if self.form == "english":
            told = re.findall(r"\b([A-Z][a-z]+) is a (knight|knave)\b", answer)
            said = dict(told)
            if len(told) != len(said) or set(said) != set(NAMES[: len(statements)]):
                return False  # somebody is missing, or is called both
            world = tuple(said[name] == "knight" for name in NAMES[: len(statements)])
        else:
            if len(answer) != len(statements) or any(letter not in KINDS for letter in answer):
                return False
            world = tuple(letter == "+" for letter in answer)
        return all(holds(s, world) == world[speaker] for speaker, s in enumerate(statements))
