"""TRL's trainers on a tiny model, on the CPU; and our own loop beside them."""

import importlib.util

import pytest

torch = pytest.importorskip("torch")
if importlib.util.find_spec("trl") is None:
    pytest.skip("TRL is not installed", allow_module_level=True)

from study.records import read_lines  # noqa: E402
from study.settings import TrainSettings  # noqa: E402

SMALL = {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 16, "num_generations": 4, "train_items": 60}


def run(engine, base, folder, **told):
    from study.training import train as ours
    from study.trl_training import train as theirs

    settings = TrainSettings(
        **{"algorithm": "rl", "task": "rank", **SMALL, **told},
        engine=engine,
        model_name_or_path=str(base),
        output_dir=folder,
    )
    (theirs if engine == "trl" else ours)(settings)
    return read_lines(folder / "metrics.jsonl")


@pytest.mark.parametrize(
    "told",
    [
        {"algorithm": "sft"},
        {"algorithm": "rl"},
        {"algorithm": "rl", "positives_only": True},
        {"algorithm": "rl", "nu": 0.5},
        {"algorithm": "rl", "advantage": "rloo"},
        {"algorithm": "rl", "advantage": "reinforce++"},
        {"algorithm": "rl", "advantage": "dr_grpo"},
        {"algorithm": "sft", "use_peft": True, "learning_rate": 1e-3},
    ],
    ids=lambda told: "-".join(map(str, told.values())),
)
def test_trl_runs(base, tmp_path, told):
    from transformers import AutoModelForCausalLM

    lines = run("trl", base, tmp_path / "e", **told)
    assert [line["step"] for line in lines] == [1, 2]
    assert all("update_norm" in line and "task_vector_norm" in line for line in lines)
    for folder in (tmp_path / "e", tmp_path / "e" / "checkpoints" / "step-00001"):
        AutoModelForCausalLM.from_pretrained(folder)
    assert (tmp_path / "e" / "manifest.json").exists()


@pytest.fixture(scope="module")
def able(tmp_path_factory):
    """A base that answers some instructions rightly, so that rewards differ within groups."""
    from study.pretrain import PretrainSettings, pretrain

    folder = tmp_path_factory.mktemp("able")
    shape = {"hidden": 48, "layers": 2, "heads": 2, "intermediate": 96}
    pretrain(PretrainSettings(output_dir=folder, steps=250, batch=64, items=300, weights={"code": 1.0}, shape=shape))
    return folder


@pytest.mark.parametrize("algorithm", ["sft", "rl"])
def test_our_loop_agrees_with_trl(able, tmp_path, algorithm):
    """Both move the weights equally far, step by step; samples differ, so the norms need not be equal bit for bit."""
    told = {
        "algorithm": algorithm,
        "task": "code",
        "max_steps": 8,
        "save_steps": 8,
        "warmup_steps": 0,
        "learning_rate": 1e-4,
        "per_device_train_batch_size": 64,
        "num_generations": 8,
        "train_items": 200,
    }
    lines = {engine: run(engine, able, tmp_path / engine, **told) for engine in ("own", "trl")}
    norms = {engine: found[-1]["task_vector_norm"] for engine, found in lines.items()}
    assert norms["own"] == pytest.approx(norms["trl"], rel=0.25), norms
    assert lines["own"][0]["update_norm"] == pytest.approx(lines["trl"][0]["update_norm"], rel=0.05)
