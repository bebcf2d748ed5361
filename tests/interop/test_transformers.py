"""Tiny Llama-, Qwen2- and Mixtral-style folders, merged and opened by `from_pretrained`."""

import json

import pytest

from tests import models, tensorfile

pytestmark = pytest.mark.filterwarnings("default")  # torch and transformers warn about themselves


def opened(path):
    """The model, and what transformers did not find or use."""
    import torch
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, dtype=torch.float32)
    return model.eval(), info


def logits(path):
    """Logits of a fixed sentence."""
    import torch

    model, _ = opened(path)
    with torch.no_grad():
        return model(torch.tensor([[1, 17, 200, 3, 255, 64]])).logits


@pytest.fixture(params=models.FAMILIES)
def family(request):
    return request.param


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "slerp"])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_merged_folder_opens(make_trio, family, method, shards, tmp_path):
    import torch

    import rlmerge

    trio = make_trio(family, shards=shards)
    based = method not in ("linear", "slerp")
    output = tmp_path / "merged"
    rlmerge.merge(
        trio.experts,
        method=method,
        base=trio.base if based else None,
        output=output,
        shard_size="100KB" if shards > 1 else "5GB",
    )
    if shards > 1:
        assert len(list(output.glob("model-*.safetensors"))) > 1
    model, info = opened(output)
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    assert not info["mismatched_keys"], info
    result = logits(output)
    assert torch.isfinite(result).all()
    # A merge of light fine-tunes is near its inputs, and not equal to any.
    for path in (trio.base, *trio.experts):
        distance = (result - logits(path)).abs().max()
        assert 0 < distance < 1, path
    tied = json.loads((output / "config.json").read_text())["tie_word_embeddings"]
    assert tied == ("lm_head.weight" not in tensorfile.read(output))


def test_the_tokenizer_opens(make_trio, family, tmp_path):
    from transformers import AutoTokenizer, GenerationConfig

    import rlmerge

    trio = make_trio(family)
    output = tmp_path / "merged"
    rlmerge.merge(trio.experts, method="linear", output=output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    before = AutoTokenizer.from_pretrained(trio.experts[0])
    text = "w17 w200 <unk>"
    assert tokenizer(text)["input_ids"] == before(text)["input_ids"]
    assert tokenizer.get_vocab() == before.get_vocab()
    assert tokenizer.chat_template == models.tokenizer_files()["chat_template.jinja"]
    assert GenerationConfig.from_pretrained(output).eos_token_id == 2


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_passthrough_keeps_the_logits(make_model, family, dtype, tmp_path):
    import torch

    import rlmerge

    path = make_model(family, dtype=dtype, shards=2)
    output = tmp_path / "copied"
    rlmerge.merge([path], method="passthrough", output=output)
    assert torch.equal(logits(path), logits(output))


def test_transformers_reads_the_values_that_were_written(make_trio, tmp_path):
    """The values that transformers reads are the ones in the file."""
    import torch

    import rlmerge

    trio = make_trio("llama", dtype="F32")
    output = tmp_path / "merged"
    rlmerge.merge(trio.experts, method="linear", output=output)
    model, _ = opened(output)
    state = model.state_dict()
    for name, tensor in tensorfile.read(output).items():
        assert torch.equal(state[name], torch.from_numpy(tensor.copy())), name
