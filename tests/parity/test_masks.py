"""RAM and mergekit's own RAM+ on the same f32 inputs."""

import pytest

from tests import merging
from tests.parity import oracle
from tests.reference import METHODS

CASES = [
    ("ram", {}),
    ("ram", {"epsilon": 0.03}),
    ("ram", {"epsilon": 0.0}),
    ("ramplus_tl", {}),
    ("ramplus_tl", {"epsilon": 0.03, "r": 0.5}),
    ("ramplus_tl", {"epsilon": 0.05, "r": 1.0, "alpha": 2.0}),
]


@pytest.mark.parametrize("compat", ["mergekit", "paper"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize(("method", "parameters"), CASES)
def test_same_result(method, parameters, count, compat):
    base, experts = oracle.models(count, seed=count)
    theirs = oracle.mergekit(method, base, experts, **parameters)
    reference = METHODS[method](base, experts, **parameters)
    oracle.assert_close({name: m.rounded() for name, m in reference.items()}, theirs)
    oracle.assert_close(merging.merge(method, experts, base, parameters=parameters, compat=compat), theirs)


def test_ramplus_keeps_the_dtype():
    """mergekit's scale is f32, and so is its output for bf16 models, whatever their configuration says."""
    import torch
    from mergekit.merge_methods.api import merge_tensors

    from tests.reference.rounding import DTYPES, round_to

    base, experts = oracle.models(2)
    narrow = [{n: round_to(t, DTYPES["BF16"]) for n, t in m.items()} for m in (base, *experts)]
    inputs = [torch.from_numpy(m["wide"]).to(torch.bfloat16) for m in (base, *experts)]
    assert merge_tensors(inputs, "ramplus_tl", base_index=0).dtype == torch.float32
    assert merging.merge("ramplus_tl", narrow[1:], narrow[0])["wide"].dtype == DTYPES["BF16"]


@pytest.mark.parametrize("method", ["ram", "ramplus_tl"])
def test_nan_comes_out_here_and_there(method):
    """mergekit multiplies by a mask, which keeps NaN only where another model changed the element."""
    import numpy as np

    base, experts = oracle.models(2)
    experts[0]["vector"][3] = np.nan
    got = merging.merge(method, experts, base)["vector"]
    assert np.flatnonzero(~np.isfinite(got)).tolist() == [3]
