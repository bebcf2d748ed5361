"""Many merges in one process: memory, descriptors and threads must stay as they are.

    python -m tests.faults.soak --merges 500

Prints a table; exits with 1 when memory grows by a kilobyte a merge or more, or a descriptor or thread stays behind.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

import rlmerge
from tests.faults.merges import remove, write_models

METHODS = ("ties", "task_arithmetic", "dare_ties")
#: Merges after which the allocator has what it needs; without them 2000 merges took 1.5 MB, most of it at first.
WARM = 300


def resident() -> int:
    """Bytes of this process in memory that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def count(kind: str) -> int:
    """Descriptors (`fd`) or threads (`task`) of this process."""
    return len(list(Path(f"/proc/self/{kind}").iterdir()))


def soak(root: Path, merges: int, megabytes: float) -> dict:
    """Merges so often, every tenth time with an error, and gives what grew."""
    write_models(root, megabytes, tensors=12)
    models = [root / "a", root / "b"]
    memory, descriptors, threads = [], [], []
    for at in range(WARM + merges):
        output = root / "out"
        method = METHODS[at % len(METHODS)]
        rlmerge.merge(models, base=root / "base", method=method, output=output, durability="none", threads=2)
        if at % 10 == 9:
            # A failure must leave as little behind as a success: this output exists.
            try:
                rlmerge.merge(models, base=root / "base", method=method, output=output)
            except rlmerge.OutputError:
                pass
        if not rlmerge.verify(output).ok:
            msg = f"merge {at} is not what it says"
            raise RuntimeError(msg)
        remove(output)
        if at >= WARM:
            memory.append(resident())
            descriptors.append(count("fd"))
            threads.append(count("task"))
    slope = np.polyfit(np.arange(merges), memory, 1)[0]
    return {
        "merges": merges,
        "bytes_each": float(slope),
        "memory": (memory[0], memory[-1], max(memory)),
        "descriptors": _between(descriptors),
        "threads": _between(threads),
    }


def _between(values: list[int]) -> list[int]:
    """How far below and above the first the others are."""
    return [min(values) - values[0], max(values) - values[0]]


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--merges", type=int, default=500)
    parser.add_argument("--megabytes", type=float, default=4, help="size of each of the three models")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rlmerge-soak-") as folder:
        found = soak(Path(folder), given.merges, given.megabytes)
    first, last, most = (f"{value / 1e6:.1f} MB" for value in found["memory"])
    print("| what | |\n| --- | --- |")
    print(f"| merges, each verified; every tenth followed by one that is refused | {found['merges']} |")
    print(f"| anonymous memory after the first, after the last, at most | {first}, {last}, {most} |")
    print(f"| growth by a merge (least squares) | {found['bytes_each']:.0f} bytes |")
    print(f"| descriptors more or fewer than at first | {found['descriptors']} |")
    print(f"| threads more or fewer than at first | {found['threads']} |")
    return int(found["bytes_each"] >= 1024 or any(found["descriptors"] + found["threads"]))


if __name__ == "__main__":
    sys.exit(main())
