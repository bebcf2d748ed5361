"""SCE, NearSwap and Arcee Fusion against mergekit 0.1.5, in its mode and on f32 inputs."""

import numpy as np
import pytest

from tests import merging
from tests.parity import oracle
from tests.reference import METHODS

SCE = [(n, topk) for n in (1, 2, 3, 16) for topk in (1.0, 0.5, 0.1, 0.01, 0.0)]


@pytest.fixture(params=["reference", "engine"])
def ours(request):
    """`ours(method, base, experts, **parameters)` -> merged tensors, from the reference or from the engine."""

    def reference(method, base, experts, **parameters):
        merged = METHODS[method](base, experts, compat="mergekit", **parameters)
        return {name: m.rounded() for name, m in merged.items()}

    def engine(method, base, experts, **parameters):
        return merging.merge(method, experts, base, parameters=parameters, compat="mergekit")

    return {"reference": reference, "engine": engine}[request.param]


@pytest.mark.parametrize(("count", "topk"), SCE)
def test_sce(ours, count, topk):
    base, experts = oracle.models(count)
    theirs = oracle.mergekit("sce", base, experts, select_topk=topk)
    oracle.assert_close(ours("sce", base, experts, select_topk=topk), theirs)


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6])
def test_sce_of_small_updates(ours, size):
    """Below a mean square of 1e-6 both weigh all alike."""
    base, _ = oracle.models(1)
    rng = np.random.default_rng(3)
    base = {n: np.zeros_like(b) for n, b in base.items()}
    experts = [{n: (k * size * rng.normal(size=b.shape)).astype(np.float32) for n, b in base.items()} for k in (1, 3)]
    theirs = oracle.mergekit("sce", base, experts, select_topk=1.0)
    oracle.assert_close(ours("sce", base, experts, select_topk=1.0), theirs)


@pytest.mark.parametrize("t", [1e-7, 5e-7, 1e-6, 1e-4, 0.02, 0.1, 5.0, 0.0])
def test_nearswap(ours, t):
    base, experts = oracle.models(1)
    oracle.assert_close(ours("nearswap", base, experts, t=t), oracle.mergekit("nearswap", base, experts, t=t))


@pytest.mark.parametrize("t", [1e-7, 5e-7, 1e-6])
def test_nearswap_closer_than_its_least_divisor(ours, t):
    base, _ = oracle.models(1)
    rng = np.random.default_rng(4)
    zeros = {n: np.zeros_like(b) for n, b in base.items()}
    expert = {n: (1e-6 * rng.normal(size=b.shape)).astype(np.float32) for n, b in base.items()}
    oracle.assert_close(ours("nearswap", zeros, [expert], t=t), oracle.mergekit("nearswap", zeros, [expert], t=t))


@pytest.mark.parametrize("seed", range(6))
def test_arcee_fusion(ours, seed):
    """But for elements whose score f32 cannot tell from the threshold: at most one of a tensor here."""
    base, experts = oracle.models(1, seed=seed)
    theirs = oracle.mergekit("arcee_fusion", base, experts)
    mine = ours("arcee_fusion", base, experts)
    for name, want in theirs.items():
        apart = np.abs(np.float64(mine[name]) - want) > 3e-6 * np.abs(want).max()
        assert apart.sum() <= 1, name


def test_arcee_fusion_of_small_changes_differs_because_mergekits_divergences_are_noise():
    rng = np.random.default_rng(5)
    base = {"w": rng.normal(0, 0.02, (64, 256)).astype(np.float32)}
    delta = rng.normal(0, 3e-5, (64, 256))
    delta[7] *= 3
    expert = {"w": (base["w"] + delta).astype(np.float32)}
    rows = np.arange(64) != 7
    theirs = oracle.mergekit("arcee_fusion", base, [expert])["w"] != base["w"]
    mine = merging.merge("arcee_fusion", [expert], base, compat="mergekit")["w"] != base["w"]
    # The row that changed most stands out by its divergence, nine times the others', only if that is computed rightly.
    assert mine[7].mean() > 0.9
    assert np.ptp(mine[rows].mean(axis=1)) < np.ptp(theirs[rows].mean(axis=1))


@pytest.mark.parametrize("method", ["sce", "nearswap", "arcee_fusion"])
def test_a_nan_spreads_with_mergekit_and_not_here(method):
    base, experts = oracle.models(1 if method != "sce" else 2)
    experts[0]["wide"][3, 5] = np.nan
    parameters = {"nearswap": {"t": 0.01}, "sce": {"select_topk": 0.5}}.get(method, {})
    theirs = oracle.mergekit(method, base, experts, **parameters)["wide"]
    mine = merging.merge(method, experts, base, parameters=parameters, compat="mergekit")["wide"]
    assert np.isnan(mine).sum() == 1
    assert np.isnan(mine[3, 5])
    if method == "sce":
        assert np.isnan(theirs).sum() > 1
