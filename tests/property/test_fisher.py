"""Fisher-weighted averages: against the reference, the laws, and statistics that must be refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rlmerge
from tests import merging, tensorfile
from tests.property import drawing
from tests.property.test_laws import every_pattern, same
from tests.reference import METHODS
from tests.reference.conventions import assert_matches
from tests.reference.rounding import DTYPES, round_to, wide


def diagonals(rng, tensors, kind="gauss"):
    """Fisher diagonals for a model: squares, some of them zero or below any floor."""
    out = {}
    for name, t in tensors.items():
        scale = 10.0 ** rng.integers(-9, 3) if kind == "gauss" else 1.0
        value = scale * rng.normal(size=t.shape) ** 2 * (rng.random(t.shape) > 0.2)
        dtype = DTYPES[str(rng.choice(["F32", "BF16", "F64"] if t.dtype == np.float64 else ["F32", "BF16"]))]
        out[name] = round_to(value, dtype)
    return out


def merge(experts, fisher, *, shards=None, parameters=None, **options):
    """The engine's result on models and statistics that are written first."""
    with merging.written([*experts, *fisher], None, shards) as (paths, _, root):
        output = root / ("merged" if shards is not None else "merged.safetensors")
        given = {**(parameters or {}), "fisher": paths[len(experts) :]}
        report = rlmerge.merge(paths[: len(experts)], method="fisher", output=output, parameters=given, **options)
        return tensorfile.read(output), report


def check(experts, fisher, parameters=None, **options):
    got, report = merge(experts, fisher, parameters=parameters, **options)
    want = METHODS["fisher"](None, experts, fisher=fisher, **(parameters or {}), **options)
    assert got.keys() == want.keys()
    for name, merged in want.items():
        assert_matches(got[name], merged, name)
    return report


