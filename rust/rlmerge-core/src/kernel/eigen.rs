//! Eigenvectors of small symmetric matrices, by Jacobi's rotations: always the same ones for the same numbers.

/// Sweeps after which a matrix counts as diagonal; a handful is usual.
const SWEEPS: usize = 64;
/// What an element beside the diagonal may be, relative to the two on it.
const SMALL: f64 = f64::EPSILON / 8.0;

/// Eigenvalues, the largest first, and the eigenvector of each, of a symmetric matrix with `side` rows.
#[must_use]
pub fn symmetric(side: usize, matrix: &[f64]) -> (Vec<f64>, Vec<Vec<f64>>) {
    let mut a = matrix.to_vec();
    let mut vectors: Vec<Vec<f64>> =
        (0..side).map(|k| (0..side).map(|i| f64::from(u8::from(i == k))).collect()).collect();
    for _ in 0..SWEEPS {
        let mut rotated = false;
        for p in 0..side {
            for q in p + 1..side {
                let (app, aqq, apq) = (a[p * side + p], a[q * side + q], a[p * side + q]);
                if apq == 0.0 || apq.abs() <= SMALL * (app.abs() * aqq.abs()).sqrt() {
                    continue;
                }
                rotated = true;
                let theta = (aqq - app) / (2.0 * apq);
                let tangent = 1.0f64.copysign(theta) / (theta.abs() + (theta * theta + 1.0).sqrt());
                let cosine = 1.0 / (tangent * tangent + 1.0).sqrt();
                let sine = tangent * cosine;
                for k in 0..side {
                    let (kp, kq) = (a[k * side + p], a[k * side + q]);
                    a[k * side + p] = cosine * kp - sine * kq;
                    a[k * side + q] = sine * kp + cosine * kq;
                }
                for k in 0..side {
                    let (pk, qk) = (a[p * side + k], a[q * side + k]);
                    a[p * side + k] = cosine * pk - sine * qk;
                    a[q * side + k] = sine * pk + cosine * qk;
                }
                (a[p * side + q], a[q * side + p]) = (0.0, 0.0);
                let (low, high) = vectors.split_at_mut(q);
                for (x, y) in low[p].iter_mut().zip(&mut high[0]) {
                    (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
                }
            }
        }
        if !rotated {
            break;
        }
    }
    let mut order: Vec<usize> = (0..side).collect();
    order.sort_by(|x, y| a[y * side + y].total_cmp(&a[x * side + x]));
    let values = order.iter().map(|k| a[k * side + k]).collect();
    let vectors = order.iter().map(|k| std::mem::take(&mut vectors[*k])).collect();
    (values, vectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eigenvectors_are_orthonormal_and_give_the_matrix_back() {
        for side in [1, 2, 3, 7, 16] {
            let entry =
                |i: usize, j: usize| ((i * j + 3 * (i + j)) as f64 * 0.7).sin() + f64::from(u8::from(i == j));
            let matrix: Vec<f64> = (0..side * side).map(|k| entry(k / side, k % side)).collect();
            let (values, vectors) = symmetric(side, &matrix);
            assert!(values.is_sorted_by(|a, b| a >= b));
            for i in 0..side {
                for j in 0..side {
                    let dot: f64 = (0..side).map(|k| vectors[i][k] * vectors[j][k]).sum();
                    assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-13);
                    let back: f64 = (0..side).map(|k| values[k] * vectors[k][i] * vectors[k][j]).sum();
                    assert!((back - matrix[i * side + j]).abs() < 1e-12, "{back} {}", matrix[i * side + j]);
                }
            }
        }
    }

    #[test]
    fn diagonal_and_zero_matrices_keep_their_axes() {
        assert_eq!(symmetric(2, &[0.0; 4]), (vec![0.0, 0.0], vec![vec![1.0, 0.0], vec![0.0, 1.0]]));
        assert_eq!(symmetric(2, &[1.0, 0.0, 0.0, 2.0]).1, vec![vec![0.0, 1.0], vec![1.0, 0.0]]);
        assert_eq!(symmetric(0, &[]).0, Vec::<f64>::new());
    }
}
