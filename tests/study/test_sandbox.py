"""The sandbox lets code compute, and nothing else."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from study.tasks.sandbox import Call, Sandbox


@pytest.fixture
def sandbox():
    made = Sandbox(seconds=1.0)
    yield made
    made.close()


def outputs(sandbox, body, inputs=(1,)):
    return sandbox.run([Call(f"def answer(x):\n    {body}", inputs)])[0]


def test_it_computes(sandbox):
    assert outputs(sandbox, "import math; return math.factorial(x)", (1, 5)) == [1, 120]
    assert outputs(sandbox, "return [x, (x, 'a'), {x: None}]") == [[1, [1, "a"], {"1": None}]]


@pytest.mark.parametrize(
    "body",
    [
        "import socket; socket.socket(); return 1",
        "import os; os.fork(); return 1",
        "import os; os.system('true'); return os.stat('/definitely/missing')",
        "import subprocess; subprocess.run(['true']); return 1",
        "open('/tmp/rlmerge-sandbox-test', 'w'); return 1",
        "import os; os.kill(os.getppid(), 9); return 1",
        "import os; os.unlink('/tmp/rlmerge-sandbox-test'); return 1",
        "return bytearray(10**10)",
        "return x.no_such_thing",
        "return object()",
        "import os; os._exit(0)",
        "raise SystemExit",
        "while True: pass",
        "answer.__code__ = None; return 1",
    ],
)
def test_it_refuses(sandbox, body):
    assert outputs(sandbox, body) is None
    assert outputs(sandbox, "return x + 1") == [2]  # and goes on


def test_time_ends(sandbox):
    began = time.monotonic()
    assert outputs(sandbox, "import time; time.sleep(30); return 1") is None
    assert time.monotonic() - began < 5


def test_an_answer_that_waits_for_its_turn_is_not_wrong(sandbox):
    """Eight answers of 0.4 s each take longer than the limit of 1 s together, on few cores, and each is within it."""
    body = (
        "import time\n    end = time.process_time() + 0.4\n    while time.process_time() < end: pass\n    return x + {}"
    )
    calls = [Call(f"def answer(x):\n    {body.format(n)}", (1,)) for n in range(8)]
    assert sandbox.run(calls) == [[1 + n] for n in range(8)]


def test_an_answer_that_was_stopped_for_a_while_is_not_wrong(sandbox):
    """Whoever stops a run and lets it go on stops the answers in it, too; the clock runs on."""
    assert outputs(sandbox, "return x") == [1]
    server = sandbox._server.pid
    body = "import time\n    end = time.process_time() + 0.5\n    while time.process_time() < end: pass\n    return x"
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(outputs, sandbox, body)
        children = Path(f"/proc/{server}/task/{server}/children")
        while not children.read_text():
            time.sleep(0.01)
        child = int(children.read_text())
        os.kill(child, signal.SIGSTOP)
        time.sleep(2.5)
        os.kill(child, signal.SIGCONT)
        assert asked.result() == [1]


def test_no_answer_reaches_the_next(sandbox):
    assert outputs(sandbox, "import builtins; builtins.len = lambda o: 99; return 1") == [1]
    assert outputs(sandbox, "return len([x])") == [1]


def test_tests_pass_only_when_they_ran(sandbox):
    source = "def add(a, b):\n    return a + b"
    good, bad = "assert add(1, 2) == 3", "assert add(1, 2) == 4"
    assert sandbox.run([Call(source, tests=good)]) == [[True]]
    assert sandbox.run([Call(source, tests=bad)]) == [None]
    assert sandbox.run([Call("import os; os._exit(0)", tests=good)]) == [None]
    assert sandbox.run([Call("raise SystemExit(0)", tests=good)]) == [None]


def test_a_syntax_error_is_a_wrong_answer(sandbox):
    assert sandbox.run([Call("def answer(x:", (1,))]) == [None]


def test_the_server_is_started_again(sandbox):
    assert outputs(sandbox, "return x") == [1]
    sandbox._server.kill()
    sandbox._server.wait()
    assert outputs(sandbox, "return x * 2") == [2]
