//! Element types: the 22 dtypes of the safetensors format, and exact conversions for the six that
//! have arithmetic here.
//!
//! Conversions are branch-free integer arithmetic, so that they vectorise at every SIMD level with
//! the same bits, and do not depend on the processor's denormal modes. Narrowing rounds once, to
//! nearest even; NaN stays NaN (its top payload bits are kept, the quiet bit is set).

use serde::Serialize;

macro_rules! dtypes {
    ($($variant:ident $name:literal $bits:literal),* $(,)?) => {
        /// A dtype of the safetensors format, spelt as in its headers.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum DType { $(#[doc = concat!("`", $name, "`, ", $bits, " bits an element")] $variant),* }

        impl DType {
            /// All dtypes of the format.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Name in a safetensors header.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// Size of one element in bits.
            #[must_use]
            pub const fn bits(self) -> u64 {
                match self { $(Self::$variant => $bits),* }
            }

            /// The dtype with this header name; case matters, as it does in the format.
            #[must_use]
            pub fn parse(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

dtypes! {
    Bool "BOOL" 8, F4 "F4" 4, F6E2M3 "F6_E2M3" 6, F6E3M2 "F6_E3M2" 6, U8 "U8" 8, I8 "I8" 8,
    F8E5M2 "F8_E5M2" 8, F8E4M3 "F8_E4M3" 8, F8E8M0 "F8_E8M0" 8, F8E4M3Fnuz "F8_E4M3FNUZ" 8,
    F8E5M2Fnuz "F8_E5M2FNUZ" 8, I16 "I16" 16, U16 "U16" 16, F16 "F16" 16, BF16 "BF16" 16,
    I32 "I32" 32, U32 "U32" 32, F32 "F32" 32, C64 "C64" 64, F64 "F64" 64, I64 "I64" 64, U64 "U64" 64,
}

impl DType {
    /// Whether tensors of this dtype are merged by arithmetic. All others are copied when they are
    /// equal in all models and refused when they are not.
    #[must_use]
    pub const fn has_arithmetic(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16 | Self::F8E4M3 | Self::F8E5M2)
    }

    /// The largest finite value, for dtypes with arithmetic.
    #[must_use]
    pub const fn largest(self) -> Option<f64> {
        Some(match self {
            Self::F64 => f64::MAX,
            Self::F32 => f32::MAX as f64,
            // All but the last bit of an f32's exponent, and seven bits of fraction.
            Self::BF16 => f32::from_bits(0x7f7f_0000) as f64,
            Self::F16 => 65_504.0,
            Self::F8E5M2 => 57_344.0,
            Self::F8E4M3 => 448.0,
            _ => return None,
        })
    }

    /// Size of one element in bytes, for dtypes of whole bytes.
    #[must_use]
    pub const fn whole_bytes(self) -> Option<usize> {
        if self.bits().is_multiple_of(8) { Some(self.bits() as usize / 8) } else { None }
    }

    /// Bytes of `elements` elements; `None` on overflow or when they do not fill whole bytes.
    #[must_use]
    pub fn bytes_of(self, elements: u64) -> Option<u64> {
        let bits = elements.checked_mul(self.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for DType {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A stored element of `N` bytes that has arithmetic.
pub trait Element<const N: usize>: 'static {
    /// What it decodes to without loss: `f32`, or `f64` for `F64`.
    type Wide: Copy;
    /// Exact value of little-endian bytes.
    fn decode(bytes: [u8; N]) -> Self::Wide;
    /// Nearest element to `value`, ties to even.
    fn encode(value: Self::Wide) -> [u8; N];
}

/// `F64`.
pub struct F64;
/// `F32`.
pub struct F32;
/// `F16`: 1 sign, 5 exponent, 10 fraction bits.
pub struct F16;
/// `BF16`: the upper half of an `f32`.
pub struct Bf16;
/// `F8_E4M3`: bias 7, largest 448, NaN but no infinity (overflow gives NaN, as in ml_dtypes and torch).
pub struct F8E4M3;
/// `F8_E5M2`: bias 15, with infinity.
pub struct F8E5M2;

impl Element<8> for F64 {
    type Wide = f64;
    #[inline(always)]
    fn decode(bytes: [u8; 8]) -> f64 {
        f64::from_le_bytes(bytes)
    }
    #[inline(always)]
    fn encode(value: f64) -> [u8; 8] {
        value.to_le_bytes()
    }
}

impl Element<4> for F32 {
    type Wide = f32;
    #[inline(always)]
    fn decode(bytes: [u8; 4]) -> f32 {
        f32::from_le_bytes(bytes)
    }
    #[inline(always)]
    fn encode(value: f32) -> [u8; 4] {
        value.to_le_bytes()
    }
}

impl Element<2> for Bf16 {
    type Wide = f32;
    #[inline(always)]
    fn decode(bytes: [u8; 2]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
    }
    #[inline(always)]
    fn encode(value: f32) -> [u8; 2] {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let nan = (bits >> 16) | 0x40;
        let out = if (bits & 0x7fff_ffff) > 0x7f80_0000 { nan } else { rounded };
        (out as u16).to_le_bytes()
    }
}

/// Widens a small float whose sign is the top bit of `bits`, followed by exponent and `FRACTION`
/// fraction bits: normal numbers by re-biasing, subnormal ones by an exact subtraction.
#[inline(always)]
fn widen<const WIDTH: u32, const FRACTION: u32, const BIAS: u32>(bits: u32) -> (u32, u32) {
    let sign = (bits >> (WIDTH - 1)) << 31;
    let magnitude = (bits & ((1 << (WIDTH - 1)) - 1)) << (23 - FRACTION);
    let rebias = (127 - BIAS) << 23;
    let first_normal = (127 - BIAS + 1) << 23;
    let subnormal = (f32::from_bits(magnitude + first_normal) - f32::from_bits(first_normal)).to_bits();
    let value = if magnitude < (1 << 23) { subnormal } else { magnitude + rebias };
    (sign, value)
}

/// Magnitude bits of the small float nearest to `|value|`, without treating overflow or NaN.
#[inline(always)]
fn narrow<const FRACTION: u32, const BIAS: u32>(magnitude: u32) -> u32 {
    let shift = 23 - FRACTION;
    let rebias = (127 - BIAS) << 23;
    let first_normal = (127 - BIAS + 1) << 23;
    // Adding a number whose last bit weighs as much as the smallest subnormal makes the
    // floating-point adder round for us.
    let magic = (127 - BIAS + 1 + shift) << 23;
    let subnormal = (f32::from_bits(magnitude) + f32::from_bits(magic)).to_bits().wrapping_sub(magic);
    let half = (1 << (shift - 1)) - 1;
    let normal = magnitude.wrapping_add(half + ((magnitude >> shift) & 1)).wrapping_sub(rebias) >> shift;
    if magnitude < first_normal { subnormal } else { normal }
}

impl Element<2> for F16 {
    type Wide = f32;
    #[inline(always)]
    fn decode(bytes: [u8; 2]) -> f32 {
        let bits = u32::from(u16::from_le_bytes(bytes));
        let (sign, finite) = widen::<16, 10, 15>(bits);
        let special = 0x7f80_0000 | ((bits & 0x3ff) << 13);
        let value = if (bits & 0x7c00) == 0x7c00 { special } else { finite };
        f32::from_bits(sign | value)
    }
    #[inline(always)]
    fn encode(value: f32) -> [u8; 2] {
        let bits = value.to_bits();
        let sign = (bits >> 16) & 0x8000;
        let magnitude = bits & 0x7fff_ffff;
        let finite = narrow::<10, 15>(magnitude);
        let overflow = if magnitude > 0x7f80_0000 { 0x7e00 | ((magnitude >> 13) & 0x3ff) } else { 0x7c00 };
        // 65520 is half way between the largest f16 and the next power of two.
        let out = if magnitude >= 0x477f_f000 { overflow } else { finite };
        ((sign | out) as u16).to_le_bytes()
    }
}

impl Element<1> for F8E5M2 {
    type Wide = f32;
    #[inline(always)]
    fn decode(bytes: [u8; 1]) -> f32 {
        F16::decode([0, bytes[0]])
    }
    #[inline(always)]
    fn encode(value: f32) -> [u8; 1] {
        let bits = value.to_bits();
        let sign = (bits >> 24) & 0x80;
        let magnitude = bits & 0x7fff_ffff;
        let finite = narrow::<2, 15>(magnitude);
        let overflow = if magnitude > 0x7f80_0000 { 0x7e | ((magnitude >> 21) & 3) } else { 0x7c };
        // 61440 is half way between the largest value, 57344, and 65536.
        let out = if magnitude >= 0x4770_0000 { overflow } else { finite };
        [(sign | out) as u8]
    }
}

impl Element<1> for F8E4M3 {
    type Wide = f32;
    #[inline(always)]
    fn decode(bytes: [u8; 1]) -> f32 {
        let bits = u32::from(bytes[0]);
        let (sign, finite) = widen::<8, 3, 7>(bits);
        let value = if (bits & 0x7f) == 0x7f { 0x7fc0_0000 } else { finite };
        f32::from_bits(sign | value)
    }
    #[inline(always)]
    fn encode(value: f32) -> [u8; 1] {
        let bits = value.to_bits();
        let sign = (bits >> 24) & 0x80;
        let magnitude = bits & 0x7fff_ffff;
        let finite = narrow::<3, 7>(magnitude);
        // 464 is half way between the largest value, 448, and the 480 that NaN displaces; the tie goes
        // to the even 448.
        let out = if magnitude > 0x43e8_0000 { 0x7f } else { finite };
        [(sign | out) as u8]
    }
}

/// `value` as an `f32` that a second, narrower rounding cannot round twice: exact values stay, all
/// others go to the neighbour whose last bit is set ("round to odd").
///
/// The way from an f64 result to F16, BF16 or F8 with one rounding.
#[inline(always)]
#[must_use]
pub fn to_odd_f32(value: f64) -> f32 {
    let near = value as f32;
    let back = f64::from(near);
    let bits = near.to_bits();
    #[allow(clippy::double_comparisons, reason = "ordered comparisons, so that NaN stays as it is")]
    let inexact = back < value || back > value;
    // One step towards `value`: outwards when the rounding went inwards.
    let step = if back.abs() < value.abs() { 1 } else { u32::MAX };
    let odd = bits.wrapping_add(step);
    f32::from_bits(if inexact && bits & 1 == 0 { odd } else { bits })
}

/// [`to_odd_f32`] in fewer steps, for values that are zero or at least as large as the smallest normal `f32`: bits
/// that do not fit are gathered in the last bit that does. A smaller value may come out rounded to even, as a
/// subnormal `f32` or zero; a larger one than `f32` can hold comes out infinite.
#[inline(always)]
#[must_use]
pub fn sticky_f32(value: f64) -> f32 {
    const LOST: u64 = (1 << 29) - 1;
    let bits = value.to_bits();
    // The sum carries into the last bit that stays if any bit below it is set.
    f64::from_bits((bits | ((bits & LOST) + LOST)) & !LOST) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        assert_eq!(DType::ALL.len(), 22);
        for &d in DType::ALL {
            assert_eq!(DType::parse(d.name()), Some(d));
        }
        assert_eq!(DType::parse("f32"), None);
        assert_eq!(DType::F4.bytes_of(3), None);
        assert_eq!(DType::F64.bytes_of(u64::MAX), None);
    }

    #[test]
    fn sixteen_bit_types_agree_with_half_on_every_pattern() {
        for bits in 0..=u16::MAX {
            let b = bits.to_le_bytes();
            let (ours, theirs) = (F16::decode(b), half::f16::from_bits(bits).to_f32());
            assert!(ours == theirs || ours.is_nan() && theirs.is_nan(), "{bits:04x}: {ours} {theirs}");
            assert_eq!(Bf16::decode(b).to_bits(), u32::from(bits) << 16);
            if !theirs.is_nan() {
                assert_eq!(F16::encode(ours), b);
            }
            let f = Bf16::decode(b);
            if !f.is_nan() {
                assert_eq!(Bf16::encode(f), b);
            }
        }
    }

    #[test]
    fn encoding_agrees_with_half_around_every_boundary() {
        for high in 0..=u16::MAX {
            for low in [0u32, 1, 0xfff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xf000, 0xffff] {
                let f = f32::from_bits((u32::from(high) << 16) | low);
                let (a, b) = (u16::from_le_bytes(F16::encode(f)), u16::from_le_bytes(Bf16::encode(f)));
                if f.is_nan() {
                    assert!(half::f16::from_bits(a).is_nan() && half::bf16::from_bits(b).is_nan());
                } else {
                    assert_eq!(a, half::f16::from_f32_const(f).to_bits(), "f16 of {f:e}");
                    assert_eq!(b, half::bf16::from_f32(f).to_bits(), "bf16 of {f:e}");
                }
            }
        }
    }

    /// The nearest of all 256 patterns, ties to the even pattern, by brute force in f64.
    fn nearest_f8<E: Element<1, Wide = f32>>(value: f32, largest: f64, ulp_at_top: f64) -> Option<u8> {
        let v = f64::from(value);
        if v.abs() > largest + ulp_at_top / 2.0 {
            return None;
        }
        let mut best: Option<(f64, u8)> = None;
        for p in 0..=255u8 {
            let d = f64::from(E::decode([p]));
            if !d.is_finite() || (d.is_sign_negative() != v.is_sign_negative()) {
                continue;
            }
            let distance = (d - v).abs();
            let better = match best {
                None => true,
                Some((b, q)) => distance < b || (distance == b && p % 2 == 0 && q % 2 == 1),
            };
            if better {
                best = Some((distance, p));
            }
        }
        best.map(|(_, p)| p)
    }

    #[test]
    fn eight_bit_types_round_to_the_nearest_pattern() {
        for high in 0..=u16::MAX {
            for low in [0u32, 1, 0x8000] {
                let f = f32::from_bits((u32::from(high) << 16) | low);
                if f.is_nan() {
                    assert!(F8E4M3::decode(F8E4M3::encode(f)).is_nan());
                    assert!(F8E5M2::decode(F8E5M2::encode(f)).is_nan());
                    continue;
                }
                match nearest_f8::<F8E4M3>(f, 448.0, 32.0) {
                    Some(p) => assert_eq!(F8E4M3::encode(f), [p], "e4m3 of {f:e}"),
                    None => assert!(F8E4M3::decode(F8E4M3::encode(f)).is_nan(), "e4m3 of {f:e}"),
                }
                if f.abs() < 61440.0 {
                    assert_eq!(
                        Some(F8E5M2::encode(f)[0]),
                        nearest_f8::<F8E5M2>(f, 57344.0, 8192.0),
                        "e5m2 of {f:e}"
                    );
                } else {
                    assert!(F8E5M2::decode(F8E5M2::encode(f)).is_infinite(), "e5m2 of {f:e}");
                }
            }
        }
    }

    #[test]
    fn sticky_bits_are_rounding_to_odd_where_f32_is_normal() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state
        };
        for i in 0..200_000u64 {
            // Any fraction, or one that ends where an f32 or a bf16 does; any exponent, or one near an edge of f32.
            let fraction = next() >> 12;
            let fraction =
                [fraction, fraction >> 29 << 29, fraction >> 44 << 44, fraction & 1][(i % 4) as usize];
            let exponent = [897 + next() % 254, 897, 1150, 1023][(i / 4 % 4) as usize];
            let value = f64::from_bits((next() & 1) << 63 | exponent << 52 | fraction);
            let odd = to_odd_f32(value);
            if odd.abs() < f32::MAX {
                assert_eq!(sticky_f32(value).to_bits(), odd.to_bits(), "{value:e}");
            }
            assert_eq!(Bf16::encode(sticky_f32(value)), Bf16::encode(odd), "{value:e}");
        }
        for exact in [0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(sticky_f32(exact).to_bits(), (exact as f32).to_bits());
        }
        let signalling = f64::from_bits(0x7ff0_0000_0000_0001);
        assert!(sticky_f32(f64::NAN).is_nan() && sticky_f32(signalling).is_nan());
        // Halves of the smallest f16 and f8 are far above where the two differ.
        for tiny in [1e-38, 1e-40, 1e-60, -1e-300] {
            let (sticky, odd) = (sticky_f32(tiny), to_odd_f32(tiny));
            assert_eq!(F16::encode(sticky), F16::encode(odd));
            assert_eq!(F8E4M3::encode(sticky), F8E4M3::encode(odd));
            assert_eq!(F8E5M2::encode(sticky), F8E5M2::encode(odd));
        }
    }

    #[test]
    fn rounding_to_odd_prevents_double_rounding() {
        // 1 + 2^-8 + 2^-40: above the bf16 tie at 1 + 2^-8, but f32 rounds it onto that tie.
        let v = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        assert_eq!(Bf16::encode(v as f32), Bf16::encode(1.0), "the trap");
        assert_eq!(Bf16::decode(Bf16::encode(to_odd_f32(v))), 1.0 + 2f32.powi(-7));
        for exact in [0.0, -0.0, 1.5, f64::INFINITY, f64::from(f32::MIN_POSITIVE) / 4.0] {
            assert_eq!(to_odd_f32(exact).to_bits(), (exact as f32).to_bits());
        }
        assert!(to_odd_f32(f64::NAN).is_nan());
        assert_eq!(to_odd_f32(1e-60).to_bits(), 1);
        assert_eq!(to_odd_f32(-1e-60).to_bits(), 0x8000_0001);
        // Beyond the largest f32 the odd neighbour is that f32, which every narrower type rounds to infinity.
        assert_eq!(to_odd_f32(1e300), f32::MAX);
        assert_eq!(Bf16::encode(to_odd_f32(-1e300)), 0xff80u16.to_le_bytes());
        assert_eq!(F16::encode(to_odd_f32(1e300)), 0x7c00u16.to_le_bytes());
        assert_eq!(to_odd_f32(f64::INFINITY), f32::INFINITY);
    }
}
