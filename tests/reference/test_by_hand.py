"""The references against numbers worked out on paper."""

import ml_dtypes
import numpy as np
import pytest

from tests.reference import METHODS, mask, ties
from tests.reference.conventions import assert_matches
from tests.reference.rounding import bits


def f32(*values):
    return np.array(values, np.float32)


def run(method, base, *experts, **parameters):
    """One tensor `w` through a reference."""
    merged = METHODS[method](None if base is None else {"w": base}, [{"w": e} for e in experts], **parameters)
    return merged["w"].rounded()


def test_linear():
    a, b = f32(1, 2, -4), f32(3, 0, 4)
    assert run("linear", None, a, b).tolist() == [2, 1, 0]
    assert run("linear", None, a, b, weight=[3, 1]).tolist() == [1.5, 1.5, -2]
    assert run("linear", None, a, b, weight=[3, 1], normalize=False).tolist() == [6, 6, -8]


def test_task_arithmetic():
    base, a, b = f32(1, 1, 1), f32(2, 1, 0), f32(1, 3, 2)
    assert run("task_arithmetic", base, a, b).tolist() == [2, 3, 1]
    assert run("task_arithmetic", base, a, b, **{"lambda": 0.5}).tolist() == [1.5, 2, 1]
    got = run("task_arithmetic", base, a, b, weight=[1, 3], normalize=True)
    assert got.tolist() == [1.25, 2.5, 1.5]


def test_ties_trims_elects_and_averages():
    base = np.zeros(5, np.float32)
    a, b = f32(4, -3, 2, 1, 0.5), f32(2, 3.5, -1, 0.5, 0.25)
    # Density 0.6 keeps three of five: a -> 4, -3, 2; b -> 2, 3.5, -1.
    # Signs of the sums 6, 0.5, 1: all plus. Means: (4 + 2) / 2, 3.5 / 1, 2 / 1.
    assert run("ties", base, a, b, density=0.6).tolist() == [3, 3.5, 2, 0, 0]
    assert run("ties", base, a, b, density=0.6, normalize=False).tolist() == [6, 3.5, 2, 0, 0]
    assert run("ties", base, a, b, density=0.6, **{"lambda": 2}).tolist() == [6, 7, 4, 0, 0]
    # One keeps one: a -> 4, b -> 3.5.
    assert run("ties", base, a, b, density=0.2).tolist() == [4, 3.5, 0, 0, 0]
    # Weights enter the election: -3 * 2 + 3.5 = -2.5 elects minus.
    got = run("ties", base, a, b, density=0.6, weight=[2, 1])
    assert got.tolist() == [np.float32(10 / 3), -3, 2, 0, 0]


def test_ties_rescale():
    base, a = np.zeros(4, np.float32), f32(3, 4, 1, 2)
    assert run("ties", base, a, density=0.5).tolist() == [3, 4, 0, 0]
    assert run("ties", base, a, density=0.5, rescale="inverse_p").tolist() == [6, 8, 0, 0]
    assert np.allclose(run("ties", base, a, density=0.5, rescale="l1"), [30 / 7, 40 / 7, 0, 0], rtol=1e-7)
    root = np.sqrt(30 / 25)
    assert np.allclose(run("ties", base, a, density=0.5, rescale="l2"), [3 * root, 4 * root, 0, 0], rtol=1e-7)


def test_ties_at_the_threshold():
    base, a = np.zeros(5, np.float32), f32(1, -2, 2, 2, 1)
    assert run("ties", base, a, density=0.4).tolist() == [0, -2, 2, 0, 0]
    assert run("ties", base, a, density=0.4, ties="all").tolist() == [0, -2, 2, 2, 0]


def test_ties_counts_half_up_and_keeps_one_at_least():
    assert ties.kept_count(0.5, 5, "paper") == 3
    assert ties.kept_count(0.5, 5, "mergekit") == 2
    assert ties.kept_count(0.001, 5, "paper") == 1
    assert ties.kept_count(0.001, 5, "mergekit") == 1
    assert ties.kept_count(1, 0, "paper") == 0


def test_ties_over_the_whole_model():
    base = {"small": np.zeros(3, np.float32), "large": np.zeros(3, np.float32)}
    expert = {"small": f32(1, 2, 3), "large": f32(10, 2, 30)}
    per_tensor = METHODS["ties"](base, [expert], density=1 / 3)
    assert per_tensor["small"].rounded().tolist() == [0, 0, 3]
    assert per_tensor["large"].rounded().tolist() == [0, 0, 30]
    whole = METHODS["ties"](base, [expert], density=1 / 3, scope="model")
    assert whole["small"].rounded().tolist() == [0, 0, 0]
    assert whole["large"].rounded().tolist() == [10, 0, 30]
    # Four of six: 30, 10, 3 and the first of the two 2s, in the order of the names.
    four = METHODS["ties"](base, [expert], density=4 / 6, scope="model")
    assert four["small"].rounded().tolist() == [0, 0, 3]
    assert four["large"].rounded().tolist() == [10, 2, 30]


