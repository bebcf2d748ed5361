//! Bytes to numbers and back, a chunk at a time. Bytes may lie at any alignment.

use super::level::{Level, kernel};
use crate::dtype::{Bf16, DType, Element, F8E4M3, F8E5M2, F16, F32, F64, to_odd_f32};

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

kernel! {
    fn encode_f64(values: &[f64], out: &mut [u8]) {
        for (b, v) in out.as_chunks_mut::<8>().0.iter_mut().zip(values) {
            *b = F64::encode(*v);
        }
    }
}

kernel! {
    fn encode_f32(values: &[f64], out: &mut [u8]) {
        for (b, v) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
            *b = F32::encode(*v as f32);
        }
    }
}

macro_rules! odd_encoders {
    ($($name:ident $element:ty, $size:literal;)*) => {$(
        kernel! {
            fn $name(values: &[f64], out: &mut [u8]) {
                for (b, v) in out.as_chunks_mut::<$size>().0.iter_mut().zip(values) {
                    *b = <$element as Element<$size>>::encode(to_odd_f32(*v));
                }
            }
        }
    )*};
}

odd_encoders! {
    encode_f16 F16, 2;
    encode_bf16 Bf16, 2;
    encode_e4m3 F8E4M3, 1;
    encode_e5m2 F8E5M2, 1;
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

/// Encodes results with one rounding, to nearest even.
///
/// # Panics
/// For a dtype without arithmetic: the plan never asks for one.
pub fn encode(level: Level, dtype: DType, values: &[f64], out: &mut [u8]) {
    match dtype {
        DType::F64 => encode_f64(level, values, out),
        DType::F32 => encode_f32(level, values, out),
        DType::F16 => encode_f16(level, values, out),
        DType::BF16 => encode_bf16(level, values, out),
        DType::F8E4M3 => encode_e4m3(level, values, out),
        DType::F8E5M2 => encode_e5m2(level, values, out),
        other => unreachable!("{other} has no arithmetic"),
    }
}
