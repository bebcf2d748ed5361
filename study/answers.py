"""The study's questions, answered in sentences that are made of the intervals and of nothing else."""

from __future__ import annotations

import math
from typing import Any

from study.analysis import SPOKEN
from study.claims import RL_METHODS

Claims = dict[str, dict[str, Any]]


def answers(results: dict[str, Any], reference: str) -> list[list[str]]:
    """Answer each question that there are data for.

    Returns
    -------
    list
        Pairs of question and answer.
    """
    claims: Claims = {claim["name"]: claim for claim in results["claims"]}
    found = [
        ["Did the experts learn?", learned(results)],
        ["Is the order of update norms SFT ≫ RFT > RL?", norms(claims)],
        *(
            [f"Does RL degrade less at equal {kind}?", degradations(claims, kind, results["method_of_claims"])]
            for kind in ("steps", "accuracy", "norm")
        ),
        ["Do positives-only and off-policy samples change it?", controls(claims)],
        ["Does the base decide the sign?", signs(results, reference)],
        ["Which method is best for which family?", best(results)],
        ["Do the methods made for RL help?", rl_methods(results, claims, reference)],
        ["Which statistic would have told beforehand?", predictor(results)],
        ["Does the advice of the conflict report hold?", advice(claims)],
    ]
    return [row for row in found if row[1]]


def points(number: dict[str, Any]) -> str:
    """Write a difference of shares in points, with its interval."""
    return f"{100 * number['value']:+.1f} points [{100 * number['low']:+.1f}, {100 * number['high']:+.1f}]"


def judged(claims: Claims, name: str, words: str) -> str:
    """Write a claim that is a difference in points; nothing where it was not made."""
    claim = claims.get(name)
    if claim is None:
        return ""
    note = f" ({claim['note']})" if claim["note"] else ""
    return f"{words} {points(claim)}: {claim['verdict']}{note}"


def joined(parts: list[str]) -> str:
    """Put what there is into one text."""
    return "; ".join(part for part in parts if part)


def learned(results: dict[str, Any]) -> str:
    """Count for each arm the experts that beat their base."""
    counts: dict[str, list[dict[str, Any]]] = {}
    for row in results["experts"]:
        counts.setdefault(row["arm"], []).append(row)
    told = [
        f"{arm} {sum(row['learned'] for row in rows)} of {len(rows)} "
        f"({100 * sum(row['gain'] for row in rows) / len(rows):+.0f} points)"
        for arm, rows in counts.items()
    ]
    if not told:
        return ""
    return f"Experts that beat their base by more than two standard errors on test (mean gain): {', '.join(told)}."


def norms(claims: Claims) -> str:
    """Say the ratios of the update norms."""
    parts = []
    for first, second in (("sft", "rft"), ("rft", "grpo"), ("sft-offstyle", "sft"), ("grpo-offpolicy", "grpo")):
        claim = claims.get(f"norm: {first} > {second}")
        if claim:
            value, low, high = (2 ** claim[name] for name in ("value", "low", "high"))
            parts.append(f"{first} / {second} {value:.2f} [{low:.2f}, {high:.2f}]: {claim['verdict']}")
    return f"Ratios of update norms at equal steps: {joined(parts)}. The paper's: about 3 and 3." if parts else ""


def degradations(claims: Claims, kind: str, method: str) -> str:
    """Say how much more SFT loses than RL, by each method."""
    name = f"degradation at equal {kind}: sft > grpo"
    parts = [judged(claims, name, f"by {method}")]
    head = f"{name} ("
    parts += [judged(claims, key, f"by {key.removeprefix(head).rstrip(')')}") for key in claims if key.startswith(head)]
    told = joined(parts)
    return f"Relative drop of SFT's merges less that of GRPO's, {told}." if told else ""


