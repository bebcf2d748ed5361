"""Check a merged folder against the NumPy f64 oracle of `tests/reference`, element by element, on some of its tensors.

Whole tensors of a few layers are checked with every method. The embedding and the head, the largest tensors, are
checked on sampled rows, for the methods where an element's result depends on nothing but that element's inputs.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.reference import METHODS
from tests.reference.conventions import assert_matches

if TYPE_CHECKING:
    from collections.abc import Iterator

ORACLE = {"dare": "dare_linear"}
ELEMENT_BY_ELEMENT = ("linear", "task_arithmetic")
ROWS = 400


def headers(path: Path) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """Each shard of a Hugging Face folder, the length of its header, and its tensors."""
    for shard in sorted(path.glob("*.safetensors")):
        with shard.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        yield shard, length, header


def names(path: Path) -> set[str]:
    """Names of all tensors of a folder."""
    return {name for _, _, header in headers(path) for name in header}


class Folder:
    """Tensors of a Hugging Face folder by name, mapped and not read."""

    def __init__(self, path: Path) -> None:
        self.tensors: dict[str, np.ndarray] = {}
        for shard, length, header in headers(path):
            for name, entry in header.items():
                if entry["dtype"] != "BF16":
                    raise SystemExit(f"{shard}: {name} is {entry['dtype']}, expected BF16")
                begin, _ = entry["data_offsets"]
                raw = np.memmap(shard, np.uint16, "r", 8 + length + begin, tuple(entry["shape"]))
                self.tensors[name] = raw.view(ml_dtypes.bfloat16)


def check(method: str, parameters: dict[str, float], inputs: list[Path], base: Path | None, merged: Path) -> int:
    """How many elements were checked; SystemExit when one of them is wrong."""
    models = [Folder(path) for path in inputs]
    start = Folder(base) if base else None
    output = Folder(merged)
    if output.tensors.keys() != models[0].tensors.keys():
        raise SystemExit(f"{method}: the tensors of the output are not those of the inputs")
    checked = 0
    for name, rows in samples(method, models[0]).items():

        def part(folder: Folder, name: str = name, rows: np.ndarray | slice = rows) -> dict[str, np.ndarray]:
            return {name: np.array(folder.tensors[name][rows])}

        oracle = METHODS[ORACLE.get(method, method)]
        want = oracle(part(start) if start else None, [part(model) for model in models], **parameters)
        got = part(output)[name]
        try:
            assert_matches(got, want[name], name)
        except AssertionError as wrong:
            raise SystemExit(f"{method}: wrong answer: {wrong}") from None
        checked += got.size
    return checked


def samples(method: str, model: Folder) -> dict[str, np.ndarray | slice]:
    """Which tensors to look at, and which of their rows."""
    layers = 1 + max(int(name.split(".")[2]) for name in model.tensors if ".layers." in name)
    chosen: dict[str, np.ndarray | slice] = {
        "model.layers.0.self_attn.k_proj.weight": slice(None),
        f"model.layers.{layers // 2}.mlp.down_proj.weight": slice(None),
        f"model.layers.{layers - 1}.input_layernorm.weight": slice(None),
        f"model.layers.{layers - 1}.self_attn.o_proj.weight": slice(None),
    }
    if method in ELEMENT_BY_ELEMENT:
        draw = np.random.default_rng(0)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            chosen[name] = np.sort(draw.choice(len(model.tensors[name]), ROWS, replace=False))
    return chosen
