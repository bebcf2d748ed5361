//! The kernels once more, one element at a time and without regard to speed: the oracle that every
//! SIMD level is compared with, bit for bit.

use super::combine::MAGNITUDE;
use crate::dtype::{Bf16, DType, Element, F8E4M3, F8E5M2, F16, to_odd_f32};

fn bytes<const N: usize>(stored: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|i| stored[at * N + i])
}

/// Value of element `at`, for dtypes with arithmetic.
#[must_use]
pub fn decode(dtype: DType, stored: &[u8], at: usize) -> f64 {
    match dtype {
        DType::F64 => f64::from_le_bytes(bytes(stored, at)),
        DType::F32 => f64::from(f32::from_le_bytes(bytes(stored, at))),
        DType::F16 => f64::from(F16::decode(bytes(stored, at))),
        DType::BF16 => f64::from(Bf16::decode(bytes(stored, at))),
        DType::F8E4M3 => f64::from(F8E4M3::decode(bytes(stored, at))),
        DType::F8E5M2 => f64::from(F8E5M2::decode(bytes(stored, at))),
        other => unreachable!("{other} has no arithmetic"),
    }
}

/// Bytes of the element nearest to `value`.
#[must_use]
pub fn encode(dtype: DType, value: f64) -> Vec<u8> {
    match dtype {
        DType::F64 => value.to_le_bytes().to_vec(),
        DType::F32 => (value as f32).to_le_bytes().to_vec(),
        DType::F16 => F16::encode(to_odd_f32(value)).to_vec(),
        DType::BF16 => Bf16::encode(to_odd_f32(value)).to_vec(),
        DType::F8E4M3 => F8E4M3::encode(to_odd_f32(value)).to_vec(),
        DType::F8E5M2 => F8E5M2::encode(to_odd_f32(value)).to_vec(),
        other => unreachable!("{other} has no arithmetic"),
    }
}

/// Difference of two elements in f32, or in f64 when `wide`.
#[must_use]
pub fn delta(expert: f64, base: f64, wide: bool) -> f64 {
    if wide { expert - base } else { f64::from(expert as f32 - base as f32) }
}

/// Base plus change, the base as it is where nothing changes.
#[must_use]
pub fn add_change(base: f64, factor: f64, change: f64) -> f64 {
    if factor * change == 0.0 { base } else { base + factor * change }
}

/// Whether a magnitude cut keeps the value.
#[must_use]
pub fn is_large(value: f64, threshold: u64, strict: bool) -> bool {
    let magnitude = value.to_bits() & MAGNITUDE;
    if strict { magnitude > threshold } else { magnitude >= threshold }
}

/// The disjoint merge of one element: `(mix, divisor)`.
#[must_use]
pub fn disjoint(values: &[f64], shares: &[f64], zero_is_plus: bool) -> (f64, f64) {
    let mut total = 0.0;
    for (i, v) in values.iter().enumerate() {
        total = if i == 0 { *v } else { total + v };
    }
    if total.is_nan() {
        return (f64::NAN, 0.0);
    }
    let plus = total > 0.0 || (total == 0.0 && zero_is_plus);
    let (mut mix, mut divisor) = (0.0, 0.0);
    for (v, share) in values.iter().zip(shares) {
        if (plus && *v > 0.0) || (!plus && *v < 0.0) {
            mix += v;
            divisor += share;
        }
    }
    (mix, divisor)
}

/// RAM's merge of one element from the experts' changes and scales: the only change times its scale, or the mean of
/// several.
pub fn unique_or_mean<'a>(changes: impl Iterator<Item = (f64, &'a f64)>) -> f64 {
    let (mut count, mut sum, mut scaled) = (0.0, 0.0, 0.0);
    for (change, scale) in changes {
        count += f64::from(u8::from(change != 0.0));
        sum += change;
        scaled += scale * change;
    }
    if count > 1.0 { sum / count } else { scaled }
}

/// Sum over 16 lanes in the documented order.
#[must_use]
pub fn striped_sum(terms: &[f64]) -> f64 {
    let mut lanes = [0.0; 16];
    for (i, t) in terms.iter().enumerate() {
        lanes[i % 16] += t;
    }
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}
