"""Configurations, the scheduler, statistics, verdicts, and one whole study in miniature."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from study.answers import answers  # noqa: E402
from study.claims import over_cells, verdict  # noqa: E402
from study.configuration import StudyConfig, load_config  # noqa: E402
from study.facts import Facts  # noqa: E402
from study.intervals import (  # noqa: E402
    correlation_interval,
    interval,
    interval_of,
    rank_correlation,
    resampled_means,
    widened,
)
from study.records import read_json, write_json  # noqa: E402
from study.results import analyse  # noqa: E402
from study.schedule import is_extra, keys_of, only_run, plan_units, run_all  # noqa: E402
from study.settings import SettingsError  # noqa: E402
from study.stages import Places  # noqa: E402

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "study" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_whole(path):
    config = load_config(path)
    assert config.name == path.stem
    units = plan_units(config)
    names = [unit.name for unit in units]
    assert len(names) == len(set(names))
    for at, unit in enumerate(units):
        assert set(unit.needs + unit.awaits) <= set(names[:at]), "units come after what they need"


def test_what_the_claims_need_comes_first():
    """A run that is stopped early has all seeds of the claims before the last of thirty methods."""
    config = tiny_config(seeds=[0, 1], merging={"matched_methods": ["linear", "ties"], "method_arms": ["grpo"]})
    units = plan_units(config)
    extra = [is_extra(config, unit) for unit in units]
    assert extra == sorted(extra)
    assert sum(extra) > 20
    late = [unit.arguments["method"] for unit in units if is_extra(config, unit)]
    assert late[0] == late[1], "a method is finished for all seeds before the next is begun"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_dry_runs(path):
    command = [sys.executable, str(ROOT / "study" / "run.py"), "--config", str(path), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=path.parent)
    assert done.returncode == 0, done.stderr
    assert "units:" in done.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ["sft", "gpro"]}, "unknown arm `gpro`"),
        ({"arms": ["sft"]}, "reference `grpo` is not among the arms"),
        ({"tasks": ["maths", "code"]}, "unknown task `maths`"),
        ({"train": {"lr": 1}}, "lr"),
        ({"pretrain": {"stepz": 1}}, "stepz"),
        ({"form": "english"}, "form has to be compact"),
        ({"base": "b", "pretrain": {"steps": 1}}, "exclude each other"),
        ({"landscape": {"random_directions": 2}}, "random_directions"),
    ],
)
def test_bad_configurations_say_what_is_wrong(change, message, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(json.dumps({"name": "bad", "arms": ["sft", "grpo"], **change}))
    with pytest.raises(SettingsError, match=message):
        load_config(path)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.01, 0.2, "reproduced"),
        (-0.2, -0.01, "opposite"),
        (-0.01, 0.015, "not reproduced"),
        (-0.1, 0.01, "undecided"),
        (float("nan"), 0.1, "no data"),
    ],
)
def test_verdicts_follow_from_intervals(low, high, word):
    assert verdict({"value": 0.0, "low": low, "high": high}) == word


def test_rank_correlation():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 400]) == pytest.approx(1)
    assert rank_correlation([1, 2, 2, 3], [4, 3, 3, 1]) == pytest.approx(-1)
    value, low, high = correlation_interval(list(range(20)), list(range(20)), [n // 4 for n in range(20)])
    assert value == pytest.approx(1)
    assert low == pytest.approx(high) == pytest.approx(1)


def test_means_by_matrices_are_the_means():
    """The fast way gives the interval of the plain way."""
    values = np.random.default_rng(1).random((3, 4, 50))
    plain = interval(lambda s, i: float(values[s][:, :, i].mean()), 3, 50)
    assert interval_of(resampled_means(values).mean(1), 3) == pytest.approx(plain)


def test_intervals_cover_the_truth():
    rng, held = np.random.default_rng(0), 0
    for _ in range(40):
        scores = rng.random((5, 200)) < 0.4
        found = interval(lambda s, i, scores=scores: float(scores[s][:, i].mean()), 5, 200)
        held += found["low"] <= 0.4 <= found["high"]
    assert held >= 34


def test_statistics_by_hand(tmp_path):
    import torch
    from safetensors.torch import save_file
    from study.statistics import of_group

    start = torch.tensor([1.0, 1.0, 1.0, 1.0])
    for name, delta in (("base", [0, 0, 0, 0]), ("a", [3, 4, 0, 0]), ("b", [3, -4, 0, 0])):
        (tmp_path / name).mkdir()
        save_file({"w": start + torch.tensor(delta)}, tmp_path / name / "model.safetensors")
    found = of_group(tmp_path / "base", {"a": tmp_path / "a", "b": tmp_path / "b"})
    assert found["experts"]["a"]["norm"] == pytest.approx(5)
    assert found["experts"]["a"]["changed"] == 0.5
    pair = found["pairs"]["a+b"]
    assert pair["cosine"] == pytest.approx(-7 / 25)
    assert pair["conflict_norm"] == pytest.approx(16)
    assert pair["normalized_conflict"] == pytest.approx(16 / (9**2 + 16**2) ** 0.5)
    assert pair["sign_disagreement"] == 0.5
    assert pair["jaccard"] == 1
    assert found["dilution"] == pytest.approx(3 / 5)


def test_statistics_are_those_of_the_conflict_report(tmp_path):
    """Two programs, one in Rust and one in NumPy, count the same."""
    import torch
    from safetensors.torch import save_file
    from study.statistics import of_group, reported

    torch.manual_seed(0)
    start = torch.randn(40, 30)
    for name in ("base", "a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        delta = 0 if name == "base" else 1e-3 * torch.randn(40, 30) * (torch.rand(40, 30) < 0.7)
        save_file({"model.layers.0.mlp.up_proj.weight": start + delta}, tmp_path / name / "model.safetensors")
    experts = {name: tmp_path / name for name in "abc"}
    ours, theirs = of_group(tmp_path / "base", experts), reported(tmp_path / "base", experts)
    assert ours["pairs"].keys() == theirs["pairs"].keys()
    names = {"normalized_conflict": "conflict_l2", "matched_conflict": "conflict_cosine"}
    for pair, numbers in ours["pairs"].items():
        for name in ("cosine", "conflict_norm", "sign_disagreement", "jaccard", *names):
            assert numbers[name] == pytest.approx(theirs["pairs"][pair][names.get(name, name)], rel=1e-4), name
    for expert, numbers in ours["experts"].items():
        for name in ("norm", "relative_norm", "changed", "changed_bf16"):
            assert numbers[name] == pytest.approx(theirs["experts"][expert][name], rel=1e-5), name
    assert ours["dilution"] == pytest.approx(theirs["together"]["dilution"], rel=1e-5)


# --- the scheduler ----------------------------------------------------------------------------------------------------


def tiny_config(**told):
    return StudyConfig.model_validate(
        {
            "name": "test",
            "seeds": [0],
            "tasks": ["instruct", "rank"],
            "arms": ["sft", "grpo"],
            "pretrain": {
                "steps": 20,
                "batch": 16,
                "items": 60,
                "weights": {"instruct": 1, "rank": 1},
                "shape": {"hidden": 16, "layers": 1, "heads": 2, "intermediate": 32},
            },
            "train": {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 8, "train_items": 40},
            "evaluation": {"test_items": 12, "out_items": 10, "validation_items": 10},
            "merging": {"lambdas": [1.0], "densities": [0.5], "tuning_pairs": 1},
            "landscape": {"distances": [1.0], "plane": [], "items": 10, "arms": ["grpo"]},
            **told,
        }
    )


@pytest.mark.timeout(300)
def test_a_failed_arm_does_not_take_the_others_and_a_second_run_does_nothing_twice(tmp_path, capfd):
    """SFT's learning rate makes its weights overflow: its units fail, GRPO's are done, and the page says so."""
    from study.page import write_page

    config = tiny_config(overrides={"sft": {"learning_rate": 1e30, "warmup_steps": 0}})
    units = plan_units(config)
    lost = run_all(config, tmp_path, units)
    assert lost
    assert all("sft" in name for name in lost), lost
    assert Places(tmp_path).read("merge/s0/grpo/equal_steps/task_arithmetic")
    write_page(config, tmp_path, tmp_path / "page", units)
    assert "expert/s0/sft/instruct" in (tmp_path / "page" / "index.md").read_text()
    assert "not begun, because expert/s0/sft/instruct failed" in (tmp_path / "page" / "index.md").read_text()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "facts").rglob("*.json")}
    capfd.readouterr()
    assert run_all(config, tmp_path, units) == lost
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "facts").rglob("*.json")} == times


@pytest.mark.timeout(300)
def test_what_did_without_a_failed_unit_is_made_anew_once_that_succeeds(tmp_path, monkeypatch):
    """A failure that is gone the next time (a full disk, say) leaves nothing that was made without the unit."""
    from study import schedule

    config = tiny_config(landscape={"arms": ["grpo"], "distances": [1.0], "plane": [], "items": 10})
    units = plan_units(config)
    whole = {unit.name: unit.arguments for unit in units}
    for unit in units:
        if unit.name == "expert/s0/sft/rank":
            unit.arguments = {**unit.arguments, "arm": "no such arm"}
    keys = keys_of(plan_units(config))  # as if the settings were the same
    monkeypatch.setattr(schedule, "keys_of", lambda units: keys)
    assert "expert/s0/sft/rank" in run_all(config, tmp_path, units)
    places = Places(tmp_path)
    assert "sft" in places.read("match/s0")["equal_accuracy"]
    assert "rank" not in places.read("match/s0")["equal_accuracy"]["sft"]
    for unit in units:
        unit.arguments = whole[unit.name]
    untouched = places.facts("curve/s0/grpo/rank").stat().st_mtime_ns
    assert run_all(config, tmp_path, units) == {}
    assert "rank" in places.read("match/s0")["equal_accuracy"]["sft"]
    assert set(places.read("alone/s0/sft/equal_steps")) == {"instruct", "rank"}
    assert places.facts("curve/s0/grpo/rank").stat().st_mtime_ns == untouched


def test_facts_of_other_settings_are_not_believed(tmp_path):
    config = tiny_config()
    units = plan_units(config)
    write_json(Places(tmp_path).facts("base/s0"), {"key": "old", "seconds": 1, "found": {}})
    assert Places(tmp_path).read("base/s0") == {}
    assert Places(tmp_path, known=keys_of(units)).read("base/s0") is None
    changed = {**keys_of(units)}
    more = keys_of(plan_units(tiny_config(evaluation={"test_items": 13, "out_items": 10, "validation_items": 10})))
    assert changed["expert/s0/sft/rank"] == more["expert/s0/sft/rank"]
    assert changed["curve/s0/sft/rank"] != more["curve/s0/sft/rank"]
    assert changed["match/s0"] != more["match/s0"]


def test_two_runs_do_not_share_a_folder(tmp_path):
    with only_run(tmp_path), pytest.raises(SettingsError, match="another run is at work"), only_run(tmp_path):
        pass
    with only_run(tmp_path):
        pass


# --- from facts to verdicts -------------------------------------------------------------------------------------------


def made_facts(work, sft_merged, grpo_merged, *, sft_alone=0.8, reached=True, seeds=(0, 1, 2)):
    """Facts of a study that never was: experts right in 80 of 100, the base in 50, merges as told."""
    config = tiny_config(
        seeds=list(seeds),
        evaluation={"test_items": 100, "out_items": 10, "validation_items": 10},
        merging={"methods": ["task_arithmetic"], "matched_methods": ["task_arithmetic"]},
    )

    def row(share):
        return "1" * round(100 * share) + "0" * (100 - round(100 * share))

    found = {}
    for s in seeds:
        found[f"base/s{s}"] = {t: {"test": row(0.5)} for t in config.tasks}
        chosen = {t: {"step": 1, "reached": reached} for t in config.tasks}
        found[f"match/s{s}"] = {"equal_accuracy": {"sft": chosen, "grpo": {t: {"reached": True} for t in chosen}}}
        for arm, alone, merged in (("sft", sft_alone, sft_merged), ("grpo", 0.8, grpo_merged)):
            for t in config.tasks:
                norm = {"norm": 2.0 if arm == "sft" else 1.0, "changed": 1.0, "changed_bf16": 1.0, "step": 1}
                found[f"expert/s{s}/{arm}/{t}"] = {"run": "r", "metrics": []}
                curve = {"points": [norm], "test": row(alone), "greedy": row(alone), "out": row(alone)}
                found[f"curve/s{s}/{arm}/{t}"] = {**curve, "forward_kl": 0.1, "hidden": 0.1}
            for comparison in ("equal_steps", "equal_accuracy", "equal_norm"):
                place = f"s{s}/{arm}/{comparison}"
                found[f"alone/{place}"] = {t: row(alone) for t in config.tasks}
                scores = {"+".join(config.tasks): {t: row(merged) for t in config.tasks}}
                found[f"merge/{place}/task_arithmetic"] = {"parameters": {}, "sweep": [], "merged": scores}
    for name, facts in found.items():
        write_json(Places(work).facts(name), {"key": "k", "seconds": 1, "processor_seconds": 1, "found": facts})
    return analyse(Facts(config, Places(work)))


def claim(results, name):
    return next(c for c in results["claims"] if c["name"] == name)


@pytest.mark.parametrize(
    ("sft", "grpo", "word", "value"),
    [(0.4, 0.8, "reproduced", 0.5), (0.8, 0.4, "opposite", -0.5), (0.6, 0.6, "not reproduced", 0.0)],
)
def test_either_sign_can_be_shown(tmp_path, sft, grpo, word, value):
    results = made_facts(tmp_path, sft, grpo)
    for kind in ("steps", "accuracy", "norm"):
        found = claim(results, f"degradation at equal {kind}: sft > grpo")
        assert (found["verdict"], found["value"]) == (word, pytest.approx(value))
        assert found["note"] == ""
        told = dict(answers(results, "grpo"))[f"Does RL degrade less at equal {kind}?"]
        assert f"{100 * found['value']:+.1f} points" in told
        assert f": {word}" in told
    assert "grpo 6 of 6 (+30 points)" in dict(answers(results, "grpo"))["Did the experts learn?"]
    assert {row["method"] for row in results["headline"]} == {"expert", "task_arithmetic"}
    signs = [(gap["low"] > 0) - (gap["high"] < 0) for gap in results["headline_by_seed"]["equal_steps"]]
    assert signs == [(value > 0) - (value < 0)] * 3


def test_a_drop_of_experts_that_learned_nothing_is_not_compared(tmp_path):
    results = made_facts(tmp_path, 0.5, 0.8, sft_alone=0.5)
    found = claim(results, "degradation at equal steps: sft > grpo")
    assert found["verdict"] == "not comparable"
    assert "no better than their base" in found["note"]
    assert not any(row["learned"] for row in results["experts"] if row["arm"] == "sft")


def test_accuracy_that_was_not_reached_is_not_equal(tmp_path):
    results = made_facts(tmp_path, 0.4, 0.8, reached=False)
    found = claim(results, "degradation at equal accuracy: sft > grpo")
    assert (found["verdict"], found["note"]) == ("not comparable", "sft reached the accuracy in 0 of 6 cases")
    assert claim(results, "degradation at equal steps: sft > grpo")["verdict"] == "reproduced"


def test_every_number_leads_to_a_run(tmp_path):
    """A page names the experts' runs, and units.csv says what made each number, from what."""
    from study.page import write_page

    config = tiny_config()
    units = plan_units(config)
    keys = keys_of(units)
    facts = {"key": keys["expert/s0/sft/rank"], "seconds": 1, "processor_seconds": 1, "found": {"run": "abc123"}}
    write_json(Places(tmp_path).facts("expert/s0/sft/rank"), {**facts, "found": {"run": "abc123", "metrics": []}})
    write_json(Places(tmp_path).facts("base/s0"), {**facts, "key": keys["base/s0"], "found": {}})
    write_page(config, tmp_path, tmp_path / "page", units)
    assert "| sft | 0 |  | abc123 |" in (tmp_path / "page" / "index.md").read_text()
    rows = (tmp_path / "page" / "units.csv").read_text().splitlines()
    assert rows[0] == "unit,id,run,made_from,seconds,processor_seconds"
    assert f"expert/s0/sft/rank,{keys['expert/s0/sft/rank']},abc123,pretrain/s0,1,1" in rows


