"""The model that a base and a PEFT adapter stand for, and the change of each tensor.

Sources: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, section 4.1 (W0 + (alpha/r) B A);
Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", arXiv 2312.03732 (alpha/sqrt(r));
Liu et al., "DoRA", ICML 2024, equation 5; and for names and patterns PEFT's own format.

The values are those that the documentation promises, bit for bit: each element of B A is a chain of fused
multiply-adds in f32 over the rank in order, multiplied by the scale in f32; the sum with the base is rounded to f32
and leaves the base's value alone where nothing is added.
"""

import re
from collections.abc import Mapping

import numpy as np

from tests.reference.rounding import wide

Model = Mapping[str, np.ndarray]


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """`a * b + c` of f32 values, rounded once: through an f64 sum rounded to odd."""
    a, b, c = (np.asarray(x, np.float32).astype(np.float64) for x in (a, b, c))
    product = a * b  # exact: 48 bits
    total = product + c
    rest = total - product
    error = (product - (total - rest)) + (c - rest)
    even = (total.view(np.int64) & 1) == 0
    toward = np.where(error > 0, np.inf, -np.inf)
    odd = np.where((error != 0) & even, np.nextafter(total, toward), total)
    return odd.astype(np.float32)


def product(left: np.ndarray, right: np.ndarray, scale: float) -> np.ndarray:
    """`scale * left @ right` in f32, in the documented order."""
    total = np.zeros((left.shape[0], right.shape[1]), np.float32)
    for k in range(left.shape[1]):
        total = fused(left[:, k : k + 1], right[k : k + 1, :], total)
    return total * np.float32(scale)


def narrow(tensor: np.ndarray) -> np.ndarray:
    """The values in f32."""
    return wide(tensor).astype(np.float32)


def add(base: np.ndarray, change: np.ndarray) -> np.ndarray:
    """The sum in f32; the base where nothing is added."""
    base = narrow(base)
    return np.where(change == 0, base, base + change.reshape(base.shape))


def matched(patterns: Mapping, module: str, default):
    """The value of the first pattern that matches the end of a module's name."""
    return next((v for p, v in patterns.items() if re.match(rf"(.*\.)?({p})$", module)), default)


def scale(config: Mapping, module: str) -> float:
    """Factor of B A."""
    rank = matched(config.get("rank_pattern") or {}, module, config["r"])
    alpha = matched(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank


def changes(adapter: Model, config: Mapping, shapes: Mapping[str, tuple]) -> dict[str, np.ndarray]:
    """The f32 change of each tensor."""
    named = {name.removeprefix("base_model.model."): t for name, t in adapter.items()}
    out = {}
    for name, tensor in named.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            a, b = narrow(tensor), narrow(named[f"{module}.lora_B.weight"])
            a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
            turned = config.get("fan_in_fan_out", False)
            left, right = (a.T, b.T) if turned else (b, a)
        elif name.endswith(".lora_embedding_A"):
            module = name.removesuffix(".lora_embedding_A")
            left, right = narrow(tensor).T, narrow(named[f"{module}.lora_embedding_B"]).T
        elif name.endswith(".lora_B.bias"):
            module = name.removesuffix(".lora_B.bias")
            out[f"{module}.bias"] = narrow(tensor) * np.float32(scale(config, module))
            continue
        else:
            continue
        target = f"{module}.weight"
        out[target] = product(left, right, scale(config, module)).reshape(shapes[target])
    return out


def apply(base: Model, adapter: Model, config: Mapping) -> dict[str, np.ndarray]:
    """The model that base and adapter stand for: changed tensors in f32, the others as they are stored."""
    named = {name.removeprefix("base_model.model."): t for name, t in adapter.items()}
    out = dict(base)
    for name, tensor in named.items():
        if "lora_" not in name:
            out[name.replace(".base_layer", "").replace(".modules_to_save", "")] = tensor
    for name, change in changes(adapter, config, {n: t.shape for n, t in out.items()}).items():
        out[name] = add(out[name], change)
        magnitude = named.get(f"{name.removesuffix('.weight')}.lora_magnitude_vector")
        if magnitude is not None:
            lengths = np.sqrt((out[name].astype(np.float64) ** 2).sum(axis=1))
            factor = wide(magnitude).reshape(-1) / lengths
            out[name] = (out[name].astype(np.float64) * factor[:, None]).astype(np.float32)
    return out
