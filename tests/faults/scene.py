"""A merge with faults: how runs are started, and what must hold after each, whatever happened."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.faults.merges import Merge, digest, identities, remove, write_models

#: Exit codes of a process that was killed.
KILLED = (-9, 137)


class CannotRun(Exception):
    """The fault cannot be made on this machine; says why."""


class Scene:
    """A small merge in a folder, the output that it should have, and what was wrong so far."""

    def __init__(self, root: Path, megabytes: float = 3, tensors: int = 6) -> None:
        self.root = root
        root.mkdir(exist_ok=True)
        root.chmod(0o755)  # others must come to the models: some runs are another user's
        write_models(root, megabytes, tensors=tensors)
        self.merge = Merge(root, "ties", 2, ["--shard-size", "2MB"])
        whole = self.merge.run(output="whole", check=True)
        assert whole.returncode == 0, whole.stderr
        self.expected = digest(root / "whole")
        self.inputs = identities(root)
        self.runs = 0
        self.wrong: list[str] = []

    def begin(self) -> None:
        """Forgets what was seen, and removes what is there."""
        self.runs, self.wrong = 0, []
        self.clear()

    def clear(self) -> None:
        """Removes outputs and stages."""
        for path in [self.merge.output, *self.merge.stages()]:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)

    def run(self, *command: str, wait: float = 60, **options) -> subprocess.CompletedProcess:
        """Runs a command in the folder; one that takes too long is killed, with the exit code 124."""
        self.runs += 1
        process = subprocess.Popen(
            command, cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )
        try:
            out, err = process.communicate(timeout=wait)
            code = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            code = 124
        return subprocess.CompletedProcess(command, code, out or "", err or "")

    def rlmerge(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        """Runs the command line."""
        return self.run(sys.executable, "-m", "rlmerge", *arguments, **options)

    def shell(self, script: str, *more: str, **options) -> subprocess.CompletedProcess:
        """Runs a shell script in which `$M` is the merge without its output, `$R` is rlmerge."""
        environment = {**os.environ, "R": f"{sys.executable} -m rlmerge"}
        environment["M"] = " ".join(self.merge.command()).replace("-o out ", "")
        return self.run(*more, "sh", "-c", script, env=environment, **options)

    def on_disk(self, megabytes: float, script: str, options: str = "") -> subprocess.CompletedProcess:
        """Runs a shell script with a file system of this size at `disk`, which is gone afterwards."""
        (self.root / "disk").mkdir(exist_ok=True)
        size = int(megabytes * 1e6) // 4096 * 4096
        mount = f"mount -t tmpfs -o size={size},mode=0755{options} rlmerge-test disk || exit 99"
        run = self.shell(f"{mount}\n{script}", "unshare", "-m")
        if run.returncode == 99 or run.stderr.startswith("unshare"):
            raise CannotRun("nothing can be mounted here")
        return run

    def python(self, script: str, **options) -> subprocess.CompletedProcess:
        """Runs a script of the module's users."""
        return self.run(sys.executable, "-c", script, **options)

    def check(self, run: subprocess.CompletedProcess, codes: tuple[int, ...], where: str, words: str = "") -> None:
        """The exit code and the message; no traceback, no panic."""
        if run.returncode not in codes:
            self.wrong.append(f"{where}: exit code {run.returncode}: {(run.stderr or run.stdout)[-200:]}")
        said = run.stderr + run.stdout
        if "Traceback" in said or "panicked" in said:
            self.wrong.append(f"{where}: a traceback: {said[-200:]}")
        if words and words not in said:
            self.wrong.append(f"{where}: nothing of `{words}`: {said[-200:]}")

    def look(
        self, run: subprocess.CompletedProcess, codes: tuple[int, ...], where: str, words: str = "", **may
    ) -> None:
        """The same, and what lies there: the output whole or absent, no stage (unless `stage`), the inputs untouched.

        With `output` the output may be there although the run failed. Afterwards nothing is there.
        """
        self.check(run, codes, where, words)
        if self.merge.output.exists():
            if digest(self.merge.output) != self.expected:
                self.wrong.append(f"{where}: the output is not whole")
            elif run.returncode != 0 and not may.get("output"):
                self.wrong.append(f"{where}: an output after exit code {run.returncode}")
        elif run.returncode == 0:
            self.wrong.append(f"{where}: no output")
        if self.merge.stages() and not may.get("stage"):
            self.wrong.append(f"{where}: a stage is left")
        if identities(self.root) != self.inputs:
            self.wrong.append(f"{where}: an input was changed")
        self.clear()

    def wait_for_stage(self, process: subprocess.Popen) -> bool:
        """Waits until a run has its stage."""
        self.runs += 1
        return self.merge.wait_for_stage(process)

    def end(self, process: subprocess.Popen, wait: float = 60) -> subprocess.CompletedProcess:
        """Waits for the end of a run that was started."""
        try:
            out, err = process.communicate(timeout=wait)
            return subprocess.CompletedProcess(process.args, process.returncode, out, err)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            return subprocess.CompletedProcess(process.args, 124, out, err)

    def remove(self, name: str) -> None:
        """Removes a folder of files."""
        remove(self.root / name)


def interrupt(process: subprocess.Popen, number: int = signal.SIGINT) -> float:
    """Sends a signal, and gives the time at which it was sent."""
    if process.poll() is None:
        os.kill(process.pid, number)
    return time.monotonic()
