"""What `import rlmerge` costs and what it gives."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

import rlmerge

HEAVY = (
    "torch",
    "rich",
    "typer",
    "click",
    "matplotlib",
    "transformers",
    "pydantic",
    "ruamel",
    "numpy",
    "huggingface_hub",
)


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("code", ["import rlmerge", "import rlmerge; rlmerge.merge; rlmerge.methods()"])
def test_import_loads_nothing_heavy(code):
    assert not modules_after(code) & set(HEAVY)


def best_of(command: list[str], runs: int = 5) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times)


def test_import_is_quick():
    empty = best_of([sys.executable, "-c", "pass"])
    assert best_of([sys.executable, "-c", "import rlmerge"]) - empty < 0.1
    assert best_of([sys.executable, "-c", "import rlmerge; rlmerge.merge"]) - empty < 0.2


def test_every_public_name_is_there():
    for name in rlmerge.__all__:
        assert getattr(rlmerge, name) is not None
    assert set(rlmerge.__all__) <= set(dir(rlmerge))
    assert rlmerge.__version__.count(".") == 2


def test_functions_stay_functions_after_their_modules_are_loaded():
    # `rlmerge.methods` is the function; a module of that name would replace it when imported.
    script = "import rlmerge, rlmerge.api, rlmerge.recipe; assert callable(rlmerge.methods), rlmerge.methods"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'merg'"):
        _ = rlmerge.merg
