"""Adapters that `peft` made and saved, against its own `merge_and_unload`."""

import importlib.util
import json

import numpy as np
import pytest

from tests import models, tensorfile
from tests.reference.rounding import DTYPES, wide

pytestmark = [
    pytest.mark.filterwarnings("default"),  # torch, transformers and peft warn about themselves
    pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed"),
]

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]

#: Name -> keys of `LoraConfig`.
CASES = {
    "plain": {"r": 8, "lora_alpha": 16, "target_modules": ATTENTION},
    "all linear": {"r": 4, "lora_alpha": 4, "target_modules": "all-linear"},
    "rslora": {"r": 8, "lora_alpha": 16, "target_modules": ATTENTION, "use_rslora": True},
    "patterns": {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": [*ATTENTION, "down_proj"],
        "rank_pattern": {"q_proj": 3, r"^model\.layers\.0\..*down_proj": 5},
        "alpha_pattern": {"layers.1.self_attn.v_proj": 7, "o_proj": 64},
        "use_rslora": True,
    },
    "modules to save": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
    "embedding": {"r": 4, "target_modules": ["embed_tokens", "v_proj"]},
    "head": {"r": 4, "target_modules": ["lm_head", "v_proj"]},
    "dora": {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "orthogonal": {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
}
QWEN = {
    "bias all": {"r": 4, "target_modules": ["q_proj"], "bias": "all"},
    "bias lora_only": {"r": 4, "target_modules": ["q_proj", "k_proj"], "bias": "lora_only"},
    "lora_bias": {"r": 4, "target_modules": ["q_proj"], "lora_bias": True},
}


def state(model):
    """Tensors of a model as arrays of their own dtype."""
    import torch

    out = {}
    for name, tensor in model.state_dict().items():
        if tensor.dtype == torch.bfloat16:
            out[name] = tensor.contiguous().view(torch.int16).numpy().view(DTYPES["BF16"]).copy()
        else:
            out[name] = tensor.numpy().copy()  # it may lie in a file that a test rewrites
    return out


def trained(base, config, path):
    """Saves an adapter whose factors, biases and lengths are random, and gives the model that peft makes of it."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    def load():
        return AutoModelForCausalLM.from_pretrained(base, dtype="auto")

    torch.manual_seed(0)
    model = get_peft_model(load(), LoraConfig(task_type="CAUSAL_LM", **config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                grown = "magnitude" in name or "norm" in name
                noise = torch.randn(parameter.shape) * 0.05
                parameter.copy_(parameter * (1 + noise) if grown else parameter + noise)
    model.save_pretrained(path)
    merged = PeftModel.from_pretrained(load(), path).merge_and_unload()
    return state(merged)


def check(base, config, tmp_path, *, tolerance=2e-6, exact_names=True):
    """Our model of base and adapter is peft's: to rounding in f32, to one step of bf16."""
    import rlmerge

    adapter = tmp_path / "adapter"
    theirs = trained(base, config, adapter)
    out = tmp_path / "merged"
    rlmerge.merge([f"{base}+{adapter}"], method="passthrough", output=out)
    ours = tensorfile.read(out)
    before = tensorfile.read(base)
    if exact_names:
        assert ours.keys() <= theirs.keys()
    changed = 0
    for name, tensor in ours.items():
        if name not in theirs:
            continue
        other = theirs[name]
        assert tensor.dtype == other.dtype, name
        if tensor.dtype == DTYPES["F32"]:
            assert np.allclose(tensor, other, rtol=tolerance, atol=tolerance * np.abs(other).max()), name
        else:
            # peft rounds B·A to bf16 before it adds it, and once more after.
            size = np.abs(wide(tensor)) + np.abs(wide(before.get(name, tensor)))
            assert (np.abs(wide(tensor) - wide(other)) <= 2**-7 * size).all(), name
        changed += name not in before or not np.array_equal(tensor, before[name])
    assert changed
    return ours


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_llama(make_model, tmp_path, case, dtype):
    if case == "dora" and dtype == "BF16":
        pytest.skip("peft rounds the lengths of rows to bf16")
    check(make_model("llama", dtype=dtype), CASES[case], tmp_path)


@pytest.mark.parametrize("case", QWEN)
def test_biases(make_model, tmp_path, case):
    ours = check(make_model("qwen2", dtype="F32"), QWEN[case], tmp_path)
    assert "lm_head.weight" not in ours


def test_every_expert_of_a_mixture(make_model, tmp_path):
    """transformers stacks the experts of a mixture when it loads them; an adapter of the attention goes with it."""
    check(make_model("mixtral", dtype="F32"), {"r": 4, "target_modules": ATTENTION}, tmp_path, exact_names=False)


@pytest.mark.parametrize("base_as_on_the_hub", [False, True])
def test_conv1d_of_gpt2(tmp_path, base_as_on_the_hub):
    """GPT-2 stores a row for each input, and on the Hub lacks the `transformer.` of its names."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    base = tmp_path / "base"
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 16}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(base)
    config = {"r": 4, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
    if base_as_on_the_hub:
        file = base / "model.safetensors"
        tensors = {n.removeprefix("transformer."): t for n, t in tensorfile.read(file).items()}
        theirs = trained(base, config, tmp_path / "adapter")
        tensorfile.write(file, tensors, {"format": "pt"})
        import rlmerge

        rlmerge.merge([f"{base}+{tmp_path / 'adapter'}"], method="passthrough", output=tmp_path / "merged")
        for name, tensor in tensorfile.read(tmp_path / "merged").items():
            other = theirs[f"transformer.{name}"]
            assert np.allclose(tensor, other, rtol=2e-6, atol=2e-6 * np.abs(other).max()), name
    else:
        check(base, config, tmp_path)


def test_a_merge_of_two_adapters_as_of_peft_s_two_models(make_model, tmp_path):
    """Task arithmetic on adapters against task arithmetic on the models that peft writes out."""
    import rlmerge

    base = make_model("llama", dtype="F32")
    whole, paths = [], []
    for at, case in enumerate(("plain", "rslora")):
        theirs = trained(base, CASES[case], tmp_path / f"adapter{at}")
        paths.append(tmp_path / f"adapter{at}")
        whole.append(models.write_folder(tmp_path / f"whole{at}", theirs, family="llama", dtype="F32"))
    for method in ("task_arithmetic", "linear", "slerp"):
        out = [tmp_path / f"{method}-{kind}" for kind in ("ours", "theirs")]
        given = paths if method == "task_arithmetic" else [f"{base}+{p}" for p in paths]
        start = base if method == "task_arithmetic" else None
        rlmerge.merge(given, method=method, base=start, output=out[0])
        rlmerge.merge(whole, method=method, base=start, output=out[1])
        ours, theirs = tensorfile.read(out[0]), tensorfile.read(out[1])
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert np.allclose(tensor, theirs[name], rtol=3e-6, atol=3e-6 * np.abs(tensor).max()), name


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_what_trains_against_a_changed_base_is_refused(make_model, tmp_path, start):
    import rlmerge
    from rlmerge.errors import CheckpointError

    base = make_model("llama", dtype="F32")
    trained(base, {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": start}, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=start):
        rlmerge.plan([f"{base}+{tmp_path / 'adapter'}"], method="passthrough", output=tmp_path / "merged")


@pytest.mark.parametrize("kind", ["VeraConfig", "LoHaConfig", "LoKrConfig", "IA3Config", "AdaLoraConfig"])
def test_other_kinds_are_refused(make_model, tmp_path, kind):
    import peft
    from transformers import AutoModelForCausalLM

    import rlmerge
    from rlmerge.errors import CheckpointError

    base = make_model("llama", dtype="F32")
    more = {
        "IA3Config": {"feedforward_modules": []},
        "AdaLoraConfig": {"total_step": 10},
        "VeraConfig": {"save_projection": True},
    }
    config = getattr(peft, kind)(target_modules=["q_proj"], **more.get(kind, {}))
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError) as caught:
        rlmerge.plan([f"{base}+{tmp_path / 'adapter'}"], method="passthrough", output=tmp_path / "merged")
    assert caught.value.code == "adapter_unsupported"
    given = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert given["peft_type"] in str(caught.value)
