"""Modifiers: around several methods against the oracle, their laws, and what they refuse."""

import json

import numpy as np
import pytest

import rlmerge
from tests import merging, tensorfile
from tests.property import drawing
from tests.reference import METHODS, modifiers
from tests.reference.conventions import assert_matches
from tests.reference.rounding import DTYPES, bits, wide

SHAPES = {
    "model.embed_tokens.weight": (11, 7),
    "model.layers.0.self_attn.q_proj.weight": (7, 7),
    "model.layers.0.input_layernorm.weight": (7,),
    "model.layers.1.mlp.gate.weight": (3, 7),
    "model.layers.1.mlp.up_proj.weight": (600, 457),  # two tiles
    "model.layers.4.self_attn.q_proj.bias": (7,),
    "model.layers.4.mlp.down_proj.weight": (7, 13),
    "model.norm.weight": (7,),
    "lm_head.weight": (11, 7),
}
TREAT = {"embeddings": "mean", "*layers.4*": "merge", "biases": "base", "norms": "base", "routers": "mean"}


def models(dtype: str, count: int = 3, seed: int = 0):
    """A base and experts whose deltas differ in size."""
    rng = np.random.default_rng(seed)
    base = {n: drawing.numbers(rng, "gauss", s, DTYPES[dtype]) for n, s in SHAPES.items()}
    experts = []
    for i in range(count):
        grown = {n: wide(t) + 0.03 * (i + 1) * rng.normal(size=t.shape) for n, t in base.items()}
        experts.append({n: drawing.round_to(t, DTYPES[dtype]) for n, t in grown.items()})
    return base, experts


def check(method, dtype, parameters=None, **given):
    base, experts = models(dtype)
    got = merging.merge(method, experts, base, parameters=parameters, **given)
    want = modifiers.merge(METHODS[method], base, experts, parameters, **given)
    for name, merged in want.items():
        assert_matches(got[name], merged, name)
    return base, experts, got


@pytest.mark.parametrize("dtype", ["BF16", "F64"])
@pytest.mark.parametrize(
    "given",
    [
        {"treat": TREAT},
        {"match_norm": "mean"},
        {"match_norm": "min", "match_norm_scope": "tensor"},
        {"match_norm": 2, "treat": TREAT},
        {"lines": (0.2, 0.8)},
        {"lines": ("auto", 0.5), "treat": {"norms": "mean"}},
        {"lines": ("auto", 1.0), "match_norm": 3, "match_norm_scope": "tensor", "treat": TREAT},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("task_arithmetic", {"weight": [0.5, 0.25, 1.0]}),
        ("ties", {"density": 0.3}),
        ("ties", {"density": 0.3, "scope": "model"}),
        ("dare_linear", {"density": 0.5}),
    ],
    ids=str,
)
def test_against_the_reference(method, parameters, given, dtype):
    if method == "ties" and given.get("match_norm") is not None and dtype != "F64":
        # Scaled deltas of stored narrow values tie or not by the last bit of an f64 product.
        parameters = {**parameters, "density": 1.0}
    check(method, dtype, parameters, **given)


def test_linear_takes_treatments_only():
    base, experts = models("F32")
    got = merging.merge("linear", experts, None, treat={"norms": "mean"}, parameters={"weight": [1, 2, 3]})
    name = "model.norm.weight"
    want = sum(wide(e[name]) for e in experts) / 3
    np.testing.assert_allclose(got[name], want, rtol=1e-6)
    for given in ({"lines": (1, 0)}, {"match_norm": "mean"}):
        with pytest.raises(rlmerge.RecipeError, match="scales deltas from a base"):
            merging.merge("linear", experts, None, **given)


def test_identities():
    """Rules, scales and norms that change nothing give the bytes of the merge without them."""
    base, experts = models("BF16")
    plain = merging.merge("ties", experts, base)
    for given in ({"treat": {"norms": "merge"}}, {"lines": (1.0, 0.0)}):
        assert merging.digest(merging.merge("ties", experts, base, **given)) == merging.digest(plain)
    alone = merging.merge("task_arithmetic", experts[:1], base, match_norm="mean")
    assert merging.digest(alone) == merging.digest(experts[0])
    nothing = merging.merge("ties", experts, base, lines=(0.0, 0.0))
    assert merging.digest(nothing) == merging.digest(base)
    still = merging.merge("task_arithmetic", [base, base], base, match_norm="min", lines=("auto", 0.5))
    assert merging.digest(still) == merging.digest(base)


@pytest.mark.parametrize("given", [{"match_norm": "mean", "lines": ("auto", 0.3), "treat": TREAT}])
@pytest.mark.parametrize("method", ["ties", "dare_linear"])
def test_bytes_do_not_depend_on_threads_or_shards(method, given):
    base, experts = models("BF16")
    runs = [
        merging.merge(
            method,
            experts,
            base,
            threads=threads,
            shards=shards,
            io=io,
            parameters={"scope": "model"} if method == "ties" else {},
            **given,
        )
        for threads, shards, io in ((1, None, "pread"), (2, 1, "mmap"), (7, 3, "pread"))
    ]
    assert len({merging.digest(run) for run in runs}) == 1


