"""Adapters as experts: the model that a base and an adapter stand for, and every method on it.

The reference writes those models out; the engine must give what it gives for the written ones.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rlmerge
from rlmerge._methods import find_method
from rlmerge.errors import AlignmentError, CheckpointError, RecipeError
from tests import adapters, merging, models, tensorfile
from tests.reference import adapter as reference
from tests.reference.rounding import DTYPES, bits, round_to, wide

LINEAR = {"a.q_proj": (24, 16), "a.v_proj": (7, 33), "b.up": (129, 40)}


def model(modules, dtype="BF16", seed=0, step=None, biases=()):
    """A base with these weights, some biases, and a norm that no adapter touches."""
    rng = np.random.default_rng(seed)
    out = {}
    for module, shape in modules.items():
        value = rng.normal(0, 0.5, shape) if step is None else rng.integers(-8, 9, shape) * step
        out[f"{module}.weight"] = round_to(np.asarray(value, float), DTYPES[dtype])
        if module in biases:
            out[f"{module}.bias"] = round_to(rng.normal(0, 0.5, shape[0]), DTYPES[dtype])
    out["norm.weight"] = round_to(rng.normal(1, 0.1, 5), DTYPES[dtype])
    return out


def put(path, tensors):
    tensorfile.write(path, tensors, {"format": "pt"})
    return path


def merged(paths, output, **options):
    rlmerge.merge(paths, output=output, force=True, **options)
    return tensorfile.read(Path(output))


def same(ours, expected):
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name].dtype == tensor.dtype, name
        assert np.array_equal(bits(ours[name]), bits(tensor)), name


def check_value(root, base, tensors, config, dtypes=None):
    """`base+adapter` is the reference's model, rounded once to the base's dtypes."""
    start = put(root / "base.safetensors", base)
    adapter = adapters.write(root / "adapter", tensors, **config)
    config = json.loads((adapter / "adapter_config.json").read_text())
    ours = merged([f"{start}+{adapter}"], root / "out.safetensors", method="passthrough")
    expected = reference.apply(base, tensors, config)
    nominal = {name: t.dtype for name, t in base.items()} | (dtypes or {})
    same(ours, {n: t if t.dtype == nominal[n] else round_to(wide(t), nominal[n]) for n, t in expected.items()})
    return ours


@given(
    dtype=st.sampled_from(["F32", "BF16", "F16"]),
    factor=st.sampled_from(["F32", "BF16", "F16"]),
    rank=st.sampled_from([1, 2, 5, 16, 33]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_value_bit_for_bit(dtype, factor, rank, seed):
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as root:
        tensors = adapters.lora(LINEAR, rank, rng, dtype=factor)
        check_value(Path(root), model(LINEAR, dtype, seed), tensors, {"r": rank, "lora_alpha": 24})


def test_longer_than_a_tile(tmp_path):
    modules = {"wide": (3, 200_000), "tall": (70_000, 9), "both": (700, 611)}
    tensors = adapters.lora(modules, 3, np.random.default_rng(1))
    check_value(tmp_path, model(modules), tensors, {"r": 3})


def test_rank_stabilised_with_patterns(tmp_path):
    rank = {"a.q_proj": 2, "a.v_proj": 8, "b.up": 4}
    config = {
        "r": 4,
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2, r"^a\.v_.*": 8},
        "alpha_pattern": {"up": 3, "proj": 100},
    }
    check_value(tmp_path, model(LINEAR), adapters.lora(LINEAR, rank, np.random.default_rng(2)), config)


def test_convolutions_and_their_kernels(tmp_path):
    modules = {"conv": (6, 5, 3, 3), "one": (4, 3, 1, 1), "line": (4, 6, 5)}
    check_value(tmp_path, model(modules), adapters.lora(modules, 4, np.random.default_rng(3)), {})


def test_fan_in_fan_out_and_embeddings(tmp_path):
    """Both are stored with rows and columns exchanged."""
    base = model({"h.0.attn.c_attn": (16, 48), "wte": (50, 16)})
    rng = np.random.default_rng(4)
    tensors = adapters.lora({"h.0.attn.c_attn": (48, 16)}, 4, rng)
    tensors["base_model.model.wte.lora_embedding_A"] = rng.normal(0, 0.1, (4, 50)).astype(np.float32)
    tensors["base_model.model.wte.lora_embedding_B"] = rng.normal(0, 0.1, (16, 4)).astype(np.float32)
    check_value(tmp_path, base, tensors, {"fan_in_fan_out": True})


@pytest.mark.parametrize("form", ["{}", "{}.base_layer", "{}.modules_to_save", "{}.modules_to_save.default"])
def test_whole_tensors_and_biases(tmp_path, form):
    base = model(LINEAR, biases=["a.q_proj"])
    rng = np.random.default_rng(5)
    tensors = adapters.lora({"b.up": LINEAR["b.up"]}, 4, rng)
    for name in ("a.v_proj.weight", "a.q_proj.bias"):
        module, _, leaf = name.rpartition(".")
        new = rng.normal(0, 0.3, base[name].shape).astype(np.float32)
        tensors[f"base_model.model.{form.format(module)}.{leaf}"] = new
    config = {"bias": "lora_only", "modules_to_save": ["v_proj"]}
    named = {k.replace(".default.", ".") if "modules_to_save" in k else k: v for k, v in tensors.items()}
    root = tmp_path / "other"
    root.mkdir()
    start = put(tmp_path / "base.safetensors", base)
    adapter = adapters.write(tmp_path / "adapter", tensors, **config)
    ours = merged([f"{start}+{adapter}"], tmp_path / "out.safetensors", method="passthrough")
    expected = check_value(root, base, named, config)
    same(ours, expected)
    assert not np.array_equal(bits(ours["a.v_proj.weight"]), bits(base["a.v_proj.weight"]))


def test_what_lora_adds_to_a_bias(tmp_path):
    base = model(LINEAR, "F32", biases=["a.q_proj"])
    tensors = adapters.lora({"a.q_proj": (24, 16)}, 4, np.random.default_rng(6))
    tensors["base_model.model.a.q_proj.lora_B.bias"] = np.linspace(-1, 1, 24, dtype=np.float32)
    ours = check_value(tmp_path, base, tensors, {"lora_bias": True})
    assert np.array_equal(ours["a.q_proj.bias"], base["a.q_proj.bias"] + 2 * np.linspace(-1, 1, 24, dtype=np.float32))


def test_dora_brings_rows_to_their_lengths(tmp_path):
    modules = {"q": (24, 16), "long": (3, 150_000), "tall": (9000, 40)}
    base = model(modules, "F32")
    rng = np.random.default_rng(7)
    tensors = adapters.lora(modules, 4, rng)
    for module, shape in modules.items():
        tensors[f"base_model.model.{module}.lora_magnitude_vector"] = rng.uniform(1, 2, shape[0]).astype(np.float32)
    start = put(tmp_path / "base.safetensors", base)
    adapter = adapters.write(tmp_path / "adapter", tensors, use_dora=True)
    ours = merged([f"{start}+{adapter}"], tmp_path / "out.safetensors", method="passthrough")
    expected = reference.apply(base, tensors, json.loads((adapter / "adapter_config.json").read_text()))
    for name, tensor in expected.items():
        # The lengths are f64 sums in another order.
        assert np.allclose(ours[name], tensor, rtol=2e-7, atol=0), name
    lengths = np.linalg.norm(ours["tall.weight"].astype(float), axis=1)
    assert np.allclose(lengths, tensors["base_model.model.tall.lora_magnitude_vector"], rtol=1e-6)
    mapped = merged([f"{start}+{adapter}"], tmp_path / "out.safetensors", method="passthrough", io="mmap")
    same(mapped, ours)


def test_an_adapter_that_changes_nothing_is_its_base(tmp_path):
    base = model(LINEAR)
    base["a.q_proj.weight"].reshape(-1)[:3] = [-0.0, 0.0, np.inf]
    tensors = adapters.lora(LINEAR, 4, np.random.default_rng(8))
    tensors = {n: t * 0 if ".lora_B." in n else t for n, t in tensors.items()}
    same(check_value(tmp_path, base, tensors, {}), base)


def all_methods():
    return [m.name for m in rlmerge.methods()]


def attempt(paths, output, method, base, **options):
    """The merge, or a skip for a method that needs more than models."""
    found = find_method(method)
    paths = paths[: found.max_experts] if found.max_experts is not None else paths
    if found.base == "model":
        paths = paths[:1]
    if len(paths) < found.min_experts and found.base != "model":
        pytest.skip(f"{method} takes at least {found.min_experts} models")
    if method in merging.WITH_MASKS:
        output = output.with_suffix("")
    try:
        return merged(paths, output, method=method, base=base, **options)
    except RecipeError as error:
        if error.code == "missing_parameter":
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("method", all_methods())
@pytest.mark.parametrize("mixed", [False, True], ids=["adapters", "with a checkpoint"])
def test_every_method_as_on_the_models_written_out(tmp_path, method, mixed):
    """On a grid where all sums are exact nothing may differ, whatever the method computes from base and experts."""
    base = model(LINEAR, "F32", step=2.0**-6)
    paths, whole = [], []
    for seed in (1, 2, 3):
        tensors = adapters.lora(LINEAR, 4, np.random.default_rng(seed), step=2.0**-4)
        adapter = adapters.write(tmp_path / f"adapter{seed}", tensors)
        written = reference.apply(base, tensors, {"r": 4, "lora_alpha": 8})
        whole.append(put(tmp_path / f"whole{seed}.safetensors", written))
        paths.append(whole[-1] if mixed and seed == 2 else adapter)
    start = put(tmp_path / "base.safetensors", base)
    takes = find_method(method).base != "none"
    expected = attempt(whole, tmp_path / "a.safetensors", method, start if takes else None, seed=3)
    # A method without a base has `--base` only as what the adapters change.
    same(attempt(paths, tmp_path / "b.safetensors", method, start, seed=3), expected)
    given = [p if p in whole else f"{start}+{p}" for p in paths]
    same(attempt(given, tmp_path / "c.safetensors", method, start if takes else None, seed=3), expected)


@pytest.mark.parametrize("mixed", [False, True], ids=["adapters", "with a checkpoint"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("task_arithmetic", {"lambda": 0.5}),
        ("task_arithmetic", {"lines": ("auto", 0.5)}),
        ("task_arithmetic", {"match_norm": "mean"}),
        ("dare_ties", {"density": 0.5}),
        ("ties", {"density": 0.3}),
        ("ties", {"density": 0.3, "scope": "model"}),
        ("breadcrumbs", {"rescale": "l1"}),
    ],
)
@pytest.mark.parametrize("count", [2, 3])
def test_tensors_of_several_tiles_as_written_out(tmp_path, method, options, mixed, count):
    """What a method does not look at is left out where tensors are scanned by all workers, and nowhere missed."""
    modules = {"both": (700, 611), "long": (2, 270_000), "short": (24, 16)}
    base = model(modules, "F32", step=2.0**-6)
    paths, whole = [], []
    for seed in range(count):
        tensors = adapters.lora(modules, 4, np.random.default_rng(seed), step=2.0**-4)
        adapter = adapters.write(tmp_path / f"adapter{seed}", tensors)
        written = reference.apply(base, tensors, {"r": 4, "lora_alpha": 8})
        whole.append(put(tmp_path / f"whole{seed}.safetensors", written))
        paths.append(whole[-1] if mixed and seed == 1 else adapter)
    start = put(tmp_path / "base.safetensors", base)
    expected = merged(whole, tmp_path / "a.safetensors", method=method, base=start, seed=3, **options)
    for io in ("pread", "mmap"):
        ours = merged(paths, tmp_path / "b.safetensors", method=method, base=start, seed=3, io=io, **options)
        same(ours, expected)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_linear", "slerp"])
def test_near_the_models_written_out(tmp_path, method):
    """With any numbers, deltas of written models are rounded and ours are not."""
    base = model(LINEAR, "F32")
    paths, whole = [], []
    for seed in (1, 2):
        tensors = adapters.lora(LINEAR, 4, np.random.default_rng(seed), size=0.05)
        paths.append(adapters.write(tmp_path / f"adapter{seed}", tensors))
        written = reference.apply(base, tensors, {"r": 4, "lora_alpha": 8})
        whole.append(put(tmp_path / f"whole{seed}.safetensors", written))
    start = put(tmp_path / "base.safetensors", base)
    takes = find_method(method).base != "none"
    expected = attempt(whole, tmp_path / "a.safetensors", method, start if takes else None)
    ours = attempt(paths, tmp_path / "b.safetensors", method, start)
    for name, tensor in expected.items():
        # An element at a threshold may fall on the other side of it.
        near = np.isclose(ours[name], tensor, rtol=1e-6, atol=1e-6)
        assert (~near).sum() <= (2 if method == "ties" else 0), name


def test_deltas_are_not_rounded_to_the_base(tmp_path):
    """A delta far below the base's last bit counts as it is: eight thousand of them can be seen."""
    base = {"q.weight": np.full((4, 8), 1024.0, np.float32)}
    tensors = {
        "base_model.model.q.lora_A.weight": np.full((1, 8), 2.0**-10, np.float32),
        "base_model.model.q.lora_B.weight": np.full((4, 1), 2.0**-8, np.float32),
    }
    start = put(tmp_path / "base.safetensors", base)
    adapter = adapters.write(tmp_path / "adapter", tensors, r=1, lora_alpha=1)
    ours = merged([adapter], tmp_path / "o.safetensors", method="task_arithmetic", base=start, weight=8192.0)
    assert (ours["q.weight"] == 1024 + 2.0**-5).all()
    report = rlmerge.merge([adapter], output=tmp_path / "p.safetensors", method="task_arithmetic", base=start, weight=2)
    assert report.tensors[0].expert_norms[0] == pytest.approx(2.0**-18 * 32**0.5, rel=1e-12)


