"""The methods that look at angles: against their references, and the laws that need none."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rlmerge
from tests import merging, tensorfile
from tests.property import drawing
from tests.property.test_laws import every_pattern, same
from tests.reference import METHODS, multislerp
from tests.reference.conventions import assert_matches
from tests.reference.rounding import ARITHMETIC, DTYPES, bits, wide

NAMES = ["nuslerp", "multislerp", "karcher", "model_stock"]
#: Each method with every way of cutting a tensor: the base, if it may have one, and parameters.
WAYS = [
    ("slerp", False, {"t": 0.3}),
    ("nuslerp", True, {"weight": [0.3, 0.7]}),
    ("nuslerp", False, {"weight": [0.3, 0.7]}),
    ("nuslerp", True, {"nuslerp_flatten": False}),
    ("nuslerp", False, {"nuslerp_flatten": False}),
    ("nuslerp", True, {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("nuslerp", False, {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("multislerp", True, {"weight": [0.3, 0.7]}),
    ("multislerp", False, {}),
    ("karcher", False, {}),
    ("model_stock", True, {}),
    ("model_stock", True, {"filter_wise": True}),
]


def check(method, base, experts, parameters, **options):
    """Merges by the engine and by the reference and compares tensor by tensor; returns the engine's."""
    got = merging.merge(method, experts, base, parameters=parameters, **options)
    want = METHODS[method](base, experts, **parameters, **{k: v for k, v in options.items() if k != "threads"})
    assert got.keys() == want.keys()
    for name, merged in want.items():
        assert_matches(got[name], merged, f"{name} of {method} {parameters} {options}")
    return got


@st.composite
def settings(draw, method: str, count: int, compat: str):
    out = {}

    def maybe(name, values):
        if draw(st.booleans(), label=f"give {name}"):
            out[name] = draw(values, label=name)

    if method in ("nuslerp", "multislerp"):
        weights = st.sampled_from([1.0, 0.3, 0.7, -0.1, 2.5, 0.0])
        if compat == "mergekit" or draw(st.booleans(), label="give weight"):
            out["weight"] = drawing.scalar_or_list(draw, weights, count, "weight")
        given_weights = drawing.as_list(out.get("weight", 1.0), count)
        # A sum that nearly cancels magnifies rounding; that it is refused at 0 has a test of its own.
        if abs(sum(given_weights)) < 0.3 * sum(map(abs, given_weights)) or not any(given_weights):
            out["weight"] = 1.0
    if method == "nuslerp":
        maybe("nuslerp_flatten", st.booleans())
        maybe("nuslerp_row_wise", st.booleans())
    if method == "multislerp":
        maybe("normalize_weights", st.booleans())
        maybe("eps", st.sampled_from([1e-8, 0.0, 1e-4]))
    if method == "karcher":
        maybe("max_iter", st.sampled_from([0, 1, 10, 50]))
        maybe("tol", st.sampled_from([1e-5, 1e-9, 0.1]))
    if method == "model_stock":
        maybe("filter_wise", st.booleans())
    return out


@pytest.mark.parametrize("method", NAMES)
@given(data=st.data())
def test_any_models(method, data):
    count = 2 if method == "nuslerp" else data.draw(st.integers(2, 4), label="experts")
    # Deltas of F8 numbers on a coarse grid are opposite too often for mergekit's rules, which are noise there.
    compat = data.draw(st.sampled_from(["paper", "paper", "mergekit"]), label="compat")
    regimes = drawing.REGIMES if compat == "paper" else ["gauss", "same"]
    dtypes = ARITHMETIC if compat == "paper" else ("F64", "F32", "BF16")
    base, experts, _ = data.draw(drawing.model_sets(count=count, regimes=regimes, dtypes=dtypes))
    if compat == "mergekit":
        # Nor can a few elements be far enough from opposite.
        keep = [n for n, t in base.items() if t.size == 0 or t.ndim != 2 and t.size > 30]
        base["enough"] = np.linspace(-1, 1, 64)
        experts = [{**e, "enough": np.cos(np.arange(64.0) * (i + 1))} for i, e in enumerate(experts)]
        base, *experts = [{n: m[n] for n in [*keep, "enough"]} for m in (base, *experts)]
    has_base = method == "model_stock" or (method != "karcher" and data.draw(st.booleans(), label="base"))
    options = {"compat": compat}
    if data.draw(st.booleans(), label="give dtype"):
        options["dtype"] = data.draw(st.sampled_from(ARITHMETIC), label="output dtype")
    parameters = data.draw(settings(method, count, compat))
    check(method, base if has_base else None, experts, parameters, **options)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize(("method", "has_base", "parameters"), WAYS)
