"""Generators, splits and verifiers of the five tasks; needs no torch."""

import json
import random

import pytest
from study.tasks import TASKS, families, find_task, split_of
from study.tasks.families import FORMS, STYLES, read_integer
from study.tasks.knights_and_knaves import solve

ALL = [(name, form) for name in TASKS for form in FORMS]


@pytest.fixture(params=ALL, ids="-".join)
def task(request):
    name, form = request.param
    return find_task(name, form)


@pytest.mark.parametrize("domain", ["in", "out"])
def test_splits_share_no_question(task, domain):
    keys = {split: {i.key for i in task.items(split, 60, 0, domain)} for split in ("train", "validation", "test")}
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["validation"]
    assert not keys["validation"] & keys["test"]
    for split, found in keys.items():
        assert {split_of(task.name, key) for key in found} == {split}


@pytest.mark.parametrize("level", [1, 2])
def test_no_seed_leads_from_training_into_test(task, level):
    other = find_task(task.name, task.form, level)
    test = {item.prompt for item in other.items("test", 60, 0)}
    for seed in range(3):
        assert not test & {item.prompt for item in other.items("train", 200, seed)}


@pytest.mark.parametrize("name", TASKS)
def test_no_question_of_a_test_is_ever_trained_on(name):
    """What tiny-cpu trains on, pretraining included, against everything that it asks."""
    task = find_task(name)
    asked = {
        split_item.prompt
        for split, count in (("test", 160), ("validation", 100))
        for domain in ("in", "out")
        for split_item in task.items(split, count if domain == "in" else 100, 0, domain)
    }
    for seed, domain in ((0, "in"), (0, "out"), (1, "in"), (2, "in")):
        items = task.items("train", 800, seed, domain)
        assert not {item.prompt for item in items} & asked
        assert {split_of(name, item.key) for item in items} == {"train"}


def test_the_same_seed_gives_the_same_questions(task):
    assert task.items("train", 20, 3) == task.items("train", 20, 3)
    assert task.items("train", 20, 3) != task.items("train", 20, 4)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("domain", ["in", "out"])
def test_gold_answers_are_right_in_every_style(task, style, domain):
    items = task.items("train", 30, 0, domain)
    assert task.score_all(items, [task.restyle(item.answer, style) for item in items]) == [1.0] * 30


@pytest.mark.parametrize(
    "answer", ["", " ", "\n", "?", "x" * 500, ">", ">>", "\0", "é", "١٢", "_", "~~~", "-", "0" * 300]
)
def test_nonsense_is_wrong(task, answer):
    item = task.items("test", 1, 0)[0]
    assert task.score(item, answer) == 0.0


def test_answers_of_other_questions_are_mostly_wrong(task):
    items = task.items("train", 60, 0)
    shifted = [*items[1:], items[0]]
    # Ranks and puzzles have six and eight answers, so chance is right now and then.
    assert sum(task.score_all(items, [other.answer for other in shifted])) <= 30


def test_halves_of_answers_are_wrong():
    for name in TASKS:
        task = find_task(name)
        for item in task.items("train", 30, 0):
            assert task.score(item, item.answer[:-1]) == 0.0, (item, "cut short")
            assert task.score(item, f"{item.answer} {item.answer}") == 0.0, (item, "said twice")
            assert task.score(item, f">>{item.answer}") == 0.0, (item, "two marks")


def test_slips_are_mostly_wrong():
    for name in TASKS:
        task, rng = find_task(name), random.Random(0)
        items = task.items("train", 100, 0)
        right = sum(task.score_all(items, [task.slip(item.answer, rng) for item in items]))
        assert right <= 40, name  # a slip in a free letter of a word may leave it right


def test_code_that_cheats_is_wrong():
    task = find_task("code")
    item = task.items("test", 1, 0)[0]
    for answer in (
        "1 if __import__('os')._exit(0) else 2",
        "(lambda: (_ for _ in ()).throw(SystemExit(0)))()",
        "type('E', (), {'__eq__': lambda a, b: True})()",
        "x)\n\ndef answer(x):\n    return (x",
        "__import__('time').sleep(9)",
        "9**9**9**9",
        "[0] * 10**10",
        "open('/tmp/out', 'w')",
    ):
        assert task.score(item, answer) == 0.0, answer


def test_equal_code_counts_however_it_is_written():
    task = find_task("code")
    item = next(i for i in task.items("train", 50, 0) if i.prompt.startswith("c*"))
    assert task.score(item, f"0+({item.answer})*1") == 1.0


def test_every_puzzle_has_one_solution_and_only_it_is_right():
    task = find_task("puzzle")
    for item in task.items("train", 40, 0) + task.items("test", 20, 0, "out"):
        solutions = solve(json.loads(item.proof))
        assert len(solutions) == 1
        people = len(solutions[0])
        answers = ["".join("-+"[at >> i & 1] for i in range(people)) for at in range(2**people)]
        assert sum(task.score(item, answer) for answer in answers) == 1.0


def test_the_solver_finds_none_and_many():
    assert solve([["same", 0, 1], ["is", 0, False]]) == [(False, True)]
    assert len(solve([["is", 1, True], ["is", 0, True]])) == 2
    assert solve([["not", ["is", 0, True]]]) == []  # "I am a knave"


def test_a_person_called_both_is_wrong():
    task = find_task("puzzle", "english")
    item = task.items("test", 1, 0)[0]
    both = item.answer.replace("knight", "knave") + ", " + item.answer
    assert task.score(item, both) == 0.0


def test_integers_are_read_strictly():
    assert read_integer("-12") == -12
    for text in ("", "-", "--1", "1.0", "1e3", "１２", "+1", " 1", "1" * 40):
        assert read_integer(text) is None, text


def test_levels_are_harder():
    for name in TASKS:
        easy, hard = (find_task(name, level=level).items("train", 40, 0) for level in (1, 3))
        assert sum(len(i.prompt + i.answer) for i in easy) < sum(len(i.prompt + i.answer) for i in hard), name


def test_unknown_names_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="choose from"):
        find_task("maths")
    with pytest.raises(ValueError, match="levels start at 1"):
        find_task("math", level=0)
    monkeypatch.setattr(families, "MOST_MISSES", 20)
    with pytest.raises(ValueError, match="questions for test/in"):
        find_task("puzzle").items("test", 5000, 0)
