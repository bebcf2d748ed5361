"""Where models come from: paths, hub ids, and which of them is the base."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlmerge import _core
from rlmerge.errors import CheckpointError, RecipeError, RlmergeError, model_not_found

__all__ = ["BaseChoice", "Source", "choose_base", "is_adapter", "is_folder", "named_base", "resolve", "resolve_model"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[\w./-]+)?")
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt", "README.md"]
_CARD_BYTES = 64 * 1024
_CONFIG_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model is: its path, and the path of an adapter that changes it."""

    path: str
    adapter: str | None = None

    @property
    def name(self) -> str:
        """The model as the core names it."""
        return self.path if self.adapter is None else f"{self.path}+{self.adapter}"


def resolve_model(model: str) -> Source:
    """Return where a model is, with its adapter when it is written ``BASE+ADAPTER``.

    Parameters
    ----------
    model
        A path or hub id, or two of them joined by ``+``. A path that exists is taken as it stands.

    Returns
    -------
    Source
        Local paths; what does not exist is returned as it is, for the core to report.

    Raises
    ------
    CheckpointError
        The hub does not have a part of it, or the ``hub`` extra is not installed.
    """
    if "+" not in model or "\0" in model or os.path.lexists(model):
        return Source(resolve(model))
    splits = [(model[:at], model[at + 1 :]) for at, sign in enumerate(model) if sign == "+"]
    there = [(base, adapter) for base, adapter in splits if _is_there(base) and _is_there(adapter)]
    base, adapter = (there or splits)[0]
    check_paths([base, adapter])
    return Source(resolve(base), resolve(adapter))


def _is_there(part: str) -> bool:
    return bool(part) and (os.path.lexists(part) or _HUB_ID.fullmatch(part) is not None)


def resolve(model: str) -> str:
    """Return the local path of a model, downloading it when it is a hub id.

    Parameters
    ----------
    model
        A path, or ``organisation/name`` with an optional ``@revision`` when no such path exists.

    Returns
    -------
    str
        A path; one that does not exist is returned as it is, for the core to report.

    Raises
    ------
    CheckpointError
        The hub does not have it, or the ``hub`` extra is not installed.
    """
    try:
        model.encode()
    except UnicodeEncodeError:
        msg = f"{model!a}: not a UTF-8 name"
        raise RecipeError(msg, hint="rename it, or merge through a symbolic link") from None
    if "\0" in model or os.path.lexists(model) or not _HUB_ID.fullmatch(model):
        return model
    return _download(model)


def _download(model: str) -> str:
    name, _, revision = model.partition("@")
    missing = f"{model}: no such file or folder"
    try:
        import huggingface_hub
    except ImportError:
        hint = "check the path; to take a model from the hub, `pip install 'rlmerge[hub]'`"
        raise model_not_found(missing, model, hint) from None
    try:
        return str(huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=_HUB_FILES))
    # Whatever goes wrong there (network, credentials, names, disk) is about this model and no bug of ours.
    except Exception as error:
        first = str(error).strip().splitlines()
        reason = first[0] if first else type(error).__name__
        msg = f"{missing}, and the hub did not give it: {reason}"
        hint = "check the name and the network; a gated model needs `hf auth login`"
        raise model_not_found(msg, model, hint) from error


def is_folder(model: str) -> bool:
    """Tell whether a model is a folder; what does not exist is none."""
    return "\0" not in model and Path(model).is_dir()


def is_adapter(model: str) -> bool:
    """Tell whether a model is a folder with an adapter and without weights of its own."""
    path = Path(model)
    if "\0" in model or not path.is_dir():
        return False
    return (path / "adapter_config.json").is_file() and not _has_weights(path)


def named_base(model: str) -> str | None:
    """Return the path of the base that a model's own metadata name, when it is at hand."""
    return _named_base(Path(model))


@dataclass(frozen=True, slots=True)
class BaseChoice:
    """The base that the rule chose, the indices of the models left as experts, and the line that says so."""

    base: Source
    experts: list[int]
    note: str


