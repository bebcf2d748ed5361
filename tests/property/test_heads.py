"""The rule of the output head: who stores one, whose embedding stands in, and what the output says."""

import json

import numpy as np
import pytest

import rlmerge
from tests import models, tensorfile

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def folders(tmp_path):
    """Writes a base and an expert of the llama family, each with or without a head and a word on tying."""

    def write(name, *, head, tie, seed):
        tensors = models.weights("llama", "F32", seed)
        if not head:
            del tensors[HEAD]
        path = models.write_folder(tmp_path / name, tensors, family="llama", dtype="F32")
        config = json.loads((path / "config.json").read_text())
        del config["tie_word_embeddings"]
        if tie is not None:
            config["tie_word_embeddings"] = tie
        (path / "config.json").write_text(json.dumps(config))
        return path, tensors

    return write


def merge(base, expert, tmp_path):
    output = tmp_path / "out"
    report = rlmerge.merge([base, expert], method="linear", output=output)
    return report, tensorfile.read(output / "model.safetensors"), json.loads((output / "config.json").read_text())


@pytest.mark.parametrize("tie", [True, None])
def test_nobody_stores_a_head(folders, tmp_path, tie):
    base, _ = folders("base", head=False, tie=tie, seed=0)
    expert, _ = folders("expert", head=False, tie=tie, seed=1)
    _, merged, config = merge(base, expert, tmp_path)
    assert HEAD not in merged
    assert config.get("tie_word_embeddings") == tie


@pytest.mark.parametrize("tie", [True, None])
@pytest.mark.parametrize("without", ["base", "expert"])
def test_an_embedding_stands_in_where_others_store_a_head(folders, tmp_path, tie, without):
    base, b = folders("base", head=without != "base", tie=tie, seed=0)
    expert, x = folders("expert", head=without != "expert", tie=tie, seed=1)
    report, merged, config = merge(base, expert, tmp_path)
    want = (np.float64(b.get(HEAD, b[EMBEDDING])) + x.get(HEAD, x[EMBEDDING])) / 2
    assert np.array_equal(merged[HEAD], want.astype(np.float32))
    assert config["tie_word_embeddings"] is False
    assert any(HEAD in note and "stands in" in note for note in report.notes)


def test_a_head_that_is_not_tied_is_missed(folders, tmp_path):
    base, _ = folders("base", head=True, tie=False, seed=0)
    expert, _ = folders("expert", head=False, tie=False, seed=1)
    with pytest.raises(rlmerge.AlignmentError, match=r"lm_head\.weight.*missing") as error:
        merge(base, expert, tmp_path)
    assert error.value.code == "models_do_not_fit"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "expert"]
