"""Runs of the command line as a user sees them: a process, its two streams and its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file


@dataclass(frozen=True)
class Run:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The folder the commands run in: base, a and b as files and as Hugging Face folders."""
    rng = np.random.default_rng(1)
    shapes = {"model.embed.weight": (16, 8), "model.norm.weight": (8,)}
    base = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name in ("base", "a", "b"):
        step = 0 if name == "base" else 0.01
        tensors = {key: (v + step * rng.normal(size=v.shape)).astype(np.float32) for key, v in base.items()}
        save_file(tensors, tmp_path / f"{name}.safetensors")
        folder = tmp_path / name
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "torch_dtype": "float32"}')
        (folder / "tokenizer.json").write_text("{}")
        (folder / "modeling_own.py").write_text("raise SystemExit")
    return tmp_path


@pytest.fixture
def rlmerge(here: Path):
    """Run `rlmerge ARGUMENTS` in that folder."""

    def run(*arguments: str | bytes, script: str = "", **env: str) -> Run:
        own = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "RLMERGE_DEBUG", "COLUMNS")}
        command = [sys.executable, "-m", "rlmerge"]
        if script:
            code = f"import sys; sys.argv[0] = 'rlmerge'\n{script}\nfrom rlmerge.cli.app import main; sys.exit(main())"
            command = [sys.executable, "-c", code]
        done = subprocess.run(
            [*command, *arguments],
            cwd=here,
            env={**own, **env},
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
        return Run(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run
