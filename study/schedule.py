"""Running units of work in order: as many at a time as there are workers, none twice, none lost with another."""

from __future__ import annotations

import multiprocessing
import shutil
import sys
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.merging import takes, usable_methods
from study.records import append_line, hash_data, read_json, write_json
from study.settings import SettingsError
from study.stages import Places, run_unit

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    """List all units of a study, in the order in which they are best begun.

    First what the claims need, one seed after the other; then the other methods, one after the other. So a run that is
    stopped early leaves a page with almost all claims, on fewer seeds or methods.

    Raises
    ------
    ValueError
        A method is wanted that this rlmerge does not offer.
    """
    units: list[Unit] = []
    for seed in config.seeds:
        if config.base is None:
            told = config.pretraining(seed, Path("base")).model_dump(mode="json")
            units.append(Unit(f"pretrain/s{seed}", "pretrain", {"seed": seed}, told, 0.2 * told["steps"]))
    later: list[Unit] = []
    for seed in config.seeds:
        units += expert_units(config, seed)
        for arm in config.arms:
            for unit in merge_units(config, seed, arm):
                (later if is_extra(config, unit) else units).append(unit)
    matched = config.merging.matched_methods
    return units + sorted(later, key=lambda unit: (unit.arguments["method"] not in matched, unit.arguments["method"]))


def is_extra(config: StudyConfig, unit: Unit) -> bool:
    """Say whether a unit is a merge that is not among what most claims need.

    They need task arithmetic on all arms, and the other matched methods on SFT and the reference.
    """
    if unit.stage != "merge" or unit.arguments["method"] == "task_arithmetic":
        return False
    told = unit.arguments["method"], unit.arguments["arm"]
    return told[0] not in config.merging.matched_methods or told[1] not in ("sft", config.reference)


def asked(config: StudyConfig) -> list[Any]:
    """Return the settings that decide what models are asked."""
    return [config.evaluation.model_dump(), config.form, config.level, config.tasks]


def expert_units(config: StudyConfig, seed: int) -> list[Unit]:
    """List the units of a seed's experts."""
    steps = float(config.train.get("max_steps", 30))
    bases = [f"pretrain/s{seed}"] if config.base is None else []
    units = [Unit(f"base/s{seed}", "base", {"seed": seed}, [config.base, asked(config)], 5, bases)]
    for arm in config.arms:
        for task in config.tasks:
            names = {"seed": seed, "arm": arm, "task": task}
            told = config.training(arm, task, seed, "base", Path("out")).model_dump(mode="json")
            expert, curve = (f"{stage}/s{seed}/{arm}/{task}" for stage in ("expert", "curve"))
            units.append(Unit(expert, "expert", names, [config.base, told], 2 + 0.3 * steps, bases))
            units.append(Unit(curve, "curve", names, asked(config), 3, [expert]))
    curves = [unit.name for unit in units if unit.stage == "curve"]
    aims = [config.reference, config.arms]
    units.append(Unit(f"match/s{seed}", "match", {"seed": seed}, aims, 0.1, [f"base/s{seed}"], curves))
    return units


def merge_units(config: StudyConfig, seed: int, arm: str) -> list[Unit]:
    """List the units of everything that is done with an arm's experts of a seed."""
    base, match = f"base/s{seed}", f"match/s{seed}"
    curves = [f"curve/s{seed}/{arm}/{task}" for task in config.tasks]
    names = {"seed": seed, "arm": arm}
    told = config.merging.model_dump(exclude={"methods", "matched_methods", "method_arms", "comparisons"})
    units = []
    for comparison in config.merging.comparisons:
        needs = [base] if comparison == "equal_steps" else [base, match]
        place, here = f"s{seed}/{arm}/{comparison}", {**names, "comparison": comparison}
        units.append(Unit(f"alone/{place}", "alone", here, asked(config), 1, needs, curves))
        for method in methods_of(config, arm, comparison):
            units.append(
                Unit(
                    f"merge/{place}/{method}",
                    "merge",
                    {**here, "method": method},
                    [asked(config), told],
                    6 if takes(method, "lambda") else 3,
                    needs,
                    curves,
                )
            )
    units.append(Unit(f"conflict/s{seed}/{arm}", "conflict", names, config.arms, 5, [base], [*curves, match]))
    if arm in config.landscape.arms:
        survey = [asked(config), config.landscape.model_dump()]
        units.append(Unit(f"landscape/s{seed}/{arm}", "landscape", names, survey, 15, [base], curves))
    return units


