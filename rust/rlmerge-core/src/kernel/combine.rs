//! The element-wise steps of the linear, task-arithmetic and TIES families.

use super::level::kernel;

macro_rules! per_width {
    ($delta:ident, $weigh:ident, $add_weighed:ident, $add_change:ident, $ty:ty) => {
        kernel! {
            /// `out = expert − base`, subtracted in this width.
            pub fn $delta(expert: &[$ty], base: &[$ty], out: &mut [f64]) {
                for ((o, x), b) in out.iter_mut().zip(expert).zip(base) {
                    *o = f64::from(*x - *b);
                }
            }
        }
        kernel! {
            /// `out = weight · values`.
            pub fn $weigh(values: &[$ty], weight: f64, out: &mut [f64]) {
                for (o, v) in out.iter_mut().zip(values) {
                    *o = weight * f64::from(*v);
                }
            }
        }
        kernel! {
            /// `out += weight · values`.
            pub fn $add_weighed(values: &[$ty], weight: f64, out: &mut [f64]) {
                for (o, v) in out.iter_mut().zip(values) {
                    *o += weight * f64::from(*v);
                }
            }
        }
        kernel! {
            /// `change = base + factor · change`; where nothing is added the base as it is, −0.0 included.
            pub fn $add_change(base: &[$ty], factor: f64, change: &mut [f64]) {
                for (c, b) in change.iter_mut().zip(base) {
                    let (b, step) = (f64::from(*b), factor * *c);
                    *c = if step == 0.0 { b } else { b + step };
                }
            }
        }
    };
}

per_width!(delta_narrow, weigh_narrow, add_weighed_narrow, add_change_narrow, f32);
per_width!(delta_wide, weigh_wide, add_weighed_wide, add_change_wide, f64);

kernel! {
    /// `values *= factor`.
    pub fn scale(values: &mut [f64], factor: f64) {
        for v in values {
            *v *= factor;
        }
    }
}

kernel! {
    /// `sum += values`.
    pub fn add(values: &[f64], sum: &mut [f64]) {
        for (s, v) in sum.iter_mut().zip(values) {
            *s += *v;
        }
    }
}

kernel! {
    /// `values /= divisor`.
    pub fn divide_by(values: &mut [f64], divisor: f64) {
        for v in values {
            *v /= divisor;
        }
    }
}

kernel! {
    /// Drops every value whose magnitude is below the threshold (or at it, when `strict`): magnitudes
    /// are compared as the bits of `|v|`, so NaN counts as largest.
    pub fn keep_large(values: &mut [f64], threshold: u64, strict: bool) {
        let least = threshold + u64::from(strict);
        for v in values {
            let magnitude = v.to_bits() & MAGNITUDE;
            *v = if magnitude >= least { *v } else { 0.0 };
        }
    }
}

kernel! {
    /// Number of values whose magnitude is exactly the threshold.
    pub fn count_at(values: &[f64], threshold: u64) -> u64 {
        let mut n = 0;
        for v in values {
            n += u64::from(v.to_bits() & MAGNITUDE == threshold);
        }
        n
    }
}

/// All bits of an f64 but the sign.
pub const MAGNITUDE: u64 = u64::MAX >> 1;

/// Keeps values above the threshold and the first `*ties` of those at it, counting `*ties` down.
pub fn keep_large_and_first_ties(values: &mut [f64], threshold: u64, ties: &mut u64) {
    for v in values {
        let magnitude = v.to_bits() & MAGNITUDE;
        let kept_tie = magnitude == threshold && *ties > 0;
        if kept_tie {
            *ties -= 1;
        } else if magnitude <= threshold {
            *v = 0.0;
        }
    }
}

kernel! {
    /// One expert's part in the disjoint merge: where its value has the elected sign (that of `total`;
    /// `zero_is_plus` decides where that is zero), the value joins `mix` and its share joins `divisor`.
    /// Where `total` is NaN, `mix` becomes NaN.
    pub fn add_agreeing(values: &[f64], share: f64, total: &[f64], zero_is_plus: bool, mix: &mut [f64], divisor: &mut [f64]) {
        for (((v, t), m), d) in values.iter().zip(total).zip(mix.iter_mut()).zip(divisor.iter_mut()) {
            let plus = if zero_is_plus { *t >= 0.0 } else { *t > 0.0 };
            let agrees = if plus { *v > 0.0 } else { *v < 0.0 };
            let poison = if t.is_nan() { f64::NAN } else { 0.0 };
            *m += if agrees { *v } else { poison };
            *d += if agrees { share } else { 0.0 };
        }
    }
}

kernel! {
    /// `values /= divisor` where the divisor is not zero.
    pub fn divide(values: &mut [f64], divisor: &[f64]) {
        for (v, d) in values.iter_mut().zip(divisor) {
            *v /= if *d == 0.0 { 1.0 } else { *d };
        }
    }
}

kernel! {
    /// Sum of the signs of the values (NaN has none).
    pub fn sum_of_signs(values: &[f64]) -> i64 {
        let mut n = 0;
        for v in values {
            n += i64::from(*v > 0.0) - i64::from(*v < 0.0);
        }
        n
    }
}
