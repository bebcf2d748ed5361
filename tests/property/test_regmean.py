"""RegMean: against the reference, its laws, and Gram matrices that must be refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rlmerge
from tests import merging, tensorfile
from tests.property.test_laws import every_pattern, same
from tests.reference import METHODS
from tests.reference.conventions import assert_matches
from tests.reference.rounding import DTYPES, round_to, wide

#: Shape, and the side of the Gram matrix; none for tensors that have no matrix.
NAMES = {
    "layers.0.q_proj.weight": ((24, 16), 16),
    "layers.0.mlp.down_proj.weight": ((5, 40), 40),
    "layers.0.mlp.experts.up_proj": ((3, 8, 6), 6),
    "h.0.mlp.c_fc.weight": ((12, 20), 12),
    "one.row.weight": ((1, 7), 7),
    "one.column.weight": ((7, 1), 1),
    "norm.weight": ((16,), None),
    "scalar": ((), None),
    "empty": ((0, 4), None),
}


def gram(rng, side, examples=None, dead=()):
    """The Gram matrix of random inputs, some of which may be zero always."""
    x = rng.normal(size=(examples or 3 * side, side)) * rng.uniform(0.2, 3, side)
    x[:, list(dead)] = 0
    return (x.T @ x).astype(np.float32)


def models(seed, count, dtype="F32", names=None):
    rng = np.random.default_rng(seed)
    names = names or NAMES
    start = {n: rng.normal(0, 0.5, s) for n, (s, _) in names.items()}
    experts = [
        {n: round_to(start[n] + rng.normal(0, 0.05, s), DTYPES[dtype]) for n, (s, _) in names.items()}
        for _ in range(count)
    ]
    grams = []
    for _ in range(count):
        own = {}
        for n, (shape, side) in names.items():
            if side is not None:
                batch = [gram(rng, side) for _ in range(shape[0] if len(shape) == 3 else 1)]
                own[n] = np.stack(batch) if len(shape) == 3 else batch[0]
        grams.append(own)
    return experts, grams


def merge(experts, grams, *, shards=None, parameters=None, **options):
    """The engine's result on models and Gram matrices that are written first."""
    with merging.written([*experts, *grams], None, shards) as (paths, _, root):
        output = root / ("merged" if shards is not None else "merged.safetensors")
        given = {**(parameters or {}), "gram": paths[len(experts) :]}
        report = rlmerge.merge(paths[: len(experts)], method="regmean", output=output, parameters=given, **options)
        return tensorfile.read(output), report


def check(experts, grams, parameters=None):
    got, report = merge(experts, grams, parameters=parameters)
    want = METHODS["regmean"](None, experts, gram=grams, **(parameters or {}))
    assert got.keys() == want.keys()
    for name, merged in want.items():
        assert_matches(got[name], merged, name)
    return report


@given(data=st.data())
def test_any_models(data):
    count = data.draw(st.integers(1, 4))
    parameters = {}
    if data.draw(st.booleans()):
        parameters["alpha"] = data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    if data.draw(st.booleans()):
        parameters["weight"] = [data.draw(st.sampled_from([1.0, 0.3, 2.5])) for _ in range(count)]
    dtype = data.draw(st.sampled_from(["F64", "F32", "BF16", "F16"]))
    check(*models(data.draw(st.integers(0, 2**32 - 1)), count, dtype), parameters)


@pytest.mark.parametrize(
    ("name", "shape", "side"),
    [
        ("mlp.up_proj.weight", (1001, 300), 300),
        ("mlp.down_proj.weight", (300, 1100), 1100),
        ("h.0.mlp.c_fc.weight", (300, 1001), 300),
        ("mlp.experts.up_proj", (5, 300, 200), 200),
    ],
)
def test_large_tensors(name, shape, side):
    check(*models(1, 2, names={name: (shape, side)}))


def test_the_outputs_are_the_nearest_to_those_of_the_models():
    """No small change of the solution makes the sum of squared differences smaller."""
    experts, grams = models(2, 3, "F64", names={"a.weight": ((5, 8), 8)})
    got = merge(experts, grams, parameters={"alpha": 1.0})[0]["a.weight"]

    def cost(w):
        pairs = zip(experts, grams, strict=True)
        return sum(np.trace((w - e["a.weight"]) @ wide(g["a.weight"]) @ (w - e["a.weight"]).T) for e, g in pairs)

    rng = np.random.default_rng(0)
    assert all(cost(got) < cost(got + 1e-4 * rng.normal(size=got.shape)) for _ in range(50))


