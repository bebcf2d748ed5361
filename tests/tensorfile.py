"""A plain writer and reader of safetensors files, independent of the engine and of any library.

Unlike the reference library's writer it keeps the order of the tensors and takes every dtype of the format:
an array, or `Raw` for those that NumPy cannot hold.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.reference.rounding import DTYPES, NAMES


@dataclass(frozen=True)
class Raw:
    """A tensor given by its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def as_raw(tensor: np.ndarray | Raw) -> Raw:
    """Any tensor by its bytes."""
    if isinstance(tensor, Raw):
        return tensor
    return Raw(NAMES[tensor.dtype], tensor.shape, tensor.tobytes())


def write(path: Path, tensors: Mapping[str, np.ndarray | Raw], metadata: Mapping[str, str] | None = None, pad: int = 0):
    """Writes one file; `pad` adds that many spaces to the header, which shifts where the data begins."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    raw = {name: as_raw(t) for name, t in tensors.items()}
    offset = 0
    for name, t in raw.items():
        header[name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [offset, offset + len(t.data)]}
        offset += len(t.data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8 + pad)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(t.data for t in raw.values()))


def header(path: Path) -> dict:
    """The JSON header of a file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length))


def read_raw(path: Path) -> dict[str, Raw]:
    """All tensors of a file, by their bytes."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    entries = json.loads(content[8 : 8 + length])
    entries.pop("__metadata__", None)
    data = content[8 + length :]
    return {
        name: Raw(e["dtype"], tuple(e["shape"]), data[e["data_offsets"][0] : e["data_offsets"][1]])
        for name, e in entries.items()
    }


def read(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file, or of all shards of a folder, as arrays."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    out = {}
    for file in files:
        for name, raw in read_raw(file).items():
            assert name not in out, f"{name} is in two shards"
            out[name] = np.frombuffer(raw.data, DTYPES[raw.dtype]).reshape(raw.shape)
    return out
