"""Draw the figures of the pages on methods: what each family does to small vectors.

One module a family in ``scripts/figures``, whose ``draw(merge)`` returns a matplotlib figure; ``merge`` computes with
rlmerge itself. Needs matplotlib. The SVG files hold no date, so that the same code draws the same file.

Usage: python scripts/draw_method_figures.py [FAMILY ...]
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
FIGURES = ROOT / "docs" / "methods" / "figures"


def merge(method: str, base: list[float], experts: list[list[float]], **parameters: Any) -> list[float]:
    """Merge vectors with rlmerge, and return the merged vector."""
    import numpy as np
    from tests import tensorfile

    import rlmerge

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths = []
        for number, values in enumerate([base, *experts]):
            paths.append(root / f"{number}.safetensors")
            tensorfile.write(paths[-1], {"w": np.array(values, np.float32)})
        rlmerge.merge(paths[1:], base=paths[0], method=method, output=root / "merged", parameters=parameters)
        return [float(v) for v in tensorfile.read(root / "merged")["w"]]


def main() -> None:
    """Draw the families named, or all."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "rlmerge", "svg.fonttype": "none", "font.size": 9})
    known = sorted(p.stem for p in (ROOT / "scripts" / "figures").glob("*.py") if p.stem != "__init__")
    FIGURES.mkdir(exist_ok=True)
    for family in sys.argv[1:] or known:
        figure = importlib.import_module(f"figures.{family}").draw(merge)
        figure.savefig(FIGURES / f"{family}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
