"""The Rust extension: headers in, plans out, merges run. All values cross as JSON."""

from collections.abc import Callable
from typing import final

__all__ = ["Plan", "build_info", "errors", "inspect", "methods", "prepare", "version"]

@final
class Plan:
    """A resolved merge: which tensors are read from where, computed how and written to which place."""

    def to_json(self) -> str:
        """Return the plan as JSON of schema ``rlmerge.plan/1``."""

    def check(self) -> None:
        """Check the place of the output without writing anything: whether it exists, is an input, has room."""

    def run(
        self,
        sidecars: list[tuple[str, bytes | str]],
        progress: Callable[[dict[str, int]], None] | None = None,
    ) -> str:
        """Do the merge and return the report as JSON of schema ``rlmerge.report/1``.

        ``sidecars`` are the other files of a folder output: a name with its contents (bytes) or with the path of a
        file to copy (str). ``progress`` is called about ten times a second on the calling thread; what it raises
        cancels the merge and comes out of this call.
        """

def version() -> str:
    """Return the version of rlmerge."""

def build_info() -> str:
    """Return version, SIMD level, build profile and target as JSON."""

def methods() -> str:
    """Return the table of merge methods as JSON."""

def errors() -> str:
    """Return the closed list of error codes, with exit codes and kinds, as JSON."""

def inspect(path: str) -> str:
    """Describe the model at ``path``, from its headers, as JSON of schema ``rlmerge.inspect/1``."""

def prepare(recipe_json: str) -> Plan:
    """Make a plan from a recipe; reads headers only and raises all that they and the recipe can tell."""
