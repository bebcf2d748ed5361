"""The page of a conflict report: what it holds, what hostile names do to it, and how a browser takes it."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

import rlmerge
from rlmerge._conflicts import report_of
from rlmerge._statistics import (
    OF_EXPERT,
    OF_PAIR,
    SPECTRAL_OF_EXPERT,
    SPECTRAL_OF_PAIR,
    SPECTRAL_TOGETHER,
)
from tests.tensorfile import write

HOSTILE = "<img src=x onerror=document.title='pwned'>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> rlmerge.ConflictReport:
    root = tmp_path_factory.mktemp("page")
    rng = np.random.default_rng(0)
    names = [f"model.layers.{i}.{m}.weight" for i in range(3) for m in ("self_attn.q_proj", "mlp.up_proj")]
    names += ["lm_head.weight", "</script><script>document.title='pwned'</script>"]
    base = {name: rng.normal(size=(8, 8)).astype(np.float32) for name in names}
    paths = []
    write(root / "base.safetensors", base)
    for name in ("one", "=2+2|*x*", HOSTILE):
        path = root / f"{name}.safetensors"
        write(path, {k: v + rng.normal(0, 0.01, (8, 8)).astype(np.float32) for k, v in base.items()})
        paths.append(path)
    groups = {"</script>": paths[:2], "rl": paths[1:]}
    return rlmerge.conflicts(base=root / "base.safetensors", groups=groups, spectral=True)


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "action", "data", "srcset", "xlink:href")]


def test_hostile_names_stay_text(report):
    page = Page(report.to_html())
    assert page.links == []
    assert page.tags.count("script") == 2
    assert not {"img", "iframe", "link", "object", "embed", "form"} & set(page.tags)
    fragment = Page(report._repr_html_())
    assert set(fragment.tags) <= {
        "h2",
        "div",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "small",
        "ul",
        "li",
        "p",
        "code",
    }
    assert "<img" not in report.to_markdown()


def test_no_spreadsheet_takes_a_name_for_a_formula(report, tmp_path):
    report.to_csv(tmp_path)
    for path in tmp_path.iterdir():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                assert not any(
                    re.match(r"[=+@]", cell) for key, cell in row.items() if key in ("a", "b", "expert", "label")
                )


def test_the_page_asks_the_network_for_nothing(report):
    text = report.to_html()
    # The name space of SVG is the only address.
    assert set(re.findall(r"https?://[^\s\"']*", text)) <= {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("theme", [0, 1])
def test_a_browser_draws_it_without_errors(report, tmp_path, theme):
    page = tmp_path / "report.html"
    # Whatever the script raises, and whatever the policy stops, becomes an attribute of the document.
    watch = (
        "<script>addEventListener('error',e=>document.documentElement.dataset.failed=e.message);"
        "addEventListener('securitypolicyviolation',e=>document.documentElement.dataset.failed=e.blockedURI)</script>"
    )
    page.write_text(report.to_html().replace("<title>", watch + "<title>", 1))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [
        f"--blink-settings=preferredColorScheme={theme}",
        "--enable-logging=stderr",
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'data-drawn="yes"' in done.stdout
    assert "data-failed" not in done.stdout
    assert "CONSOLE" not in done.stderr
    assert "<title>Conflict report</title>" in done.stdout
    for place in ("heat", "matrix", "hist", "forest", "spectra"):
        drawn = done.stdout.split(f'id="{place}"', 1)[-1] if f'id="{place}"' in done.stdout else done.stdout
        assert "<svg" in drawn, place
    assert HOSTILE.replace("<", "&lt;").replace(">", "&gt;") in done.stdout


def test_a_large_page_is_small_enough(report):
    """80 layers of 8 kinds with 5 experts, made from one level repeated."""
    raw = json.loads(json.dumps(report.raw))
    rng = np.random.default_rng(1)

    def level() -> dict:
        number = lambda: float(rng.normal() * 1e-3)  # noqa: E731
        counts = {"non_finite": 0}
        experts = [
            {**{k: number() for k in OF_EXPERT}, "counts": counts, "histogram": {"first": -20, "counts": [1] * 15}}
            for _ in range(5)
        ]
        pairs = [
            {"a": a, "b": b, **{k: number() for k in OF_PAIR}, "counts": {}} for a in range(5) for b in range(a + 1, 5)
        ]
        together = dict.fromkeys(raw["model"]["together"], 0.5)
        return {
            "tensors": 1,
            "parameters": 10**7,
            "base_norm": 1.0,
            "experts": experts,
            "pairs": pairs,
            "together": together,
            "spectral": {
                "matrices": 1,
                "experts": [{k: number() for k in SPECTRAL_OF_EXPERT} for _ in range(5)],
                "pairs": [
                    {"a": a, "b": b, **{k: number() for k in SPECTRAL_OF_PAIR}}
                    for a in range(5)
                    for b in range(a + 1, 5)
                ],
                "together": dict.fromkeys(SPECTRAL_TOGETHER, 0.5),
            },
        }

    def tensor(layer: int, kind: str) -> dict:
        values = [float(v) for v in rng.random(24)]
        name = f"model.layers.{layer}.self_attn.{kind}_proj.weight"
        experts = [{"norm": float(rng.random())} for _ in range(5)]
        curves = {"sides": [8192, 28672], "index": list(range(24)), "base": values, "deltas": [values] * 5}
        return {"name": name, "experts": experts, "spectrum": {**curves, "edges": values[:5], "noise": values}}

    kinds = ["norm", "q", "k", "v", "o", "gate", "up", "down"]
    raw["model"] = level()
    raw["kinds"] = [{"kind": kind, **level()} for kind in kinds]
    raw["layers"] = [{"layer": layer, **level()} for layer in range(80)]
    raw["cells"] = [{"layer": layer, "kind": kind, **level()} for layer in range(80) for kind in kinds]
    raw["tensors"] = [tensor(layer, kind) for layer in range(80) for kind in kinds[1:]]
    raw["quantiles"] = [[{"share": 0.2, "delta": 1e-4}]] * 5
    found = report_of(raw, [f"expert-{i}" for i in range(5)], [], [])
    assert len(found.to_html().encode()) < 5_000_000


def test_a_report_without_spectra_says_nothing_of_them(tmp_path):
    for name, value in (("base", 1.0), ("a", 1.5)):
        write(tmp_path / f"{name}.safetensors", {"w": np.full((4, 4), value, np.float32)})
    found = rlmerge.conflicts([tmp_path / "a.safetensors"], base=tmp_path / "base.safetensors")
    assert found.model.spectral is None
    assert "stable_rank" not in found.table("experts")[0]
    assert "Spectra" not in found.to_html().split("<script>")[0]
    assert "Spectra" not in found.to_markdown()


def test_spectral_numbers_are_in_every_form(report, tmp_path):
    assert "## Spectra" in report.to_markdown()
    assert "Spectra" in report._repr_html_()
    assert report.table("experts")[0]["stable_rank"] == report.model.spectral.experts[0].stable_rank
    assert report.table("layers")[0]["interference_share"] == report.layers[0].spectral.pairs[0].interference_share
    report.to_csv(tmp_path)
    with (tmp_path / "tensors-pairs.csv").open(newline="") as file:
        assert {"subspace_a", "interference_chance"} <= set(next(csv.DictReader(file)))


def test_tables_frames_and_numbers(report):
    assert len(report.table("pairs")) == 3
    assert len(report.table("experts")) == 3
    assert len(report.table("layers")) == 3 * 4
    assert {"label", "expert", "norm"} <= set(report.table("tensors.experts")[0])
    with pytest.raises(rlmerge.RecipeError, match="no table"):
        report.table("nosuch")
    pandas = pytest.importorskip("pandas")
    frame = report.to_dataframe("layers")
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == 12


def test_plot(report):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    figure = report.plot("cosine", pair=1)
    assert figure.axes[0].get_title()
    figure = report.plot("norm", expert=2)
    figure = report.plot("stable_rank", expert=1)
    with pytest.raises(rlmerge.RecipeError, match="no statistic"):
        report.plot("nosuch")
