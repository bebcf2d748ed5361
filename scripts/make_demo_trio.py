#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["ml_dtypes>=0.5", "numpy>=2", "safetensors>=0.8"]
# ///
"""Make a small trio to try rlmerge on: a base and two experts, each a complete Llama folder of 7 MB.

The weights are random, so the models talk nonsense; the shapes, names, dtype and files are those of a real model.
Each expert changed its own half of the layers strongly and the others slightly, as fine-tuned models do.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, VOCAB = 256, 704, 4, 4, 2, 2048
EXPERTS = {"expert-math": 1, "expert-code": 2}
BOS, EOS = "<|begin|>", "<|end|>"


def shapes() -> dict[str, tuple[int, ...]]:
    """Name the tensors of the model and give their shapes."""
    kv = HIDDEN // HEADS * KV_HEADS
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        block = f"model.layers.{layer}."
        found |= {
            block + "input_layernorm.weight": (HIDDEN,),
            block + "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            block + "self_attn.k_proj.weight": (kv, HIDDEN),
            block + "self_attn.v_proj.weight": (kv, HIDDEN),
            block + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            block + "post_attention_layernorm.weight": (HIDDEN,),
            block + "mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
            block + "mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
            block + "mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
        }
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}


def base_weights() -> dict[str, np.ndarray]:
    """Draw the base."""
    draw = np.random.default_rng(0)
    return {
        name: np.ones(shape, np.float32) if len(shape) == 1 else draw.normal(0, 0.02, shape).astype(np.float32)
        for name, shape in shapes().items()
    }


def expert_weights(base: dict[str, np.ndarray], expert: int) -> dict[str, np.ndarray]:
    """Add deltas to the base; embeddings and norms stay as they are, so rlmerge copies them instead of computing."""
    draw = np.random.default_rng([expert])
    result = dict(base)
    for name, values in base.items():
        if values.ndim == 2 and ".layers." in name:
            layer = int(name.split(".")[2])
            spread = 3e-3 if (layer < LAYERS // 2) == (expert == 1) else 5e-4
            result[name] = values + draw.normal(0, spread, values.shape).astype(np.float32)
    return result


def config() -> dict[str, Any]:
    """Write `config.json`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 256,
        "eos_token_id": 257,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 512,
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": VOCAB,
    }


def tokenizer() -> dict[str, Any]:
    """Write `tokenizer.json` with one token a byte and no merges: the smallest that can spell everything."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    shown = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b]
    letters = {b: chr(b) for b in shown} | {
        b: chr(256 + n) for n, b in enumerate(b for b in range(256) if b not in shown)
    }
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": 256 + n, "content": token, **plain} for n, token in enumerate((BOS, EOS))],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {letter: b for b, letter in letters.items()}, "merges": []},
    }


def write_model(folder: Path, weights: dict[str, np.ndarray]) -> None:
    """Write one complete Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "config.json": config(),
        "generation_config.json": {"bos_token_id": 256, "eos_token_id": 257},
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": {
            "bos_token": BOS,
            "eos_token": EOS,
            "model_max_length": 512,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    }
    for name, contents in files.items():
        (folder / name).write_text(json.dumps(contents, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    rounded = {name: values.astype(ml_dtypes.bfloat16) for name, values in weights.items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description="Make a small trio to try rlmerge on: base, expert-math, expert-code.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("demo"), help="where (default: demo)")
    folder = parser.parse_args().folder
    base = base_weights()
    write_model(folder / "base", base)
    for name, expert in EXPERTS.items():
        write_model(folder / name, expert_weights(base, expert))
    for name in ("base", *EXPERTS):
        print(folder / name)


if __name__ == "__main__":
    main()