def test_only_base_and_adapters_are_read(tmp_path):
    base = model({"q": (600, 700)})
    start = put(tmp_path / "base.safetensors", base)
    paths = [
        adapters.write(tmp_path / f"a{s}", adapters.lora({"q": (600, 700)}, 2, np.random.default_rng(s)), r=2)
        for s in range(3)
    ]
    plan = rlmerge.plan(paths, method="ties", base=start, output=tmp_path / "o.safetensors")
    stored = sum(t.nbytes for t in base.values())
    assert plan.bytes_to_read == stored + 3 * 4 * 2 * (600 + 700)
    assert [m.kind for m in plan.models] == ["file", "adapter", "adapter", "adapter"]
    assert any("LoRA adapter (rank 2, alpha 8)" in note for note in plan.notes)


@pytest.mark.parametrize("stored", ["tied", "head"])
def test_a_tied_head_gets_bytes_of_its_own(tmp_path, stored):
    """An adapter of a head that the base ties to its embedding changes the head alone, as the adapter does in use."""
    base = model({"model.embed_tokens": (50, 16), "model.q": (16, 16)})
    rng = np.random.default_rng(9)
    tensors = adapters.lora({"model.q": (16, 16)}, 4, rng)
    if stored == "tied":
        tensors |= adapters.lora({"lm_head": (50, 16)}, 4, rng)
    else:
        tensors["base_model.model.lm_head.weight"] = rng.normal(0, 1, (50, 16)).astype(np.float32)
    models.write_folder(tmp_path / "base", base)
    (tmp_path / "base" / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    adapter = adapters.write(tmp_path / "adapter", tensors)
    ours = merged([adapter], tmp_path / "out", method="task_arithmetic", base=tmp_path / "base")
    head = {**base, "lm_head.weight": base["model.embed_tokens.weight"]}
    expected = reference.apply(head, tensors, {"r": 4, "lora_alpha": 8})
    same(ours, {n: round_to(wide(t), DTYPES["BF16"]) for n, t in expected.items()})
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize("prefix", ["", "transformer.", "deep.er."])
def test_names_with_and_without_what_stands_before(tmp_path, prefix):
    """GPT-2 on the Hub lacks the `transformer.` of the module's names, and multimodal bases have more before them."""
    base = model({"h.0.q": (8, 8)})
    asked = {"": "transformer.h.0.q", "transformer.": "h.0.q", "deep.er.": "h.0.q"}[prefix]
    start = put(tmp_path / "base.safetensors", {f"{prefix}{n}": t for n, t in base.items()})
    tensors = adapters.lora({asked: (8, 8)}, 4, np.random.default_rng(1))
    adapter = adapters.write(tmp_path / "adapter", tensors)
    ours = merged([f"{start}+{adapter}"], tmp_path / "out.safetensors", method="passthrough")
    plain = {n.replace(asked, "h.0.q"): t for n, t in tensors.items()}
    expected = reference.apply(base, plain, {"r": 4, "lora_alpha": 8})["h.0.q.weight"]
    same({"x": ours[f"{prefix}h.0.q.weight"]}, {"x": round_to(wide(expected), DTYPES["BF16"])})


def test_everything_that_does_not_fit_is_listed_at_once(tmp_path):
    base = model(LINEAR, biases=["b.up"])
    rng = np.random.default_rng(10)
    tensors = adapters.lora({"a.q_proj": (24, 16), "gone": (4, 4), "a.v_proj": (7, 34)}, 4, rng)
    del tensors["base_model.model.a.q_proj.lora_B.weight"]
    up = "base_model.model.b.up.lora_"
    tensors[f"{up}A.weight"], tensors[f"{up}B.weight"] = np.zeros((4, 40), "f4"), np.zeros((129, 2), "f4")
    tensors["base_model.model.norm.weight"] = np.zeros(6, "f4")
    tensors["base_model.model.x.lora_E"] = np.zeros((2, 2), "f4")
    start = put(tmp_path / "base.safetensors", base)
    one = adapters.write(tmp_path / "one", tensors)
    two = adapters.write(tmp_path / "two", adapters.lora({"a.q_proj": (24, 16)}, 2, rng))
    with pytest.raises(AlignmentError) as caught:
        rlmerge.merge([one, two], method="ties", base=start, output=tmp_path / "out.safetensors")
    text = str(caught.value)
    for words in (
        "`a.q_proj`: lora_B is missing",
        "`gone.weight` is not in the base",
        "[4, 34] and lora_B [7, 4] make no change of [7, 33]",
        "lora_A has rank 4, lora_B has rank 2",
        "F32 [6] in the adapter, BF16 [5] in the base",
        "is no tensor of a LoRA adapter",
        "its factors have rank 2, the configuration says 4",
    ):
        assert words in text, words
    assert str(one) in text
    assert str(two) in text
    assert caught.value.code == "models_do_not_fit"
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"peft_type": "VERA"}, "VeRA"),
        ({"peft_type": "LOHA"}, "LoHa"),
        ({"peft_type": "LOKR"}, "LoKr"),
        ({"peft_type": "IA3"}, "(IA)³"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ],
)
def test_other_adapters_are_refused_by_name(tmp_path, config, word):
    start = put(tmp_path / "base.safetensors", model(LINEAR))
    adapter = adapters.write(tmp_path / "adapter", adapters.lora(LINEAR, 4, np.random.default_rng(0)), **config)
    with pytest.raises(CheckpointError) as caught:
        rlmerge.plan([adapter], method="ties", base=start, output=tmp_path / "out.safetensors")
    assert word in str(caught.value)
    assert caught.value.code == "adapter_unsupported"
    assert caught.value.hint
    assert any(word in warning for warning in rlmerge.inspect(adapter).warnings)


