"""The element-wise methods against their references, and the laws that each of them keeps."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rlmerge
from tests import merging
from tests.property import drawing
from tests.property.test_laws import every_pattern, same
from tests.reference import METHODS
from tests.reference.conventions import assert_matches
from tests.reference.rounding import ARITHMETIC, DTYPES, bits, round_to, wide

ONE_EXPERT = ["nearswap", "arcee_fusion"]
SEVERAL = ["magmax", "sce", "pcb", "metagpt"]
ALL = [*SEVERAL, *ONE_EXPERT]
IN_MERGEKIT = ["nearswap", "arcee_fusion", "sce"]
#: Settings of each method beyond its defaults.
SETTINGS = {
    "magmax": [{}, {"lambda": 1.0}, {"lambda": -0.3}],
    "nearswap": [{"t": 1e-4}, {"t": 0.0}, {"t": 0.03}, {"t": 0.125}, {"t": 2e-7}, {"t": 1e9}],
    "sce": [{}, {"select_topk": 1.0}, {"select_topk": 0.5}, {"select_topk": 0.01}, {"select_topk": 0.0}],
    "arcee_fusion": [{}],
    "pcb": [
        {},
        {"ratio": 1.0, "lambda": 1.0},
        {"ratio": 0.5, "clip": 0.01},
        {"ratio": 0.01, "clip": 0.5},
        {"scope": "model"},
    ],
    "metagpt": [{}, {"scope": "tensor"}],
}


def check(method, base, experts, parameters, options):
    """The engine's result is the reference's."""
    got = merging.merge(method, experts, base, parameters=parameters, **options)
    want = METHODS[method](base, experts, **parameters, **{k: v for k, v in options.items() if k != "threads"})
    assert got.keys() == want.keys()
    for name, merged in want.items():
        assert_matches(got[name], merged, f"{name} of {method} {parameters} {options}")
    return got


@pytest.mark.parametrize("method", ALL)
@given(data=st.data())
def test_any_models(method, data):
    count = 1 if method in ONE_EXPERT else None
    base, experts, _ = data.draw(drawing.model_sets(count=count))
    options = {"compat": "paper"}
    if method in IN_MERGEKIT:
        options["compat"] = data.draw(st.sampled_from(["paper", "mergekit"]), label="compat")
    if data.draw(st.booleans(), label="give dtype"):
        options["dtype"] = data.draw(st.sampled_from(ARITHMETIC), label="output dtype")
    parameters = data.draw(st.sampled_from(SETTINGS[method]), label="parameters")
    check(method, base, experts, parameters, options)


LARGE = [(method, p) for method in ALL for p in SETTINGS[method][:1] + SETTINGS[method][2:3] + SETTINGS[method][4:]]


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8_E4M3"])
@pytest.mark.parametrize(("method", "parameters"), LARGE)
def test_tensors_of_several_tiles(method, parameters, dtype):
    base, experts = drawing.large(dtype, 1 if method in ONE_EXPERT else 3)
    if method == "arcee_fusion":  # rows that reach over the edges of tiles
        base, *experts = ({n: t.reshape(-1, 13) if t.size > 100_000 and t.size % 13 == 0 else t for n, t in m.items()}
                          for m in (base, *experts))  # fmt: skip
    check(method, base, experts, parameters, {"compat": "paper"})


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize(("method", "parameters"), [case for case in LARGE if case[0] in ("sce", "pcb")])
def test_two_experts_in_several_tiles(method, parameters, dtype):
    """Two experts have kernels of their own; small deltas, where PCB's rough scores tell most elements apart."""
    base, experts = drawing.large(dtype, 2)
    for scale in (1.0, 2.0**-6):
        near = [
            {n: round_to(wide(base[n]) + scale * (wide(t) - wide(base[n])), t.dtype) for n, t in e.items()}
            for e in experts
        ]
        check(method, base, near, parameters, {"compat": "paper"})


