"""Instruction following: write a word that obeys every constraint, judged by checkers as in IFEval."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from study.tasks.families import Item, Task

if TYPE_CHECKING:
    import random

LETTERS = "abcdefghijkl"


class Instructions(Task):
    """Words of ``level + 2`` to ``level + 5`` letters; outside the domain, words one letter longer with a ban."""

    name = "instruct"
    mark = "7"
    symbols = LETTERS

    def draw(self, rng: random.Random, domain: str) -> Item:
        """Draw constraints and a word that obeys them."""
        shortest = self.level + 2
        rules: dict[str, Any] = {
            "length": shortest + 4 if domain == "out" else rng.randint(shortest, shortest + 3),
            "first": rng.choice(LETTERS),
            "last": rng.choice(LETTERS),
        }
        free = [letter for letter in LETTERS if letter not in (rules["first"], rules["last"])]
        rng.shuffle(free)
        if domain == "out" or rng.random() < 0.8:
            rules["holds"] = free[0]
        if domain == "out" or rng.random() < 0.5:
            rules["lacks"] = free[1]
        answer = self.obey(rules, rng)
        compact = f"i{rules['length']}^{rules['first']}${rules['last']}"
        compact += "".join(f"{mark}{rules[rule]}" for rule, mark in (("holds", "+"), ("lacks", "-")) if rule in rules)
        return Item(
            self.name,
            domain,
            f"{compact}:" if self.form == "compact" else self.english(rules),
            answer,
            json.dumps(rules),
            compact,
        )

    def obey(self, rules: dict[str, Any], rng: random.Random) -> str:
        """Write a word that obeys the rules."""
        allowed = [letter for letter in LETTERS if letter != rules.get("lacks")]
        middle = [rng.choice(allowed) for _ in range(rules["length"] - 2)]
        if "holds" in rules and rules["holds"] not in middle:
            middle[rng.randrange(len(middle))] = rules["holds"]
        return f"{rules['first']}{''.join(middle)}{rules['last']}"

    def english(self, rules: dict[str, Any]) -> str:
        """Say the rules in words."""
        text = f"Write {rules['length']} letters without spaces. Start with {rules['first']}. End with {rules['last']}."
        if "holds" in rules:
            text += f" Use the letter {rules['holds']}."
        if "lacks" in rules:
            text += f" Do not use the letter {rules['lacks']}."
        return text

    def judge(self, item: Item, answer: str) -> bool:
        """Check every rule; a word that breaks one is wrong."""
        word = answer.strip().strip('."').lower() if self.form == "english" else answer
        if re.fullmatch(r"[a-z]+" if self.form == "english" else f"[{LETTERS}]+", word) is None:
            return False
        rules = json.loads(item.proof)
        return (
            len(word) == rules["length"]
            and word[0] == rules["first"]
            and word[-1] == rules["last"]
            and ("holds" not in rules or rules["holds"] in word)
            and ("lacks" not in rules or rules["lacks"] not in word)
        )
