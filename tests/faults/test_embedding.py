"""The module inside other programs: signals on and off the main thread, callbacks, threads, processes."""

import gc
import json
import multiprocessing
import os
import pty
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import rlmerge
from tests.faults.merges import digest, write_models
from tests.faults.soak import count, soak


@pytest.fixture
def here(tmp_path, monkeypatch):
    write_models(tmp_path, 3, tensors=8)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Models that take a while."""
    root = tmp_path_factory.mktemp("large")
    write_models(root, 120, tensors=20)
    return root


def merge(output, **more):
    return rlmerge.merge(["a", "b"], base="base", method="ties", output=output, durability="none", **more)


class TestCallbacks:
    def test_an_exception_comes_out_with_its_traceback(self, here):
        def refuse(progress):
            raise LookupError(progress["tensors_total"])

        with pytest.raises(LookupError, match="8") as caught:
            merge("out", progress=refuse)
        assert caught.traceback[-1].name == "refuse"
        assert not list(here.glob(".*rlmerge*"))

    def test_a_slow_one_slows_nothing_but_itself(self, here):
        calls = []
        report = merge("out", progress=lambda progress: (time.sleep(0.4), calls.append(progress)))
        assert report.output.is_dir()
        assert len(calls) >= 1
        assert calls[-1]["tensors_done"] == calls[-1]["tensors_total"]

    def test_one_that_merges(self, here):
        inner = []

        def again(_):
            if not inner:
                inner.append(None)
                inner[0] = merge("inner")

        merge("out", progress=again)
        assert digest(here / "out") == digest(inner[0].output)

    def test_one_that_merges_into_the_same_output(self, large, monkeypatch):
        monkeypatch.chdir(large)
        refused = []

        def again(_):
            if not refused:
                try:
                    merge("same")
                except rlmerge.OutputError as error:
                    refused.append(error)

        merge("same", progress=again)
        # Where the outer one was at its end, the output is there already.
        assert [error.exit_code for error in refused] == [6]


class TestThreads:
    def test_eight_merge_at_once(self, here):
        merge("warm")
        gc.collect()  # exceptions of earlier tests hold plans, and those their files
        before = threading.active_count(), count("fd"), count("task")
        with ThreadPoolExecutor(8) as pool:
            reports = list(pool.map(lambda i: merge(f"out{i}"), range(8)))
        assert len({digest(report.output) for report in reports}) == 1
        after = threading.active_count(), count("fd"), count("task")
        assert after == before

    def test_eight_want_one_output(self, here):
        expected = digest(merge("alone").output)

        def attempt(_):
            try:
                merge("out")
            except rlmerge.OutputError as error:
                return error.code
            return "written"

        with ThreadPoolExecutor(8) as pool:
            results = sorted(pool.map(attempt, range(8)))
        assert results.count("written") == 1
        assert set(results) <= {"written", "output_exists", "output_locked"}
        assert digest(here / "out") == expected
        assert not list(here.glob(".*rlmerge*"))

    def test_cancel_from_another_thread(self, large, monkeypatch):
        monkeypatch.chdir(large)
        plan = rlmerge.plan(["a", "b"], base="base", method="ties", output="stopped", threads=1)
        plan.cancel()  # nothing is at work, so nothing is stopped
        raised = []

        def work():
            try:
                plan.run()
            except KeyboardInterrupt as interrupt:
                raised.append(interrupt)

        worker = threading.Thread(target=work)
        worker.start()
        while not list(large.glob(".stopped.rlmerge-*")) and worker.is_alive():
            time.sleep(0.001)
        start = time.monotonic()
        plan.cancel()
        worker.join(30)
        assert len(raised) == 1
        assert time.monotonic() - start < 5
        assert not (large / "stopped").exists()
        assert not list(large.glob(".stopped*"))
        assert plan.run().output.is_dir(), "a cancelled plan can be run again"


def in_another_process(folder, output):
    os.chdir(folder)
    merge(output)


class TestProcesses:
    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_children_merge(self, here, method):
        expected = digest(merge("parent").output)
        children = [
            multiprocessing.get_context(method).Process(target=in_another_process, args=(here, f"child{i}"))
            for i in range(2)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join(60)
            assert child.exitcode == 0
        assert {digest(here / f"child{i}") for i in range(2)} == {expected}

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_fork_in_the_middle_of_a_merge(self, large, monkeypatch):
        monkeypatch.chdir(large)
        children = []

        def fork(_):
            if not children:
                child = os.fork()
                if child == 0:
                    # The child has the descriptors of the parent, and none of its threads.
                    try:
                        merge("forked")
                        os._exit(0)
                    finally:
                        os._exit(1)
                children.append(child)

        merge("forking", progress=fork)
        assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
        assert digest(large / "forking") == digest(large / "forked")
        assert not list(large.glob(".fork*"))


START = """
import json, os, signal, sys, threading, time
import rlmerge
# Whoever runs the tests may ignore signals (nohup does), and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
def say(**values):
    print(json.dumps(values), flush=True)
