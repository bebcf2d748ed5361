"""Readers and verifiers of the real data sets, on rows of their published form; nothing is downloaded."""

import json

import pytest
from study.tasks import real
from study.tasks.rewards import verified

ROWS = {
    "openmathinstruct-2": {"problem": "1+1?", "generated_solution": r"\boxed{2}", "expected_answer": "2"},
    "gsm8k": {"question": "How many?", "answer": "3 and 4\n#### 1,207"},
    "math-500": {"problem": "x?", "solution": "...", "answer": r"\frac{3}{4}"},
    "opencodeinstruct": {"input": "add", "output": "def f(a):\n  return a", "unit_tests": '["assert f(1) == 1"]'},
    "humaneval": {
        "prompt": "def add(a, b):\n",
        "canonical_solution": "    return a + b\n",
        "test": "def check(f):\n    assert f(1, 2) == 3",
        "entry_point": "add",
    },
    "mbpp": {"text": "add", "code": "def f(a): return a", "test_list": ["assert f(2) == 2"], "test_setup_code": ""},
    "tulu-3": {
        "messages": [{"role": "user", "content": "Say a, without commas"}],
        "ground_truth": '{"func_name": "validate_no_commas", "N": null}',
        "dataset": "ifeval",
    },
    "ifeval": {"prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    "rank1": {"query": "q", "passage": "p", "relevance_answer": "True", "model_output": "so true"},
    "nevir": {"q1": "q", "q2": "r", "doc1": "d", "doc2": "e"},
}
RIGHT = {
    "openmathinstruct-2": r"So $\boxed{2}$.",
    "gsm8k": "The answer is 1207.",
    "math-500": r"\boxed{\dfrac{3}{4}}",
    "opencodeinstruct": "Here:\n```python\ndef f(a):\n    return a\n```",
    "humaneval": "    return b + a\n",
    "mbpp": "def f(a):\n    return a",
    "tulu-3": "a b",
    "ifeval": "no such sign here",
    "rank1": "It is. true",
    "nevir": "Document 1",
}
WRONG = {
    "openmathinstruct-2": r"\boxed{3} and 2",
    "gsm8k": "1207 or 8",
    "math-500": r"\boxed{4/3}",
    "opencodeinstruct": "def f(a):\n    return a + 1",
    "humaneval": "    return a - b\n",
    "mbpp": "import os; os._exit(0)",
    "tulu-3": "a, b",
    "ifeval": "here, it is",
    "rank1": "true? no, false",
    "nevir": "1? no: 2",
}


@pytest.mark.parametrize("name", list(real.SOURCES))
def test_rows_are_read_and_judged(name):
    source = real.SOURCES[name]
    prompt, answer, proof = source.read(ROWS[name])
    assert prompt
    columns = {"task": [source.task] * 3, "answer": [answer] * 3, "proof": [proof] * 3}
    assert verified([prompt] * 3, [RIGHT[name], WRONG[name], ""], **columns) == [1.0, 0.0, 0.0]
    chat = [[{"role": "assistant", "content": RIGHT[name]}]]
    assert verified([prompt], chat, **{key: value[:1] for key, value in columns.items()}) == [1.0]


def test_rows_that_are_no_questions_are_left_out():
    assert real.read_tulu({**ROWS["tulu-3"], "dataset": "gsm8k"}) is None
    assert real.read_rank1({**ROWS["rank1"], "relevance_answer": "maybe"}) is None
    assert real.read_opencode({**ROWS["opencodeinstruct"], "unit_tests": "[]"}) is None


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ({"id": "keywords:existence", "keywords": ["sun"]}, "The Sun.", "rain"),
        ({"id": "keywords:forbidden_words", "forbidden_words": ["no"]}, "nothing", "oh no!"),
        ({"id": "keywords:frequency", "keyword": "a b", "frequency": 2, "relation": "at least"}, "a b a b", "a b"),
        ({"id": "length_constraints:number_words", "num_words": 3, "relation": "less than"}, "one two", "a b c"),
        ({"id": "length_constraints:number_sentences", "num_sentences": 2, "relation": "at least"}, "A. B.", "A."),
        ({"id": "detectable_format:number_bullet_lists", "num_bullets": 2}, "* a\n* b", "* a"),
        ({"id": "detectable_format:title"}, "<<T>>\nx", "T"),
        ({"id": "detectable_format:json_format"}, '```json\n{"a": 1}\n```', "{a}"),
        ({"id": "change_case:english_lowercase"}, "low", "Low"),
        ({"id": "startend:end_checker", "end_phrase": "Bye"}, "x bye", "bye x"),
        ({"id": "startend:quotation"}, '"x"', "x"),
    ],
)
def test_constraints(rule, good, bad):
    assert real.obeys(rule, good)
    assert not real.obeys(rule, bad)


def test_a_constraint_without_checker_never_passes():
    proof = json.dumps([{"id": "language:response_language"}])
    assert not real.can_judge(proof)
    with pytest.raises(ValueError, match="no checker"):
        real.judge_real("instruct", [("", proof)], ["text"])


def test_unknown_data_sets_are_refused():
    with pytest.raises(real.DatasetMissingError, match="choose from"):
        real.load_real("gsm9k")


def test_generated_questions_are_rewarded_by_their_own_verifier():
    from study.tasks import TASKS, find_task

    for form in ("compact", "english"):
        for name in TASKS:
            items = find_task(name, form).items("train", 3, 0)
            columns = {
                "task": [name] * 3,
                "answer": [i.answer for i in items],
                "proof": [i.proof for i in items],
                "form": [form] * 3,
                "level": [1] * 3,
            }
            prompts = [i.prompt for i in items]
            assert verified(prompts, [i.answer for i in items], **columns) == [1.0] * 3
            assert verified(prompts, ["?"] * 3, **columns) == [0.0] * 3


def test_reasoning_gym_is_judged_by_its_scorer():
    pytest.importorskip("reasoning_gym")
    rows = real.load_real("reasoning-gym:basic_arithmetic", 3)
    columns = {name: [row[name] for row in rows] for name in ("task", "answer", "proof")}
    prompts = [row["prompt"] for row in rows]
    assert verified(prompts, [f"<answer>{row['answer']}</answer>" for row in rows], **columns) == [1.0] * 3
    assert verified(prompts, ["<answer>x</answer>"] * 3, **columns) == [0.0] * 3
