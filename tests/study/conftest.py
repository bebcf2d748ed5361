"""Skips the folder where torch or transformers is not installed, and makes one tiny base for all its tests."""

import importlib.util
import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
BARE = ("test_tasks.py", "test_sandbox.py", "test_real_tasks.py", "test_trio.py")
NEEDED = ("torch", "transformers", "matplotlib")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


def pytest_collection_modifyitems(items):
    """Marks every test of this folder, and skips those that need torch where it is not installed."""
    for item in items:
        if item.path.parent == HERE and item.path.name not in BARE:
            item.add_marker(pytest.mark.filterwarnings("default"))  # torch and transformers warn about themselves
            if MISSING:
                item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(MISSING)}"))


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """An almost untrained base of 40,000 parameters: enough for everything that is not about learning."""
    from study.pretrain import PretrainSettings, pretrain

    folder = tmp_path_factory.mktemp("base")
    shape = {"hidden": 32, "layers": 2, "heads": 2, "intermediate": 64}
    pretrain(PretrainSettings(output_dir=folder, steps=60, batch=32, items=100, shape=shape))
    return folder
