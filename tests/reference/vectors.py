"""What of a tensor is one vector, and what angles between vectors are: shared by the methods that look at angles.

- the whole tensor; or
- "outputs": what belongs to one output unit: a row of a matrix [out, in], a column where the matrix is stored
  transposed (GPT-2's Conv1D), a filter of a convolution kernel [out, ...];
- "inputs": what belongs to one input: a column of a matrix, a row of a transposed one; of other tensors a run
  along the first axis;
- "last", "first": runs along that axis, as in mergekit.

Tensors of fewer than two dimensions are one vector. The stacked experts of a mixture, three-dimensional tensors
named `experts`, are a batch of matrices: their first axis is never part of a vector.
"""

import numpy as np

CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def axes(name: str, shape: tuple[int, ...], cut: str) -> tuple[int, ...]:
    """The axes along which a vector runs."""
    every = tuple(range(len(shape)))
    if cut == "whole" or len(shape) < 2:
        return every
    stacked = len(shape) == 3 and "experts" in name.split(".")
    matrix = len(shape) == 2 or stacked
    if cut == "last":
        return (len(shape) - 1,)
    if cut == "first":
        return (1,) if stacked else (0,)
    if not matrix:
        return every[1:] if cut == "outputs" else (0,)
    rows_are_outputs = not name.endswith(CONV1D)
    return (len(shape) - 1,) if (cut == "outputs") == rows_are_outputs else (len(shape) - 2,)


def split(tensor: np.ndarray, along: tuple[int, ...]) -> np.ndarray:
    """The vectors of a tensor as the rows of a matrix."""
    kept = [a for a in range(tensor.ndim) if a not in along]
    moved = np.transpose(tensor, [*kept, *along])
    length = int(np.prod([tensor.shape[a] for a in along], dtype=np.int64))
    count = int(np.prod([tensor.shape[a] for a in kept], dtype=np.int64))
    return moved.reshape(count, length)


def join(vectors: np.ndarray, shape: tuple[int, ...], along: tuple[int, ...]) -> np.ndarray:
    """The tensor that `split` took apart."""
    order = [a for a in range(len(shape)) if a not in along] + list(along)
    back = vectors.reshape([shape[a] for a in order])
    return np.transpose(back, np.argsort(order)) if order else back


def norm(v: np.ndarray) -> float:
    """Euclidean length."""
    return float(np.sqrt(np.dot(v, v)))