def test_twins_in_bf16_are_compared(tmp_path):
    """Twins are arms like others: their accuracy is paired with that of the arm in f32, their norms stand beside."""
    from study.analysis import twins

    config = tiny_config(arms=["sft", "grpo", "sft-bf16"])
    write_json(Places(tmp_path).facts("base/s0"), {"key": "k", "seconds": 1, "found": {}})
    for arm, level, norm in (("sft", "1111100000", 2.0), ("sft-bf16", "1111000000", 1.5)):
        for task in config.tasks:
            point = {"norm": norm, "changed": norm / 4, "changed_bf16": norm / 8}
            found = {"points": [point], "test": level}
            write_json(Places(tmp_path).facts(f"curve/s0/{arm}/{task}"), {"key": "k", "seconds": 1, "found": found})
    (row,) = twins(Facts(config, Places(tmp_path)))
    assert row["twin"] == "sft-bf16"
    assert row["accuracy"]["value"] == pytest.approx(-0.1)
    assert (row["norm_f32"], row["norm_bf16"], row["changed_bf16_bf16"]) == (2.0, 1.5, 1.5 / 8)


def test_one_expert_makes_no_claim():
    """An interval over one seed and task has no width, and would decide anything."""
    facts = SimpleNamespace(seeds=[0], config=SimpleNamespace(tasks=["math", "code", "rank"]))
    assert not np.isfinite(over_cells(facts, lambda s, t: 1.0 if t == "math" else None)["value"])
    found = over_cells(facts, lambda s, t: {"math": 1.0, "code": 2.0, "rank": 3.0}[t])
    assert found["low"] < found["value"] == 2.0 < found["high"]


