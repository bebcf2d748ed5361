"""Tiny models on disk for the tests of the Python package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from safetensors.numpy import save_file


class WriteModel(Protocol):
    def __call__(
        self,
        name: str,
        *,
        step: float = 0.0,
        config: dict | None = None,
        card: str | None = None,
        meta: dict | None = None,
    ) -> Path: ...


@pytest.fixture
def write_model(tmp_path: Path) -> WriteModel:
    """Write a safetensors file (name with the suffix) or a Hugging Face folder of two small tensors."""

    def write(name, *, step=0.0, config=None, card=None, meta=None):
        rng = np.random.default_rng(7)
        change = np.random.default_rng(list(name.encode()))
        tensors = {}
        for key, shape in (("layer.weight", (8, 6)), ("norm.weight", (6,))):
            value = rng.normal(size=shape) + step * change.normal(size=shape)
            tensors[key] = value.astype(np.float32)
        path = tmp_path / name
        if path.suffix == ".safetensors":
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, path, metadata=meta)
            return path
        path.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path / "model.safetensors", metadata=meta)
        if config is not None:
            (path / "config.json").write_text(json.dumps(config))
        if card is not None:
            (path / "README.md").write_text(card)
        return path

    return write


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in the folder of the test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
