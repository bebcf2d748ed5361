//! The largest singular vector of a matrix that is only ever seen row by row.
//!
//! One look at `Δ` gives `ΔᵀΔX` for a block of four vectors: rows are multiplied with the block and the products spread
//! over the columns again while the row is in the cache. Rayleigh and Ritz take the best vector of all blocks seen so
//! far (block Krylov iteration with thick restarts: Golub and Van Loan, Matrix computations, 4th ed., section 10.3),
//! which needs far fewer looks than power iteration with one vector; since `ΔᵀΔ` of that vector is known
//! by then, one more step of power iteration is free.

use super::eigen;
use super::rows::{BLOCK, Quad};

/// The vector is taken as found when `‖ΔᵀΔv − σ²v‖` is this small, relative to `σ²`.
pub const TOLERANCE: f64 = 1e-9;
/// Blocks that are kept; then the best four vectors stand for them.
const KEPT: usize = 3;
/// What is left of a vector after all others were subtracted, when it was a combination of them.
const DEPENDENT: f64 = 1e-12;

/// The search for the largest right singular vector of one matrix.
#[derive(Debug, Clone)]
pub struct Head {
    blocks: Vec<Vec<Quad>>,
    images: Vec<Vec<Quad>>,
    next: Vec<Quad>,
    vector: Option<Vec<f64>>,
}

impl Head {
    /// For a matrix with so many columns. It starts with the same vectors every time.
    #[must_use]
    pub fn new(columns: usize) -> Self {
        let start = (0..columns as u64)
            .map(|c| std::array::from_fn(|j| noise(c * BLOCK as u64 + j as u64)))
            .collect();
        let mut head = Self { blocks: Vec::new(), images: Vec::new(), next: Vec::new(), vector: None };
        head.next = head.orthonormal(start);
        head
    }

    /// The block whose image under `ΔᵀΔ` is wanted next.
    #[must_use]
    pub fn next(&self) -> &[Quad] {
        &self.next
    }

    /// Whether the vector is found.
    #[must_use]
    pub fn is_found(&self) -> bool {
        self.vector.is_some()
    }

    /// The vector, of norm 1; zeros for a matrix of zeros, and before it is found.
    #[must_use]
    pub fn vector(&self) -> &[f64] {
        self.vector.as_deref().unwrap_or_default()
    }

    /// Takes the image of the block; with `last` the best vector so far is the answer.
    pub fn learn(&mut self, image: &[Quad], last: bool) {
        self.blocks.push(std::mem::take(&mut self.next));
        self.images.push(image.to_vec());
        let count = self.blocks.len() * BLOCK;
        let mut small = vec![0.0; count * count];
        for (a, block) in self.blocks.iter().enumerate() {
            for (b, image) in self.images.iter().enumerate() {
                let products = gram(block, image);
                for (i, row) in products.iter().enumerate() {
                    for (j, product) in row.iter().enumerate() {
                        let (i, j) = (a * BLOCK + i, b * BLOCK + j);
                        small[i * count + j] += product / 2.0;
                        small[j * count + i] += product / 2.0;
                    }
                }
            }
        }
        let (values, vectors) = eigen::symmetric(count, &small);
        let (best, images) = (combine(&self.blocks, &vectors), combine(&self.images, &vectors));
        let square = values[0];
        if square <= 0.0 {
            return self.find(vec![0.0; image.len()]);
        }
        let residual =
            best.iter().zip(&images).map(|(v, w)| (w[0] - square * v[0]).powi(2)).sum::<f64>().sqrt();
        let next = self.orthonormal(images.clone());
        let exhausted = next.iter().all(|quad| *quad == [0.0; BLOCK]);
        if last || exhausted || residual <= TOLERANCE * square {
            let norm = images.iter().map(|w| w[0] * w[0]).sum::<f64>().sqrt();
            return self.find(images.iter().map(|w| w[0] / norm).collect());
        }
        if self.blocks.len() == KEPT {
            (self.blocks, self.images) = (vec![best], vec![images]);
        }
        self.next = next;
    }

    fn find(&mut self, vector: Vec<f64>) {
        *self = Self { blocks: Vec::new(), images: Vec::new(), next: Vec::new(), vector: Some(vector) };
    }

    /// The part of a block that all kept blocks lack, as orthonormal vectors; zeros for what is nothing new.
    fn orthonormal(&self, mut block: Vec<Quad>) -> Vec<Quad> {
        for j in 0..BLOCK {
            let before = column_norm(&block, j);
            // Once is not enough where much is taken away.
            for _ in 0..2 {
                for kept in &self.blocks {
                    let mut products = [0.0; BLOCK];
                    for (k, x) in kept.iter().zip(&block) {
                        for i in 0..BLOCK {
                            products[i] += k[i] * x[j];
                        }
                    }
                    for (k, x) in kept.iter().zip(&mut block) {
                        for i in 0..BLOCK {
                            x[j] -= products[i] * k[i];
                        }
                    }
                }
                for i in 0..j {
                    let product: f64 = block.iter().map(|x| x[i] * x[j]).sum();
                    for x in &mut block {
                        x[j] -= product * x[i];
                    }
                }
            }
            let norm = column_norm(&block, j);
            let factor = if norm > DEPENDENT * before { 1.0 / norm } else { 0.0 };
            for x in &mut block {
                x[j] *= factor;
            }
        }
        block
    }
}

