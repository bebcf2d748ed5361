//! Products of matrices in f64, `out += aᵀ · b`, that have the same bits at every SIMD level.
//!
//! Each element of the result is its own chain of sums over the depth, in blocks of [`DEPTH`] rows: a block is added up
//! from zero and then joins the result. How many elements go through a block together depends on the level, the chain
//! does not. Products of numbers that f32 holds are exact in f64, so that a fused multiply-add rounds as a product and a
//! sum do; for them ([`Exact::Yes`]) the levels that have it use it.

use super::level::by_level;

/// Columns of a strip.
pub const STRIP: usize = 16;
/// Rows that are added up before they join the result.
pub const DEPTH: usize = 128;

/// Whether all products are exact in f64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exact {
    /// They are: the factors are f32 numbers.
    Yes,
    /// Not all.
    No,
}

/// Which elements of a square result are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All.
    All,
    /// Those on and below the diagonal; some above may be filled too.
    Lower,
}

/// At most [`DEPTH`] rows of a matrix, in strips of [`STRIP`] columns: the first strip row by row, then the next. The
/// last strip is filled up with zeros.
#[derive(Debug, Default)]
pub struct Packed {
    rows: Vec<[f64; STRIP]>,
    depth: usize,
    width: usize,
}

impl Packed {
    /// Takes rows of numbers, `stride` apart, `width` wide.
    pub fn set_rows(&mut self, numbers: &[f64], stride: usize, depth: usize, width: usize) {
        self.begin(depth, width);
        for (strip, first) in (0..width).step_by(STRIP).enumerate() {
            let wide = STRIP.min(width - first);
            for k in 0..depth {
                let row = &numbers[k * stride + first..][..wide];
                self.rows[strip * depth + k][..wide].copy_from_slice(row);
            }
        }
    }

    /// Takes columns: number (k, j) is the `k`-th of row `j`, rows `stride` apart.
    pub fn set_columns(&mut self, numbers: &[f64], stride: usize, depth: usize, width: usize) {
        self.begin(depth, width);
        for (strip, first) in (0..width).step_by(STRIP).enumerate() {
            let rows = &mut self.rows[strip * depth..(strip + 1) * depth];
            for lane in 0..STRIP.min(width - first) {
                let column = &numbers[(first + lane) * stride..][..depth];
                for (row, value) in rows.iter_mut().zip(column) {
                    row[lane] = *value;
                }
            }
        }
    }

    fn begin(&mut self, depth: usize, width: usize) {
        debug_assert!(depth <= DEPTH);
        (self.depth, self.width) = (depth, width);
        self.rows.resize(width.div_ceil(STRIP) * depth, [0.0; STRIP]);
        if !width.is_multiple_of(STRIP) {
            let last = width / STRIP * depth;
            self.rows[last..].fill([0.0; STRIP]);
        }
    }

    fn strip(&self, at: usize) -> &[[f64; STRIP]] {
        &self.rows[at * self.depth..(at + 1) * self.depth]
    }

    fn strips(&self) -> usize {
        self.width.div_ceil(STRIP)
    }
}

by_level! {
    /// `out += aᵀ · b`: `a` and `b` have as many rows; `out` has a row for each column of `a`, rows `stride` apart.
    pub fn add_products(a: &Packed, b: &Packed, part: Part, exact: Exact, out: &mut [f64], stride: usize) = plain, x86::avx2, x86::avx512;
}

/// `M` columns of a strip of `a`, from `left` on, times a strip of `b`.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "counted loops are unrolled, and the sums stay in registers")]
fn block<const M: usize, const FUSED: bool>(
    a: &[[f64; STRIP]],
    b: &[[f64; STRIP]],
    left: usize,
) -> [[f64; STRIP]; M] {
    let mut sums = [[0.0; STRIP]; M];
    for k in 0..a.len().min(b.len()) {
        let (x, y) = (&a[k], &b[k]);
        for row in 0..M {
            let factor = x[(left + row) % STRIP];
            for i in 0..STRIP {
                let sum = &mut sums[row][i];
                *sum = if FUSED { factor.mul_add(y[i], *sum) } else { *sum + factor * y[i] };
            }
        }
    }
    sums
}

