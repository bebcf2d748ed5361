"""Runs the engine on arrays: writes the models, merges, reads the output back."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tests import models, tensorfile

Tensors = Mapping[str, np.ndarray]
#: Methods that write a file of masks, for which the output has to be a folder.
WITH_MASKS = ("tall_masks", "emr")


@contextmanager
def written(experts: Sequence[Tensors], base: Tensors | None = None, shards: int | None = None):
    """Paths of the experts, of the base, and of a folder for outputs, in a folder of their own.

    One file a model, or a folder of that many shards.
    """
    with tempfile.TemporaryDirectory(prefix="rlmerge-test-") as folder:
        root = Path(folder)

        def put(name: str, tensors: Tensors) -> Path:
            if shards is not None:
                return models.write_folder(root / name, tensors, shards=shards)
            path = root / f"{name}.safetensors"
            tensorfile.write(path, tensors, {"format": "pt"})
            return path

        yield [put(f"expert{i}", e) for i, e in enumerate(experts)], base and put("base", base), root


def merge(method, experts, base=None, *, shards=None, parameters=None, **options) -> dict[str, np.ndarray]:
    """The merged tensors. `parameters` are the method's; `options` are those of `rlmerge.merge`."""
    import rlmerge

    with written(experts, base, shards) as (paths, base_path, root):
        folder = shards is not None or method in WITH_MASKS
        output = root / ("merged" if folder else "merged.safetensors")
        rlmerge.merge(paths, method=method, base=base_path, output=output, parameters=dict(parameters or {}), **options)
        return tensorfile.read(output)


def digest(tensors: Tensors) -> str:
    """One hash over names, dtypes, shapes and bytes, whatever the order."""
    from blake3 import blake3

    hasher = blake3()
    for name in sorted(tensors):
        raw = tensorfile.as_raw(tensors[name])
        hasher.update(json.dumps([name, raw.dtype, list(raw.shape)]).encode())
        hasher.update(raw.data)
    return hasher.hexdigest()
