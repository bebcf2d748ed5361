"""The README is true: its code runs, its recipe runs, and its table of methods is the engine's."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    """The one fenced block in that language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    return found


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """A working folder with the demo's models in `demo`."""
    script = ROOT / "scripts" / "make_demo_trio.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "demo")])
    runpy.run_path(str(script), run_name="__main__")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_quick_start_runs(demo, capsys):
    exec(compile(block("python"), "README.md", "exec"), {})
    assert "demo/ties" in capsys.readouterr().out
    assert (demo / "demo" / "ties" / "rlmerge.json").is_file()


def test_the_recipe_runs(demo):
    (demo / "recipe.yaml").write_text(block("yaml"))
    command = [sys.executable, "-m", "rlmerge", "merge", "recipe.yaml", "-o", "merged", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "merged"
    assert (demo / "merged" / "model.safetensors").is_file()


def test_commands_of_the_makefile_exist():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([a-z0-9-]+)\b", TEXT))
    assert {"demo", "test", "wheel"} <= named <= targets


def test_ci_calls_the_readmes_test_command():
    ci = (ROOT / ".ci" / "run").read_text()
    assert "README" in ci
    assert "make test" in ci
