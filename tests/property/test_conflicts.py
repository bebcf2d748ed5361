"""Conflict statistics against the NumPy reference, and the cases whose answer is known."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

import rlmerge
from tests import models
from tests.merging import written
from tests.reference import conflict
from tests.reference.rounding import DTYPES, round_to

#: Sums of f64 in fixed lanes against exact ones, relative to the sum of magnitudes.
CLOSE = 1e-9

SHAPES = {
    "model.layers.0.self_attn.q_proj.weight": (37, 29),
    "model.layers.0.mlp.up_proj.weight": (1024, 3),
    "model.layers.1.mlp.down_proj.weight": (1025,),
    "model.layers.1.input_layernorm.weight": (1,),
    "model.layers.2.mlp.gate_proj.weight": (0, 4),
    "lm_head.weight": (15,),
    # More than one tile.
    "model.embed_tokens.weight": (700, 431),
}


def draw(dtype: str, experts: int = 2, zeros: float = 0.3, scale: float = 2e-3, seed: int = 0):
    rng = np.random.default_rng(seed)
    base = {name: round_to(rng.normal(0, 0.05, shape), DTYPES[dtype]) for name, shape in SHAPES.items()}
    tuned = []
    for _ in range(experts):
        deltas = {n: rng.normal(0, scale, s) * (rng.random(s) >= zeros) for n, s in SHAPES.items()}
        tuned.append({n: round_to(base[n].astype(np.float64) + deltas[n], DTYPES[dtype]) for n in base})
    return base, tuned


def report(base, experts, *, shards=None, **options) -> rlmerge.ConflictReport:
    with written(experts, base, shards) as (paths, base_path, _):
        return rlmerge.conflicts(paths, base=base_path, **options)


def compare(found: dict, expected: dict):
    """One level of the report against the reference."""
    for of in ("experts", "pairs"):
        for mine, theirs in zip(found[of], expected[of], strict=True):
            if theirs is None:
                assert all(v is None for k, v in mine.items() if k not in ("a", "b", "counts", "histogram"))
                continue
            for name, value in theirs.items():
                close(mine[name], value, name)
    if expected["together"] is None:
        assert set(found["together"].values()) == {None}
    else:
        for name, value in expected["together"].items():
            close(found["together"][name], value, name)


def close(mine, value, name):
    if value is None or mine is None:
        assert mine is value is None, (name, mine, value)
    else:
        # A cosine, or what is lost, may cancel to near zero: its parts are accurate, relative to 1.
        floor = 1.0 if name.startswith(("cosine", "retention", "ties_")) else 0.0
        assert math.isclose(mine, value, rel_tol=CLOSE, abs_tol=floor * 1e-12), (name, mine, value)


def check_all(found: rlmerge.ConflictReport, base, experts, **options):
    lam = options.pop("lambda_", 1.0)
    parts = {name: conflict.of_tensor(base[name], [e[name] for e in experts], **options) for name in base}
    model = conflict.added(list(parts.values()))
    compare(found.raw["model"], conflict.level(model, model, lam=lam))
    seen = set()
    for tensor in found.raw["tensors"]:
        part = parts[tensor["name"]]
        compare(tensor, conflict.level(part, model, lam=lam))
        for of in ("experts", "pairs"):
            for mine, theirs in zip(tensor[of], part[of], strict=True):
                # Thresholds among NaN and infinity have no meaning.
                loose = {"kept", "lost"} if theirs["counts"].get("non_finite") else set()
                same = {k: v for k, v in theirs["counts"].items() if k not in loose}
                assert {k: v for k, v in mine["counts"].items() if k not in loose} == same, tensor["name"]
        for mine, theirs in zip(tensor["experts"], part["experts"], strict=True):
            first = mine["histogram"]["first"]
            bins = {first + i: n for i, n in enumerate(mine["histogram"]["counts"]) if n}
            if not theirs["counts"]["non_finite"]:
                assert bins == theirs["histogram"], tensor["name"]
        seen.add(tensor["name"])
    assert seen == set(base)
    by_layer = {}
    for tensor in found.raw["tensors"]:
        by_layer.setdefault(tensor["layer"], []).append(parts[tensor["name"]])
    assert [row["layer"] for row in found.raw["layers"]] == [0, 1, 2, None]
    for row in found.raw["layers"]:
        compare(row, conflict.level(conflict.added(by_layer[row["layer"]]), model, lam=lam))


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64", "F8_E4M3"])
@pytest.mark.parametrize("experts", [1, 2, 3])
def test_against_the_reference(dtype, experts):
    base, tuned = draw(dtype, experts)
    check_all(report(base, tuned), base, tuned)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_sparse_and_unequal_experts_and_other_settings(dtype):
    base, tuned = draw(dtype, 2, zeros=0.9, seed=3)
    tuned[1] = draw(dtype, 1, zeros=0.1, scale=1e-2, seed=3)[1][0]
    options = {"epsilon": 1e-3, "relative": 0.05, "density": 0.05, "low": 0.5}
    check_all(report(base, tuned, lambda_=0.5, **options), base, tuned, lambda_=0.5, **options)


def steps(rng, n):
    """What training at a low rate leaves in bf16: most weights as they were, the others one or two steps off."""
    base = round_to(rng.normal(0, 0.02, n), DTYPES["BF16"]).astype(np.float32)
    scale = 2.0 ** (np.floor(np.log2(np.abs(base) + 1e-30)) - 7)
    taken = [rng.choice([-2, -1, 0, 1], n, p=[0.02, 0.08, 0.8, 0.1]) for _ in range(2)]
    return base, [round_to(base + steps * scale, DTYPES["BF16"]) for steps in taken]


def heavy_tails(rng, n):
    base = rng.standard_cauchy(n).astype(np.float32)
    return base, [base + (1e-3 * rng.standard_cauchy(n)).astype(np.float32) for _ in range(2)]


def frozen_base(rng, n):
    return np.zeros(n, np.float32), [rng.normal(0, 1e-3, n).astype(np.float32) for _ in range(2)]


def nearly_all_zero(rng, n):
    base = rng.normal(0, 0.02, n).astype(np.float32)
    return base, [base + (rng.normal(0, 1e-3, n) * (rng.random(n) < 1e-3)).astype(np.float32) for _ in range(2)]


def below_normal_numbers(rng, n):
    base = (rng.normal(0, 1, n) * 1e-41).astype(np.float32)
    return base, [(rng.normal(0, 1, n) * 1e-40).astype(np.float32) for _ in range(2)]


def rows_of_their_own_size(rng, n):
    """Where a sample of a few rows tells little."""
    size = np.repeat(10.0 ** rng.uniform(-6, 0, n // 1000 + 1), 1000)[:n]
    base = rng.normal(0, 0.02, n).astype(np.float32)
    return base, [(base + rng.normal(0, 1e-2, n) * size).astype(np.float32) for _ in range(2)]


def one_block_apart(rng, n):
    """Where it tells something wrong."""
    base, tuned = frozen_base(rng, n)
    for expert in tuned:
        expert[300_000:500_000] *= 1e3
    base[300_000:500_000] = 1
    return base, tuned


def not_finite(rng, n):
    base, tuned = heavy_tails(rng, n)
    tuned[0][[5, 300_000]], tuned[1][77], base[99] = np.nan, np.inf, np.nan
    return base, tuned


@pytest.mark.parametrize(
    "make",
    [
        steps,
        heavy_tails,
        frozen_base,
        nearly_all_zero,
        below_normal_numbers,
        rows_of_their_own_size,
        one_block_apart,
        not_finite,
    ],
)
def test_large_tensors_between_two_experts(make):
    """These take one scan by a guess where thresholds lie."""
    base, tuned = make(np.random.default_rng(11), 600_000)
    base, tuned = {"w": base}, [{"w": t} for t in tuned]
    found = report(base, tuned)
    tensor = conflict.of_tensor(base["w"], [t["w"] for t in tuned])
    compare(found.raw["model"], conflict.level(tensor, tensor, lam=1.0))
    for of in ("experts", "pairs"):
        for mine, theirs in zip(found.raw["tensors"][0][of], tensor[of], strict=True):
            loose = {"kept", "lost"} if make is not_finite else set()
            same = {k: v for k, v in theirs["counts"].items() if k not in loose}
            assert {k: v for k, v in mine["counts"].items() if k not in loose} == same
    for e, expert in enumerate(tuned):
        if make is not_finite:
            continue
        bins = found.raw["tensors"][0]["experts"][e]["histogram"]
        assert {bins["first"] + i: n for i, n in enumerate(bins["counts"]) if n} == tensor["experts"][e]["histogram"]
        # Within a power of two they are those of a sample.
        sizes = np.sort(np.abs(expert["w"].astype(np.float32) - base["w"].astype(np.float32)))
        for quantile in found.raw["quantiles"][e]:
            if quantile["delta"] == 0:
                assert np.count_nonzero(sizes) < quantile["share"] * len(sizes)
                continue
            at = np.searchsorted(sizes, [quantile["delta"] * 0.99, quantile["delta"] * 1.01]) / len(sizes)
            assert at[0] - 0.01 <= 1 - quantile["share"] <= at[1] + 0.01, quantile


def test_models_of_different_dtypes():
    base, tuned = draw("BF16", 2)
    tuned[0] = {n: t.astype(np.float32) for n, t in tuned[0].items()}
    check_all(report(base, tuned), base, tuned)
    tuned[0] = {n: t.astype(np.float64) for n, t in tuned[0].items()}
    check_all(report(base, tuned), base, tuned)


def test_nan_makes_undefined_what_it_touches_and_nothing_else():
    base, tuned = draw("F32", 3)
    tuned[1]["lm_head.weight"][3] = np.nan
    tuned[1]["lm_head.weight"][4] = np.inf
    found = report(base, tuned)
    check_all(found, base, tuned)
    head = next(t for t in found.tensors if t.label == "lm_head.weight")
    assert head.experts[1].norm is None
    assert head.experts[1].counts["non_finite"] == 2
    assert head.experts[0].norm is not None
    assert [p.cosine is None for p in head.pairs] == [True, False, True]
    other = next(t for t in found.tensors if t.label == "model.embed_tokens.weight")
    assert other.experts[1].norm is not None
    assert found.model.experts[1].norm is None
    assert "not finite" in " ".join(found.warnings)
    json.dumps(found.to_dict(), allow_nan=False)


def test_an_expert_that_is_the_base():
    base, tuned = draw("BF16", 2)
    tuned[1] = {n: t.copy() for n, t in base.items()}
    found = report(base, tuned)
    check_all(found, base, tuned)
    pair = found.pairs[0]
    assert found.model.experts[1].norm == 0
    assert (pair.cosine, pair.sign_disagreement, pair.conflict_l2, pair.conflict_norm) == (None, None, None, 0)
    assert pair.jaccard == 0
    assert "unchanged" in [a.rule for a in found.advice]


def test_all_experts_equal_to_the_base():
    base, _ = draw("F32", 0)
    found = report(base, [base, base])
    pair = found.pairs[0]
    assert (pair.cosine, pair.jaccard, pair.conflict_norm_matched) == (None, None, None)
    assert found.model.together.dilution is None


def test_identical_negated_and_scaled_experts():
    base, (tuned, _) = draw("F64", 2)
    delta = {n: tuned[n] - base[n] for n in base}
    same = report(base, [tuned, tuned]).pairs[0]
    assert same.cosine == pytest.approx(1, abs=1e-12)
    assert (same.conflict_norm, same.sign_disagreement, same.jaccard) == (0, 0, 1)
    zero = {n: np.zeros_like(t) for n, t in base.items()}
    negated = report(zero, [delta, {n: -d for n, d in delta.items()}]).pairs[0]
    assert negated.cosine == pytest.approx(-1, abs=1e-12)
    assert (negated.sign_disagreement, negated.conflict_l1, negated.conflict_l2) == (1, 1, 1)
    other = {n: d[..., ::-1].copy() for n, d in delta.items()}
    plain = report(zero, [delta, other]).pairs[0]
    scaled = report(zero, [{n: 4 * d for n, d in delta.items()}, {n: d / 2 for n, d in other.items()}]).pairs[0]
    assert scaled.conflict_norm == pytest.approx(2 * plain.conflict_norm, rel=1e-12)
    for name in ("conflict_l1", "conflict_l2", "conflict_cosine", "cosine"):
        assert getattr(scaled, name) == pytest.approx(getattr(plain, name), rel=1e-12), name
    assert scaled.conflict_norm_matched == pytest.approx(2 * plain.conflict_norm_matched, rel=1e-12)


def test_independent_deltas_are_at_chance():
    rng = np.random.default_rng(5)
    n = 400_000
    base = {"w": np.zeros(n, np.float32)}
    pair = report(base, [{"w": rng.normal(0, 1, n).astype(np.float32)} for _ in range(2)]).pairs[0]
    assert abs(pair.cosine) < 4 * pair.cosine_chance
    assert pair.cosine_chance == pytest.approx(n**-0.5)
    assert abs(pair.sign_disagreement - 0.5) < 4 * pair.sign_disagreement_error
    assert abs(pair.sign_disagreement_top - 0.5) < 4 * pair.sign_disagreement_top_error
    assert pair.conflict_l2 == pytest.approx(0.5**0.5, abs=0.02)
    assert pair.conflict_l1 == pytest.approx(0.5, abs=0.01)


def test_disjoint_supports():
    base = {"w": np.zeros(1000, np.float32)}
    a, b = base["w"].copy(), base["w"].copy()
    a[:300], b[600:] = 1, 1
    found = report(base, [{"w": a}, {"w": b}])
    pair = found.pairs[0]
    assert (pair.jaccard, pair.cosine, pair.sign_disagreement, pair.cosine_overlap) == (0, 0, None, None)
    assert pair.jaccard_chance == pytest.approx(0.3 * 0.4 / (0.3 + 0.4 - 0.12))
    assert found.model.experts[0].ram_overlap == 0


@pytest.mark.parametrize("experts", [2, 3])
def test_the_same_numbers_for_shards_threads_levels_and_ways_of_reading(experts):
    base, tuned = draw("BF16", experts)
    expected = None
    for shards, threads, io in ((None, 1, "pread"), (4, 2, "mmap"), (3, 7, "pread")):
        raw = report(base, tuned, shards=shards, threads=threads, io=io).raw
        numbers = {key: raw[key] for key in ("model", "kinds", "layers", "cells", "tensors", "quantiles")}
        expected = expected or numbers
        assert numbers == expected, (shards, threads, io)
    script = (
        "import json, sys, rlmerge; r = rlmerge.conflicts(sys.argv[2:], base=sys.argv[1]).raw; "
        "print(json.dumps({k: r[k] for k in ('model', 'kinds', 'layers', 'cells', 'tensors', 'quantiles')}))"
    )
    with written(tuned, base) as (paths, base_path, _):
        for level in ("scalar", "avx2", "avx512"):
            done = subprocess.run(
                [sys.executable, "-c", script, base_path, *paths],
                env={**os.environ, "RLMERGE_SIMD": level},
                capture_output=True,
                check=True,
            )
            assert json.loads(done.stdout) == expected, level


def test_tensors_without_arithmetic_are_compared():
    base, tuned = draw("F32", 2)
    for n, t in enumerate((base, *tuned)):
        t["steps"] = np.array([1, 2, 3 + (n == 2)])
    raw = report(base, tuned).raw
    row = next(t for t in raw["tensors"] if t["name"] == "steps")
    assert row["equal"] == [True, False]


def test_the_largest_element_of_a_tensor():
    base = {"w": np.zeros((700, 500), np.float32)}
    a = {"w": base["w"].copy()}
    a["w"][3, 4], a["w"][600, 1] = -0.5, 0.5
    raw = report(base, [a, base]).raw
    assert raw["tensors"][0]["peaks"] == [{"delta": -0.5, "index": 3 * 500 + 4}, None]


def test_groups_at_raw_scale_and_with_norms_matched():
    rng = np.random.default_rng(9)
    base = {"w": np.zeros(20_000, np.float32)}
    make = lambda scale: {"w": rng.normal(0, scale, 20_000).astype(np.float32)}  # noqa: E731
    experts = [make(1.0) for _ in range(3)] + [make(0.1) for _ in range(3)]
    with written(experts, base) as (paths, base_path, _):
        found = rlmerge.conflicts(base=base_path, groups={"sft": paths[:3], "rl": paths[3:]})
    ((_, _, rows),) = found.groups.rows
    rows = {row.statistic: row for row in rows}
    assert rows["conflict_norm"].verdict == "differs"
    assert rows["conflict_norm"].effect == pytest.approx(0.01, rel=0.05)
    assert rows["conflict_norm_matched"].effect == pytest.approx(1, rel=0.05)
    assert rows["norm"].effect == pytest.approx(0.1, rel=0.05)
    assert (
        any("not with norms matched" in line for line in found.groups.words)
        or rows["conflict_norm_matched"].verdict == "differs"
    )
    with written(experts[:4], base) as (paths, base_path, _):
        found = rlmerge.conflicts(base=base_path, groups={"a": paths[:2], "b": paths[2:]})
    assert {row.verdict for row in found.groups.rows[0][2]} == {"too few to say"}


def test_what_advice_says():
    rng = np.random.default_rng(2)
    n = 50_000
    base = {"w": np.zeros(n, np.float32)}
    first, second = rng.normal(0, 1, n), rng.normal(0, 1, n)

    def rules(*deltas):
        return [a.rule for a in report(base, [{"w": d.astype(np.float32)} for d in deltas]).advice]

    assert "near_orthogonal" in rules(first, second)
    assert "aligned" in rules(first, first + 0.1 * second)
    assert "opposed" in rules(first, -0.3 * first + second)
    assert "unequal_norms" in rules(first, 0.1 * second)
    third = 0.3 * first + second
    assert not {"near_orthogonal", "aligned", "opposed", "unequal_norms"} & set(rules(first, third))


def test_refusals():
    base, tuned = draw("F32", 1)
    with written(tuned, base) as (paths, base_path, _):
        with pytest.raises(rlmerge.RecipeError, match="no experts"):
            rlmerge.conflicts([], base=base_path)
        with pytest.raises(rlmerge.RecipeError, match="at least one expert"):
            rlmerge.conflicts([base_path])
        with pytest.raises(rlmerge.RecipeError, match="density"):
            rlmerge.conflicts(paths, base=base_path, density=0.0)
        with pytest.raises(rlmerge.RecipeError, match="epsilon"):
            rlmerge.conflicts(paths, base=base_path, epsilon=float("nan"))
        with pytest.raises(rlmerge.CheckpointError):
            rlmerge.conflicts(["nosuch"], base=base_path)
    models_of_other_shapes = {**tuned[0], "lm_head.weight": np.zeros(16, np.float32)}
    with pytest.raises(rlmerge.AlignmentError):
        report(base, [models_of_other_shapes])


def test_names_tell_experts_apart(tmp_path):
    tensors = models.weights("llama")
    for name in ("base", "math/final", "code/final"):
        models.write_folder(tmp_path / name, tensors)
    found = rlmerge.conflicts([tmp_path / "math/final", tmp_path / "code/final"], base=tmp_path / "base")
    assert found.experts == ("math/final", "code/final")


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("ties", {}),
        ("ties", {"scope": "model"}),
        ("ties", {"match_norm": "mean", "lines": ("auto", 0.5)}),
        ("task_arithmetic", {}),
        ("dare_linear", {}),
        # Scans of other kinds, of which the report shares the first.
        ("sce", {}),
        ("pcb", {}),
        ("resmerge", {}),
    ],
)
def test_a_merge_gathers_the_same_report_and_writes_the_same_bytes(method, parameters):
    base, tuned = draw("BF16", 2)
    with written(tuned, base) as (paths, base_path, root):
        alone = rlmerge.conflicts(paths, base=base_path).raw
        plain = rlmerge.merge(paths, base=base_path, method=method, output=root / "a.safetensors", **parameters)
        both = rlmerge.merge(
            paths, base=base_path, method=method, output=root / "b.safetensors", conflicts=True, **parameters
        )
        assert (root / "a.safetensors").read_bytes() == (root / "b.safetensors").read_bytes()
    assert plain.conflicts is None
    for key in ("model", "layers", "kinds", "cells", "tensors"):
        assert both.conflicts.raw[key] == alone[key]
    # Norms are matched in f64, where nothing is guessed.
    for mine, theirs in zip(both.conflicts.raw["quantiles"], alone["quantiles"], strict=True):
        assert [q["delta"] for q in mine] == pytest.approx([q["delta"] for q in theirs], rel=0.02)
    assert [t.blake3 for t in plain.tensors] == [t.blake3 for t in both.tensors]


def test_a_merge_without_a_base_has_no_report():
    base, tuned = draw("BF16", 2)
    with written(tuned, base) as (paths, _, root):
        with pytest.raises(rlmerge.RecipeError, match="compares experts with a base"):
            rlmerge.merge(paths, method="linear", output=root / "a.safetensors", conflicts=True)
        assert not (root / "a.safetensors").exists()
