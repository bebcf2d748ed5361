"""RAM, consensus, TALL masks and EMR: against their references, their laws, and the way back to each task's model."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rlmerge
from tests import merging, models, tensorfile
from tests.property import drawing
from tests.property.test_laws import every_pattern, same
from tests.reference import METHODS, masks
from tests.reference.conventions import assert_matches
from tests.reference.rounding import ARITHMETIC, DTYPES, bits, wide

NAMES = ["ram", "ram_plus", "ramplus_tl", "consensus", "tall_masks", "emr"]


def settings(draw, method: str, count: int) -> dict:
    """Parameters of a method, some left to their defaults."""
    out = {}

    def maybe(name, values):
        if draw(st.booleans(), label=f"give {name}"):
            out[name] = draw(values, label=name)

    if method.startswith("ram"):
        maybe("epsilon", st.sampled_from([0.0, 1e-5, 0.03, 0.125, 10.0]))
        if method != "ram":
            maybe("r", st.sampled_from([1.0, 1.2, 2.0]))
        if method == "ramplus_tl":
            maybe("alpha", st.sampled_from([0.0, 0.2, 5.0]))
    elif method != "emr":
        if draw(st.booleans(), label="give weight"):
            weights = drawing.scalar_or_list(draw, drawing.EIGHTHS, count, "weight")
            listed = drawing.as_list(weights, count)
            if sum(w != 0 for w in listed) >= 2 and abs(sum(listed)) >= 0.1 * sum(map(abs, listed)):
                out["weight"] = weights
        if draw(st.booleans(), label="give tall_lambda"):
            values = st.sampled_from([0.0, 0.2, 0.6, 1.0, 3.0])
            out["tall_lambda"] = drawing.scalar_or_list(draw, values, count, "tall_lambda")
        maybe("over", st.sampled_from(["task_arithmetic", "ties"]))
        maybe("density", drawing.DENSITIES)
        maybe("scope", st.sampled_from(["tensor", "model"]))
        maybe("normalize", st.booleans())
        if method == "consensus":
            maybe("k", st.sampled_from([0, 1, 2]))
            maybe("lambda", st.sampled_from([1.0, 0.5, -1.0, 0.0]))
    return out


def check(method, base, experts, parameters, label="", **options):
    got = merging.merge(method, experts, base, parameters=parameters, **options)
    want = METHODS[method](base, experts, **parameters, **options)
    assert got.keys() == want.keys()
    for name, merged in want.items():
        assert_matches(got[name], merged, f"{name} of {method} {parameters} {options} {label}")


@pytest.mark.parametrize("method", NAMES)
@given(data=st.data())
def test_any_models(method, data):
    count = data.draw(st.integers(2 if method in ("consensus", "tall_masks") else 1, 4), label="experts")
    base, experts, origin = data.draw(drawing.model_sets(count=count))
    options = {}
    if data.draw(st.booleans(), label="give dtype"):
        options["dtype"] = data.draw(st.sampled_from(ARITHMETIC), label="output dtype")
    check(method, base, experts, settings(data.draw, method, count), origin, **options)


LARGE = [
    ("ram", {"epsilon": 0.05}),
    ("ram_plus", {"r": 2.0, "epsilon": 0.05}),
    ("ramplus_tl", {"epsilon": 0.05, "alpha": 3.0}),
    ("consensus", {}),
    ("consensus", {"over": "ties", "scope": "model", "k": 1}),
    ("tall_masks", {"over": "ties"}),
    ("emr", {}),
]


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F8_E4M3"])
@pytest.mark.parametrize(("method", "parameters"), LARGE)
def test_tensors_of_several_tiles(method, parameters, dtype):
    base, experts = drawing.large(dtype, 2)
    check(method, base, experts, parameters)


@pytest.mark.parametrize("count", [1, 3, 9, 16, 18])
@pytest.mark.parametrize("method", NAMES)
def test_many_experts(method, count):
    """More experts than elements, and more than one loop holds."""
    rng = np.random.default_rng(count)
    shapes = {"w": (5, 3), "one": (1,), "none": (0,), "scalar": ()}
    base = {n: drawing.numbers(rng, "grid", s, DTYPES["F32"]) for n, s in shapes.items()}
    experts = [
        {n: drawing.numbers(rng, "grid", s, DTYPES["F32"], wide(base[n])) for n, s in shapes.items()}
        for _ in range(count)
    ]
    if count == 1 and method in ("consensus", "tall_masks"):
        with pytest.raises(rlmerge.RecipeError) as raised:
            merging.merge(method, experts, base)
        assert raised.value.code == "model_count"
        return
    check(method, base, experts, {})


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "F8_E5M2"])
def test_infinity_and_nan_stay_where_they_are(method, dtype):
    rng = np.random.default_rng(7)
    base = {"w": drawing.numbers(rng, "gauss", (301,), DTYPES[dtype])}
    experts = [{"w": drawing.numbers(rng, "gauss", (301,), DTYPES[dtype], wide(base["w"]))} for _ in range(3)]
    clean = merging.merge(method, experts, base)["w"]
    spoilt = [{"w": e["w"].copy()} for e in experts]
    for value, at in ((np.nan, 3), (np.inf, 100), (-np.inf, 217)):
        spoilt[0]["w"][at] = value
    got = merging.merge(method, spoilt, base)["w"]
    assert_matches(got, METHODS[method](base, spoilt)["w"])
    odd = [3, 100, 217]
    assert not np.isfinite(wide(got)[[3, 100, 217] if method != "emr" else [3]]).any()
    if method != "ram_plus":  # its scales are counted over everything
        others = np.setdiff1d(np.arange(301), odd)
        if method != "ramplus_tl":
            assert (bits(got)[others] == bits(clean)[others]).all()


@pytest.mark.parametrize("dtype", ARITHMETIC)
@pytest.mark.parametrize("method", NAMES)
def test_experts_equal_to_the_base_give_its_bytes(method, dtype):
    base = {"w": every_pattern(dtype)}
    same(merging.merge(method, [base] * 3, base), base)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64"])
def test_one_expert_gives_its_own_values(dtype):
    rng = np.random.default_rng(0)
    base = {"w": drawing.numbers(rng, "wide", (999,), DTYPES[dtype])}
    expert = {"w": drawing.numbers(rng, "wide", (999,), DTYPES[dtype])}
    # Where an element is equal its sign of zero is the base's.
    expert["w"] = np.where(wide(expert["w"]) == wide(base["w"]), base["w"], expert["w"])
    same(merging.merge("emr", [expert], base), expert)
    for method in ("ram", "ram_plus", "ramplus_tl"):
        same(merging.merge(method, [expert], base, parameters={"epsilon": 0.0}), expert)


@pytest.mark.parametrize("method", NAMES)
@given(data=st.data())
def test_two_experts_in_either_order(method, data):
    base, experts, _ = data.draw(drawing.model_sets(count=2))
    same(merging.merge(method, experts, base), merging.merge(method, experts[::-1], base))


@given(data=st.data())
def test_ram_of_disjoint_changes_is_task_arithmetic(data):
    """Nothing is shared, so that nothing is averaged."""
    base, (first, second), _ = data.draw(drawing.model_sets(count=2, dtypes=("F32",)))
    rng = np.random.default_rng(0)
    for name, start in base.items():
        mine = rng.random(start.shape) < 0.5
        first[name] = np.where(mine, first[name], start)
        second[name] = np.where(mine, start, second[name])
    want = merging.merge("task_arithmetic", [first, second], base)
    for method in ("ram", "ram_plus", "ramplus_tl"):
        same(merging.merge(method, [first, second], base, parameters={"epsilon": 0.0}), want)


def test_ram_plus_counts_over_the_whole_model_and_ramplus_tl_over_each_tensor():
    zero = {"a": np.zeros(4, np.float32), "b": np.zeros(4, np.float32)}
    one = {"a": np.array([1, 1, 0, 0], np.float32), "b": np.array([1, 0, 0, 0], np.float32)}
    two = {"a": np.array([0, 3, 0, 0], np.float32), "b": np.array([0, 0, 0, 0], np.float32)}
    got = merging.merge("ram_plus", [one, two], zero, parameters={"r": 2.0})
    # The first expert has one shared element and two unique ones over both tensors.
    assert got["a"].tolist() == [1.5, 2, 0, 0]
    assert got["b"].tolist() == [1.5, 0, 0, 0]
    local = merging.merge("ramplus_tl", [one, two], zero, parameters={"r": 1.0, "alpha": 0.5})
    assert local["a"].tolist() == [1.5, 2, 0, 0]
    assert local["b"].tolist() == [1, 0, 0, 0]


@given(data=st.data())
def test_consensus_of_none_is_the_merge_itself(data):
    base, experts, _ = data.draw(drawing.model_sets(count=2))
    none = {"k": 0}
    same(merging.merge("consensus", experts, base, parameters=none), merging.merge("task_arithmetic", experts, base))
    over = {**none, "over": "ties", "density": 0.5}
    sums = {"density": 0.5, "normalize": False}
    same(
        merging.merge("consensus", experts, base, parameters=over),
        merging.merge("ties", experts, base, parameters=sums),
    )


def test_consensus_drops_what_none_and_what_one_alone_uses():
    zero = {"w": np.zeros(3, np.float32)}
    experts = [{"w": np.array(v, np.float32)} for v in ([1, 1, 1], [1, 0, 0.25])]
    # Both use the first element, the first task alone the others: the second one's share of the last is too small.
    assert merging.merge("consensus", experts, zero)["w"].tolist() == [2, 0, 0]
    assert merging.merge("consensus", experts, zero, parameters={"tall_lambda": 0.2})["w"].tolist() == [2, 0, 1.25]
    # A larger factor asks more: of the first element, neither has enough.
    strict = {"tall_lambda": 1.2, "k": 1}
    assert merging.merge("consensus", experts, zero, parameters=strict)["w"].tolist() == [0, 1, 1.25]


def test_weight_zero_is_left_out():
    rng = np.random.default_rng(1)
    base = {"w": drawing.numbers(rng, "gauss", (40, 5), DTYPES["BF16"])}
    experts = [{"w": drawing.numbers(rng, "gauss", (40, 5), DTYPES["BF16"], wide(base["w"]))} for _ in range(2)]
    absurd = {"w": np.full((40, 5), np.nan, np.float32).astype(DTYPES["BF16"])}
    weights = {"weight": [0.75, 0.0, 0.5], "tall_lambda": [0.2, 0.3, 0.6]}
    for method in ("consensus", "tall_masks"):
        want = merging.merge(method, experts, base, parameters={"weight": [0.75, 0.5], "tall_lambda": [0.2, 0.6]})
        same(merging.merge(method, [experts[0], absurd, experts[1]], base, parameters=weights), want)


@pytest.mark.parametrize(
    ("method", "parameters", "code", "word"),
    [
        ("consensus", {"k": 3}, "parameter_out_of_range", "at most 2"),
        ("consensus", {"k": 2, "weight": [1, 0]}, "parameter_out_of_range", "at most 1"),
        ("consensus", {"tall_lambda": -1}, "parameter_out_of_range", "tall_lambda"),
        ("consensus", {"normalize": True, "weight": [1, -1]}, "zero_weight_sum", "sum to 0"),
        ("tall_masks", {"weight": 0}, "recipe_invalid", "no task"),
        ("ram_plus", {"r": 0.9}, "parameter_out_of_range", "r"),
        ("ram", {"epsilon": -1e-9}, "parameter_out_of_range", "epsilon"),
        ("emr", {"weight": 1}, "unknown_parameter", "weight"),
    ],
)
def test_what_is_refused(method, parameters, code, word):
    zero = {"w": np.zeros(3, np.float32)}
    with pytest.raises(rlmerge.RecipeError) as raised:
        merging.merge(method, [zero, zero], zero, parameters=parameters)
    assert raised.value.code == code
    assert word in str(raised.value)


# --- masks beside the model, and the way back ---------------------------------------------------------------------


def unpacked(folder, name, shape) -> list[np.ndarray]:
    """The masks of a tensor as the documentation describes their format."""
    raw = tensorfile.read_raw(folder / "rlmerge.masks")[f"masks/{name}"]
    n = int(np.prod(shape, dtype=np.int64))
    rows = np.frombuffer(raw.data, np.uint8).reshape(raw.shape)
    assert raw.shape[1] == -(-n // 8)
    assert not np.unpackbits(rows, axis=1, bitorder="little")[:, n:].any()
    return [np.unpackbits(row, count=n, bitorder="little").astype(bool).reshape(shape) for row in rows]


@pytest.fixture
def merged(tmp_path):
    """`merged(method, base, experts, parameters)` -> the folder, beside the models it was made of."""

    def make(method, base, experts, parameters=None, **options):
        tensorfile.write(tmp_path / "base.safetensors", base)
        for i, expert in enumerate(experts):
            tensorfile.write(tmp_path / f"task{i}.safetensors", expert)
        paths = [tmp_path / f"task{i}.safetensors" for i in range(len(experts))]
        output = tmp_path / "merged"
        rlmerge.merge(
            paths, base=tmp_path / "base.safetensors", method=method, output=output, parameters=parameters, **options
        )
        return output

    return make


CASES = [("tall_masks", {}), ("tall_masks", {"over": "ties", "tall_lambda": [0.2, 0.6, 1.0]}), ("emr", {})]


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64", "F8_E4M3"])
@pytest.mark.parametrize(("method", "parameters"), CASES)
def test_masks_scales_and_models_are_the_references(merged, tmp_path, method, parameters, dtype):
    base, experts = drawing.large(dtype, 3, n=2**18 + 1025)
    base["ids"] = np.arange(5)
    experts = [{**e, "ids": np.arange(5), "same": np.ones(3, np.float32)} for e in experts]
    base["same"] = np.ones(3, np.float32)
    folder = merged(method, base, experts, parameters)
    report = json.loads((folder / "rlmerge.json").read_text())["masks"]
    assert [t["name"] for t in report["tasks"]] == ["task0", "task1", "task2"]
    assert report["bytes"] == (folder / "rlmerge.masks").stat().st_size
    if method == "emr":
        want, scales = masks.emr_bits(base, experts)
    else:
        want, scales = masks.tall_bits(base, experts, **parameters), [1.0] * 3
    stored = tensorfile.read_raw(folder / "rlmerge.masks")
    assert stored.keys() == {"scales", *(f"masks/{n}" for n in want)}
    np.testing.assert_allclose(np.frombuffer(stored["scales"].data), scales, rtol=1e-12)
    assert np.frombuffer(stored["scales"].data).tolist() == [t["scale"] for t in report["tasks"]]
    now = tensorfile.read(folder)
    for name, masks_of in want.items():
        found = unpacked(folder, name, base[name].shape)
        for task, (a, b) in enumerate(zip(found, masks_of, strict=True)):
            assert (a == b).all(), (name, task)
    for task in range(3):
        output = tmp_path / f"again{task}.safetensors"
        rlmerge.expand(folder, f"task{task}", output=output)
        again = tensorfile.read(output)
        assert (again["ids"] == np.arange(5)).all()
        for name in want:
            mask = unpacked(folder, name, base[name].shape)[task]
            model = masks.expand(base[name], now[name], mask, report["tasks"][task]["scale"])
            assert again[name].dtype == model.dtype
            assert (bits(again[name]) == bits(model)).all(), (name, task)


def test_emr_of_one_expert_gives_it_back(merged, tmp_path):
    rng = np.random.default_rng(3)
    base = {"w": drawing.numbers(rng, "gauss", (70, 9), DTYPES["BF16"])}
    expert = {"w": drawing.numbers(rng, "gauss", (70, 9), DTYPES["BF16"], wide(base["w"]))}
    folder = merged("emr", base, [expert])
    rlmerge.expand(folder, "task0", output=tmp_path / "again.safetensors")
    same(tensorfile.read(tmp_path / "again.safetensors"), expert)


def test_tall_masks_of_disjoint_tasks_give_each_back(merged, tmp_path):
    """No task disturbs another, so that every one is rebuilt whole: the law of the paper's introduction."""
    rng = np.random.default_rng(4)
    base = {"w": drawing.numbers(rng, "grid", (300,), DTYPES["F32"])}
    owner = rng.integers(0, 3, 300)
    experts = [{"w": np.where(owner == i, np.float32(7), base["w"])} for i in range(3)]
    folder = merged("tall_masks", base, experts)
    for i, expert in enumerate(experts):
        rlmerge.expand(folder, f"task{i}", output=tmp_path / f"again{i}.safetensors")
        same(tensorfile.read(tmp_path / f"again{i}.safetensors"), expert)


