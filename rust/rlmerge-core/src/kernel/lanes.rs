//! Sums that have the same bits at every SIMD level: element `i` of a block always goes to lane
//! `i mod 16`, and lanes are always added in the same order.

use super::level::kernel;

/// Number of running sums. Sixteen f64 fill two AVX-512 or four AVX2 registers, and do not change
/// with the level.
pub const LANES: usize = 16;

/// Running sums of one block.
pub type Lanes = [f64; LANES];

/// A number whose square joins a sum, in kernels that have more to do than that: a fused multiply-add takes longer than a
/// sum, and where nothing else is done the next one waits for it.
pub trait Square: Copy {
    /// `sum + self²`. `FUSED` says that the level has a fused multiply-add.
    #[must_use]
    fn add_square<const FUSED: bool>(self, sum: f64) -> f64;
}

impl Square for f32 {
    #[inline(always)]
    fn add_square<const FUSED: bool>(self, sum: f64) -> f64 {
        let wide = f64::from(self);
        // The square is exact in f64, so that the sum alone rounds either way.
        if FUSED { wide.mul_add(wide, sum) } else { sum + wide * wide }
    }
}

impl Square for f64 {
    #[inline(always)]
    fn add_square<const FUSED: bool>(self, sum: f64) -> f64 {
        sum + self * self
    }
}

/// The value, or zero: by a mask, because a choice makes the compiler keep sums in memory and store them by halves.
#[inline(always)]
pub fn only(when: bool, value: f64) -> f64 {
    f64::from_bits(value.to_bits() & 0u64.wrapping_sub(u64::from(when)))
}

macro_rules! sums {
    ($squares:ident, $products:ident, $ty:ty) => {
        kernel! {
            /// `lanes[i mod 16] += v[i]²`.
            pub fn $squares(values: &[$ty], lanes: &mut Lanes) {
                let (rows, tail) = values.as_chunks::<LANES>();
                let mut sums = *lanes;
                for row in rows {
                    for (s, v) in sums.iter_mut().zip(row) {
                        *s += f64::from(*v) * f64::from(*v);
                    }
                }
                for (s, v) in sums.iter_mut().zip(tail) {
                    *s += f64::from(*v) * f64::from(*v);
                }
                *lanes = sums;
            }
        }
        kernel! {
            /// `lanes[i mod 16] += a[i] · b[i]`.
            pub fn $products(a: &[$ty], b: &[$ty], lanes: &mut Lanes) {
                let ((rows_a, tail_a), (rows_b, tail_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
                let mut sums = *lanes;
                for (row_a, row_b) in rows_a.iter().zip(rows_b) {
                    for ((s, x), y) in sums.iter_mut().zip(row_a).zip(row_b) {
                        *s += f64::from(*x) * f64::from(*y);
                    }
                }
                for ((s, x), y) in sums.iter_mut().zip(tail_a).zip(tail_b) {
                    *s += f64::from(*x) * f64::from(*y);
                }
                *lanes = sums;
            }
        }
    };
}

sums!(add_squares_narrow, add_products_narrow, f32);
sums!(add_squares_wide, add_products_wide, f64);

kernel! {
    /// `lanes[i mod 16] += |v[i]|`.
    pub fn add_magnitudes(values: &[f64], lanes: &mut Lanes) {
        let (rows, tail) = values.as_chunks::<LANES>();
        let mut sums = *lanes;
        for row in rows {
            for (s, v) in sums.iter_mut().zip(row) {
                *s += v.abs();
            }
        }
        for (s, v) in sums.iter_mut().zip(tail) {
            *s += v.abs();
        }
        *lanes = sums;
    }
}

/// The sum of the lanes, halves folded onto each other.
#[must_use]
pub fn total(lanes: &Lanes) -> f64 {
    let mut sums = *lanes;
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            sums[i] += sums[i + width];
        }
    }
    sums[0]
}
