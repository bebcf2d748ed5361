"""Whole merges of a generated trio against the floor of reading and writing, and against mergekit, in one run.

    spine.py                              the 1.1 B-parameter trio in a temporary folder, five rounds, two threads
    spine.py --mergekit .venv-torch       the same, and mergekit-yaml of that environment on the same files
    spine.py --memory                     only peak memory, on this model and on one four times as large
    spine.py --ways none                  besides the default, without syncing only (mmap, none, tmpfs: see WAYS)
    spine.py --size tiny --rounds 1       does it work at all
    spine.py --dir /dev/shm/b --out b     inputs in memory for good, outputs on the disk of ./b

The floor of a merge is `cat` of all its input shards to /dev/null, then `dd bs=8M conv=fsync` of both shards of one
input to the disk that gets the output. Each timed merge comes right after a timed floor, methods take turns
within a round, and before each run the last output is deleted, the disk synced and the inputs read once, so that
no run pays for another's dirty pages, the page cache is warm, and slow drift of the machine cancels. Every run is a
whole process, start-up included.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import command_line
import make_trio
import record
from answers import check, names
from measure import Measurement, floor_command, measure
from summary import medians, memory, summary

if TYPE_CHECKING:
    import argparse


@dataclass(frozen=True)
class Method:
    name: str
    limit: float  # wall time in floors
    slower: float | None  # how many times slower mergekit must be
    models: tuple[str, ...] = ("expert-1", "expert-2")
    base: str | None = "base"
    parameters: dict[str, float] = field(default_factory=dict)
    mergekit: str = ""  # name there, where it differs
    weighted: bool = True  # whether mergekit takes weights for it

    def inputs(self, trio: dict[str, Path]) -> list[Path]:
        return [trio[name] for name in (*([self.base] if self.base else []), *self.models)]

    def command(self, rlmerge: str, trio: dict[str, Path], out: Path, threads: int, options: list[str]) -> list[str]:
        command = [rlmerge, "merge", *(str(trio[name]) for name in self.models), "--method", self.name]
        command += ["--base", str(trio[self.base])] if self.base else []
        for name, value in self.parameters.items():
            command += [f"--{name}", str(value)]
        return [*command, "--threads", str(threads), *options, "--quiet", "-o", str(out)]

    def mergekit_recipe(self, trio: dict[str, Path]) -> dict[str, Any]:
        recipe: dict[str, Any] = {
            "merge_method": self.mergekit or self.name,
            "models": [{"model": str(trio[name])} for name in self.models],
            "parameters": {**({"weight": 1.0} if self.weighted else {}), **self.parameters},
            "dtype": "bfloat16",
        }
        if self.name == "slerp":
            recipe["base_model"] = str(trio[self.models[0]])
        elif self.base:
            recipe["base_model"] = str(trio[self.base])
        return recipe


METHODS = [
    Method("linear", limit=1.0, slower=10, models=make_trio.MODELS, base=None),
    Method("task_arithmetic", limit=1.0, slower=10),
    Method("slerp", limit=1.0, slower=None, base=None, parameters={"t": 0.5}, weighted=False),
    Method("dare", limit=1.0, slower=20, parameters={"density": 0.5}, mergekit="dare_linear"),
    Method("ties", limit=1.5, slower=50, parameters={"density": 0.2}),
    Method("dare_ties", limit=1.5, slower=None, parameters={"density": 0.5}),
]

# Other ways to do the same merges, right after the default one; all must give the same tensors.
WAYS = {
    "mmap": ["--io", "mmap"],
    # What mergekit does for its outputs, which is nothing.
    "none": ["--durability", "none"],
    "tmpfs": ["--durability", "none"],  # and the output in memory
}
TMPFS = Path("/dev/shm")

# Plain two threads, and the settings that were fastest for it on this kind of file; the better one counts.
MERGEKIT_SETTINGS = {
    "plain": [],
    "async": ["--async-write", "--out-shard-size", "500M"],
}


def shards(model: Path) -> list[Path]:
    return sorted(model.glob("*.safetensors"))


def prepare(out: Path, inputs: list[Path]) -> None:
    """Delete what the last run wrote, wait for the disk, and bring the inputs into the page cache.

    Reading them once at the start would not do: some machines take idle pages away by themselves within seconds.
    """
    clear(out)
    measure(floor_command([shard for model in inputs for shard in shards(model)], []))


def clear(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    os.sync()


def fits(model: Path) -> bool:
    """Whether an output as large as this model fits into the tmpfs, and leaves something to others."""
    if not TMPFS.is_dir():
        return False
    return shutil.disk_usage(TMPFS).free > 2 * sum(shard.stat().st_size for shard in shards(model))


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Bench:
    def __init__(self, trio: dict[str, Path], work: Path, rlmerge: str, threads: int) -> None:
        self.trio, self.work, self.rlmerge, self.threads = trio, work, rlmerge, threads
        self.out = work / "merged"
        self.memory = TMPFS / f"rlmerge-bench-{os.getpid()}"

    def floor(self, inputs: list[Path]) -> Measurement:
        prepare(self.out, inputs)
        self.out.mkdir()
        read = [shard for model in inputs for shard in shards(model)]
        return measure(floor_command(read, [(shard, self.out / shard.name) for shard in shards(inputs[0])]))

    def merge(self, method: Method, way: str | None = None) -> Measurement:
        prepare(self.out, method.inputs(self.trio))
        options = WAYS[way] if way else []
        return measure(method.command(self.rlmerge, self.trio, self.place(way), self.threads, options))

    def place(self, way: str | None) -> Path:
        return self.memory if way == "tmpfs" else self.out

    def cool(self, inputs: list[Path]) -> None:
        """Delete what the last run wrote, and drop the inputs from the page cache."""
        clear(self.out)
        for model in inputs:
            for shard in shards(model):
                forget(shard)

    def merge_cold(self, method: Method, way: str | None = None) -> Measurement:
        self.cool(method.inputs(self.trio))
        options = WAYS[way] if way else []
        return measure(method.command(self.rlmerge, self.trio, self.place(way), self.threads, options))

    def answer(self, method: Method, way: str | None = None) -> int:
        models = [self.trio[name] for name in method.models]
        base = self.trio[method.base] if method.base else None
        return check(method.name, method.parameters, models, base, self.place(way))

    def mergekit(self, method: Method, venv: Path, settings: list[str]) -> Measurement:
        prepare(self.out, method.inputs(self.trio))
        recipe = self.work / "recipe.yml"
        recipe.write_text(json.dumps(method.mergekit_recipe(self.trio)))  # JSON is YAML
        program = str(venv / "bin" / "mergekit-yaml")
        command = [program, str(recipe), str(self.out), "-j", str(self.threads), "--no-copy-tokenizer"]
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        result = measure([*command, "--quiet", *settings], env=offline)
        if names(self.out) != names(self.trio["base"]):
            raise SystemExit(f"mergekit {method.name}: the tensors of the output are not those of the inputs")
        return result


def run_rounds(
    bench: Bench, methods: list[Method], rounds: int, ways: list[str]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Results of the default way by method, and of the other ways by way and method."""
    floors: dict[str, list[Measurement]] = {method.name: [] for method in methods}
    merges: dict[str, list[Measurement]] = {method.name: [] for method in methods}
    others: dict[str, dict[str, list[Measurement]]] = {way: {m.name: [] for m in methods} for way in ways}
    checked: dict[str, int] = {}
    manifests: dict[str, bytes] = {}
    for number in range(1, rounds + 1):
        for method in methods:
            floors[method.name].append(bench.floor(method.inputs(bench.trio)))
            merges[method.name].append(bench.merge(method))
            say(f"round {number} {method.name}: {merges[method.name][-1].wall_s:.2f} s, "
                f"floor {floors[method.name][-1].wall_s:.2f} s")  # fmt: skip
            # The manifest holds a checksum of every tensor: one checked round stands for all that have the same.
            manifest = (bench.out / "rlmerge.json").read_bytes()
            if method.name not in checked:
                checked[method.name] = bench.answer(method)
                manifests[method.name] = manifest
            elif manifests[method.name] != manifest:
                raise SystemExit(f"{method.name}: round {number} wrote other bytes than round 1")
            for way in ways:
                others[way][method.name].append(bench.merge(method, way))
                say(f"round {number} {method.name} {way}: {others[way][method.name][-1].wall_s:.2f} s")
                if tensors((bench.place(way) / "rlmerge.json").read_bytes()) != tensors(manifests[method.name]):
                    raise SystemExit(f"{method.name}: {way} wrote other tensors")
                if number == 1:
                    bench.answer(method, way)
                shutil.rmtree(bench.memory, ignore_errors=True)
    whole = [m.wall_s for method in methods if len(method.inputs(bench.trio)) == 3 for m in floors[method.name]]
    results = {}
    for method in methods:
        name = method.name
        floor = statistics.median(m.wall_s for m in floors[name])
        wall = statistics.median(m.wall_s for m in merges[name])
        results[name] = {
            "inputs": len(method.inputs(bench.trio)),
            **medians(merges[name]),
            "floor_s": round(floor, 3),
            "ratio": round(wall / floor, 3),
            "ratio_to_floor_of_three": round(wall / statistics.median(whole), 3) if whole else None,
            "limit": method.limit,
            "elements_checked": checked[name],
            "runs": [asdict(m) for m in merges[name]],
            "floor_runs": [asdict(m) for m in floors[name]],
        }
    return results, {
        way: {name: {**medians(runs), "runs": [asdict(m) for m in runs]} for name, runs in by_method.items()}
        for way, by_method in others.items()
    }