@pytest.mark.parametrize("row", [1, 13, 1021, 100_003])
def test_rows_of_any_length(row):
    """Rows end anywhere in a tile; a row may be longer than a chunk, and a tile holds the beginning of few."""
    rng = np.random.default_rng(row)
    shape = (max(2, 600_000 // row), row)
    base = {"w": drawing.numbers(rng, "gauss", shape, DTYPES["BF16"])}
    expert = {"w": drawing.numbers(rng, "gauss", shape, DTYPES["BF16"], wide(base["w"]))}
    got = [check("arcee_fusion", base, [expert], {}, {"threads": n}) for n in (1, 3)]
    same(*got)


@pytest.mark.parametrize("method", SEVERAL)
def test_sixteen_experts_and_more_experts_than_elements(method):
    rng = np.random.default_rng(0)
    shapes = {"matrix": (40, 11), "one": (1,), "three": (3,), "none": (0, 4), "scalar": ()}
    base = {n: drawing.numbers(rng, "gauss", s, DTYPES["F32"]) for n, s in shapes.items()}
    experts = [
        {n: drawing.numbers(rng, "gauss", s, DTYPES["F32"], wide(base[n])) for n, s in shapes.items()}
        for _ in range(16)
    ]
    for parameters in SETTINGS[method]:
        check(method, base, experts, parameters, {"compat": "paper"})


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "F16", "F8_E5M2"])
def test_infinity_and_nan_change_their_own_elements_only(method, dtype):
    """What a NaN is replaced by, an unchanged element, gives the same merge everywhere else."""
    rng = np.random.default_rng(7)
    shape = (43, 7)
    base = {"w": drawing.numbers(rng, "gauss", shape, DTYPES[dtype])}
    experts = [
        {"w": drawing.numbers(rng, "gauss", shape, DTYPES[dtype], wide(base["w"]))}
        for _ in range(1 if method in ONE_EXPERT else 3)
    ]
    odd = [(np.nan, 3), (np.inf, 100), (-np.inf, 217)]
    flat = [e["w"].reshape(-1) for e in experts]
    for value, at in odd:
        flat[0][at] = value
    base["w"].reshape(-1)[250] = flat[0][250] = np.inf
    base["w"].reshape(-1)[260] = np.nan
    for parameters in SETTINGS[method]:
        if 0.0 in (parameters.get("t"), parameters.get("select_topk")):
            continue  # a copy of the base
        got = check(method, base, experts, parameters, {})["w"].reshape(-1)
        assert not np.isfinite(wide(got)[[at for _, at in odd]]).any()
        assert np.isfinite(wide(got)).sum() >= got.size - 5


@pytest.mark.parametrize("method", SEVERAL)
@pytest.mark.parametrize("scope", ["rare", "often"])
def test_three_experts_in_any_order(method, scope):
    """But for equal magnitudes in MagMax, of which the last expert's counts, and rounding."""
    rng = np.random.default_rng(5 if scope == "rare" else 6)
    base = {"w": drawing.numbers(rng, "gauss", (301,), DTYPES["F32"])}
    experts = [{"w": drawing.numbers(rng, "gauss", (301,), DTYPES["F32"], wide(base["w"]))} for _ in range(3)]
    there = merging.merge(method, experts, base)["w"]
    back = merging.merge(method, experts[::-1], base)["w"]
    assert np.abs(there - back).max() <= 1e-6 * np.abs(there).max()


@pytest.mark.parametrize("dtype", ARITHMETIC)
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("magmax", {"lambda": 1.0}),
        ("sce", {}),
        ("sce", {"select_topk": 1.0}),
        ("metagpt", {}),
        ("metagpt", {"scope": "tensor"}),
    ],
)
def test_one_expert_gives_its_own_bytes(method, parameters, dtype):
    expert = {"w": every_pattern(dtype), "scalar": every_pattern(dtype)[0].reshape(())}
    base = {n: t.ravel()[::-1].reshape(t.shape).copy() for n, t in expert.items()}
    same(merging.merge(method, [expert], base, parameters=parameters), expert)


