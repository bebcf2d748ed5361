"""Modifiers of a recipe: what may be asked of any method.

``treat`` leaves tensors out of the method, ``match_norm`` brings the experts' deltas to one norm before it, and
``lines`` scales by depth what it adds to the base (layer-linear scaling, Wang et al., LiNeS, ICLR 2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlmerge.errors import RecipeError
from rlmerge.recipe import check_choice, check_value

__all__ = ["MATCH_SCOPES", "ROLES", "TREATMENTS", "Modifiers", "parse_lines", "parse_match_norm", "parse_treat"]

TREATMENTS = ("merge", "mean", "base")
MATCH_SCOPES = ("model", "tensor")
ROLES = ("embeddings", "head", "norms", "biases", "attention", "feed_forward", "routers")


@dataclass(slots=True)
class Modifiers:
    """All modifiers of a recipe, checked for their form."""

    treat: dict[str, str] = field(default_factory=dict)
    """What is done with the tensors that a pattern names; the first pattern that names a tensor counts."""
    lines: tuple[float | str, float] | None = None
    """Alpha (a number, or ``"auto"``) and beta: the delta of layer l of L is scaled by alpha + beta * l / (L - 1)."""
    match_norm: str | int | None = None
    """``"mean"``, ``"min"``, or the number of an expert, counted from 1."""
    match_norm_scope: str | None = None
    """``"model"`` (one factor an expert) or ``"tensor"``."""

    def to_core(self) -> dict[str, Any]:
        """Return the request for the core."""
        return {
            "treat": [{"pattern": pattern, "treatment": what} for pattern, what in self.treat.items()],
            "lines": None if self.lines is None else {"alpha": self.lines[0], "beta": self.lines[1]},
            "match_norm": self.match_norm,
            "match_norm_scope": self.match_norm_scope or MATCH_SCOPES[0],
        }

    def to_recipe(self) -> dict[str, Any]:
        """Return the keys of a recipe that say the same."""
        given: dict[str, Any] = {}
        if self.treat:
            given["treat"] = dict(self.treat)
        if self.lines is not None:
            given["lines"] = {"alpha": self.lines[0], "beta": self.lines[1]}
        if self.match_norm is not None:
            given["match_norm"] = self.match_norm
            given["match_norm_scope"] = self.match_norm_scope or MATCH_SCOPES[0]
        return given


def parse_treat(value: object) -> dict[str, str]:
    """Return patterns and what is done with the tensors they name.

    Parameters
    ----------
    value
        A mapping from a role (one of `ROLES`), or a tensor's name with ``*`` for any run of characters, to
        ``"merge"``, ``"mean"`` or ``"base"``.

    Raises
    ------
    RecipeError
        It is something else.

    Examples
    --------
    >>> parse_treat({"norms": "base", "*.bias": "mean"})
    {'norms': 'base', '*.bias': 'mean'}
    """
    hint = "write it as treat: {embeddings: mean, norms: base}"
    if not isinstance(value, Mapping) or not value:
        msg = f"`treat` is not a mapping of patterns: {value!r}"
        raise RecipeError(msg, hint=hint)
    rules = {}
    for pattern, what in value.items():
        if not isinstance(pattern, str) or not pattern:
            msg = f"`treat`: {pattern!r} is not a pattern"
            raise RecipeError(msg, hint=hint)
        rules[pattern] = check_choice(f"treat: {pattern}", what, TREATMENTS)
    return rules


def parse_lines(value: object) -> tuple[float | str, float]:
    """Return alpha and beta of layer-linear scaling, from a pair or from a mapping with these keys.

    Raises
    ------
    RecipeError
        It is neither, or holds something else than numbers (and ``"auto"`` for alpha).

    Examples
    --------
    >>> parse_lines({"alpha": "auto", "beta": 0.5}), parse_lines((0.2, 0.8))
    (('auto', 0.5), (0.2, 0.8))
    """
    hint = "write it as lines: {alpha: 0.2, beta: 0.8}; alpha may be `auto`"
    if isinstance(value, Mapping):
        if set(value) != {"alpha", "beta"}:
            msg = f"`lines` takes the keys alpha and beta, not {', '.join(map(str, value)) or 'none'}"
            raise RecipeError(msg, hint=hint)
        pair: Any = (value["alpha"], value["beta"])
    else:
        pair = value
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        msg = f"`lines` is not a pair of alpha and beta: {value!r}"
        raise RecipeError(msg, hint=hint)
    alpha, beta = (check_value("lines", item) for item in pair)
    if isinstance(beta, (bool, str, list)) or isinstance(alpha, (bool, list)):
        msg = f"`lines` takes numbers: {value!r}"
        raise RecipeError(msg, hint=hint)
    if isinstance(alpha, str) and alpha != "auto":
        msg = f"`lines`: alpha is a number or `auto`, not `{alpha}`"
        raise RecipeError(msg, hint=hint)
    return (alpha if alpha == "auto" else float(alpha)), float(beta)


def parse_match_norm(value: object) -> str | int:
    """Return which norm the experts' deltas are brought to: ``"mean"``, ``"min"``, or an expert's number from 1.

    Raises
    ------
    RecipeError
        It is something else.

    Examples
    --------
    >>> parse_match_norm("min"), parse_match_norm("2")
    ('min', 2)
    """
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            msg = f"`match_norm`: {value} is not the number of an expert; they count from 1"
            raise RecipeError(msg, code="parameter_out_of_range")
        return value
    if isinstance(value, str) and value in ("mean", "min"):
        return value
    msg = f"`match_norm`: {value!r} is not mean, min or the number of an expert"
    raise RecipeError(msg)
