"""Do what docs/add-a-method.md says in a copy of the repository, and see whether the method works.

    python scripts/follow_add_a_method.py          needs Rust, and the environment of `make test`

A block with `file=` is a new file, or, when it is an `edit`, lines to put in after the one that holds the text of
`after:`, or text to put right behind that of `inside:`. The copy is built in the same target folder, so that
dependencies are compiled once.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "add-a-method.md"
BLOCK = re.compile(r"^```(\w+) file=(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def main() -> None:
    """Follow the page, build, and try the method."""
    with tempfile.TemporaryDirectory(prefix="rlmerge-follow-") as folder:
        copy = Path(folder) / "rlmerge"
        copy_sources(copy)
        for kind, name, text in BLOCK.findall(PAGE.read_text()):
            path = copy / name
            if kind == "edit":
                edit(path, text)
            elif path.exists():
                sys.exit(f"{name} is to be a new file, and is there already")
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        build(copy)
        tell = run(copy, sys.executable, "-m", "rlmerge", "methods", "median")
        if "middle value" not in tell:
            sys.exit(f"`rlmerge methods median` says\n{tell}")
        run(copy, sys.executable, "scripts/write_method_tables.py")
        if "| `median` |" not in (copy / "README.md").read_text():
            sys.exit("README's table does not hold the method")
        run(copy, sys.executable, "-m", "pytest", "-q", "tests/property/test_median.py", "tests/docs/test_methods.py")
    print("the page was followed: the method is built, listed, documented and right")


def copy_sources(copy: Path) -> None:
    """Copy what git would take."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, names):
        if (ROOT / name).is_file():
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)


def edit(path: Path, text: str) -> None:
    """Put what an `edit` says into the first line that holds each text, or after it."""
    lines = path.read_text().splitlines()
    for how, anchor, new in re.findall(r"^(after|inside): (.*)\n((?:(?!after: |inside: ).*\n)+)", text, re.MULTILINE):
        at = next((at for at, line in enumerate(lines) if anchor in line), None)
        if at is None:
            sys.exit(f"{path.name} has no line with {anchor!r}")
        if how == "inside":
            lines[at] = lines[at].replace(anchor, anchor + new.rstrip("\n"), 1)
        else:
            lines[at + 1 : at + 1] = new.splitlines()
    path.write_text("\n".join(lines) + "\n")


def build(copy: Path) -> None:
    """Build the extension module into the copy."""
    target = os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target"))
    command = ["cargo", "build", "--release", "--locked", "--package", "rlmerge-py", "--target-dir", target]
    environment = {**os.environ, "PYO3_PYTHON": sys.executable}
    subprocess.run(command, cwd=copy, check=True, env=environment)
    library = next(Path(target, "release").glob("lib_core.*[!d]"))
    shutil.copyfile(library, copy / "python" / "rlmerge" / "_core.abi3.so")


def run(copy: Path, *command: str) -> str:
    """Run a command with the copy's package, and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(copy / "python")}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
