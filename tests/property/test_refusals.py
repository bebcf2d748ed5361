"""What must be refused: with its code and exit code, before anything is written, and with nothing left behind."""

import json
import os
import time

import numpy as np
import pytest

import rlmerge
from tests import models, tensorfile
from tests.reference.rounding import DTYPES


def snapshot(folder):
    """Every path below a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture
def refused(tmp_path):
    """`refused(code, exit_code, models, …)` merges, demands that error and an untouched folder; returns the error."""

    def run(code, exit_code, paths, **options):
        options.setdefault("output", tmp_path / "merged.safetensors")
        before = snapshot(tmp_path)
        with pytest.raises(rlmerge.RlmergeError) as raised:
            rlmerge.merge(paths, **options)
        error = raised.value
        assert (error.code, error.exit_code) == (code, exit_code), error
        assert snapshot(tmp_path) == before, "something was left behind"
        row = next(r for r in json.loads(rlmerge._core.errors()) if r["code"] == code)
        assert row["exit_code"] == exit_code
        return error

    return run


@pytest.fixture
def files(tmp_path):
    """Paths of a base and two experts, one tensor each of three kinds."""
    rng = np.random.default_rng(0)
    paths = []
    for name in ("base", "a", "b"):
        tensors = {
            "w": rng.normal(size=(4, 6)).astype(np.float32),
            "v": rng.normal(size=5).astype(np.float32),
            "ids": np.arange(4, dtype=np.int64),
        }
        paths.append(tmp_path / f"{name}.safetensors")
        tensorfile.write(paths[-1], tensors)
    return paths


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties"])
@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, float("nan"), float("inf"), [0.5, 0.0]])
def test_density_outside_its_range(refused, files, method, density):
    error = refused("parameter_out_of_range", 2, files[1:], base=files[0], method=method, density=density)
    assert "density" in str(error)
    assert isinstance(error, rlmerge.RecipeError)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("linear", {"weight": [1.0, -1.0]}),
        ("linear", {"weight": 0.0}),
        ("task_arithmetic", {"weight": [0.5, -0.5], "normalize": True}),
        ("dare_linear", {"weight": [0.5, -0.5], "normalize": True}),
    ],
)
def test_weights_that_sum_to_zero(refused, files, method, parameters):
    base = files[0] if method != "linear" else None
    error = refused("zero_weight_sum", 2, files[1:], base=base, method=method, parameters=parameters)
    assert "normalize" in str(error.hint)


@pytest.mark.parametrize(("given", "meant"), [("densty", "density"), ("wieght", "weight"), ("lamda", "lambda")])
def test_a_misspelt_parameter(refused, files, given, meant):
    error = refused("unknown_parameter", 2, files[1:], base=files[0], method="ties", parameters={given: 0.5})
    assert given in str(error)
    assert meant in error.hint


@pytest.mark.parametrize(
    ("given", "meant"), [("tise", "ties"), ("linaer", "linear"), ("task_arithmetics", "task_arithmetic")]
)
def test_an_unknown_method(refused, files, given, meant):
    error = refused("unknown_method", 2, files[1:], method=given)
    assert given in str(error)
    assert f"`{meant}`" in error.hint


def test_a_parameter_list_of_the_wrong_length(refused, files):
    refused("parameter_count", 2, files[1:], base=files[0], method="ties", density=[0.5, 0.5, 0.5])


@pytest.mark.parametrize(("method", "count"), [("slerp", 3), ("slerp", 1), ("passthrough", 2)])
def test_a_wrong_number_of_models(refused, files, method, count):
    refused("model_count", 2, files[:count], method=method)


def test_everything_that_does_not_fit_is_listed_at_once(refused, files, tmp_path):
    other = tmp_path / "other.safetensors"
    tensorfile.write(
        other,
        {
            "w": np.zeros((6, 4), np.float32),
            "v": np.zeros(7, np.float32),
            "ids": np.arange(4, dtype=np.int32),
            "extra": np.zeros(1, np.float32),
        },
    )
    third = tmp_path / "third.safetensors"
    tensorfile.write(third, {"w": np.zeros((4, 6), np.float32), "ids": np.arange(4, dtype=np.int64)})
    error = refused("models_do_not_fit", 4, [files[1], other, third], base=files[0], method="task_arithmetic")
    assert isinstance(error, rlmerge.AlignmentError)
    text = str(error)
    for part in ("4, 6", "6, 4", "`v`", "[7]", "`ids`", "I32", "`extra`", "third"):
        assert part in text, f"{part} is not in:\n{text}"


def test_refusals_come_before_the_first_tensor_byte(refused, tmp_path):
    """Two files of 64 GiB, all holes: nobody can have read them within five seconds."""
    size = 1 << 36
    paths = []
    for name, tensor in (("a", "w"), ("b", "v")):
        header = json.dumps({tensor: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
        path = tmp_path / f"{name}.safetensors"
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + size)
        paths.append(path)
    start = time.monotonic()
    with pytest.raises(rlmerge.AlignmentError):
        rlmerge.merge(paths, method="linear", output=tmp_path / "merged.safetensors")
    with pytest.raises(rlmerge.RecipeError):
        rlmerge.merge(paths[:1] * 2, method="linear", weight=[1, -1], output=tmp_path / "merged.safetensors")
    assert time.monotonic() - start < 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("kind", ["file", "folder", "empty folder", "link", "dangling link"])
def test_an_existing_output(refused, files, tmp_path, kind):
    output = tmp_path / "there.safetensors"
    if kind == "file":
        output.write_bytes(b"mine")
    elif kind == "folder":
        output.mkdir()
        (output / "mine").write_bytes(b"mine")
    elif kind == "empty folder":
        output.mkdir()
    else:
        if kind == "link":
            (tmp_path / "target").write_bytes(b"mine")
        output.symlink_to(tmp_path / "target")
    error = refused("output_exists", 6, files[1:], method="linear", output=output)
    assert isinstance(error, FileExistsError)
    assert "--force" in error.hint


def test_an_output_that_is_an_input(refused, files, tmp_path):
    spelt = tmp_path / "." / files[1].name
    refused("output_is_input", 6, files[1:], method="linear", output=spelt, force=True)
    link = tmp_path / "hard.safetensors"
    os.link(files[1], link)
    refused("output_is_input", 6, files[1:], method="linear", output=link, force=True)


@pytest.mark.parametrize("dtype", ["I64", "U8", "BOOL"])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_linear", "slerp"])
def test_integer_tensors_that_differ(refused, tmp_path, dtype, method):
    values = np.array([0, 1, 1, 0]).astype(DTYPES[dtype])
    other = values.copy()
    other[2] = 0
    paths = []
    for i, ids in enumerate((values, values, other)):
        paths.append(tmp_path / f"{i}.safetensors")
        tensorfile.write(paths[-1], {"w": np.full(3, i, np.float32), "ids": ids})
    base = paths[0] if method in ("task_arithmetic", "ties", "dare_linear") else None
    error = refused("opaque_tensors_differ", 4, paths[1:], base=base, method=method)
    assert error.tensor == "ids"
    assert dtype in str(error)


@pytest.mark.parametrize(
    "tensor", ["model.layers.0.q_proj.qweight", "model.layers.0.q_proj.weight_scale_inv", "x.weight.absmax"]
)
def test_a_quantised_checkpoint_by_its_tensors(refused, files, tmp_path, tensor):
    path = tmp_path / "quantised.safetensors"
    tensorfile.write(path, {tensor: np.zeros(4, np.int32), "w": np.zeros(3, np.float32)})
    error = refused("quantised", 3, [path, path], method="linear")
    assert tensor in str(error)
    assert isinstance(error, rlmerge.CheckpointError)


def test_a_quantised_checkpoint_by_its_config(refused, tmp_path):
    path = models.write_folder(tmp_path / "quantised", models.weights("llama"), family="llama")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (path / "config.json").write_text(json.dumps(config))
    refused("quantised", 3, [path], method="passthrough", output=tmp_path / "merged")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_slerp_of_a_non_finite_end(refused, files, tmp_path, value):
    tensors = dict(tensorfile.read(files[1]))
    tensors["v"] = tensors["v"].copy()
    tensors["v"][3] = value
    path = tmp_path / "poisoned.safetensors"
    tensorfile.write(path, tensors)
    error = refused("non_finite", 7, [files[2], path], method="slerp")
    assert error.tensor == "v"
    assert isinstance(error, rlmerge.NumericsError)


def test_a_non_finite_output_under_strict(refused, files, tmp_path):
    tensors = dict(tensorfile.read(files[1]))
    tensors["v"] = tensors["v"].copy()
    tensors["v"][3] = np.nan
    path = tmp_path / "poisoned.safetensors"
    tensorfile.write(path, tensors)
    error = refused("non_finite_output", 7, [files[2], path], method="linear", strict=True)
    assert error.tensor == "v"


def test_a_missing_model(refused, files, tmp_path):
    error = refused("model_not_found", 3, [files[1], tmp_path / "nowhere"], method="linear")
    assert isinstance(error, FileNotFoundError)
    assert error.path == tmp_path / "nowhere"
