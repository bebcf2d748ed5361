"""The tiny model: a Llama of under a million parameters over characters, as an ordinary Hugging Face folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from pathlib import Path

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
# Every character of the compact form of the tasks.
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789+-*^$()=/&|,:>"


class TinyShape(BaseModel):
    """Size of the model; the defaults make 0.8 M parameters."""

    model_config = ConfigDict(extra="forbid")

    hidden: int = Field(default=128, ge=8)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    intermediate: int = Field(default=352, ge=8)
    context: int = Field(default=96, ge=16)


def make_tokenizer() -> Any:
    """Make the character tokenizer: one token a character, BOS in front, nothing lost in decoding."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: at for at, token in enumerate([PAD, BOS, EOS, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=PAD,
        padding_side="left",
        model_max_length=512,
    )


def make_model(shape: TinyShape, seed: int) -> Any:
    """Make a Llama with random weights; the same seed gives the same weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(CHARACTERS) + 3,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def save_folder(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a complete Hugging Face folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
