"""Kills merges at random moments, goes on with them, and compares the outputs with that of a run that nobody broke.

    python -m tests.faults.kill_cycles --cycles 300 --page docs/kill-cycles.md

A cycle is a run with `--resume` that is killed (-9) at a random moment, or ends before. Whenever an output is there it
must be whole and the same to the byte as that of the unbroken run; it is then removed, and the next cycle begins anew.
After every kill the inputs must be what they were, and nothing but one stage may be left. Prints a table (`--page`
writes it as a page as well); exits with 1 when anything was otherwise.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.merges import METHODS, Merge, digest, identities, kill, remove, write_models

PAGE = """# Merges killed at random moments

Written by `make kill-cycles`. A merge of a base and two experts of {megabytes} MB each is run with `--resume` again and
again, and killed (−9) at a moment drawn between its start and a little after its end (seed {seed}). Each output that
came of it, and the last, is compared with that of a run that nobody broke: names, modes and every byte. After each kill
the inputs are looked at, and what lies beside them. Nothing may be *wrong*."""
#: Share of the kills that come before the stage is there, at a random moment of the start.
EARLY = 0.05


def cycles(merge: Merge, count: int, seed: int, *, quiet: bool = False) -> dict:
    """Runs so many cycles and gives what was seen."""
    drawn = random.Random(seed)
    before = identities(merge.root)
    whole = merge.run(output="whole", check=True)
    expected = digest(merge.root / "whole")
    tensors = json.loads(whole.stdout)["totals"]["tensors"]
    span = _span(merge)
    seen: Counter[str] = Counter()
    wrong: list[str] = []
    reused = []
    for cycle in range(count):
        process = merge.start("--resume")
        if drawn.random() < EARLY:
            time.sleep(drawn.uniform(0, 0.3))
        elif merge.wait_for_stage(process):
            time.sleep(drawn.uniform(0, 1.1 * span))
        running = process.poll() is None
        if running:
            process.kill()
        out, err = process.communicate(timeout=60)
        if identities(merge.root) != before:
            wrong.append(f"cycle {cycle}: an input was changed")
        if merge.output.exists():
            seen["an output was there" if running else "ended before the kill"] += 1
            if process.returncode == 0:
                reused.append(json.loads(out)["tensors_reused"])
            if digest(merge.output) != expected:
                wrong.append(f"cycle {cycle}: the output differs")
            seen["outputs"] += 1
            remove(merge.output)
        elif not running:
            wrong.append(f"cycle {cycle}: failed: {err}")
        else:
            done = merge.records()
            moment = "no stage" if not merge.stages() else "no tensor finished" if done == 0 else "half way"
            if done >= tensors:
                moment = "all tensors finished"
            seen[moment] += 1
        if len(merge.stages()) > 1:
            wrong.append(f"cycle {cycle}: {len(merge.stages())} stages")
        if not quiet and cycle % 50 == 49:
            print(f"{cycle + 1} cycles, {seen['outputs']} outputs, {len(wrong)} wrong", file=sys.stderr)
    # What is left is finished, and is the same as well.
    last = merge.run("--resume")
    if last.returncode or digest(merge.output) != expected:
        wrong.append(f"the last run: {last.stderr}")
    else:
        seen["outputs"] += 1
        reused.append(json.loads(last.stdout)["tensors_reused"])
    verified = subprocess.run([sys.executable, "-m", "rlmerge", "verify", "out"], cwd=merge.root, capture_output=True)
    if verified.returncode:
        wrong.append("the last output does not verify")
    subprocess.run([sys.executable, "-m", "rlmerge", "clean", "."], cwd=merge.root, capture_output=True, check=True)
    if merge.stages():
        wrong.append("`rlmerge clean` left a stage")
    return {"cycles": count, "tensors": tensors, "seen": seen, "reused": reused, "wrong": wrong, "span": span}


def _span(merge: Merge) -> float:
    """How long a run works on its stage."""
    process = merge.start()
    merge.wait_for_stage(process)
    start = time.monotonic()
    while merge.stages() and process.poll() is None:
        time.sleep(0.0005)
    span = time.monotonic() - start
    kill(process) if process.poll() is None and not merge.output.exists() else process.communicate()
    remove(merge.output)
    return span


def table(method: str, result: dict) -> list[str]:
    """The rows of a method."""
    seen, reused = result["seen"], result["reused"]
    names = ("no stage", "no tensor finished", "half way", "all tensors finished", "an output was there")
    rows = [
        ("method", f"`{method}`"),
        ("cycles: a run with `--resume`, killed or not", result["cycles"]),
        ("a run works on its stage for", f"{1000 * result['span']:.0f} ms"),
        *((f"killed: {name}", seen[name]) for name in names),
        ("ended before the kill", seen["ended before the kill"]),
        ("outputs, all compared", seen["outputs"]),
        (
            "tensors of an output taken over, on average",
            f"{sum(reused) / max(len(reused), 1):.1f} of {result['tensors']}",
        ),
        ("wrong", len(result["wrong"])),
    ]
    return [f"| {name} | {value} |" for name, value in rows]


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=300)
    parser.add_argument("--megabytes", type=float, default=100, help="size of each of the three models")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--page", type=Path, help="where the tables are written, as a page")
    parser.add_argument("--folder", type=Path, help="where the models go; a temporary folder if unset")
    given = parser.parse_args()
    chosen = given.methods.split(",")
    failed = False
    lines = [PAGE.format(megabytes=f"{given.megabytes:g}", seed=given.seed)]
    with tempfile.TemporaryDirectory(prefix="rlmerge-kills-", dir=given.folder) as folder:
        root = Path(folder)
        write_models(root, given.megabytes)
        for at, method in enumerate(chosen):
            merge = Merge(root, method, given.threads)
            share = given.cycles // len(chosen) + (at < given.cycles % len(chosen))
            result = cycles(merge, share, given.seed + at)
            lines += ["", "| what | |", "| --- | --- |", *table(method, result)]
            print("\n".join(lines[-2 - len(table(method, result)) :]))
            print("".join(f"{line}\n" for line in result["wrong"]), end="", file=sys.stderr)
            failed = failed or bool(result["wrong"])
            remove(root / "whole")
            remove(merge.output)
    if given.page is not None:
        given.page.write_text("\n".join(lines) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
