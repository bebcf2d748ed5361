"""The real data sets by name, as columns ``prompt``, ``answer``, ``proof`` and ``task``, and verifiers for them.

Loading needs the `datasets` package and the Hugging Face Hub or its cache. The field names below are those of the
published data sets; the loaders are tested on rows of the same form, and have not been run against the Hub.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from study.tasks.sandbox import Call, shared_sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

Row = dict[str, Any]


class DatasetMissingError(RuntimeError):
    """A data set cannot be had here."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a data set lies and how its rows become questions; rows that are none become None."""

    path: str
    config: str | None
    split: str
    task: str
    read: Callable[[Row], tuple[str, str, str] | None]  # prompt, answer, proof


# --- reading rows -----------------------------------------------------------------------------------------------------


def read_openmath(row: Row) -> tuple[str, str, str] | None:
    """OpenMathInstruct-2: problem, generated solution, expected answer."""
    return row["problem"], row["generated_solution"], row["expected_answer"]


def read_gsm8k(row: Row) -> tuple[str, str, str] | None:
    """GSM8K: the final answer stands after ``####``."""
    return row["question"], row["answer"], row["answer"].rpartition("####")[2].strip()


def read_math500(row: Row) -> tuple[str, str, str] | None:
    """MATH-500: problem, solution, answer."""
    return row["problem"], row["solution"], row["answer"]


def read_opencode(row: Row) -> tuple[str, str, str] | None:
    """OpenCodeInstruct: unit tests as a JSON list of assertions."""
    tests = row["unit_tests"]
    tests = json.loads(tests) if isinstance(tests, str) else tests
    if not tests:
        return None
    return row["input"], row["output"], json.dumps({"tests": "\n".join(tests), "prefix": ""})


def read_humaneval(row: Row) -> tuple[str, str, str] | None:
    """HumanEval: the prompt is the head of a function, the test calls ``check``."""
    tests = f"{row['test']}\ncheck({row['entry_point']})"
    return row["prompt"], row["canonical_solution"], json.dumps({"tests": tests, "prefix": row["prompt"]})


def read_mbpp(row: Row) -> tuple[str, str, str] | None:
    """MBPP: a description and assertions."""
    words = row.get("text") or row["prompt"]
    prompt = f"{words}\nYour code should pass these tests:\n" + "\n".join(row["test_list"])
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
    return prompt, row["code"], json.dumps({"tests": "\n".join([setup, *row["test_list"]]), "prefix": ""})


def read_tulu(row: Row) -> tuple[str, str, str] | None:
    """Tulu 3's instructions with verifiable constraints, as published for RLVR."""
    truth = row.get("ground_truth")
    if row.get("dataset") not in (None, "ifeval") or truth is None:
        return None
    constraint = json.loads(truth) if isinstance(truth, str) else truth
    name, arguments = (
        constraint["func_name"],
        {k: v for k, v in constraint.items() if v is not None and k != "func_name"},
    )
    return row["messages"][0]["content"], "", json.dumps([{"id": name, **arguments}])


def read_ifeval(row: Row) -> tuple[str, str, str] | None:
    """IFEval: a list of instruction ids with their arguments."""
    rules = [
        {"id": name, **{k: v for k, v in arguments.items() if v is not None}}
        for name, arguments in zip(row["instruction_id_list"], row["kwargs"], strict=True)
    ]
    return row["prompt"], "", json.dumps(rules)


def read_rank1(row: Row) -> tuple[str, str, str] | None:
    """Rank1: whether a passage is relevant to a query, with the teacher's reasoning."""
    verdict = str(row["relevance_answer"]).strip().lower()
    if verdict not in ("true", "false"):
        return None
    prompt = (
        f"Is the passage relevant to the query? Answer true or false.\nQuery: {row['query']}\nPassage: {row['passage']}"
    )
    return prompt, row.get("model_output") or verdict, json.dumps({"verdict": verdict})


