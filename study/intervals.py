"""Intervals: bootstraps over seeds and test items, and rank correlation. Everything is deterministic by seed."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DRAWS = 1000
LEVEL = 0.95


def bounds(draws: np.ndarray) -> tuple[float, float]:
    """Return the interval that holds the middle of the draws; NaN draws count for nothing."""
    kept = draws[np.isfinite(draws)]
    if not len(kept):
        return float("nan"), float("nan")
    low, high = np.quantile(kept, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def resample(seeds: int, items: int, draws: int = DRAWS) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw seeds and items with replacement; the same draws serve every number, so differences are paired.

    Returns
    -------
    list
        Pairs of seed indices [seeds] and item indices [items].
    """
    rng = np.random.default_rng(20260722)
    return [(rng.integers(0, seeds, seeds), rng.integers(0, items, items)) for _ in range(draws)]


@cache
def draw_weights(seeds: int, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the draws of `resample` as weights, [1 + draws, seeds] and [1 + draws, items]; the first is the whole.

    A mean over drawn seeds and items is then a product of matrices, which is much faster than a thousand means.
    """
    drawn = resample(seeds, items)
    by_seed = np.stack([np.ones(seeds), *(np.bincount(s, minlength=seeds) for s, _ in drawn)]) / seeds
    by_item = np.stack([np.ones(items), *(np.bincount(i, minlength=items) for _, i in drawn)]) / items
    return by_seed, by_item


def resampled_means(values: np.ndarray) -> np.ndarray:
    """Return means over seeds and items of [seeds, tasks, items], for the whole and each draw: [1 + draws, tasks]."""
    seeds, _, items = values.shape
    by_seed, by_item = draw_weights(seeds, items)
    found: np.ndarray = np.einsum("std,ds->dt", values @ by_item.T, by_seed)
    return found


def interval_of(drawn: np.ndarray, seeds: int) -> dict[str, float]:
    """Return the interval of a number that was made from `resampled_means`: the whole first, then every draw."""
    whole = float(drawn[0])
    low, high = bounds(widened(drawn[1:], whole, seeds))
    return {"value": whole, "low": low, "high": high}


def widened(draws: np.ndarray, whole: float, seeds: int) -> np.ndarray:
    """Spread draws by sqrt(n / (n - 1)): resampling n seeds shows only (n - 1) / n of their variance.

    With one seed nothing is known of the variance between seeds, and the draws stay as they are.
    """
    return whole + (draws - whole) * np.sqrt(seeds / (seeds - 1)) if seeds > 1 else draws


def standard_error(scores: Sequence[int]) -> float:
    """Return the standard error of a mean of zeros and ones."""
    values = np.asarray(scores, dtype=float)
    return float(np.sqrt(max(values.mean() * (1 - values.mean()), 1e-12) / len(values)))


def rank_correlation(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Return Spearman's rank correlation; equal values share their mean rank."""
    a, b = (ranks(np.asarray(values, dtype=float)) for values in (first, second))
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else float("nan")


def ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1; equal values share their mean rank."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    found: np.ndarray = (np.cumsum(count) - (count - 1) / 2)[place]
    return found


def correlation_interval(
    first: Sequence[float], second: Sequence[float], groups: Sequence[object]
) -> tuple[float, float, float]:
    """Return a rank correlation with its interval, resampling whole groups: pairs of one group share experts."""
    a, b = np.asarray(first, float), np.asarray(second, float)
    members = [np.flatnonzero([g == group for g in groups]) for group in dict.fromkeys(groups)]
    rng = np.random.default_rng(20260722)
    draws = []
    for _ in range(DRAWS):
        chosen = np.concatenate([members[at] for at in rng.integers(0, len(members), len(members))])
        draws.append(rank_correlation(a[chosen], b[chosen]))
    low, high = bounds(np.asarray(draws))
    return rank_correlation(first, second), low, high


def interval(measure: Callable[[np.ndarray, np.ndarray], float], seeds: int, items: int) -> dict[str, float]:
    """Measure something on all seeds and items, and on resampled ones.

    Parameters
    ----------
    measure
        Takes seed indices and item indices.
    """
    whole = measure(np.arange(seeds), np.arange(items))
    draws = np.asarray([measure(s, i) for s, i in resample(seeds, items)])
    low, high = bounds(widened(draws, whole, seeds))
    return {"value": whole, "low": low, "high": high}
