"""Fixed inputs, made of hash output and small integers so that no library's random stream is involved.

Values, deltas and weights are short binary fractions: their sums are exact in f64 in any order, so that one
digest is right for every correct evaluation.
"""

from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from tests.reference.rounding import DTYPES, round_to, wide

SHAPES = {"a.weight": (3, 7), "b.weight": (2 * 2**18 + 1001,), "c.bias": (5,), "d.scalar": ()}
DTYPES_TESTED = ("F32", "BF16", "F16", "F8_E4M3")


@dataclass(frozen=True)
class Golden:
    """One merge."""

    method: str
    base: dict | None
    experts: list[dict]
    parameters: dict
    options: dict


def integers(label: str, shape: tuple[int, ...], width: int) -> np.ndarray:
    """Signed integers of `width` bytes out of a hash of `label`."""
    n = int(np.prod(shape, dtype=np.int64))
    data = blake3(label.encode()).digest(length=n * width)
    return np.frombuffer(data, f"<i{width}").reshape(shape).astype(np.float64)


def models(dtype: str, count: int) -> tuple[dict, list[dict]]:
    """A base, and experts that differ from it in most elements."""
    base, experts = {}, [{} for _ in range(count)]
    for name, shape in SHAPES.items():
        base[name] = round_to(integers(f"base {name}", shape, 2) * 2.0**-16, DTYPES[dtype])
        for i, expert in enumerate(experts):
            step = integers(f"delta {i} {name}", shape, 1)
            step = np.where(np.abs(step) < 32, 0, step)
            expert[name] = round_to(wide(base[name]) + step * 2.0**-12, DTYPES[dtype])
    return base, experts


SETTINGS: dict[str, tuple[str, dict, dict]] = {
    "linear": ("linear", {"weight": [0.25, 0.75]}, {}),
    "linear-sum": ("linear", {"weight": [0.5, 0.75], "normalize": False}, {}),
    "task_arithmetic": ("task_arithmetic", {"weight": [0.5, 0.75], "lambda": 0.5}, {}),
    "ties": ("ties", {}, {}),
    "ties-all-model": ("ties", {"density": 0.3, "scope": "model", "ties": "all", "zero_sign": "majority"}, {}),
    "ties-mergekit": ("ties", {"density": 0.5, "weight": [1.0, -0.5]}, {"compat": "mergekit"}),
    "dare_linear": ("dare_linear", {}, {"seed": 2**63 + 7}),
    "dare_ties": ("dare_ties", {"density": 0.25}, {"seed": 1}),
    "slerp": ("slerp", {"t": 0.25}, {}),
    "passthrough": ("passthrough", {"scale": 0.75}, {}),
    "magmax": ("magmax", {}, {}),
    "nearswap": ("nearswap", {"t": 0.015625}, {}),
    "sce": ("sce", {}, {}),
    "sce-mergekit": ("sce", {"select_topk": 0.5}, {"compat": "mergekit"}),
    "arcee_fusion": ("arcee_fusion", {}, {}),
    "metagpt": ("metagpt", {}, {}),
}

#: Methods of one expert.
ALONE = ("passthrough", "nearswap", "arcee_fusion")


def cases() -> dict[str, Golden]:
    """All merges, by name."""
    out = {}
    for dtype in DTYPES_TESTED:
        for name, (method, parameters, options) in SETTINGS.items():
            base, experts = models(dtype, 1 if method in ALONE else 2)
            if method in ("linear", "slerp", "passthrough"):
                base = None
            out[f"{name}-{dtype}"] = Golden(method, base, experts, parameters, options)
    return out
