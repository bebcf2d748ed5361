"""What holds for every row of the table of methods: an oracle, and tensors and models at the edges.

A new method is tested here as soon as its row is there. Methods that need statistics besides models have the same
cases in tests of their own.
"""

import numpy as np
import pytest

import rlmerge
from tests import merging
from tests.reference import METHODS
from tests.reference.conventions import assert_matches
from tests.reference.rounding import DTYPES, round_to, wide

TABLE = {m.name: m for m in rlmerge.methods()}
FROM_MODELS = [name for name, m in TABLE.items() if all(p.kind != "path" for p in m.parameters)]

SHAPES = {
    "scalar": (),
    "one": (1,),
    "empty": (0, 3),
    "two": (2,),
    "row": (1, 7),
    "column": (7, 1),
    "model.layers.0.mlp.up_proj.weight": (5, 9),
    "model.layers.0.mlp.experts.gate_up_proj": (3, 4, 6),
    "model.layers.0.mlp.gate.weight": (3, 5),
    "kernel": (2, 3, 3, 3),
    "frozen": (4, 6),
    "zeros": (4, 6),
}


def test_every_method_has_an_oracle():
    assert set(METHODS) == set(TABLE)


def number_of_experts(method: str, most: int) -> int:
    return min(most, TABLE[method].max_experts or most)


def models(dtype: str, count: int, seed: int = 0):
    """A base and experts; nobody changed `frozen`, and `zeros` is zero everywhere."""
    rng = np.random.default_rng(seed)
    base = {n: round_to(rng.normal(0, 0.5, s), DTYPES[dtype]) for n, s in SHAPES.items()}
    base["zeros"] = np.zeros_like(base["zeros"])
    experts = []
    for _ in range(count):
        tuned = {}
        for name, tensor in base.items():
            moved = wide(tensor) + rng.normal(0, 0.05, tensor.shape) * (rng.random(tensor.shape) >= 0.2)
            tuned[name] = tensor if name in ("frozen", "zeros") else round_to(moved, DTYPES[dtype])
        experts.append(tuned)
    return base, experts


def start(method: str, base, experts):
    """The base to give, and the experts: a method that takes its first model for a base gets one model more."""
    if TABLE[method].base == "none":
        return None, experts
    if TABLE[method].base == "model":
        return base, experts[: (TABLE[method].max_experts or 2) - 1]
    return base, experts


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("count", [2, 16])
@pytest.mark.parametrize("method", FROM_MODELS)
def test_small_tensors_and_many_experts(method, count, dtype):
    """Tensors of no and of one element, fewer elements than experts, frozen tensors, zero norms."""
    base, experts = models(dtype, number_of_experts(method, count))
    base, experts = start(method, base, experts)
    got = merging.merge(method, experts, base)
    want = METHODS[method](base, experts)
    assert got.keys() == want.keys()
    for name, merged in want.items():
        if method == "resmerge" and merged.value.ndim >= 2:
            # Sixteen experts of noise have no largest singular value that stands apart.
            scale = np.abs(merged.value).max(initial=1e-30)
            assert np.allclose(wide(got[name]), merged.value, atol=scale * (1e-5 if dtype == "F32" else 1e-2)), name
        else:
            assert_matches(got[name], merged, name)


@pytest.mark.parametrize("method", FROM_MODELS)
def test_equal_experts(method):
    """Experts that are all the same, and experts that are all the base."""
    base, experts = models("F32", 1)
    count = number_of_experts(method, 3)
    for expert in (experts[0], base):
        first, alike = start(method, base, [expert] * count)
        got = merging.merge(method, alike, first)
        want = METHODS[method](first, alike)
        for name, merged in want.items():
            if method == "resmerge":
                np.testing.assert_allclose(got[name], merged.value, rtol=1e-5, atol=1e-7)
            else:
                assert_matches(got[name], merged, name)
        if expert is base and first is not None:
            assert merging.digest(got) == merging.digest(base)


@pytest.mark.parametrize("method", FROM_MODELS)
def test_bytes_do_not_depend_on_threads_or_shards(method):
    base, experts = models("BF16", number_of_experts(method, 3), seed=1)
    base, experts = start(method, base, experts)
    runs = [
        merging.merge(method, experts, base, threads=threads, shards=shards, io=io)
        for threads, shards, io in ((1, 1, "pread"), (2, 3, "mmap"), (7, 2, "pread"))
    ]
    assert len({merging.digest(run) for run in runs}) == 1


@pytest.mark.parametrize("method", FROM_MODELS)
def test_one_nan_does_not_become_many(method):
    """A NaN stays in its element, or in its row or matrix where the formula mixes those, or is refused by name."""
    base, experts = models("F32", number_of_experts(method, 2))
    base, experts = start(method, base, experts)
    name = "model.layers.0.mlp.up_proj.weight"
    experts[0] = {**experts[0], name: experts[0][name].copy()}
    experts[0][name][2, 3] = np.nan
    try:
        got = merging.merge(method, experts, base)
    except rlmerge.RlmergeError as error:
        assert error.code == "non_finite"
        assert name in str(error)
        return
    lost = ~np.isfinite(got[name])
    assert lost[2, 3] or np.isfinite(got[name]).all()
    assert not lost[:2].any() and not lost[3:].any()
    assert all(np.isfinite(wide(t)).all() for n, t in got.items() if n != name)
