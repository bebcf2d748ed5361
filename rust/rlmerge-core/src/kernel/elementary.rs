//! Exponential, logarithm and hyperbolic tangent in plain arithmetic. The mathematical library's differ from
//! machine to machine in the last bit; these give the same bits everywhere, and the compiler makes vectors of them.
//!
//! Textbook reductions: `exp x = 2^k exp r` with `|r| ≤ ln 2 / 2` and Taylor's series; `ln x` by the series of
//! `2 artanh((m − 1)/(m + 1))`. Errors stay below three units in the last place (the tests measure them).

/// Adding it to a number below 2^51 rounds that to a whole number, which then stands in the low bits of the sum.
const ROUNDER: f64 = 6_755_399_441_055_744.0;
/// The same for f32 and 2^22.
const NARROW_ROUNDER: f32 = 12_582_912.0;
/// ln 2 in two parts; the product of the first with a whole number below 2^11 is exact.
const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
/// Below this the result would be subnormal, and is taken for zero.
const LEAST_EXPONENT: f64 = -708.0;
/// Above this the result is infinite.
const GREATEST_EXPONENT: f64 = 709.0;
/// `1/n!` for n = 13, 12, …, 2.
const FACTORIALS: [f64; 12] = [
    1.0 / 6_227_020_800.0,
    1.0 / 479_001_600.0,
    1.0 / 39_916_800.0,
    1.0 / 3_628_800.0,
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5_040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
];
/// `2/n` for n = 21, 19, …, 3.
const ODD_PARTS: [f64; 10] = [
    2.0 / 21.0,
    2.0 / 19.0,
    2.0 / 17.0,
    2.0 / 15.0,
    2.0 / 13.0,
    2.0 / 11.0,
    2.0 / 9.0,
    2.0 / 7.0,
    2.0 / 5.0,
    2.0 / 3.0,
];
/// Bits of √½: mantissas are taken from there to √2.
const ROOT_OF_HALF: u64 = 0x3FE6_A09E_667F_3BCD;
const MANTISSA: u64 = (1 << 52) - 1;

/// `exp(r) − 1` and `2^k` of the reduction, for `x` within the limits.
#[inline(always)]
fn reduced(x: f64) -> (f64, f64) {
    let rounded = x * std::f64::consts::LOG2_E + ROUNDER;
    let k = rounded - ROUNDER;
    let r = (x - k * LN2_HIGH) - k * LN2_LOW;
    let mut series = 0.0;
    for term in FACTORIALS {
        series = series * r + term;
    }
    // The low bits of the sum are k; the rest is shifted out.
    let power = f64::from_bits(rounded.to_bits().wrapping_add(1023) << 52);
    (r + r * r * series, power)
}

/// `exp(x)`; zero where that would be subnormal. NaN stays NaN.
#[inline(always)]
#[must_use]
pub fn exp(x: f64) -> f64 {
    let inside = if x > GREATEST_EXPONENT { GREATEST_EXPONENT } else { x };
    let inside = if inside < LEAST_EXPONENT { LEAST_EXPONENT } else { inside };
    let (rest, power) = reduced(inside);
    let value = power + power * rest;
    let value = if x < LEAST_EXPONENT { 0.0 } else { value };
    let value = if x > GREATEST_EXPONENT { f64::INFINITY } else { value };
    if x.is_nan() { x } else { value }
}

/// `exp(x)` for `|x| ≤ 64`, wrong by less than one in 10⁴.
#[inline(always)]
#[must_use]
pub fn rough_exp(x: f32) -> f32 {
    let rounded = x * std::f32::consts::LOG2_E + NARROW_ROUNDER;
    let r = x - (rounded - NARROW_ROUNDER) * std::f32::consts::LN_2;
    let power = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    let square = r * r;
    power * ((1.0 + r) + square * ((0.5 + r * (1.0 / 6.0)) + square * (1.0 / 24.0 + r * (1.0 / 120.0))))
}

