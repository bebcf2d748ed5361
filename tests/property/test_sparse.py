"""Sparse task vectors: della, breadcrumbs, cabs, DoTS and Localize-and-Stitch against references, and their laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rlmerge
from tests import merging
from tests.property import drawing
from tests.property.test_laws import every_pattern, same
from tests.reference import METHODS, ties
from tests.reference.conventions import assert_matches
from tests.reference.rounding import ARITHMETIC, DTYPES, bits, wide

SPARSE = ["della_linear", "della", "breadcrumbs", "breadcrumbs_ties", "cabs", "dots_trim", "localize_and_stitch"]
ELECTING = ("della", "breadcrumbs_ties")
SEEDED = ("della_linear", "della")


@st.composite
def parameters(draw, method: str, count: int, compat: str):
    """Parameters of a method, some left to their defaults."""
    out = {}

    def maybe(name, values):
        if draw(st.booleans(), label=f"give {name}"):
            out[name] = draw(values, label=name)

    if compat == "mergekit" or draw(st.booleans(), label="give weight"):
        values = drawing.EIGHTHS if method in ELECTING else drawing.DECIMALS
        out["weight"] = drawing.scalar_or_list(draw, values, count, "weight")
    weights = drawing.as_list(out.get("weight", 1.0), count)
    if abs(sum(weights)) < 0.1 * sum(map(abs, weights)) or not any(weights):
        out["weight"] = 1.0
    maybe("lambda", st.sampled_from([1.0, 0.5, -1.0, 0.3, 0.0]))
    maybe("rescale", st.sampled_from(["none", "inverse_p", "l1", "l2"]))
    if method != "localize_and_stitch":
        maybe("normalize", st.booleans())
    if method in SEEDED:
        out["density"] = drawing.scalar_or_list(draw, st.sampled_from([0.5, 0.4, 0.6, 1.0]), count, "density")
        out["epsilon"] = drawing.scalar_or_list(draw, st.sampled_from([0.0, 0.15, 0.39]), count, "epsilon")
    elif method == "cabs":
        out["n"], out["m"] = draw(st.sampled_from([(2, 4), (1, 8), (64, 256), (3, 5), (7, 7), (100, 128)]), label="n:m")
    else:
        maybe("density", drawing.DENSITIES)
        maybe("scope", st.sampled_from(["tensor", "model"]))
    if method.startswith("breadcrumbs"):
        maybe("gamma", st.sampled_from([0.0, 0.01, 0.3, 0.95, 1.0]))
    if method in ("dots_trim", "localize_and_stitch"):
        maybe("ties", st.sampled_from(["index", "all"]))
    if method in ELECTING:
        maybe("zero_sign", st.sampled_from(["plus", "minus", "majority"]))
    return out


def check(method, base, experts, given_parameters, options, label=""):
    """Merges by the engine and by the reference and compares tensor by tensor."""
    got = merging.merge(method, experts, base, parameters=given_parameters, **options)
    want = METHODS[method](base, experts, **given_parameters, **options)
    assert got.keys() == want.keys()
    for name, merged in want.items():
        assert_matches(got[name], merged, f"{name} of {method} {given_parameters} {options} {label}")


@pytest.mark.parametrize("method", SPARSE)
@given(data=st.data())
def test_any_models(method, data):
    base, experts, origin = data.draw(drawing.model_sets())
    compat = data.draw(st.sampled_from(["paper", "paper", "mergekit"]), label="compat")
    options = {"compat": compat}
    if data.draw(st.booleans(), label="give dtype"):
        options["dtype"] = data.draw(st.sampled_from(ARITHMETIC), label="output dtype")
    if method in SEEDED:
        options["seed"] = data.draw(st.integers(0, 2**64 - 1), label="seed")
    check(method, base, experts, data.draw(parameters(method, len(experts), compat)), options, origin)


LARGE = [
    ("della", {"rescale": "l1", "zero_sign": "majority"}),
    ("della_linear", {}),
    ("breadcrumbs", {"gamma": [0.2, 0.0]}),
    ("breadcrumbs", {"scope": "model", "rescale": "l2", "gamma": 0.1}),
    ("breadcrumbs_ties", {"zero_sign": "majority", "density": 0.4, "gamma": 0.3}),
    ("cabs", {"n": 5, "m": 7, "rescale": "l1"}),
    ("dots_trim", {"rescale": "l2"}),
    ("dots_trim", {"scope": "model", "ties": "index"}),
    ("localize_and_stitch", {"weight": [0.5, -2.0]}),
]


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize(("method", "given_parameters"), LARGE)
def test_tensors_of_several_tiles(method, given_parameters, dtype):
    base, experts = drawing.large(dtype, 2, n=2**18 + 17)
    check(method, base, experts, given_parameters, {"compat": "paper"})


def test_rows_across_the_ends_of_tiles():
    """A row that two tiles share is ranked whole by both."""
    rng = np.random.default_rng(3)
    shape = (700, 1001)
    base = {"w": drawing.numbers(rng, "gauss", shape, DTYPES["BF16"])}
    experts = [{"w": drawing.numbers(rng, "gauss", shape, DTYPES["BF16"], wide(base["w"]))} for _ in range(2)]
    for rescale in ("inverse_p", "l2"):
        check("della", base, experts, {"rescale": rescale}, {"seed": 4})


@pytest.mark.parametrize("method", SPARSE)
@pytest.mark.parametrize("count", [1, 16])
def test_more_experts_than_elements(method, count):
    rng = np.random.default_rng(count)
    shapes = {"none": (0, 3), "scalar": (), "one": (1,), "few": (3, 2), "column": (9, 1)}
    base = {n: drawing.numbers(rng, "gauss", s, DTYPES["F32"]) for n, s in shapes.items()}
    experts = [
        {n: drawing.numbers(rng, "gauss", s, DTYPES["F32"], wide(base[n])) for n, s in shapes.items()}
        for _ in range(count)
    ]
    for parameters in ({}, {"rescale": "l2"}):
        check(method, base, experts, parameters, {})


@pytest.mark.parametrize("method", SPARSE)
@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16"])
def test_nan_and_infinity_stay_where_they_are(method, dtype):
    rng = np.random.default_rng(7)
    base = {"w": drawing.numbers(rng, "gauss", (10, 30), DTYPES[dtype])}
    experts = [{"w": drawing.numbers(rng, "gauss", (10, 30), DTYPES[dtype], wide(base["w"]))} for _ in range(2)]
    for value, at in ((np.nan, (0, 3)), (np.inf, (4, 20)), (-np.inf, (9, 29))):
        experts[0]["w"][at] = value
    got = merging.merge(method, experts, base)["w"]
    assert_matches(got, METHODS[method](base, experts)["w"])
    assert (~np.isfinite(wide(got))).sum() <= 3


@pytest.mark.parametrize("dtype", ARITHMETIC)
@pytest.mark.parametrize("method", SPARSE)
def test_identity_laws(method, dtype):
    expert = {"w": every_pattern(dtype), "scalar": every_pattern(dtype)[0].reshape(())}
    base = {n: t.ravel()[::-1].reshape(t.shape).copy() for n, t in expert.items()}
    whole = {"n": 4, "m": 4} if method == "cabs" else {"density": 1.0}
    same(merging.merge(method, [expert], base, parameters=whole), expert)
    for count in (1, 3):
        parameters = {"lambda": 0.3, "weight": 0.7}
        same(merging.merge(method, [base] * count, base, parameters=parameters), base)


@pytest.mark.parametrize("method", SPARSE)
def test_weight_zero_is_left_out(method):
    rng = np.random.default_rng(1)
    base = {"w": drawing.numbers(rng, "gauss", (40, 5), DTYPES["BF16"])}
    experts = [{"w": drawing.numbers(rng, "gauss", (40, 5), DTYPES["BF16"], wide(base["w"]))} for _ in range(2)]
    absurd = {"w": np.full((40, 5), np.nan).astype(DTYPES["BF16"])}
    want = merging.merge(method, experts, base, parameters={"weight": [0.75, 0.5]})
    for at in range(3):
        models, weights = experts.copy(), [0.75, 0.5]
        models.insert(at, absurd)
        weights.insert(at, 0.0)
        same(merging.merge(method, models, base, parameters={"weight": weights}), want)


@pytest.mark.parametrize(("ranked", "plain"), [("della_linear", "dare_linear"), ("della", "dare_ties")])
def test_della_without_a_slope_is_dare(ranked, plain):
    base, experts = drawing.large("BF16", 2, n=5001)
    for rescale in ("inverse_p", "none", "l1"):
        parameters = {"density": 0.3, "rescale": rescale}
        flat = merging.merge(ranked, experts, base, parameters={**parameters, "epsilon": 0.0}, seed=9)
        same(flat, merging.merge(plain, experts, base, parameters=parameters, seed=9))


def test_della_keeps_large_elements_more_often_and_the_density_on_average():
    rng = np.random.default_rng(5)
    base, expert = {"w": np.zeros((400, 500), np.float32)}, {"w": rng.normal(0, 1, (400, 500)).astype(np.float32)}
    parameters = {"density": 0.5, "epsilon": 0.4, "rescale": "none"}
    kept = merging.merge("della_linear", [expert], base, parameters=parameters)["w"] != 0
    rank = np.argsort(np.argsort(np.abs(expert["w"]), axis=1), axis=1)
    assert abs(kept.mean() - 0.5) < 0.01
    for low, high, p in ((0, 50, 0.14), (225, 275, 0.5), (450, 500, 0.86)):
        assert abs(kept[(rank >= low) & (rank < high)].mean() - p) < 0.02
    scaled = merging.merge("della_linear", [expert], base, parameters={**parameters, "rescale": "inverse_p"})["w"]
    assert abs((np.abs(scaled).sum(dtype=np.float64) / np.abs(expert["w"]).sum(dtype=np.float64)) - 1) < 0.01


def test_breadcrumbs_without_outliers_is_a_trim():
    base, experts = drawing.large("BF16", 2, n=5001)
    for rescale in ("none", "l2"):
        parameters = {"density": 0.3, "rescale": rescale}
        same(
            merging.merge("breadcrumbs_ties", experts, base, parameters={**parameters, "gamma": 0.0}),
            merging.merge("ties", experts, base, parameters=parameters),
        )
        same(
            merging.merge("breadcrumbs", experts, base, parameters={**parameters, "gamma": 0.0}),
            merging.merge("dots_trim", experts, base, parameters={**parameters, "ties": "index"}),
        )


def test_cabs_masks_do_not_meet_while_there_is_room():
    rng = np.random.default_rng(6)
    base = {"w": np.zeros(1024, np.float32)}
    experts = [{"w": rng.normal(0, 1, 1024).astype(np.float32)} for _ in range(3)]
    alone = [merging.merge("cabs", [e], base)["w"] != 0 for e in experts]
    assert (np.logical_and(*alone[:2])).any()
    together = merging.merge("cabs", experts, base)["w"]
    assert (together != 0).sum() == 3 * 1024 // 4
    assert (together[alone[0]] == experts[0]["w"][alone[0]]).all()
    # Half of each block twice: the second expert has exactly what the first left.
    halves = merging.merge("cabs", experts[:2], base, parameters={"n": 128})["w"]
    first = ties.largest(ties.magnitude(experts[0]["w"][:256]), 128, "index")
    assert (halves[:256] == np.where(first, experts[0]["w"][:256], experts[1]["w"][:256])).all()


def test_localize_and_stitch_averages_overlaps_only():
    base = {"w": np.zeros(4, np.float32)}
    a, b = ({"w": np.array(v, np.float32)} for v in ([8, 6, 1, 0], [4, 0, 2, 5]))
    got = merging.merge("localize_and_stitch", [a, b], base, parameters={"density": 0.5})["w"]
    assert got.tolist() == [6, 6, 0, 5]


# --- what mergekit gets wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("compat", ["paper", "mergekit"])
@pytest.mark.parametrize("gamma", [0.01, 0.0])
def test_breadcrumbs_keeps_small_tensors(compat, gamma):
    """mergekit up to 0.1.4 drops every tensor of fewer than 1/gamma elements, and all with gamma 0."""
    rng = np.random.default_rng(2)
    base = {"norm": np.ones(64, np.float32)}
    expert = {"norm": (1 + rng.normal(0, 0.1, 64)).astype(np.float32)}
    parameters = {"density": 0.5, "gamma": gamma, "weight": 1.0}
    for method in ("breadcrumbs", "breadcrumbs_ties"):
        got = merging.merge(method, [expert], base, parameters=parameters, compat=compat)["norm"]
        kept = np.argsort(-np.abs(expert["norm"] - 1))[:32]
        assert sorted(np.flatnonzero(got != 1)) == sorted(kept)


@pytest.mark.parametrize("compat", ["paper", "mergekit"])
@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_della_of_single_columns(method, compat):
    """mergekit divides zero by zero and stops; a row of one element is kept with the density."""
    n = 20_000
    base = {"column": np.zeros((n, 1), np.float32), "one": np.zeros(1, np.float32), "scalar": np.float32(0).reshape(())}
    expert = {"column": np.ones((n, 1), np.float32), "one": np.ones(1, np.float32), "scalar": np.float32(1).reshape(())}
    parameters = {"density": 0.3, "weight": 1.0, "rescale": "none"}
    got = merging.merge(method, [expert], base, parameters=parameters, compat=compat)
    assert all(np.isfinite(t).all() for t in got.values())
    assert abs(got["column"].mean(dtype=np.float64) - 0.3) < 0.02


def test_della_ranks_beyond_what_bf16_can_count():
    """mergekit holds ranks in the tensor's dtype: bf16 knows 704 of 4096."""
    rng = np.random.default_rng(3)
    base = {"w": np.zeros((50, 4096), DTYPES["BF16"])}
    expert = {"w": (np.exp2(rng.uniform(-20, 0, (50, 4096)))).astype(DTYPES["BF16"])}
    check("della_linear", base, [expert], {"density": 0.5, "epsilon": 0.4}, {})