@pytest.mark.parametrize("where", ["embedding", "conv1d", "missing"])
def test_dora_where_it_has_no_rows_is_refused(tmp_path, where):
    base = model({"wte": (50, 16), "c_fc": (16, 48)})
    rng = np.random.default_rng(0)
    config = {"use_dora": True, "fan_in_fan_out": where == "conv1d"}
    if where == "embedding":
        tensors = {
            "base_model.model.wte.lora_embedding_A": rng.normal(size=(4, 50)).astype("f4"),
            "base_model.model.wte.lora_embedding_B": rng.normal(size=(16, 4)).astype("f4"),
            "base_model.model.wte.lora_magnitude_vector": np.ones((1, 16), "f4"),
        }
    else:
        tensors = adapters.lora({"c_fc": (48, 16) if where == "conv1d" else (16, 48)}, 4, rng)
        if where == "conv1d":
            tensors["base_model.model.c_fc.lora_magnitude_vector"] = np.ones(48, "f4")
    start = put(tmp_path / "base.safetensors", base)
    adapter = adapters.write(tmp_path / "adapter", tensors, **config)
    with pytest.raises(AlignmentError) as caught:
        rlmerge.plan([adapter], method="ties", base=start, output=tmp_path / "out.safetensors")
    assert ("DoRA of an embedding" in str(caught.value)) == (where != "missing")


