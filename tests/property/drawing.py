"""What hypothesis draws: models of many shapes, dtypes and kinds of numbers, and settings of each method.

Hypothesis draws a seed and NumPy the numbers, so that large tensors stay cheap; a failing example is
reproduced from the printed settings alone.
"""

from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from tests.reference.rounding import ARITHMETIC, DTYPES, round_to, wide

#: Scalar, empty, one element, columns and rows, odd lengths around the vector width, several dimensions.
SHAPES = [(), (0,), (1,), (7, 1), (1, 5), (2, 0, 3), (15,), (33,), (3, 5, 7), (129, 3), (1031,)]

#: gauss: weights and small deltas; grid: few distinct values, hence ties and exact cancellation;
#: wide: every exponent that does not overflow; same: no deltas at all.
REGIMES = ["gauss", "grid", "wide", "same"]

DELTA_METHODS = ["task_arithmetic", "ties", "dare_linear", "dare_ties"]
METHODS = ["linear", *DELTA_METHODS, "slerp", "passthrough"]


@dataclass
class Case:
    """Inputs of one merge, and how they came about."""

    method: str
    base: dict | None
    experts: list[dict]
    parameters: dict
    options: dict
    origin: dict = field(default_factory=dict)

    def __repr__(self):
        return f"Case({self.method}, {self.parameters}, {self.options}, {self.origin})"


def numbers(rng: np.random.Generator, regime: str, shape, dtype: np.dtype, around: np.ndarray | None = None):
    """A tensor of one regime, near `around` where that makes sense."""
    if around is not None and regime == "same":
        return round_to(around, dtype)
    if regime == "wide":
        # Exponents that neither overflow a difference nor a sum of squares.
        low, high = {2: (-20, 12), 1: (-9, 5)}.get(dtype.itemsize, (-126, 100))
        if dtype == DTYPES["BF16"]:
            low, high = -126, 100
        value = rng.choice([-1.0, 1.0], shape) * rng.uniform(1, 2, shape) * 2.0 ** rng.integers(low, high, shape)
        return round_to(np.where(rng.random(shape) < 0.1, -0.0, value), dtype)
    if regime == "grid":
        step = 2.0**-3
        value = rng.integers(-3, 4, shape) * step
        return round_to(value + (around if around is not None else 0.0), dtype)
    if around is None:
        return round_to(rng.normal(0, 0.5, shape), dtype)
    return round_to(around + rng.normal(0, 0.05, shape) * (rng.random(shape) > 0.2), dtype)


@st.composite
def model_sets(draw, count: int | None = None, dtypes=ARITHMETIC, regimes=REGIMES):
    """A base and experts over the same tensors; returns them with a description."""
    experts = count if count is not None else draw(st.integers(1, 4), label="experts")
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4), label="shapes")
    regime = draw(st.sampled_from(regimes), label="regime")
    mixed = draw(st.sampled_from([False, False, False, True]), label="mixed")
    one = draw(st.sampled_from(dtypes), label="dtype")
    seed = draw(st.integers(0, 2**32 - 1), label="numbers")
    rng = np.random.default_rng(seed)

    def dtype():
        return DTYPES[str(rng.choice(dtypes)) if mixed else one]

    base, tuned = {}, [{} for _ in range(experts)]
    for i, shape in enumerate(shapes):
        name = f"layer.{i}.weight"
        base[name] = numbers(rng, regime, shape, dtype())
        for model in tuned:
            model[name] = numbers(rng, regime, shape, dtype(), wide(base[name]))
    origin = {"shapes": shapes, "regime": regime, "dtype": "mixed" if mixed else one, "numbers": seed}
    return base, tuned, origin


#: Multiples of 1/8, whose sums are exact in any order, and so are elections.
EIGHTHS = st.integers(-16, 16).map(lambda n: n / 8)
DECIMALS = st.sampled_from([1.0, 0.3, 0.7, -0.2, 1e-3, 2.5, 0.0])
DENSITIES = st.sampled_from([1.0, 0.9, 0.5, 0.2, 1 / 3, 0.01])


def scalar_or_list(draw, values, count: int, label: str):
    """One value for all experts, or one for each."""
    if draw(st.booleans(), label=f"{label} for each"):
        return [draw(values, label=label) for _ in range(count)]
    return draw(values, label=label)


def as_list(value, count: int) -> list:
    return value if isinstance(value, list) else [value] * count


@st.composite
def parameters(draw, method: str, count: int, compat: str):
    """Parameters of a method, some left to their defaults."""
    out = {}

    def maybe(name, values):
        if draw(st.booleans(), label=f"give {name}"):
            out[name] = draw(values, label=name)

    if method == "slerp":
        return {"t": draw(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.875, 1.0]), label="t")}
    if method == "passthrough":
        maybe("scale", st.sampled_from([1.0, 0.5, -1.0, 0.3, 0.0]))
        return out
    elects = method in ("ties", "dare_ties")
    if compat == "mergekit" or draw(st.booleans(), label="give weight"):
        out["weight"] = scalar_or_list(draw, EIGHTHS if elects else DECIMALS, count, "weight")
    if method != "linear":
        maybe("lambda", st.sampled_from([1.0, 0.5, -1.0, 0.3, 0.0]))
    maybe("normalize", st.booleans())
    weights = as_list(out.get("weight", 1.0), count)
    # A sum that nearly cancels magnifies rounding beyond any bound; that it is refused at 0 has a test of its own.
    if abs(sum(weights)) < 0.1 * sum(map(abs, weights)) or not any(weights):
        out["weight"] = 1.0
    if method in ("ties", "dare_linear", "dare_ties"):
        if draw(st.booleans(), label="give density"):
            out["density"] = scalar_or_list(draw, DENSITIES, count, "density")
        maybe("rescale", st.sampled_from(["none", "inverse_p", "l1", "l2"]))
    if elects:
        maybe("zero_sign", st.sampled_from(["plus", "minus", "majority"]))
    if method == "ties":
        maybe("ties", st.sampled_from(["index", "all"]))
        maybe("scope", st.sampled_from(["tensor", "model"]))
    return out


@st.composite
def cases(draw, method: str, dtypes=ARITHMETIC, regimes=REGIMES):
    """One merge by `method`."""
    count = {"passthrough": 1, "slerp": 2}.get(method)
    base, experts, origin = draw(model_sets(count=count, dtypes=dtypes, regimes=regimes))
    if method == "slerp" and draw(st.booleans(), label="base is an end"):
        experts = experts[1:]
    elif method not in DELTA_METHODS:
        base = None
    compat = draw(st.sampled_from(["paper", "paper", "mergekit"]), label="compat")
    options = {"compat": compat}
    if draw(st.booleans(), label="give dtype"):
        options["dtype"] = draw(st.sampled_from(dtypes), label="output dtype")
    if method.startswith("dare"):
        options["seed"] = draw(st.integers(0, 2**64 - 1), label="seed")
    return Case(method, base, experts, draw(parameters(method, len(experts), compat)), options, origin)


def large(dtype: str, experts: int, n: int = 3 * 2**18 + 17, seed: int = 0):
    """A model of one tensor that spans several tiles of 2**18 elements, and a small one on either side."""
    rng = np.random.default_rng(seed)
    shapes = {"before": (5,), "large": (n,), "after": (3, 7)}
    base = {name: numbers(rng, "gauss", s, DTYPES[dtype]) for name, s in shapes.items()}
    tuned = [
        {name: numbers(rng, "gauss", s, DTYPES[dtype], wide(base[name])) for name, s in shapes.items()}
        for _ in range(experts)
    ]
    return base, tuned