def test_the_report_says_what_was_learnt(tmp_path):
    base, experts = models("F32")
    with merging.written(experts, base) as (paths, base_path, root):
        report = rlmerge.merge(
            paths,
            method="task_arithmetic",
            base=base_path,
            output=root / "merged.safetensors",
            match_norm="min",
            lines=("auto", 0.5),
        )
    learnt = report.raw["learnt"]
    norms = [np.sqrt(sum(((wide(e[n]) - wide(base[n])) ** 2).sum() for n in base)) for e in experts]
    np.testing.assert_allclose(learnt["norm_factors"], [min(norms) / n for n in norms], rtol=1e-12)
    # The merged delta of task arithmetic with weights 1 is the sum of the deltas.
    assert learnt["lines_alpha"] == pytest.approx(1 / 3, rel=1e-12)
    assert report.raw["plan"]["modifiers"]["match_norm"] == "min"
    # Read once for the norms, once for alpha, once to merge.
    assert report.bytes_read == 3 * sum(t.nbytes for m in (base, *experts) for t in m.values())


def test_an_expert_in_full_measure_is_scaled_too():
    base, experts = models("F32")
    parameters, lines = {"weight": [1, 0, 0]}, (0.5, 0.25)
    got = merging.merge("task_arithmetic", experts, base, parameters=parameters, lines=lines)
    want = modifiers.merge(METHODS["task_arithmetic"], base, experts, parameters, lines=lines)
    for name, merged in want.items():
        assert_matches(got[name], merged, name)


def test_experts_without_weight_take_no_part():
    base, experts = models("F32")
    for given in ({"match_norm": "mean"}, {"match_norm": 3, "lines": ("auto", 0.5)}):
        some = merging.merge("task_arithmetic", experts, base, parameters={"weight": [0, 1, 1]}, **given)
        if given.get("match_norm") == 3:
            given = {**given, "match_norm": 2}
        others = merging.merge("task_arithmetic", experts[1:], base, **given)
        assert merging.digest(some) == merging.digest(others)
    with pytest.raises(rlmerge.RecipeError, match="weight 0"):
        merging.merge("task_arithmetic", experts, base, parameters={"weight": [0, 1, 1]}, match_norm=1)


def test_masks_beside_scaled_deltas():
    """Methods that write masks are measured without writing them twice."""
    base, experts = models("F32")
    merging.merge("emr", experts, base, shards=1, lines=("auto", 0.5), match_norm="min")


def test_a_rule_without_a_tensor_is_said():
    base, experts = models("F32")
    with merging.written(experts, base) as (paths, base_path, root):
        plan = rlmerge.plan(
            paths, method="ties", base=base_path, output=root / "m.safetensors", treat={"*.nose": "base"}
        )
    assert any("*.nose" in warning for warning in plan.warnings)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"treat": {"norms": "keep"}}, "none of merge, mean, base"),
        ({"treat": {}}, "not a mapping"),
        ({"lines": (0.5,)}, "pair"),
        ({"lines": ("often", 0.5)}, "auto"),
        ({"lines": {"alpha": 1}}, "alpha and beta"),
        ({"lines": (float("nan"), 1)}, "finite"),
        ({"match_norm": "max"}, "mean, min"),
        ({"match_norm": 4}, "expert 4 of 3"),
        ({"match_norm": 0}, "count from 1"),
        ({"match_norm_scope": "model"}, "without `match_norm`"),
        ({"match_norm": "min", "match_norm_scope": "layer"}, "none of model, tensor"),
    ],
    ids=str,
)
def test_what_is_refused(given, words):
    base, experts = models("F32")
    with pytest.raises(rlmerge.RecipeError, match=words):
        merging.merge("task_arithmetic", experts, base, **given)


def test_base_treatment_needs_a_base():
    _, experts = models("F32")
    with pytest.raises(rlmerge.RecipeError, match="no base"):
        merging.merge("linear", experts, None, treat={"norms": "base"})


def test_a_recipe_file_says_the_same(tmp_path):
    base, experts = models("F32")
    given = {"treat": TREAT, "lines": ("auto", 0.5), "match_norm": 2, "match_norm_scope": "tensor"}
    with merging.written(experts, base) as (paths, base_path, root):
        recipe = {
            "method": "task_arithmetic",
            "models": [str(p) for p in paths],
            "base": str(base_path),
            "treat": TREAT,
            "lines": {"alpha": "auto", "beta": 0.5},
            "match_norm": 2,
            "match_norm_scope": "tensor",
        }
        (root / "recipe.yaml").write_text(json.dumps(recipe))
        rlmerge.merge(recipe=root / "recipe.yaml", output=root / "a.safetensors")
        rlmerge.merge(paths, method="task_arithmetic", base=base_path, output=root / "b.safetensors", **given)
        one, other = (tensorfile.read(root / f"{n}.safetensors") for n in "ab")
    assert merging.digest(one) == merging.digest(other)


def test_base_keeps_its_bytes_and_mean_forgets_weights():
    base, experts = models("F16")
    got = merging.merge(
        "task_arithmetic", experts, base, parameters={"weight": [1, 0, 0]}, treat={"attention": "base", "head": "mean"}
    )
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (bits(got[name]) == bits(base[name])).all()
    head = sum(wide(e["lm_head.weight"]) for e in experts) / 3
    np.testing.assert_allclose(wide(got["lm_head.weight"]), head, rtol=1e-3)
