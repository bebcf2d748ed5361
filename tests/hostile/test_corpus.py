"""Every hostile input gets one clear answer, from module and command line, and the page about them is true."""

import subprocess
import sys

import pytest

import rlmerge
from tests import tensorfile
from tests.hostile import table
from tests.hostile.corpus import CASES
from tests.hostile.outcome import outcome

IDS = [case.name for case in CASES]


def test_case_names_are_unique():
    assert len(set(IDS)) == len(IDS)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_one_clear_answer(case, tmp_path):
    answer = outcome(case, tmp_path)
    assert answer.code == case.code, answer.message
    assert answer.seconds < 20, "it waited for something"
    assert answer.reference == case.reference, "the reference implementation has changed its mind"
    if case.code is None:
        return
    assert answer.exit_code == 3
    assert answer.names_file, answer.message
    assert answer.names_tensor is not False, answer.message
    assert answer.hint
    assert len(answer.message) < 2000
    assert not any(ord(c) < 32 and c != "\n" or c in "\x7f\u202e\u200b\ufeff" for c in answer.message)


def test_never_laxer_than_the_reference_and_stricter_only_as_documented():
    documented = {"twice-", "entry-list", "dtype-object", "rank-65"}
    for case in CASES:
        if case.reference is False:
            assert case.code is not None, case.name
        elif case.reference and case.code is not None:
            assert any(case.name.startswith(start) for start in documented), case.name


@pytest.mark.parametrize(
    "name", ["layout-overlap", "name-escape-codes", "name-rich-markup", "fifo", "index-shard-parent"]
)
def test_the_command_says_the_same_and_writes_nothing(name, tmp_path):
    case = next(c for c in CASES if c.name == name)
    path = case.build(tmp_path)
    good = tmp_path / "good.safetensors"
    tensorfile.write(good, {})
    with pytest.raises(rlmerge.RlmergeError) as raised:
        rlmerge.merge([good, path], method="linear", output=tmp_path / "out.safetensors")
    command = [sys.executable, "-m", "rlmerge", "merge", good, path, "-m", "linear", "-o", tmp_path / "out.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 3
    said = "".join(done.stderr.split())
    assert "".join(str(raised.value).split()) in said
    assert "\x1b" not in done.stderr
    assert "Traceback" not in done.stderr
    assert "hint:" in done.stderr
    assert not (tmp_path / "out.safetensors").exists()


def test_the_page_is_up_to_date():
    assert table.PAGE.read_text() == table.page(table.outcomes())
