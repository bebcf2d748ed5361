# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "rlmerge", "torch>=2.9", "transformers>=4.57", "pydantic>=2.12", "ruamel.yaml>=0.18", "numpy>=2",
#   "safetensors>=0.8", "matplotlib>=3.9",
# ]
# ///
"""Put a finished study into the repository: its page into study/results, and a few of its models into study/trio.

    python study/publish.py --config study/configs/tiny-cpu.yaml

The models are the first seed's base and its SFT and RL experts of three tasks, which `make demo` unpacks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script: the folder of `study` belongs on the path, and `study` itself does not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from study.configuration import load_config
from study.trio import pack, unpack

if TYPE_CHECKING:
    from study.configuration import StudyConfig
    from study.stages import Places

TASKS = ("math", "code", "instruct")
HOME = Path(__file__).resolve().parent


def main() -> None:
    """Write the page and the models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="folder of models and facts (study/work/NAME)")
    parser.add_argument("--results", type=Path, help="folder of the page (study/results/NAME)")
    parser.add_argument("--trio", type=Path, default=HOME / "trio", help="folder of the models (study/trio)")
    parser.add_argument("--only-models", action="store_true", help="leave the page as it is")
    told = parser.parse_args()
    config = load_config(told.config)
    work = told.work or HOME / "work" / config.name
    from study.stages import Places

    if not told.only_models:
        from study.page import write_page
        from study.schedule import plan_units

        results = told.results or HOME / "results" / config.name
        write_page(config, work, results, plan_units(config), vector=False)
        print(f"{results}: {size(results) / 1e6:.1f} MB")
    publish_models(config, Places(work), told.trio)
    print(f"{told.trio}: {size(told.trio) / 1e6:.1f} MB")


def publish_models(config: StudyConfig, places: Places, folder: Path) -> None:
    """Pack the models, ask the packed ones what the study asked the experts, and write both scores beside them."""
    seed = config.seeds[0]
    named = {
        f"{'rl' if arm == config.reference else arm}-{task}": (arm, task)
        for arm in ("sft", config.reference)
        for task in TASKS
    }
    base = Path(places.base(config, seed))
    lost = pack(folder, base, {name: places.expert(seed, *which) for name, which in named.items()})
    with tempfile.TemporaryDirectory() as made:
        scores = packed_scores(config, unpack(folder, Path(made)), named)
    rows = ["| model | arm | run | accuracy in the study | as packed | of the delta's norm lost |", "|" + " --- |" * 6]
    for name, (arm, task) in named.items():
        run = (places.read(f"expert/s{seed}/{arm}/{task}") or {}).get("run", "")
        before = (places.read(f"curve/s{seed}/{arm}/{task}") or {}).get("test", "")
        cells = [f"`{name}`", arm, f"`{run}`", accuracy(before), accuracy(scores[name]), f"{100 * lost[name]:.1f} %"]
        rows.append(f"| {' | '.join(cells)} |")
    (folder / "README.md").write_text(
        f"# Models of the {config.name} study\n\n"
        f"The base of seed {seed} and its experts of three tasks, as `study/trio.py` packs them: the base rounded to "
        "bf16, each delta to eight levels a row that keep its signs. `make demo` unpacks them. Accuracy is of sampled "
        "answers to the study's test questions of the expert's own task.\n\n" + "\n".join(rows) + "\n"
    )


def packed_scores(config: StudyConfig, folders: list[Path], named: dict[str, tuple[str, str]]) -> dict[str, str]:
    """Ask each packed expert the test questions of its task."""
    from study.stages import Asker

    asker: Any = Asker(config, folders[0])
    found = {}
    for folder in folders[1:]:
        asker.load(folder)
        found[folder.name] = asker.ask(named[folder.name][1], "test")
    return found


def accuracy(answers: str) -> str:
    """Write the share of right answers."""
    return f"{100 * answers.count('1') / len(answers):.1f} %" if answers else "–"


def size(folder: Path) -> int:
    """Return the bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