def test_alpha_zero_weighs_each_input_alone():
    experts, grams = models(3, 2, "F64", names={"a.weight": ((5, 8), 8)})
    got = merge(experts, grams, parameters={"alpha": 0.0})[0]["a.weight"]
    diagonals = [np.diag(wide(g["a.weight"])) for g in grams]
    want = sum(e["a.weight"] * d for e, d in zip(experts, diagonals, strict=True)) / sum(diagonals)
    assert np.allclose(got, want, rtol=1e-12)


def test_an_input_that_is_always_zero_is_averaged():
    experts, _ = models(4, 2, "F64", names={"a.weight": ((5, 8), 8)})
    rng = np.random.default_rng(0)
    grams = [{"a.weight": gram(rng, 8, dead=(2, 5))} for _ in range(2)]
    check(experts, grams)
    got = merge(experts, grams)[0]["a.weight"]
    mean = (experts[0]["a.weight"] + experts[1]["a.weight"]) / 2
    assert np.allclose(got[:, [2, 5]], mean[:, [2, 5]], rtol=1e-12)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8_E4M3"])
def test_equal_models_give_their_own_bytes(dtype):
    values = every_pattern(dtype)
    values = values[: len(values) // 16 * 16].reshape(-1, 16)
    grams = [{"w": gram(np.random.default_rng(i), 16)} for i in range(2)]
    same(merge([{"w": values}] * 2, grams)[0], {"w": values})


def test_equal_rows_stay():
    experts, grams = models(5, 2)
    name = "layers.0.q_proj.weight"
    experts[1][name] = experts[1][name].copy()
    experts[1][name][3:9] = experts[0][name][3:9]
    assert np.array_equal(merge(experts, grams)[0][name][3:9], experts[0][name][3:9])


def test_one_model_and_zero_weight():
    experts, grams = models(6, 2)
    same(merge(experts[:1], grams[:1])[0], experts[0])
    same(merge(experts, grams, parameters={"weight": [0.0, 1.0]})[0], experts[1])


def test_matrices_without_statistics_are_averaged_and_said():
    experts, grams = models(7, 2)
    del grams[0]["layers.0.q_proj.weight"]
    report = check(experts, grams, {"weight": [1.0, 3.0]})
    (note,) = [n for n in report.notes if "statistics" in n]
    assert "`layers.0.q_proj.weight`" in note


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_bytes_depend_neither_on_threads_nor_on_shards(threads):
    names = {"a.weight": ((900, 400), 400), "h.0.mlp.c_fc.weight": ((300, 1001), 300), "norm.weight": ((7,), None)}
    experts, grams = models(8, 2, "BF16", names=names)
    same(merge(experts, grams, threads=threads, shards=3)[0], merge(experts, grams, threads=1)[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: g.__setitem__((3, 3), -1.0), "negative value at element 51"),
        (lambda g: g.__setitem__((3, 4), np.nan), "not finite at element 52"),
        (lambda g: g.__setitem__((3, 4), g[3, 4] + 100), "not symmetric"),
        (lambda g: g.__setitem__(slice(None), 1.0), "not positive definite"),
    ],
    ids=["negative", "nan", "asymmetric", "singular"],
)
def test_matrices_that_no_inputs_have(change, words):
    experts, grams = models(9, 2)
    for g in grams:
        change(g["layers.0.q_proj.weight"])
    with pytest.raises(rlmerge.CheckpointError) as raised:
        merge(experts, grams, parameters={"alpha": 1.0})
    assert raised.value.code == "bad_statistics"
    assert raised.value.tensor == "layers.0.q_proj.weight"
    assert words in str(raised.value)


def test_shapes_and_tensors_that_have_no_gram_matrix():
    experts, grams = models(10, 2)
    grams[1]["layers.0.q_proj.weight"] = np.eye(24, dtype=np.float32)
    grams[1]["norm.weight"] = np.eye(16, dtype=np.float32)
    with pytest.raises(rlmerge.AlignmentError) as raised:
        merge(experts, grams)
    assert "[16, 16] expected" in str(raised.value)
    assert "no matrix" in str(raised.value)