def test_quantised_bases_are_refused(tmp_path):
    base = {"q.qweight": np.zeros((4, 4), "i4"), "q.scales": np.ones(4, "f4")}
    start = put(tmp_path / "base.safetensors", base)
    adapter = adapters.write(tmp_path / "adapter", adapters.lora({"q": (4, 4)}, 4, np.random.default_rng(0)))
    with pytest.raises(CheckpointError) as caught:
        rlmerge.plan([f"{start}+{adapter}"], method="passthrough", output=tmp_path / "out.safetensors")
    assert caught.value.code == "quantised"


def test_an_adapter_without_a_base(tmp_path):
    adapter = adapters.write(tmp_path / "adapter", adapters.lora({"q": (4, 4)}, 4, np.random.default_rng(0)))
    other = adapters.write(tmp_path / "other", adapters.lora({"q": (4, 4)}, 4, np.random.default_rng(0)))
    for options in ({"method": "ties"}, {"method": "linear"}, {"method": "ties", "base": other}):
        with pytest.raises(RecipeError) as caught:
            rlmerge.plan([adapter, other], output=tmp_path / "out.safetensors", **options)
        assert caught.value.code == "adapter_without_base"
        assert "BASE+" in caught.value.hint


def test_an_adapter_names_its_base(tmp_path):
    """The base of its configuration is taken where nobody gives one."""
    base = model({"q": (4, 4)})
    models.write_folder(tmp_path / "org-base", base)
    named = {"base_model_name_or_path": "someone/org-base"}
    paths = [
        adapters.write(tmp_path / f"a{s}", adapters.lora({"q": (4, 4)}, 4, np.random.default_rng(s)), **named)
        for s in range(2)
    ]
    plan = rlmerge.plan(paths, method="ties", output=tmp_path / "out")
    assert plan.models[0].path == tmp_path / "org-base"
    plan = rlmerge.plan(paths, method="linear", output=tmp_path / "out")
    assert str(plan.models[0].path) == f"{tmp_path / 'org-base'}+{paths[0]}"
    assert any("named in its configuration" in note for note in plan.notes)


def test_the_output_is_the_base_s_kind_of_folder(tmp_path):
    trio = models.write_trio(tmp_path, "llama", experts=1)
    shapes = {"model.layers.0.self_attn.q_proj": (64, 64)}
    adapter = adapters.write(tmp_path / "adapter", adapters.lora(shapes, 4, np.random.default_rng(0)))
    (adapter / "tokenizer.json").write_text("{}")
    out = tmp_path / "merged"
    rlmerge.merge([f"{trio.base}+{adapter}", trio.experts[0]], method="linear", output=out)
    for name in ("config.json", "tokenizer.json"):
        assert (out / name).read_text() == (trio.base / name).read_text()
    made = json.loads((out / "rlmerge.json").read_text())["plan"]["models"][0]
    assert made["kind"] == "adapter"
    assert made["adapter"] == {"path": str(adapter), "base": str(trio.base)}
    assert any(s["path"].endswith("adapter_model.safetensors") for s in made["shards"])
    assert f"{trio.base}+{adapter}" in (out / "README.md").read_text()
