"""Verification: what was damaged is found, by the name of its diagnostic, its file and its tensor."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import rlmerge
from rlmerge import _core
from tests import models, tensorfile

DIAGNOSTICS = {row["id"]: row for row in json.loads(_core.diagnostics())}
HEAD = "lm_head.weight"


@pytest.fixture(scope="module")
def trio(tmp_path_factory):
    return models.write_trio(tmp_path_factory.mktemp("trio"))


@pytest.fixture
def merged(trio, tmp_path) -> Path:
    """A merged folder in several shards, with masks."""
    output = tmp_path / "merged"
    rlmerge.merge(trio.experts, base=trio.base, method="tall_masks", output=output, shard_size="100kB")
    assert len(list(output.glob("*.safetensors"))) > 2
    return output


def shard_of(merged: Path, tensor: str) -> Path:
    index = json.loads((merged / "model.safetensors.index.json").read_text())
    return merged / index["weight_map"][tensor]


def flip(path: Path, tensor: str, at: int = 0) -> None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    begin = tensorfile.header(path)[tensor]["data_offsets"][0]
    content = bytearray(path.read_bytes())
    content[8 + length + begin + at] ^= 0x10
    path.write_bytes(content)


def edit(path: Path, **changes: object) -> None:
    value = json.loads(path.read_text())
    for key, change in changes.items():
        if change is None:
            del value[key]
        else:
            value[key] = change
    path.write_text(json.dumps(value))


def rewrite(path: Path, change) -> None:
    """Saves a shard again with other tensors."""
    tensors = tensorfile.read_raw(path)
    change(tensors)
    tensorfile.write(path, tensors, {"format": "pt"})


def drop_from_index(merged: Path) -> None:
    path = merged / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"][HEAD]
    path.write_text(json.dumps(index))


def move_in_index(merged: Path) -> None:
    path = merged / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    others = sorted(set(index["weight_map"].values()) - {index["weight_map"][HEAD]})
    index["weight_map"][HEAD] = others[0]
    path.write_text(json.dumps(index))


def other_total(merged: Path) -> None:
    path = merged / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["metadata"]["total_size"] += 2
    path.write_text(json.dumps(index))


def add_tensor(merged: Path) -> None:
    rewrite(shard_of(merged, HEAD), lambda t: t.update(extra=tensorfile.Raw("U8", (3,), b"abc")))


def drop_tensor(merged: Path) -> None:
    rewrite(shard_of(merged, HEAD), lambda t: t.pop(HEAD))


def other_shape(merged: Path) -> None:
    def change(tensors):
        old = tensors[HEAD]
        tensors[HEAD] = tensorfile.Raw(old.dtype, old.shape[::-1], old.data)

    rewrite(shard_of(merged, HEAD), change)


def append(merged: Path) -> None:
    with shard_of(merged, HEAD).open("ab") as file:
        file.write(b"x")


def break_header(merged: Path) -> None:
    path = shard_of(merged, HEAD)
    content = bytearray(path.read_bytes())
    content[8] = ord("]")
    path.write_bytes(content)


def write(name: str, text: str):
    return lambda merged: (merged / name).write_text(text)


def mask_bit(merged: Path) -> None:
    flip(merged / "rlmerge.masks", f"masks/{HEAD}", 5)


DAMAGES = {
    "RLM-V001": (write("rlmerge.json", "{"), "rlmerge.json", None),
    "RLM-V010": (lambda m: shard_of(m, HEAD).unlink(), HEAD, None),
    "RLM-V011": (append, HEAD, None),
    "RLM-V012": (break_header, HEAD, None),
    "RLM-V013": (write("model-extra.safetensors", "?"), "model-extra.safetensors", None),
    "RLM-V020": (drop_tensor, HEAD, HEAD),
    "RLM-V021": (add_tensor, HEAD, "extra"),
    "RLM-V022": (other_shape, HEAD, HEAD),
    "RLM-V023": (lambda m: flip(shard_of(m, HEAD), HEAD, 77), HEAD, HEAD),
    "RLM-V030": (move_in_index, "model.safetensors.index.json", HEAD),
    "RLM-V031": (drop_from_index, "model.safetensors.index.json", HEAD),
    "RLM-V032": (other_total, "model.safetensors.index.json", None),
    "RLM-V040": (write("config.json", "{"), "config.json", None),
    "RLM-V042": (lambda m: edit(m / "config.json", torch_dtype="float16"), "config.json", None),
    "RLM-V043": (lambda m: edit(m / "config.json", vocab_size=77), "config.json", "model.embed_tokens.weight"),
    "RLM-V044": (lambda m: edit(m / "config.json", num_hidden_layers=99), "config.json", None),
    "RLM-V050": (lambda m: (m / "rlmerge.masks").unlink(), "rlmerge.masks", None),
    "RLM-V051": (mask_bit, "rlmerge.masks", HEAD),
}
#: The first needs an output whose head came untied by the merge, the other a disk that fails.
ELSEWHERE = {"RLM-V041", "RLM-V024"}


def test_an_untouched_output_is_whole(merged):
    found = rlmerge.verify(merged)
    assert found.ok
    assert found.findings == ()
    assert found.tensors_verified == found.tensors > 10
    assert found.shards == len(list(merged.glob("*.safetensors")))
    assert found.bytes > sum(path.stat().st_size for path in merged.glob("*.safetensors")) * 0.9
    assert found.to_dict()["schema"] == "rlmerge.verify/1"


@pytest.mark.parametrize("identifier", DAMAGES)
def test_damage_is_found(merged, identifier):
    damage, file, tensor = DAMAGES[identifier]
    file = shard_of(merged, HEAD).name if file == HEAD else file
    before = {path.name: path.stat().st_mtime_ns for path in merged.iterdir()}
    damage(merged)
    found = rlmerge.verify(merged)
    hits = [f for f in found.findings if f.id == identifier]
    assert hits, [f.id for f in found.findings]
    assert (hits[0].file, hits[0].tensor) == (file, tensor)
    known = DIAGNOSTICS[identifier]
    assert (hits[0].name, hits[0].cause, hits[0].remedy) == (known["name"], known["cause"], known["remedy"])
    assert found.ok == (known["severity"] == "warning")
    assert all(before.get(path.name, 0) for path in merged.iterdir()) or identifier == "RLM-V013"


def test_every_diagnostic_has_a_test():
    assert DAMAGES.keys() | ELSEWHERE == DIAGNOSTICS.keys()


def test_every_bit_counts(merged):
    path = shard_of(merged, HEAD)
    whole = path.read_bytes()
    entries = tensorfile.header(path)
    for tensor, entry in entries.items():
        if tensor == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        for at in {0, (end - begin) // 2, end - begin - 1}:
            flip(path, tensor, at)
            (finding,) = rlmerge.verify(merged).findings
            assert (finding.id, finding.file, finding.tensor) == ("RLM-V023", path.name, tensor)
            path.write_bytes(whole)
    assert rlmerge.verify(merged).ok


def test_several_damages_are_all_told(merged):
    flip(shard_of(merged, HEAD), HEAD)
    mask_bit(merged)
    edit(merged / "config.json", vocab_size=77)
    assert {f.id for f in rlmerge.verify(merged).findings} == {"RLM-V023", "RLM-V051", "RLM-V043"}


def test_a_head_of_its_own_needs_a_config_that_says_so(tmp_path):
    base = models.weights("qwen2")
    tied = models.write_folder(tmp_path / "tied", base, family="qwen2")
    untied = {**models.fine_tuned(base, 1), HEAD: base["model.embed_tokens.weight"] * 2}
    one = models.write_folder(tmp_path / "untied", untied, family="qwen2")
    edit(one / "config.json", tie_word_embeddings=False)
    output = tmp_path / "merged"
    rlmerge.merge([tied, one], method="linear", output=output)
    assert rlmerge.verify(output).ok
    edit(output / "config.json", tie_word_embeddings=True)
    (finding,) = rlmerge.verify(output).findings
    assert (finding.id, finding.file) == ("RLM-V041", "config.json")


def test_a_single_file_needs_a_report(trio, tmp_path):
    output = tmp_path / "out.safetensors"
    report = rlmerge.merge(trio.experts, method="linear", output=output)
    with pytest.raises(rlmerge.CheckpointError, match="--manifest"):
        rlmerge.verify(output)
    manifest = tmp_path / "report.json"
    manifest.write_text(json.dumps(report.to_dict()))
    assert rlmerge.verify(output, manifest=manifest).ok
    flip(output, HEAD)
    (finding,) = rlmerge.verify(output, manifest=manifest).findings
    assert (finding.id, finding.tensor) == ("RLM-V023", HEAD)


def test_there_must_be_something_to_verify(trio, tmp_path):
    with pytest.raises(rlmerge.CheckpointError, match=r"rlmerge\.json"):
        rlmerge.verify(trio.base)
    with pytest.raises(FileNotFoundError):
        rlmerge.verify(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "", "..", "a\nb"])
def test_a_manifest_leads_nowhere(merged, name):
    path = merged / "rlmerge.json"
    report = json.loads(path.read_text())
    report["plan"]["output"]["shards"][0]["name"] = name
    path.write_text(json.dumps(report))
    (finding,) = rlmerge.verify(merged).findings
    assert finding.id == "RLM-V001"


def test_pipes_and_folders_are_no_shards(merged):
    path = shard_of(merged, HEAD)
    path.unlink()
    os.mkfifo(path)
    assert "RLM-V012" in {f.id for f in rlmerge.verify(merged).findings} or not rlmerge.verify(merged).ok
    path.unlink()
    path.mkdir()
    assert "RLM-V012" in {f.id for f in rlmerge.verify(merged).findings}


def test_threads_do_not_matter_and_progress_is_told(merged):
    assert rlmerge.verify(merged, threads=1).to_dict()["findings"] == []
    with pytest.raises(rlmerge.RecipeError):
        rlmerge.verify(merged, threads=0)

    def stop(_progress):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        rlmerge.verify(merged, progress=stop)
