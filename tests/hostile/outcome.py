"""What rlmerge and the reference implementation make of a case."""

import time
from dataclasses import dataclass
from pathlib import Path

import safetensors

import rlmerge
from tests.hostile.corpus import Case


@dataclass(frozen=True)
class Outcome:
    """The answer to one case: `message` is empty for what opens, and holds no path of the machine."""

    case: Case
    code: str | None
    exit_code: int
    message: str
    hint: str | None
    names_file: bool
    names_tensor: bool | None
    warnings: tuple[str, ...]
    seconds: float
    reference: bool | None


def escaped(name: str) -> str:
    """A name's beginning as messages show it: what could reach a terminal is spelt out."""
    hidden = {*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF}
    short = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}

    def shown(c: str) -> str:
        odd = ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or ord(c) in hidden
        return short.get(c, f"\\u{{{ord(c):x}}}") if odd else c

    return "".join(map(shown, name))[:200]


def reference_opens(path: Path) -> bool:
    """Whether the reference implementation takes the bytes of a file."""
    try:
        safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError:
        return False
    return True


def outcome(case: Case, root: Path) -> Outcome:
    """Builds a case below `root` and opens it."""
    path = case.build(root)
    reference = reference_opens(path) if case.reference is not None else None
    started = time.perf_counter()
    try:
        seen = rlmerge.inspect(path)
    except rlmerge.RlmergeError as error:
        seconds = time.perf_counter() - started
        file = case.file or path.name
        message = str(error).replace(f"{root}/", "")
        tensor = None
        if case.tensor is not None:
            tensor = error.tensor == case.tensor and f"`{escaped(case.tensor)}" in message
        named = file in message and error.path is not None and error.path.name == file
        code, hint = error.code, error.hint
        return Outcome(case, code, error.exit_code, message, hint, named, tensor, (), seconds, reference)
    seconds = time.perf_counter() - started
    return Outcome(case, None, 0, "", None, True, None, tuple(seen.warnings), seconds, reference)
