//! The coefficients of NeuroMerging for one neuron, from inner products alone.
//!
//! With `P = U S Vᵀ` the stack of the experts' deltas of a neuron, their coordinates in the basis `V` are `U S`. Signs
//! are elected and agreeing coordinates averaged column by column, and the scale `s_r` of a column is lost again when it
//! is mapped back: `Σ m_r v_r = Pᵀ Σ mean(u_r) u_r`. So the eigenvectors of the Gram matrix `PPᵀ` are all that is needed.

use super::eigen;

/// Coordinates of less than this share of the largest count as zero, and so do sums that cancel that far: their signs
/// are those of rounding errors.
const NOTHING: f64 = 1e-10;

/// The mean of those values that have the sign of the sum; zero where the sum is zero, since the sign of a basis vector,
/// and so that of all its coordinates, is arbitrary.
#[must_use]
pub fn elect(values: &[f64]) -> f64 {
    let total: f64 = values.iter().sum();
    if total.is_nan() {
        return f64::NAN;
    }
    let largest = values.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    if total.abs() <= NOTHING * largest {
        return 0.0;
    }
    let agreeing = values.iter().filter(|v| **v * total > 0.0 && v.abs() > NOTHING * largest);
    let (sum, count) = agreeing.fold((0.0, 0.0), |(s, n), v| (s + v, n + 1.0));
    if count > 0.0 { sum / count } else { 0.0 }
}

/// Factors of the experts' deltas in the merged one, from the Gram matrix of the deltas.
#[must_use]
pub fn factors(experts: usize, gram: &[f64]) -> Vec<f64> {
    if experts == 1 {
        return vec![1.0];
    }
    let mut factors = vec![0.0; experts];
    let (values, vectors) = eigen::symmetric(experts, gram);
    for (value, vector) in values.iter().zip(&vectors) {
        // A direction in which no delta goes adds nothing; its basis is arbitrary.
        if *value <= NOTHING * NOTHING * values[0] {
            continue;
        }
        let mean = elect(vector);
        for (f, u) in factors.iter_mut().zip(vector) {
            *f += mean * u;
        }
    }
    if values.iter().any(|v| v.is_nan()) { vec![f64::NAN; experts] } else { factors }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_deltas_stay_and_opposite_ones_cancel() {
        let close = |a: Vec<f64>, b: &[f64]| a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-14);
        assert!(close(factors(2, &[1.0, 1.0, 1.0, 1.0]), &[0.5, 0.5]));
        assert!(close(factors(2, &[1.0, -1.0, -1.0, 1.0]), &[0.0, 0.0]));
        assert_eq!(factors(1, &[3.0]), [1.0]);
    }

    #[test]
    fn orthogonal_deltas_add_up() {
        assert_eq!(factors(3, &[3.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 1.0]), [1.0; 3]);
    }

    #[test]
    fn elections() {
        assert_eq!(elect(&[1.0, 3.0, -2.0]), 2.0);
        assert_eq!(elect(&[-1.0, -3.0, 2.0]), -2.0);
        assert_eq!(elect(&[1.0, -1.0]), 0.0);
        assert_eq!(elect(&[1.0, 1e-17]), 1.0);
        assert_eq!(elect(&[]), 0.0);
        assert!(elect(&[1.0, f64::NAN]).is_nan());
    }
}
