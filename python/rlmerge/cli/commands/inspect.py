"""``rlmerge inspect``: what a model holds, from its headers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlmerge import api
from rlmerge.cli._errors import reported
from rlmerge.cli._output import Output, columns, count, size

if TYPE_CHECKING:
    from rlmerge import Inspection

__all__ = ["EXAMPLES", "inspect"]

EXAMPLES = "Examples:\n\nrlmerge inspect model.safetensors\n\nrlmerge inspect folder --json | jq .dtypes"


def inspect(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A .safetensors file, a Hugging Face folder, an adapter or a hub id.")
    ],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print tensor names only.")] = False,
) -> None:
    """Show tensors, dtypes, sizes, shards and warnings of a model; reads headers only."""
    out = Output(json=json, quiet=quiet)
    with reported(out):
        found = api.inspect(model)
        for warning in found.warnings:
            out.warning(warning)
        out.result(
            human=lambda: _page(found, out), quiet=lambda: [t.name for t in found.tensors], value=found.to_dict()
        )


def _page(found: Inspection, out: Output) -> list[str]:
    facts = [
        ("model", f"{found.path} ({found.kind})"),
        ("parameters", f"{found.parameters:,}"),
        ("size", f"{size(found.bytes)} in {count(len(found.tensors), 'tensor')}"),
    ]
    config = found.config or {}
    if config.get("architecture"):
        facts.append(("architecture", str(config["architecture"])))
    if config.get("tie_word_embeddings") is not None:
        facts.append(("tied embeddings", "yes" if config["tie_word_embeddings"] else "no"))
    facts += _adapter(found.adapter) if found.adapter else []
    facts += [(f"metadata {key}", value) for key, value in sorted((found.metadata or {}).items())]
    kinds = [("DTYPE", "TENSORS", "PARAMETERS", "SIZE")]
    kinds += [
        (name, f"{row['tensors']:,}", f"{row['parameters']:,}", size(row["bytes"]))
        for name, row in sorted(found.dtypes.items())
    ]
    shards = [("SIZE", "SHARD")] + [(size(shard["bytes"]), str(shard["path"])) for shard in found.shards]
    tensors = [("DTYPE", "SHAPE", "SIZE", "TENSOR")]
    tensors += [
        (t.dtype, " x ".join(f"{n:,}" for n in t.shape) or "scalar", size(t.bytes), t.name) for t in found.tensors
    ]
    return [
        *columns(facts, "<<"),
        "",
        *columns(kinds, "<>>>"),
        "",
        *columns(shards, "><"),
        "",
        *columns(tensors, "<>><"),
    ]


def _adapter(adapter: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what an adapter's configuration says, one fact a line."""
    kind = "DoRA" if adapter["dora"] else adapter["peft_type"]
    facts = [("adapter", f"{kind}, rank {adapter['rank']}, alpha {adapter['alpha']:g}")]
    if adapter["scale"] is not None:
        root = " (rank-stabilised)" if adapter["rank_stabilised"] else ""
        facts.append(("scale of B·A", f"{adapter['scale']:g}{root}"))
    if adapter["base_model"]:
        facts.append(("base model", str(adapter["base_model"])))
    for key, label in (("target_modules", "targets"), ("modules_to_save", "stored whole")):
        value = adapter[key]
        if value:
            facts.append((label, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    for key in ("rank_pattern", "alpha_pattern"):
        if adapter[key]:
            facts.append((key.replace("_", " "), ", ".join(f"{k}: {v}" for k, v in adapter[key].items())))
    return facts
