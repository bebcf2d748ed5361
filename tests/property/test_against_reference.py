"""Every method against its reference: shapes, dtypes, mixed dtypes, modes and parameters as drawn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import merging
from tests.property import drawing
from tests.reference import METHODS
from tests.reference.conventions import assert_matches
from tests.reference.rounding import DTYPES, wide


def check(case: drawing.Case):
    """Merges by the engine and by the reference and compares tensor by tensor."""
    got = merging.merge(case.method, case.experts, case.base, parameters=case.parameters, **case.options)
    want = METHODS[case.method](case.base, case.experts, **case.parameters, **case.options)
    assert got.keys() == want.keys()
    for name, merged in want.items():
        assert_matches(got[name], merged, f"{name} of {case}")


@pytest.mark.parametrize("method", drawing.METHODS)
@given(data=st.data())
def test_any_models(method, data):
    check(data.draw(drawing.cases(method)))


LARGE = [
    ("linear", {"weight": [0.3, 0.7]}),
    ("task_arithmetic", {"weight": [0.3, 0.7], "lambda": 0.9}),
    ("ties", {}),
    ("ties", {"density": [0.3, 0.6], "rescale": "l1"}),
    ("ties", {"scope": "model", "ties": "all", "zero_sign": "majority"}),
    ("ties", {"scope": "model"}),
    ("dare_linear", {}),
    ("dare_linear", {"rescale": "l2", "density": 0.1}),
    ("dare_ties", {"zero_sign": "majority"}),
    ("slerp", {"t": 0.3}),
    ("passthrough", {"scale": 0.3}),
]


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8_E4M3"])
@pytest.mark.parametrize(("method", "parameters"), LARGE)
def test_tensors_of_several_tiles(method, parameters, dtype):
    base, experts = drawing.large(dtype, 1 if method == "passthrough" else 2)
    if method not in drawing.DELTA_METHODS:
        base = None
    check(drawing.Case(method, base, experts, parameters, {"compat": "paper"}))


@pytest.mark.parametrize("method", [m for m in drawing.METHODS if m != "slerp"])
@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "F16", "F8_E5M2"])
def test_infinity_and_nan_stay_where_they_are(method, dtype):
    """A few non-finite elements, some equal in base and expert, change their own elements only."""
    rng = np.random.default_rng(7)
    count = 1 if method == "passthrough" else 2
    n = 301
    base = {"w": drawing.numbers(rng, "gauss", (n,), DTYPES[dtype])}
    experts = [{"w": drawing.numbers(rng, "gauss", (n,), DTYPES[dtype], wide(base["w"]))} for _ in range(count)]
    for value, at in ((np.nan, 3), (np.inf, 100), (-np.inf, 217)):
        experts[0]["w"][at] = value
    if method in drawing.DELTA_METHODS:
        base["w"][250] = experts[0]["w"][250] = np.inf
        base["w"][260] = np.nan
    parameters = {"density": 1.0} if method in ("ties", "dare_ties", "dare_linear") else {}
    case_base = base if method in drawing.DELTA_METHODS else None
    got = merging.merge(method, experts, case_base, parameters=parameters)["w"]
    want = METHODS[method](case_base, experts, **parameters)["w"]
    assert_matches(got, want)
    assert not np.isfinite(wide(got)[3])
    assert not np.isfinite(wide(got)[100])


@pytest.mark.parametrize("rule", ["index", "all"])
def test_a_nan_takes_one_place_in_the_trim_and_no_more(rule):
    """Ranked above infinity: the others are selected as if it were one more large element."""
    rng = np.random.default_rng(8)
    base = {"w": np.zeros(100, np.float32)}
    expert = {"w": rng.normal(0, 1, 100).astype(np.float32)}
    expert["w"][[5, 60]] = [np.nan, np.inf]
    parameters = {"density": 0.2, "ties": rule}
    got = merging.merge("ties", [expert], base, parameters=parameters)["w"]
    assert_matches(got, METHODS["ties"](base, [expert], **parameters)["w"])
    assert np.isnan(got[5])
    assert np.isinf(got[60])
    assert (got != 0).sum() == 20