@pytest.mark.parametrize(
    ("rule", "want"), [("plus", [2, -1, -1, 0]), ("minus", [-2, -1, -1, 0]), ("majority", [-2, -1, -1, 0])]
)
def test_ties_zero_sum(rule, want):
    base = np.zeros(4, np.float32)
    a, b = f32(2, -1, -1, 0), f32(-2, -1, -1, 0)
    assert run("ties", base, a, b, density=1, zero_sign=rule).tolist() == want


def test_ties_divides_by_absolute_weights_and_mergekit_by_signed_ones():
    base, a = np.zeros(1, np.float32), f32(3)
    assert run("ties", base, a, weight=-0.5, density=1).tolist() == [-3]
    assert run("ties", base, a, weight=-0.5, density=1, compat="mergekit").tolist() == [3]


def test_dare_keeps_the_masked_elements_and_rescales():
    base, a = np.zeros((6, 7), np.float32), np.arange(1, 43, dtype=np.float32).reshape(6, 7)
    m = mask.keep(3, "w", 0, (6, 7), 0.25)
    assert 0 < m.sum() < 42
    assert run("dare_linear", base, a, density=0.25, seed=3).tolist() == np.where(m, 4 * a, 0).tolist()
    assert run("dare_ties", base, a, density=0.25, seed=3).tolist() == np.where(m, 4 * a, 0).tolist()
    got = run("dare_linear", base, a, density=0.25, seed=3, compat="mergekit")
    assert np.isclose(np.abs(got).sum(), np.abs(a).sum(), rtol=1e-6)


def test_slerp():
    a, b = f32(1, 0), f32(0, 2)
    root = np.sqrt(0.5)
    assert np.allclose(run("slerp", None, a, b), [root, 2 * root])
    assert np.allclose(run("slerp", a, b, t=1 / 3), [np.sin(np.pi / 3), 2 * np.sin(np.pi / 6)])
    assert run("slerp", a, b, t=0).tolist() == [1, 0]
    assert run("slerp", a, b, t=1).tolist() == [0, 2]
    # A zero end: a straight line; in mergekit's mode a right angle.
    assert run("slerp", f32(0, 0), b, t=0.25).tolist() == [0, 0.5]
    assert np.allclose(run("slerp", f32(0, 0), b, compat="mergekit"), [0, 2 * root])
    # Opposite ends: a straight line.
    assert run("slerp", f32(1, 1), f32(-1, -1)).tolist() == [0, 0]


def test_passthrough():
    x = f32(-0.0, np.nan, 1.5)
    assert bits(run("passthrough", None, x)).tolist() == bits(x).tolist()
    assert run("passthrough", None, f32(1.5, 2), scale=2).tolist() == [3, 4]


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear", "dare_ties"])
def test_identity_laws(method):
    # Quiet and signalling NaNs with a payload, -0.0, infinity.
    special = np.array([0x7FC1, 0xFF81, 0x8000, 0x7F80, 0x3F80], np.uint16).view(ml_dtypes.bfloat16)
    other = np.arange(5).astype(ml_dtypes.bfloat16)
    assert bits(run(method, special, special.copy(), special.copy())).tolist() == bits(special).tolist()
    parameters = {} if method == "task_arithmetic" else {"density": 1}
    assert bits(run(method, other, special, **parameters)).tolist() == bits(special).tolist()
    both = run(method, other, special, -other, weight=[1, 0], **parameters)
    assert bits(both).tolist() == bits(special).tolist()
    unchanged = run(method, f32(-0.0, 0.0, 1), f32(-0.0, -0.0, 2), **parameters, **{"lambda": 0.5})
    assert bits(unchanged)[:2].tolist() == [0x80000000, 0]


def test_the_comparison_notices_one_wrong_bit():
    rng = np.random.default_rng(0)
    base = rng.normal(0, 0.02, 1000).astype(ml_dtypes.bfloat16)
    experts = [(base.astype(np.float32) + rng.normal(0, 1e-3, 1000)).astype(ml_dtypes.bfloat16) for _ in range(2)]
    want = METHODS["task_arithmetic"]({"w": base}, [{"w": e} for e in experts], weight=[0.3, 0.5])["w"]
    got = want.rounded()
    assert_matches(got, want)
    wrong = got.copy()
    wrong.view(np.uint16)[17] += 1
    with pytest.raises(AssertionError, match="index 17"):
        assert_matches(wrong, want)
