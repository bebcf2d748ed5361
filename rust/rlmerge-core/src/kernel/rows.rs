//! Rows of a matrix against a few vectors at a time.

use super::Level;
use super::lanes::{self, Lanes};
use super::level::kernel;

/// Vectors that are worked on together: one element of each, side by side.
pub const BLOCK: usize = 4;
/// One element of each vector of a block.
pub type Quad = [f64; BLOCK];

kernel! {
    /// Products of a row with the vectors of a block.
    pub fn project(row: &[f64], block: &[Quad]) -> Quad {
        let ((rows, row_tail), (blocks, block_tail)) = (row.as_chunks::<4>(), block.as_chunks::<4>());
        let mut sums = [[0.0; BLOCK]; 4];
        for (r, b) in rows.iter().zip(blocks) {
            for k in 0..4 {
                for j in 0..BLOCK {
                    sums[k][j] += r[k] * b[k][j];
                }
            }
        }
        for ((r, b), s) in row_tail.iter().zip(block_tail).zip(&mut sums) {
            for j in 0..BLOCK {
                s[j] += r * b[j];
            }
        }
        let mut out = [0.0; BLOCK];
        for j in 0..BLOCK {
            out[j] = (sums[0][j] + sums[1][j]) + (sums[2][j] + sums[3][j]);
        }
        out
    }
}

kernel! {
    /// `sums[c] += row[c] · factors`.
    pub fn spread(row: &[f64], factors: &Quad, sums: &mut [Quad]) {
        for (r, s) in row.iter().zip(sums) {
            for j in 0..BLOCK {
                s[j] += r * factors[j];
            }
        }
    }
}

kernel! {
    /// `sum += factor · values`.
    pub fn add_multiple(values: &[f64], factor: f64, sum: &mut [f64]) {
        for (s, v) in sum.iter_mut().zip(values) {
            *s += factor * *v;
        }
    }
}

kernel! {
    /// `sum += a ⊙ b`.
    pub fn add_product(a: &[f64], b: &[f64], sum: &mut [f64]) {
        for ((s, a), b) in sum.iter_mut().zip(a).zip(b) {
            *s += *a * *b;
        }
    }
}

kernel! {
    /// Whether there is neither NaN nor infinity.
    pub fn is_finite(values: &[f64]) -> bool {
        let mut odd = 0u64;
        for v in values {
            odd |= u64::from(v.to_bits() & f64::INFINITY.to_bits() == f64::INFINITY.to_bits());
        }
        odd == 0
    }
}

/// Product of two vectors.
#[must_use]
pub fn dot(level: Level, a: &[f64], b: &[f64]) -> f64 {
    let mut sums = Lanes::default();
    lanes::add_products_wide(level, a, b, &mut sums);
    lanes::total(&sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_gives_the_same_bits_at_every_length() {
        for len in (0..40).chain([255, 256, 1000]) {
            let row: Vec<f64> = (0..len).map(|i| (i as f64 * 0.37).sin()).collect();
            let block: Vec<Quad> =
                (0..len).map(|i| [0, 1, 2, 3].map(|j| ((i * 4 + j) as f64 * 0.11).cos())).collect();
            let mut first: Option<(Quad, Vec<Quad>, f64)> = None;
            for level in Level::available() {
                let y = project(level, &row, &block);
                for j in 0..BLOCK {
                    let plain: f64 = row.iter().zip(&block).map(|(r, b)| r * b[j]).sum();
                    assert!((y[j] - plain).abs() <= 1e-12 * (1.0 + len as f64));
                }
                let mut sums = block.clone();
                spread(level, &row, &y, &mut sums);
                let this = (y, sums, dot(level, &row, &row));
                assert_eq!(first.get_or_insert_with(|| this.clone()), &this, "{len} at {}", level.name());
            }
        }
    }
}
