"""A merge of two rank-16 LoRA adapters against a dense merge of one expert with the same method, in one run.

    adapters.py                          five rounds on a generated base of 1.1 B parameters, two threads
    adapters.py --dir /dev/shm/b --out b inputs in memory for good, outputs on the disk of ./b
    adapters.py --cold                   the same, with the inputs on the disk alone
    adapters.py --size tiny --rounds 1   does it work at all

The base and the expert are those of `make_trio.py`; the adapters change every linear layer, and their factors are f32,
as PEFT saves them. What counts as warm, and how runs are measured, is as in `spine.py`; here the two merges of a method
take turns, each time in the other order. Besides the default, which syncs its output, the merges are timed with nothing
but arithmetic and memory in their way: unsynced, into a tmpfs. Answers are checked on some whole tensors against the
NumPy oracles, which get base + s·B·A in f64. From a disk the adapters' merge has half as much to read.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import command_line
import make_trio
import numpy as np
import record
from answers import ORACLE, Folder
from spine import Bench, Method, clear, fits, say
from summary import medians, verdict
from tests import adapters, tensorfile
from tests.reference import METHODS
from tests.reference import adapter as reference
from tests.reference.conventions import assert_matches

if TYPE_CHECKING:
    import argparse

    from measure import Measurement

RANK, ALPHA = 16, 32
#: Of the factors: their product has the size of the expert's deltas.
FACTOR_RMS = 0.011
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ADAPTERS = ("adapter-1", "adapter-2")
#: How much longer the two adapters may take than the expert.
LIMIT = 1.0
#: With weight 1 task arithmetic would copy its only expert.
PARAMETERS: dict[str, dict[str, float]] = {
    "task_arithmetic": {"weight": 0.5},
    "dare": {"density": 0.5},
    "ties": {"density": 0.2},
}


def make(folder: Path, size: str) -> dict[str, Path]:
    """Base, expert and adapters in `folder`, made unless they are there already."""
    shape = make_trio.SIZES[size]
    models = {"base": folder / "base", "expert-1": folder / "expert-1"}
    marker = folder / "pair.json"
    if not marker.exists():
        for number, path in enumerate(models.values()):
            make_trio.write_model(path, shape, number)
        modules = {n.removesuffix(".weight"): s for n, s in shape.tensors().items() if n.split(".")[-2] in LINEAR}
        for number, name in enumerate(ADAPTERS):
            shutil.rmtree(folder / name, ignore_errors=True)
            tensors = adapters.lora(modules, RANK, np.random.default_rng([2, number]), size=FACTOR_RMS)
            adapters.write(folder / name, tensors, r=RANK, lora_alpha=ALPHA)
        marker.write_text(json.dumps({"size": size}))
    return models | {name: folder / name for name in ADAPTERS}


def check(method: Method, models: dict[str, Path], merged: Path) -> int:
    """How many elements of the merged adapters were checked; SystemExit when one of them is wrong."""
    base, output = Folder(models["base"]), Folder(merged)
    if output.tensors.keys() != base.tensors.keys():
        raise SystemExit(f"{method.name}: the tensors of the output are not those of the base")
    layers = 1 + max(int(name.split(".")[2]) for name in base.tensors if ".layers." in name)
    chosen = [f"model.layers.{at}.self_attn.{name}.weight" for at, name in ((0, "k_proj"), (layers - 1, "o_proj"))]
    deltas = []
    for name in ADAPTERS:
        config = json.loads((models[name] / "adapter_config.json").read_text())
        stored = tensorfile.read(models[name] / "adapter_model.safetensors")
        of = {n: t for n, t in stored.items() if any(f".{c.removesuffix('.weight')}." in n for c in chosen)}
        deltas.append(reference.changes(of, config, {name: base.tensors[name].shape for name in chosen}))
    checked = 0
    for name in chosen:
        start = np.array(base.tensors[name]).astype(np.float64)
        experts = [{name: start + delta[name]} for delta in deltas]
        oracle = METHODS[ORACLE.get(method.name, method.name)]
        want = oracle({name: start}, experts, dtype="BF16", **method.parameters)
        got = np.array(output.tensors[name])
        try:
            assert_matches(got, want[name], name)
        except AssertionError as wrong:
            raise SystemExit(f"{method.name}: wrong answer: {wrong}") from None
        checked += got.size
    norm = f"model.layers.{layers - 1}.input_layernorm.weight"
    if output.tensors[norm].tobytes() != base.tensors[norm].tobytes():
        raise SystemExit(f"{method.name}: {norm}, which no adapter changes, is not the base's")
    return checked


def run(bench: Bench, name: str, rounds: int, ways: list[str | None], *, cold: bool) -> dict[str, Any]:
    kinds = {
        "adapters": Method(name, LIMIT, None, models=ADAPTERS, parameters=PARAMETERS[name]),
        "expert": Method(name, LIMIT, None, models=("expert-1",), parameters=PARAMETERS[name]),
    }
    runs: dict[str, dict[str, list[Measurement]]] = {way or "default": {kind: [] for kind in kinds} for way in ways}
    checked = 0
    for number in range(rounds):
        for way in ways:
            for kind in kinds if number % 2 == 0 else reversed(kinds):
                one = bench.merge_cold(kinds[kind], way) if cold else bench.merge(kinds[kind], way)
                runs[way or "default"][kind].append(one)
                say(
                    f"round {number + 1} {name} {way or 'default'} {kind}: {one.wall_s:.2f} s, {one.cpu_s:.2f} s of CPU"
                )
                if kind == "adapters" and number == 0:
                    checked = check(kinds[kind], bench.trio, bench.place(way))
                shutil.rmtree(bench.memory, ignore_errors=True)
    return {
        "elements_checked": checked,
        "ways": {way: compared(kinds) for way, kinds in runs.items()},
    }


def compared(runs: dict[str, list[Measurement]]) -> dict[str, Any]:
    """Medians of both kinds, and adapters over expert."""
    found: dict[str, Any] = {}
    for kind, all_runs in runs.items():
        found[kind] = {**medians(all_runs), "runs": [asdict(m) for m in all_runs]}
    for what in ("wall_s", "cpu_s"):
        found[f"ratio_{what}"] = round(found["adapters"][what] / found["expert"][what], 3)
    return found


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| method | output | two adapters, wall s | one expert | ratio | | CPU s | one expert | ratio | peak MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, result in results.items():
        for way, r in result["ways"].items():
            ours, theirs = r["adapters"], r["expert"]
            lines.append(
                f"| `{name}` | {way} | {ours['wall_s']:.2f} | {theirs['wall_s']:.2f} | {r['ratio_wall_s']:.2f} | "
                f"{verdict(r['ratio_wall_s'] <= LIMIT)} | {ours['cpu_s']:.2f} | {theirs['cpu_s']:.2f} | "
                f"{r['ratio_cpu_s']:.2f} | {ours['peak_rss_mb']:.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory(prefix="rlmerge-bench-") as scratch:
        root = arguments.dir or Path(scratch)
        say(f"making the {arguments.size} models in {root}")
        models = make(root / arguments.size, arguments.size)
        out = arguments.out or root
        out.mkdir(parents=True, exist_ok=True)
        bench = Bench(models, out, arguments.rlmerge, arguments.threads)
        ways: list[str | None] = [None, "tmpfs"] if fits(models["base"]) else [None]
        try:
            results = {
                name: run(bench, name, arguments.rounds, ways, cold=arguments.cold) for name in arguments.methods
            }
        finally:
            shutil.rmtree(bench.memory, ignore_errors=True)
        clear(bench.out)
        print(table(results))
        if not arguments.no_record:
            suffix = ("" if arguments.size == "1b" else f"-{arguments.size}") + ("-cold" if arguments.cold else "")
            result = {
                "size": arguments.size,
                "parameters": make_trio.SIZES[arguments.size].parameters(),
                "rank": RANK,
                "threads": arguments.threads,
                "rounds": arguments.rounds,
                "limit": LIMIT,
                "methods": results,
            }
            print(f"\nrecord: {record.save(f'adapters{suffix}', result)}")


def parse() -> argparse.Namespace:
    parser = command_line.parser_of_trio(__doc__, rounds=5)
    parser.add_argument("--cold", action="store_true", help="drop the inputs from the page cache before each run")
    parser.add_argument("--methods", nargs="+", choices=PARAMETERS, default=list(PARAMETERS), metavar="METHOD")
    return parser.parse_args()


if __name__ == "__main__":
    main()
