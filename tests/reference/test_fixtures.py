"""The fixtures' own files, read by the reference library."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from tests import models, tensorfile
from tests.reference.rounding import BF16, DTYPES


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "I64", "I32", "I16", "I8", "U8", "BOOL"])
def test_files_are_read_by_the_reference_library(tmp_path, dtype):
    tensors = {
        "z": np.arange(6).reshape(2, 3).astype(DTYPES[dtype]),
        "scalar": np.array(1, DTYPES[dtype]),
        "empty": np.zeros((0, 4), DTYPES[dtype]),
    }
    tensorfile.write(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    theirs, ours = load_file(tmp_path / "x.safetensors"), tensorfile.read(tmp_path / "x.safetensors")
    for name, want in tensors.items():
        for got in (theirs[name], ours[name]):
            assert got.dtype == want.dtype
            assert got.shape == want.shape
            assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("family", models.FAMILIES)
@pytest.mark.parametrize("shards", [1, 3])
def test_trios(tmp_path, family, shards):
    trio = models.write_trio(tmp_path, family, shards=shards)
    read = tensorfile.read(trio.experts[0])
    assert set(read) == set(models.shapes(family))
    assert all(t.dtype == BF16 for t in read.values())
    equal = sum((a == trio.base_tensors[n]).sum() for n, a in read.items())
    assert 0.2 < equal / sum(t.size for t in read.values()) < 0.6
    if shards > 1:
        index = json.loads((trio.base / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(read)
        assert len(set(index["weight_map"].values())) == 3
    for file in trio.base.glob("*.safetensors"):
        with safe_open(file, "np") as opened:
            assert opened.metadata() == {"format": "pt"}
    assert ("lm_head.weight" in read) == (family != "qwen2")
    assert json.loads((trio.base / "config.json").read_text())["tie_word_embeddings"] == (family == "qwen2")
