"""The other files of a folder output: config, tokenizer, chat template, model card.

They come from one donor, the base or the first model. Weights and indexes are the core's; code files are never
copied, since the output would then run somebody's program.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rlmerge.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["COPIED", "Sidecar", "collect_sidecars"]

Sidecar = tuple[str, bytes | str]
"""A file name in the output, with its contents (bytes) or the path of a file to copy (str)."""

COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
)
_TORCH_NAMES = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


def collect_sidecars(donor: Path, *, dtype: str | None, tie: bool | None) -> tuple[list[Sidecar], list[str]]:
    """Collect what a folder output takes over from its donor.

    Parameters
    ----------
    donor
        The folder that gives them; a single file gives none.
    dtype
        The dtype the user asked for, as a safetensors name, or None for the inputs' own.
    tie
        What ``tie_word_embeddings`` has to be for the tensors of the output, or None to keep the donor's.

    Returns
    -------
    tuple
        The sidecars, and notes for the user.
    """
    if not donor.is_dir():
        return [], []
    sidecars: list[Sidecar] = []
    notes: list[str] = []
    config = donor / "config.json"
    if config.is_file():
        sidecars.append(("config.json", _config(config, notes, dtype=dtype, tie=tie)))
    sidecars += [(name, str(donor / name)) for name in COPIED if (donor / name).is_file()]
    return sidecars, notes


def _config(path: Path, notes: list[str], *, dtype: str | None, tie: bool | None) -> bytes | str:
    """Return the donor's config: the file itself when nothing in it changes, which keeps it byte for byte."""
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        msg = f"{path}: not JSON: {error}"
        raise CheckpointError(msg, code="bad_config", path=path) from None
    if not isinstance(config, dict):
        msg = f"{path}: not a JSON object"
        raise CheckpointError(msg, code="bad_config", path=path)
    if config.get("auto_map"):
        notes.append(f"{path} names code files (`auto_map`); rlmerge copies no code, so transformers may not open this")
    before = json.dumps(config)
    if dtype is not None and not _set_dtype(config, _TORCH_NAMES[dtype]):
        config["torch_dtype"] = _TORCH_NAMES[dtype]
    if tie is not None:
        _set_tie(config, tie=tie)
    if json.dumps(config) == before:
        return str(path)
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def _set_dtype(config: dict[str, Any], word: str) -> bool:
    """Set the dtype wherever the config states one: multi-modal models state it once more for each part."""
    found = False
    for key, value in config.items():
        if key in ("dtype", "torch_dtype") and (value is None or isinstance(value, str)):
            config[key] = word
            found = True
        elif isinstance(value, dict) and key.endswith("_config") and key != "quantization_config":
            _set_dtype(value, word)
    return found


def _set_tie(config: dict[str, Any], *, tie: bool) -> None:
    key = "tie_word_embeddings"
    inner = config.get("text_config")
    if isinstance(inner, dict) and key in inner:
        inner[key] = tie
        if key not in config:
            return
    config[key] = tie
