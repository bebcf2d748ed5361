"""NeuroMerging: against the reference, for neurons in rows and in columns, and its laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rlmerge
from tests import merging
from tests.property.test_laws import every_pattern, same
from tests.reference import METHODS
from tests.reference.conventions import assert_matches
from tests.reference.rounding import DTYPES, bits, round_to, wide

NAMES = {
    "model.layers.0.self_attn.q_proj.weight": (24, 16),
    "model.layers.0.mlp.down_proj.weight": (5, 40),
    "model.layers.0.mlp.experts.gate_up_proj": (3, 8, 6),
    "model.layers.0.mlp.gate.weight": (4, 6),
    "model.layers.0.input_layernorm.weight": (16,),
    "model.embed_tokens.weight": (9, 16),
    "transformer.h.0.mlp.c_fc.weight": (12, 20),
    "one.row": (1, 7),
    "one.column": (7, 1),
    "kernel": (3, 2, 3, 3),
    "scalar": (),
    "empty": (0, 4),
}


def models(seed, count, dtype="F32", names=None, zeros=0.2):
    rng = np.random.default_rng(seed)
    shapes = names or NAMES
    base = {n: round_to(rng.normal(0, 0.5, s), DTYPES[dtype]) for n, s in shapes.items()}
    experts = [
        {
            n: round_to(wide(base[n]) + rng.normal(0, 0.05, s) * (rng.random(s) >= zeros), DTYPES[dtype])
            for n, s in shapes.items()
        }
        for _ in range(count)
    ]
    return base, experts


def check(base, experts, parameters=None, **options):
    got = merging.merge("neuromerging", experts, base, parameters=parameters, **options)
    want = METHODS["neuromerging"](base, experts, **(parameters or {}))
    assert got.keys() == want.keys()
    for name, merged in want.items():
        assert_matches(got[name], merged, name)
    return got


@given(data=st.data())
def test_any_models(data):
    count = data.draw(st.integers(1, 5))
    parameters = {}
    if data.draw(st.booleans()):
        parameters["density"] = data.draw(st.sampled_from([1.0, 0.5, 0.9, [0.3 + 0.1 * i for i in range(count)]]))
    if data.draw(st.booleans()):
        parameters["lambda_1"] = data.draw(st.sampled_from([1.0, -0.5]))
    if data.draw(st.booleans()):
        parameters["lambda_2"] = data.draw(st.sampled_from([0.0, 0.3, -1.0]))
    if data.draw(st.booleans()):
        parameters["auto_scale"] = data.draw(st.booleans())
    base, experts = models(
        data.draw(st.integers(0, 2**32 - 1)), count, data.draw(st.sampled_from(["F64", "F32", "BF16", "F16"]))
    )
    check(base, experts, parameters)


@pytest.mark.parametrize("count", [2, 16])
def test_many_experts(count):
    check(*models(5, count), {"lambda_1": 0.5})


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "transformer.h.0.mlp.c_fc.weight"])
def test_large_tensors(name):
    """Several tiles; rows reach over their edges, columns over all tiles."""
    check(*models(1, 2, names={name: (901, 613)}))


def test_neurons_in_columns_are_neurons_in_rows():
    base, experts = models(2, 3, "F64", names={"transformer.h.0.mlp.c_fc.weight": (30, 50)})
    straight = merging.merge("neuromerging", experts, base)["transformer.h.0.mlp.c_fc.weight"]
    turned = [{"layers.0.mlp.up.weight": m["transformer.h.0.mlp.c_fc.weight"].T.copy()} for m in [base, *experts]]
    other = merging.merge("neuromerging", turned[1:], turned[0])["layers.0.mlp.up.weight"]
    assert np.allclose(straight, other.T, rtol=1e-9, atol=1e-12)


def test_stacked_experts_are_batches_of_matrices():
    check(*models(3, 2, names={"layers.0.mlp.experts.up_proj": (7, 300, 200)}))


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8_E4M3"])
def test_experts_equal_to_the_base_give_its_bytes(dtype):
    values = every_pattern(dtype)
    values = values[: len(values) // 16 * 16].reshape(16, -1)
    base = {"mlp.up_proj.weight": values, "norm.weight": values.ravel(), "h.0.mlp.c_fc.weight": values}
    same(merging.merge("neuromerging", [base] * 3, base), base)


def test_one_expert_keeps_what_lies_across_the_base():
    base, (expert,) = models(4, 1, "F64")
    got = merging.merge("neuromerging", [expert], base, parameters={"density": 1.0})
    name = "model.layers.0.self_attn.q_proj.weight"
    w, d = base[name], expert[name] - base[name]
    want = d - (d * w).sum(1, keepdims=True) / (w * w).sum(1, keepdims=True) * w
    assert np.allclose(got[name] - w, want, atol=1e-12)
    assert np.allclose(((got[name] - w) * w).sum(1), 0, atol=1e-12)
    everything = merging.merge("neuromerging", [expert], base, parameters={"density": 1.0, "lambda_1": 1.0})
    assert np.allclose(everything[name], expert[name], atol=1e-12)


def test_rows_that_no_expert_changed_keep_the_base():
    base, experts = models(6, 2)
    name = "model.layers.0.self_attn.q_proj.weight"
    for e in experts:
        e[name] = e[name].copy()
        e[name][3:9] = base[name][3:9]
    got = merging.merge("neuromerging", experts, base)
    assert np.array_equal(bits(got[name])[3:9], bits(base[name])[3:9])


def test_opposite_deltas_cancel_and_a_base_of_zeros_has_no_direction():
    rng = np.random.default_rng(0)
    name = "mlp.up_proj.weight"
    base = {name: np.zeros((6, 8), np.float64)}
    d = rng.normal(size=(6, 8))
    same(merging.merge("neuromerging", [{name: d}, {name: -d}], base, parameters={"density": 1.0}), base)
    got = merging.merge("neuromerging", [{name: d}, {name: d}], base, parameters={"density": 1.0})[name]
    assert np.allclose(got, d)


def test_the_order_of_experts_does_not_matter():
    base, experts = models(8, 3, "F64")
    there = merging.merge("neuromerging", experts, base, parameters={"lambda_1": 1.0})
    back = merging.merge("neuromerging", experts[::-1], base, parameters={"lambda_1": 1.0})
    for name in there:
        assert np.allclose(there[name], back[name], rtol=1e-9, atol=1e-11), name


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_bytes_depend_neither_on_threads_nor_on_shards(threads):
    names = {"layers.0.mlp.up_proj.weight": (1100, 900), "h.0.mlp.c_fc.weight": (700, 900), "norm.weight": (7,)}
    base, experts = models(10, 2, "BF16", names=names)
    want = merging.merge("neuromerging", experts, base, threads=1)
    same(merging.merge("neuromerging", experts, base, threads=threads, shards=3), want)


def test_a_nan_stays_in_its_neuron():
    base, experts = models(11, 2)
    row, column = "model.layers.0.self_attn.q_proj.weight", "transformer.h.0.mlp.c_fc.weight"
    for name in (row, column):
        experts[0][name] = experts[0][name].copy()
        experts[0][name][2, 3] = np.nan
    got = merging.merge("neuromerging", experts, base, parameters={"density": 1.0, "auto_scale": False})
    assert set(np.argwhere(np.isnan(got[row]))[:, 0]) == {2}
    assert set(np.argwhere(np.isnan(got[column]))[:, 1]) == {3}


def test_what_is_refused():
    base, experts = models(12, 2)
    with pytest.raises(rlmerge.RecipeError) as raised:
        merging.merge("neuromerging", experts, base, parameters={"density": 0.0})
    assert raised.value.code == "parameter_out_of_range"