def test_few_seeds_widen_intervals():
    draws = np.array([0.0, 1.0, 2.0])
    assert widened(draws, 1.0, 2) == pytest.approx([1 - 2**0.5, 1, 1 + 2**0.5])
    assert widened(draws, 1.0, 1) == pytest.approx(draws)


@pytest.mark.timeout(2400)  # minutes on two free cores; CI may have less
def test_the_smoke_study_reaches_its_page(tmp_path):
    """Every stage of the real thing, once: `make study-smoke` is the same command."""
    command = [sys.executable, str(ROOT / "study" / "run.py"), "--config", str(ROOT / "study/configs/smoke.yaml")]
    places = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "page")]
    done = subprocess.run([*command, *places], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    results = read_json(tmp_path / "page" / "results.json")
    assert results["units"]["missing"] == {}
    assert {row["comparison"] for row in results["merges"]} == {"equal_steps", "equal_accuracy", "equal_norm"}
    words = {"reproduced", "opposite", "not reproduced", "undecided", "not comparable"}
    assert {row["verdict"] for row in results["claims"]} <= words
    for name in ("experts", "norms", "training", "degradation", "methods", "sweep", "conflict", "landscape"):
        for kind in ("svg", "png"):
            assert (tmp_path / "page" / "figures" / f"{name}.{kind}").stat().st_size > 1000
    html = (tmp_path / "page" / "index.html").read_text()
    assert "http" not in html.replace("http://www.w3.org", ""), "the page needs nothing from the network"
    facts = Facts(load_config(ROOT / "study/configs/smoke.yaml"), Places(tmp_path / "work"))
    assert facts.arms() == ["sft", "rft", "grpo"]
    # The page again, from what is there, is the same page.
    before = (tmp_path / "page" / "index.md").read_text()
    again = subprocess.run([*command, *places, "--page"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "page" / "index.md").read_text() == before