def tensors(manifest: bytes) -> Any:
    """What a manifest says of the tensors; the plan beside it names the way, and the place of the output."""
    return json.loads(manifest)["tensors"]


def run_mergekit(
    bench: Bench, methods: list[Method], ours: dict[str, Any], unsynced: dict[str, Any], venv: Path, runs: int
) -> dict[str, Any]:
    """mergekit's runs, beside ours (synced), and ours at the same durability as its own, if that was measured."""
    results: dict[str, Any] = {}
    for method in methods:
        found: dict[str, list[dict[str, float]]] = {}
        for setting, options in MERGEKIT_SETTINGS.items():
            for _ in range(runs):
                one = bench.mergekit(method, venv, options)
                say(f"mergekit {method.name} {setting}: {one.wall_s:.1f} s")
                found.setdefault(setting, []).append(asdict(one))
        best = min(run["wall_s"] for all_runs in found.values() for run in all_runs)
        results[method.name] = {
            "best_wall_s": best,
            "times_slower": round(best / ours[method.name]["wall_s"], 1),
            "times_slower_unsynced": (
                round(best / unsynced[method.name]["wall_s"], 1) if method.name in unsynced else None
            ),
            "required": method.slower,
            "peak_rss_mb": max(run["peak_rss_mb"] for all_runs in found.values() for run in all_runs),
            "runs": found,
        }
    return results


