# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "rlmerge", "torch>=2.9", "transformers>=4.57", "pydantic>=2.12", "ruamel.yaml>=0.18", "numpy>=2",
#   "safetensors>=0.7", "matplotlib>=3.9",
# ]
# ///
"""Run a whole study: bases, experts, evaluation, merges, statistics, landscapes, and the page of results.

    python study/run.py --config study/configs/tiny-cpu.yaml
    python study/run.py --config study/configs/llama-3.1-8b.yaml --dry-run
    python study/run.py --config study/configs/tiny-cpu.yaml --page      only the page, from what is there

Ctrl-C stops it, and the same command goes on where it stopped. A unit that fails does not stop the others.
"""

from __future__ import annotations

import argparse
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

if not __package__:  # run as a script: the folder of `study` belongs on the path, and `study` itself does not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from study.configuration import StudyConfig, load_config
from study.schedule import Unit, plan_units, run_all, say
from study.settings import SettingsError


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="YAML file, such as study/configs/tiny-cpu.yaml")
    parser.add_argument("--work", type=Path, help="folder of models and facts (work/NAME beside the results)")
    parser.add_argument("--results", type=Path, help="folder of the page (study/results/NAME)")
    parser.add_argument("--workers", type=int, help="processes at a time")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and stop")
    parser.add_argument("--page", action="store_true", help="only make the page anew")
    told = parser.parse_args()
    try:
        config = load_config(told.config)
    except SettingsError as error:
        sys.exit(f"error: {error}")
    if told.workers:
        config.workers = told.workers
    home = Path(__file__).resolve().parent
    work = told.work or home / "work" / config.name
    results = told.results or home / "results" / config.name
    check_rlmerge()
    if not told.dry_run:
        check_installed(config)
        find_base(config)
    try:
        units = plan_units(config)
    except ValueError as error:
        sys.exit(f"error: {told.config}: merging: {error}")
    if told.dry_run:
        describe(config, units, work, results)
        return
    lost = {}
    if not told.page:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            lost = run_all(config, work, units)
        except KeyboardInterrupt:
            sys.exit("\nstopped; the same command goes on from here")
        except SettingsError as error:
            sys.exit(f"error: {error}")
    from study.page import write_page

    write_page(config, work, results, units)
    say(f"results: {results / 'index.html'}")
    if lost:
        sys.exit(f"{len(lost)} of {len(units)} units failed or could not be begun; the page says which")


def describe(config: StudyConfig, units: list[Unit], work: Path, results: Path) -> None:
    """Say what a study would do."""
    stages: dict[str, int] = {}
    for unit in units:
        stages[unit.stage] = stages.get(unit.stage, 0) + 1
    print(f"{config.name}: {config.meaning}")
    print(f"base: {config.base or 'pretrained here'}; seeds: {config.seeds}; tasks: {', '.join(config.tasks)}")
    print(f"arms: {', '.join(config.arms)}")
    print("units: " + ", ".join(f"{count} {stage}" for stage, count in stages.items()))
    print(f"work: {work}\nresults: {results}")


def check_rlmerge() -> None:
    """Stop when rlmerge is missing: its table of methods decides what there is to do."""
    if find_spec("rlmerge") is None:
        sys.exit("error: not installed: rlmerge\nhint: pip install 'rlmerge[study]'")


def check_installed(config: StudyConfig) -> None:
    """Stop before anything is begun when a library or the accelerator is missing."""
    wanted = ["torch", "transformers", "safetensors", "matplotlib"]
    engines = {config.training(arm, config.tasks[0], 0, "base", Path("out")).engine for arm in config.arms}
    if "trl" in engines:
        wanted += ["trl", "datasets", "accelerate", "peft"]
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        sys.exit(f"error: not installed: {', '.join(missing)}\nhint: pip install 'rlmerge[study]'")
    if "trl" in engines:
        import torch

        if not torch.cuda.is_available():
            sys.exit(
                f"error: {config.name} trains with TRL and needs a GPU, and none is here\n"
                "hint: study/configs/tiny-cpu.yaml runs on two CPU cores; --dry-run checks this configuration"
            )


def find_base(config: StudyConfig) -> None:
    """Put the folder for a base that is named by its hub id, or stop with the way out."""
    if config.base is None or Path(config.base).is_dir():
        return
    if config.base.count("/") != 1:
        sys.exit(f"error: {config.base}: no such folder\nhint: `make smollm2` writes a base; hub ids are owner/name")
    try:
        from huggingface_hub import snapshot_download

        wanted = ["*.json", "*.safetensors", "*.model", "*.txt"]
        config.base = snapshot_download(config.base, allow_patterns=wanted)
    except Exception as error:  # no network, no such model, a gate: whatever it is, the way out is the same
        sys.exit(
            f"error: {config.base} cannot be had here ({type(error).__name__})\n"
            f"hint: `hf download {config.base}` on a machine with network, or give a folder as `base`"
        )


if __name__ == "__main__":
    main()
