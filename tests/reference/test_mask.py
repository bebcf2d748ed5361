"""Philox against Random123's published known answers; the mask's own definition by distribution."""

import numpy as np
import pytest

from tests.reference import mask

# The three lines "philox4x32 10" of Random123's kat_vectors: counter, key, output.
KNOWN_ANSWERS = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "want"), KNOWN_ANSWERS)
def test_known_answers(counter, key, want):
    got = mask.philox4x32_10(np.array([counter], np.uint32), tuple(key))
    assert got.tolist() == [want]


def test_a_prefix_is_the_same_whatever_the_length():
    long = mask.words(7, "a.b", 1, 1003)
    for n in (0, 1, 3, 4, 5, 1002):
        assert (mask.words(7, "a.b", 1, n) == long[:n]).all()


def test_kept_fraction_and_independence():
    n, density = 200_000, 0.3
    masks = [mask.keep(s, t, e, (n,), density) for s, t, e in [(0, "w", 0), (0, "w", 1), (0, "v", 0), (1, "w", 0)]]
    spread = 5 * np.sqrt(density * (1 - density) / n)
    for m in masks:
        assert abs(m.mean() - density) < spread
    for i, a in enumerate(masks):
        for b in masks[i + 1 :]:
            assert abs((a & b).mean() - density**2) < 5 * np.sqrt(density**2 * (1 - density**2) / n)


def test_density_one_keeps_everything():
    assert mask.keep(0, "w", 0, (1000,), 1.0).all()
    assert mask.keep(0, "w", 0, (), 1.0).shape == ()
