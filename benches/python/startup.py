"""How long a user waits before anything happens: medians of `rlmerge --version` and of `import rlmerge`."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import record
from measure import measure

VERSION_LIMIT_S = 0.25
IMPORT_LIMIT_S = 0.1
IMPORT = """
import json, sys, time
before = set(sys.modules)
begin = time.perf_counter()
import rlmerge
took = time.perf_counter() - begin
heavy = {"matplotlib", "numpy", "pydantic", "rich", "ruamel", "torch", "transformers", "typer"} & set(sys.modules)
print(json.dumps({"seconds": took, "modules": len(set(sys.modules) - before), "heavy": sorted(heavy)}))
"""


def import_once() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    beside = Path(sys.executable).with_name("rlmerge")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rlmerge", default=str(beside) if beside.exists() else "rlmerge", help="what to measure")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--no-record", action="store_true", help="print only")
    arguments = parser.parse_args()

    import_once(), measure([arguments.rlmerge, "--version"])  # the first run compiles and warms the page cache
    imports, versions, bare = [], [], []
    for _ in range(arguments.runs):
        versions.append(measure([arguments.rlmerge, "--version"]).wall_s)
        imports.append(import_once())
        bare.append(measure([sys.executable, "-c", "pass"]).wall_s)
    result = {
        "runs": arguments.runs,
        "version_s": round(statistics.median(versions), 4),
        "version_limit_s": VERSION_LIMIT_S,
        "import_s": round(statistics.median(one["seconds"] for one in imports), 4),
        "import_limit_s": IMPORT_LIMIT_S,
        "import_modules": imports[0]["modules"],
        "import_heavy": imports[0]["heavy"],
        "bare_python_s": round(statistics.median(bare), 4),
    }
    for name, label in (("version", "rlmerge --version"), ("import", "import rlmerge")):
        took, limit = result[f"{name}_s"], result[f"{name}_limit_s"]
        print(f"{label:18} {took:.3f} s, limit {limit} s: {'ok' if took <= limit else 'MISSED'}")
    print(f"{'bare python':18} {result['bare_python_s']:.3f} s")
    print(f"{'heavy imports':18} {', '.join(result['import_heavy']) or 'none'}")
    if not arguments.no_record:
        print(f"record: {record.save('startup', result)}")


if __name__ == "__main__":
    main()
