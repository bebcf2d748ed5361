"""
The compiled core of rlmerge. Use the functions of the package `rlmerge` instead.
"""

from _typeshed import SupportsGetItem
from os import PathLike
from typing import Any, SupportsIndex, final

__all__ = ["Plan", "build_info", "clean", "conflicts", "diagnostics", "errors", "inspect", "methods", "prepare", "prepare_expand", "verify", "version"]

@final
class Plan:
    """
    An immutable plan with the checkpoints that it was made from.
    """
    def cancel(self, /) -> None:
        """
        Stops the runs of this plan that are at work, from any thread.
        """
    def check(self, /) -> None:
        """
        Checks the output's place without writing anything.
        """
    def run(self, /, sidecars: SupportsGetItem[int, tuple[str, Any]], progress: Any | None = None, conflicts: str | None = None) -> str:
        """
        Runs the plan and returns the report as JSON; with settings (JSON) for one, also the conflict report, as its
        key `conflicts`.
        """
    def to_json(self, /) -> str:
        """
        The plan as JSON.
        """

def build_info() -> str:
    """
    Version, SIMD level, build profile and target, as JSON.
    """

def clean(path: str | PathLike[str], dry_run: bool = False) -> str:
    """
    Removes the stages of killed runs in a folder, and those of an output; returns them as JSON.
    """

def conflicts(request_json: str, settings_json: str, progress: Any | None = None) -> str:
    """
    Gathers a conflict report: a request (JSON) says what to read, settings (JSON) what counts as a change. Returns
    the report as JSON.
    """

def diagnostics() -> str:
    """
    The closed list of what `verify` can find, as JSON.
    """

def errors() -> str:
    """
    The closed list of error codes with an example of each, as JSON.
    """

def inspect(path: str | PathLike[str]) -> str:
    """
    What is in a model, as JSON.
    """

def methods() -> str:
    """
    The table of methods, as JSON.
    """

def prepare(recipe_json: str) -> Plan:
    """
    Plans the merge that a recipe (JSON) asks for, from headers alone.
    """

def prepare_expand(request_json: str) -> Plan:
    """
    Plans what a request (JSON) asks to be rebuilt from a merged folder, its masks and its base.
    """

def verify(path: str | PathLike[str], manifest: str | PathLike[str] | None = None, threads: SupportsIndex | None = None, progress: Any | None = None) -> str:
    """
    Reads an output back against the report in its folder, or against the one in the file `manifest`. Returns what was
    found as JSON.
    """

def version() -> str:
    """
    Version of rlmerge.
    """
