"""What all methods share: zero weights, identity laws, opaque tensors, output dtype, deltas.

Source: spec of the project (arithmetic and determinism; numeric robustness). In one line each:

- delta = expert - base in f32, in f64 when any input of that tensor is F64; sums in f64; one rounding.
- An element whose total delta is exactly 0 keeps the base's value, -0.0 included.
- Experts of weight 0 are left out before anything else, so that the others are renumbered.
- One expert left, of effective weight exactly 1: its own bytes, or its values rounded once when the output
  has another dtype. All experts equal to the base: the base's.
- Tensors of dtypes without arithmetic are copied; they must be equal in all models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.reference.rounding import ARITHMETIC, DTYPES, NAMES, bits, ordinal, round_to, wide

Model = Mapping[str, np.ndarray]


@dataclass
class Merged:
    """One output tensor before its rounding."""

    value: np.ndarray
    """The result in f64."""
    scale: np.ndarray
    """Sum of the absolute values of all terms: what errors of an f64 evaluation are proportional to."""
    dtype: np.dtype
    """The output dtype."""
    own: np.ndarray | None = None
    """Set where an identity law prescribes these very bytes."""
    kept: np.ndarray | None = None
    """Elements that keep the base's value and therefore its sign of zero."""
    open: np.ndarray | None = None
    """Elements at which infinity or NaN is equal in base and experts: no law says whether inf - inf counts."""
    unsure: np.ndarray | None = None
    """Elements whose value hangs on a comparison that rounding decides: they are held to nothing."""
    roundings: int = field(default=16)
    """Bound on the relative error of an f64 evaluation, in units of 2**-53 of `scale`."""

    def rounded(self) -> np.ndarray:
        """The output tensor."""
        return self.own if self.own is not None else round_to(self.value, self.dtype)


def has_arithmetic(tensor: np.ndarray) -> bool:
    """Whether the tensor's dtype is merged by arithmetic."""
    return NAMES[tensor.dtype] in ARITHMETIC


def same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether dtype, shape and every byte agree."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def per_expert(value, count: int) -> list[float]:
    """One number for all experts, or one for each."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        assert len(value) == count, f"{len(value)} values for {count} experts"
        return [float(v) for v in value]
    return [float(value)] * count


def without_zero_weights(experts: Sequence[Model], weights: list[float], *others: list) -> tuple:
    """The experts, weights and further per-expert lists of those whose weight is not 0."""
    keep = [i for i, w in enumerate(weights) if w != 0]
    return tuple([[column[i] for i in keep] for column in (experts, weights, *others)])


def output_dtype(first: np.ndarray, dtype: str | None) -> np.dtype:
    """The dtype asked for, otherwise that of the base's tensor (without a base: the first model's)."""
    return DTYPES[dtype] if dtype is not None else first.dtype


def verbatim(tensor: np.ndarray, dtype: np.dtype, roundings: int = 0) -> Merged:
    """The tensor itself: its bytes when the output has its dtype, otherwise its values.

    `roundings` allows for an average of equal values instead of a copy, which no law forbids there.
    """
    if not has_arithmetic(tensor):
        zero = np.zeros(tensor.shape)
        return Merged(zero, zero, tensor.dtype, own=tensor)
    value = wide(tensor)
    merged = Merged(value, np.abs(value), dtype, roundings=roundings)
    if tensor.dtype == dtype:
        merged.own = tensor
    return merged


def delta(expert: np.ndarray, base: np.ndarray, *all_inputs: np.ndarray) -> np.ndarray:
    """expert - base in f32, or in f64 when one of this tensor's inputs is F64; returned in f64."""
    work = np.float64 if any(t.dtype == np.float64 for t in (expert, base, *all_inputs)) else np.float32
    with np.errstate(all="ignore"):
        return (expert.astype(work) - base.astype(work)).astype(np.float64)


def add_to_base(base: np.ndarray, experts: Sequence[np.ndarray], total, scale, dtype: np.dtype, kept) -> Merged:
    """base + total, where an element of total exactly 0 keeps the base's value."""
    start = wide(base)
    equal = np.ones(base.shape, bool)
    for expert in experts:
        if expert.dtype == base.dtype:
            equal &= bits(expert) == bits(base)
        else:
            equal &= wide(expert) == start
    with np.errstate(all="ignore"):
        value = np.where(total == 0, start, start + total)
        return Merged(value, np.abs(start) + scale, dtype, kept=kept, open=equal & ~np.isfinite(start))


def assert_matches(got: np.ndarray, want: Merged, label: str = "") -> None:
    """Demands what `want` prescribes: its bytes, or the correct rounding of a correct f64 evaluation.

    Two f64 evaluations may fall on either side of a rounding boundary; nothing else is excused, so
    this is stricter than one unit in the last place of the output dtype.
    """
    assert got.shape == want.value.shape, f"{label}: shape {got.shape}, want {want.value.shape}"
    assert got.dtype == want.dtype, f"{label}: dtype {got.dtype}, want {want.dtype}"
    if want.own is not None:
        different = np.flatnonzero(bits(got).ravel() != bits(want.own).ravel())
        assert not different.size, (
            f"{label}: {different.size} of {got.size} elements are not the bytes that an identity law prescribes; "
            f"first at {different[0]}: {bits(got).ravel()[different[0]]:#x} "
            f"for {bits(want.own).ravel()[different[0]]:#x}"
        )
        return
    with np.errstate(all="ignore"):
        slack = want.roundings * 2.0**-53 * want.scale
        slack = np.where(np.isfinite(slack), slack, 0.0)
        low, high = round_to(want.value - slack, want.dtype), round_to(want.value + slack, want.dtype)
    at = ordinal(got)
    good = (ordinal(low) <= at) & (at <= ordinal(high))
    nan = np.isnan(wide(got))
    good = np.where(np.isnan(wide(low)) | np.isnan(wide(high)), nan | good, good & ~nan)
    if want.open is not None:
        good |= want.open & ~np.isfinite(wide(got))
    if want.unsure is not None:
        good |= want.unsure
    if want.kept is not None:
        middle = want.rounded()
        good &= ~want.kept | (bits(got) == bits(middle)) | nan
    bad = np.flatnonzero(~np.asarray(good, bool).ravel())
    if bad.size:
        first = bad[0]
        raise AssertionError(
            f"{label}: {bad.size} of {got.size} elements differ from the reference; first at flat index {first}: "
            f"got {got.ravel()[first]!r} ({bits(got).ravel()[first]:#x}), want {want.value.ravel()[first]!r} "
            f"= {want.rounded().ravel()[first]!r} ({bits(want.rounded()).ravel()[first]:#x})"
        )
