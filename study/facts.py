"""All facts of a study in memory: what the analysis reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from study.schedule import methods_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from study.configuration import StudyConfig
    from study.stages import Places


def bits(text: str) -> np.ndarray:
    """Turn a string of 0 and 1 into numbers."""
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(float) - ord("0")


class Facts:
    """All facts of a study, by seed, arm and task; what is missing is missing.

    Seeds in ``without`` have only been begun, and are left out unless nothing else is there.
    """

    def __init__(self, config: StudyConfig, places: Places, without: Collection[int] = ()) -> None:
        self.config = config
        have = [s for s in config.seeds if places.read(f"base/s{s}") is not None]
        self.seeds = [s for s in have if s not in without] or have
        self.base = {s: places.read(f"base/s{s}") or {} for s in self.seeds}
        self.match = {s: places.read(f"match/s{s}") for s in self.seeds}
        self.expert: dict[tuple[int, str, str], dict[str, Any]] = {}
        self.curve: dict[tuple[int, str, str], dict[str, Any]] = {}
        self.merge: dict[tuple[int, str, str], dict[str, Any]] = {}
        self.conflict: dict[tuple[int, str], dict[str, Any]] = {}
        self.landscape: dict[tuple[int, str], dict[str, Any]] = {}
        for s in self.seeds:
            for arm in config.arms:
                for task in config.tasks:
                    self._take(self.expert, (s, arm, task), places.read(f"expert/s{s}/{arm}/{task}"))
                    self._take(self.curve, (s, arm, task), places.read(f"curve/s{s}/{arm}/{task}"))
                for comparison in config.merging.comparisons:
                    self._take(self.merge, (s, arm, comparison), self._merges(places, s, arm, comparison))
                self._take(self.conflict, (s, arm), places.read(f"conflict/s{s}/{arm}"))
                self._take(self.landscape, (s, arm), places.read(f"landscape/s{s}/{arm}"))

    def _merges(self, places: Places, seed: int, arm: str, comparison: str) -> dict[str, Any] | None:
        """Put the merges of all methods together: ``alone``, and ``merged``, ``parameters`` and ``sweep`` by method."""
        alone = places.read(f"alone/s{seed}/{arm}/{comparison}")
        if alone is None:
            return None
        read = {
            m: places.read(f"merge/s{seed}/{arm}/{comparison}/{m}") for m in methods_of(self.config, arm, comparison)
        }
        parts = ("merged", "parameters", "sweep")
        return {"alone": alone, **{part: {m: f[part] for m, f in read.items() if f is not None} for part in parts}}

    @staticmethod
    def _take(table: dict[Any, Any], key: Any, found: dict[str, Any] | None) -> None:
        if found is not None:
            table[key] = found

    def has(self, arm: str) -> bool:
        """Say whether an arm has experts of all tasks and seeds."""
        return all((s, arm, task) in self.curve for s in self.seeds for task in self.config.tasks)

    def arms(self) -> list[str]:
        """List the arms that are complete."""
        return [arm for arm in self.config.arms if self.has(arm)]
