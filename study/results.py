"""Everything that the page shows, as plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from study.analysis import (
    barriers,
    best_methods,
    conflict_table,
    difference_by_seed,
    expert_table,
    headline,
    merge_table,
    predictors,
    twins,
)
from study.claims import claims
from study.intervals import correlation_interval

if TYPE_CHECKING:
    from study.facts import Facts


def analyse(facts: Facts) -> dict[str, Any]:
    """Compute everything that the page shows.

    Returns
    -------
    dict
        Plain data: the contents of ``results.json``.
    """
    merges = merge_table(facts)
    at_steps = [row for row in merges if row["comparison"] == "equal_steps"]
    method = "task_arithmetic" if any(row["method"] == "task_arithmetic" for row in at_steps) else "linear"
    experts = expert_table(facts)
    precision = [{"arm": row["arm"], "norm": row["norm"], "changed_bf16": row["changed_bf16"]} for row in experts]
    sparse = (
        correlation_interval(
            [row["norm"] for row in experts],
            [row["changed_bf16"] for row in experts],
            [(row["seed"], row["arm"]) for row in experts],
        )
        if len(experts) > 5
        else (float("nan"),) * 3
    )
    return {
        "method_of_claims": method,
        "experts": experts,
        "merges": merges,
        "headline": headline(facts),
        "best_methods": best_methods(facts),
        "barriers": barriers(facts),
        "twins": twins(facts),
        "conflict": conflict_table(facts),
        "headline_by_seed": {
            kind: difference_by_seed(facts, "sft", facts.config.reference, method, kind)
            for kind in facts.config.merging.comparisons
        },
        "claims": [
            {
                "name": c.name,
                "words": c.words,
                **c.number,
                "unit": c.unit,
                "figure": c.figure,
                "verdict": c.verdict,
                "note": c.note,
            }
            for c in claims(facts, method)
        ],
        "predictors": {
            kind: predictors(facts, method, kind) for kind in facts.config.merging.comparisons if kind != "equal_norm"
        },
        "bf16_sparsity_follows_norm": dict(zip(("value", "low", "high"), sparse, strict=True)),
        "precision": precision,
    }
