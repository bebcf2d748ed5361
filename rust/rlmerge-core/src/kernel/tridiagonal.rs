//! Eigenvalues of large symmetric matrices, and the eigenvectors of the largest of them, that have the same bits at
//! every SIMD level.
//!
//! The matrix is brought to three diagonals by Householder's reflections, the eigenvalues of those are found by implicit
//! QL steps, the vectors of a few by inverse iteration, and the reflections take these back (Golub and Van Loan, Matrix
//! Computations, 8.3–8.4). One pass over the matrix a reflection: it does the change that the reflection before left to be
//! done, and the product with the next vector.

use super::Level;
use super::lanes::{LANES, Lanes, total};
use super::level::kernel;

/// QL steps for one eigenvalue; two are usual.
const STEPS: usize = 60;
/// Rounds of inverse iteration for one vector; two are usual.
const ROUNDS: usize = 4;

/// A matrix brought to three diagonals.
pub struct Tridiagonal {
    side: usize,
    diagonal: Vec<f64>,
    /// Beside the diagonal; the first is zero.
    beside: Vec<f64>,
    /// Row `i` holds the vector of reflection `i` in its first `i` numbers.
    reflections: Vec<f64>,
    /// 2 over the square of each vector; zero where nothing was reflected.
    factors: Vec<f64>,
}

kernel! {
    /// A pass over the first `len` rows of the lower triangle: `A −= p qᵀ + q pᵀ`, then `product = A v`.
    fn change_and_multiply(a: &mut [f64], side: usize, p: &[f64], q: &[f64], v: &[f64], product: &mut [f64]) {
        product.fill(0.0);
        for r in 0..v.len() {
            let row = &mut a[r * side..r * side + r];
            let (pr, qr, vr) = (p[r], q[r], v[r]);
            let mut sums = Lanes::default();
            let (rows, tail) = row.as_chunks_mut::<LANES>();
            let ((ps, pt), (qs, qt)) = (p[..r].as_chunks::<LANES>(), q[..r].as_chunks::<LANES>());
            let (before, here) = product.split_at_mut(r);
            let ((vs, vt), (os, ot)) = (v[..r].as_chunks::<LANES>(), before.as_chunks_mut::<LANES>());
            for k in 0..rows.len() {
                // Arrays of their own, which the compiler knows to lie apart.
                let (mut value, p, q, v, mut out) = (rows[k], ps[k], qs[k], vs[k], os[k]);
                for i in 0..LANES {
                    value[i] -= pr * q[i] + qr * p[i];
                    sums[i] += value[i] * v[i];
                    out[i] += value[i] * vr;
                }
                (rows[k], os[k]) = (value, out);
            }
            // Sums by themselves, so that those of whole rows stay in registers.
            let mut ends = Lanes::default();
            for (((((row, p), q), v), o), end) in tail.iter_mut().zip(pt).zip(qt).zip(vt).zip(ot).zip(&mut ends) {
                let value = *row - (pr * q + qr * p);
                *row = value;
                *end = value * v;
                *o += value * vr;
            }
            let all: Lanes = std::array::from_fn(|i| sums[i] + ends[i]);
            let corner = &mut a[r * side + r];
            *corner -= 2.0 * pr * qr;
            here[0] += total(&all) + *corner * vr;
        }
    }
}

kernel! {
    /// `row −= p · q + q · p` for one row of the matrix.
    fn change_row(row: &mut [f64], p: &[f64], q: &[f64], pr: f64, qr: f64) {
        for ((row, p), q) in row.iter_mut().zip(p).zip(q) {
            *row -= pr * q + qr * p;
        }
    }
}

