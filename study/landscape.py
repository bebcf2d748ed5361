"""Accuracy around an expert: along another task's delta, along random directions of the same norm, and on a plane."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from study.configuration import StudyConfig
    from study.stages import Asker


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of a folder as f32."""
    from safetensors.torch import load_file

    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= {name: tensor.float() for name, tensor in load_file(file).items()}
    return found


def random_direction(like: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Draw a direction whose norm is, tensor by tensor, that of another: noise of the same shape of energy."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, tensor in like.items():
        noise = torch.randn(tensor.shape, generator=generator)
        found[name] = noise * (tensor.norm() / noise.norm())
    return found


def survey(
    config: StudyConfig, asker: Asker, base: Path, experts: dict[str, Path], seed: int, style: str = "plain"
) -> dict[str, Any]:
    """Walk from every expert.

    Parameters
    ----------
    style
        Of the right answers whose loss is measured: the one that the experts were trained on.

    Returns
    -------
    dict
        ``lines``: for each task, the accuracy of its expert at each distance along the next task's delta (``other``)
        and along each random direction (``random``), and the same of the loss (``loss``); distance 1 is the norm of
        that delta. ``plane``: accuracies and losses of the first two tasks at base + a*first + b*second.
    """
    told = config.landscape
    start = read_weights(base)
    deltas = {
        task: {name: weight - start[name] for name, weight in read_weights(folder).items()}
        for task, folder in experts.items()
    }

    def go(parts: list[tuple[float, dict[str, Tensor]]]) -> None:
        weights = dict(start)
        for factor, delta in parts:
            weights = {name: weight + factor * delta[name] for name, weight in weights.items()}
        asker.model.load_state_dict(weights, strict=False)

    def look(task: str, parts: list[tuple[float, dict[str, Tensor]]]) -> tuple[str, float]:
        go(parts)
        return asker.ask(task, "validation", count=told.items), asker.gold_loss(task, style, told.items)

    tasks = list(experts)
    lines: dict[str, Any] = {}
    for at, task in enumerate(tasks):
        other = deltas[tasks[(at + 1) % len(tasks)]]
        own = (1.0, deltas[task])
        noises = [random_direction(other, seed * 1000 + at * 100 + n) for n in range(told.random_directions)]
        seen = {
            "here": look(task, [own]),
            "along_other": [look(task, [own, (far, other)]) for far in told.distances],
            "along_random": [[look(task, [own, (far, noise)]) for far in told.distances] for noise in noises],
        }
        lines[task] = {"other": tasks[(at + 1) % len(tasks)], **part(seen, 0), "loss": part(seen, 1)}
    first, second = tasks[:2]
    plane = []
    for a in told.plane:
        for b in told.plane:
            point: dict[str, float] = {"a": a, "b": b}
            for task in (first, second):
                answers, point[f"{task}_loss"] = look(task, [(a, deltas[first]), (b, deltas[second])])
                point[task] = answers.count("1") / told.items
            plane.append(point)
    return {"distances": told.distances, "lines": lines, "plane": plane, "axes": [first, second]}


def part(seen: Any, at: int) -> Any:
    """Take the answers (0) or the losses (1) out of what was seen, however it is nested."""
    if isinstance(seen, dict):
        return {name: part(inner, at) for name, inner in seen.items()}
    if isinstance(seen, list):
        return [part(inner, at) for inner in seen]
    return seen[at]