def test_tensors_of_several_tiles(method, has_base, parameters, dtype):
    base, experts = drawing.large(dtype, 2)
    for model in (base, *experts):
        flat = model.pop("large")
        model["rows"] = flat[: 1000 * 700].reshape(1000, 700)
        model["few.experts.w"] = flat[: 3 * 256 * 900].reshape(3, 256, 900)
    check(method, base if has_base else None, experts, parameters, threads=2)


@pytest.mark.parametrize(("method", "has_base", "parameters"), WAYS)
def test_bytes_do_not_depend_on_threads(method, has_base, parameters):
    base, experts = drawing.large("F32", 2)
    for model in (base, *experts):
        flat = model.pop("large")
        model["rows"] = flat[: 1000 * 700].reshape(1000, 700)
    results = [
        merging.merge(method, experts, base if has_base else None, parameters=parameters, threads=threads)
        for threads in (1, 2, 7)
    ]
    same(results[0], results[1])
    same(results[0], results[2])


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("count", [2, 16])
def test_experts_equal_to_the_base_give_its_bytes(method, count):
    base = {"w": every_pattern("BF16")[:4096], "m": every_pattern("F16")[:1024].reshape(4, 256)}
    if method == "karcher":
        base = {"w": np.arange(40, dtype=np.float32)}
    if method == "nuslerp":
        count = 2
    else:
        base = {n: np.where(np.isfinite(wide(t)), t, t.dtype.type(1)) for n, t in base.items()}
    if method == "nuslerp":
        base = {n: np.where(np.isfinite(wide(t)), t, t.dtype.type(1)) for n, t in base.items()}
    start = None if method == "karcher" else base
    same(merging.merge(method, [base] * count, start), base)


@pytest.mark.parametrize("dtype", ARITHMETIC)
@pytest.mark.parametrize(("method", "has_base", "parameters"), [w for w in WAYS if not w[1]])
def test_equal_models_give_their_own_bytes(method, has_base, parameters, dtype):
    values = every_pattern(dtype)
    values = values[np.isfinite(wide(values)) & (np.abs(wide(values)) < 1e150)]
    values = values[: values.size // 6 * 6]
    model = {"w": values, "m": values.reshape(6, -1), "zero": np.zeros(5, DTYPES[dtype])}
    same(merging.merge(method, [model, model], parameters=parameters), model)


@pytest.mark.parametrize("dtype", ARITHMETIC)
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("multislerp", {}),
        ("multislerp", {"weight": 0.3, "normalize_weights": False}),
        ("karcher", {}),
    ],
)
def test_one_expert_gives_its_own_bytes(method, parameters, dtype):
    expert = {"w": every_pattern(dtype), "scalar": every_pattern(dtype)[0].reshape(())}
    same(merging.merge(method, [expert], parameters=parameters), expert)
    if method == "multislerp":
        base = {n: np.ones_like(t) for n, t in expert.items()}
        same(merging.merge(method, [expert], base, parameters=parameters), expert)


@pytest.mark.parametrize("has_base", [True, False])
@pytest.mark.parametrize("method", ["nuslerp", "multislerp"])
@pytest.mark.parametrize("at", [0, 1])
def test_weight_zero_is_left_out(method, has_base, at):
    rng = np.random.default_rng(at)
    base = {"w": drawing.numbers(rng, "gauss", (40, 5), DTYPES["BF16"])}
    expert = {"w": drawing.numbers(rng, "gauss", (40, 5), DTYPES["BF16"], wide(base["w"]))}
    absurd = {"w": np.full((40, 5), np.nan).astype(DTYPES["BF16"])}
    experts, weights = [expert], [0.7]
    experts.insert(at, absurd)
    weights.insert(at, 0.0)
    same(merging.merge(method, experts, base if has_base else None, parameters={"weight": weights}), expert)