def controls(claims: Claims) -> str:
    """Say what the controls change, at equal steps and at equal accuracy."""
    parts = []
    for kind in ("steps", "accuracy"):
        head = f"degradation at equal {kind}: "
        parts += [
            judged(claims, f"{head}{first} > {second}", f"at equal {kind} {first} less {second}")
            for first, second in (("grpo-pos", "grpo"), ("grpo-offpolicy", "grpo"), ("sft-offstyle", "sft"))
        ]
    told = joined(parts)
    accuracy = judged(claims, "negatives: experts are better with them", "Accuracy of GRPO's experts less grpo-pos's:")
    return " ".join(part for part in (f"Relative drop, {told}." if told else "", accuracy and f"{accuracy}.") if part)


def signs(results: dict[str, Any], reference: str) -> str:
    """Say for how many bases SFT's merges lose more, and for how many less."""
    parts = []
    for kind, found in results["headline_by_seed"].items():
        if found:
            above = sum(gap["low"] > 0 for gap in found)
            below = sum(gap["high"] < 0 for gap in found)
            each = ", ".join(f"{100 * gap['value']:+.1f}" for gap in found)
            parts.append(
                f"at {kind.replace('_', ' ')} ({each} points) sft loses more for {above}, less for {below}, and it is "
                f"not decided for {len(found) - above - below} of {len(found)} bases"
            )
    return f"Against {reference}: {joined(parts)}." if parts else ""


def best(results: dict[str, Any]) -> str:
    """Name each family's best method, and how many cannot be told apart from it."""
    parts = []
    for family in dict.fromkeys(row["family"] for row in results["best_methods"]):
        rows = [row for row in results["best_methods"] if row["family"] == family]
        near = [row["method"] for row in rows[1:] if row["behind_best"]["high"] >= 0]
        told = f"{', '.join(rows[0]['arms'])}: {rows[0]['method']} ({rows[0]['merged']:.3f})"
        if near:
            told += f", not told apart from {', '.join(near[:5])}" + (f" and {len(near) - 5} more" * (len(near) > 5))
        parts.append(f"{told}; {len(rows)} methods tried")
    return f"By mean accuracy of pairs at equal steps: {'. '.join(parts)}." if parts else ""


def rl_methods(results: dict[str, Any], claims: Claims, reference: str) -> str:
    """Compare the methods made for RL with the plain sum, on the reference's experts."""
    method = results["method_of_claims"]
    parts = [judged(claims, f"methods: {name} > {method} on {reference}", name) for name in RL_METHODS]
    told = joined(parts)
    if not told:
        return ""
    here = [row for row in results["conflict"] if (row["comparison"], row["arm"]) == ("equal_steps", reference)]
    masks = [row["jaccard"] for row in here if row.get("jaccard") is not None]
    overlap = (
        " The RAM methods differ from a mean where one expert alone changed a weight; the masks of "
        f"{reference}'s pairs overlap by {masks[0]:.2f} (Jaccard, weights in f32)."
        if masks
        else ""
    )
    return f"Accuracy of merged {reference} pairs less that by {method}: {told}.{overlap}"


def predictor(results: dict[str, Any]) -> str:
    """Name the statistics whose rank correlation with the loss of a merge is not 0."""
    parts = []
    for kind, rows in results["predictors"].items():
        rows = [row for row in rows if math.isfinite(row["value"])]
        if not rows:
            continue
        sure = [row for row in rows if row["low"] > 0 or row["high"] < 0]
        named = ", ".join(
            f"{SPOKEN.get(row['statistic'], row['statistic'].replace('_', ' '))} {row['value']:+.2f} "
            f"[{row['low']:+.2f}, {row['high']:+.2f}]"
            for row in sure[:3]
        )
        words = f"; the strongest: {named}" if sure else ""
        parts.append(f"at {kind.replace('_', ' ')}, {len(sure)} of {len(rows)} have an interval without 0{words}")
    return f"By rank correlation with the loss of a pair: {joined(parts)}." if parts else ""


def advice(claims: Claims) -> str:
    """Say where the method that the report advises is better."""
    told = joined(
        [judged(claims, name, f"{claim['words']}:") for name, claim in claims.items() if name[:7] == "advice:"]
    )
    return f"By the accuracy of merged pairs: {told}." if told else ""
