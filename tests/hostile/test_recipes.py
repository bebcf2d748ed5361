"""Damaged recipes: an answer in words or a recipe, and nothing else; bombs are refused at once."""

import random
import time

import pytest

import rlmerge
from rlmerge.recipe import load_recipe

SEEDS = [
    "method: ties\nbase: b\nmodels:\n  - path: a\n    parameters: {weight: 0.5}\n  - c\n"
    "parameters: {density: [0.2, 0.3]}\n",
    "method: linear\nmodels: [a, b]\nseed: 7\ndtype: bf16\nshard_size: 2GB\nthreads: 3\nstrict: true\n",
    "merge_method: dare_ties\nbase_model: b\nmodels:\n  - model: a\n    parameters:\n      weight: 1.0\n"
    "parameters: {int8_mask: true}\n",
    '{"method": "slerp", "models": ["a", "b"], "parameters": {"t": 0.5}}\n',
]
WORDS = [
    "!!python/object/apply:os.system [id]", "!!binary aGk=", "&a ", "*a", "<<: *a", "- ", "? ", ": ", "{", "}", "[",
    "]", "|", ">", "---\n", "...\n", "%YAML 1.1\n", "\t", "\n", "  ", "'", '"', "\\", "\0", "\x1b", "\u202e", "\ufeff",
    "1e-3", ".nan", ".inf", "-1", "0x10", "1_000", "yes", "null", "~", "2026-11-23", "method:", "models:", "path:",
    "parameters:", "weight:", "9" * 400,
]  # fmt: skip


def damaged(rng: random.Random) -> str:
    """A seed with a few changes."""
    text = rng.choice(SEEDS)
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(text) + 1)
        match rng.randrange(3):
            case 0:
                text = text[:at] + rng.choice(WORDS) + text[at:]
            case 1:
                text = text[:at] + text[at + rng.randint(1, 8) :]
            case _:
                text = text[:at] + rng.choice(WORDS) + text[at + rng.randint(1, 8) :]
    return text


def test_damaged_recipes_get_an_answer(tmp_path):
    rng = random.Random(11)
    path = tmp_path / "recipe.yaml"
    taken = refused = 0
    for _ in range(1500):
        path.write_text(damaged(rng), encoding="utf-8", newline="")
        try:
            recipe = load_recipe(path)
        except rlmerge.RecipeError as error:
            assert error.exit_code == 2
            assert "recipe.yaml" in str(error) or error.code != "recipe_invalid", error
            refused += 1
        else:
            assert recipe.method
            assert recipe.models
            taken += 1
    assert min(taken, refused) > 20


BOMBS = {
    "aliases": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)),
    "depth": "method: " + "[" * 100_000,
    "mapping-depth": "a: {" * 50_000,
    "long": "method: " + "x" * (1 << 20),
    "tag": "method: !!python/object/apply:os.system ['true']\nmodels: [a]\n",
    "twice": "method: linear\nmethod: ties\nmodels: [a]\n",
    "documents": "method: linear\nmodels: [a]\n---\nmethod: ties\n",
    "number": "method: linear\nmodels: [a]\nseed: " + "9" * 5000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_at_once(name, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(BOMBS[name])
    started = time.process_time()
    with pytest.raises(rlmerge.RecipeError) as raised:
        load_recipe(path)
    assert time.process_time() - started < 5
    assert raised.value.exit_code == 2
    assert len(str(raised.value)) < 2000
