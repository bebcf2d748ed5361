"""The oracle: every merge method written once more, in NumPy and f64, from the papers.

Nothing here shares code with the engine or is tuned for speed. Models are mappings from tensor name
to array, in the order in which the output holds its tensors. A method returns, for each tensor,
a `Merged`: the result *before* the one rounding to the output dtype, and how large a difference
between two correct f64 evaluations of the same formula can be.
"""

from tests.reference import (
    dare,
    fisher,
    linear,
    neuromerging,
    passthrough,
    regmean,
    resmerge,
    slerp,
    task_arithmetic,
    ties,
)
from tests.reference.conventions import Merged

METHODS = {
    "linear": linear.merge,
    "task_arithmetic": task_arithmetic.merge,
    "ties": ties.merge,
    "dare_linear": dare.merge_linear,
    "dare_ties": dare.merge_ties,
    "slerp": slerp.merge,
    "passthrough": passthrough.merge,
    "fisher": fisher.merge,
    "resmerge": resmerge.merge,
    "neuromerging": neuromerging.merge,
    "regmean": regmean.merge,
}

__all__ = ["METHODS", "Merged"]
