"""`--verify-inputs`: inputs are read twice, and the report has their checksums.

That a byte which changed in between is told is tested in rust/rlmerge-core/tests/cancel.rs.
"""

import numpy as np
import pytest

import rlmerge
from tests import tensorfile


@pytest.fixture
def models(tmp_path):
    """A base and two experts; tensors of one tile, of several, and one without arithmetic."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "a", "b")]
    for path in paths:
        tensors = {"big": rng.normal(size=(3, 1 << 18)), "small": rng.normal(size=5)}
        tensors = {name: values.astype(np.float32) for name, values in tensors.items()}
        tensorfile.write(path, {**tensors, "ids": np.arange(7)})
    return paths


def merge(models, **options):
    base, *experts = models
    return rlmerge.merge(
        experts, method="ties", base=base, output=base.with_name("out.safetensors"), verify_inputs=True, **options
    )


@pytest.mark.parametrize("io", ["pread", "mmap"])
def test_what_stays_the_same_is_published_with_its_checksums(models, io):
    report = merge(models, io=io)
    for tensor in report.raw["tensors"]:
        assert len(tensor["source_blake3"]) == 3
    plain = rlmerge.merge(
        models[1:], method="ties", base=models[0], output=models[0].with_name("other.safetensors"), io=io
    )
    assert [t["blake3"] for t in plain.raw["tensors"]] == [t["blake3"] for t in report.raw["tensors"]]
    assert "source_blake3" not in plain.raw["tensors"][0]


def test_without_it_the_checksums_are_not_made(models):
    base, *experts = models
    report = rlmerge.merge(experts, method="ties", base=base, output=base.with_name("out.safetensors"))
    assert all("source_blake3" not in tensor for tensor in report.raw["tensors"])
