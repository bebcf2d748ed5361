"""Merges in processes of their own, that can be killed; and what they leave."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests import models
from tests.tensorfile import Raw

METHODS = ("task_arithmetic", "ties", "dare_ties")


def write_models(root: Path, megabytes: float, tensors: int = 40, seed: int = 0) -> list[Path]:
    """A base and two experts in BF16 of about this size each, in two shards: `root/base`, `root/a`, `root/b`."""
    rng = np.random.default_rng(seed)
    columns = 256
    # Of different sizes: some are one tile, some several.
    sizes = rng.uniform(0.2, 1.8, tensors)
    rows = np.maximum(1, sizes / sizes.sum() * megabytes * 1e6 / 2 / columns).astype(int)
    paths = []
    for name in ("base", "a", "b"):
        stored = {}
        for i, n in enumerate(rows):
            # Bits of numbers around 0.01, which differ between models in half of the places.
            bits = np.random.default_rng((seed, i)).integers(0x3C00, 0x3C80, (n, columns), dtype=np.uint16)
            if name != "base":
                own = np.random.default_rng((seed, i, ord(name)))
                bits = bits + own.integers(0, 2, bits.shape, dtype=np.uint16)
            stored[f"model.layers.{i}.weight"] = Raw("BF16", bits.shape, bits.astype("<u2").tobytes())
        paths.append(models.write_folder(root / name, stored, shards=2, family=None))
    return paths


@dataclass
class Merge:
    """One merge, that can be started as often as it takes."""

    root: Path
    method: str = "ties"
    threads: int = 1
    extra: list[str] = field(default_factory=list)

    @property
    def output(self) -> Path:
        return self.root / "out"

    def command(self, *more: str, output: str = "out") -> list[str]:
        run = [sys.executable, "-m", "rlmerge", "merge", "a", "b", "--base", "base", "-m", self.method, "-o", output]
        return [*run, "--threads", str(self.threads), "--shard-size", "20MB", "--json", *self.extra, *more]

    def start(self, *more: str, **options) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(*more), cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )

    def run(self, *more: str, output: str = "out", **options) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(*more, output=output), cwd=self.root, capture_output=True, text=True, timeout=600, **options
        )

    def stages(self) -> list[Path]:
        return sorted(self.root.glob(".out.rlmerge-*"))

    def records(self) -> int:
        """Whole lines of the journals that are there, without the two at their heads."""
        count = 0
        for stage in self.stages():
            try:
                count += max(0, (stage / "rlmerge.journal").read_bytes().count(b"\n") - 2)
            except OSError:
                continue
        return count

    def wait_for_stage(self, process: subprocess.Popen, seconds: float = 60) -> bool:
        """Waits until the process has a stage, its own or one that it goes on with, or has ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if any(f".rlmerge-{process.pid}-" in stage.name for stage in self.stages()):
                return True
            if process.poll() is not None:
                return False
            time.sleep(0.0005)
        msg = "no stage appeared"
        raise TimeoutError(msg)

    def leave_stage(self, records: int = 2, tries: int = 30) -> Path:
        """Kills a run that has so many tensors behind it, and gives what it left."""
        for _ in range(tries):
            process = self.start("--resume")
            while process.poll() is None and self.records() < records:
                time.sleep(0.0005)
            kill(process)
            if not self.output.exists() and self.records() >= records:
                (stage,) = self.stages()
                return stage
            remove(self.output)
        msg = "every run ended before it could be killed"
        raise TimeoutError(msg)


def kill(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
    """Sends a signal and waits for the end."""
    if process.poll() is None:
        os.kill(process.pid, number)
    process.communicate(timeout=60)


def remove(folder: Path) -> None:
    """Removes a folder of files, if it is there."""
    if folder.is_dir():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def digest(folder: Path) -> str:
    """One hash over names, modes and bytes of the files in a folder. What names the output itself is left out."""
    hasher = hashlib.blake2b()
    for path in sorted(folder.iterdir()):
        contents = path.read_bytes()
        if path.name == "rlmerge.json":
            report = json.loads(contents)
            report["plan"]["output"]["path"] = None
            contents = json.dumps(report).encode()
        hasher.update(json.dumps([path.name, oct(path.stat().st_mode), len(contents)]).encode())
        hasher.update(contents)
    return hasher.hexdigest()


def identities(root: Path) -> dict[str, tuple[int, int]]:
    """Sizes and times of the inputs, which no merge may change."""
    files = [path for name in ("base", "a", "b") for path in sorted((root / name).iterdir())]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}
