"""A few faults of the catalogue, one of a kind; `make faults` makes them all."""

import pytest

from tests.faults import catalogue
from tests.faults.scene import CannotRun, Scene


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return Scene(tmp_path_factory.mktemp("scene").resolve())


@pytest.mark.parametrize("number", ["F09", "F20", "F22", "F46", "F53", "F60", "F63", "§2.2 step 5"])
def test_a_fault_ends_as_expected(scene, number, monkeypatch):
    monkeypatch.setattr(catalogue, "PLACES", 2)
    (fault,) = [fault for fault in catalogue.FAULTS if fault.number == number]
    scene.begin()
    try:
        fault.run(scene)
    except CannotRun as reason:
        pytest.skip(str(reason))
    assert scene.wrong == []
    assert scene.runs > 0


def test_every_fault_is_made_or_says_why_not():
    numbers = [fault.number for fault in catalogue.FAULTS]
    assert len(set(numbers)) == len(numbers)
    assert set(numbers) >= {f"F{n:02}" for n in range(1, 65)}
    assert all((fault.run is None) == bool(fault.elsewhere) for fault in catalogue.FAULTS)