def read_nevir(row: Row) -> tuple[str, str, str] | None:
    """NevIR: two documents that differ by a negation; the first query wants the first document."""
    prompt = f"Query: {row['q1']}\n(1) {row['doc1']}\n(2) {row['doc2']}\nWhich document fits better, 1 or 2?"
    return prompt, "1", json.dumps({"verdict": "1"})


SOURCES = {
    "openmathinstruct-2": Source("nvidia/OpenMathInstruct-2", None, "train_1M", "math", read_openmath),
    "gsm8k": Source("openai/gsm8k", "main", "test", "math", read_gsm8k),
    "math-500": Source("HuggingFaceH4/MATH-500", None, "test", "math", read_math500),
    "opencodeinstruct": Source("nvidia/OpenCodeInstruct", None, "train", "code", read_opencode),
    "humaneval": Source("openai/openai_humaneval", None, "test", "code", read_humaneval),
    "mbpp": Source("google-research-datasets/mbpp", "full", "test", "code", read_mbpp),
    "tulu-3": Source("allenai/RLVR-IFeval", None, "train", "instruct", read_tulu),
    "ifeval": Source("google/IFEval", None, "train", "instruct", read_ifeval),
    "rank1": Source("jhu-clsp/rank1-training-data", None, "train", "rank", read_rank1),
    "nevir": Source("orionweller/NevIR", None, "test", "rank", read_nevir),
}


def load_real(name: str, count: int | None = None, split: str | None = None) -> list[dict[str, str]]:
    """Load a data set by name.

    Parameters
    ----------
    name
        One of ``SOURCES``, or ``reasoning-gym:GENERATOR`` for generated tasks of that package.
    count
        At most so many rows.

    Returns
    -------
    list of dict
        ``prompt``, ``answer``, ``proof`` and ``task``.

    Raises
    ------
    DatasetMissingError
        The name is not known, a package is missing, or the data set is neither cached nor to be had.
    """
    if name.startswith("reasoning-gym:"):
        return load_reasoning_gym(name.partition(":")[2], count or 1000)
    if name not in SOURCES:
        msg = f"unknown data set `{name}`: choose from {', '.join(SOURCES)} or reasoning-gym:GENERATOR"
        raise DatasetMissingError(msg)
    source = SOURCES[name]
    try:
        from datasets import load_dataset

        rows = load_dataset(source.path, source.config, split=split or source.split, streaming=count is not None)
    except ImportError:
        msg = "the package `datasets` is not installed: pip install datasets"
        raise DatasetMissingError(msg) from None
    except Exception as error:
        msg = (
            f"{source.path} cannot be loaded ({type(error).__name__}): download it on a machine with network "
            f"(`hf download --repo-type dataset {source.path}`), or leave dataset_name out to use the generator"
        )
        raise DatasetMissingError(msg) from error
    found: list[dict[str, str]] = []
    for row in rows:
        made = source.read(row)
        if made is not None:
            found.append(dict(zip(("prompt", "answer", "proof"), made, strict=True)) | {"task": source.task})
        if len(found) == count:
            break
    return found


def load_reasoning_gym(generator: str, count: int) -> list[dict[str, str]]:
    """Draw questions of a reasoning-gym generator; its own scorer judges them."""
    try:
        import reasoning_gym
    except ImportError:
        msg = "the package `reasoning-gym` is not installed: pip install reasoning-gym"
        raise DatasetMissingError(msg) from None
    rows = reasoning_gym.create_dataset(generator, size=count, seed=0)
    return [
        {
            "prompt": row["question"],
            "answer": str(row["answer"]),
            "proof": json.dumps({"generator": generator, "entry": row}, default=str),
            "task": "reasoning-gym",
        }
        for row in rows
    ]


# --- judging ----------------------------------------------------------------------------------------------------------