def choose_base(models: list[Source]) -> BaseChoice:
    """Choose the base of models for which none was given.

    Where adapters are given with the one model that they change, that is the base. Otherwise the base that the models'
    own metadata name is taken when it is at hand as a path and all others agree on it; it may be one of the models.
    Otherwise the first model is the base.

    Parameters
    ----------
    models
        The models, in the user's order.

    Returns
    -------
    BaseChoice
        The base, the experts in order, and a line to print.
    """
    changed = {os.path.realpath(model.path): model.path for model in models if model.adapter is not None}
    named = [None if model.adapter is not None else _named_base(Path(model.path)) for model in models]
    found = changed or {os.path.realpath(base): base for base in named if base is not None}
    if len(found) == 1:
        ((identity, base),) = found.items()
        experts = [at for at, m in enumerate(models) if m.adapter is not None or os.path.realpath(m.path) != identity]
        if changed or (experts and all(named[at] is not None for at in experts)):
            why = "what the adapters change" if changed else "named in the models' own metadata"
            return BaseChoice(Source(base), experts, f"base: {base} ({why}; --base chooses another)")
    note = f"base: {models[0].name} (the first model; --base chooses another)"
    return BaseChoice(models[0], list(range(1, len(models))), note)


def _named_base(model: Path) -> str | None:
    """Return the path of the base that this model names, when it is at hand and is another model."""
    try:
        names = _names_in_folder(model) if model.is_dir() else []
        metadata = json.loads(_core.inspect(str(model))).get("metadata") or {}
        names.append(metadata.get("base_model"))
    except (RlmergeError, OSError, ValueError):
        return None  # a damaged model is reported by the plan, with its reason
    for name in names:
        path = _at_hand(name, model)
        if path is not None:
            return path
    return None


def _names_in_folder(model: Path) -> list[object]:
    names: list[object] = []
    for file, key in (("config.json", "_name_or_path"), ("adapter_config.json", "base_model_name_or_path")):
        config = model / file
        if config.is_file() and config.stat().st_size <= _CONFIG_BYTES:
            try:
                names.append(json.loads(config.read_bytes()).get(key))
            except (ValueError, AttributeError, RecursionError):
                pass
    names.append(_base_in_card(model / "README.md"))
    return names


def _base_in_card(card: Path) -> object:
    """Return ``base_model`` of a model card's front matter."""
    if not card.is_file():
        return None
    with card.open("rb") as file:
        head = file.read(_CARD_BYTES)
    match = re.match(rb"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", head, re.DOTALL)
    if match is None or b"base_model" not in match[1]:
        return None
    from rlmerge._yaml import read_yaml

    try:
        front, _ = read_yaml(match[1], str(card))
    except RecipeError:
        return None
    named: Any = front.get("base_model") if isinstance(front, dict) else None
    if isinstance(named, list):
        return named[0] if len(named) == 1 else None
    return named


def _at_hand(name: object, model: Path) -> str | None:
    if not isinstance(name, str) or not 0 < len(name) <= 1024 or "\0" in name or name.strip("./") == "":
        return None
    beside = model.parent
    for path in (Path(name), beside / name, beside / Path(name).name):
        # A folder without weights may share the name of a base; it is not one.
        holds = path.is_file() if path.suffix == ".safetensors" else _has_weights(path)
        if holds and os.path.realpath(path) != os.path.realpath(model):
            return str(path)
    return None


def _has_weights(path: Path) -> bool:
    if not path.is_dir():
        return False
    return (path / "model.safetensors").is_file() or (path / "model.safetensors.index.json").is_file()


def check_paths(paths: list[str]) -> None:
    """Refuse empty names, which a shell makes of an unset variable."""
    if any(not path for path in paths):
        msg = "a model with an empty name"
        raise CheckpointError(msg, code="model_not_found", hint="an unset shell variable?")
