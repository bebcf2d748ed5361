"""Packed models come back: the base in bf16, deltas with their signs and most of their length."""

import json

import numpy as np
from safetensors.numpy import load_file, save_file
from study.trio import COPIED, pack, unpack


def test_a_packed_expert_keeps_its_signs(tmp_path):
    draw = np.random.default_rng(0)
    base = {"a": draw.normal(0, 0.1, (30, 50)), "b": draw.normal(1, 0.1, (40,))}
    experts = {
        "one": {k: v + draw.normal(0, 1e-3, v.shape) for k, v in base.items()},
        "same": base,  # a delta of exactly 0 comes back as next to nothing
    }
    for name, weights in {"base": base, **experts}.items():
        (tmp_path / name).mkdir()
        for file in COPIED:
            (tmp_path / name / file).write_text(json.dumps({}))
        save_file({k: v.astype(np.float32) for k, v in weights.items()}, tmp_path / name / "model.safetensors")
    lost = pack(tmp_path / "packed", tmp_path / "base", {name: tmp_path / name for name in experts})
    assert 0.05 < lost["one"] < 0.25
    folders = unpack(tmp_path / "packed", tmp_path / "demo")
    assert [folder.name for folder in folders] == ["base", "one", "same"]
    start, one, same = (load_file(folder / "model.safetensors") for folder in folders)
    for name, weights in base.items():
        assert np.abs(start[name] - weights).max() <= 2**-8 * np.abs(weights).max()
        wanted = experts["one"][name].astype(np.float32) - weights.astype(np.float32)
        delta = one[name] - start[name]
        assert (np.sign(delta) == np.sign(wanted)).mean() > 0.999
        assert np.corrcoef(delta.ravel(), wanted.ravel())[0, 1] > 0.97
        assert np.abs(same[name] - start[name]).max() < 1e-6
        assert one[name].dtype == np.float32
    assert (folders[0] / "tokenizer.json").is_file()
