"""The one rounding from f64, against `ml_dtypes` where that rounds once, and by brute force."""

import ml_dtypes
import numpy as np
import pytest

from tests.reference.rounding import BF16, DTYPES, F8_E4M3, F8_E5M2, bits, ordinal, round_to, wide

SMALL = ["F16", "BF16", "F8_E4M3", "F8_E5M2"]


def all_values(dtype: np.dtype) -> np.ndarray:
    """Every pattern of a small float."""
    return np.arange(1 << (8 * dtype.itemsize), dtype=np.dtype(f"u{dtype.itemsize}")).view(dtype)


@pytest.mark.parametrize("name", SMALL)
def test_every_stored_value_rounds_to_itself(name):
    values = all_values(DTYPES[name])
    finite = values[~np.isnan(wide(values))]
    assert bits(round_to(wide(finite), DTYPES[name])).tolist() == bits(finite).tolist()


@pytest.mark.parametrize("name", SMALL)
def test_midpoints_go_to_the_even_neighbour_and_everything_else_to_the_nearer(name):
    dtype = DTYPES[name]
    values = all_values(dtype)[: 1 << (8 * dtype.itemsize - 1)]
    values = values[np.isfinite(wide(values))]
    low, high = values[:-1], values[1:]
    middle = (wide(low) + wide(high)) / 2
    even = np.where(bits(low) % 2 == 0, low, high)
    assert (bits(round_to(middle, dtype)) == bits(even)).all()
    assert (bits(round_to(np.nextafter(middle, -np.inf), dtype)) == bits(low)).all()
    assert (bits(round_to(np.nextafter(middle, np.inf), dtype)) == bits(high)).all()
    assert (bits(round_to(-middle, dtype)) == bits(-even)).all()


def test_no_second_rounding():
    value = 1 + 2.0**-8 + 2.0**-40  # above the bf16 midpoint, but f32 rounds it onto that midpoint
    assert np.float64(value).astype(BF16) == 1, "the trap"
    assert round_to(np.float64(value), BF16) == 1 + 2.0**-7


def test_overflow_and_zeros():
    assert np.isposinf(wide(round_to(np.float64(65520.0), DTYPES["F16"])))
    assert round_to(np.float64(65519.99), DTYPES["F16"]) == 65504
    assert np.isneginf(wide(round_to(np.float64(-1e39), BF16)))
    assert np.isposinf(wide(round_to(np.float64(61440.0), F8_E5M2)))
    assert round_to(np.float64(464.0), F8_E4M3) == 448
    for value in (464.1, np.inf, np.nan):
        assert np.isnan(wide(round_to(np.float64(value), F8_E4M3)))
    for name in SMALL:
        assert (
            bits(round_to(np.array([-0.0, 0.0, -1e-300]), DTYPES[name])).tolist()
            == bits(np.array([-0.0, 0.0, -0.0]).astype(DTYPES[name])).tolist()
        )


def test_ordinals_are_neighbours():
    for name in SMALL:
        values = all_values(DTYPES[name])
        finite = values[np.isfinite(wide(values))]
        order = np.argsort(wide(finite), kind="stable")
        assert set(np.diff(ordinal(finite[order])).tolist()) == {0, 1}
    assert ordinal(np.array([-0.0, 5e-324, -5e-324])).tolist() == [0, 1, -1]


def test_exact_names():
    assert ml_dtypes.finfo(F8_E4M3).max == 448
