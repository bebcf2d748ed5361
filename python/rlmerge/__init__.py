"""Merge fine-tuned LLM checkpoints at the speed of the disk.

The public names are below; everything else may change. They are loaded when first used, so that ``import rlmerge``
costs next to nothing and so that Ctrl-C during start-up of the command line finds a handler in place.

Examples
--------
>>> import rlmerge
>>> [method.name for method in rlmerge.methods()][:2]
['linear', 'passthrough']
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlmerge._conflicts import ConflictReport, conflicts
    from rlmerge._methods import Method, Parameter
    from rlmerge.api import clean, expand, inspect, merge, methods, plan, verify
    from rlmerge.errors import (
        AlignmentError,
        CheckpointError,
        InternalError,
        NumericsError,
        OutputError,
        RecipeError,
        RlmergeError,
    )
    from rlmerge.report import Finding, Inspection, Plan, Progress, Report, Stage, Verification

    __version__: str

__all__ = [
    "AlignmentError",
    "CheckpointError",
    "ConflictReport",
    "Finding",
    "Inspection",
    "InternalError",
    "Method",
    "NumericsError",
    "OutputError",
    "Parameter",
    "Plan",
    "Progress",
    "RecipeError",
    "Report",
    "RlmergeError",
    "Stage",
    "Verification",
    "__version__",
    "clean",
    "conflicts",
    "expand",
    "inspect",
    "merge",
    "methods",
    "plan",
    "verify",
]

_HOME = {
    "rlmerge._conflicts": ("ConflictReport", "conflicts"),
    "rlmerge._methods": ("Method", "Parameter"),
    "rlmerge.api": ("clean", "expand", "inspect", "merge", "methods", "plan", "verify"),
    "rlmerge.errors": (
        "AlignmentError",
        "CheckpointError",
        "InternalError",
        "NumericsError",
        "OutputError",
        "RecipeError",
        "RlmergeError",
    ),
    "rlmerge.report": ("Finding", "Inspection", "Plan", "Progress", "Report", "Stage", "Verification"),
}


def __getattr__(name: str) -> object:
    """Load a public name at its first use (PEP 562)."""
    import importlib

    if name == "__version__":
        value: object = importlib.import_module("rlmerge._core").version()
    else:
        home = next((module for module, names in _HOME.items() if name in names), None)
        if home is None:
            msg = f"module 'rlmerge' has no attribute {name!r}"
            raise AttributeError(msg)
        value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(__all__)
