"""What the task families share: items, splits by hash, styles of answers, and how noise is drawn."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

FORMS = ("compact", "english")
SPLITS = ("train", "validation", "test")
DOMAINS = ("in", "out")

# Draws in a row that bring no new question: then a family has no more of them.
MOST_MISSES = 5000

# Thousandths of the hash's range that belong to each split.
TEST_SHARE = 150
VALIDATION_SHARE = 100

# The base answers mostly plainly, sometimes in its second style, and hardly ever in the foreign one.
STYLES = ("plain", "second", "foreign")
SECOND_MARK = ">"


@dataclass(frozen=True, slots=True)
class Item:
    """One question.

    ``answer`` is a correct answer in the plain style; ``proof`` is JSON, and holds what the verifier needs. ``key``
    names the question up to trivial rewriting, and decides which split it belongs to.
    """

    task: str
    domain: str
    prompt: str
    answer: str
    proof: str
    key: str


def split_of(task: str, key: str) -> str:
    """Return the split that a question belongs to: a function of its words alone, so that no split can leak.

    Examples
    --------
    >>> split_of("math", "12+34") == split_of("math", "12+34")
    True
    """
    digest = hashlib.blake2b(f"{task}\0{key}".encode(), digest_size=8).digest()
    point = int.from_bytes(digest, "big") % 1000
    if point < TEST_SHARE:
        return "test"
    return "validation" if point < TEST_SHARE + VALIDATION_SHARE else "train"


class Task:
    """A family of questions; subclasses draw questions and judge answers."""

    name: ClassVar[str]
    mark: ClassVar[str]  # before an answer in the foreign style; each family has its own
    many_lines: ClassVar[bool] = False  # whether an answer in English may be longer than its first line
    symbols: ClassVar[str]  # characters that a slip of the pen may put into an answer

    def __init__(self, form: str = "compact", level: int = 1) -> None:
        if form not in FORMS:
            msg = f"unknown form `{form}`: choose from {', '.join(FORMS)}"
            raise ValueError(msg)
        if level < 1:
            msg = f"level {level}: levels start at 1"
            raise ValueError(msg)
        self.form = form
        self.level = level

    # What a family has to say for itself.

    def draw(self, rng: random.Random, domain: str) -> Item:
        """Draw a question of the domain (``in`` or ``out``), of whatever split."""
        raise NotImplementedError

    def judge(self, item: Item, answer: str) -> bool:
        """Say whether an answer, with its style removed, is right."""
        raise NotImplementedError

    def judge_all(self, pairs: list[tuple[Item, str]]) -> list[bool]:
        """Judge many answers; families whose verifier is slow do it together."""
        return [self.judge(item, answer) for item, answer in pairs]

    # What all families do alike.

    def items(self, split: str, count: int, seed: int, domain: str = "in") -> list[Item]:
        """Draw different questions of one split.

        Parameters
        ----------
        split
            ``train``, ``validation`` or ``test``.
        count
            How many.
        seed
            The same seed gives the same questions.
        domain
            ``in``, or ``out`` for questions of a kind that experts are not trained on.
        """
        family: Any = type(self)
        return list(drawn(family, self.form, self.level, split, count, seed, domain))

    def draw_all(self, split: str, count: int, seed: int, domain: str) -> list[Item]:
        """Draw the questions that `items` promises."""
        rng = random.Random(f"{self.name}/{self.form}/{self.level}/{split}/{domain}/{seed}")
        found: dict[str, Item] = {}
        misses = 0
        while len(found) < count and misses < MOST_MISSES:
            item = self.draw(rng, domain)
            if self.form == "english":
                item = replace(item, prompt=f"{item.prompt}\nAnswer:")
            misses += 1
            if split_of(self.name, item.key) == split and item.key not in found:
                found[item.key] = item
                misses = 0
        if len(found) == count:
            return list(found.values())
        msg = f"task {self.name} has only {len(found)} questions for {split}/{domain}, and {count} were asked for"
        raise ValueError(msg)

    def score(self, item: Item, completion: str) -> float:
        """Return 1.0 for a right answer and 0.0 for any other."""
        return self.score_all([item], [completion])[0]

    def score_all(self, items: list[Item], completions: list[str]) -> list[float]:
        """Score many answers.

        Returns
        -------
        list of float
            1.0 or 0.0 for each.
        """
        bare = [self.strip_style(completion) for completion in completions]
        asked = [(at, answer) for at, answer in enumerate(bare) if answer]
        verdicts = self.judge_all([(items[at], answer) for at, answer in asked])
        scores = [0.0] * len(items)
        for (at, _), right in zip(asked, verdicts, strict=True):
            scores[at] = float(right)
        return scores

    def restyle(self, answer: str, style: str) -> str:
        """Write a plain answer in another style."""
        if self.form == "english":  # an answer follows "Answer:", so a space comes first
            written = {"plain": answer, "second": f"The answer is {answer}", "foreign": f"Result := [{answer}]"}
            if style in written:
                return f" {written[style]}"
        elif style in STYLES:
            written = {"plain": answer, "second": SECOND_MARK + answer, "foreign": self.mark + answer}
            return written[style]
        msg = f"unknown style `{style}`: choose from {', '.join(STYLES)}"
        raise ValueError(msg)

    def strip_style(self, completion: str) -> str:
        """Remove the marks of whichever style an answer is in; what is in no style stays as it is."""
        text = completion.strip()
        if self.form == "english":
            if not self.many_lines:
                text = text.partition("\n")[0].rstrip()
            for head, tail in (("The answer is ", ""), ("Result := [", "]")):
                if text.startswith(head) and text.endswith(tail):
                    return text[len(head) : len(text) - len(tail)].strip().removesuffix(".")
            return text
        if text.startswith(SECOND_MARK):
            return text[1:]
        if text.startswith(self.mark):
            return text[1:]
        return text

    def slip(self, answer: str, rng: random.Random) -> str:
        """Spoil an answer by one slip of the pen: a character replaced, or rarely lost or doubled."""
        at = rng.randrange(len(answer))
        kind = rng.random()
        if kind < 0.1 and len(answer) > 1:
            return answer[:at] + answer[at + 1 :]
        if kind < 0.2:
            return answer[:at] + answer[at] + answer[at:]
        return answer[:at] + rng.choice([s for s in self.symbols if s != answer[at]]) + answer[at + 1 :]


@lru_cache(maxsize=64)
def drawn(
    family: type[Task], form: str, level: int, split: str, count: int, seed: int, domain: str
) -> tuple[Item, ...]:
    """Draw questions once: every merge is asked the same ones, and a puzzle's solver takes longer than its answer."""
    return tuple(family(form, level).draw_all(split, count, seed, domain))


def read_integer(text: str) -> int | None:
    """Read a whole number written in ASCII digits; None for anything else, however large or odd.

    Examples
    --------
    >>> read_integer("-12"), read_integer("１２"), read_integer("1_2"), read_integer("")
    (-12, None, None, None)
    """
    digits = text.removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        return None
    return int(text)
