"""Ours and mergekit's on the same f32 inputs; the references answer for ours, so that both are checked."""

import numpy as np
import pytest

from tests import merging
from tests.parity import oracle
from tests.reference import METHODS

CASES = [
    ("linear", {"weight": [1.0, 1.0]}),
    ("linear", {"weight": [0.3, 0.9]}),
    ("linear", {"weight": [0.3, -0.1], "normalize": True}),
    ("linear", {"weight": [0.3, 0.5], "normalize": False}),
    ("linear", {"weight": [0.2, 0.5, 0.9]}),
    ("task_arithmetic", {"weight": [1.0, 1.0]}),
    ("task_arithmetic", {"weight": [0.7, -0.4]}),
    ("task_arithmetic", {"weight": [0.7, 0.4], "normalize": True}),
    ("task_arithmetic", {"weight": [0.7, 0.4, 0.2], "lambda": 0.6}),
    ("ties", {"weight": [1.0, 1.0]}),
    ("ties", {"weight": [1.0, 1.0], "density": 0.2}),
    ("ties", {"weight": [0.7, 0.4], "density": [0.3, 0.8]}),
    ("ties", {"weight": [0.7, 0.4, 0.9], "density": 0.5, "lambda": 1.5}),
    ("ties", {"weight": [0.7, 0.4, 0.9], "density": 0.5, "normalize": False}),
    ("ties", {"weight": [0.7, 0.4, 0.9], "density": 0.33, "rescale": True}),
    ("ties", {"weight": [0.7, -0.4], "density": 0.5}),
    ("ties", {"weight": [1.0, 1.0], "density": 0.01}),
    ("dare_linear", {"weight": [0.7, 0.4]}),
    ("dare_ties", {"weight": [0.7, 0.4]}),
    ("dare_ties", {"weight": [0.7, 0.4], "normalize": True}),
]


def identify(case):
    method, parameters = case
    return f"{method}-{'-'.join(f'{k}={v}' for k, v in parameters.items())}".replace(" ", "")


@pytest.fixture(params=["reference", "engine"])
def ours(request):
    """`ours(method, base, experts, parameters)` -> merged tensors, from the reference or from the engine."""

    def reference(method, base, experts, parameters):
        merged = METHODS[method](base, experts, compat="mergekit", **parameters)
        return {name: m.rounded() for name, m in merged.items()}

    def engine(method, base, experts, parameters):
        return merging.merge(method, experts, base, parameters=parameters, compat="mergekit")

    return {"reference": reference, "engine": engine}[request.param]


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_same_result(ours, case):
    method, parameters = case
    base, experts = oracle.models(len(parameters["weight"]))
    if method == "linear":
        base = None
    oracle.assert_close(ours(method, base, experts, parameters), oracle.mergekit(method, base, experts, **parameters))


@pytest.mark.parametrize("method", ["task_arithmetic", "dare_linear"])
@pytest.mark.parametrize("excess", [0.0, 1e-9, -1e-9])
def test_weights_that_nearly_cancel(method, excess):
    """mergekit leaves out the division below 1e-8. Refusing is as good; dividing by almost nothing is not."""
    import rlmerge

    parameters = {"weight": [0.7, -0.7 + excess], "normalize": True}
    base, experts = oracle.models(2)
    try:
        got = merging.merge(method, experts, base, parameters=parameters, compat="mergekit")
    except rlmerge.RecipeError as error:
        assert error.code == "zero_weight_sum"
        return
    oracle.assert_close(got, oracle.mergekit(method, base, experts, **parameters))


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("apart", [0.05, 1.0], ids=["parallel", "apart"])
def test_slerp(ours, t, apart):
    rng = np.random.default_rng(1)
    base, (expert,) = oracle.models(1)
    expert = {n: (e + apart * rng.normal(0, 0.5, e.shape)).astype(np.float32) for n, e in expert.items()}
    theirs = oracle.mergekit("slerp", base, [expert], t=t)
    oracle.assert_close(ours("slerp", base, [expert], {"t": t}), theirs)


def test_slerp_of_a_zero_end(ours):
    base, (expert,) = oracle.models(1)
    base = {n: np.zeros_like(b) for n, b in base.items()}
    theirs = oracle.mergekit("slerp", base, [expert], t=0.25)
    oracle.assert_close(ours("slerp", base, [expert], {"t": 0.25}), theirs)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_by_distribution(ours, method):
    """Kept fraction and mean of one large tensor: both draw, so neither number is the other's."""
    import torch

    torch.manual_seed(0)
    n, density = 250_000, 0.3
    rng = np.random.default_rng(2)
    base = {"w": np.zeros(n, np.float32)}
    expert = {"w": (rng.normal(0.5, 0.1, n)).astype(np.float32)}
    parameters = {"weight": [1.0], "density": density}
    theirs = oracle.mergekit(method, base, [expert], **parameters)["w"]
    mine = ours(method, base, [expert], parameters)["w"]
    spread = 5 * np.sqrt(density * (1 - density) / n)
    for merged in (theirs, mine):
        assert abs((merged != 0).mean() - density) < spread
        # The L1 rescale restores the norm of the delta, all of which is positive.
        assert abs(np.abs(merged).mean(dtype=np.float64) / np.abs(expert["w"]).mean(dtype=np.float64) - 1) < 1e-5
        kept = merged[merged != 0]
        assert abs(kept.mean(dtype=np.float64) * density / 0.5 - 1) < 0.01
    # Independent draws: both keep an element with probability density squared.
    assert abs(((theirs != 0) & (mine != 0)).mean() - density**2) < spread


def test_dare_paper_rescale_differs_from_mergekits():
    base, (expert,) = oracle.models(1)
    paper = METHODS["dare_linear"](base, [expert], density=0.3, seed=1)["wide"].value
    theirs = METHODS["dare_linear"](base, [expert], density=0.3, seed=1, compat="mergekit")["wide"].value
    moved = paper != base["wide"]
    ratio = (theirs - base["wide"])[moved] / (paper - base["wide"])[moved]
    assert np.ptp(ratio) < 1e-9
    assert abs(ratio[0] - 1) > 1e-3
