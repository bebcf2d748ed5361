"""Spectral statistics against the NumPy reference, and the cases whose answer is known."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

import rlmerge
from tests import adapters, tensorfile
from tests.merging import written
from tests.reference import spectra
from tests.reference.rounding import DTYPES, round_to

SHAPES = {
    "model.layers.0.mlp.up_proj.weight": (150, 60),
    "model.layers.0.mlp.down_proj.weight": (60, 150),
    "model.layers.0.self_attn.q_proj.weight": (64, 64),
    "model.layers.1.self_attn.k_proj.weight": (5, 40),
    "model.layers.1.input_layernorm.weight": (30,),
}
#: Of a Gram matrix in f64, relative to the largest singular value.
CLOSE = 1e-7


def low_rank(rng, shape, rank):
    """A matrix of norm about 1 with so many directions of about equal size."""
    left, right = (np.linalg.qr(rng.normal(size=(n, rank)))[0] for n in shape)
    return (left * rng.uniform(0.8, 1.2, rank)) @ right.T / math.sqrt(rank)


def draw(dtype="F32", experts=2, rank=3, scale=0.5, noise=1e-3, seed=0, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    base = {name: round_to(rng.normal(0, 0.05, shape), DTYPES[dtype]) for name, shape in shapes.items()}
    tuned = []
    for _ in range(experts):
        expert = {}
        for name, shape in shapes.items():
            delta = rng.normal(0, noise, shape)
            if len(shape) == 2:
                delta = delta + scale * low_rank(rng, shape, min(rank, min(shape)))
            expert[name] = round_to(base[name].astype(np.float64) + delta, DTYPES[dtype])
        tuned.append(expert)
    return base, tuned


def report(base, experts, **options) -> rlmerge.ConflictReport:
    with written(experts, base, options.pop("shards", None)) as (paths, base_path, _):
        return rlmerge.conflicts(paths, base=base_path, spectral=True, **options)


def tensor(found, name):
    return next(t for t in found.raw["tensors"] if t["name"] == name)["spectral"]


def close(mine, value, name):
    if value is None or mine is None:
        assert mine is value is None, (name, mine, value)
        return
    # Angles near zero are the square root of what cancels.
    slack = 1e-4 if name.startswith("angle") else CLOSE
    assert math.isclose(mine, value, rel_tol=CLOSE * 10, abs_tol=slack), (name, mine, value)


def compare(mine, theirs):
    for of in ("experts", "pairs"):
        for found, expected in zip(mine[of], theirs[of], strict=True):
            if expected is None:
                assert {v for k, v in found.items() if k not in ("a", "b")} == {None}
                continue
            for name, value in expected.items():
                close(found[name], value, name)
    for name, value in theirs["together"].items():
        close(mine["together"][name], value, name)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("experts", [1, 2, 3])
def test_against_the_reference(dtype, experts):
    base, tuned = draw(dtype, experts)
    found = report(base, tuned)
    for name, shape in SHAPES.items():
        if len(shape) == 2:
            compare(tensor(found, name), spectra.of_matrix(base[name], [t[name] for t in tuned]))
    norm = next(t for t in found.raw["tensors"] if t["name"].endswith("layernorm.weight"))
    assert "spectral" not in norm
    assert found.model.spectral.matrices == 4


def test_other_settings():
    base, tuned = draw(noise=1e-4, rank=6)
    found = report(base, tuned, directions=4, epsilon=1e-3, low=0.1)
    for name, shape in SHAPES.items():
        if len(shape) == 2:
            expected = spectra.of_matrix(base[name], [t[name] for t in tuned], directions=4, epsilon=1e-3, low=0.1)
            compare(tensor(found, name), expected)


def one(base, *experts, **options):
    """The numbers of one matrix."""
    name = "model.layers.0.self_attn.q_proj.weight"
    found = report({name: base}, [{name: e.astype(base.dtype)} for e in experts], **options)
    return found.model.spectral


def weights(shape=(96, 64), seed=1):
    rng = np.random.default_rng(seed)
    return rng, rng.normal(0, 0.05, shape).astype(np.float32)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_the_noise_rule_finds_a_planted_rank(rank):
    rng, base = weights()
    found = one(base, base + 0.5 * low_rank(rng, base.shape, rank) + rng.normal(0, 1e-3, base.shape))
    assert found.experts[0].noise_rank == rank
    assert found.experts[0].signal_energy > 0.9


def test_noise_alone_is_at_its_chance_levels():
    rng, base = weights((256, 128))
    expert, other = (base + rng.normal(0, 1e-3, base.shape) for _ in range(2))
    e = one(base, expert, other).experts[0]
    assert e.noise_rank == 0
    assert e.signal_energy == 0
    for name in ("stable_rank", "effective_rank", "energy_1", "energy_8"):
        assert math.isclose(getattr(e, name), getattr(e, f"{name}_chance"), rel_tol=0.06), name
    assert math.isclose(e.spectrum_shift_share, e.spectrum_shift_chance, rel_tol=0.3)
    assert abs(e.principal_overlap - e.principal_overlap_chance) < 0.02
    pair = one(base, expert, other).pairs[0]
    assert (pair.subspace_a, pair.interference) == (None, None), "nothing is above noise"


def test_unrelated_directions_meet_by_chance():
    rng, base = weights((400, 300))
    experts = [base + 0.5 * low_rank(rng, base.shape, 8) + rng.normal(0, 1e-4, base.shape) for _ in range(3)]
    found = one(base, *experts)
    for pair in found.pairs:
        assert math.isclose(pair.subspace_a, pair.subspace_a_chance, rel_tol=0.2)
        assert math.isclose(pair.interference_share, pair.interference_chance, rel_tol=0.2)
    assert math.isclose(found.together.interference_share, found.together.interference_chance, rel_tol=0.2)


def test_equal_and_scaled_experts_share_all_directions():
    rng, base = weights()
    delta = 0.5 * low_rank(rng, base.shape, 4)
    pair = one(base, base + delta, base + 3 * delta).pairs[0]
    assert pair.subspace_a > 0.97
    assert pair.subspace_b > 0.97
    pair = one(base, base + delta, base + delta).pairs[0]
    assert math.isclose(pair.interference_share, 1, rel_tol=1e-9)


def test_orthogonal_directions_do_not_interfere():
    rng, base = weights()
    base = (base * 0).astype(np.float32)
    left, right = (np.linalg.qr(rng.normal(size=(n, 8)))[0] for n in base.shape)
    a, b = (left[:, i : i + 4] @ right[:, i : i + 4].T for i in (0, 4))
    found = one(base, base + a, base + b)
    assert found.pairs[0].subspace_a < 1e-6
    assert found.pairs[0].interference_share < 1e-6
    assert [e.noise_rank for e in found.experts] == [4, 4]
    assert math.isclose(found.experts[0].stable_rank, 4, rel_tol=1e-5)
    assert found.experts[0].angle_left is None, "a base of zeros has no directions"


def test_a_base_scaled_turns_nothing_and_shifts_everything():
    _, base = weights()
    e = one(base, base * np.float32(1.25)).experts[0]
    assert e.angle_left < 1e-4
    assert math.isclose(e.spectrum_shift, 0.25, rel_tol=1e-6)
    assert math.isclose(e.spectrum_shift_share, 1, rel_tol=1e-6)


def test_an_unchanged_expert():
    _, base = weights()
    found = one(base, base, base + np.float32(0.01))
    e = found.experts[0]
    assert (e.stable_rank, e.effective_rank, e.principal_overlap) == (None, None, None)
    assert (e.noise_rank, e.spectrum_shift) == (0, 0)
    assert e.angle_left < 1e-4
    assert math.isclose(found.experts[1].stable_rank, 1, rel_tol=1e-5)


def test_stacked_experts_of_a_mixture_are_matrices_each():
    rng = np.random.default_rng(5)
    name = "model.layers.0.mlp.experts.down_proj"
    base = rng.normal(0, 0.05, (3, 40, 24)).astype(np.float32)
    tuned = [
        (base + rng.normal(0, 1e-3, base.shape) + 0.3 * low_rank(rng, (40, 24), 2)).astype(np.float32) for _ in "ab"
    ]
    mine = tensor(report({name: base}, [{name: t} for t in tuned]), name)
    assert mine["matrices"] == 3
    parts = [spectra.of_matrix(base[i], [t[i] for t in tuned]) for i in range(3)]
    for at in range(2):
        for key, value in parts[0]["experts"][at].items():
            close(mine["experts"][at][key], value and sum(p["experts"][at][key] for p in parts) / 3, key)
    close(mine["pairs"][0]["subspace_a"], sum(p["pairs"][0]["subspace_a"] for p in parts) / 3, "subspace_a")


@pytest.mark.parametrize("shape", [(96, 48), (48, 96), (300, 200)])
def test_adapters_are_experts_whose_change_is_known(tmp_path, shape):
    """Even beside weights in bf16, whose rounding would hide it."""
    rng = np.random.default_rng(7)
    name = "model.layers.0.self_attn.q_proj"
    weights = round_to(rng.normal(0, 0.5, shape), DTYPES["BF16"])
    tensorfile.write(tmp_path / "base.safetensors", {f"{name}.weight": weights})
    paths, deltas = [], []
    for at in range(2):
        tensors = adapters.lora({name: shape}, 4, rng, size=0.01)
        paths.append(adapters.write(tmp_path / f"adapter-{at}", tensors))
        a, b = (tensors[f"{adapters.WRAPPER}{name}.lora_{which}.weight"].astype(np.float64) for which in "AB")
        deltas.append(2 * b @ a)
    found = rlmerge.conflicts(paths, base=tmp_path / "base.safetensors", spectral=True).model.spectral
    parts = [spectra.decomposed(delta) for delta in deltas]
    for e, delta, (_, sizes, _) in zip(found.experts, deltas, parts, strict=True):
        assert e.noise_rank == 4
        assert math.isclose(e.stable_rank, (sizes**2).sum() / sizes[0] ** 2, rel_tol=1e-6)
        shift = np.linalg.svd(weights.astype(np.float64) + delta, compute_uv=False)
        own = np.linalg.svd(weights.astype(np.float64), compute_uv=False)
        assert math.isclose(e.spectrum_shift, np.linalg.norm(shift - own) / np.linalg.norm(own), rel_tol=1e-3)
    total, share = spectra.interference([tuple(p[..., :4] for p in part) for part in parts])
    assert math.isclose(found.pairs[0].interference, total, rel_tol=1e-5)
    assert math.isclose(found.pairs[0].interference_share, share, rel_tol=1e-5)


def test_nan_makes_undefined_what_it_touches_and_nothing_else():
    base, tuned = draw(experts=3)
    name = "model.layers.0.mlp.up_proj.weight"
    tuned[1][name][3, 4] = np.nan
    found = report(base, tuned)
    compare(tensor(found, name), spectra.of_matrix(base[name], [t[name] for t in tuned]))
    model = found.model.spectral
    assert model.experts[1].stable_rank is None
    assert model.experts[0].stable_rank is not None
    assert [p.subspace_a is None for p in model.pairs] == [True, False, True]
    assert model.together.interference is None
    other = tensor(found, "model.layers.0.mlp.down_proj.weight")
    assert other["experts"][1]["stable_rank"] is not None
    json.dumps(found.to_dict(), allow_nan=False)


def test_levels_are_means_over_matrices_by_their_elements():
    base, tuned = draw()
    found = report(base, tuned)
    parts = [(t["parameters"], t["spectral"]) for t in found.raw["tensors"] if "spectral" in t]
    total = sum(n for n, _ in parts)
    for name in ("stable_rank", "noise_rank", "angle_left", "spectrum_shift"):
        mean = sum(n * s["experts"][0][name] for n, s in parts) / total
        assert math.isclose(getattr(found.model.spectral.experts[0], name), mean, rel_tol=1e-12)
    assert [layer.spectral.matrices for layer in found.layers] == [3, 1]


def test_threads_shards_and_levels_do_not_change_a_bit():
    base, tuned = draw("BF16", shapes={**SHAPES, "lm_head.weight": (700, 200)})
    seen = set()
    for options in ({}, {"threads": 1}, {"threads": 7}, {"shards": 3}, {"io": "mmap"}):
        raw = report(base, tuned, **options).raw
        seen.add(json.dumps([raw["model"], [t.get("spectral") for t in raw["tensors"]]], sort_keys=True))
    with written(tuned, base) as (paths, base_path, _):
        code = (
            "import json, sys, rlmerge\n"
            "raw = rlmerge.conflicts(sys.argv[2:], base=sys.argv[1], spectral=True).raw\n"
            "print(json.dumps([raw['model'], [t.get('spectral') for t in raw['tensors']]], sort_keys=True))"
        )
        for level in ("scalar", "avx2", "avx512"):
            done = subprocess.run(
                [sys.executable, "-c", code, str(base_path), *map(str, paths)],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "RLMERGE_SIMD": level},
            )
            seen.add(done.stdout.strip())
    assert len(seen) == 1


def test_directions_must_be_a_number_that_there_may_be():
    base, tuned = draw()
    for wrong in (0, 129, 2.5):
        with pytest.raises(rlmerge.errors.RecipeError):
            report(base, tuned, directions=wrong)