def test_no_weight_at_all_is_the_base_or_nothing():
    base, experts = drawing.large("F32", 2, n=100)
    parameters = {"weight": [0.0, 0.0], "normalize_weights": False}
    same(merging.merge("multislerp", experts, base, parameters=parameters), base)
    got = merging.merge("multislerp", experts, parameters=parameters)
    assert all((t == 0).all() for t in got.values())


@pytest.mark.parametrize("method", ["nuslerp", "multislerp"])
def test_weights_that_sum_to_zero(method):
    base, experts = drawing.large("F32", 2, n=100)
    with pytest.raises(rlmerge.RecipeError) as caught:
        merging.merge(method, experts, base, parameters={"weight": [0.5, -0.5]})
    assert caught.value.code == "zero_weight_sum"


@pytest.mark.parametrize(("method", "has_base", "parameters"), [w for w in WAYS if w[0] != "slerp"])
@given(data=st.data())
def test_three_experts_in_any_order(method, has_base, parameters, data):
    """To a part in 10^9: sums over experts are taken in their order."""
    count = 2 if method == "nuslerp" else 3
    parameters = {k: v for k, v in parameters.items() if k != "weight"}
    base, experts, _ = data.draw(drawing.model_sets(count=count, dtypes=("F64",), regimes=["gauss"]))
    weights = [1.0, 0.5, 0.25][:count]
    each = {"weight": weights} if method in ("nuslerp", "multislerp") else {}
    start = base if has_base else None
    there = merging.merge(method, experts, start, parameters={**parameters, **each})
    order = data.draw(st.sampled_from(list(itertools.permutations(range(count)))))
    each = {"weight": [weights[i] for i in order]} if each else {}
    back = merging.merge(method, [experts[i] for i in order], start, parameters={**parameters, **each})
    for name in there:
        size = np.abs(there[name]).max(initial=1.0)
        assert np.abs(there[name] - back[name]).max(initial=0.0) <= 1e-9 * size, name


@pytest.mark.parametrize(("method", "has_base", "parameters"), WAYS)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (1,), (), (1, 1), (1, 1, 1), (2, 1), (1, 2)])
def test_empty_and_tiny_tensors(method, has_base, parameters, shape):
    rng = np.random.default_rng(3)
    base = {"w": rng.normal(size=shape).astype(np.float32)}
    for sign in (1.0, -1.0):
        experts = [{"w": base["w"] + rng.normal(size=shape).astype(np.float32) * s} for s in (1.0, sign)]
        got = check(method, base if has_base else None, experts, parameters)
        assert np.isfinite(got["w"]).all()


@pytest.mark.parametrize("method", ["multislerp", "karcher", "model_stock"])
@given(data=st.data())
def test_sixteen_experts(method, data):
    """More experts than elements among them."""
    base, experts, _ = data.draw(drawing.model_sets(count=16, dtypes=("F32", "BF16"), regimes=["gauss", "grid"]))
    check(method, None if method == "karcher" else base, experts, {})


@pytest.mark.parametrize(("method", "has_base", "parameters"), WAYS)
@pytest.mark.parametrize("which", ["one", "both"])
def test_frozen_tensors(method, has_base, parameters, which):
    """A tensor that one expert did not change, or none; without a base, zeros."""
    rng = np.random.default_rng(4)
    base = {"w": rng.normal(size=(6, 8)).astype(np.float32) if has_base else np.zeros((6, 8), np.float32)}
    changed = {"w": base["w"] + rng.normal(size=(6, 8)).astype(np.float32)}
    experts = [base, base if which == "both" else changed]
    got = check(method, base if has_base else None, experts, parameters)
    if which == "both":
        same(got, base)


def test_opposite_deltas_leave_model_stock_at_the_base():
    rng = np.random.default_rng(5)
    base = {"w": rng.normal(size=(20, 30)).astype(np.float32)}
    delta = rng.integers(-8, 9, (20, 30)).astype(np.float32) / 16
    experts = [{"w": base["w"] + delta}, {"w": base["w"] - delta}]
    for filter_wise in (False, True):
        same(merging.merge("model_stock", experts, base, parameters={"filter_wise": filter_wise}), base)


def test_multislerp_is_its_closed_form():
    rng = np.random.default_rng(6)
    deltas = list(rng.normal(size=(4, 50)))
    assert np.abs(multislerp.tangents(deltas, [0.1, 0.2, 0.3, 0.4])).max() < 1e-15