def run_memory(small: Bench, large: Bench, methods: list[Method]) -> dict[str, Any]:
    """Peak memory on both models from a cold page cache: the larger one may not fit into it, and cold reads weigh."""
    results = {}
    for method in methods:
        one, other = small.merge_cold(method), large.merge_cold(method)
        say(f"cold {method.name}: {one.peak_rss_mb:.0f} MB, four times as large: {other.peak_rss_mb:.0f} MB")
        growth = round(other.peak_rss_mb / one.peak_rss_mb, 3)
        results[method.name] = {"small": asdict(one), "large": asdict(other), "growth": growth}
    clear(large.out)
    return results


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = command_line.parser_of_trio(__doc__, rounds=5)
    parser.add_argument("--methods", nargs="+", choices=[m.name for m in METHODS], metavar="METHOD", help="only these")
    parser.add_argument(
        "--ways", nargs="*", choices=WAYS, default=list(WAYS), metavar="WAY", help="besides the default"
    )
    parser.add_argument("--mergekit", type=Path, metavar="VENV", help="an environment that has mergekit 0.1.5")
    parser.add_argument("--mergekit-runs", type=int, default=1, help="runs with each of its settings")
    parser.add_argument(
        "--memory", action="store_true", help="only peak memory, on the 4b trio too (needs 43 GB of disk)"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    methods = [m for m in METHODS if not arguments.methods or m.name in arguments.methods]
    scratch = None if arguments.dir else tempfile.TemporaryDirectory(prefix="rlmerge-bench-")
    root = arguments.dir or Path(scratch.name if scratch else "")
    try:
        say(f"making the {arguments.size} trio in {root}")
        trio = make_trio.make(root / arguments.size, arguments.size)
        out = arguments.out or root
        out.mkdir(parents=True, exist_ok=True)
        bench = Bench(trio, out, arguments.rlmerge, arguments.threads)
        if arguments.memory:
            say("making the 4b trio")
            large = make_trio.make(root / "4b", "4b")
            peaks = run_memory(bench, Bench(large, out, arguments.rlmerge, arguments.threads), methods)
            print("\n".join(memory(peaks)))
            if not arguments.no_record:
                print(f"\nrecord: {record.save('spine-memory', {'threads': arguments.threads, 'memory': peaks})}")
            return
        ways = [way for way in arguments.ways if way != "tmpfs" or fits(trio["base"])]
        merges, others = run_rounds(bench, methods, arguments.rounds, ways)
        result: dict[str, Any] = {
            "size": arguments.size,
            "parameters": make_trio.SIZES[arguments.size].parameters(),
            "threads": arguments.threads,
            "rounds": arguments.rounds,
            "inputs_on_tmpfs": os.path.realpath(root).startswith("/dev/shm/"),
            "floor": "cat of all inputs to /dev/null, then dd bs=8M conv=fsync of both shards of one input",
            "methods": merges,
            "ways": {way: {"options": WAYS[way], "methods": others[way]} for way in ways},
        }
        if arguments.mergekit:
            chosen = [m for m in methods if m.slower]
            result["mergekit"] = run_mergekit(
                bench, chosen, merges, others.get("none", {}), arguments.mergekit, arguments.mergekit_runs
            )
        clear(bench.out)
        print(summary(result))
        if not arguments.no_record:
            print(f"\nrecord: {record.save('spine' if arguments.size == '1b' else f'spine-{arguments.size}', result)}")
    finally:
        shutil.rmtree(TMPFS / f"rlmerge-bench-{os.getpid()}", ignore_errors=True)
        if scratch:
            scratch.cleanup()


if __name__ == "__main__":
    main()
