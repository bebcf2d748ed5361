"""Exact values of the stored dtypes, and the one rounding from f64 to them.

`ml_dtypes` converts f64 by way of f32 and so rounds twice; here a value is rounded on the grid of
the target dtype itself, to nearest even.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

BF16 = np.dtype(ml_dtypes.bfloat16)
F8_E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
F8_E5M2 = np.dtype(ml_dtypes.float8_e5m2)

#: Name in a safetensors header -> NumPy dtype, for the dtypes that NumPy can hold.
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BF16,
    "F8_E4M3": F8_E4M3,
    "F8_E5M2": F8_E5M2,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

#: The dtypes that are merged by arithmetic; all others are copied when equal.
ARITHMETIC = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class Grid:
    """The finite values of a small float: `precision` significant bits, from 2**lowest up."""

    precision: int
    lowest: int
    """Exponent of the smallest normal number."""
    largest: float
    overflow: float
    """What a number rounds to that is past the largest one."""


GRIDS = {
    BF16: Grid(8, -126, float(ml_dtypes.finfo(BF16).max), np.inf),
    DTYPES["F16"]: Grid(11, -14, 65504.0, np.inf),
    F8_E5M2: Grid(3, -14, 57344.0, np.inf),
    F8_E4M3: Grid(4, -6, 448.0, np.nan),
}


def round_to(value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`value` (f64) in `dtype`: one rounding, to nearest even."""
    value = np.asarray(value, np.float64)
    with np.errstate(all="ignore"):
        if dtype not in GRIDS:
            return np.asarray(value.astype(dtype))  # f64 and f32: the processor rounds once
        grid = GRIDS[dtype]
        _, exponent = np.frexp(value)  # |value| in [2**(exponent - 1), 2**exponent)
        last_bit = np.maximum(exponent - 1, grid.lowest) - (grid.precision - 1)
        rounded = np.ldexp(np.rint(np.ldexp(value, -last_bit)), last_bit)
        rounded = np.where(np.abs(rounded) > grid.largest, np.copysign(grid.overflow, value), rounded)
        return np.asarray(rounded).astype(dtype)  # exact


def wide(tensor: np.ndarray) -> np.ndarray:
    """The stored numbers, exactly, in f64."""
    with np.errstate(all="ignore"):
        return tensor.astype(np.float64)


def bits(tensor: np.ndarray) -> np.ndarray:
    """The stored patterns as unsigned integers of the same shape."""
    flat = np.ascontiguousarray(tensor).reshape(-1)
    return flat.view(np.dtype(f"u{flat.dtype.itemsize}")).reshape(tensor.shape)


def ordinal(tensor: np.ndarray) -> np.ndarray:
    """Position of each stored number on its dtype's line: neighbours differ by one, both zeros are 0."""
    width = 8 * tensor.dtype.itemsize
    pattern = bits(tensor).astype(object if width == 64 else np.int64)
    magnitude = pattern & ((1 << (width - 1)) - 1)
    return np.where((pattern >> (width - 1)) != 0, -magnitude, magnitude)
