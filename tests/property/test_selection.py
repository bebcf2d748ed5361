"""Which elements are kept, exactly: over a base of zeros the output's non-zero elements are the mask."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import merging
from tests.property import drawing
from tests.reference import mask, ties
from tests.reference.rounding import DTYPES, round_to, wide


def over_zeros(rng, shapes, dtype, distinct):
    """A base of zeros and an expert with `distinct` different magnitudes and no zeros."""
    base = {n: np.zeros(s, DTYPES[dtype]) for n, s in shapes.items()}
    expert = {}
    for name, shape in shapes.items():
        magnitude = (rng.integers(1, distinct + 1, shape)) / 8
        expert[name] = round_to(magnitude * rng.choice([-1, 1], shape), DTYPES[dtype])
    return base, expert


@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(["F32", "BF16", "F16", "F64"]),
    distinct=st.sampled_from([1, 3, 100]),
    density=drawing.DENSITIES,
    scope=st.sampled_from(["tensor", "model"]),
    rule=st.sampled_from(["index", "all"]),
    compat=st.sampled_from(["paper", "mergekit"]),
)
def test_ties_keeps_exactly_these(seed, dtype, distinct, density, scope, rule, compat):
    rng = np.random.default_rng(seed)
    base, expert = over_zeros(rng, {"b": (37,), "a": (16, 25), "c": (), "d": (1,)}, dtype, distinct)
    parameters = {"weight": 1.0, "density": density, "scope": scope, "ties": rule}
    got = merging.merge("ties", [expert], base, parameters=parameters, compat=compat)
    want = ties.masks(base, [expert], [density], scope=scope, ties=rule, compat=compat)
    for name in base:
        assert ((wide(got[name]) != 0) == want[name][0]).all(), name
        assert (got[name][want[name][0]] == expert[name][want[name][0]]).all()
    if rule == "index" and scope == "model" and compat == "paper":
        assert sum((wide(t) != 0).sum() for t in got.values()) == ties.kept_count(density, 439, "paper")


@pytest.mark.parametrize("rule", ["index", "all"])
@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_a_tie_group_over_several_tiles(rule, scope):
    """In bf16 many elements sit on the threshold; which of them stay must not depend on tiles."""
    n = 2 * 2**18 + 1001
    rng = np.random.default_rng(3)
    base, expert = over_zeros(rng, {"small": (1000,), "large": (n,)}, "BF16", 4)
    parameters = {"density": 0.3, "ties": rule, "scope": scope}
    want = ties.masks(base, [expert], [0.3], scope=scope, ties=rule)
    for threads in (1, 2, 7):
        got = merging.merge("ties", [expert], base, parameters=parameters, threads=threads)
        for name in base:
            assert ((wide(got[name]) != 0) == want[name][0]).all(), name


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_f64_deltas_are_ranked_by_all_their_bits(scope):
    """Magnitudes that f32 cannot tell apart; whole-model ranking mixes them with f32 deltas of the same size."""
    rng = np.random.default_rng(4)
    base = {"f64": np.zeros(1000), "f32": np.zeros(500, np.float32)}
    near = 1 + (rng.permutation(1000) - 500) * 2.0**-50
    expert = {"f64": near * rng.choice([-1, 1], 1000), "f32": np.ones(500, np.float32)}
    got = merging.merge("ties", [expert], base, parameters={"density": 0.4, "scope": scope})
    want = ties.masks(base, [expert], [0.4], scope=scope)
    for name in base:
        assert ((got[name] != 0) == want[name][0]).all(), name


@given(
    seed=st.integers(0, 2**64 - 1),
    density=st.sampled_from([0.5, 0.1, 0.9, 1 / 3, 1.0, 1e-3]),
    name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20),
    shape=st.sampled_from([(), (1,), (3,), (4,), (5,), (1023,), (9, 1, 57)]),
    method=st.sampled_from(["dare_linear", "dare_ties"]),
)
def test_dare_keeps_exactly_these(seed, density, name, shape, method):
    if name == "__metadata__":
        name = "weight"
    rng = np.random.default_rng(0)
    base, expert = over_zeros(rng, {name: shape}, "F32", 50)
    got = merging.merge(method, [expert], base, parameters={"density": density}, seed=seed)[name]
    want = mask.keep(seed, name, 0, shape, density)
    assert ((got != 0) == want).all()
    assert np.allclose(got[want], expert[name][want] / density, rtol=1e-6, atol=0)


def test_each_expert_has_its_own_mask():
    n = 50_000
    base = {"w": np.zeros(n, np.float32)}
    experts = [{"w": np.full(n, v, np.float32)} for v in (1, 3, 9)]
    got = merging.merge(
        "dare_linear", experts, base, parameters={"density": [0.5, 0.25, 1.0], "rescale": "none"}, seed=5
    )["w"]
    want = sum(
        mask.keep(5, "w", i, (n,), d) * v for i, (v, d) in enumerate(zip((1, 3, 9), (0.5, 0.25, 1.0), strict=True))
    )
    assert (got == want).all()


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_by_distribution(density):
    n = 3 * 2**18 + 17
    base = {"w": np.zeros(n, np.float32)}
    expert = {"w": np.ones(n, np.float32)}
    kept = [
        merging.merge("dare", [expert], base, parameters={"density": density}, seed=seed)["w"] != 0 for seed in (0, 1)
    ]
    spread = 5 * np.sqrt(density * (1 - density) / n)
    for m in kept:
        assert abs(m.mean() - density) < spread
    both = density**2
    assert abs((kept[0] & kept[1]).mean() - both) < 5 * np.sqrt(both * (1 - both) / n), "two seeds are independent"
    for lag in (1, 2, 3, 4, 2**18):
        assert abs((kept[0][lag:] & kept[0][:-lag]).mean() - both) < 5 * np.sqrt(both / n), f"neighbours at {lag}"
