//! Bytes to numbers and back, a chunk at a time. Bytes may lie at any alignment.

use super::lanes::{LANES, Lanes};
use super::level::{Level, kernel};
use crate::dtype::{Bf16, DType, Element, F8E4M3, F8E5M2, F16, F32, F64, sticky_f32, to_odd_f32};

macro_rules! decoders {
    ($($name:ident $element:ty, $size:literal, $wide:ty;)*) => {$(
        kernel! {
            fn $name(bytes: &[u8], out: &mut [$wide]) {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<$size>().0) {
                    *o = <$element as Element<$size>>::decode(*b);
                }
            }
        }
    )*};
}

decoders! {
    decode_f32 F32, 4, f32;
    decode_f16 F16, 2, f32;
    decode_bf16 Bf16, 2, f32;
    decode_e4m3 F8E4M3, 1, f32;
    decode_e5m2 F8E5M2, 1, f32;
    decode_f64 F64, 8, f64;
}

kernel! {
    /// Widens exactly.
    pub fn widen(values: &[f32], out: &mut [f64]) {
        for (o, v) in out.iter_mut().zip(values) {
            *o = f64::from(*v);
        }
    }
}

/// Elements that go through each step of encoding together: short runs cost more in their beginnings and ends.
const STEP: usize = super::CHUNK;

/// Brings values to the width of the element, encodes them, and adds the squares of what the bytes now say to the
/// lanes: step by step, which the compiler makes better vectors of than of one loop. Gives whether any value was
/// `odd`, in its new width.
#[inline(always)]
fn encode_all<E: Element<SIZE>, const SIZE: usize>(
    values: &[f64],
    out: &mut [u8],
    lanes: &mut Lanes,
    narrow: impl Fn(f64) -> E::Wide,
    odd: impl Fn(E::Wide) -> bool,
) -> bool
where
    f64: From<E::Wide>,
    E::Wide: Default,
{
    let bytes = out.as_chunks_mut::<SIZE>().0;
    let mut narrowed = [E::Wide::default(); STEP];
    let mut any = 0u32;
    for (values, bytes) in values.chunks(STEP).zip(bytes.chunks_mut(STEP)) {
        for (n, v) in narrowed.iter_mut().zip(values) {
            *n = narrow(*v);
        }
        for (b, n) in bytes.iter_mut().zip(&narrowed) {
            any |= u32::from(odd(*n));
            *b = E::encode(*n);
        }
    }
    let (rows, tail) = bytes.as_chunks::<LANES>();
    let mut sums = *lanes;
    for row in rows {
        for (s, b) in sums.iter_mut().zip(row) {
            let stored = f64::from(E::decode(*b));
            *s += stored * stored;
        }
    }
    for (s, b) in sums.iter_mut().zip(tail) {
        let stored = f64::from(E::decode(*b));
        *s += stored * stored;
    }
    *lanes = sums;
    any != 0
}

macro_rules! encoders {
    ($($name:ident $element:ty, $size:literal, $narrow:expr, $odd:expr;)*) => {$(
        kernel! {
            fn $name(values: &[f64], out: &mut [u8], lanes: &mut Lanes) -> bool {
                encode_all::<$element, $size>(values, out, lanes, $narrow, $odd)
            }
        }
    )*};
}

/// Whether an f32 is not zero but smaller than any normal one.
#[inline(always)]
fn is_subnormal(value: f32) -> bool {
    (value.to_bits() & (u32::MAX >> 1)).wrapping_sub(1) < f32::MIN_POSITIVE.to_bits() - 1
}

encoders! {
    encode_f64 F64, 8, |v| v, |_| false;
    encode_f32 F32, 4, |v| v as f32, |_| false;
    // What is not a normal f32 rounds to zero here, whichever way it came.
    encode_f16 F16, 2, sticky_f32, |_| false;
    encode_e4m3 F8E4M3, 1, sticky_f32, |_| false;
    encode_e5m2 F8E5M2, 1, sticky_f32, |_| false;
    encode_bf16 Bf16, 2, sticky_f32, is_subnormal;
    encode_tiny_bf16 Bf16, 2, to_odd_f32, |_| false;
}

/// Decodes elements of a dtype other than `F64`; `bytes` holds exactly `out.len()` elements.
///
/// # Panics
/// For a dtype without arithmetic, and for `F64`: the plan never asks for those.
pub fn decode_narrow(level: Level, dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F32 => decode_f32(level, bytes, out),
        DType::F16 => decode_f16(level, bytes, out),
        DType::BF16 => decode_bf16(level, bytes, out),
        DType::F8E4M3 => decode_e4m3(level, bytes, out),
        DType::F8E5M2 => decode_e5m2(level, bytes, out),
        other => unreachable!("{other} does not decode to f32"),
    }
}

/// Decodes `F64` elements.
pub fn decode_wide(level: Level, bytes: &[u8], out: &mut [f64]) {
    decode_f64(level, bytes, out);
}

/// Encodes results with one rounding, to nearest even, and adds the squares of the stored values to the lanes.
///
/// # Panics
/// For a dtype without arithmetic: the plan never asks for one.
pub fn encode(level: Level, dtype: DType, values: &[f64], out: &mut [u8], squares: &mut Lanes) {
    let before = *squares;
    let again = match dtype {
        DType::F64 => encode_f64(level, values, out, squares),
        DType::F32 => encode_f32(level, values, out, squares),
        DType::F16 => encode_f16(level, values, out, squares),
        DType::BF16 => encode_bf16(level, values, out, squares),
        DType::F8E4M3 => encode_e4m3(level, values, out, squares),
        DType::F8E5M2 => encode_e5m2(level, values, out, squares),
        other => unreachable!("{other} has no arithmetic"),
    };
    // Only numbers that hardly any weight is as small as need the slower way.
    if again {
        *squares = before;
        encode_tiny_bf16(level, values, out, squares);
    }
}
