"""Records of a run: files written whole, metrics as JSON lines, and the manifest that every number leads back to."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy", "rlmerge", "matplotlib")


def write_json(path: Path, data: Any, indent: int | None = 1) -> None:
    """Write a JSON file whole or not at all; without an indent on one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(json.dumps(data, indent=indent, sort_keys=True, default=str) + "\n")
    staged.replace(path)


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text())


def append_line(path: Path, data: Mapping[str, Any]) -> None:
    """Add one line to a JSONL file."""
    with path.open("a") as file:
        file.write(json.dumps(data, sort_keys=True) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def hash_file(path: Path) -> str:
    """Return the BLAKE2b of a file, 32 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def hash_weights(folder: Path) -> str:
    """Return one hash over all safetensors files of a model folder, in the order of their names."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        msg = f"{folder}: no safetensors files; give the folder of a model"
        raise FileNotFoundError(msg)
    return hashlib.blake2b("".join(map(hash_file, files)).encode(), digest_size=16).hexdigest()


def hash_data(data: Any) -> str:
    """Return a short hash of plain data: the id of a run is that of its settings."""
    return hashlib.blake2b(json.dumps(data, sort_keys=True, default=str).encode(), digest_size=6).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version(), "platform": f"{sys.platform}-{platform.machine()}"}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_manifest(folder: Path, settings: Mapping[str, Any], base: Path | None, **facts: Any) -> dict[str, Any]:
    """Write ``manifest.json``: settings, versions, the base's hash, and the run's id made of all that decides it."""
    base_hash = hash_weights(base) if base is not None and base.is_dir() else None
    decisive = {name: value for name, value in settings.items() if name not in ("output_dir", "model_name_or_path")}
    manifest = {
        "run": hash_data({"settings": decisive, "base": base_hash}),
        "settings": dict(settings),
        "base_hash": base_hash,
        "versions": versions(),
        **facts,
    }
    write_json(folder / "manifest.json", manifest)
    return manifest
