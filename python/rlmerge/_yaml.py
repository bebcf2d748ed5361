"""A strict reader of small YAML files, with a line number for every key.

Recipes are written by hand and copied from model cards, so the reader accepts plain data only: no tags, no duplicate
keys, one document, bounded size, depth and number of values. Aliases are followed, and what they expand to counts.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    NodeEvent,
)
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from rlmerge.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_BYTES", "Lines", "read_yaml"]

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_VALUES = 20_000

_TAG = "tag:yaml.org,2002:"

Lines = dict[tuple[str | int, ...], int]
"""Line (from 1) of each key and list item, by its path from the root."""


def read_yaml(text: bytes, name: str) -> tuple[Any, Lines]:
    """Read one YAML document.

    Parameters
    ----------
    text
        The bytes of the file.
    name
        How to call it in messages.

    Returns
    -------
    tuple
        Plain data, and the line of each key.

    Raises
    ------
    RecipeError
        It is not YAML, or uses more of YAML than plain data.
    """
    if len(text) > MAX_BYTES:
        msg = f"{name}: {len(text)} bytes; a recipe has at most {MAX_BYTES}"
        raise RecipeError(msg, path=name)
    try:
        source = text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text[: error.start].count(b"\n") + 1
        msg = f"{name}:{line}: not UTF-8 text"
        raise RecipeError(msg, path=name) from None
    try:
        _check_events(source, name)
        root = _plain().compose(io.StringIO(source))
        return _Builder(name).build(root)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark is not None else name
        what = error.problem or error.context or "not YAML"
        msg = f"{where}: {what}"
        raise RecipeError(msg, path=name) from None
    except YAMLError as error:
        first = str(error).strip().splitlines()
        msg = f"{name}: {first[0] if first else 'not YAML'}"
        raise RecipeError(msg, path=name) from None


def _plain() -> YAML:
    return YAML(typ="safe", pure=True)


def _check_events(source: str, name: str) -> None:
    """Refuse tags, further documents and deep nesting before anything recursive sees the file."""
    depth = documents = 0
    for event in _plain().parse(io.StringIO(source)):
        line = event.start_mark.line + 1
        if isinstance(event, DocumentStartEvent):
            documents += 1
            if documents > 1:
                msg = f"{name}:{line}: a second document; a recipe is one"
                raise RecipeError(msg, path=name)
        elif isinstance(event, CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                msg = f"{name}:{line}: nested deeper than {MAX_DEPTH} levels"
                raise RecipeError(msg, path=name)
        elif isinstance(event, CollectionEndEvent):
            depth -= 1
        tag = getattr(event, "tag", None)
        if isinstance(event, NodeEvent) and tag is not None:
            msg = f"{name}:{line}: a tag (`{tag}`); a recipe holds plain values only"
            raise RecipeError(msg, path=name)


class _Builder:
    """Turns a node graph into plain data, counting what aliases expand to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.left = MAX_VALUES
        self.lines: Lines = {}
        convert = _plain().constructor
        self.scalars: dict[str | None, Callable[[Node], Any]] = {
            _TAG + "int": convert.construct_yaml_int,
            _TAG + "float": convert.construct_yaml_float,
            _TAG + "bool": convert.construct_yaml_bool,
            _TAG + "null": lambda _: None,
        }

    def build(self, root: Node | None) -> tuple[Any, Lines]:
        data = None if root is None else self._value(root, (), 0)
        return data, self.lines

    def _fail(self, node: Node, message: str) -> RecipeError:
        return RecipeError(f"{self.name}:{node.start_mark.line + 1}: {message}", path=self.name)

    def _value(self, node: Node, path: tuple[str | int, ...], depth: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise self._fail(node, f"more than {MAX_VALUES} values, aliases expanded")
        if depth > MAX_DEPTH:
            raise self._fail(node, f"nested deeper than {MAX_DEPTH} levels")
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, SequenceNode):
            return [self._value(item, (*path, at), depth + 1) for at, item in enumerate(node.value)]
        convert = self.scalars.get(node.tag)
        if convert is None:
            return str(node.value)
        try:
            return convert(node)
        except (ValueError, OverflowError):
            raise self._fail(node, f"not a number: {str(node.value)[:40]}") from None

    def _mapping(self, node: MappingNode, path: tuple[str | int, ...], depth: int) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise self._fail(key_node, "a key that is not a word")
            key = str(key_node.value)
            if key in data:
                first = self.lines[(*path, key)]
                raise self._fail(key_node, f"key `{key}` is given twice (first on line {first})")
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            data[key] = self._value(value_node, (*path, key), depth + 1)
        return data
