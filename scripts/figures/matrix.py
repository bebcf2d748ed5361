"""What the methods that see matrices, or statistics, do to two small deltas."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

NAME = "layers.0.mlp.up_proj.weight"


def draw(merge: Callable[..., list[float]]) -> Any:
    """Return the figure: a row of panels for matrices, one for statistics."""
    import numpy as np
    from matplotlib.figure import Figure

    del merge  # it makes vectors; these methods need matrices
    rng = np.random.default_rng(4)
    base = rng.normal(0, 1, (6, 8))
    shared = np.outer(rng.normal(size=6), rng.normal(size=8))
    deltas = [shared + 0.6 * rng.normal(size=(6, 8)) for _ in range(2)]
    experts = [base + d for d in deltas]
    panels = [
        ("delta of expert 1", deltas[0]),
        ("delta of expert 2", deltas[1]),
        ("task_arithmetic, weight 0.5", merged("task_arithmetic", base, experts, weight=0.5) - base),
        ("resmerge", merged("resmerge", base, experts) - base),
        ("neuromerging, density 1", merged("neuromerging", base, experts, density=1.0) - base),
    ]
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.1, 1])
    for axis, (title, values) in zip(top.subplots(1, 5), panels, strict=True):
        axis.imshow(values, cmap="RdBu", vmin=-2.5, vmax=2.5)
        axis.set_title(title, fontsize=7)
        axis.set_xticks([])
        axis.set_yticks([])

    ones, fours = np.ones((1, 6)), np.full((1, 6), 4.0)
    information = np.array([[9.0, 5.0, 2.0, 1.0, 0.5, 0.0]]), np.ones((1, 6))
    fisher = merged("fisher", None, [ones, fours], statistics=information, normalize=False)
    plain = merged("linear", None, [ones, fours])
    axis = bottom.subplots(1, 1)
    places = np.arange(6)
    for side, values, colour, label in (
        (-0.3, ones, "#4477aa", "model 1"),
        (-0.1, fours, "#ee6677", "model 2"),
        (0.1, plain, "#bbbbbb", "linear"),
        (0.3, fisher, "#555555", "fisher"),
    ):
        axis.bar(places + side, values[0], width=0.18, color=colour, label=label)
    ratios = [f"F₁/F₂ = {v:g}" for v in information[0][0]]
    axis.set_xticks(places, ratios)
    axis.legend(ncols=4, fontsize=7, frameon=False, loc="upper left")
    axis.set_ylim(0, 5.2)
    return figure


def merged(
    method: str,
    base: np.ndarray | None,
    experts: list[np.ndarray],
    statistics: tuple[np.ndarray, ...] = (),
    **parameters: Any,
) -> np.ndarray:
    """Merge matrices with rlmerge, and return the merged one."""
    import numpy as np
    from tests import tensorfile

    import rlmerge

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)

        def put(name: str, values: np.ndarray) -> Path:
            path = root / f"{name}.safetensors"
            tensorfile.write(path, {NAME: values.astype(np.float64)})
            return path

        paths = [put(str(at), values) for at, values in enumerate(experts)]
        if statistics:
            parameters["fisher"] = [put(f"statistics-{at}", values) for at, values in enumerate(statistics)]
        start = None if base is None else put("base", base)
        output = root / "merged.safetensors"
        rlmerge.merge(paths, base=start, method=method, output=output, parameters=parameters)
        return np.array(tensorfile.read(output)[NAME])
