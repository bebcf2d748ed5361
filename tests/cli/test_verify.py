"""`rlmerge verify` and `rlmerge clean` on the command line."""

from __future__ import annotations


def damage(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_verify_in_all_modes(rlmerge, here):
    assert rlmerge("merge", "a", "b", "-m", "linear", "-o", "out").code == 0
    human = rlmerge("verify", "out")
    assert (human.code, human.out) == (0, "out is what the merge wrote (2 of 2 tensors in 1 file verified)\n")
    assert rlmerge("verify", "out", "--quiet").out == ""
    assert rlmerge("verify", "out", "--json").json["ok"] is True

    damage(here / "out")
    human = rlmerge("verify", "out")
    assert human.code == 8
    assert "error RLM-V023 tensor-changed: model.safetensors, tensor `model.norm.weight`: " in human.out
    assert "cause: " in human.out
    assert "remedy: " in human.out
    assert "1 problem (1 of 2 tensors in 1 file verified)" in human.out
    quiet = rlmerge("verify", "out", "--quiet")
    assert (quiet.code, quiet.out.count("\n")) == (8, 1)
    data = rlmerge("verify", "out", "--json")
    assert data.code == 8
    assert [(f["id"], f["severity"], f["tensor"]) for f in data.json["findings"]] == [
        ("RLM-V023", "error", "model.norm.weight")
    ]


def test_verify_needs_a_report(rlmerge):
    run = rlmerge("verify", "a")
    assert (run.code, run.out) == (3, "")
    assert "rlmerge.json" in run.err
    assert rlmerge("verify", "nosuch").code == 3
    assert rlmerge("verify", "a", "--threads", "x").code == 2


def test_hostile_names_in_a_report(rlmerge, here):
    assert rlmerge("merge", "a", "b", "-m", "linear", "-o", "out").code == 0
    path = here / "out" / "rlmerge.json"
    path.write_text(path.read_text().replace("model.norm.weight", "model.\\u001b[31m\\u202enorm"))
    run = rlmerge("verify", "out")
    assert run.code == 8
    assert "RLM-V020" in run.out
    assert "\x1b" not in run.out + run.err
    assert "\u202e" not in run.out + run.err


def test_clean_in_all_modes(rlmerge, here):
    def leave():
        stage = here / ".out.rlmerge-4194303-0123456789abcdef.partial"
        stage.mkdir()
        (stage / "model.safetensors").write_bytes(b"x" * 5000)
        return stage

    stage = leave()
    assert rlmerge("clean", ".", "--dry-run").out.startswith("would remove")
    assert stage.is_dir()
    assert rlmerge("clean", ".").out.startswith("removed")
    assert not stage.exists()
    leave()
    assert rlmerge("clean", "out", "--quiet").out.strip().endswith(".partial")
    leave()
    (row,) = rlmerge("clean", ".", "--json").json
    assert row["removed"] is True
    assert row["bytes"] > 0
    assert rlmerge("clean", ".", "--json").json == []
    assert rlmerge("clean", "no/such").code == 3
