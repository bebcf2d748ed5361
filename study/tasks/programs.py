"""Code: write an expression in x that does the named steps, judged by running it on hidden inputs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from study.tasks.families import Item, Task
from study.tasks.sandbox import Call, shared_sandbox

if TYPE_CHECKING:
    import random

# The inputs are never shown; the fourth keeps constant answers from passing by luck.
HIDDEN_INPUTS = (0, 1, 5, -3, 17)
WORDS = {"+": "add {}", "-": "subtract {}", "*": "multiply by {}", "^": "subtract the result from {}"}


class Programs(Task):
    """Expressions of ``level + 1`` steps; outside the domain there is one step more."""

    name = "code"
    mark = "b"
    symbols = "0123456789x+-*()"
    many_lines = True  # it may come in a code fence

    def draw(self, rng: random.Random, domain: str) -> Item:
        """Draw a chain of steps."""
        count = self.level + (2 if domain == "out" else 1)
        if domain == "in" and rng.random() < 0.75:
            count += 1  # the short chains alone are too few to split
        elif domain == "out":
            count += 1
        steps = [(rng.choice("+-*^"), rng.randrange(2, 10)) for _ in range(count)]
        code = "".join(f"{op}{n}" for op, n in steps)
        if self.form == "compact":
            prompt = f"c{code}:"
        else:
            words = ", then ".join(WORDS[op].format(n) for op, n in steps)
            prompt = f"Start with x: {words}. Write it as one Python expression in x."
        outputs = [self.run(steps, x) for x in HIDDEN_INPUTS]
        return Item(self.name, domain, prompt, self.expression(steps), json.dumps(outputs), code)

    def run(self, steps: list[tuple[str, int]], x: int) -> int:
        """Do the steps."""
        for op, n in steps:
            x = {"+": x + n, "-": x - n, "*": x * n, "^": n - x}[op]
        return x

    def expression(self, steps: list[tuple[str, int]]) -> str:
        """Write the steps as an expression with no bracket that is not needed."""
        text, is_sum = "x", False
        for op, n in steps:
            if op == "*":
                text, is_sum = (f"({text})*{n}" if is_sum else f"{text}*{n}"), False
            elif op == "^":
                text, is_sum = (f"{n}-({text})" if is_sum else f"{n}-{text}"), True
            else:
                text, is_sum = f"{text}{op}{n}", True
        return text

    def judge(self, item: Item, answer: str) -> bool:
        """Run one answer."""
        return self.judge_all([(item, answer)])[0]

    def judge_all(self, pairs: list[tuple[Item, str]]) -> list[bool]:
        """Run the answers in the sandbox; the wanted outputs never enter it."""
        calls = [Call(f"def answer(x):\n    return ({self.code(text)}\n)", HIDDEN_INPUTS) for _, text in pairs]
        found = shared_sandbox().run(calls)
        return [outputs == json.loads(item.proof) for (item, _), outputs in zip(pairs, found, strict=True)]

    def code(self, text: str) -> str:
        """Take the expression out of an answer in English, which may come in a code fence."""
        if self.form == "compact":
            return text
        lines = [line.strip().removeprefix("return ") for line in text.replace("`", "\n").splitlines()]
        return next((line for line in lines if "x" in line and line != "python"), text)
