"""The conflict report of the generated trio against `cat` of its inputs, and merges with a report against the same
merges without, taking turns in one run; peak memory; numbers checked.

    conflict_report.py                       three rounds of the 1.1 B-parameter trio
    conflict_report.py --cold                the same, with the inputs on the disk alone
    conflict_report.py --size tiny --rounds 1    does it work at all

What counts as warm is as for `spine.py`. The report's numbers are checked against NumPy f64 on whole tensors of several
layers, counts exactly; a merge with a report must write the tensors of the merge without.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import command_line
import make_trio
import numpy as np
import record
from answers import Folder
from measure import Measurement, floor_command, measure
from spine import Bench, Method, clear, prepare, say, shards, tensors
from summary import RSS_LIMIT_MB, medians, verdict

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.reference import conflict

EXPERTS = ("expert-1", "expert-2")
MERGES = [
    Method("task_arithmetic", 1.25, None),
    Method("ties", 1.25, None, parameters={"density": 0.2}),
]
#: Either is enough: as fast as the bytes come, or this many of them a second and core.
FLOORS, GB_PER_CORE = 1.15, 2.0
#: Merges with a report against those without.
MERGE_LIMIT = 1.25
#: Numbers of a tensor that depend on the whole model, which is too large for NumPy here.
OF_THE_MODEL = ("energy_share", "conflict_norm_matched")
LARGEST_CHECKED = 1 << 22


def main() -> None:
    parser = command_line.parser_of_trio(__doc__, rounds=3)
    parser.add_argument("--cold", action="store_true", help="drop the inputs from the page cache before each run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rlmerge-bench-") as scratch:
        root = arguments.dir or Path(scratch)
        trio = make_trio.make(root / arguments.size, arguments.size)
        out = arguments.out or root
        out.mkdir(parents=True, exist_ok=True)
        bench = Bench(trio, out, arguments.rlmerge, arguments.threads)
        inputs = [shard for name in ("base", *EXPERTS) for shard in shards(trio[name])]
        result = {
            "size": arguments.size,
            "parameters": make_trio.SIZES[arguments.size].parameters(),
            "input_gb": round(sum(shard.stat().st_size for shard in inputs) / 1e9, 3),
            "threads": arguments.threads,
            "rounds": arguments.rounds,
            "elements_checked": check(report_command(bench, arguments.threads), trio),
            **run_rounds(bench, arguments.rounds, arguments.threads, inputs, cold=arguments.cold),
        }
        clear(bench.out)
        print(table(result))
        if not arguments.no_record:
            suffix = ("" if arguments.size == "1b" else f"-{arguments.size}") + ("-cold" if arguments.cold else "")
            print(f"\nrecord: {record.save(f'conflict-report{suffix}', result)}")


def report_command(bench: Bench, threads: int) -> list[str]:
    experts = [str(bench.trio[name]) for name in EXPERTS]
    base = str(bench.trio["base"])
    return [bench.rlmerge, "conflict-report", *experts, "--base", base, "--threads", str(threads), "--json"]


def run_rounds(bench: Bench, rounds: int, threads: int, inputs: list[Path], *, cold: bool) -> dict[str, Any]:
    floors: list[Measurement] = []
    reports: list[Measurement] = []
    plain: dict[str, list[Measurement]] = {m.name: [] for m in MERGES}
    both: dict[str, list[Measurement]] = {m.name: [] for m in MERGES}
    read = [bench.trio[name] for name in ("base", *EXPERTS)]
    page = bench.work / "report.html"

    def ready() -> None:
        if cold:
            bench.cool(read)
        else:
            prepare(bench.out, read)

    for number in range(1, rounds + 1):
        ready()
        floors.append(measure(floor_command(inputs, [])))
        if cold:
            ready()
        reports.append(measure(report_command(bench, threads)))
        say(f"round {number}: report {reports[-1].wall_s:.2f} s, cat {floors[-1].wall_s:.2f} s")
        for method in MERGES:
            plain[method.name].append(bench.merge_cold(method) if cold else bench.merge(method))
            written = tensors((bench.out / "rlmerge.json").read_bytes())
            ready()
            command = method.command(bench.rlmerge, bench.trio, bench.out, threads, ["--report", str(page), "--force"])
            both[method.name].append(measure(command))
            if tensors((bench.out / "rlmerge.json").read_bytes()) != written:
                raise SystemExit(f"{method.name}: with a report it wrote other tensors")
            say(
                f"round {number}: {method.name} {plain[method.name][-1].wall_s:.2f} s, "
                f"with a report {both[method.name][-1].wall_s:.2f} s"
            )
    return {
        "cat": summed(floors),
        "report": summed(reports),
        "merges": {m.name: {"plain": summed(plain[m.name]), "with_report": summed(both[m.name])} for m in MERGES},
    }


def summed(runs: list[Measurement]) -> dict[str, Any]:
    return {**medians(runs), "runs": [asdict(m) for m in runs]}


def check(command: list[str], trio: dict[str, Path]) -> int:
    """How many elements were checked; SystemExit when a number is wrong."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {tensor["name"]: tensor for tensor in json.loads(done.stdout)["tensors"]}
    base, *experts = (Folder(trio[name]) for name in ("base", *EXPERTS))
    if found.keys() != base.tensors.keys():
        raise SystemExit("the tensors of the report are not those of the inputs")
    layers = sorted({t["layer"] for t in found.values() if t["layer"] is not None})
    chosen = {layers[0], layers[len(layers) // 2], layers[-1]} if layers else set()
    checked = 0
    for name, tensor in found.items():
        if tensor["layer"] not in chosen or base.tensors[name].size > LARGEST_CHECKED:
            continue
        sums = conflict.of_tensor(np.array(base.tensors[name]), [np.array(e.tensors[name]) for e in experts])
        expected = conflict.level(sums, sums)
        for of in ("experts", "pairs"):
            for mine, theirs, counted in zip(tensor[of], expected[of], sums[of], strict=True):
                if mine["counts"] != counted["counts"]:
                    raise SystemExit(f"{name}: counts are {mine['counts']}, should be {counted['counts']}")
                for key, value in theirs.items():
                    if key not in OF_THE_MODEL and not close(mine[key], value):
                        raise SystemExit(f"{name}: {key} is {mine[key]}, should be {value}")
        checked += base.tensors[name].size
    return checked


def close(mine: float | None, value: float | None) -> bool:
    if mine is None or value is None:
        return mine is value
    return math.isclose(mine, value, rel_tol=1e-9, abs_tol=1e-12)


def table(result: dict[str, Any]) -> str:
    report, floor = result["report"], result["cat"]
    floors = report["wall_s"] / floor["wall_s"]
    rate = result["input_gb"] / report["cpu_s"]
    good = floors <= FLOORS or rate >= GB_PER_CORE
    lines = [
        f"report {report['wall_s']:.2f} s, {report['cpu_s']:.2f} s of processor; cat {floor['wall_s']:.2f} s",
        f"{floors:.2f} × cat (limit {FLOORS}), {rate:.2f} GB/s of input a core (or {GB_PER_CORE}): {verdict(good)}",
        f"peak {report['peak_rss_mb']:.0f} MB: {verdict(report['peak_rss_mb'] <= RSS_LIMIT_MB)}",
        f"{result['elements_checked']:,} elements checked",
        "",
        "| merge | alone s | with report s | ratio | limit | | alone CPU s | with report CPU s | peak MB | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, runs in result["merges"].items():
        alone, both = runs["plain"], runs["with_report"]
        ratio = both["wall_s"] / alone["wall_s"]
        lines.append(
            f"| `{name}` | {alone['wall_s']:.2f} | {both['wall_s']:.2f} | {ratio:.2f} | {MERGE_LIMIT} | "
            f"{verdict(ratio <= MERGE_LIMIT)} | {alone['cpu_s']:.1f} | {both['cpu_s']:.1f} | "
            f"{both['peak_rss_mb']:.0f} | {verdict(both['peak_rss_mb'] <= RSS_LIMIT_MB)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