@given(data=st.data())
def test_any_models(data):
    _, experts, _ = data.draw(drawing.model_sets(regimes=["gauss", "grid", "same"]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    fisher = [diagonals(rng, e) for e in experts]
    parameters = {}
    if data.draw(st.booleans()):
        parameters["weight"] = [data.draw(st.sampled_from([1.0, 0.3, 2.5])) for _ in experts]
    if data.draw(st.booleans()):
        parameters["floor"] = data.draw(st.sampled_from([0.0, 1e-3, 1.0]))
    for flag in ("normalize", "favor_target_model"):
        if data.draw(st.booleans()):
            parameters[flag] = data.draw(st.booleans())
    check(experts, fisher, parameters)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_tensors_of_several_tiles(dtype):
    _, experts = drawing.large(dtype, 3)
    fisher = [diagonals(np.random.default_rng(i), e) for i, e in enumerate(experts)]
    check(experts, fisher, {"weight": [1.0, 0.5, 2.0]})


def test_equal_statistics_give_the_plain_average():
    rng = np.random.default_rng(0)
    _, experts = drawing.large("F32", 2, n=1000)
    same_for_all = diagonals(rng, experts[0])
    got, _ = merge(experts, [same_for_all] * 2)
    want = merging.merge("linear", experts)
    for name in want:
        assert np.allclose(got[name], want[name], rtol=1e-6, atol=1e-7)


def test_all_information_with_one_model_gives_its_values():
    _, experts = drawing.large("F32", 2, n=1000)
    ones = {n: np.ones(t.shape, np.float32) for n, t in experts[0].items()}
    none = {n: np.zeros(t.shape, np.float32) for n, t in experts[0].items()}
    same(merge(experts, [ones, none], parameters={"floor": 0.0})[0], experts[0])
    second = merge(experts, [none, ones], parameters={"floor": 0.0})[0]
    for name, want in experts[1].items():
        assert np.allclose(second[name], want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8_E4M3"])
def test_equal_models_keep_their_values(dtype):
    values = every_pattern(dtype)
    values = values[~np.isnan(wide(values))]
    fisher = [diagonals(np.random.default_rng(i), {"w": values}, "unit") for i in range(3)]
    got, _ = merge([{"w": values}] * 3, fisher)
    assert np.array_equal(wide(got["w"]), wide(values))


def test_one_model_gives_its_own_bytes_and_zero_weight_is_left_out():
    values = {"w": every_pattern("BF16")}
    other = {"w": values["w"][::-1].copy()}
    fisher = [{"w": np.ones(values["w"].shape, np.float32)}] * 2
    same(merge([values], fisher[:1])[0], values)
    same(merge([other, values], fisher, parameters={"weight": [0.0, 1.0]})[0], values)


def test_a_nan_stays_in_its_element():
    _, experts = drawing.large("F32", 2, n=300)
    experts[1]["large"] = experts[1]["large"].copy()
    experts[1]["large"][7] = np.nan
    fisher = [diagonals(np.random.default_rng(i), e, "unit") for i, e in enumerate(experts)]
    got, _ = merge(experts, fisher)
    assert np.flatnonzero(np.isnan(got["large"])).tolist() == [7]


def test_tensors_without_statistics_are_averaged_and_said():
    rng = np.random.default_rng(3)
    _, experts = drawing.large("F32", 2, n=50)
    fisher = [diagonals(rng, e) for e in experts]
    del fisher[0]["after"], fisher[1]["after"], fisher[1]["before"]
    report = check(experts, fisher, {"weight": [1.0, 3.0]})
    (note,) = [n for n in report.notes if "statistics" in n]
    assert "2 tensors" in note
    assert "1 of them" in note


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shards", [None, 3])
def test_bytes_depend_on_neither_threads_nor_shards(threads, shards):
    _, experts = drawing.large("BF16", 2)
    fisher = [diagonals(np.random.default_rng(i), e) for i, e in enumerate(experts)]
    same(merge(experts, fisher, shards=shards, threads=threads)[0], merge(experts, fisher)[0])


@pytest.fixture
def files(tmp_path):
    """Two models and their statistics, each a file."""
    rng = np.random.default_rng(0)
    paths = []
    for name in ("a", "b", "fisher-a", "fisher-b"):
        values = {"w": rng.normal(size=(4, 6)).astype(np.float32), "v": rng.normal(size=5).astype(np.float32)}
        if "fisher" in name:
            values = {n: t**2 for n, t in values.items()}
        paths.append(tmp_path / f"{name}.safetensors")
        tensorfile.write(paths[-1], values)
    return paths


def refused(files, code, exit_code, **change):
    output = Path(files[0]).parent / "merged.safetensors"
    options = {"fisher": files[2:], "output": output, **change}
    with pytest.raises(rlmerge.RlmergeError) as raised:
        rlmerge.merge(files[:2], method="fisher", **options)
    assert (raised.value.code, raised.value.exit_code) == (code, exit_code), raised.value
    assert not output.exists()
    return raised.value


def test_statistics_must_be_given(files):
    with pytest.raises(rlmerge.RecipeError) as raised:
        rlmerge.merge(files[:2], method="fisher", output=files[0].parent / "m.safetensors")
    assert raised.value.code == "missing_parameter"
    assert "fisher" in str(raised.value)
    refused(files, "parameter_count", 2, fisher=files[2:3])
    refused(files, "parameter_out_of_range", 2, fisher=[str(files[2]), 3.0])
    refused(files, "zero_weight_sum", 2, weight=0.0)
    refused(files, "model_not_found", 3, fisher=[files[2], files[0].parent / "nowhere"])


@pytest.mark.parametrize(("value", "words"), [(-1e-9, "negative"), (np.nan, "not finite"), (np.inf, "not finite")])
def test_a_value_that_no_statistics_have(files, value, words):
    tensors = {n: t.copy() for n, t in tensorfile.read(files[3]).items()}
    tensors["v"][3] = value
    tensorfile.write(files[3], tensors)
    error = refused(files, "bad_statistics", 3)
    assert error.tensor == "v"
    assert error.path == files[3]
    assert words in str(error)
    assert "element 3" in str(error)
    row = next(r for r in json.loads(rlmerge._core.errors()) if r["code"] == "bad_statistics")
    assert row["exit_code"] == 3


def test_statistics_of_other_names_shapes_and_dtypes(files):
    tensorfile.write(
        files[3],
        {"w": np.ones((6, 4), np.float32), "v": np.ones(5, np.int32), "extra": np.ones(1, np.float32)},
    )
    error = refused(files, "models_do_not_fit", 4)
    for part in ("[6, 4]", "[4, 6]", "I32", "`extra`", "3 problems"):
        assert part in str(error), error


def test_the_output_is_not_written_over_statistics(files):
    with pytest.raises(rlmerge.OutputError) as raised:
        rlmerge.merge(files[:2], method="fisher", fisher=files[2:], output=files[3], force=True)
    assert raised.value.code == "output_is_input"


def test_the_plan_and_the_report_name_the_statistics(files):
    plan = rlmerge.plan(files[:2], method="fisher", fisher=files[2:], output=files[0].parent / "m.safetensors")
    assert [s["path"] for s in plan.raw["statistics"]] == [str(p) for p in files[2:]]
    assert plan.bytes_to_read == 2 * 29 * 4 + 2 * 2 * 29 * 4
    report = plan.run()
    assert len(report.raw["tensors"][0]["expert_norms"]) == 2


def test_on_the_command_line(files, tmp_path):
    from typer.testing import CliRunner

    from rlmerge.cli._root import app

    output = tmp_path / "merged.safetensors"
    arguments = ["merge", *map(str, files[:2]), "--method", "fisher", "-o", str(output)]
    done = CliRunner().invoke(app, [*arguments, "--fisher", ",".join(map(str, files[2:]))])
    assert done.exit_code == 0, done.output
    once = tensorfile.read(output)
    done = CliRunner().invoke(app, [*arguments, "--fisher", str(files[2]), "--fisher", str(files[3]), "--force"])
    assert done.exit_code == 0, done.output
    same(tensorfile.read(output), once)


def test_in_a_recipe(files, tmp_path):
    output = tmp_path / "merged"
    recipe = {
        "method": "fisher",
        "models": [
            {"path": str(m), "parameters": {"fisher": str(f)}} for m, f in zip(files[:2], files[2:], strict=True)
        ],
    }
    rlmerge.merge(recipe=recipe, output=output)
    want, _ = merge([tensorfile.read(p) for p in files[:2]], [tensorfile.read(p) for p in files[2:]])
    same(tensorfile.read(output), want)
