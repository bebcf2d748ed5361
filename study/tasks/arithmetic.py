"""Math: sums, judged by the value of the final answer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from study.tasks.families import Item, Task, read_integer

if TYPE_CHECKING:
    import random

LAST_NUMBER = re.compile(r"-?\d[\d,]*")


class Arithmetic(Task):
    """Sums of two numbers of ``level + 1`` digits; outside the domain a third number of one digit comes in.

    The compact form pads numbers with zeros and writes answers from the units up: character models learn to carry in
    that direction with far fewer examples (Lee et al., "Teaching arithmetic to small transformers", 2307.03381).
    """

    name = "math"
    mark = "a"
    symbols = "0123456789"

    def draw(self, rng: random.Random, domain: str) -> Item:
        """Draw a sum."""
        top = 10 ** (self.level + 1)
        numbers = [rng.randrange(top), rng.randrange(top)]
        signs = ["", "+"]
        if domain == "out":
            numbers.append(rng.randrange(10))
            signs.append("+")
        total = sum(numbers)
        if self.form == "compact":
            widths = [self.level + 1, self.level + 1, 1]
            padded = [s + str(n).zfill(w) for s, n, w in zip(signs, numbers, widths, strict=False)]
            prompt = f"m{''.join(padded)}:"
            answer = str(total).zfill(self.level + 1)[::-1]
        else:
            prompt = f"What is {' '.join(f'{s} {n}' for s, n in zip(signs, numbers, strict=True)).strip()}?"
            answer = str(total)
        # 3+4 and 4+3 are one question, so both fall into the same split.
        return Item(self.name, domain, prompt, answer, str(total), f"{sorted(numbers[:2])}{numbers[2:]}")

    def judge(self, item: Item, answer: str) -> bool:
        """Compare the value; in English the last number of the answer counts."""
        wanted = int(item.proof)
        if self.form == "english":
            found = LAST_NUMBER.findall(answer)
            return bool(found) and read_integer(found[-1].replace(",", "")) == wanted
        return "-" not in answer and read_integer(answer[::-1]) == wanted
