"""`conflict-report --spectral` on a model of SmolLM2-135M's shapes with two experts, against NumPy and LAPACK doing the
same statistics in the same run; numbers checked, peak memory.

    spectral_report.py --model FOLDER        a folder that `scripts/fetch_smollm2.py` made
    spectral_report.py                       random weights of the same shapes
    spectral_report.py --layers 2            the first layers only: does it work at all

Experts are the base plus a low-rank change and noise of every matrix. NumPy is timed twice: as one would write it, by
singular value decompositions (`tests/reference/spectra.py`), and with its decompositions alone replaced by what this
project does too, eigenvalues of Gram matrices. The embedding is left out of both of NumPy's times but not of ours.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import command_line
import ml_dtypes
import numpy as np
import record
from answers import Folder
from measure import measure
from summary import verdict

if TYPE_CHECKING:
    import argparse

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests import tensorfile
from tests.reference import spectra

HIDDEN, INTERMEDIATE, KV, LAYERS, VOCABULARY = 576, 1536, 192, 30, 49152
RANK, SIGNAL, NOISE = 16, 2e-3, 2e-4
GOAL = 3.0
#: Angles come from cosines near one.
ANGLE_SLACK = 1e-3


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory(prefix="rlmerge-bench-") as scratch:
        root = Path(scratch)
        base = load(arguments.model, arguments.layers)
        paths = [root / f"{name}.safetensors" for name in ("base", "expert-1", "expert-2")]
        tensorfile.write(paths[0], base)
        for seed, path in enumerate(paths[1:], start=1):
            tensorfile.write(path, expert(base, seed))
        command = [arguments.rlmerge, "conflict-report", *map(str, paths[1:]), "--base", str(paths[0]), "--spectral"]
        command += ["--threads", str(arguments.threads), "--json"]
        runs = [measure(command) for _ in range(arguments.rounds)]
        ours = min(runs, key=lambda run: run.wall_s)
        say(f"rlmerge {ours.wall_s:.2f} s, {ours.peak_rss_mb:.0f} MB")
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        numbers = {t["name"]: t["spectral"] for t in found["tensors"] if "spectral" in t}
        small = [n for n, t in base.items() if t.ndim == 2 and min(t.shape) * 64 > max(t.shape)]
        seconds, checked = lapack(paths, small, numbers)
        say(f"NumPy by SVD {seconds:.2f} s, {checked} matrices agree")
        plain = eigenvalues(paths, small)
        say(f"NumPy, Gram matrices and eigh alone {plain:.2f} s")
    result: dict[str, Any] = {
        "weights": "random" if arguments.model is None else arguments.model.name,
        "layers": arguments.layers,
        "matrices": found["model"]["spectral"]["matrices"],
        "threads": arguments.threads,
        "rlmerge": {"wall_s": ours.wall_s, "cpu_s": ours.cpu_s, "peak_rss_mb": ours.peak_rss_mb},
        "numpy_svd_s": round(seconds, 3),
        "numpy_gram_eigh_s": round(plain, 3),
        "matrices_checked": checked,
        "numpy": np.__version__,
    }
    print(
        f"rlmerge {ours.wall_s:.2f} s for {result['matrices']} matrices, peak {ours.peak_rss_mb:.0f} MB\n"
        f"NumPy by SVD {seconds:.2f} s: {seconds / ours.wall_s:.1f} times as long (goal {GOAL}): "
        f"{verdict(seconds >= GOAL * ours.wall_s)}\n"
        f"NumPy's Gram matrices and eigh alone, no statistics: {plain:.2f} s, {plain / ours.wall_s:.1f} times as long\n"
        f"{checked} matrices agree"
    )
    if not arguments.no_record:
        print(f"\nrecord: {record.save('spectral-report', result)}")


def load(model: Path | None, layers: int) -> dict[str, np.ndarray]:
    """The weights of a folder, or random ones, of the first layers."""
    if model is not None:
        tensors = {name: np.array(tensor) for name, tensor in Folder(model).tensors.items()}
    else:
        rng = np.random.default_rng(0)
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
        for layer in range(LAYERS):
            block = f"model.layers.{layer}."
            for name, shape in (
                ("self_attn.q_proj", (HIDDEN, HIDDEN)),
                ("self_attn.k_proj", (KV, HIDDEN)),
                ("self_attn.v_proj", (KV, HIDDEN)),
                ("self_attn.o_proj", (HIDDEN, HIDDEN)),
                ("mlp.gate_proj", (INTERMEDIATE, HIDDEN)),
                ("mlp.up_proj", (INTERMEDIATE, HIDDEN)),
                ("mlp.down_proj", (HIDDEN, INTERMEDIATE)),
            ):
                shapes[f"{block}{name}.weight"] = shape
        tensors = {n: rng.normal(0, 0.05, s).astype(np.float32).astype(ml_dtypes.bfloat16) for n, s in shapes.items()}

    def wanted(name: str) -> bool:
        parts = name.split(".")
        return layers >= LAYERS or (parts[1] == "layers" and int(parts[2]) < layers)

    return {name: tensor for name, tensor in tensors.items() if wanted(name)}


def expert(base: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """The base with a low-rank change and noise in every matrix."""
    rng = np.random.default_rng(seed)
    tuned = {}
    for name, tensor in base.items():
        change = rng.normal(0, NOISE, tensor.shape).astype(np.float32)
        if tensor.ndim == 2:
            left, right = (rng.normal(size=(n, RANK)).astype(np.float32) for n in tensor.shape)
            change += SIGNAL / math.sqrt(RANK) * (left @ right.T)
        tuned[name] = (tensor.astype(np.float32) + change).astype(tensor.dtype)
    return tuned


def lapack(paths: list[Path], names: list[str], numbers: dict[str, Any]) -> tuple[float, int]:
    """Seconds of the reference for these matrices; SystemExit when a number is not the same."""
    seconds = 0.0
    models = [tensorfile.read(path) for path in paths]
    for name in names:
        base, *experts = (np.asarray(model[name]).astype(np.float32) for model in models)
        begin = time.perf_counter()
        expected = spectra.of_matrix(base, experts)
        seconds += time.perf_counter() - begin
        for of in ("experts", "pairs"):
            for mine, theirs in zip(numbers[name][of], expected[of], strict=True):
                for key, value in theirs.items():
                    slack = ANGLE_SLACK if key.startswith("angle") else 1e-7
                    if not math.isclose(mine[key], value, rel_tol=1e-6, abs_tol=slack):
                        raise SystemExit(f"{name}: {key} is {mine[key]}, should be {value}")
    return seconds, len(names)


def eigenvalues(paths: list[Path], names: list[str]) -> float:
    """Seconds of NumPy for the Gram matrices and their eigenvectors, and for nothing else."""
    seconds = 0.0
    models = [tensorfile.read(path) for path in paths]
    for name in names:
        base, *experts = (np.asarray(model[name]).astype(np.float64) for model in models)
        begin = time.perf_counter()
        for matrix in (base, *experts, *(e - base for e in experts)):
            tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
            np.linalg.eigh(tall.T @ tall)
        seconds += time.perf_counter() - begin
    return seconds


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = command_line.parser(__doc__, rounds=2)
    parser.add_argument("--model", type=Path, help="a folder with the weights of the base")
    parser.add_argument("--layers", type=int, default=LAYERS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
