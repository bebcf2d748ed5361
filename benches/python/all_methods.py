"""Every method of the table on the generated trio, with its defaults: time against a floor of its own and against
`linear` in the same run, peak memory, and mergekit's time for the methods that it has.

    all_methods.py                             three rounds of the 1.1 B-parameter trio
    all_methods.py --mergekit .venv-torch      and mergekit's, once a method, with its faster settings
    all_methods.py --methods della karcher     only these (and linear)
    all_methods.py --size tiny --rounds 1      does it work at all

The floor, the order of runs and what counts as warm are those of `spine.py`. Answers are checked against the NumPy f64
oracle on whole tensors, for methods whose result in a tensor depends on nothing outside it; for the others every round
must write the same bytes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import command_line
import make_trio
import record
from spine import MERGEKIT_SETTINGS, Bench, Method, clear, say
from spine import METHODS as SPINE
from summary import RSS_LIMIT_MB, medians, verdict

if TYPE_CHECKING:
    import argparse

    from measure import Measurement

#: Wall time in floors, where it is not what the number of reads says.
LIMITS = {"della": 3.0, "della_linear": 3.0, "resmerge": 3.0, **{m.name: m.limit for m in SPINE}}
ONE_READ, TWO_READS = 1.5, 2.0
#: What a method cannot do without on this trio.
PARAMETERS: dict[str, dict[str, float]] = {m.name: m.parameters for m in SPINE}
#: Parameters that both sides get when mergekit is measured, where its default is another, or does nothing (density 1).
THEIRS = {name: {"density": 0.5} for name in ("dare_linear", "dare_ties", "della_linear", "della")}
THEIRS |= {"ties": {"density": 0.2}, "nearswap": {"t": 1e-4}, "sce": {"select_topk": 0.1}, "slerp": {"t": 0.5}}
THEIRS |= {"breadcrumbs": {"density": 0.1, "gamma": 0.01}, "breadcrumbs_ties": {"density": 0.1, "gamma": 0.01}}
#: Methods of which mergekit takes no weights.
UNWEIGHTED = ("karcher", "model_stock", "sce", "ram", "ramplus_tl", "arcee_fusion", "nearswap", "slerp", "passthrough")
ASYNC = MERGEKIT_SETTINGS["async"]
#: Statistics that the user brings cannot be made from weights alone.
NEED_STATISTICS = ("fisher", "regmean")
#: An iteration that stops early, held to an exact decomposition by tests with a tolerance, not bit for bit.
ITERATED = ("resmerge",)


def listed(rlmerge: str) -> list[dict[str, Any]]:
    done = subprocess.run([rlmerge, "methods", "--json"], capture_output=True, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def mergekit_names(venv: Path) -> set[str]:
    code = "from mergekit.merge_methods.registry import registered_methods as r; print(*(m.spec.name for m in r()))"
    done = subprocess.run([venv / "bin" / "python", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def as_method(row: dict[str, Any]) -> Method:
    name = row["name"]
    based = row["base"] in ("required", "optional") and name not in ("nuslerp", "multislerp")
    experts = ("expert-1", "expert-2")
    if row["max_experts"] == 1:
        experts = experts[:1]
    if name == "linear":
        experts = make_trio.MODELS
    limit = LIMITS.get(name, ONE_READ if row["reads"] == 1 else TWO_READS)
    return Method(name, limit, None, experts, "base" if based else None, PARAMETERS.get(name, {}))


def main() -> None:
    arguments = parse()
    rows = [row for row in listed(arguments.rlmerge) if row["name"] not in NEED_STATISTICS]
    left_out = [name for name in NEED_STATISTICS if not arguments.methods]
    chosen = [r for r in rows if not arguments.methods or r["name"] in (*arguments.methods, "linear")]
    local = {row["name"] for row in chosen if row["reads"] == 1 and row["name"] not in ITERATED}
    methods = [as_method(row) for row in chosen]
    with tempfile.TemporaryDirectory(prefix="rlmerge-bench-") as scratch:
        root = arguments.dir or Path(scratch)
        trio = make_trio.make(root / arguments.size, arguments.size)
        out = arguments.out or root
        out.mkdir(parents=True, exist_ok=True)
        bench = Bench(trio, out, arguments.rlmerge, arguments.threads)
        results = run_rounds(bench, methods, arguments.rounds, local)
        suffix = "" if arguments.size == "1b" else f"-{arguments.size}"
        result = {
            "size": arguments.size,
            "parameters": make_trio.SIZES[arguments.size].parameters(),
            "threads": arguments.threads,
            "rounds": arguments.rounds,
            "left_out": {name: "needs statistics that weights alone do not give" for name in left_out},
            "methods": results,
        }
        if not arguments.no_record:
            record.save(f"all-methods{suffix}", result)  # mergekit may fail, and takes half an hour
        if arguments.mergekit:
            known = mergekit_names(arguments.mergekit)
            for method in (m for m in methods if m.name in known):
                results[method.name]["mergekit"] = asdict(theirs(bench, method, arguments.mergekit))
        clear(bench.out)
        print(table(results))
        if not arguments.no_record:
            print(f"\nrecord: {record.save(f'all-methods{suffix}', result)}")


def theirs(bench: Bench, method: Method, venv: Path) -> Measurement:
    """mergekit's time, with its faster settings and the parameters that ours has by default."""
    run = bench.mergekit(
        replace(method, parameters=THEIRS.get(method.name, {}), weighted=method.name not in UNWEIGHTED), venv, ASYNC
    )
    say(f"mergekit {method.name}: {run.wall_s:.1f} s")
    return run


