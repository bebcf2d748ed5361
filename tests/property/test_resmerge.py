"""ResMerge: against exact SVD, its rules for tensors that are no matrices, and its laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rlmerge
from tests import merging
from tests.property.test_laws import every_pattern, same
from tests.reference import METHODS
from tests.reference.conventions import assert_matches
from tests.reference.resmerge import head
from tests.reference.rounding import DTYPES, bits, round_to, wide

NAMES = {
    "model.layers.0.self_attn.q_proj.weight": (24, 16),
    "model.layers.0.mlp.down_proj.weight": (5, 40),
    "model.layers.0.mlp.experts.gate_up_proj": (3, 8, 6),
    "model.layers.0.mlp.gate.weight": (4, 6),
    "model.layers.0.input_layernorm.weight": (16,),
    "model.embed_tokens.weight": (9, 16),
    "some.matrix": (2, 7),
    "one.row": (1, 7),
    "one.column": (7, 1),
    "kernel": (3, 2, 3, 3),
    "scalar": (),
    "empty": (0, 4),
}


def delta(rng, shape, separated):
    """A delta whose largest singular values stand apart when wanted, some of its elements exactly zero."""
    value = rng.normal(0, 0.02, shape)
    if len(shape) >= 2 and separated and min(shape) > 0:
        left, right = rng.normal(size=(*shape[:-1], 1)), rng.normal(size=(*shape[:-2], 1, shape[-1]))
        value += 0.15 * left * right
    return value * (rng.random(shape) >= 0.1)


def models(seed, count, dtype="F32", separated=True, names=None):
    rng = np.random.default_rng(seed)
    shapes = names or NAMES
    base = {n: round_to(rng.normal(0, 0.5, s), DTYPES[dtype]) for n, s in shapes.items()}
    experts = [
        {n: round_to(wide(base[n]) + delta(rng, s, separated), DTYPES[dtype]) for n, s in shapes.items()}
        for _ in range(count)
    ]
    return base, experts


def check(base, experts, parameters=None, **options):
    got = merging.merge("resmerge", experts, base, parameters=parameters, **options)
    want = METHODS["resmerge"](base, experts, **(parameters or {}))
    assert got.keys() == want.keys()
    for name, merged in want.items():
        assert_matches(got[name], merged, name)
    return got


@given(data=st.data())
def test_against_exact_svd(data):
    count = data.draw(st.integers(2, 5))
    dtype = data.draw(st.sampled_from(["F64", "F32", "BF16", "F16"]))
    parameters = {}
    if data.draw(st.booleans()):
        parameters["lambda"] = data.draw(st.sampled_from([0.5, -1.0, 0.0]))
    if data.draw(st.booleans()):
        parameters |= {"beta_min": data.draw(st.sampled_from([0.0, 0.5, 1.0])), "beta_max": 1.5}
    if data.draw(st.booleans()):
        parameters["head_ratio_budget"] = data.draw(st.sampled_from([0.0, 1.0]))
    base, experts = models(data.draw(st.integers(0, 2**32 - 1)), count, dtype)
    check(base, experts, parameters)


@pytest.mark.parametrize("count", [2, 16])
def test_many_experts(count):
    check(*models(5, count))


def test_a_large_tensor_whose_components_stand_apart():
    """Five tiles; rows reach over their edges. Eight looks are more than enough."""
    shape = {"model.layers.0.mlp.up_proj.weight": (1001, 1037)}
    base, experts = models(1, 2, names=shape)
    check(base, experts, {"looks": 8})


def test_large_tensors_converge_with_more_looks():
    """No component stands apart, so that three looks give one that is nearly as large, and many looks the largest."""
    name = "model.layers.0.mlp.up_proj.weight"
    base, experts = models(2, 2, names={name: (700, 500)}, separated=False)
    deltas = [wide(e[name]) - wide(base[name]) for e in experts]
    exact = METHODS["resmerge"](base, experts)[name].value - wide(base[name])

    def distance(**parameters):
        got = wide(merging.merge("resmerge", experts, base, parameters=parameters)[name]) - wide(base[name])
        return np.linalg.norm(got - exact) / np.linalg.norm(exact)

    few, many = distance(), distance(looks=64)
    component = max(np.linalg.norm(head(d)) / np.linalg.norm(d) for d in deltas)
    assert many < 1e-4
    assert many < few < 2 * component


def test_stacked_experts_are_merged_as_if_they_stood_alone():
    names = {f"model.layers.0.mlp.experts.{i}.up_proj.weight": (40, 30) for i in range(5)}
    base, experts = models(3, 2, names=names)
    alone = merging.merge("resmerge", experts, base)
    stack = "model.layers.0.mlp.experts.up_proj"
    together = merging.merge(
        "resmerge",
        [{stack: np.stack(list(e.values()))} for e in experts],
        {stack: np.stack(list(base.values()))},
    )[stack]
    for i, name in enumerate(names):
        assert np.allclose(together[i], alone[name], rtol=1e-6, atol=1e-7)


def test_a_batch_that_spans_tiles():
    check(*models(4, 2, names={"layers.0.mlp.experts.up_proj": (7, 300, 200)}), {"looks": 8})


def test_transposed_storage_changes_nothing_but_the_place():
    base, experts = models(6, 3, "F64", names={"h.0.mlp.c_fc.weight": (30, 50)})
    straight = merging.merge("resmerge", experts, base)["h.0.mlp.c_fc.weight"]
    turned = [{"h.0.mlp.c_fc.weight": m["h.0.mlp.c_fc.weight"].T.copy()} for m in [base, *experts]]
    other = merging.merge("resmerge", turned[1:], turned[0])["h.0.mlp.c_fc.weight"]
    assert np.allclose(straight, other.T, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8_E4M3"])
def test_experts_equal_to_the_base_give_its_bytes(dtype):
    values = every_pattern(dtype)
    values = values[: len(values) // 16 * 16].reshape(16, -1)
    base = {"mlp.up_proj.weight": values, "norm.weight": values.ravel()}
    same(merging.merge("resmerge", [base] * 3, base), base)


def test_rows_that_no_expert_changed_keep_the_base():
    base, experts = models(7, 2)
    name = "model.layers.0.self_attn.q_proj.weight"
    for e in experts:
        e[name] = e[name].copy()
        e[name][3:9] = base[name][3:9]
    got = merging.merge("resmerge", experts, base)
    assert np.array_equal(bits(got[name])[3:9], bits(base[name])[3:9])


def test_the_order_of_experts_does_not_matter():
    base, experts = models(8, 3, "F64")
    there = merging.merge("resmerge", experts, base)
    back = merging.merge("resmerge", experts[::-1], base)
    for name in there:
        assert np.allclose(there[name], back[name], rtol=1e-9, atol=1e-11), name


def test_equal_experts_keep_their_residual():
    """Coherence and agreement are 1: the delta without its component, and a fifth of its norm along that."""
    base, (expert, _) = models(9, 2, "F64")
    got = merging.merge("resmerge", [expert] * 3, base)
    name = "model.layers.0.self_attn.q_proj.weight"
    d = expert[name] - base[name]
    h = head(d)
    want = d - h + 0.2 * np.linalg.norm(d - h) * h / np.linalg.norm(h)
    assert np.allclose(got[name] - base[name], want, atol=1e-8)


def test_a_delta_of_rank_one_has_no_residual():
    rng = np.random.default_rng(0)
    name = "mlp.up_proj.weight"
    base = {name: np.zeros((20, 30), np.float64)}
    experts = [{name: np.outer(rng.normal(size=20), rng.normal(size=30))} for _ in range(2)]
    same(merging.merge("resmerge", experts, base), base)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_bytes_depend_neither_on_threads_nor_on_shards(threads):
    names = {"layers.0.mlp.up_proj.weight": (1100, 900), "layers.0.mlp.experts.w": (5, 300, 250), "norm.weight": (7,)}
    base, experts = models(10, 2, "BF16", names=names, separated=False)
    want = merging.merge("resmerge", experts, base, threads=1)
    same(merging.merge("resmerge", experts, base, threads=threads, shards=3), want)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_an_error_in_a_matrix_and_stays_in_a_vector(value):
    base, experts = models(11, 2)
    vector = "model.layers.0.input_layernorm.weight"
    experts[0][vector] = experts[0][vector].copy()
    experts[0][vector][5] = value
    got = merging.merge("resmerge", experts, base)[vector]
    assert np.flatnonzero(~np.isfinite(got)).tolist() == [5]
    name = "some.matrix"
    experts[0][name] = experts[0][name].copy()
    experts[0][name][1, 2] = value
    with pytest.raises(rlmerge.NumericsError) as raised:
        merging.merge("resmerge", experts, base)
    assert raised.value.code == "non_finite"
    assert raised.value.tensor == name


def test_what_is_refused():
    base, experts = models(12, 2)
    for parameters, code in [({"beta_min": 2.0}, "recipe_invalid"), ({"looks": 0}, "parameter_out_of_range")]:
        with pytest.raises(rlmerge.RecipeError) as raised:
            merging.merge("resmerge", experts, base, parameters=parameters)
        assert raised.value.code == code
    with pytest.raises(rlmerge.RecipeError) as raised:
        merging.merge("resmerge", experts[:1], base)
    assert raised.value.code == "model_count"


def test_the_bound_on_memory_does_not_grow_with_the_rows():
    name = "mlp.up_proj.weight"
    bounds = []
    for rows in (600, 2400):
        base, experts = models(13, 2, names={name: (rows, 512)})
        with merging.written(experts, base) as (paths, at, root):
            plan = rlmerge.plan(paths, base=at, method="resmerge", output=root / "m.safetensors")
            bounds.append(plan.memory_bound_bytes)
    assert abs(bounds[1] - bounds[0]) < 1000
