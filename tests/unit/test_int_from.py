"""Tensors without arithmetic that differ: an error, or those of the model that `int_from` names."""

import numpy as np
import pytest

import rlmerge
from tests import tensorfile


@pytest.fixture
def models(tmp_path):
    """A base and two experts that count differently."""
    for at, name in enumerate(("base", "a", "b")):
        tensors = {"w": np.full((4, 6), at, np.float32), "ids": np.arange(7) + at, "mask": np.array([at == 1])}
        tensorfile.write(tmp_path / f"{name}.safetensors", tensors)
    return tmp_path


def merge(models, **options):
    return rlmerge.merge(
        [models / "a.safetensors", models / "b.safetensors"], method="ties", base=models / "base.safetensors",
        output=models / "out.safetensors", **options,
    )  # fmt: skip


def test_unless_told_whose_a_difference_is_an_error(models):
    with pytest.raises(rlmerge.AlignmentError) as raised:
        merge(models)
    assert raised.value.code == "opaque_tensors_differ"
    assert "--int-from" in raised.value.hint


@pytest.mark.parametrize(("whose", "name"), [("base", "base"), (1, "a"), ("2", "b")])
def test_the_named_model_gives_them(models, whose, name):
    report = merge(models, int_from=whose)
    written, expected = tensorfile.read(report.output), tensorfile.read(models / f"{name}.safetensors")
    for tensor in ("ids", "mask"):
        assert written[tensor].data == expected[tensor].data
    assert report.raw["plan"]["int_from"] == (int(whose) if whose != "base" else "base")


@pytest.mark.parametrize("whose", [0, 3, -1, "", "c", True, 1.0, [1]])
def test_there_has_to_be_such_a_model(models, whose):
    with pytest.raises(rlmerge.RecipeError, match="int_from"):
        merge(models, int_from=whose)


def test_no_base_is_no_base(models):
    with pytest.raises(rlmerge.RecipeError, match="there is none"):
        rlmerge.plan([models / "a.safetensors", models / "b.safetensors"], method="linear", int_from="base")


def test_masks_need_them_equal(models):
    with pytest.raises(rlmerge.RecipeError, match="equal in all models"):
        rlmerge.plan(
            [models / "a.safetensors", models / "b.safetensors"], method="tall_masks",
            base=models / "base.safetensors", output=models / "out", int_from=1,
        )  # fmt: skip