kernel! {
    fn dot(a: &[f64], b: &[f64]) -> f64 {
        let ((rows_a, tail_a), (rows_b, tail_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        let mut sums = Lanes::default();
        for (a, b) in rows_a.iter().zip(rows_b) {
            for i in 0..LANES {
                sums[i] += a[i] * b[i];
            }
        }
        for ((sum, a), b) in sums.iter_mut().zip(tail_a).zip(tail_b) {
            *sum += a * b;
        }
        total(&sums)
    }
}

kernel! {
    /// `a −= factor · b`.
    fn take(a: &mut [f64], b: &[f64], factor: f64) {
        for (a, b) in a.iter_mut().zip(b) {
            *a -= factor * b;
        }
    }
}

impl Tridiagonal {
    /// Of a symmetric matrix with `side` rows, of which the part on and below the diagonal is read.
    #[must_use]
    pub fn new(level: Level, side: usize, mut a: Vec<f64>) -> Self {
        let (mut diagonal, mut beside, mut factors) = (vec![0.0; side], vec![0.0; side], vec![0.0; side]);
        // The change that is still to be made: A −= p qᵀ + q pᵀ.
        let (mut p, mut q) = (vec![0.0; side], vec![0.0; side]);
        let (mut v, mut product) = (vec![0.0; side], vec![0.0; side]);
        for i in (0..side).rev() {
            let row = &mut a[i * side..=i * side + i];
            change_row(level, row, &p[..=i], &q[..=i], p[i], q[i]);
            diagonal[i] = row[i];
            if i == 0 {
                break;
            }
            let x = &mut row[..i];
            let last = x[i - 1];
            let others = dot(level, &x[..i - 1], &x[..i - 1]);
            beside[i] = last;
            if others > 0.0 {
                let norm = (others + last * last).sqrt();
                beside[i] = if last > 0.0 { -norm } else { norm };
                x[i - 1] = last - beside[i];
                factors[i] = 2.0 / (others + x[i - 1] * x[i - 1]);
                if !factors[i].is_finite() {
                    // So small that its square has no inverse: as good as nothing.
                    (factors[i], beside[i]) = (0.0, last);
                }
            }
            if factors[i] == 0.0 {
                x.fill(0.0);
            }
            v[..i].copy_from_slice(x);
            change_and_multiply(level, &mut a, side, &p[..i], &q[..i], &v[..i], &mut product[..i]);
            let half = factors[i] * factors[i] / 2.0 * dot(level, &product[..i], &v[..i]);
            for ((q, product), v) in q[..i].iter_mut().zip(&product).zip(&v) {
                *q = factors[i] * product - half * v;
            }
            p[..i].copy_from_slice(&v[..i]);
        }
        Self { side, diagonal, beside, reflections: a, factors }
    }

    /// All eigenvalues, the largest first; `None` when they cannot be found, as with numbers that are not finite.
    #[must_use]
    pub fn values(&self) -> Option<Vec<f64>> {
        let n = self.side;
        let mut d = self.diagonal.clone();
        let mut e: Vec<f64> = self.beside.iter().skip(1).copied().chain([0.0]).collect();
        if d.iter().chain(&e).any(|v| !v.is_finite()) {
            return None;
        }
        for l in 0..n {
            for step in 0.. {
                let small = |m: usize| e[m].abs() <= f64::EPSILON * (d[m].abs() + d[m + 1].abs());
                let m = (l..n - 1).find(|m| e[*m] == 0.0 || small(*m)).unwrap_or(n - 1);
                if m == l {
                    break;
                }
                if step == STEPS {
                    return None;
                }
                let g = (d[l + 1] - d[l]) / (2.0 * e[l]);
                let r = (g * g + 1.0).sqrt();
                let mut g = d[m] - d[l] + e[l] / (g + r.copysign(g));
                let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
                let mut early = false;
                for i in (l..m).rev() {
                    let (f, b) = (s * e[i], c * e[i]);
                    let r = (f * f + g * g).sqrt();
                    e[i + 1] = r;
                    if r == 0.0 {
                        d[i + 1] -= p;
                        e[m] = 0.0;
                        early = true;
                        break;
                    }
                    (s, c) = (f / r, g / r);
                    g = d[i + 1] - p;
                    let r = (d[i] - g) * s + 2.0 * c * b;
                    p = s * r;
                    d[i + 1] = g + p;
                    g = c * r - b;
                }
                if !early {
                    d[l] -= p;
                    e[l] = g;
                    e[m] = 0.0;
                }
            }
        }
        d.sort_by(|a, b| b.total_cmp(a));
        Some(d)
    }

    /// Eigenvectors of the first `count` of these eigenvalues, one after the other.
    #[must_use]
    pub fn vectors(&self, level: Level, values: &[f64], count: usize) -> Vec<f64> {
        let n = self.side;
        let mut vectors = vec![0.0; n * count];
        let scale = values.iter().fold(0.0f64, |most, v| most.max(v.abs()));
        // Equal values get shifts that differ, so that their vectors do.
        let apart = scale * f64::EPSILON * 4.0;
        let mut shift = f64::INFINITY;
        let mut solver = Solver::default();
        for (at, value) in values.iter().enumerate().take(count) {
            let (before, here) = vectors.split_at_mut(at * n);
            let z = &mut here[..n];
            shift = value.min(shift - apart);
            solver.factor(&self.diagonal, &self.beside, shift, scale * f64::EPSILON);
            // Any vector that has a part in every direction.
            let mut state = 1u64 + at as u64;
            for z in z.iter_mut() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *z = (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5;
            }
            for round in 0..ROUNDS {
                let largest = z.iter().fold(0.0f64, |most, z| most.max(z.abs()));
                z.iter_mut().for_each(|z| *z /= largest);
                solver.solve(z);
                let grown = z.iter().fold(0.0f64, |most, z| most.max(z.abs()));
                z.iter_mut().for_each(|z| *z /= grown);
                // Twice is enough for what is left of the vectors before.
                for _ in 0..2 {
                    for other in before.chunks_exact(n) {
                        let part = dot(level, z, other);
                        take(level, z, other, part);
                    }
                }
                let norm = dot(level, z, z).sqrt();
                z.iter_mut().for_each(|z| *z /= norm);
                // As large as it can become: the shift is an eigenvalue to the last bits.
                if round > 0 && grown * scale * f64::EPSILON * n as f64 > 1e-2 {
                    break;
                }
            }
        }
        for z in vectors.chunks_exact_mut(n) {
            for i in 2..n {
                let v = &self.reflections[i * n..i * n + i];
                if self.factors[i] != 0.0 {
                    let part = self.factors[i] * dot(level, &z[..i], v);
                    take(level, &mut z[..i], v, part);
                }
            }
        }
        vectors
    }
}

/// Solves a shifted system of three diagonals, by elimination with row exchanges.
#[derive(Default)]
struct Solver {
    /// The diagonal and the two above it, after elimination.
    upper: Vec<[f64; 3]>,
    /// What was taken of each row from the next, and whether they changed places first.
    steps: Vec<(f64, bool)>,
}

impl Solver {
    fn factor(&mut self, diagonal: &[f64], beside: &[f64], shift: f64, tiny: f64) {
        let n = diagonal.len();
        self.upper.clear();
        self.steps.clear();
        let next = |i: usize| if i + 1 < n { beside[i + 1] } else { 0.0 };
        let mut row = [diagonal[0] - shift, next(0), 0.0];
        for i in 1..n {
            let below = [beside[i], diagonal[i] - shift, next(i)];
            let exchange = below[0].abs() > row[0].abs();
            let (top, rest) = if exchange { (below, row) } else { (row, below) };
            let factor = if top[0] == 0.0 { 0.0 } else { rest[0] / top[0] };
            self.steps.push((factor, exchange));
            self.upper.push(top);
            row = [rest[1] - factor * top[1], rest[2] - factor * top[2], 0.0];
        }
        self.upper.push(row);
        let tiny = tiny.max(f64::MIN_POSITIVE);
        for row in &mut self.upper {
            if row[0].abs() < tiny {
                row[0] = tiny;
            }
        }
    }

    fn solve(&self, z: &mut [f64]) {
        for (i, (factor, exchange)) in self.steps.iter().enumerate() {
            if *exchange {
                z.swap(i, i + 1);
            }
            z[i + 1] -= factor * z[i];
        }
        for (i, [a, b, c]) in self.upper.iter().enumerate().rev() {
            let above = z.get(i + 1).map_or(0.0, |z| b * z) + z.get(i + 2).map_or(0.0, |z| c * z);
            z[i] = (z[i] - above) / a;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::eigen;

    fn check(side: usize, matrix: &[f64], count: usize) {
        let largest = matrix.iter().fold(0.0f64, |m, v| m.max(v.abs())).max(f64::MIN_POSITIVE);
        let slack = largest * side as f64 * 1e-14;
        let expected = eigen::symmetric(side, matrix).0;
        let mut first: Option<(Vec<f64>, Vec<f64>)> = None;
        for level in Level::available() {
            let three = Tridiagonal::new(level, side, matrix.to_vec());
            let values = three.values().unwrap();
            for (a, b) in values.iter().zip(&expected) {
                assert!((a - b).abs() <= slack, "{side}: {a} {b}");
            }
            let vectors = three.vectors(level, &values, count);
            for (i, z) in vectors.chunks_exact(side).enumerate() {
                for (j, y) in vectors.chunks_exact(side).enumerate() {
                    let dot: f64 = z.iter().zip(y).map(|(a, b)| a * b).sum();
                    assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-12, "{side}: {i} {j} {dot}");
                }
                for r in 0..side {
                    let product: f64 = (0..side).map(|c| matrix[r * side + c] * z[c]).sum();
                    assert!((product - values[i] * z[r]).abs() <= 8.0 * slack, "{side}: vector {i}");
                }
            }
            let found = (values, vectors);
            assert_eq!(*first.get_or_insert_with(|| found.clone()), found, "{}", level.name());
        }
    }

    #[test]
    fn values_and_vectors_are_those_of_rotations() {
        for side in [1, 2, 3, 5, 16, 17, 40, 90] {
            let entry =
                |i: usize, j: usize| ((i * j + 3 * (i + j)) as f64 * 0.7).sin() + f64::from(u8::from(i == j));
            let matrix: Vec<f64> = (0..side * side).map(|k| entry(k / side, k % side)).collect();
            check(side, &matrix, side.min(24));
        }
    }

    #[test]
    fn matrices_with_equal_values_or_of_low_rank() {
        let side = 30;
        let one: Vec<f64> = (0..side * side).map(|k| f64::from(u8::from(k / side == k % side))).collect();
        check(side, &one, 8);
        let ones = vec![1e-6; side * side];
        check(side, &ones, 4);
        let blocks: Vec<f64> =
            (0..side * side).map(|k| f64::from(u8::from(k / side / 3 == k % side / 3)) * 2.0).collect();
        check(side, &blocks, 12);
        // A Gram matrix of five vectors, far apart in size.
        let vector =
            |k: usize, i: usize| 10f64.powi(-2 * k as i32) * ((k + 1) as f64 * (i + 2) as f64 * 1.3).sin();
        let gram: Vec<f64> = (0..side * side)
            .map(|at| (0..5).map(|k| vector(k, at / side) * vector(k, at % side)).sum())
            .collect();
        check(side, &gram, 3);
    }

    #[test]
    fn nothing_and_what_is_not_finite() {
        assert_eq!(Tridiagonal::new(Level::BASELINE, 2, vec![0.0; 4]).values(), Some(vec![0.0; 2]));
        assert_eq!(Tridiagonal::new(Level::BASELINE, 2, vec![f64::NAN; 4]).values(), None);
    }
}
