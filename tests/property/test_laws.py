"""Laws that need no oracle: order, zero weight, identity, layout and threads."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import merging, models, tensorfile
from tests.property import drawing
from tests.reference.rounding import ARITHMETIC, DTYPES, bits, ordinal, wide


def same(a: dict, b: dict) -> None:
    """Every tensor has the same dtype, shape and bytes."""
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].shape == b[name].shape, name
        different = np.flatnonzero(bits(a[name]).ravel() != bits(b[name]).ravel())
        assert not different.size, f"{name}: {different.size} elements differ, the first at {different[0]}"


def merged(method, base, experts, parameters=None, **options):
    """The engine's result; the base only where the method takes one."""
    return merging.merge(
        method, experts, base if method in drawing.DELTA_METHODS else None, parameters=parameters, **options
    )


UNSEEDED = ["linear", "task_arithmetic", "ties"]


@pytest.mark.parametrize("method", UNSEEDED)
@given(data=st.data())
def test_two_experts_in_either_order(method, data):
    base, experts, _ = data.draw(drawing.model_sets(count=2))
    if method == "linear":  # the output has the first model's dtype
        experts = [{n: t.astype(np.float32) for n, t in e.items()} for e in experts]
    weight = [data.draw(drawing.EIGHTHS), data.draw(drawing.EIGHTHS)]
    if sum(weight) == 0:
        weight = [1.0, 0.5]
    there = merged(method, base, experts, {"weight": weight})
    back = merged(method, base, experts[::-1], {"weight": weight[::-1]})
    same(there, back)


@given(data=st.data())
def test_slerp_from_either_end(data):
    _, experts, _ = data.draw(drawing.model_sets(count=2, dtypes=("F32",)))
    t = data.draw(st.sampled_from([0.25, 0.5, 0.125, 1.0]))
    same(merged("slerp", None, experts, {"t": t}), merged("slerp", None, experts[::-1], {"t": 1 - t}))


@pytest.mark.parametrize("method", UNSEEDED)
@given(data=st.data())
def test_three_experts_in_any_order(method, data):
    base, experts, _ = data.draw(drawing.model_sets(count=3, dtypes=("F32", "BF16", "F16"), regimes=["gauss", "grid"]))
    if method == "linear":
        experts = [{n: t.astype(np.float32) for n, t in e.items()} for e in experts]
    first = merged(method, base, experts, {"weight": [1.0, 0.5, 0.25]})
    order = data.draw(st.sampled_from(list(itertools.permutations(range(3)))))
    other = merged(method, base, [experts[i] for i in order], {"weight": [[1.0, 0.5, 0.25][i] for i in order]})
    for name in first:
        assert (np.abs(ordinal(first[name]) - ordinal(other[name])) <= 1).all(), name


@pytest.mark.parametrize("method", ["linear", *drawing.DELTA_METHODS])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_weight_zero_is_left_out(method, at):
    rng = np.random.default_rng(at)
    base = {"w": drawing.numbers(rng, "gauss", (40, 5), DTYPES["BF16"])}
    experts = [{"w": drawing.numbers(rng, "gauss", (40, 5), DTYPES["BF16"], wide(base["w"]))} for _ in range(2)]
    absurd = {"w": np.full((40, 5), np.nan).astype(ml_dtypes.bfloat16)}
    with_it, weights = experts.copy(), [0.75, 0.5]
    with_it.insert(at, absurd)
    weights.insert(at, 0.0)
    same(merged(method, base, experts, {"weight": [0.75, 0.5]}), merged(method, base, with_it, {"weight": weights}))


def every_pattern(dtype: str) -> np.ndarray:
    """All patterns of a small dtype; of larger ones many random patterns, with NaNs, infinities and both zeros."""
    width = DTYPES[dtype].itemsize
    if width <= 2:
        return np.arange(1 << (8 * width), dtype=f"u{width}").view(DTYPES[dtype])
    rng = np.random.default_rng(11)
    patterns = rng.integers(0, 1 << (8 * width), 20_000, dtype=f"u{width}", endpoint=False)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan]).astype(DTYPES[dtype]).view(f"u{width}")
    return np.concatenate([patterns, special, special | np.array(1, special.dtype)]).view(DTYPES[dtype])


ALONE = [
    ("linear", {}),
    ("linear", {"weight": 0.3}),
    ("linear", {"weight": 1.0, "normalize": False}),
    ("task_arithmetic", {}),
    ("task_arithmetic", {"weight": 0.3, "normalize": True}),
    ("ties", {"density": 1.0}),
    ("ties", {"density": 1.0, "weight": 0.3}),
    ("ties", {"density": 1.0, "normalize": False}),
    ("ties", {"density": 1.0, "scope": "model", "zero_sign": "majority", "ties": "all"}),
    ("dare_linear", {"density": 1.0}),
    ("dare_linear", {"density": 1.0, "rescale": "l1"}),
    ("dare_ties", {"density": 1.0}),
    ("passthrough", {}),
    ("passthrough", {"scale": 1.0}),
]


@pytest.mark.parametrize("dtype", ARITHMETIC)
@pytest.mark.parametrize(("method", "parameters"), ALONE)
def test_one_expert_at_weight_one_gives_its_own_bytes(method, parameters, dtype):
    expert = {"w": every_pattern(dtype), "scalar": every_pattern(dtype)[0].reshape(())}
    base = {n: t.ravel()[::-1].reshape(t.shape).copy() for n, t in expert.items()}
    same(merged(method, base, [expert], parameters), expert)


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_the_ends_of_slerp_are_the_models_own_bytes(t):
    rng = np.random.default_rng(0)
    ends = [{"w": drawing.numbers(rng, "wide", (1001,), DTYPES["BF16"])} for _ in range(2)]
    same(merged("slerp", None, ends, {"t": t}), ends[int(t)])