def run_rounds(bench: Bench, methods: list[Method], rounds: int, local: set[str]) -> dict[str, dict[str, Any]]:
    floors: dict[str, list[Measurement]] = {m.name: [] for m in methods}
    merges: dict[str, list[Measurement]] = {m.name: [] for m in methods}
    manifests: dict[str, bytes] = {}
    checked: dict[str, int] = {}
    for number in range(1, rounds + 1):
        for method in methods:
            name = method.name
            floors[name].append(bench.floor(method.inputs(bench.trio)))
            merges[name].append(bench.merge(method))
            say(f"round {number} {name}: {merges[name][-1].wall_s:.2f} s, floor {floors[name][-1].wall_s:.2f} s")
            manifest = (bench.out / "rlmerge.json").read_bytes()
            if manifests.setdefault(name, manifest) != manifest:
                raise SystemExit(f"{name}: round {number} wrote other bytes than round 1")
            if name in local and name not in checked:
                checked[name] = bench.answer(method)
    linear = statistics.median(m.wall_s for m in merges["linear"])
    results = {}
    for method in methods:
        name = method.name
        wall = statistics.median(m.wall_s for m in merges[name])
        floor = statistics.median(m.wall_s for m in floors[name])
        results[name] = {
            "inputs": len(method.inputs(bench.trio)),
            **medians(merges[name]),
            "floor_s": round(floor, 3),
            "ratio": round(wall / floor, 3),
            "limit": method.limit,
            "times_linear": round(wall / linear, 2),
            "elements_checked": checked.get(name),
            "runs": [asdict(m) for m in merges[name]],
            "floor_runs": [asdict(m) for m in floors[name]],
        }
    return results


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| method | wall s | floor s | ratio | limit | | CPU s | × linear | peak MB | | mergekit s | × ours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, r in results.items():
        theirs = r.get("mergekit")
        beside = f"{theirs['wall_s']:.1f} | {theirs['wall_s'] / r['wall_s']:.1f}" if theirs else "| "
        lines.append(
            f"| `{name}` | {r['wall_s']:.2f} | {r['floor_s']:.2f} | {r['ratio']:.2f} | {r['limit']:.1f} | "
            f"{verdict(r['ratio'] <= r['limit'])} | {r['cpu_s']:.1f} | {r['times_linear']:.2f} | "
            f"{r['peak_rss_mb']:.0f} | {verdict(r['peak_rss_mb'] <= RSS_LIMIT_MB)} | {beside} |"
        )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = command_line.parser_of_trio(__doc__, rounds=3)
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="only these, and linear")
    parser.add_argument("--mergekit", type=Path, metavar="VENV", help="an environment that has mergekit 0.1.5")
    return parser.parse_args()


if __name__ == "__main__":
    main()
