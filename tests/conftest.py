"""Fixtures and hypothesis profiles that all tests share. Nothing here imports the engine or torch.

`HYPOTHESIS_PROFILE=slow` draws many more examples; the default is `fast`.
"""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Tests import the package `tests` itself; only `python -m pytest` puts the repository's root on the path.
sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import models  # noqa: E402

COMMON = {
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
# The fast profile is for every commit and must not fail by chance; the slow one looks for new examples.
settings.register_profile("fast", max_examples=20, derandomize=True, database=None, **COMMON)
settings.register_profile("slow", max_examples=400, **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


def pytest_configure(config):
    """Registers the marks of the second stages, which need torch."""
    config.addinivalue_line("markers", "parity: compares with mergekit 0.1.5")
    config.addinivalue_line("markers", "interop: opens merged folders with transformers")


def pytest_terminal_summary(terminalreporter):
    """Says how much is tested, as docs/testing.md does; nothing where only a part without the engine runs."""
    try:
        from tests import counts

        found = counts.lines()
    except ImportError:
        return
    terminalreporter.section("what is tested")
    for line in found:
        terminalreporter.write_line(line)


@pytest.fixture
def make_model(tmp_path):
    """`make_model("llama", name="a", dtype="BF16", shards=1, seed=0)` -> path of a complete model folder."""

    def make(family="llama", name="model", *, dtype="BF16", shards=1, seed=0):
        tensors = models.weights(family, dtype, seed)
        return models.write_folder(tmp_path / name, tensors, shards=shards, family=family, dtype=dtype)

    return make


@pytest.fixture
def make_trio(tmp_path):
    """`make_trio("qwen2", dtype="BF16", experts=2, shards=1)` -> `models.Trio` under the test's own folder."""

    def make(family="llama", **settings):
        return models.write_trio(tmp_path, family, **settings)

    return make


@pytest.fixture
def trio(make_trio):
    """A Llama-style base and two experts in BF16, one file each."""
    return make_trio()
