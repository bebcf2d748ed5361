"""The methods that look at angles, ours and mergekit's on the same f32 inputs."""

import numpy as np
import pytest

from tests import merging
from tests.parity import oracle
from tests.reference import METHODS

#: Method, whether there is a base, number of experts, parameters.
CASES = [
    ("nuslerp", True, 2, {"weight": [1.0, 1.0]}),
    ("nuslerp", True, 2, {"weight": [0.3, 0.9]}),
    ("nuslerp", True, 2, {"weight": [0.7, -0.2]}),
    ("nuslerp", True, 2, {"weight": [0.5, -0.5]}),
    ("nuslerp", True, 2, {"weight": [0.3, 0.9], "nuslerp_flatten": False}),
    ("nuslerp", True, 2, {"weight": [0.3, 0.9], "nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("nuslerp", False, 2, {"weight": [0.3, 0.9]}),
    ("nuslerp", False, 2, {"weight": [0.3, 0.9], "nuslerp_flatten": False}),
    ("nuslerp", False, 2, {"weight": [0.3, 0.9], "nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("multislerp", True, 2, {"weight": [1.0, 1.0]}),
    ("multislerp", True, 3, {"weight": [0.3, 0.9, 0.5]}),
    ("multislerp", True, 3, {"weight": [0.3, 0.9, 0.5], "normalize_weights": False}),
    ("multislerp", True, 3, {"weight": [0.3, 0.9, -0.2]}),
    ("multislerp", True, 1, {"weight": [0.3], "normalize_weights": False}),
    ("multislerp", False, 3, {"weight": [0.3, 0.9, 0.5]}),
    ("multislerp", False, 2, {"weight": [0.3, 0.0], "normalize_weights": False}),
    ("multislerp", True, 3, {"weight": [0.3, 0.9, 0.5], "eps": 1e-3}),
    ("karcher", False, 2, {}),
    ("karcher", False, 4, {}),
    ("karcher", False, 3, {"max_iter": 1}),
    ("karcher", False, 3, {"max_iter": 40, "tol": 1e-4}),
    ("karcher", False, 1, {}),
    ("model_stock", True, 2, {}),
    ("model_stock", True, 3, {}),
    ("model_stock", True, 5, {}),
    ("model_stock", True, 3, {"filter_wise": True}),
]


def identify(case):
    method, has_base, experts, parameters = case
    words = "-".join(f"{k}={v}" for k, v in parameters.items())
    return f"{method}-{'base' if has_base else 'plain'}-{experts}-{words}".replace(" ", "")


@pytest.fixture(params=["reference", "engine"])
def ours(request):
    """`ours(method, base, experts, parameters)` -> merged tensors, from the reference or from the engine."""

    def reference(method, base, experts, parameters):
        merged = METHODS[method](base, experts, compat="mergekit", **parameters)
        return {name: m.rounded() for name, m in merged.items()}

    def engine(method, base, experts, parameters):
        return merging.merge(method, experts, base, parameters=parameters, compat="mergekit")

    return {"reference": reference, "engine": engine}[request.param]


def fine_tuned(count: int, seed: int, common: float = 0.0):
    """A base and experts; with `common`, their deltas have a part in common, so that angles are acute."""
    base, experts = oracle.models(count, seed)
    rng = np.random.default_rng(seed + 100)
    shared = {n: rng.normal(0, common, b.shape).astype(np.float32) for n, b in base.items()}
    return base, [{n: e[n] + shared[n] for n in base} for e in experts]


def without(names, model: dict) -> dict:
    return {n: t for n, t in model.items() if n not in names}


@pytest.mark.parametrize("case", CASES, ids=identify)
@pytest.mark.parametrize("common", [0.0, 0.1], ids=["apart", "together"])
def test_same_result(ours, case, common):
    method, has_base, count, parameters = case
    base, experts = fine_tuned(count, 3, common)
    base = base if has_base else None
    if method == "model_stock":
        # Independent deltas have cosines near 0, and runs of few elements any; t has a pole at -1/(N - 1).
        drop = ("one", "kernel") if parameters.get("filter_wise") or common == 0 else ()
        base, experts = without(drop, base), [without(drop, e) for e in experts]
    if (
        method == "multislerp"
        and base is not None
        and len({np.sign(e["one"] - base["one"]).item() for e in experts}) > 1
    ):
        # Single elements of opposite signs: mergekit's direction is what its eps leaves of 1 - 1.
        base, experts = without(["one"], base), [without(["one"], e) for e in experts]
    if parameters.get("nuslerp_flatten") is False:
        base, experts = base and without(["kernel"], base), [without(["kernel"], e) for e in experts]
    oracle.assert_close(ours(method, base, experts, parameters), oracle.mergekit(method, base, experts, **parameters))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("method", ["karcher", "multislerp"])
def test_models_far_apart(ours, method, count):
    """Directions in all corners of the space, lengths of all sizes."""
    rng = np.random.default_rng(5)
    experts = [
        {n: rng.normal(0, 10.0**i, s).astype(np.float32) for n, s in oracle.SHAPES.items() if n != "one"}
        for i in range(count)
    ]
    parameters = {"weight": [0.3, 0.5, 0.9][:count]} if method == "multislerp" else {"max_iter": 30}
    theirs = oracle.mergekit(method, None, experts, **parameters)
    oracle.assert_close(
        ours(method, None, experts, parameters), theirs, tolerance=2e-5 if method == "karcher" else 3e-6
    )


@pytest.mark.parametrize("flatten", [True, False])
def test_nuslerp_of_a_frozen_tensor(ours, flatten):
    """One expert did not change: in mergekit its delta is orthogonal to everything."""
    base, experts = fine_tuned(2, 4)
    experts[0] = dict(base)
    parameters = {"weight": [0.4, 0.6], "nuslerp_flatten": flatten}
    theirs = oracle.mergekit("nuslerp", base, experts, **parameters)
    oracle.assert_close(ours("nuslerp", base, experts, parameters), theirs)


@pytest.mark.parametrize("has_base", [True, False])
def test_nuslerp_of_short_runs(ours, has_base):
    """Runs of three elements are often all but opposite, which f32 cannot tell apart: mergekit in f64 can."""
    base, experts = fine_tuned(2, 11)
    base, *experts = [{"kernel": m["kernel"].astype(np.float64)} for m in (base, *experts)]
    parameters = {"weight": [0.3, 0.9], "nuslerp_flatten": False}
    start = base if has_base else None
    theirs = oracle.mergekit("nuslerp", start, experts, **parameters)
    oracle.assert_close(ours("nuslerp", start, experts, parameters), theirs, tolerance=1e-9)


def test_karcher_leaves_out_what_is_tiny(ours):
    _, experts = fine_tuned(3, 6)
    experts[1] = {n: (t * np.float32(1e-8)) for n, t in experts[1].items()}
    oracle.assert_close(ours("karcher", None, experts, {}), oracle.mergekit("karcher", None, experts))


def test_model_stock_of_tiny_deltas(ours):
    """The bound on the product of norms, which pulls them to the base."""
    base, experts = fine_tuned(3, 7, 0.1)
    small = [{n: base[n] + (e[n] - base[n]) * np.float32(1e-3) for n in base if n != "one"} for e in experts]
    base = {n: b for n, b in base.items() if n != "one"}
    oracle.assert_close(ours("model_stock", base, small, {}), oracle.mergekit("model_stock", base, small))


def test_multislerp_of_a_tensor_that_nobody_changed():
    """mergekit stops with an error about antipodal models; ours keeps the base."""
    base, experts = fine_tuned(3, 8)
    for expert in experts:
        expert["vector"] = base["vector"]
    weights = {"weight": [0.5, 0.25, 0.25]}
    with pytest.raises(Exception, match=r"(?i)antipodal|mean|zero"):
        oracle.mergekit("multislerp", base, experts, **weights)
    for compat in ("paper", "mergekit"):
        got = merging.merge("multislerp", experts, base, parameters=weights, compat=compat)
        assert np.array_equal(got["vector"], base["vector"])
        assert not np.array_equal(got["wide"], base["wide"])


def test_model_stock_of_opposite_deltas():
    """mergekit goes far beyond all models, on the far side of the base; ours stays at the base."""
    rng = np.random.default_rng(9)
    base = {"w": rng.normal(0, 0.5, (16, 24)).astype(np.float32)}
    delta = rng.normal(0, 0.05, (16, 24)).astype(np.float32)
    other = (-delta + rng.normal(0, 0.01, delta.shape)).astype(np.float32)
    experts = [{"w": base["w"] + delta}, {"w": base["w"] + other}]
    reach = max(np.abs(e["w"] - base["w"]).max() for e in experts)
    theirs = oracle.mergekit("model_stock", base, experts)["w"]
    assert np.abs(theirs - base["w"]).max() > 2 * reach
    got = merging.merge("model_stock", experts, base)["w"]
    assert np.array_equal(got, base["w"])


def test_small_deltas_count_in_model_stock():
    """mergekit pulls a norm layer with two equal small deltas to the base; ours goes where both agree."""
    base = {"w": np.ones(64, np.float32)}
    expert = {"w": (1 + np.float32(1e-5) * np.arange(64) / 64).astype(np.float32)}
    theirs = oracle.mergekit("model_stock", base, [expert, expert])["w"]
    got = merging.merge("model_stock", [expert, expert], base)["w"]
    moved = np.abs(expert["w"] - base["w"]).max()
    assert np.abs(theirs - base["w"]).max() < 0.1 * moved
    assert np.abs(got - expert["w"]).max() < 0.1 * moved


@pytest.mark.parametrize("row_wise", [False, True])
def test_rows_are_rows(row_wise):
    """`nuslerp_row_wise` in mergekit runs along columns; ours means what it says, and reverses it on request."""
    base, experts = oracle.models(2, 10)
    names = ("wide", "long")
    base, experts = {n: base[n] for n in names}, [{n: e[n] for n in names} for e in experts]
    parameters = {"weight": [0.4, 0.6], "nuslerp_flatten": False}
    theirs = oracle.mergekit("nuslerp", base, experts, **parameters, nuslerp_row_wise=not row_wise)
    got = merging.merge("nuslerp", experts, base, parameters={**parameters, "nuslerp_row_wise": row_wise})
    oracle.assert_close(got, theirs)