def methods_of(config: StudyConfig, arm: str, comparison: str) -> list[str]:
    """Return the methods that merge an arm's experts: all at equal steps for the chosen arms, else a few."""
    told = config.merging
    everything = comparison == "equal_steps" and (told.method_arms is None or arm in told.method_arms)
    return usable_methods(told.methods if everything else told.matched_methods)


def quiet_worker(threads: int) -> None:
    """Set up a worker: its share of the processor, and nothing on the screen that is not ours."""
    import ctypes
    import os
    import signal

    for library in ("OMP", "OPENBLAS", "MKL"):  # read when the libraries are loaded, which is below or later
        os.environ[f"{library}_NUM_THREADS"] = str(threads)
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    if sys.platform == "linux":  # and should the parent be killed, so is the worker
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def perform(config: StudyConfig, work: Path, unit: Unit) -> tuple[dict[str, Any], float, float]:
    """Run one unit in a worker; return what it found, and its seconds of wall and of processor time."""
    started, worked = time.monotonic(), time.process_time()
    found = run_unit(config, Places(work), unit.stage, **unit.arguments)
    return found, time.monotonic() - started, time.process_time() - worked


@contextmanager
def only_run(work: Path) -> Iterator[None]:
    """Hold a working folder for one run at a time.

    Raises
    ------
    SettingsError
        Another run is at work in it.
    """
    import fcntl

    work.mkdir(parents=True, exist_ok=True)
    with (work / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            msg = f"{work}: another run is at work there; wait for it, stop it, or give another --work"
            raise SettingsError(msg) from None
        yield


def keys_of(units: list[Unit]) -> dict[str, str]:
    """Return what facts must be marked with to hold: a hash of all settings behind each unit."""
    keys: dict[str, str] = {}
    for unit in units:
        behind = [keys[name] for name in [*unit.needs, *unit.awaits]]
        keys[unit.name] = hash_data([unit.stage, unit.arguments, unit.inputs, behind])
    return keys


def run_all(config: StudyConfig, work: Path, units: list[Unit]) -> dict[str, str]:
    """Run every unit that is not done.

    Returns
    -------
    dict
        The units that failed or could not be begun, with the reason.
    """
    with only_run(work):
        began = time.monotonic()
        run = Run(config, Places(work), units)
        try:
            run.go()
        finally:
            wall = round(time.monotonic() - began, 1)
            if run.fresh:
                append_line(work / "sessions.jsonl", {"wall": wall, "units": len(run.fresh), "workers": config.workers})
        return run.lost


class Run:
    """The units of a run, and what has become of each: done, lost, running or waiting.

    A unit is done when its facts were made with the same settings, from the same units, and lack none that has been
    made since: units that only await others do without those that failed, and are run again once these succeed.
    """

    def __init__(self, config: StudyConfig, places: Places, units: list[Unit]) -> None:
        self.config = config
        self.places = places
        self.units = units
        self.keys = keys_of(units)
        self.done: set[str] = set()
        self.fresh: set[str] = set()  # done in this run
        self.lost: dict[str, str] = {}
        for unit in units:
            lacked = facts_lack(places, unit.name, self.keys[unit.name])
            if lacked is None:
                places.facts(unit.name).unlink(missing_ok=True)  # of other settings
            elif not lacked and all(name in self.done for name in [*unit.needs, *unit.awaits]):
                self.done.add(unit.name)
        self.waiting = [unit for unit in units if unit.name not in self.done]
        self.running: dict[Future[tuple[dict[str, Any], float, float]], Unit] = {}
        self.total = sum(unit.weight for unit in self.waiting)
        self.spent = 0.0
        self.began = time.monotonic()

    def go(self) -> None:
        """Run until nothing is left."""
        if not self.waiting:
            return
        count = len(self.units)
        say(f"{len(self.done)} of {count} units are done; {len(self.waiting)} to go with {self.config.workers} workers")
        shutil.rmtree(self.places.work / "scratch", ignore_errors=True)  # of a run that was killed
        self.pool = make_pool(self.config.workers)
        try:
            while self.waiting or self.running:
                self.begin()
                if self.running:
                    ended, _ = wait(self.running, return_when=FIRST_COMPLETED)
                    for future in ended:
                        if future in self.running:
                            self.end(future)
        except KeyboardInterrupt:
            for process in list(self.pool._processes.values()):  # noqa: SLF001 - there is no public way to stop a unit
                process.terminate()
            self.pool.shutdown(wait=False, cancel_futures=True)
            raise
        self.pool.shutdown()

    def begin(self) -> None:
        """Begin what can be begun."""
        for unit in list(self.waiting):
            broken = next((name for name in unit.needs if name in self.lost), None)
            if broken is not None:
                self.waiting.remove(unit)
                self.lost[unit.name] = f"not begun, because {broken} failed"
                self.spent += unit.weight
            elif (
                len(self.running) < self.config.workers
                and all(name in self.done for name in unit.needs)
                and all(name in self.done or name in self.lost for name in unit.awaits)
            ):
                self.waiting.remove(unit)
                behind = {*unit.needs, *unit.awaits}
                lacked = facts_lack(self.places, unit.name, self.keys[unit.name])
                if lacked == self.lacks(unit) and not behind & self.fresh:
                    self.done.add(unit.name)  # the same units failed again
                    self.spent += unit.weight
                else:
                    self.running[self.pool.submit(perform, self.config, self.places.work, unit)] = unit

    def lacks(self, unit: Unit) -> list[str]:
        """Return the awaited units that a unit has to do without."""
        return sorted(name for name in unit.awaits if name in self.lost)

    def end(self, future: Future[tuple[dict[str, Any], float, float]]) -> None:
        """Write down what a unit found, or why it failed."""
        unit = self.running.pop(future)
        self.spent += unit.weight
        try:
            found, seconds, worked = future.result()
        except BrokenProcessPool:
            # A worker was killed, for memory perhaps; all running units are lost with it, once.
            for other in [unit, *self.running.values()]:
                self.fail(other, "its worker was killed")
            self.running.clear()
            self.pool.shutdown(wait=False, cancel_futures=True)
            self.pool = make_pool(self.config.workers)
        except Exception as error:  # one arm must not take the others with it
            self.fail(unit, f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))
        else:
            facts = {
                "key": self.keys[unit.name],
                "seconds": round(seconds, 2),
                "processor_seconds": round(worked, 2),
                "lacked": self.lacks(unit),
                "found": found,
            }
            write_json(self.places.facts(unit.name), facts)
            self.places.failure(unit.name).unlink(missing_ok=True)
            self.done.add(unit.name)
            self.fresh.add(unit.name)
            left = (time.monotonic() - self.began) / max(self.spent, 1e-9) * (self.total - self.spent)
            ended = len(self.done) + len(self.lost)
            say(f"[{ended}/{len(self.units)}] {unit.name}  {seconds:.1f} s  {told_time(left)} left")

    def fail(self, unit: Unit, why: str, details: str | None = None) -> None:
        """Write down that a unit failed."""
        self.lost[unit.name] = why
        trace = self.places.failure(unit.name)
        trace.parent.mkdir(parents=True, exist_ok=True)
        trace.write_text(details or why)
        say(f"{unit.name} FAILED: {why} (details: {trace})")


def facts_lack(places: Places, name: str, key: str) -> list[str] | None:
    """Return the awaited units that a unit's facts do without; None where there are no facts of these settings."""
    path = places.facts(name)
    if not path.exists():
        return None
    facts = read_json(path)
    return list(facts.get("lacked", [])) if facts["key"] == key else None


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
