"""Draw the pictures of docs/conflict-report.md: the page of a report (by a headless Chromium), and a terminal.

The models are random numbers: each expert is its base, a few directions in every matrix, more of them shared with the
others, or turned round, in deeper layers, and noise.

    draw_conflict_pictures.py [--chromium /usr/bin/chromium]

Needs Pillow, which comes with the extra `plot`: a picture of 128 colours is a third as large and looks the same.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
from PIL import Image
from rich.console import Console
from rich.text import Text

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests import tensorfile

IMAGES = Path(__file__).parents[1] / "docs/images"
LAYERS, HIDDEN, INTERMEDIATE, RANK = 16, 192, 448, 6
EXPERTS = ("sft-math", "sft-code", "sft-if")
#: How much of its directions an expert shares with the others in the last layer, and which way round.
SHARED = {"sft-math": 0.7, "sft-code": -0.7, "sft-if": 0.5}


def shapes() -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a small Llama."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (2000, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        block = f"model.layers.{layer}."
        for name in ("q", "k", "v", "o"):
            found[f"{block}self_attn.{name}_proj.weight"] = (HIDDEN if name in "qo" else HIDDEN // 3, HIDDEN)
        found[f"{block}mlp.gate_proj.weight"] = found[f"{block}mlp.up_proj.weight"] = (INTERMEDIATE, HIDDEN)
        found[f"{block}mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        found[f"{block}input_layernorm.weight"] = (HIDDEN,)
    return found


def make(root: Path) -> None:
    """Write the models."""
    rng = np.random.default_rng(4)
    base, experts = {}, {name: {} for name in EXPERTS}
    for name, shape in shapes().items():
        weights = rng.normal(1.0 if "norm" in name else 0.0, 0.04, shape).astype(np.float32)
        base[name] = weights.astype(ml_dtypes.bfloat16)
        depth = int(name.split(".")[2]) / (LAYERS - 1) if ".layers." in name else 0.3
        common = low_rank(rng, shape)
        for expert, tensors in experts.items():
            share = SHARED[expert] * depth
            delta = share * common + np.sqrt(1 - share**2) * low_rank(rng, shape) + rng.normal(0, 3e-4, shape)
            tensors[name] = (base[name].astype(np.float32) + delta).astype(ml_dtypes.bfloat16)
    for name, tensors in {"base": base, **experts}.items():
        tensorfile.write(root / f"{name}.safetensors", tensors)


def low_rank(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return a change of RMS about 1e-3 in a few directions; of vectors, one that bf16 shows."""
    if len(shape) == 1:
        return rng.normal(0, 2e-2, shape)
    left, right = (rng.normal(size=(n, RANK)) for n in shape)
    sizes = np.geomspace(2, 0.4, RANK)
    return 1e-3 * (left * sizes / np.linalg.norm(sizes)) @ right.T


def main() -> int:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make(root)
        command = ["conflict-report", *EXPERTS, "--base", "base", "--spectral"]
        files = [f"{word}.safetensors" if word in (*EXPERTS, "base") else word for word in command]
        done = subprocess.run(
            [sys.executable, "-m", "rlmerge", *files, "--html", "report.html"],
            cwd=root,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        console = Console(record=True, width=124, file=(root / "terminal.txt").open("w"))
        console.print(Text(f"$ rlmerge {' '.join(command)}", style="bold"))
        console.print(Text(done.stdout.rstrip()))
        console.save_svg(str(IMAGES / "conflict-report-terminal.svg"), title="rlmerge conflict-report")
        if arguments.chromium:
            page = root / "report.html"
            screenshot = [arguments.chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
            screenshot += [f"--user-data-dir={root / 'profile'}", "--window-size=1240,3300"]
            screenshot += [f"--screenshot={IMAGES / 'conflict-report.png'}", page.as_uri()]
            subprocess.run(screenshot, check=True, capture_output=True)
            with Image.open(IMAGES / "conflict-report.png") as picture:
                few = picture.convert("RGB").quantize(128)
            few.save(IMAGES / "conflict-report.png", optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
