# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy>=2", "safetensors>=0.8"]
# ///
"""Models of a study in a file small enough for the repository: the base in bf16, experts by their deltas in 3 bits.

    python study/trio.py pack study/trio BASE rl-math=EXPERT rl-code=EXPERT ...
    python study/trio.py unpack study/trio demo

A delta keeps the sign of every element and loses about an eighth of its norm in noise: each row of a tensor has eight
levels, none of them 0, with one step between them. What is unpacked is f32, so that merges are of what is stored and
not of a second rounding.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

LEVELS = 8
STEPS = (0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8)  # in root mean squares of a row; the tensor's best is taken
COPIED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
Weights = dict[str, np.ndarray]


def pack(folder: Path, base: Path, experts: dict[str, Path]) -> dict[str, float]:
    """Write ``trio.npz`` and the files of the tokenizer and the configuration.

    Returns
    -------
    dict
        For each expert, the norm of what was lost by the norm of its delta.
    """
    start = load_file(base / "model.safetensors")
    names = sorted(start)
    shapes = {name: list(start[name].shape) for name in names}
    high, low = to_bf16(flat(start, names))
    arrays: dict[str, Any] = {"base.high": high, "base.low": low}
    lost = {}
    for expert, source in experts.items():
        theirs = load_file(source / "model.safetensors")
        codes, steps, error, norm = [], [], 0.0, 0.0
        for name in names:
            delta = rows(theirs[name].astype(np.float64) - start[name])
            code, step = quantize(delta)
            codes.append(code.ravel())
            steps.append(step)
            error += float(np.square(restored(code, step) - delta).sum())
            norm += float(np.square(delta).sum())
        arrays[f"{expert}.codes"] = np.concatenate(codes)
        arrays[f"{expert}.steps"] = np.concatenate(steps)
        lost[expert] = (error / norm) ** 0.5 if norm else 0.0
    folder.mkdir(parents=True, exist_ok=True)
    described = json.dumps({"experts": list(experts), "shapes": shapes})
    np.savez_compressed(folder / "trio.npz", described=np.frombuffer(described.encode(), np.uint8), **arrays)
    for name in COPIED:
        shutil.copyfile(base / name, folder / name)
    return lost


def unpack(packed: Path, folder: Path) -> list[Path]:
    """Write each model as a complete Hugging Face folder in f32; return the folders, the base first."""
    held = np.load(packed / "trio.npz")
    described = json.loads(held["described"].tobytes())
    shapes = described["shapes"]
    start = split(from_bf16(held["base.high"], held["base.low"]), shapes)
    made = [write(packed, folder / "base", start)]
    for expert in described["experts"]:
        codes = split(held[f"{expert}.codes"], shapes)
        found, at = {}, 0
        for name, code in codes.items():
            count = len(rows(code))
            step = held[f"{expert}.steps"][at : at + count]
            at += count
            delta = restored(rows(code), step).reshape(code.shape)
            found[name] = (start[name] + delta).astype(np.float32)
        made.append(write(packed, folder / expert, found))
    return made


def write(packed: Path, folder: Path, weights: Weights) -> Path:
    """Write one folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copyfile(packed / name, folder / name)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    return folder


def rows(values: np.ndarray) -> np.ndarray:
    """See a tensor as rows; a vector is one."""
    return values.reshape(-1, values.shape[-1])


def flat(weights: Weights, names: list[str]) -> np.ndarray:
    """Put all tensors behind each other."""
    return np.concatenate([weights[name].astype(np.float32).ravel() for name in names])


def split(values: np.ndarray, shapes: dict[str, list[int]]) -> Weights:
    """Undo `flat`."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
    parts = np.split(values, ends[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def to_bf16(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round to bf16, ties to even; return its high and low bytes, which compress better apart."""
    bits = values.view(np.uint32)
    short = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return (short >> 8).astype(np.uint8), (short & 0xFF).astype(np.uint8)


def from_bf16(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Undo `to_bf16`, as f32."""
    found: np.ndarray = (((high.astype(np.uint32) << 8) | low) << 16).view(np.float32)
    return found


def quantize(delta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the level of each element, and the step between levels of each row."""
    spread = np.sqrt(np.square(delta).mean(1))
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for factor in STEPS:
        step = np.maximum((spread * factor).astype(np.float16), np.finfo(np.float16).smallest_subnormal)
        code = np.clip(np.floor(delta / step[:, None].astype(np.float64)) + LEVELS // 2, 0, LEVELS - 1).astype(np.uint8)
        error = float(np.square(restored(code, step) - delta).sum())
        if best is None or error < best[0]:
            best = error, code, step
    assert best is not None
    return best[1], best[2]


def restored(code: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Return the deltas that levels stand for: the middle of each."""
    return (code.astype(np.float64) - LEVELS // 2 + 0.5) * step[:, None].astype(np.float64)


def main() -> None:
    """Pack or unpack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="write trio.npz")
    packing.add_argument("folder", type=Path)
    packing.add_argument("base", type=Path)
    packing.add_argument("experts", nargs="+", metavar="NAME=FOLDER")
    unpacking = commands.add_parser("unpack", help="write model folders")
    unpacking.add_argument("packed", type=Path)
    unpacking.add_argument("folder", type=Path)
    told = parser.parse_args()
    if told.command == "unpack":
        for folder in unpack(told.packed, told.folder):
            print(folder)
        return
    named = {name: Path(folder) for name, _, folder in (text.partition("=") for text in told.experts)}
    for name, share in pack(told.folder, told.base, named).items():
        print(f"{name}: {100 * share:.1f} % of the delta's norm lost")


if __name__ == "__main__":
    main()