@pytest.mark.parametrize("method", ["tall_masks", "emr"])
def test_folders_expand_into_complete_folders(tmp_path, method):
    trio = models.write_trio(tmp_path, "qwen2", experts=2, shards=2)
    folder = tmp_path / "merged"
    rlmerge.merge(trio.experts, base=trio.base, method=method, output=folder, shard_size=40_000, threads=3)
    output = tmp_path / "again"
    assert "- `expert0`\n- `expert1`\n" in (folder / "README.md").read_text()
    report = rlmerge.expand(folder, "expert1", output=output, threads=2, io="mmap", shard_size="50KB")
    assert report.output == output
    names = {p.name for p in output.iterdir()}
    assert names >= {"config.json", "tokenizer.json", "rlmerge.json", "README.md", "model.safetensors.index.json"}
    assert "rlmerge.masks" not in names
    assert "expert1" in (output / "README.md").read_text()
    assert tensorfile.read(output).keys() == trio.base_tensors.keys()
    # The same from one file, with another number of threads.
    rlmerge.expand(folder, "expert1", output=tmp_path / "one.safetensors", threads=1)
    same(tensorfile.read(tmp_path / "one.safetensors"), tensorfile.read(output))


@pytest.mark.parametrize("method", ["tall_masks", "emr"])
def test_modifiers_and_masks_go_together(tmp_path, method):
    """What modifiers leave out of the merge has no masks: all tasks share it."""
    trio = models.write_trio(tmp_path, "llama", experts=2)
    folder = tmp_path / "merged"
    modifiers = {"treat": {"embeddings": "mean", "norms": "base"}, "lines": ("auto", 0.5), "match_norm": "min"}
    rlmerge.merge(trio.experts, base=trio.base, method=method, output=folder, **modifiers)
    stored = tensorfile.read_raw(folder / "rlmerge.masks")
    assert "masks/model.layers.0.mlp.up_proj.weight" in stored
    assert not {"masks/model.embed_tokens.weight", "masks/model.norm.weight"} & stored.keys()
    scale = json.loads((folder / "rlmerge.json").read_text())["masks"]["tasks"][1]["scale"]
    rlmerge.expand(folder, "expert1", output=tmp_path / "again.safetensors")
    now, again = tensorfile.read(folder), tensorfile.read(tmp_path / "again.safetensors")
    for name, start in trio.base_tensors.items():
        if f"masks/{name}" in stored:
            want = masks.expand(start, now[name], unpacked(folder, name, start.shape)[1], scale)
        else:
            want = now[name]
        assert (bits(again[name]) == bits(want)).all(), name


