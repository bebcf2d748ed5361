"""Our own trainers: sampling is exact, runs repeat bit for bit and survive a stop, every algorithm trains."""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from study.records import hash_weights, read_lines  # noqa: E402
from study.settings import SettingsError, TrainSettings, read_settings  # noqa: E402

SMALL = {"max_steps": 3, "save_steps": 2, "per_device_train_batch_size": 16, "num_generations": 4, "train_items": 60}


def settings(base, folder, **told):
    return TrainSettings(
        **{"algorithm": "rl", "task": "rank", **SMALL, **told}, model_name_or_path=str(base), output_dir=folder
    )


def run(base, folder, **told):
    from study.training import train

    return train(settings(base, folder, **told))


@pytest.fixture(scope="module")
def opened(base):
    from study.evaluate import open_model

    return open_model(base)


def test_shared_prompts_change_nothing(opened):
    """Reading each prompt once gives the logits and the gradient of reading it for every completion."""
    from study.sampling import completion_logits, log_probabilities, sample

    model, tokenizer = opened
    batch = sample(model, tokenizer, ["m12+34:", "ra|"], copies=3, limit=6, seed=1)
    gradients = []
    for copies in (1, 3):
        model.zero_grad()
        logs = log_probabilities(completion_logits(model, batch, copies), batch)
        logs.sum().backward()
        gradients.append((logs.detach(), [w.grad.clone() for w in model.parameters()]))
    model.zero_grad()
    assert torch.allclose(gradients[0][0], gradients[1][0], atol=1e-5)
    for one, other in zip(gradients[0][1], gradients[1][1], strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_greedy_sampling_is_what_transformers_generates(opened):
    from study.sampling import encode_prompts, sample, texts

    model, tokenizer = opened
    prompts = ["m12+34:", "c+3*2:", "i4^a$b:"]
    ours = texts(tokenizer, sample(model, tokenizer, prompts, limit=8, temperature=0))
    ids, mask = encode_prompts(tokenizer, prompts, "cpu")
    theirs = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert ours == tokenizer.batch_decode(theirs[:, ids.shape[1] :], skip_special_tokens=True)


def test_sampling_follows_the_probabilities(opened):
    from study.sampling import encode_prompts, sample

    model, tokenizer = opened
    rows = 4000
    first = sample(model, tokenizer, ["m12+34:"], copies=rows, limit=1, seed=3).completion[:, 0]
    ids, mask = encode_prompts(tokenizer, ["m12+34:"], "cpu")
    with torch.no_grad():
        wanted = model(input_ids=ids, attention_mask=mask).logits[0, -1].softmax(-1)
    found = torch.bincount(first, minlength=len(wanted)) / rows
    assert (found - wanted).abs().max() < 4 * (0.25 / rows) ** 0.5


def test_the_tokenizer_loses_nothing(opened):
    from study.tasks import TASKS, find_task

    _, tokenizer = opened
    for name in TASKS:
        for item in find_task(name).items("train", 20, 0):
            for text in (item.prompt, item.answer):
                ids = tokenizer(text)["input_ids"]
                assert ids[0] == tokenizer.bos_token_id
                assert len(ids) == len(text) + 1
                assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize(
    "told",
    [
        {"algorithm": "sft"},
        {"algorithm": "sft", "style": "foreign"},
        {"algorithm": "iw-sft"},
        {"algorithm": "rl"},
        {"algorithm": "rl", "positives_only": True},
        {"algorithm": "rl", "nu": 0.5},
        {"algorithm": "rl", "nu": 1.0, "importance": "clip"},
        {"algorithm": "rl", "advantage": "rloo", "beta": 0.01},
        {"algorithm": "rl", "advantage": "reinforce++", "num_iterations": 2},
        {"algorithm": "rl", "advantage": "dr_grpo", "dtype": "bfloat16"},
        {"algorithm": "reft"},
        {"algorithm": "chord"},
        {"algorithm": "sasr"},
        {"algorithm": "ppo", "num_iterations": 2},
    ],
    ids=lambda told: "-".join(map(str, told.values())),
)
def test_every_algorithm_runs_and_repeats(base, tmp_path, told):
    told = {**told, "task": "instruct"}
    manifests = [run(base, tmp_path / name, **told) for name in ("a", "b")]
    assert manifests[0]["run"] == manifests[1]["run"]
    assert hash_weights(tmp_path / "a") == hash_weights(tmp_path / "b")
    lines = read_lines(tmp_path / "a" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    for name in ("loss", "grad_norm", "update_norm", "task_vector_norm", "learning_rate"):
        assert all(name in line for line in lines), name
    assert sorted(p.name for p in (tmp_path / "a" / "checkpoints").iterdir()) == ["step-00002", "step-00003"]


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(base, tmp_path, monkeypatch):
    from study import training

    told = {"algorithm": "sasr", "task": "instruct", "max_steps": 4}
    run(base, tmp_path / "whole", **told)
    whole_save = training.save_state

    def stop(*told):
        whole_save(*told)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_state", stop)
    with pytest.raises(KeyboardInterrupt):
        run(base, tmp_path / "stopped", **told)
    monkeypatch.setattr(training, "save_state", whole_save)
    with (tmp_path / "stopped" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 1}\n{"ste')
    run(base, tmp_path / "stopped", **told)
    assert hash_weights(tmp_path / "whole") == hash_weights(tmp_path / "stopped")
    strip = [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(tmp_path / "whole/metrics.jsonl")]
    assert strip == [
        {k: v for k, v in line.items() if k != "seconds"} for line in read_lines(tmp_path / "stopped/metrics.jsonl")
    ]


def test_a_base_of_other_weights_is_trained_anew(base, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    other = tmp_path / "base"
    shutil.copytree(base, other)
    first = run(other, tmp_path / "e", algorithm="sft")
    assert run(other, tmp_path / "e", algorithm="sft") == first
    weights = {name: 1.01 * weight for name, weight in load_file(other / "model.safetensors").items()}
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    assert run(other, tmp_path / "e", algorithm="sft")["base_hash"] == hash_weights(other) != first["base_hash"]


def test_training_deletes_nothing_that_is_not_its_own(base, tmp_path):
    import shutil

    (tmp_path / "notes.txt").write_text("mine")
    run(base, tmp_path, algorithm="sft")
    run(base, tmp_path, algorithm="sft", seed=1)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    shutil.copytree(base, tmp_path / "base")
    with pytest.raises(ValueError, match="is the base itself"):
        run(tmp_path / "base", tmp_path / "base", algorithm="sft")


def test_norms_are_those_of_the_checkpoints(base, tmp_path):
    from study.statistics import of_expert, read_delta

    run(base, tmp_path / "e", algorithm="sft")
    read = read_delta(base, tmp_path / "e")
    last = read_lines(tmp_path / "e" / "metrics.jsonl")[-1]
    assert of_expert(read["base"], read["delta"])["norm"] == pytest.approx(last["task_vector_norm"], rel=1e-4)


def test_rivals_are_logged(base, tmp_path):
    run(base, tmp_path / "code", algorithm="sft", task="code")
    run(base, tmp_path / "rank", algorithm="sft", rivals=[tmp_path / "code"])
    assert read_lines(tmp_path / "rank" / "metrics.jsonl")[-1]["conflict_norm/code"] > 0


def test_momentum_moves_weights_when_the_gradient_is_zero(base, tmp_path, monkeypatch):
    """Why the applied update is logged: with no reward at all the gradient is 0 and the update is not."""
    from study.tasks.families import Task

    told = {"algorithm": "rl", "task": "instruct", "max_steps": 4}
    scores = Task.score_all
    calls = []

    def fading(self, items, completions):
        calls.append(1)
        found = scores(self, items, completions)
        found[0] = 1.0
        return found if len(calls) <= 2 else [0.0] * len(items)

    monkeypatch.setattr(Task, "score_all", fading)
    run(base, tmp_path / "e", **told)
    last = read_lines(tmp_path / "e" / "metrics.jsonl")[-1]
    assert last["grad_norm"] == 0
    assert last["update_norm"] > 0


def test_bad_settings_say_what_to_do(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("algorithm: rl\nlearning_rate: fast\n")
    with pytest.raises(SettingsError, match="learning_rate"):
        read_settings(("rl",), file, ["model_name_or_path=b", "output_dir=o", "task=math"])
    with pytest.raises(SettingsError, match="multiple of num_generations"):
        read_settings(("rl",), None, ["model_name_or_path=b", "output_dir=o", "task=math", "num_generations=7"])
    with pytest.raises(SettingsError, match="this script trains with sft"):
        read_settings(("sft",), None, ["algorithm=rl"])
    with pytest.raises(SettingsError, match="no such file"):
        read_settings(("sft",), tmp_path / "none.yaml", [])
    with pytest.raises(SettingsError, match="lr"):
        read_settings(("sft",), None, ["model_name_or_path=b", "output_dir=o", "task=math", "lr=1"])


def test_the_manifest_tells_all(base, tmp_path, monkeypatch):
    from study.tasks.families import Task

    monkeypatch.setattr(Task, "score_all", lambda self, items, answers: [float(at % 2) for at in range(len(items))])
    run(base, tmp_path / "e", algorithm="rft", task="instruct")
    manifest = json.loads((tmp_path / "e" / "manifest.json").read_text())
    assert manifest["base_hash"] == hash_weights(base)
    assert torch.__version__.startswith(manifest["versions"]["torch"])
    assert manifest["data"] == {"train_items": 60, "sampled": 240, "accepted": 120}
    assert manifest["settings"]["seed"] == 0


def test_a_stopped_pretraining_goes_on(tmp_path, monkeypatch):
    """Stopped after a state was saved, and run again: the same base, bit for bit, and every line of its log once."""
    from study import pretrain

    monkeypatch.setattr(pretrain, "SAVE_STEPS", 20)
    shape = {"hidden": 16, "layers": 1, "heads": 2, "intermediate": 32}

    def made(folder):
        pretrain.pretrain(pretrain.PretrainSettings(output_dir=folder, steps=60, batch=8, items=40, shape=shape))
        return hash_weights(folder)

    whole = made(tmp_path / "whole")
    save = pretrain.save_state

    def save_and_stop(settings, step, *rest):
        save(settings, step, *rest)
        if step == 40:
            raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "save_state", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "stopped")
    monkeypatch.setattr(pretrain, "save_state", save)
    assert made(tmp_path / "stopped") == whole
    assert [line["step"] for line in read_lines(tmp_path / "stopped" / "metrics.jsonl")] == [50, 60]
    assert not (tmp_path / "stopped" / pretrain.STATE).exists()
