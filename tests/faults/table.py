"""Makes every fault of the catalogue and writes what came of it into a page.

    python -m tests.faults.table --page docs/faults.md

Exits with 1 when anything was otherwise than expected. `--only F03,F11` makes these alone and writes no page.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import catalogue
from tests.faults.scene import CannotRun, Scene

PAGE = """# Faults

Written by `make faults`: each fault is made for real, mostly by `strace -e inject`, limits, small file systems and
signals, on a merge of three models of 3 MB in three output files; the numbers are those of rlmerge's reliability
rules. After each run the output must be absent or whole (to the byte what an unbroken run writes), inputs must be
untouched, nothing but what the rule allows may lie beside them, and there is no traceback. *Runs* counts them; for F60
it counts the states of a disk. Random kills of a longer merge are in [kill-cycles.md](kill-cycles.md).

| | fault | expected | runs | result |
| --- | --- | --- | --- | --- |
"""


def details(wrong: list[str]) -> str:
    """What ended otherwise, line by line."""
    return "\nWhat ended otherwise:\n\n" + "".join(f"- `{line[:300]}`\n" for line in wrong) if wrong else ""


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, help="where the table is written")
    parser.add_argument("--only", default="", help="numbers of faults")
    parser.add_argument("--folder", type=Path, help="where the models go; a temporary folder if unset")
    given = parser.parse_args()
    # Some faults take the working folder away.
    page = given.page and given.page.resolve()
    only = [number for number in given.only.split(",") if number]
    wrong: list[str] = []
    rows, failed, counts = [], False, {"made": 0, "runs": 0, "otherwise": 0, "elsewhere": 0}
    with tempfile.TemporaryDirectory(prefix="rlmerge-faults-", dir=given.folder) as folder:
        scene = Scene(Path(folder).resolve())
        order = [fault for fault in catalogue.FAULTS if not only or fault.number in only]
        for fault in sorted(order, key=lambda fault: fault.number):
            start = time.monotonic()
            runs = ""
            if fault.run is None:
                result = fault.elsewhere
                counts["elsewhere"] += 1
            else:
                scene.begin()
                try:
                    fault.run(scene)
                    result = "as expected" if not scene.wrong else f"**otherwise** ({len(scene.wrong)})"
                    runs = str(scene.runs)
                    counts["made"] += 1
                    counts["runs"] += scene.runs
                    counts["otherwise"] += bool(scene.wrong)
                except (OSError, ValueError, LookupError, AssertionError, subprocess.SubprocessError) as error:
                    # One that could not be looked at to the end has not ended as expected.
                    scene.wrong.append(f"{type(error).__name__}: {error}")
                    result, runs = "**otherwise**", str(scene.runs)
                    counts["made"] += 1
                    counts["otherwise"] += 1
                except CannotRun as reason:
                    result = f"cannot be made here: {reason}"
                    counts["elsewhere"] += 1
                failed = failed or bool(scene.wrong)
                wrong += [f"{fault.number}: {' '.join(line.split())}" for line in scene.wrong]
                print(*wrong[len(wrong) - len(scene.wrong) :], sep="\n", end="\n" * bool(scene.wrong), file=sys.stderr)
            rows.append(f"| {fault.number} | {fault.name} | {fault.expected} | {runs} | {result} |")
            print(f"{rows[-1]} {time.monotonic() - start:.1f} s", flush=True)
    if page is not None and not only:
        total = "{made} faults were made in {runs} runs, {otherwise} of them ended otherwise than expected; "
        total = (
            total.format(**counts)
            + f"{counts['elsewhere']} are tested elsewhere or cannot be made on the machine that wrote this."
        )
        page.write_text(PAGE + "\n".join(rows) + f"\n\n{total}\n" + details(wrong))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
