"""Print what `spine.py` measured, each number beside what it must be."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from measure import Measurement

RSS_LIMIT_MB = 256
RSS_GROWTH_LIMIT = 1.10
WARM_MB = 100  # program files may come from the disk; model files may not


def verdict(good: bool) -> str:
    return "ok" if good else "MISSED"


def medians(runs: Sequence[Measurement]) -> dict[str, float]:
    """What a record says of the runs of one command."""
    return {
        "wall_s": round(median(m.wall_s for m in runs), 3),
        "cpu_s": round(median(m.cpu_s for m in runs), 3),
        "peak_rss_mb": max(m.peak_rss_mb for m in runs),
    }


def summary(result: dict[str, Any]) -> str:
    lines = [*merges(result["methods"]), page_cache(result["methods"])]
    if result.get("ways"):
        lines += ["", *ways(result["methods"], result["ways"])]
    if "mergekit" in result:
        lines += ["", *mergekit(result["mergekit"])]
    return "\n".join(lines)


def merges(methods: dict[str, Any]) -> list[str]:
    head = (
        ("inputs", 6),
        ("wall s", 7),
        ("floor s", 7),
        ("ratio", 6),
        ("limit", 5),
        ("", 7),
        ("cpu s", 6),
        ("RSS MB", 6),
    )
    lines = [" ".join([" " * 16, *(f"{word:>{width}}" for word, width in head)])]
    for name, r in methods.items():
        lines.append(
            f"{name:16} {r['inputs']:6} {r['wall_s']:7.2f} {r['floor_s']:7.2f} {r['ratio']:6.2f} {r['limit']:5.1f} "
            f"{verdict(r['ratio'] <= r['limit']):7} {r['cpu_s']:6.2f} {r['peak_rss_mb']:6.0f} "
            f"{verdict(r['peak_rss_mb'] <= RSS_LIMIT_MB)}"
        )
        other = r["ratio_to_floor_of_three"]
        if r["inputs"] != 3 and other is not None:
            lines.append(f"{'':16} {3:6} {'':15} {other:6.2f}       against the floor of all three models")
    return lines


def ways(methods: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """The same merges in other ways: wall time and processor time, beside the default."""
    lines = [f"{'wall s / cpu s':16} " + " ".join(f"{word:>15}" for word in ("default", *found))]
    for name, default in methods.items():
        cells = [
            f"{r['wall_s']:7.2f} /{r['cpu_s']:6.2f}" for r in (default, *(w["methods"][name] for w in found.values()))
        ]
        lines.append(f"{name:16} " + " ".join(f"{cell:>15}" for cell in cells))
    return lines


def page_cache(methods: dict[str, Any]) -> str:
    reads = [run["disk_reads_mb"] for r in methods.values() for run in (*r["runs"], *r["floor_runs"])]
    state = "warm" if max(reads) < WARM_MB else "NOT ALWAYS WARM"
    return f"page cache {state}: median run read {median(reads):.0f} MB from the disk, {max(reads):.0f} MB at most"


def mergekit(methods: dict[str, Any]) -> list[str]:
    lines = []
    for name, r in methods.items():
        line = (
            f"mergekit {name:16} {r['best_wall_s']:7.1f} s {r['peak_rss_mb']:6.0f} MB {r['times_slower']:6.1f} x slower"
        )
        unsynced = r["times_slower_unsynced"]
        if unsynced is not None:
            line += f", {unsynced:.1f} x without syncing, as it does"
        if r["required"]:
            best = r["times_slower"] if unsynced is None else unsynced
            line += f", at least {r['required']} wanted: {verdict(best >= r['required'])}"
        lines.append(line)
    return lines


def memory(methods: dict[str, Any]) -> list[str]:
    lines = ["peak memory from a cold page cache, and of a model four times as large:"]
    for name, r in methods.items():
        small, large = r["small"]["peak_rss_mb"], r["large"]["peak_rss_mb"]
        good = r["growth"] <= RSS_GROWTH_LIMIT and max(small, large) <= RSS_LIMIT_MB
        lines.append(f"{name:16} {small:6.0f} MB {large:6.0f} MB {r['growth']:6.2f} {verdict(good)}")
    return lines
