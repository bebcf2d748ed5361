"""Symbolic links: followed and told, as the cache of the hub needs it; refused under `--no-symlinks`."""

import json
import subprocess
import sys

import numpy as np
import pytest

import rlmerge
from tests import tensorfile


@pytest.fixture
def cached(tmp_path):
    """A folder as the hub's cache has it, and another whose files are its own."""
    rng = np.random.default_rng(0)
    (blobs := tmp_path / "blobs").mkdir()
    for name in ("linked", "plain"):
        tensors = {"w": rng.normal(size=(4, 6)).astype(np.float32)}
        (folder := tmp_path / name).mkdir()
        own = folder / "model.safetensors" if name == "plain" else blobs / "0123"
        tensorfile.write(own, tensors)
        (folder / "config.json").write_text("{}")
    (tmp_path / "linked" / "model.safetensors").symlink_to("../blobs/0123")
    return tmp_path


def merge(root, first, **options):
    return rlmerge.merge([first, root / "plain"], method="linear", output=root / "out", **options)


def test_links_are_followed_and_the_report_says_where_to(cached):
    report = merge(cached, cached / "linked")
    linked, plain = (model["shards"][0] for model in report.raw["plan"]["models"])
    assert linked["path"] == str(cached / "linked" / "model.safetensors")
    assert linked["real_path"] == str(cached / "blobs" / "0123")
    assert "real_path" not in plain


def refused(cached, link, first):
    with pytest.raises(rlmerge.CheckpointError) as raised:
        merge(cached, first, no_symlinks=True)
    error = raised.value
    assert (error.code, error.exit_code, error.path) == ("not_a_checkpoint", 3, link)
    assert "--no-symlinks" in str(error)
    assert not (cached / "out").exists()


def test_a_linked_shard_is_refused_on_request(cached):
    refused(cached, cached / "linked" / "model.safetensors", cached / "linked")


def test_a_linked_folder_is_refused_on_request(cached):
    (link := cached / "also").symlink_to("plain")
    refused(cached, link, f"{link}/")


def test_a_link_beside_the_weights_is_refused_on_request(cached):
    (cached / "secret").write_text("{}")
    (folder := cached / "downloaded").mkdir()
    (folder / "model.safetensors").write_bytes((cached / "plain" / "model.safetensors").read_bytes())
    (folder / "tokenizer.json").symlink_to("../secret")
    refused(cached, folder / "tokenizer.json", folder)


def test_folders_without_links_are_merged_under_the_same_option(cached):
    assert merge(cached, cached / "plain", no_symlinks=True).output.exists()


def test_the_recipe_and_the_command_have_it_too(cached):
    recipe = {"method": "linear", "models": [str(cached / "linked"), str(cached / "plain")], "no_symlinks": True}
    (cached / "recipe.yaml").write_text(json.dumps(recipe))
    with pytest.raises(rlmerge.CheckpointError, match="no-symlinks"):
        rlmerge.merge(recipe=cached / "recipe.yaml", output=cached / "out")
    command = [sys.executable, "-m", "rlmerge", "merge", cached / "linked", cached / "plain", "-m", "linear"]
    done = subprocess.run([*command, "--no-symlinks", "-o", cached / "out"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert "--no-symlinks" in done.stderr
