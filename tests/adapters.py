"""PEFT adapters on disk: folders that `peft` would load, written without it."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests import tensorfile
from tests.reference.rounding import DTYPES, round_to

#: What PEFT puts in front of every name.
WRAPPER = "base_model.model."


def factors(shape, rank: int, rng: np.random.Generator, *, dtype="F32", step: float | None = None, size: float = 0.1):
    """A and B of a matrix or kernel; on a grid of `step` when given, which makes products exact."""
    a_shape, b_shape = (rank, *shape[1:]), (shape[0], rank, *[1] * (len(shape) - 2))
    if step is None:
        values = [rng.normal(0, size, s) for s in (a_shape, b_shape)]
    else:
        values = [rng.integers(-3, 4, s) * step for s in (a_shape, b_shape)]
    a, b = (round_to(np.asarray(v, float), DTYPES[dtype]) for v in values)
    return a, b


def lora(modules: Mapping[str, tuple[int, ...]], rank, rng, **settings) -> dict[str, np.ndarray]:
    """The tensors of an adapter on these modules; `rank` is one number or one for each module."""
    tensors = {}
    for module, shape in modules.items():
        a, b = factors(shape, rank[module] if isinstance(rank, Mapping) else rank, rng, **settings)
        tensors[f"{WRAPPER}{module}.lora_A.weight"] = a
        tensors[f"{WRAPPER}{module}.lora_B.weight"] = b
    return tensors


def write(path: Path, tensors: Mapping[str, np.ndarray], **config) -> Path:
    """An adapter's folder; `config` are keys of `adapter_config.json`."""
    path.mkdir(parents=True)
    keys = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": None, "bias": "none", **config}
    (path / "adapter_config.json").write_text(json.dumps(keys, indent=2))
    tensorfile.write(path / "adapter_model.safetensors", tensors, {"format": "pt"})
    return path
