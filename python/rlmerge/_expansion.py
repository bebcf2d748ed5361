"""One task's model out of a merged folder with masks: the request to the core, and the other files of the output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlmerge import _core
from rlmerge.errors import RecipeError
from rlmerge.report import Plan, PlannedModel, Report
from rlmerge.sidecars import Sidecar, collect_sidecars
from rlmerge.sources import check_paths, resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlmerge.report import Progress

__all__ = ["plan_expansion"]


def plan_expansion(
    merged: str,
    task: str,
    *,
    output: str | None,
    base: str | None,
    shard_size: int,
    threads: int | None,
    io: str,
    durability: str,
    force: bool,
) -> Plan:
    """Plan to rebuild a task's model; the arguments are those of ``rlmerge.expand``, checked."""
    check_paths([merged, *([base] if base is not None else [])])
    output = output or f"{Path(merged).name}-{task}"
    request = {
        "merged": merged,
        "task": task,
        "base": resolve(base) if base is not None else None,
        "output": output,
        "output_kind": "file" if output.endswith(".safetensors") else "folder",
        "shard_size": shard_size,
        "threads": threads,
        "io": io,
        "durability": durability,
        "force": force,
    }
    core = _core.prepare_expand(json.dumps(request))
    raw: dict[str, Any] = json.loads(core.to_json())
    sidecars: list[Sidecar] = []
    notes: list[str] = []
    if raw["output"]["kind"] == "folder":
        sidecars, notes = collect_sidecars(Path(merged), dtype=None, tie=raw["output"]["tie_word_embeddings"])
        sidecars.append(("README.md", _card(merged, task, raw["version"])))
    notes += raw["notes"]

    def run(progress: Callable[[Progress], None] | None, conflicts: bool) -> Report:  # noqa: FBT001
        if conflicts:
            msg = "a model that is rebuilt from a mask has no experts to report on"
            raise RecipeError(msg, hint="`rlmerge conflict-report` reads the experts themselves")
        report = json.loads(core.run(sidecars, progress))
        report["plan"]["notes"] = list(notes)
        return Report(
            output=Path(output),
            elapsed_seconds=report["elapsed_seconds"],
            bytes_read=report["bytes_read"],
            bytes_written=report["bytes_written"],
            totals=report["totals"],
            notes=tuple(notes),
            warnings=tuple(report["warnings"]),
            raw=report,
        )

    return Plan(
        method=raw["method"],
        compat=raw["compat"],
        seed=raw["seed"],
        dtype=raw["dtype"],
        threads=raw["threads"],
        parameters=raw["parameters"],
        base=raw["base"],
        models=tuple(
            PlannedModel(Path(m["path"]), m["role"], m["kind"], m["tensors"], m["bytes"], m["parameters"])
            for m in raw["models"]
        ),
        output=Path(output),
        output_kind=raw["output"]["kind"],
        bytes_to_read=raw["bytes_to_read"],
        bytes_to_write=raw["bytes_to_write"],
        memory_bound_bytes=raw["memory_bound_bytes"],
        defaults={},
        notes=tuple(notes),
        warnings=tuple(raw["warnings"]),
        raw=raw,
        checker=core.check,
        runner=run,
        canceller=core.cancel,
    )


def _card(merged: str, task: str, version: str) -> bytes:
    """Return the text of a ``README.md``; names are shown without what acts on a terminal or closes the quotes."""
    shown = ["".join(c if c.isprintable() and c != "`" else "?" for c in text) for text in (task, Path(merged).name)]
    lines = [
        "---",
        "tags: [merge, rlmerge]",
        "---",
        "",
        f"# Task `{shown[0]}` of `{shown[1]}`",
        "",
        f"Rebuilt by rlmerge {version} from a merged model, its base and the task's mask. `rlmerge.json` holds the",
        "plan, the identities of the inputs and a checksum of every tensor.",
        "",
    ]
    return "\n".join(lines).encode()
