"""Inputs for both sides, and mergekit's answer."""

import numpy as np

#: Matrices, a vector, a convolution kernel, one element.
SHAPES = {"wide": (16, 24), "long": (4, 96), "vector": (37,), "kernel": (6, 5, 3, 3), "one": (1,)}


def models(experts: int, seed: int = 0, zeros: float = 0.2) -> tuple[dict, list[dict]]:
    """A base and experts in f32, the deltas of which are exactly zero here and there."""
    rng = np.random.default_rng(seed)
    base = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in SHAPES.items()}
    tuned = []
    for _ in range(experts):
        delta = {n: rng.normal(0, 0.05, s) * (rng.random(s) >= zeros) for n, s in SHAPES.items()}
        tuned.append({n: (base[n] + delta[n].astype(np.float32)) for n in SHAPES})
    return base, tuned


def mergekit(method: str, base: dict | None, experts: list[dict], **parameters) -> dict[str, np.ndarray]:
    """What mergekit 0.1.5 computes, tensor by tensor."""
    import torch
    from mergekit.merge_methods.api import merge_tensors

    out = {}
    for name in experts[0]:
        inputs = [torch.from_numpy(m[name]) for m in ([base] if base is not None else []) + experts]
        merged = merge_tensors(inputs, method, parameters=parameters, base_index=None if base is None else 0)
        out[name] = merged.numpy()
    return out


def assert_close(ours: dict, theirs: dict, tolerance: float = 3e-6):
    """Relative to the largest number of the tensor, as f32 sums of unlike terms cannot do better an element."""
    for name, want in theirs.items():
        got = np.asarray(ours[name], np.float64)
        assert got.shape == want.shape, name
        size = np.abs(want).max()
        worst = np.abs(got - want).max() / size
        assert worst <= tolerance, f"{name}: {worst:.2e} of {size:.3g}"
