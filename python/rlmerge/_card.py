"""The model card of a merged folder: what it is, what it was made of, and how to make it again.

It holds no clock and no machine, so that the same merge writes the same card.
"""

from __future__ import annotations

import io
import re
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

if TYPE_CHECKING:
    from rlmerge._methods import Method

__all__ = ["model_card"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def model_card(
    *,
    method: Method,
    version: str,
    recipe: dict[str, Any],
    models: list[tuple[str, str]],
    has_config: bool,
    tasks: list[str] | None = None,
) -> str:
    """Write the text of a ``README.md`` for a merged folder.

    Parameters
    ----------
    method
        The method used.
    version
        The version of rlmerge.
    recipe
        The recipe as the user could write it, with all values that were used.
    models
        ``(role, name)`` of each input.
    has_config
        Whether the folder has a ``config.json``, so that transformers opens it.
    tasks
        Tasks whose models can be rebuilt from the folder's masks.
    """
    front: dict[str, Any] = {"base_model": [_hub_name(name) for _, name in models], "tags": ["merge", "rlmerge"]}
    if has_config:
        front["library_name"] = "transformers"
    recipe_text = _yaml(recipe)
    # A fence longer than any run of backticks inside cannot be closed from inside.
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", recipe_text) or [""]))
    paper = f" ([{method.paper_title}]({method.paper_url}))" if method.paper_url else ""
    plural = "" if len(models) == 1 else "s"
    lines = [
        "---",
        _yaml(front) + "---",
        "",
        f"# {method.title}: {len(models)} checkpoint{plural}",
        "",
        f"Merged with the method `{method.name}`{paper} by rlmerge {version}.",
        "",
        "## Models",
        "",
        *(f"- {role}: {_code(name)}" for role, name in models),
        "",
        *(_tasks(tasks) if tasks else []),
        "## Recipe",
        "",
        f"{fence}yaml",
        recipe_text + fence,
        "",
        "## How to make it again",
        "",
        "Save the recipe as `recipe.yaml`, with the models at the paths it names, and run",
        "",
        "```sh",
        f"pip install rlmerge=={version}",
        "rlmerge merge recipe.yaml -o merged",
        "```",
        "",
        "The weights come out bit for bit the same. `rlmerge.json` holds the resolved plan, the identities of the",
        "inputs and a checksum of every tensor.",
        "",
    ]
    return "\n".join(lines)


def _tasks(tasks: list[str]) -> list[str]:
    return [
        "## Tasks",
        "",
        "`rlmerge.masks` holds a mask for each task; with the base, `rlmerge expand FOLDER --task NAME -o OUTPUT`",
        "rebuilds the model of one of these:",
        "",
        *(f"- {_code(task)}" for task in tasks),
        "",
    ]


def _yaml(data: dict[str, Any]) -> str:
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.width = 4096
    writer.allow_unicode = False  # escapes keep hostile names from hiding in the text
    text = io.StringIO()
    writer.dump(data, text)
    return text.getvalue()


def _hub_name(name: str) -> str:
    """Return a hub id as it is, and the last part of a path."""
    if _HUB_ID.fullmatch(name) and not Path(name).exists():
        return name
    return PurePath(name).name or name


def _code(text: str) -> str:
    shown = "".join(c if c.isprintable() else "?" for c in text)
    fence = "`" * max(1, *(len(run) + 1 for run in re.findall("`+", shown) or [""]))
    pad = " " if "`" in shown else ""
    return f"{fence}{pad}{shown}{pad}{fence}"