fn column_norm(block: &[Quad], j: usize) -> f64 {
    block.iter().map(|x| x[j] * x[j]).sum::<f64>().sqrt()
}

fn gram(a: &[Quad], b: &[Quad]) -> [Quad; BLOCK] {
    let mut out = [[0.0; BLOCK]; BLOCK];
    for (a, b) in a.iter().zip(b) {
        for i in 0..BLOCK {
            for j in 0..BLOCK {
                out[i][j] += a[i] * b[j];
            }
        }
    }
    out
}

/// The first four combinations of all vectors.
fn combine(blocks: &[Vec<Quad>], combinations: &[Vec<f64>]) -> Vec<Quad> {
    let mut out = vec![[0.0; BLOCK]; blocks[0].len()];
    for (b, block) in blocks.iter().enumerate() {
        for (o, x) in out.iter_mut().zip(block) {
            for i in 0..BLOCK {
                for j in 0..BLOCK {
                    o[j] += combinations[j][b * BLOCK + i] * x[i];
                }
            }
        }
    }
    out
}

/// A number between −1 and 1 (SplitMix64: Steele, Lea and Flood, OOPSLA 2014).
fn noise(index: u64) -> f64 {
    let mut z = (index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    let bits = (z ^ (z >> 31)) >> 11;
    bits as f64 / (1u64 << 52) as f64 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Level;
    use crate::kernel::rows::{project, spread};

    fn look(matrix: &[Vec<f64>], head: &mut Head, last: bool) {
        let mut image = vec![[0.0; BLOCK]; head.next().len()];
        for row in matrix {
            let y = project(Level::BASELINE, row, head.next());
            spread(Level::BASELINE, row, &y, &mut image);
        }
        head.learn(&image, last);
    }

    /// The squared largest singular value and its vector, by Jacobi.
    fn exact(matrix: &[Vec<f64>]) -> (f64, Vec<f64>) {
        let n = matrix[0].len();
        let gram: Vec<f64> = (0..n * n).map(|k| matrix.iter().map(|r| r[k / n] * r[k % n]).sum()).collect();
        let (values, mut vectors) = eigen::symmetric(n, &gram);
        (values[0], vectors.swap_remove(0))
    }

    fn random(rows: usize, columns: usize, seed: u64) -> Vec<Vec<f64>> {
        (0..rows)
            .map(|r| (0..columns).map(|c| noise(seed * 7919 + (r * columns + c) as u64)).collect())
            .collect()
    }

    #[test]
    fn a_random_matrix_converges_to_its_largest_vector() {
        for (rows, columns) in [(1, 1), (1, 7), (7, 1), (3, 2), (5, 40), (40, 5), (40, 40), (100, 64)] {
            let matrix = random(rows, columns, 5);
            let mut head = Head::new(columns);
            let mut looks = 0;
            while !head.is_found() {
                looks += 1;
                look(&matrix, &mut head, looks == 60);
            }
            let (_, vector) = exact(&matrix);
            let cosine: f64 = head.vector().iter().zip(&vector).map(|(a, b)| a * b).sum();
            assert!(cosine.abs() > 1.0 - 1e-12, "{rows}x{columns}: {cosine} after {looks} looks");
            assert!(looks < 60, "{rows}x{columns}");
        }
    }

    #[test]
    fn a_separated_head_needs_three_looks() {
        let mut matrix = random(96, 80, 3);
        let (square, _) = exact(&matrix);
        let (u, v) = (random(1, 96, 11), random(1, 80, 12));
        let norm = |x: &[f64]| x.iter().map(|a| a * a).sum::<f64>().sqrt();
        let strength = 4.0 * square.sqrt() / norm(&u[0]) / norm(&v[0]);
        for (row, u) in matrix.iter_mut().zip(&u[0]) {
            for (x, v) in row.iter_mut().zip(&v[0]) {
                *x += strength * u * v;
            }
        }
        let mut head = Head::new(80);
        for looks in 1..=3 {
            look(&matrix, &mut head, looks == 3);
        }
        let (_, vector) = exact(&matrix);
        let cosine: f64 = head.vector().iter().zip(&vector).map(|(a, b)| a * b).sum();
        assert!(1.0 - cosine.abs() < 1e-8, "{cosine}");
    }

    #[test]
    fn matrices_of_zeros_and_of_rank_one() {
        let mut head = Head::new(3);
        look(&[vec![0.0; 3], vec![0.0; 3]], &mut head, false);
        assert_eq!(head.vector(), [0.0; 3]);
        let mut head = Head::new(3);
        look(&[vec![3.0, 0.0, 4.0]], &mut head, false);
        if !head.is_found() {
            look(&[vec![3.0, 0.0, 4.0]], &mut head, false);
        }
        let sign = head.vector()[0].signum();
        for (got, want) in head.vector().iter().zip([0.6, 0.0, 0.8]) {
            assert!((sign * got - want).abs() < 1e-12);
        }
    }
}
