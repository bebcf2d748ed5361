"""DELLA and Breadcrumbs against mergekit 0.1.5; the references answer for ours too, so that both are checked."""

import numpy as np
import pytest

from tests import merging
from tests.parity import oracle
from tests.reference import METHODS, mask

#: Tensors in the order in which mergekit is given them.
NAMES = list(oracle.SHAPES)

BREADCRUMBS = [
    {"weight": [1.0, 1.0]},
    {"weight": [0.7, 0.4], "density": 0.5},
    {"weight": [0.7, 0.4], "density": [0.3, 0.8], "gamma": [0.1, 0.05]},
    {"weight": [0.7, 0.4, 0.9], "density": 0.9, "gamma": 0.3},
    {"weight": [0.7, 0.4], "density": 0.5, "gamma": 0.0},
    {"weight": [0.7, 0.4], "density": 0.33, "gamma": 0.2, "rescale": True},
    {"weight": [0.7, 0.4], "density": 0.5, "normalize": True, "lambda": 0.6},
]

#: No row of `oracle.SHAPES` may have one element: mergekit stops there (see `test_single_columns_stop_mergekit`).
DELLA = [
    {"weight": [1.0, 1.0]},
    {"weight": [0.7, 0.4], "density": 0.5},
    {"weight": [0.7, 0.4], "density": [0.4, 0.7], "epsilon": [0.3, 0.1]},
    {"weight": [0.7, 0.4, 0.9], "density": 0.5, "rescale": False},
    {"weight": [0.7, 0.4], "density": 0.3, "normalize": False, "lambda": 1.5},
    {"weight": [0.7, 0.4], "density": 0.3, "normalize": True},
]


def identify(parameters):
    return "-".join(f"{k}={v}" for k, v in parameters.items()).replace(" ", "")


@pytest.fixture(params=["reference", "engine"])
def ours(request):
    """`ours(method, base, experts, parameters)` -> merged tensors, from the reference or from the engine."""

    def reference(method, base, experts, parameters):
        merged = METHODS[method](base, experts, compat="mergekit", **parameters)
        return {name: m.rounded() for name, m in merged.items()}

    def engine(method, base, experts, parameters):
        return merging.merge(method, experts, base, parameters=parameters, compat="mergekit")

    return {"reference": reference, "engine": engine}[request.param]


@pytest.mark.parametrize("parameters", BREADCRUMBS, ids=identify)
@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs(ours, method, parameters):
    # Deltas that are exactly zero tie, and mergekit chooses among them as its sort happens to; they add nothing.
    base, experts = oracle.models(len(parameters["weight"]))
    oracle.assert_close(ours(method, base, experts, parameters), oracle.mergekit(method, base, experts, **parameters))


@pytest.fixture
def injected(monkeypatch):
    """Makes torch draw the numbers of our masks: tensor after tensor, expert after expert."""
    import torch

    def inject(names, experts):
        queue = [(name, at) for name in names for at in range(experts)]

        def bernoulli(p, **options):
            del options
            name, at = queue.pop(0)
            words = mask.words(0, name, at, p.numel()).astype(np.float64).reshape(tuple(p.shape))
            return torch.from_numpy(words / 2**32 < p.double().numpy()).to(p.dtype)

        monkeypatch.setattr(torch, "bernoulli", bernoulli)
        return queue

    return inject


@pytest.mark.parametrize("parameters", DELLA, ids=identify)
@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della_with_our_numbers(ours, injected, method, parameters):
    count = len(parameters["weight"])
    base, experts = oracle.models(count)
    for model in (base, *experts):
        del model["one"]
    queue = injected([n for n in NAMES if n != "one"], count)
    theirs = oracle.mergekit(method, base, experts, **parameters)
    assert (queue == []) == ("density" in parameters), "mergekit drew other masks than expected"
    oracle.assert_close(ours(method, base, experts, parameters), theirs)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_with_our_numbers(ours, injected, method):
    base, experts = oracle.models(2)
    parameters = {"weight": [0.7, 0.4], "density": [0.3, 0.6]}
    injected(NAMES, 2)
    theirs = oracle.mergekit(method, base, experts, **parameters)
    oracle.assert_close(ours(method, base, experts, parameters), theirs)


@pytest.mark.parametrize("shape", [(5, 1), (1,)])
def test_single_columns_stop_mergekit(ours, shape):
    base, expert = {"w": np.zeros(shape, np.float32)}, {"w": np.ones(shape, np.float32)}
    parameters = {"weight": [1.0], "density": 0.5}
    with pytest.raises(RuntimeError):
        oracle.mergekit("della", base, [expert], **parameters)
    assert np.isfinite(ours("della", base, [expert], parameters)["w"]).all()


def test_fp16_rescale_overflows_in_mergekit(ours):
    n = 80_000
    base = {"w": np.zeros(n, np.float16)}
    expert = {"w": np.where(np.arange(n) % 2, 1.0, -2.0).astype(np.float16)}
    parameters = {"weight": [1.0], "density": 0.5, "rescale": True}
    assert not np.isfinite(oracle.mergekit("ties", base, [expert], **parameters)["w"]).any()
    got = ours("ties", base, [expert], parameters)["w"].astype(np.float64)
    assert abs(np.abs(got).sum() / np.abs(expert["w"].astype(np.float64)).sum() - 1) < 1e-3
