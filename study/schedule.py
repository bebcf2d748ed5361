"""Running units of work in order: as many at a time as there are workers, none twice, none lost with another."""

from __future__ import annotations

import multiprocessing
import sys
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.records import hash_data, read_json, write_json
from study.stages import Places, run_unit

if TYPE_CHECKING:
    from study.configuration import StudyConfig


@dataclass(slots=True)
class Unit:
    """One piece of work.

    ``needs`` must have succeeded; ``awaits`` must only have ended, one way or the other. ``weight`` is the expected
    time, in any unit: the time left is told from it. ``inputs`` decides with the needs' own whether old facts hold.
    """

    name: str
    stage: str
    arguments: dict[str, Any]
    inputs: Any
    weight: float
    needs: list[str] = field(default_factory=list)
    awaits: list[str] = field(default_factory=list)


def plan_units(config: StudyConfig) -> list[Unit]:
    """List all units of a study, in the order in which they are best begun."""
    units: list[Unit] = []
    asked = [config.evaluation.model_dump(), config.form, config.level, config.tasks]
    steps = float(config.train.get("max_steps", 30))
    for seed in config.seeds:
        if config.base is None:
            told = config.pretraining(seed, Path("base")).model_dump(mode="json")
            units.append(Unit(f"pretrain/s{seed}", "pretrain", {"seed": seed}, told, 0.26 * told["steps"]))
    for seed in config.seeds:
        bases = [f"pretrain/s{seed}"] if config.base is None else []
        units.append(Unit(f"base/s{seed}", "base", {"seed": seed}, [config.base, asked], 8, bases))
        for arm in config.arms:
            for task in config.tasks:
                names = {"seed": seed, "arm": arm, "task": task}
                told = config.training(arm, task, seed, "base", Path("out")).model_dump(mode="json")
                expert, curve = (f"{stage}/s{seed}/{arm}/{task}" for stage in ("expert", "curve"))
                units.append(Unit(expert, "expert", names, [config.base, told], 2 + 0.3 * steps, bases))
                units.append(Unit(curve, "curve", names, asked, 5, [expert]))
    for seed in config.seeds:
        curves = [f"curve/s{seed}/{arm}/{task}" for arm in config.arms for task in config.tasks]
        units.append(
            Unit(
                f"match/s{seed}",
                "match",
                {"seed": seed},
                [config.reference, config.arms],
                0.1,
                [f"base/s{seed}"],
                curves,
            )
        )
        for arm in config.arms:
            here = [f"curve/s{seed}/{arm}/{task}" for task in config.tasks]
            names = {"seed": seed, "arm": arm}
            for comparison in config.merging.comparisons:
                needs = [f"base/s{seed}"] + ([f"match/s{seed}"] if comparison != "equal_steps" else [])
                units.append(
                    Unit(
                        f"merge/s{seed}/{arm}/{comparison}",
                        "merge",
                        {**names, "comparison": comparison},
                        [asked, config.merging.model_dump()],
                        60 if comparison == "equal_steps" else 35,
                        needs,
                        here,
                    )
                )
            units.append(
                Unit(
                    f"conflict/s{seed}/{arm}",
                    "conflict",
                    names,
                    config.arms,
                    5,
                    [f"base/s{seed}"],
                    [*here, f"match/s{seed}"],
                )
            )
            if arm in config.landscape.arms:
                units.append(
                    Unit(
                        f"landscape/s{seed}/{arm}",
                        "landscape",
                        names,
                        [asked, config.landscape.model_dump()],
                        25,
                        [f"base/s{seed}"],
                        here,
                    )
                )
    return units