def test_karcher_is_where_the_mean_of_directions_vanishes():
    rng = np.random.default_rng(7)
    experts = [{"w": rng.normal(size=200) + 1} for _ in range(5)]
    got = merging.merge("karcher", experts, parameters={"max_iter": 200, "tol": 1e-7})["w"]
    norms = [np.linalg.norm(e["w"]) for e in experts]
    assert np.linalg.norm(got) == pytest.approx(np.mean(norms), rel=1e-12)
    u = got / np.linalg.norm(got)
    tangent = np.zeros(200)
    for e, n in zip(experts, norms, strict=True):
        x = e["w"] / n
        cosine = float(u @ x)
        tangent += np.arccos(cosine) / np.sqrt(1 - cosine**2) * (x - cosine * u)
    assert np.linalg.norm(tangent) < 1e-6


@pytest.mark.parametrize(("method", "has_base", "parameters"), WAYS)
def test_a_nan_has_no_angle(method, has_base, parameters):
    """Named for a tensor with one angle; where every row has its own, the others are not touched."""
    rng = np.random.default_rng(8)
    base = {"w": rng.normal(size=(7, 9)).astype(np.float32)}
    experts = [{"w": base["w"] + rng.normal(size=(7, 9)).astype(np.float32)} for _ in range(2)]
    whole = merging.merge(method, experts, base if has_base else None, parameters=parameters)["w"]
    experts[1]["w"][2, 4] = np.nan
    if not (parameters.get("filter_wise") or parameters.get("nuslerp_flatten") is False):
        with pytest.raises(rlmerge.RlmergeError) as caught:
            merging.merge(method, experts, base if has_base else None, parameters=parameters)
        assert caught.value.code == "non_finite"
        assert caught.value.tensor == "w"
        return
    got = merging.merge(method, experts, base if has_base else None, parameters=parameters)["w"]
    columns = method == "nuslerp" and not parameters.get("nuslerp_row_wise")
    mine = np.zeros((7, 9), bool)
    mine[(slice(None), 4) if columns else 2] = True
    assert np.isnan(got[mine]).all()
    assert np.array_equal(bits(got[~mine]), bits(whole[~mine]))


CUTS = [
    ("nuslerp", {"nuslerp_flatten": False}),
    ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("model_stock", {"filter_wise": True}),
]


@pytest.mark.parametrize(("method", "parameters"), CUTS)
def test_stacked_experts_are_a_batch_of_matrices(method, parameters):
    rng = np.random.default_rng(9)
    base, *experts = [{"mlp.experts.down_proj": rng.normal(size=(4, 6, 10)).astype(np.float32)} for _ in range(3)]
    got = check(method, base, experts, parameters)["mlp.experts.down_proj"]
    for at in range(4):
        base_at, *experts_at = [{"w": m["mlp.experts.down_proj"][at]} for m in (base, *experts)]
        assert np.array_equal(got[at], merging.merge(method, experts_at, base_at, parameters=parameters)["w"])


@pytest.mark.parametrize(("method", "parameters"), CUTS)
def test_a_transposed_matrix_is_merged_as_its_transpose(method, parameters):
    """GPT-2 stores its linear layers as [in, out]."""
    rng = np.random.default_rng(10)
    name = "h.0.mlp.c_fc.weight"
    base, *experts = [{name: rng.normal(size=(6, 10))} for _ in range(3)]
    got = check(method, base, experts, parameters)[name]
    base, *experts = [{"w": np.ascontiguousarray(m[name].T)} for m in (base, *experts)]
    assert np.allclose(got.T, merging.merge(method, experts, base, parameters=parameters)["w"], rtol=0, atol=1e-13)


@pytest.mark.parametrize(("method", "has_base", "parameters"), WAYS)
def test_bytes_do_not_depend_on_shards(method, has_base, parameters, tmp_path):
    base, experts = drawing.large("BF16", 2, n=300_000)
    want = merging.merge(method, experts, base if has_base else None, parameters=parameters)
    with merging.written(experts, base if has_base else None, shards=3) as (paths, start, _):
        rlmerge.merge(paths, method=method, base=start, output=tmp_path / "merged", parameters=parameters, shard_size=1)
        same(tensorfile.read(tmp_path / "merged"), want)