def judge_real(task: str, wanted: list[tuple[str, str]], completions: list[str]) -> list[float]:
    """Judge answers to questions of a real data set; ``wanted`` holds each answer and proof."""
    if task == "code":
        return judge_code([proof for _, proof in wanted], completions)
    judges: dict[str, Callable[[str, str], bool]] = {
        "math": lambda proof, text: same_number(final_answer(text), proof),
        "instruct": lambda proof, text: bool(text.strip()) and all(obeys(rule, text) for rule in json.loads(proof)),
        "rank": lambda proof, text: last_verdict(text) == json.loads(proof)["verdict"],
        "reasoning-gym": judge_reasoning_gym,
    }
    return [float(judges[task](proof, text)) for (_, proof), text in zip(wanted, completions, strict=True)]


def judge_reasoning_gym(proof: str, text: str) -> bool:
    """Ask the package's own scorer; what stands in answer tags counts, or else the last line."""
    import reasoning_gym

    told = json.loads(proof)
    tagged = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    answer = tagged[-1].strip() if tagged else text.strip().rpartition("\n")[2]
    return float(reasoning_gym.get_score_answer_fn(told["generator"])(answer, told["entry"])) >= 1.0


def final_answer(text: str) -> str:
    r"""Take the final answer out of a solution: the last box, what follows ``####``, or the last number.

    Examples
    --------
    >>> final_answer(r"so \boxed{\frac{1}{2}}"), final_answer("#### 1,234"), final_answer("it is 7.")
    ('\\frac{1}{2}', '1,234', '7')
    """
    at = text.rfind("\\boxed{")
    if at >= 0:
        depth, start = 0, at + len("\\boxed")
        for end in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start + 1 : end].strip()
        return ""
    if "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0]
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?", text)
    return numbers[-1] if numbers else ""


def same_number(found: str, wanted: str) -> bool:
    """Compare two final answers after taking away what means nothing: commas, dollars, spaces, LaTeX fractions."""
    return bool(found) and plain_answer(found) == plain_answer(wanted)


def plain_answer(text: str) -> str:
    """Write an answer in one way."""
    text = re.sub(r"\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}", r"\1/\2", text)
    text = re.sub(r"\\(?:text|mathrm|left|right|!|,|;| )|[\s$,{}\\%]|\\?degree", "", text).rstrip(".").lower()
    if re.fullmatch(r"-?\d+\.\d*", text):
        text = text.rstrip("0").rstrip(".")
    return text


def judge_code(proofs: list[str], completions: list[str]) -> list[float]:
    """Run the tests on the code in the sandbox."""
    calls = []
    for proof, text in zip(proofs, completions, strict=True):
        told = json.loads(proof)
        fenced = re.findall(r"```(?:python)?\n(.*?)```", text, re.DOTALL)
        code = fenced[-1] if fenced else text
        calls.append(Call(code if fenced else told["prefix"] + code, tests=told["tests"]))
    return [float(outputs == [True]) for outputs in shared_sandbox().run(calls)]


def last_verdict(text: str) -> str:
    """Return the last of true, false, 1 or 2 in an answer."""
    found = re.findall(r"\b(true|false|1|2)\b", text.lower())
    return found[-1] if found else ""


# IFEval's instruction ids (2311.07911) and the names that Tulu 3 gives the same constraints.
RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "at least": lambda found, wanted: found >= wanted,
    "less than": lambda found, wanted: found < wanted,
    "at most": lambda found, wanted: found <= wanted,
}


def counted(found: int, rule: Row, name: str) -> bool:
    """Compare a count with the rule's relation."""
    return RELATIONS.get(rule.get("relation", "at least"), RELATIONS["at least"])(found, int(rule[name]))