/// [`rough_exp`] of sixteen numbers, a fraction of its doubt away from what it gives one by one.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
#[must_use]
pub(super) fn rough_exp_512(x: std::arch::x86_64::__m512) -> std::arch::x86_64::__m512 {
    use std::arch::x86_64::*;

    let of = |value| _mm512_set1_ps(value);
    let rounded = _mm512_fmadd_ps(x, of(std::f32::consts::LOG2_E), of(NARROW_ROUNDER));
    let r = _mm512_fnmadd_ps(_mm512_sub_ps(rounded, of(NARROW_ROUNDER)), of(std::f32::consts::LN_2), x);
    let power = _mm512_add_epi32(_mm512_castps_si512(rounded), _mm512_set1_epi32(127));
    let power = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(power));
    let square = _mm512_mul_ps(r, r);
    let third = _mm512_fmadd_ps(r, of(1.0 / 6.0), of(0.5));
    let fifth = _mm512_fmadd_ps(r, of(1.0 / 120.0), of(1.0 / 24.0));
    let series = _mm512_fmadd_ps(square, fifth, third);
    _mm512_mul_ps(power, _mm512_fmadd_ps(square, series, _mm512_add_ps(of(1.0), r)))
}

/// `tanh(x)`, with full relative precision near zero. NaN stays NaN.
#[inline(always)]
#[must_use]
pub fn tanh(x: f64) -> f64 {
    // Beyond 20 it rounds to one.
    let size = if x.abs() > 20.0 { 20.0 } else { x.abs() };
    let (rest, power) = reduced(-2.0 * size);
    // exp(−2|x|) − 1, without cancellation where the power is one.
    let less = power * rest + (power - 1.0);
    let value = (-less / (2.0 + less)).copysign(x);
    if x.is_nan() { x } else { value }
}

/// `ln(x)` of a normal positive number; of anything else nothing sensible.
#[inline(always)]
#[must_use]
pub fn ln(x: f64) -> f64 {
    let above = x.to_bits().wrapping_sub(ROOT_OF_HALF);
    let exponent = ((above as i64) >> 52) as u64;
    let k = f64::from_bits(ROUNDER.to_bits().wrapping_add(exponent)) - ROUNDER;
    let m = f64::from_bits((above & MANTISSA).wrapping_add(ROOT_OF_HALF));
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let mut series = 0.0;
    for term in ODD_PARTS {
        series = series * square + term;
    }
    let rest = 2.0 * s + s * square * series;
    k * LN2_HIGH + (k * LN2_LOW + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_near(ours: f64, theirs: f64, at: f64) {
        let bound = 6.0 * f64::EPSILON * theirs.abs() + f64::MIN_POSITIVE;
        assert!((ours - theirs).abs() <= bound, "at {at:e}: {ours:e}, not {theirs:e}");
    }

    fn samples() -> impl Iterator<Item = f64> {
        (0..40_000).map(|i| {
            let spread = f64::from(i % 41 - 30);
            (f64::from(i) * 0.618_033_988_75).fract() * spread.exp2() * if i % 2 == 0 { 1.0 } else { -1.0 }
        })
    }

    #[test]
    fn near_the_mathematical_librarys() {
        for x in samples() {
            if x.abs() < 700.0 {
                assert_near(exp(x), x.exp(), x);
            }
            assert_near(tanh(x), x.tanh(), x);
            if x > 0.0 {
                assert_near(ln(x), x.ln(), x);
                assert_near(ln(1.0 + x * 1e-3), (1.0 + x * 1e-3).ln(), x);
            }
        }
    }

    #[test]
    fn the_rough_exponential_is_near_the_exact_one() {
        for i in -6400..=6400 {
            let x = i as f32 * 0.01;
            assert!((f64::from(rough_exp(x)) / f64::from(x).exp() - 1.0).abs() < 1e-4, "{x}");
        }
    }

    #[test]
    fn ends_and_exact_values() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e300), 0.0);
        assert_eq!(exp(1e3), f64::INFINITY);
        assert!(exp(f64::NAN).is_nan() && tanh(f64::NAN).is_nan());
        assert_eq!(tanh(0.0), 0.0);
        assert_eq!(tanh(1e-300), 1e-300);
        assert_eq!((tanh(f64::INFINITY), tanh(-50.0)), (1.0, -1.0));
        assert_eq!((ln(1.0), ln(2.0)), (0.0, std::f64::consts::LN_2));
    }
}
