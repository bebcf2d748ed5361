"""Ranking: put documents in order of a grade, best first; a "not" in the query turns the order round, as in NevIR."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from study.tasks.families import Item, Task

if TYPE_CHECKING:
    import random


class Ranking(Task):
    """Three documents with grades of ``level + 1`` digits; outside the domain there are four."""

    name = "rank"
    mark = "d"
    symbols = "123"

    def draw(self, rng: random.Random, domain: str) -> Item:
        """Draw different grades and a direction."""
        grades = rng.sample(range(10 ** (self.level + 1)), 4 if domain == "out" else 3)
        most = rng.random() < 0.5
        relevance = [grade if most else -grade for grade in grades]
        order = sorted(range(len(grades)), key=lambda at: -relevance[at])
        written = [str(grade).zfill(self.level + 1) for grade in grades]
        prompt = (
            f"r{'+' if most else '-'}{'|'.join(written)}:" if self.form == "compact" else self.english(most, grades)
        )
        return Item(
            self.name,
            domain,
            prompt,
            "".join(str(at + 1) for at in order),
            json.dumps(relevance),
            # The same documents in another order, or asked for the other way round, are the same question.
            "|".join(sorted(written)),
        )

    def english(self, most: bool, grades: list[int]) -> str:  # noqa: FBT001 - the direction is the subject
        """Ask in words."""
        listed = " ".join(f"({at}) {grade} visitors." for at, grade in enumerate(grades, start=1))
        wish = "I like busy museums" if most else "I do not like busy museums"
        return f"{wish}. {listed} List the numbers of the museums from best to worst."

    def judge(self, item: Item, answer: str) -> bool:
        """Every document once, the better before the worse."""
        if self.form == "english":
            answer = "".join(re.findall(r"\d+", answer))
        relevance = json.loads(item.proof)
        if sorted(answer) != [str(at) for at in range(1, len(relevance) + 1)]:
            return False
        ranked = [relevance[int(letter) - 1] for letter in answer]
        return all(before > after for before, after in zip(ranked, ranked[1:], strict=False))