CHECKERS: dict[str, Callable[[Row, str], bool]] = {
    "keywords:existence": lambda r, t: all(word.lower() in t.lower() for word in r["keywords"]),
    "keywords:forbidden_words": lambda r, t: (
        not any(re.search(rf"\b{re.escape(word)}\b", t, re.IGNORECASE) for word in r["forbidden_words"])
    ),
    "keywords:frequency": lambda r, t: counted(t.lower().count(r["keyword"].lower()), r, "frequency"),
    "keywords:letter_frequency": lambda r, t: RELATIONS[r.get("let_relation", "at least")](
        t.lower().count(r["letter"].lower()), int(r["let_frequency"])
    ),
    "length_constraints:number_words": lambda r, t: counted(len(re.findall(r"\w+", t)), r, "num_words"),
    "length_constraints:number_sentences": lambda r, t: counted(
        len([s for s in re.split(r"[.!?]+(?:\s|$)", t) if s.strip()]), r, "num_sentences"
    ),
    "length_constraints:number_paragraphs": lambda r, t: (
        len([p for p in t.split("***") if p.strip()]) == int(r["num_paragraphs"])
    ),
    "detectable_content:number_placeholders": lambda r, t: len(re.findall(r"\[.*?\]", t)) >= int(r["num_placeholders"]),
    "detectable_content:postscript": lambda r, t: r["postscript_marker"].lower() in t.lower(),
    "detectable_format:number_bullet_lists": lambda r, t: (
        len(re.findall(r"^\s*[*-] ", t, re.MULTILINE)) == int(r["num_bullets"])
    ),
    "detectable_format:number_highlighted_sections": lambda r, t: (
        len(re.findall(r"\*[^\n*]+\*", t)) >= int(r["num_highlights"])
    ),
    "detectable_format:title": lambda r, t: re.search(r"<<[^\n]+>>", t) is not None,
    "detectable_format:json_format": lambda r, t: is_json(t),
    "change_case:english_capital": lambda r, t: t.isupper(),
    "change_case:english_lowercase": lambda r, t: t.islower(),
    "punctuation:no_comma": lambda r, t: "," not in t,
    "startend:end_checker": lambda r, t: t.strip().strip('"').lower().endswith(r["end_phrase"].strip().lower()),
    "startend:quotation": lambda r, t: len(t.strip()) > 1 and t.strip()[0] == t.strip()[-1] == '"',
}
TULU_NAMES = {
    "verify_keywords": ("keywords:existence", {"keyword_list": "keywords"}),
    "validate_forbidden_words": ("keywords:forbidden_words", {}),
    "validate_no_commas": ("punctuation:no_comma", {}),
    "validate_lowercase": ("change_case:english_lowercase", {}),
    "validate_uppercase": ("change_case:english_capital", {}),
    "validate_json_format": ("detectable_format:json_format", {}),
    "validate_title": ("detectable_format:title", {}),
    "validate_end": ("startend:end_checker", {}),
    "validate_quotation": ("startend:quotation", {}),
}


def is_json(text: str) -> bool:
    """Say whether a text is one JSON value, in a fence or not."""
    bare = re.sub(r"^```(?:json)?\s*|\s*```$", "", text.strip())
    try:
        json.loads(bare)
    except ValueError:
        return False
    return True


def obeys(rule: Row, text: str) -> bool:
    """Check one constraint.

    Raises
    ------
    ValueError
        There is no checker for it: a constraint that cannot be judged must not count as obeyed.
    """
    name = rule["id"]
    if name in TULU_NAMES:
        name, renamed = TULU_NAMES[name]
        rule = {renamed.get(key, key): value for key, value in rule.items()}
    if name not in CHECKERS:
        msg = f"no checker for the constraint `{name}`: leave out questions with it (see study/tasks/real.py)"
        raise ValueError(msg)
    return CHECKERS[name](rule, text)


def can_judge(proof: str) -> bool:
    """Say whether there is a checker for every constraint of a question."""
    return all(rule["id"] in CHECKERS or rule["id"] in TULU_NAMES for rule in json.loads(proof))