@pytest.mark.parametrize("dtype", ARITHMETIC)
@pytest.mark.parametrize("method", ALL)
def test_experts_equal_to_the_base_give_its_bytes(method, dtype):
    base = {"w": every_pattern(dtype)}
    same(merging.merge(method, [base] * (1 if method in ONE_EXPERT else 3), base), base)


@pytest.mark.parametrize("method", ALL)
def test_an_unchanged_element_keeps_its_sign_of_zero(method):
    base = {"w": np.array([-0.0, 0.0, -0.0, 1.0], np.float32)}
    experts = [{"w": np.array([-0.0, -0.0, 0.0, 2.0], np.float32)}, {"w": np.array([0.0, 0.0, -0.0, 3.0], np.float32)}]
    got = merging.merge(method, experts[: 1 if method in ONE_EXPERT else 2], base)["w"]
    assert bits(got)[:3].tolist() == [0x80000000, 0, 0x80000000]


@pytest.mark.parametrize("method", SEVERAL)
def test_equal_experts(method):
    """The norms share equally, the largest change is everybody's; where nothing varies, SCE has nothing to select."""
    rng = np.random.default_rng(1)
    base = {"w": drawing.numbers(rng, "gauss", (64, 3), DTYPES["F32"])}
    expert = {"w": drawing.numbers(rng, "gauss", (64, 3), DTYPES["F32"], wide(base["w"]))}
    got = check(method, base, [expert] * 3, {"lambda": 1.0} if method in ("magmax", "pcb") else {}, {})
    if method in ("magmax", "metagpt"):
        assert np.abs(got["w"] - expert["w"]).max() < 1e-7
    if method == "sce":
        same(got, base)
        whole = merging.merge(method, [expert] * 3, base, parameters={"select_topk": 1.0})
        assert np.abs(whole["w"] - expert["w"]).max() < 1e-7


# --- one method at a time ---------------------------------------------------------------------------------------------


@given(data=st.data())
def test_nearswap_clips_the_delta(data):
    base, (expert,), _ = data.draw(drawing.model_sets(count=1, dtypes=("F32",), regimes=["gauss", "grid"]))
    t = data.draw(st.sampled_from([1e-3, 0.03125, 0.125]))
    got = merging.merge("nearswap", [expert], base, parameters={"t": t})
    for name, merged in got.items():
        near = np.abs(expert[name] - base[name]) <= t
        changed = near & (expert[name] != base[name])
        assert (bits(merged)[changed] == bits(expert[name])[changed]).all()
        assert (np.abs(np.float64(merged) - base[name]) <= t * (1 + 1e-6) + 1e-7).all()


@pytest.mark.parametrize("compat", ["paper", "mergekit"])
def test_nearswap_does_not_divide_by_zero(compat):
    base = {"w": np.array([1.0, 0.0, -0.0, 1e-30], np.float32)}
    expert = {"w": np.array([1.0, 1e-38, 0.0, 1e-30], np.float32)}
    got = merging.merge("nearswap", [expert], base, parameters={"t": 1e-4}, compat=compat)["w"]
    assert bits(got).tolist() == bits(np.array([1.0, 1e-38, -0.0, 1e-30], np.float32)).tolist()


def test_nearswap_below_mergekits_least_divisor():
    """mergekit goes t / 1e-6 of the way to an element that is within t; the formula goes all the way."""
    base, expert = {"w": np.zeros(2, np.float32)}, {"w": np.array([1e-7, 1e-3], np.float32)}
    paper = merging.merge("nearswap", [expert], base, parameters={"t": 2e-7})["w"]
    theirs = merging.merge("nearswap", [expert], base, parameters={"t": 2e-7}, compat="mergekit")["w"]
    assert paper.tolist() == np.array([1e-7, 2e-7], np.float32).tolist()
    assert theirs.tolist() == np.array([2e-8, 2e-7], np.float32).tolist()


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-12, 1e-20])
def test_sce_weighs_tiny_updates_like_large_ones(size):
    """mergekit weighs all alike below a mean square of 1e-6: its weights are then those of no method."""
    rng = np.random.default_rng(2)
    base = {"w": np.zeros(1000, np.float32)}
    apart = [{"w": (scale * size * np.abs(rng.normal(size=1000))).astype(np.float32)} for scale in (1, 3)]
    got = merging.merge("sce", apart, base, parameters={"select_topk": 1.0})["w"]
    squares = np.array([np.sum(np.float64(e["w"]) ** 2) for e in apart])
    weights = squares / squares.sum()
    want = sum(w * np.float64(e["w"]) for w, e in zip(weights, apart, strict=True))
    assert np.abs(got / want - 1).max() < 1e-6
    assert weights[1] > 0.85
    theirs = merging.merge("sce", apart, base, parameters={"select_topk": 1.0}, compat="mergekit")["w"]
    assert (np.abs(theirs / want - 1).max() < 1e-6) == (size == 1e-3)