def left():
    return [name for name in os.listdir() if name.startswith(".out")]
def threads():
    # A thread that was waited for may stand in the list for a moment more.
    end = time.monotonic() + 5
    while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < end:
        time.sleep(0.01)
    return len(os.listdir("/proc/self/task"))
"""
ON_THE_MAIN_THREAD = """
say(ready=True)
try:
    rlmerge.merge(["a", "b"], base="base", method="ties", output="out", threads=1)
    say(ended=True)
except KeyboardInterrupt:
    say(at=time.monotonic(), threads=threads(), left=left(), output=os.path.exists("out"))
report = rlmerge.merge(["a", "b"], method="linear", output="next")
say(next=report.output.is_dir())
"""
OFF_THE_MAIN_THREAD = """
plan = rlmerge.plan(["a", "b"], base="base", method="ties", output="out", threads=1)
raised = []
def work():
    try:
        plan.run()
    except KeyboardInterrupt:
        raised.append(True)
worker = threading.Thread(target=work)
worker.start()
say(ready=True)
try:
    # Not `join`: interrupted, it takes the thread for ended (up to Python 3.12).
    while worker.is_alive():
        time.sleep(0.05)
    say(ended=True)
except KeyboardInterrupt:
    # The merge goes on: the signal was the main thread's.
    say(at=time.monotonic(), alive=worker.is_alive())
plan.cancel()
worker.join()
say(threads=threads(), left=left(), output=os.path.exists("out"), raised=raised)
"""


def press_ctrl_c(root, script):
    """Runs a script on a terminal of its own, presses Ctrl-C there while it merges, and gives what it said."""
    for name in ("out", "next"):
        subprocess.run(["rm", "-rf", root / name], check=True)
    terminal, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", START + script],
        cwd=root,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        assert json.loads(process.stdout.readline()) == {"ready": True}
        while not list(root.glob(".out.rlmerge-*")) and process.poll() is None:
            time.sleep(0.001)
        pressed = time.monotonic()
        os.write(terminal, b"\x03")
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        os.close(terminal)
    assert process.returncode == 0, err
    said = {}
    for line in out.splitlines():
        said |= json.loads(line)
    if "ended" in said:
        pytest.skip("the merge ended before the key was pressed")
    assert said.pop("at") - pressed < 5
    return said


def test_ctrl_c_on_the_main_thread(large):
    said = press_ctrl_c(large, ON_THE_MAIN_THREAD)
    assert said == {"threads": 1, "left": [], "output": False, "next": True}


def test_ctrl_c_while_another_thread_merges(large):
    said = press_ctrl_c(large, OFF_THE_MAIN_THREAD)
    assert said == {"alive": True, "threads": 1, "left": [], "output": False, "raised": [True]}


def test_a_second_ctrl_c_ends_the_process_at_once(here):
    script = """
import os, signal, sys
import rlmerge.report
from rlmerge.cli.app import main
signal.signal(signal.SIGINT, signal.default_int_handler)
def run(self, progress, **options):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        # As if a disk took long to remove what was written.
        os.kill(os.getpid(), signal.SIGINT)
    print("not at once")
rlmerge.report.Plan.run = run
sys.argv = ["rlmerge", "merge", "a", "b", "-m", "linear"]
sys.exit(main())
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=here, capture_output=True, text=True)
    assert run.returncode == 130
    assert run.stdout == ""
    assert "Traceback" not in run.stderr


def test_memory_descriptors_and_threads_stay_as_they_are(tmp_path):
    result = soak(tmp_path, merges=40, megabytes=1)
    assert result["descriptors"] == [0, 0]
    assert result["threads"] == [0, 0]
    # So short a run says little about memory; `make soak` runs 500.
    assert result["bytes_each"] < 64 << 10
