//! Cholesky factors of symmetric positive definite matrices, and solving with them, a block of rows at a time. The order
//! of operations is the same at every SIMD level and with any number of threads.

use super::Level;
use super::rows::{add_multiple, dot};

/// Rows that go through a factor together, so that each of its rows is brought to the cache once for all of them.
pub const BLOCK: usize = 16;

/// Replaces the lower triangle of a matrix by its Cholesky factor `L`, `M = LLᵀ`, row by row.
///
/// # Errors
/// The row at which the matrix turns out not to be positive definite.
pub fn factor(level: Level, side: usize, matrix: &mut [f64]) -> Result<(), usize> {
    for begin in (0..side).step_by(BLOCK) {
        let end = (begin + BLOCK).min(side);
        let (done, rest) = matrix.split_at_mut(begin * side);
        let block = &mut rest[..(end - begin) * side];
        forward(level, side, done, block, begin);
        for k in begin..end {
            let (above, row) = block.split_at_mut((k - begin) * side);
            let row = &mut row[..side];
            for j in begin..k {
                let other = &above[(j - begin) * side..][..side];
                row[j] = (row[j] - dot(level, &row[..j], &other[..j])) / other[j];
            }
            let before = row[k];
            let square = before - dot(level, &row[..k], &row[..k]);
            // What rounding alone can leave of a row that depends on those above.
            if square.is_nan() || square <= before.abs() * f64::EPSILON * side as f64 {
                return Err(k);
            }
            row[k] = square.sqrt();
        }
    }
    Ok(())
}

/// Solves `yLᵀ = row` for the first `columns` elements of each row, in place.
fn forward(level: Level, side: usize, factor: &[f64], rows: &mut [f64], columns: usize) {
    for (j, l) in factor.chunks_exact(side).take(columns).enumerate() {
        for row in rows.chunks_exact_mut(side) {
            row[j] = (row[j] - dot(level, &row[..j], &l[..j])) / l[j];
        }
    }
}

/// Replaces each row `r` by `rM⁻¹`, given the factor of `M`.
pub fn solve_rows(level: Level, side: usize, factor: &[f64], rows: &mut [f64]) {
    for block in rows.chunks_mut(BLOCK * side) {
        forward(level, side, factor, block, side);
        for (k, l) in factor.chunks_exact(side).enumerate().rev() {
            for row in block.chunks_exact_mut(side) {
                row[k] /= l[k];
                let (before, own) = row.split_at_mut(k);
                add_multiple(level, &l[..k], -own[0], before);
            }
        }
    }
}

/// Replaces a matrix of `side` rows, each `width` long, by `M⁻¹` times it, given the factor of `M`.
pub fn solve_columns(level: Level, side: usize, factor: &[f64], matrix: &mut [f64], width: usize) {
    for k in 0..side {
        let l = &factor[k * side..][..side];
        let (above, own) = matrix.split_at_mut(k * width);
        let own = &mut own[..width];
        for (l, row) in l.iter().zip(above.chunks_exact(width)) {
            add_multiple(level, row, -l, own);
        }
        own.iter_mut().for_each(|v| *v /= l[k]);
    }
    for k in (0..side).rev() {
        let l = &factor[k * side..][..side];
        let (above, own) = matrix.split_at_mut(k * width);
        let own = &mut own[..width];
        own.iter_mut().for_each(|v| *v /= l[k]);
        for (l, row) in l.iter().zip(above.chunks_exact_mut(width)) {
            add_multiple(level, own, -l, row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positive(side: usize) -> Vec<f64> {
        let root: Vec<f64> = (0..side * side).map(|k| (k as f64 * 0.73).sin()).collect();
        let entry = |i: usize, j: usize| -> f64 {
            let product: f64 = (0..side).map(|k| root[k * side + i] * root[k * side + j]).sum();
            product + if i == j { 1.0 } else { 0.0 }
        };
        (0..side * side).map(|k| entry(k / side, k % side)).collect()
    }

    #[test]
    fn solving_gives_back_what_was_multiplied() {
        for side in [1, 2, 15, 16, 17, 50] {
            let matrix = positive(side);
            let mut factors = matrix.clone();
            factor(Level::BASELINE, side, &mut factors).unwrap();
            let rows: Vec<f64> = (0..3 * side).map(|k| (k as f64).cos()).collect();
            let mut products = vec![0.0; 3 * side];
            let mut turned = vec![0.0; 3 * side];
            for r in 0..3 {
                for j in 0..side {
                    products[r * side + j] =
                        (0..side).map(|k| rows[r * side + k] * matrix[k * side + j]).sum();
                    turned[j * 3 + r] = products[r * side + j];
                }
            }
            solve_rows(Level::BASELINE, side, &factors, &mut products);
            solve_columns(Level::BASELINE, side, &factors, &mut turned, 3);
            for (k, want) in rows.iter().enumerate() {
                assert!((products[k] - want).abs() < 1e-9, "{side}");
                assert!((turned[k % side * 3 + k / side] - want).abs() < 1e-9, "{side}");
            }
        }
    }

    #[test]
    fn a_matrix_that_is_not_positive_definite_is_refused() {
        assert_eq!(factor(Level::BASELINE, 2, &mut [1.0, 1.0, 1.0, 1.0]), Err(1));
        assert_eq!(factor(Level::BASELINE, 1, &mut [-1.0]), Err(0));
        assert_eq!(factor(Level::BASELINE, 1, &mut [f64::NAN]), Err(0));
    }
}
