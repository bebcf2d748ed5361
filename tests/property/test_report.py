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


def test_what_was_learnt_over_the_whole_model():
    """Thresholds, overlaps and weights stand in the report, an entry for each expert."""
    base, experts = drawing.large("F32", 2)
    deltas = [np.concatenate([(e[n] - base[n]).ravel() for n in sorted(base)]) for e in experts]
    report, _, _ = report_of("ties", experts, base, scope="model", density=0.3)
    for delta, (threshold, above) in zip(deltas, report.raw["learnt"]["whole_model"]["thresholds"], strict=True):
        # What is above the threshold is kept, and as much of what is at it as makes up the number.
        assert (np.abs(delta) > threshold).sum() <= round(0.3 * delta.size) <= (np.abs(delta) >= threshold).sum()
        assert above is None
    report, _, _ = report_of("metagpt", experts, base)
    squares = [(d.astype(np.float64) ** 2).sum() for d in deltas]
    learnt = report.raw["learnt"]["whole_model"]
    np.testing.assert_allclose(learnt["weights"], np.divide(squares, sum(squares)), rtol=1e-12)
    np.testing.assert_allclose(learnt["norms"], np.sqrt(squares), rtol=1e-12)
    report, _, _ = report_of("ram_plus", experts, base, r=1.5)
    learnt = report.raw["learnt"]["whole_model"]
    changed = [np.abs(d) > 1e-5 for d in deltas]
    both = int((changed[0] & changed[1]).sum())
    assert learnt["shared_elements"] == [both, both]
    assert learnt["unique_elements"] == [int(c.sum()) - both for c in changed]
    report, _, _ = report_of("ties", experts, base)
    assert "whole_model" not in report.raw["learnt"]


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


def test_overflows_are_told_from_what_the_inputs_bring():
    a = {"w": np.array([70000.0, np.nan, 1.0, np.inf, -2e5], np.float32)}
    report, merged, _ = report_of("linear", [a, a], None, dtype="F16")
    counts = report.raw["tensors"][0]["non_finite"]
    assert counts == {
        "inputs": [2, 2], "input_first": [1, 1], "output": 4, "first": 0, "made_here": 2,
        "made_here_first": 0, "clamped": 0,
    }  # fmt: skip
    assert report.raw["totals"]["non_finite_made_here"] == 2
    assert report.tensors[0].non_finite_made_here == 2
    assert any("2 of them come of finite values, which F16 cannot hold" in w for w in report.warnings)
    clamped, merged, _ = report_of("linear", [a, a], None, dtype="F16", on_overflow="clamp")
    assert np.array_equal(merged["w"], np.array([65504, np.nan, 1, np.inf, -65504], np.float16), equal_nan=True)
    counts = clamped.raw["tensors"][0]["non_finite"]
    assert (counts["clamped"], counts["made_here"], counts["output"]) == (2, 0, 2)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F8_E5M2", "F8_E4M3", "F32"])
def test_clamping_gives_the_largest_value_and_leaves_the_others(dtype):
    a = {"w": np.array([1e300, -1e300, 3.0, 0.0])}
    report, merged, _ = report_of("linear", [a, a], None, dtype=dtype, on_overflow="clamp")
    largest = wide(merged["w"])[0]
    assert list(wide(merged["w"])) == [largest, -largest, 3.0, 0.0]
    above, _, _ = report_of("linear", [{"w": np.array([largest])}] * 2, None, dtype=dtype, on_overflow="error")
    assert above.tensors[0].non_finite_output == 0
    with pytest.raises(rlmerge.NumericsError) as raised:
        report_of("linear", [{"w": np.array([largest * 1.2])}] * 2, None, dtype=dtype, on_overflow="error")
    assert (raised.value.code, raised.value.tensor) == ("overflow", "w")


def test_truth_values_that_are_neither_are_told_and_copied():
    odd = tensorfile.Raw("BOOL", (4,), b"\x00\x01\x02\xff")
    one = {"w": np.ones(2, np.float32), "mask": odd}
    with merging.written([one, one], None) as (paths, _, root):
        report = rlmerge.merge(paths, method="linear", output=root / "merged.safetensors")
        assert tensorfile.read_raw(root / "merged.safetensors")["mask"].data == odd.data
    assert any("`mask`: 2 bytes of BOOL are neither 0 nor 1" in w for w in report.warnings)


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
