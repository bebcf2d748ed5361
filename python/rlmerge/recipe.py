"""Recipes: what the user wrote, checked for its form.

A recipe comes from arguments, from a mapping or from a YAML file in our own form or in mergekit's. Names, ranges and
defaults of method parameters are not judged here: the method table in the core does that.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlmerge.errors import RecipeError, from_core

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rlmerge.modifiers import Modifiers

__all__ = [
    "COMPATS",
    "DURABILITIES",
    "IO_WAYS",
    "OVERFLOWS",
    "Expert",
    "Recipe",
    "check_choice",
    "check_integer",
    "check_value",
    "load_recipe",
    "parse_dtype",
    "parse_int_from",
    "parse_size",
    "suggestion",
]

COMPATS = ("paper", "mergekit")
DURABILITIES = ("full", "file", "none")
IO_WAYS = ("pread", "mmap")
OVERFLOWS = ("inf", "error", "clamp")
MAX_SEED = 2**64 - 1

_DTYPES = {
    "F64": ("f64", "float64", "fp64", "double"),
    "F32": ("f32", "float32", "fp32", "float"),
    "F16": ("f16", "float16", "fp16", "half"),
    "BF16": ("bf16", "bfloat16"),
    "F8_E4M3": ("f8_e4m3", "float8_e4m3fn", "fp8_e4m3"),
    "F8_E5M2": ("f8_e5m2", "float8_e5m2", "fp8_e5m2"),
}
_DTYPE_WORDS = {word: name for name, words in _DTYPES.items() for word in words}
_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS |= {_letter: 1000**_power, f"{_letter}B": 1000**_power, f"{_letter}IB": 1024**_power}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


@dataclass(slots=True)
class Expert:
    """A fine-tuned checkpoint of a recipe, with the parameters given for it alone."""

    path: str
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Recipe:
    """What the user asked for; None where the user said nothing."""

    method: str
    models: list[Expert]
    base: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    modifiers: Modifiers | None = None
    seed: int | None = None
    dtype: str | None = None
    compat: str | None = None
    output: str | None = None
    shard_size: int | None = None
    threads: int | None = None
    io: str | None = None
    durability: str | None = None
    strict: bool = False
    on_overflow: str | None = None
    int_from: str | int | None = None
    verify_inputs: bool = False
    no_symlinks: bool = False
    form: str = "rlmerge"
    notes: list[str] = field(default_factory=list)


def load_recipe(source: str | Path | Mapping[str, Any]) -> Recipe:
    """Read a recipe from a YAML file or from a mapping, in our own form or in mergekit's.

    Parameters
    ----------
    source
        A path, or the contents as a mapping.

    Returns
    -------
    Recipe
        What it asks for.

    Raises
    ------
    RecipeError
        It is not of a documented form; the message names the line and the key.

    Examples
    --------
    >>> load_recipe({"method": "ties", "models": ["a", "b"], "base": "c"}).method
    'ties'
    """
    # pydantic and ruamel.yaml take longer to import than many merges of small models take.
    from rlmerge._recipe_forms import parse_recipe
    from rlmerge._yaml import MAX_BYTES, read_yaml

    if not isinstance(source, (str, Path)):
        return parse_recipe(dict(source), {}, "recipe")
    path = Path(source)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        msg = f"{path}: {reason}"
        code = RecipeError.default_code
        raise from_core(code, 2, RecipeError.kind, msg, str(path), errno=error.errno) from None
    data, lines = read_yaml(text, str(path))
    return parse_recipe(data, lines, str(path))


def suggestion(word: str, known: Iterable[str]) -> str | None:
    """Return ``did you mean ...?`` for the nearest known word, if one is near."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f"did you mean `{near[0]}`?" if near else None


def parse_dtype(word: str) -> str:
    """Return the safetensors name of a dtype, written in any of the usual ways.

    Examples
    --------
    >>> parse_dtype("bfloat16"), parse_dtype("fp16")
    ('BF16', 'F16')
    """
    name = _DTYPE_WORDS.get(str(word).strip().lower().removeprefix("torch."))
    if name is None:
        msg = f"unknown dtype `{word}`"
        usual = ("bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")
        near = suggestion(str(word), usual)
        raise RecipeError(msg, hint=near or f"one of {', '.join(usual)}")
    return name


def parse_size(size: str | int) -> int:
    """Return a size in bytes, from a number or from text such as ``"5GB"`` (powers of 1000) or ``"4GiB"`` (of 1024).

    Examples
    --------
    >>> parse_size("5GB"), parse_size("1.5KiB")
    (5000000000, 1536)
    """
    hint = "write it as 5GB, 500MB or 4GiB"
    if isinstance(size, bool) or not isinstance(size, (str, int)):
        msg = f"not a size: {size!r}"
        raise RecipeError(msg, hint=hint)
    match = _SIZE.fullmatch(str(size))
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        msg = f"not a size: `{size}`"
        raise RecipeError(msg, hint=hint)
    # Whole numbers stay whole: a float would round sizes above 2**53.
    number = float(match[1]) if "." in match[1] else int(match[1])
    count = int(number * unit)
    if not 1 <= count <= 2**63 - 1:
        msg = f"a size of {size} is outside 1 byte to 2^63-1 bytes"
        raise RecipeError(msg, hint=hint)
    return count


def check_value(name: str, value: object) -> Any:
    """Return a parameter's value as plain data: a number, a flag, a word, or a list of them, one for each expert."""
    if isinstance(value, (list, tuple)):
        if not value:
            msg = f"parameter `{name}`: an empty list"
            raise RecipeError(msg, hint="give one value for all experts, or one for each")
        if any(isinstance(item, (list, tuple)) for item in value):
            msg = f"parameter `{name}`: a list in a list"
            raise RecipeError(msg, hint="give one value for all experts, or one for each")
        return [check_value(name, item) for item in value]
    if isinstance(value, (bool, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        value = value.item()  # a NumPy scalar
    if isinstance(value, int):
        if abs(value) > 2**53:
            msg = f"parameter `{name}`: {value} is beyond 2^53"
            raise RecipeError(msg, code="parameter_out_of_range")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            msg = f"parameter `{name}`: {value} is not a finite number"
            raise RecipeError(msg, code="parameter_out_of_range")
        return value
    msg = f"parameter `{name}`: {type(value).__name__} is not a number, a flag or a word"
    raise RecipeError(msg)


def check_integer(name: str, value: object, least: int, most: int) -> int:
    """Return a whole number between the two bounds."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        msg = f"`{name}`: {value!r} is not a whole number"
        raise RecipeError(msg)
    number = int(value)
    if not least <= number <= most:
        msg = f"`{name}`: {number} is not between {least} and {most}"
        raise RecipeError(msg, code="parameter_out_of_range")
    return number


def parse_int_from(value: object) -> str | int:
    """Return whose tensors without arithmetic are taken: ``"base"``, or an expert's number from 1.

    Raises
    ------
    RecipeError
        It is something else.

    Examples
    --------
    >>> parse_int_from("base"), parse_int_from("2")
    ('base', 2)
    """
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if value == "base" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    msg = f"`int_from`: {value!r} is not base or the number of an expert, from 1"
    raise RecipeError(msg, code="parameter_out_of_range")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Return one of the choices."""
    if not isinstance(value, str) or value not in choices:
        msg = f"`{name}`: `{value}` is none of {', '.join(choices)}"
        near = suggestion(str(value), choices)
        raise RecipeError(msg, hint=near)
    return value