def test_expanding_needs_the_bytes_of_the_merge(merged, tmp_path):
    base, experts = drawing.large("BF16", 2, n=5000)
    folder = merged("emr", base, experts)

    def refused(code, exit_code, where=folder, **options):
        before = sorted(p.name for p in tmp_path.iterdir())
        with pytest.raises(rlmerge.RlmergeError) as raised:
            rlmerge.expand(where, options.pop("task", "task0"), output=tmp_path / "again.safetensors", **options)
        assert (raised.value.code, raised.value.exit_code) == (code, exit_code), raised.value
        assert sorted(p.name for p in tmp_path.iterdir()) == before
        return raised.value

    unknown = refused("parameter_out_of_range", 2, task="task7")
    assert "`task0`, `task1`" in str(unknown)
    other = refused("checksum_mismatch", 8, base=tmp_path / "task1.safetensors")
    assert isinstance(other, rlmerge.CheckpointError)
    assert "--base" in other.hint

    def spoilt(name, at):
        where = tmp_path / "spoilt"
        shutil.rmtree(where, ignore_errors=True)
        shutil.copytree(folder, where)
        content = bytearray((where / name).read_bytes())
        content[at] ^= 1
        (where / name).write_bytes(content)
        return where

    for name, at in (("model.safetensors", -1), ("rlmerge.masks", -1), ("rlmerge.masks", 30)):
        where = spoilt(name, at)
        error = refused("checksum_mismatch", 8, where, task="task1")  # whose bits are the last
        assert error.path.name in ("spoilt", "rlmerge.masks")
    where = spoilt("rlmerge.json", 0)
    refused("bad_config", 3, where)
    (where / "rlmerge.json").unlink()
    refused("not_a_checkpoint", 3, where)
    plain = tmp_path / "plain"
    rlmerge.merge([tmp_path / "task0.safetensors"], base=tmp_path / "base.safetensors", method="ties", output=plain)
    refused("not_a_checkpoint", 3, plain)
    (tmp_path / "base.safetensors").rename(tmp_path / "moved.safetensors")
    refused("model_not_found", 3)
    rlmerge.expand(folder, "task0", base=tmp_path / "moved.safetensors", output=tmp_path / "again.safetensors")


def test_masks_need_a_folder(tmp_path):
    tensors = {"w": np.zeros(3, np.float32)}
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "a", "b")]
    for path in paths:
        tensorfile.write(path, tensors)
    for method in merging.WITH_MASKS:
        with pytest.raises(rlmerge.RecipeError) as raised:
            rlmerge.merge(paths[1:], base=paths[0], method=method, output=tmp_path / "out.safetensors")
        assert "folder" in str(raised.value)


def test_tasks_of_one_name_are_numbered(tmp_path):
    tensors = {"w": np.ones(3, np.float32)}
    for folder in ("one", "two", "base"):
        (tmp_path / folder).mkdir()
        tensorfile.write(tmp_path / folder / "math.safetensors", tensors)
    paths = [tmp_path / folder / "math.safetensors" for folder in ("one", "two")]
    output = tmp_path / "merged"
    rlmerge.merge(paths, base=tmp_path / "base" / "math.safetensors", method="emr", output=output)
    tasks = json.loads((output / "rlmerge.json").read_text())["masks"]["tasks"]
    assert [t["name"] for t in tasks] == ["math", "math-2"]