/// All strips, `M` rows of the result at a time.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "counted loops are unrolled")]
fn strips<const M: usize, const FUSED: bool>(
    a: &Packed,
    b: &Packed,
    part: Part,
    out: &mut [f64],
    stride: usize,
) {
    for i in 0..a.strips() {
        let last = if part == Part::Lower { (i + 1).min(b.strips()) } else { b.strips() };
        for j in 0..last {
            let wide = STRIP.min(b.width - j * STRIP);
            for left in (0..STRIP.min(a.width - i * STRIP)).step_by(M) {
                let sums = block::<M, FUSED>(a.strip(i), b.strip(j), left);
                let row = i * STRIP + left;
                for at in 0..M.min(a.width - row) {
                    let place = &mut out[(row + at) * stride + j * STRIP..][..wide];
                    if let Some(place) = place.first_chunk_mut::<STRIP>() {
                        for i in 0..STRIP {
                            place[i] += sums[at][i];
                        }
                    } else {
                        for i in 0..wide {
                            place[i] += sums[at][i];
                        }
                    }
                }
            }
        }
    }
}

fn plain(a: &Packed, b: &Packed, part: Part, _exact: Exact, out: &mut [f64], stride: usize) {
    strips::<1, false>(a, b, part, out, stride);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Exact, Packed, Part, strips};

    /// Two rows of four vectors: eight sums hide the latency of one.
    #[target_feature(enable = "avx2,fma")]
    pub fn avx2(a: &Packed, b: &Packed, part: Part, exact: Exact, out: &mut [f64], stride: usize) {
        match exact {
            Exact::Yes => strips::<2, true>(a, b, part, out, stride),
            Exact::No => strips::<2, false>(a, b, part, out, stride),
        }
    }

    /// Four rows of two or four vectors.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
    pub fn avx512(a: &Packed, b: &Packed, part: Part, exact: Exact, out: &mut [f64], stride: usize) {
        match exact {
            Exact::Yes => strips::<4, true>(a, b, part, out, stride),
            Exact::No => strips::<4, false>(a, b, part, out, stride),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Level;

    fn numbers(count: usize, seed: u64) -> Vec<f64> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            f64::from((state >> 40) as f32 / 8_388_608.0 - 1.0)
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn every_level_gives_the_bits_of_plain_loops() {
        for (depth, m, n) in [(1, 1, 1), (3, 5, 17), (128, 16, 33), (100, 40, 8), (7, 31, 31), (0, 3, 3)] {
            let (a, b) = (numbers(depth * m, 1), numbers(depth * n, 2));
            let (mut rows, mut other) = (Packed::default(), Packed::default());
            rows.set_rows(&a, m, depth, m);
            let turned: Vec<f64> =
                (0..n * depth).map(|at| b[at % depth.max(1) * n + at / depth.max(1)]).collect();
            other.set_columns(&turned, depth, depth, n);
            for exact in [Exact::Yes, Exact::No] {
                for level in Level::available() {
                    let mut out = vec![0.5; m * n];
                    add_products(level, &rows, &other, Part::All, exact, &mut out, n);
                    for (at, ours) in out.iter().enumerate() {
                        let (i, j) = (at / n, at % n);
                        let sum = (0..depth).fold(0.0, |sum, k| sum + a[k * m + i] * b[k * n + j]);
                        assert_eq!(ours.to_bits(), (0.5 + sum).to_bits(), "{depth} {m} {n} {level:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_lower_part_is_that_of_all() {
        let (depth, n) = (20, 45);
        let a = numbers(depth * n, 3);
        let mut packed = Packed::default();
        packed.set_rows(&a, n, depth, n);
        for level in Level::available() {
            let (mut all, mut lower) = (vec![0.0; n * n], vec![0.0; n * n]);
            add_products(level, &packed, &packed, Part::All, Exact::Yes, &mut all, n);
            add_products(level, &packed, &packed, Part::Lower, Exact::Yes, &mut lower, n);
            for i in 0..n {
                assert_eq!(all[i * n..=i * n + i], lower[i * n..=i * n + i]);
            }
        }
    }
}
