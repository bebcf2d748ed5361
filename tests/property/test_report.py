"""What the report says of each tensor, recomputed from the files."""

import json

import numpy as np
import pytest
from blake3 import blake3

import rlmerge
from tests import merging, tensorfile
from tests.property import drawing
from tests.reference.rounding import wide


def report_of(method, experts, base, folder=None, **options):
    """The report of a merge with its output: a file, or a folder of one shard."""
    with merging.written(experts, base, folder) as (paths, base_path, root):
        output = root / ("merged" if folder else "merged.safetensors")
        report = rlmerge.merge(paths, method=method, base=base_path, output=output, **options)
        saved = json.loads((output / "rlmerge.json").read_text()) if folder else None
        return report, tensorfile.read(output), saved


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_linear", "slerp", "passthrough"])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_checksums_and_norms(method, dtype):
    base, experts = drawing.large(dtype, 1 if method == "passthrough" else 2)
    based = method in drawing.DELTA_METHODS
    report, merged, _ = report_of(method, experts, base if based else None)
    assert {t.name for t in report.tensors} == set(merged)
    for entry in report.tensors:
        tensor = merged[entry.name]
        assert entry.blake3 == blake3(tensor.tobytes()).hexdigest()
        assert entry.shape == tensor.shape
        assert entry.dtype == dtype
        assert np.isclose(entry.norm, np.linalg.norm(wide(tensor)), rtol=1e-6 if dtype == "F32" else 1e-3)
        if based:
            deltas = [wide(e[entry.name]) - wide(base[entry.name]) for e in experts]
            assert np.allclose(entry.expert_norms, [np.linalg.norm(d) for d in deltas], rtol=1e-5)
        assert entry.non_finite_output == 0


def test_counts_of_non_finite_values():
    rng = np.random.default_rng(0)
    a = {"w": rng.normal(size=(2**18 + 5,)).astype(np.float32), "v": np.ones(3, np.float32)}
    b = {n: t.copy() for n, t in a.items()}
    a["w"][[3, 2**18 + 1]] = [np.nan, np.inf]
    b["w"][3] = -np.inf
    report, merged, _ = report_of("linear", [a, b], None)
    entry = next(t for t in report.tensors if t.name == "w")
    assert entry.non_finite_inputs == (2, 1)
    assert entry.non_finite_output == 2 == (~np.isfinite(merged["w"])).sum()
    assert report.raw["totals"]["non_finite_inputs"] == 3
    assert report.raw["totals"]["non_finite_output"] == 2
    assert any("`w`" in w or "w" in w.split() for w in report.warnings), report.warnings


def test_an_overflow_of_the_output_is_counted():
    a = {"w": np.array([70000.0, 1.0], np.float32)}
    report, merged, _ = report_of("linear", [a, a], None, dtype="F16")
    assert np.isinf(merged["w"][0])
    assert report.tensors[0].non_finite_output == 1
    assert report.tensors[0].non_finite_inputs == (0, 0)


def test_the_saved_report_holds_no_clock_and_no_paths_of_the_day():
    base, experts = drawing.large("BF16", 2, n=1001)
    saved = [report_of("ties", experts, base, 1)[2] for _ in range(2)]
    assert saved[0]["schema"] == "rlmerge.report/1"
    for key in ("elapsed_seconds", "bytes_read", "bytes_written"):
        assert key not in saved[0]
    assert saved[0]["tensors"] == saved[1]["tensors"]
    assert [t["blake3"] for t in saved[0]["tensors"]]


def test_unchanged_tensors_are_reported_as_copied():
    base, experts = drawing.large("BF16", 2, n=1001)
    for expert in experts:
        expert["before"] = base["before"]
    report, _, _ = report_of("task_arithmetic", experts, base)
    actions = {t.name: t.action for t in report.tensors}
    assert actions == {"before": "copied", "large": "computed", "after": "computed"}
    assert report.raw["totals"]["tensors_copied"] == 1
