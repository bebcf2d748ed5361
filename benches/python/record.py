"""Keep results under `benches/record/<machine>/<date>.json`, one object a benchmark."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).resolve().parent.parent / "record"
NOISE = re.compile(r"\((?:r|tm)\)|\bcpu\b|\bprocessor\b|\b\d+-core\b|@.*", re.IGNORECASE)


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def machine_name() -> str:
    """`amd-epyc-2c`: model of the processor and number of cores this process may use."""
    words = re.findall(r"[a-z0-9]+", NOISE.sub(" ", cpu_model()).lower())
    return "-".join([*words, f"{usable_cores()}c"])


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def surroundings() -> dict[str, Any]:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", RECORDS, *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_gb": round(pages * page / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "commit": git("rev-parse", "--short", "HEAD") or None,
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
    }


def save(benchmark: str, result: dict[str, Any], records: Path = RECORDS) -> Path:
    """Put the result into today's record of this machine; an older one of the same benchmark and day gives way."""
    path = records / machine_name() / f"{datetime.date.today().isoformat()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[benchmark] = {"surroundings": surroundings(), **result}
    path.write_text(json.dumps(kept, indent=1) + "\n")
    return path
