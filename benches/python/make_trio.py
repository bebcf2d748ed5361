"""Make a generated trio for the benchmarks: a base and two experts, Llama-shaped, bf16, two shards each.

Random numbers for billions of weights would take minutes, so a pool of about 16 million is drawn once and every tensor
is a window of it, wrapped around and started somewhere else. All three models use the same windows, so that an expert
is its base plus deltas: Gaussian, RMS 1e-3 beside weights of RMS 0.02, one in five exactly zero.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

MODELS = ("base", "expert-1", "expert-2")
SHARDS = 2
POOL = (1 << 24) + 43  # odd, so that windows never line up with tiles or rows
WEIGHT_RMS, DELTA_RMS, UNCHANGED = 0.02, 1e-3, 0.2
MARKER = "trio.json"  # written last: a folder without it is not finished


@dataclass(frozen=True)
class Shape:
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        kv = self.hidden // self.heads * self.kv_heads
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for layer in range(self.layers):
            block = f"model.layers.{layer}."
            found |= {
                block + "input_layernorm.weight": (self.hidden,),
                block + "self_attn.q_proj.weight": (self.hidden, self.hidden),
                block + "self_attn.k_proj.weight": (kv, self.hidden),
                block + "self_attn.v_proj.weight": (kv, self.hidden),
                block + "self_attn.o_proj.weight": (self.hidden, self.hidden),
                block + "post_attention_layernorm.weight": (self.hidden,),
                block + "mlp.gate_proj.weight": (self.intermediate, self.hidden),
                block + "mlp.up_proj.weight": (self.intermediate, self.hidden),
                block + "mlp.down_proj.weight": (self.hidden, self.intermediate),
            }
        return found | {"model.norm.weight": (self.hidden,), "lm_head.weight": (self.vocab, self.hidden)}

    def parameters(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.tensors().values())

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": 2048,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocab,
        }


SIZES = {
    "tiny": Shape(hidden=256, intermediate=704, layers=4, heads=4, kv_heads=2, vocab=4096),
    "1b": Shape(hidden=2048, intermediate=5632, layers=22, heads=32, kv_heads=4, vocab=32000),
    # Four times the parameters in tensors four times as large: what memory must not grow with.
    "4b": Shape(hidden=4096, intermediate=11264, layers=24, heads=32, kv_heads=4, vocab=32000),
}


def make_pools(model: int) -> tuple[np.ndarray, np.ndarray]:
    """Bits of one model's weights: a pool for matrices, a pool for norms (around one)."""
    draw = np.random.default_rng(0)
    matrix = (draw.standard_normal(POOL, dtype=np.float32) * WEIGHT_RMS).astype(ml_dtypes.bfloat16)
    norm = (1 + draw.standard_normal(POOL // 64, dtype=np.float32) * 0.1).astype(ml_dtypes.bfloat16)
    if model > 0:
        matrix, norm = changed(matrix, model, DELTA_RMS), changed(norm, 100 + model, 0.02)
    return matrix.view(np.uint16), norm.view(np.uint16)


def changed(base: np.ndarray, seed: int, rms: float) -> np.ndarray:
    draw = np.random.default_rng([1, seed])
    deltas = draw.standard_normal(base.size, dtype=np.float32) * np.float32(rms / (1 - UNCHANGED) ** 0.5)
    deltas[draw.random(base.size, dtype=np.float32) < UNCHANGED] = 0
    return (base.astype(np.float32) + deltas).astype(ml_dtypes.bfloat16)


def split(tensors: dict[str, tuple[int, ...]]) -> list[list[str]]:
    """Names by shard, in order, about equally many bytes each."""
    total = sum(int(np.prod(shape)) for shape in tensors.values())
    shards: list[list[str]] = [[] for _ in range(SHARDS)]
    seen = 0
    for name, shape in tensors.items():
        shards[min(seen * SHARDS // total, SHARDS - 1)].append(name)
        seen += int(np.prod(shape))
    return shards


def write_shard(path: Path, names: list[str], shape: Shape, pools: tuple[np.ndarray, np.ndarray]) -> None:
    tensors = shape.tensors()
    order = {name: index for index, name in enumerate(tensors)}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + 2 * int(np.prod(tensors[name]))
        header[name] = {"dtype": "BF16", "shape": list(tensors[name]), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            pool = pools[1] if len(tensors[name]) == 1 else pools[0]
            left = int(np.prod(tensors[name]))
            start = order[name] * 7_368_787 % pool.size
            while left > 0:
                window = pool[start : start + left]
                file.write(window.data)
                left -= window.size
                start = 0
        file.flush()
        os.fsync(file.fileno())


def write_model(folder: Path, shape: Shape, model: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pools = make_pools(model)
    shards = split(shape.tensors())
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{SHARDS:05}.safetensors"
        write_shard(folder / file, names, shape, pools)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 2 * shape.parameters()}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2) + "\n")


def make(folder: Path, size: str) -> dict[str, Path]:
    """The trio in `folder`, made unless it is there already: {"base": path, "expert-1": path, "expert-2": path}."""
    marker = folder / MARKER
    wanted = json.dumps({"size": size, "format": 1})
    if not (marker.exists() and marker.read_text() == wanted):
        for model, name in enumerate(MODELS):
            write_model(folder / name, SIZES[size], model)
        marker.write_text(wanted)
    return {name: folder / name for name in MODELS}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a generated trio: base, expert-1, expert-2.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="1b", help="tiny (16 MB), 1b (6.6 GB) or 4b (27 GB)")
    arguments = parser.parse_args()
    shape = SIZES[arguments.size]
    for path in make(arguments.folder, arguments.size).values():
        print(f"{path}  {shape.parameters() / 1e9:.3f} B parameters, {len(shape.tensors())} tensors")


if __name__ == "__main__":
    main()
