"""Tiny random models on disk: folders that transformers would open, made without torch.

Three families: "llama" (untied head), "qwen2" (biases on q, k and v; tied embeddings and no head of its own) and
"mixtral" (one tensor per expert of the mixture, as on the Hub).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests import tensorfile
from tests.reference.rounding import DTYPES, round_to, wide

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, VOCAB, MIXTURE = 64, 128, 2, 4, 2, 256, 4
FAMILIES = ("llama", "qwen2", "mixtral")
TORCH_DTYPE = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}

Tensors = Mapping[str, np.ndarray]


def shapes(family: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a family's tensors, in the order in which transformers writes them."""
    kv = HIDDEN // HEADS * KV_HEADS
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        for part, rows, columns in (
            ("q", HIDDEN, HIDDEN),
            ("k", kv, HIDDEN),
            ("v", kv, HIDDEN),
            ("o", HIDDEN, HIDDEN),
        ):
            out[f"{at}.self_attn.{part}_proj.weight"] = (rows, columns)
            if family == "qwen2" and part != "o":
                out[f"{at}.self_attn.{part}_proj.bias"] = (rows,)
        if family == "mixtral":
            out[f"{at}.block_sparse_moe.gate.weight"] = (MIXTURE, HIDDEN)
            for e in range(MIXTURE):
                for part, shape in (("w1", (INNER, HIDDEN)), ("w2", (HIDDEN, INNER)), ("w3", (INNER, HIDDEN))):
                    out[f"{at}.block_sparse_moe.experts.{e}.{part}.weight"] = shape
        else:
            out[f"{at}.mlp.gate_proj.weight"] = (INNER, HIDDEN)
            out[f"{at}.mlp.up_proj.weight"] = (INNER, HIDDEN)
            out[f"{at}.mlp.down_proj.weight"] = (HIDDEN, INNER)
        out[f"{at}.input_layernorm.weight"] = (HIDDEN,)
        out[f"{at}.post_attention_layernorm.weight"] = (HIDDEN,)
    out["model.norm.weight"] = (HIDDEN,)
    if family != "qwen2":
        out["lm_head.weight"] = (VOCAB, HIDDEN)
    return out


def config(family: str, dtype: str = "BF16") -> dict:
    """`config.json` of a family."""
    common = {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INNER,
        "max_position_embeddings": 128,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": family == "qwen2",
        "torch_dtype": TORCH_DTYPE.get(dtype, "float32"),
        "use_cache": True,
        "vocab_size": VOCAB,
    }
    own = {
        "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False},
        "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False},
        "mixtral": {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "num_local_experts": MIXTURE,
            "num_experts_per_tok": 2,
            "sliding_window": None,
        },
    }[family]
    return {**own, **common}


def tokenizer_files() -> dict[str, str]:
    """A word-level tokenizer of the words w3 … w255, written by hand."""
    special = ["<unk>", "<s>", "</s>"]
    vocabulary = {word: i for i, word in enumerate(special + [f"w{i}" for i in range(3, VOCAB)])}
    added = [
        {
            "id": i, "content": word, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True,
        }
        for i, word in enumerate(special)
    ]  # fmt: skip
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": 128,
    }
    return {
        "tokenizer.json": json.dumps(tokenizer, indent=1),
        "tokenizer_config.json": json.dumps(settings, indent=1),
        "special_tokens_map.json": json.dumps({k: settings[k] for k in ("unk_token", "bos_token", "eos_token")}),
        "chat_template.jinja": "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}",
    }


def weights(family: str, dtype: str = "BF16", seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of the usual size: matrices around 0, norms around 1."""
    rng = np.random.default_rng(seed)
    out = {}
    for name, shape in shapes(family).items():
        centre = 1.0 if "norm" in name else 0.0
        out[name] = round_to(rng.normal(centre, 0.05, shape), DTYPES[dtype])
    return out


def fine_tuned(base: Tensors, seed: int, scale: float = 2e-3, zeros: float = 0.2) -> dict[str, np.ndarray]:
    """`base` plus Gaussian deltas, a fraction `zeros` of which is exactly zero."""
    rng = np.random.default_rng((seed, 1))
    out = {}
    for name, tensor in base.items():
        delta = rng.normal(0, scale, tensor.shape) * (rng.random(tensor.shape) >= zeros)
        out[name] = round_to(wide(tensor) + delta, tensor.dtype)
    return out


def write_folder(path: Path, tensors: Tensors, *, shards: int = 1, family: str | None = None, dtype: str = "BF16"):
    """A model folder: `shards` files (an index when more than one) and, given a family, all that belongs to it."""
    path.mkdir(parents=True)
    if family is not None:
        files = {
            "config.json": json.dumps(config(family, dtype), indent=2),
            "generation_config.json": json.dumps({"bos_token_id": 1, "eos_token_id": 2, "do_sample": False}),
            **tokenizer_files(),
        }
        for name, text in files.items():
            (path / name).write_text(text)
    if shards == 1:
        tensorfile.write(path / "model.safetensors", tensors, {"format": "pt"})
        return path
    names = list(tensors)
    weight_map = {}
    for i in range(shards):
        part = names[len(names) * i // shards : len(names) * (i + 1) // shards]
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        tensorfile.write(path / file, {n: tensors[n] for n in part}, {"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    total = sum(len(tensorfile.as_raw(t).data) for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return path


@dataclass(frozen=True)
class Trio:
    """A base and its experts, on disk and as arrays."""

    root: Path
    base: Path
    experts: list[Path]
    base_tensors: dict[str, np.ndarray]
    expert_tensors: list[dict[str, np.ndarray]]


def write_trio(
    root: Path,
    family: str = "llama",
    *,
    dtype: str = "BF16",
    experts: int = 2,
    shards: int = 1,
    scale: float = 2e-3,
    zeros: float = 0.2,
    seed: int = 0,
) -> Trio:
    """A base `root/base` and fine-tuned `root/expert0`, `root/expert1`, …"""
    base = weights(family, dtype, seed)
    tuned = [fine_tuned(base, seed + 1 + i, scale, zeros) for i in range(experts)]
    at = write_folder(root / "base", base, shards=shards, family=family, dtype=dtype)
    paths = [
        write_folder(root / f"expert{i}", t, shards=shards, family=family, dtype=dtype) for i, t in enumerate(tuned)
    ]
    return Trio(root, at, paths, base, tuned)