@pytest.mark.parametrize("dtype", ARITHMETIC)
@pytest.mark.parametrize("method", drawing.DELTA_METHODS)
@pytest.mark.parametrize("count", [1, 3])
def test_experts_equal_to_the_base_give_its_bytes(method, dtype, count):
    base = {"w": every_pattern(dtype)}
    parameters = {"lambda": 0.3, "weight": 0.7}
    same(merged(method, base, [base] * count, parameters), base)


@pytest.mark.parametrize("dtype", ARITHMETIC)
@pytest.mark.parametrize(("method", "parameters"), [("linear", {"weight": [0.3, 0.7]}), ("slerp", {"t": 0.3})])
def test_equal_models_give_their_own_bytes(method, parameters, dtype):
    values = every_pattern(dtype)
    if method == "slerp":
        values = values[np.isfinite(wide(values)) & (np.abs(wide(values)) < 1e150)]
    same(merged(method, None, [{"w": values}] * 2, parameters), {"w": values})


@pytest.mark.parametrize("method", drawing.DELTA_METHODS)
def test_an_unchanged_element_keeps_its_sign_of_zero(method):
    base = {"w": np.array([-0.0, 0.0, -0.0, 1.0], np.float32)}
    experts = [{"w": np.array([-0.0, -0.0, 0.0, 2.0], np.float32)}, {"w": np.array([0.0, 0.0, -0.0, 3.0], np.float32)}]
    got = merged(method, base, experts, {"density": 1.0} if method != "task_arithmetic" else {})["w"]
    assert bits(got)[:3].tolist() == [0x80000000, 0, 0x80000000]


@pytest.mark.parametrize("method", drawing.DELTA_METHODS)
@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16"])
def test_lambda_zero_gives_the_base(method, dtype):
    """lambda * delta is exactly 0 everywhere, so that every element keeps the base's bits."""
    base = {"w": np.array([-0.0, -0.0, 0.0, 1.0]).astype(DTYPES[dtype])}
    expert = {"w": np.array([5.0, -5.0, -3.0, 2.0]).astype(DTYPES[dtype])}
    density = {} if method == "task_arithmetic" else {"density": 1.0}
    same(merged(method, base, [expert], {"lambda": 0.0, **density}), base)


@pytest.mark.parametrize("dtype", ["U8", "I64", "BOOL", "I8", "U32"])
def test_equal_tensors_without_arithmetic_are_copied(dtype):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, (5, 3)).astype(DTYPES[dtype])
    model = {"w": np.ones(3, np.float32), "ids": values}
    for method in drawing.METHODS:
        count = {"passthrough": 1}.get(method, 2)
        same(merged(method, model, [model] * count, {"weight": 0.3} if method == "linear" else {}), model)


LAYOUT = [
    ("linear", {"weight": [0.3, 0.7]}),
    ("task_arithmetic", {"weight": [0.3, 0.7]}),
    ("ties", {}),
    ("ties", {"scope": "model", "zero_sign": "majority", "rescale": "l1"}),
    ("dare_linear", {"rescale": "l2"}),
    ("dare_ties", {}),
    ("slerp", {"t": 0.3}),
]


@pytest.mark.parametrize(("method", "parameters"), LAYOUT)
def test_bytes_do_not_depend_on_shards(method, parameters, tmp_path):
    import rlmerge

    base = models.weights("llama")
    experts = [models.fine_tuned(base, seed) for seed in (1, 2)]
    want = merged(method, base, experts, parameters)
    one = [
        models.write_folder(tmp_path / f"expert{i}", e, shards=s)
        for i, (e, s) in enumerate(zip(experts, (2, 5), strict=True))
    ]
    at = models.write_folder(tmp_path / "base", base, shards=3)
    for size in ("5GB", 40_000, 1):
        output = tmp_path / f"merged-{size}"
        rlmerge.merge(
            one,
            method=method,
            base=at if method in drawing.DELTA_METHODS else None,
            output=output,
            parameters=parameters,
            shard_size=size,
        )
        same(tensorfile.read(output), want)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize(("method", "parameters"), LAYOUT)
def test_bytes_do_not_depend_on_threads(method, parameters, dtype):
    base, experts = drawing.large(dtype, 2)
    results = [merged(method, base, experts, parameters, threads=threads) for threads in (1, 2, 7)]
    same(results[0], results[1])
    same(results[0], results[2])


def test_bytes_do_not_depend_on_where_the_data_begins(tmp_path):
    """Headers of odd lengths put tensors at addresses that no element type is aligned to."""
    import rlmerge

    base, experts = drawing.large("F32", 2, n=70_001)
    want = merged("ties", base, experts)
    for pad in (1, 3, 6):
        paths = []
        for i, tensors in enumerate([base, *experts]):
            path = tmp_path / f"{pad}-{i}.safetensors"
            tensorfile.write(path, tensors, pad=pad + i)
            paths.append(path)
        output = tmp_path / f"merged-{pad}.safetensors"
        rlmerge.merge(paths[1:], base=paths[0], method="ties", output=output)
        same(tensorfile.read(output), want)


def test_bytes_are_the_same_a_second_time():
    base, experts = drawing.large("BF16", 2, n=10_001)
    for method in ("dare_ties", "ties"):
        same(merged(method, base, experts, seed=3), merged(method, base, experts, seed=3))