def quiet_worker(threads: int) -> None:
    """Set up a worker: its share of the processor, and nothing on the screen that is not ours."""
    import os
    import signal

    os.environ["TQDM_DISABLE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def perform(config: StudyConfig, work: Path, unit: Unit) -> tuple[dict[str, Any], float]:
    """Run one unit in a worker; return what it found and its seconds of wall time."""
    started = time.monotonic()
    found = run_unit(config, Places(work), unit.stage, **unit.arguments)
    return found, time.monotonic() - started


def run_all(config: StudyConfig, work: Path, units: list[Unit]) -> dict[str, str]:
    """Run every unit that is not done.

    Returns
    -------
    dict
        The units that failed or could not be begun, with the reason.
    """
    places = Places(work)
    by_name = {unit.name: unit for unit in units}
    keys: dict[str, str] = {}
    for unit in units:
        behind = [keys[name] for name in [*unit.needs, *unit.awaits] if name in keys]
        keys[unit.name] = hash_data([unit.stage, unit.arguments, unit.inputs, behind])
    done = {name for name in by_name if is_done(places, name, keys[name])}
    lost: dict[str, str] = {}
    waiting = [unit for unit in units if unit.name not in done]
    total = sum(unit.weight for unit in waiting)
    spent = 0.0  # weight of what ended here
    began = time.monotonic()
    if waiting:
        say(f"{len(done)} of {len(units)} units are done; {len(waiting)} to go with {config.workers} workers")
    pool = make_pool(config.workers)
    running: dict[Future[tuple[dict[str, Any], float]], Unit] = {}
    try:
        while waiting or running:
            for unit in list(waiting):
                broken = next((name for name in unit.needs if name in lost), None)
                if broken is not None:
                    waiting.remove(unit)
                    lost[unit.name] = f"not begun, because {broken} failed"
                    spent += unit.weight
                elif (
                    len(running) < config.workers
                    and all(n in done for n in unit.needs)
                    and all(n in done or n in lost for n in unit.awaits)
                ):
                    waiting.remove(unit)
                    running[pool.submit(perform, config, work, unit)] = unit
            if not running:
                continue
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                unit = running.pop(future)
                spent += unit.weight
                try:
                    found, seconds = future.result()
                except BrokenProcessPool:
                    # A worker was killed, for memory perhaps; all running units are lost with it, once.
                    for other in [unit, *running.values()]:
                        lost[other.name] = "its worker was killed"
                    running.clear()
                    pool.shutdown(wait=False, cancel_futures=True)
                    pool = make_pool(config.workers)
                    say(f"{unit.name} FAILED: its worker was killed")
                    break
                except Exception as error:  # one arm must not take the others with it
                    lost[unit.name] = f"{type(error).__name__}: {error}"
                    trace = places.work / "failed" / f"{unit.name.replace('/', '_')}.txt"
                    trace.parent.mkdir(parents=True, exist_ok=True)
                    trace.write_text("".join(traceback.format_exception(error)))
                    say(f"{unit.name} FAILED: {lost[unit.name]} (details: {trace})")
                    continue
                write_json(
                    places.facts(unit.name), {"key": keys[unit.name], "seconds": round(seconds, 2), "found": found}
                )
                done.add(unit.name)
                left = (time.monotonic() - began) / max(spent, 1e-9) * (total - spent)
                say(f"[{len(done) + len(lost)}/{len(units)}] {unit.name}  {seconds:.1f} s  {told_time(left)} left")
    except KeyboardInterrupt:
        for process in list(pool._processes.values()):  # noqa: SLF001 - the pool has no public way to stop a running unit
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return lost


def is_done(places: Places, name: str, key: str) -> bool:
    """Say whether a unit's facts are there and were made with the same settings."""
    path = places.facts(name)
    return path.exists() and bool(read_json(path)["key"] == key)


def make_pool(workers: int) -> ProcessPoolExecutor:
    """Make worker processes; the processor's threads are shared out among them."""
    import os

    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    return ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=quiet_worker, initargs=(threads,)
    )


def told_time(seconds: float) -> str:
    """Say a duration in words."""
    return f"about {seconds / 60:.0f} min" if seconds >= 90 else f"about {seconds:.0f} s"


def say(line: str) -> None:
    """Talk on standard error."""
    print(line, file=sys.stderr, flush=True)