def test_sce_keeps_something_of_every_tensor_that_varies():
    """⌊0.01 · 37⌋ is no element, and with mergekit the tensor stays the base's."""
    rng = np.random.default_rng(3)
    base = {"norm": np.ones(37, np.float32)}
    experts = [{"norm": (1 + 0.01 * rng.normal(size=37)).astype(np.float32)} for _ in range(2)]
    got = merging.merge("sce", experts, base, parameters={"select_topk": 0.01})["norm"]
    theirs = merging.merge("sce", experts, base, parameters={"select_topk": 0.01}, compat="mergekit")["norm"]
    assert (got != 1).sum() == 1
    assert (theirs == 1).all()


@pytest.mark.parametrize("compat", ["paper", "mergekit"])
def test_sce_keeps_the_first_of_equal_variances(compat):
    """Exactly k elements over several tiles, whatever the threads, and the squares of just these weigh."""
    n = 3 * 2**18 + 17
    base = {"w": np.zeros(n, np.float32)}
    first, second = np.zeros(n, np.float32), np.zeros(n, np.float32)
    first[::2], second[::2] = 0.5, 0.25
    first[5::1000], second[5::1000] = 1.0, -1.0
    second[: n // 2 : 2] *= 3  # the same distance the other way around
    experts = [{"w": first}, {"w": second}]
    non_zero = np.count_nonzero(first - second)
    for share in (0.1, 0.4, 0.9):
        got = [
            merging.merge("sce", experts, base, parameters={"select_topk": share}, compat=compat, threads=t)["w"]
            for t in (1, 3)
        ]
        assert (bits(got[0]) == bits(got[1])).all()
        k = int(share * non_zero + (0 if compat == "mergekit" else 0.5))
        kept = np.zeros(n, bool)
        order = np.argsort(-np.abs(first - second), kind="stable")[:k]
        kept[order] = True
        assert ((got[0] != 0) <= kept).all()
        check("sce", base, experts, {"select_topk": share}, {"compat": compat})


def test_sce_zero_sums_count_as_plus():
    base = {"w": np.zeros(2, np.float32)}
    experts = [{"w": np.array([1, -2], np.float32)}, {"w": np.array([-1, 2], np.float32)}]
    assert merging.merge("sce", experts, base, parameters={"select_topk": 1.0})["w"].tolist() == [1, 2]


@given(data=st.data())
def test_arcee_fusion_writes_an_element_of_one_model_or_the_other(data):
    base, (expert,), _ = data.draw(drawing.model_sets(count=1, dtypes=("F32",), regimes=["gauss", "grid", "wide"]))
    for name, merged in merging.merge("arcee_fusion", [expert], base).items():
        assert ((bits(merged) == bits(base[name])) | (bits(merged) == bits(expert[name]))).all()


def test_arcee_fusion_sees_small_changes():
    """In f32 the divergences of a light fine-tune are noise, one in three below zero; in f64 they rank rows rightly."""
    rng = np.random.default_rng(4)
    base = rng.normal(0, 0.02, (64, 256)).astype(np.float32)
    delta = rng.normal(0, 3e-5, base.shape)
    delta[7] *= 3
    got = merging.merge("arcee_fusion", [{"w": (base + delta).astype(np.float32)}], {"w": base})["w"]
    changed = (got != base).mean(axis=1)
    assert changed[7] > 0.9
    assert changed[np.arange(64) != 7].max() < 0.35


def test_pcb_leaves_out_an_expert_that_changed_nothing():
    """The authors divide zero by zero there: NaN throughout."""
    rng = np.random.default_rng(5)
    base = {"w": rng.normal(size=500).astype(np.float32)}
    tuned = {"w": (base["w"] + 0.01 * rng.normal(size=500)).astype(np.float32)}
    one = merging.merge("pcb", [tuned, base], base)["w"]
    assert np.isfinite(one).all()
    assert (one != base["w"]).sum() == 49  # the fiftieth is at the cut, where the scale begins
    check("pcb", base, [tuned, base], {}, {})


def test_pcb_does_not_overflow_with_many_experts():
    """exp(N) of the published score is beyond f32 from 89 experts on, and beyond f64 from 710."""
    rng = np.random.default_rng(6)
    base = {"w": np.zeros(64, np.float32)}
    experts = [{"w": (rng.normal(size=64)).astype(np.float32)} for _ in range(100)]
    assert np.isfinite(merging.merge("pcb", experts, base)["w"]).all()
    check("pcb", base, experts, {}, {})


def test_metagpt_weighs_by_norms_of_the_whole_model():
    base = {"a": np.zeros(2, np.float32), "b": np.zeros(1, np.float32)}
    experts = [
        {"a": np.array([3, 0], np.float32), "b": np.array([1], np.float32)},
        {"a": np.array([0, 1], np.float32), "b": np.array([3], np.float32)},
    ]
    got = merging.merge("metagpt", experts, base)
    assert got["a"].tolist() == [1.5, 0.5]
    assert got["b"].tolist() == [2]
    got = merging.merge("metagpt", experts, base, parameters={"scope": "tensor"})
    assert np.allclose(got["a"], [2.7, 0.1])
    assert np.allclose(got["b"], [2.8])


def test_magmax_takes_the_last_of_equals():
    base = {"w": np.ones(3, ml_dtypes.bfloat16)}
    experts = [
        {"w": np.array([2, 0, 1.5]).astype(ml_dtypes.bfloat16)},
        {"w": np.array([0, 2, 1.25]).astype(ml_dtypes.bfloat16)},
    ]
    assert merging.merge("magmax", experts, base, parameters={"lambda": 1.0})["w"].tolist() == [0, 2, 1.5]
    assert merging.merge("magmax", experts[::-1], base, parameters={"lambda": 1.0})["w"].tolist() == [2, 0, 1.5]


@pytest.mark.parametrize(
    ("method", "parameters", "code"),
    [
        ("nearswap", {"t": -1e-3}, "parameter_out_of_range"),
        ("nearswap", {"t": "a"}, "parameter_out_of_range"),
        ("sce", {"select_topk": 1.5}, "parameter_out_of_range"),
        ("pcb", {"ratio": 0.0}, "parameter_out_of_range"),
        ("pcb", {"clip": 0.6}, "parameter_out_of_range"),
        ("metagpt", {"scope": "layer"}, "parameter_out_of_range"),
        ("arcee_fusion", {"weight": 1.0}, "unknown_parameter"),
    ],
)
def test_bad_parameters_are_refused(method, parameters, code):
    model = {"w": np.ones(3, np.float32)}
    with pytest.raises(rlmerge.RecipeError) as error:
        merging.merge(method, [model], model, parameters=parameters)
    assert error.value.code == code


@pytest.mark.parametrize("method", ONE_EXPERT)
def test_exactly_one_expert(method):
    model = {"w": np.ones(3, np.float32)}
    with pytest.raises(rlmerge.RecipeError, match="exactly 1 expert"):
        merging.merge(method, [model] * 2, model)


def test_mergekit_wants_t():
    model = {"w": np.ones(3, np.float32)}
    with pytest.raises(rlmerge.RecipeError) as error:
        merging.merge("nearswap", [model], model, compat="mergekit")
    assert error.value.code == "missing_parameter"
