"""The command line that all training scripts share: a YAML file, overrides, and errors with the way out."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from study.settings import SettingsError, read_settings


def train_from_command_line(algorithms: tuple[str, ...], description: str | None) -> None:
    """Read settings from the command line, train, and print the run's id."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="YAML file of settings")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="settings that win over the file's")
    told = parser.parse_args()
    try:
        settings = read_settings(algorithms, told.config, told.overrides)
    except SettingsError as error:
        sys.exit(f"error: {error}")
    if told.dry_run:
        print(settings.model_dump_json(indent=1))
        return
    if settings.engine == "own" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.exit("error: our own trainers use one process\nhint: set engine=trl, or run without `accelerate launch`")
    try:
        if settings.engine == "trl":
            from study.trl_training import train
        else:
            from study.training import train
        manifest = train(settings, lambda line: print(line, file=sys.stderr, flush=True))
    except (FileNotFoundError, FloatingPointError, ModuleNotFoundError, OSError, ValueError) as error:
        if os.environ.get("RLMERGE_DEBUG"):
            raise
        sys.exit(f"error: {error}\nhint: RLMERGE_DEBUG=1 shows where")
    print(manifest["run"])