@pytest.mark.parametrize("rescale", ["l1", "l2"])
@pytest.mark.parametrize("method", [*SPARSE, "ties", "dare_linear", "dare_ties"])
def test_rescaling_fp16_does_not_overflow(method, rescale):
    """mergekit sums the norm in the tensor's dtype: beyond 65504 every element of the tensor is lost."""
    n = 80_000
    base = {"w": np.zeros(n, np.float16)}
    expert = {"w": np.where(np.arange(n) % 2, 1.0, -2.0).astype(np.float16)}
    got = merging.merge(method, [expert], base, parameters={"rescale": rescale})["w"]
    assert np.isfinite(got).all()
    order = int(rescale[1])
    norms = [float((np.abs(t.astype(np.float64)) ** order).sum() ** (1 / order)) for t in (got, expert["w"])]
    assert abs(norms[0] / norms[1] - 1) < 1e-3


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "given_parameters", "parameter"),
    [
        ("della", {"density": 0.1, "epsilon": 0.2}, "epsilon"),
        ("della_linear", {"density": 0.9, "epsilon": 0.2}, "epsilon"),
        ("della", {"density": [0.5, 0.2], "epsilon": 0.2}, "epsilon"),
        ("cabs", {"n": 5, "m": 4}, "n"),
        ("breadcrumbs", {"gamma": 1.5}, "gamma"),
        ("localize_and_stitch", {"density": 0.0}, "density"),
    ],
)
def test_numbers_that_do_not_go_together(method, given_parameters, parameter):
    model = {"w": np.ones(3, np.float32)}
    with pytest.raises(rlmerge.RecipeError, match=f"parameter `{parameter}`") as raised:
        merging.merge(method, [model, model], model, parameters=given_parameters)
    assert raised.value.code == "parameter_out_of_range"


def test_probabilities_of_one_are_mergekits_error_only():
    rng = np.random.default_rng(0)
    base, expert = {"w": np.zeros(9, np.float32)}, {"w": rng.normal(0, 1, 9).astype(np.float32)}
    parameters = {"density": 0.75, "epsilon": 0.25, "weight": 1.0}
    assert np.isfinite(merging.merge("della", [expert], base, parameters=parameters)["w"]).all()
    with pytest.raises(rlmerge.RecipeError):
        merging.merge("della", [expert], base, parameters=parameters, compat="mergekit")
    whole = {"density": 1.0, "weight": 1.0}
    got = merging.merge("della", [expert], base, parameters=whole, compat="mergekit")["w"]
    assert bits(got).tolist() == bits(expert["w"]).tolist()
