//! RegMean at work, as the change from the first model: `W = W₁ + Σ (Wᵢ − W₁) G̃ᵢ M⁻¹` with `M = Σ G̃ᵢ`. A row of a matrix
//! is an output and is solved for alone. Where rows are inputs (GPT-2), all of the matrix is gathered and solved first.

use std::sync::{Mutex, PoisonError};

use super::job::{Chunk, Job, Partial, Scope, Ties};
use crate::error::Result;
use crate::kernel::lanes::Lanes;
use crate::kernel::{Level, cholesky, rows};
use crate::plan::family::regmean::RegMean;
use crate::plan::role::Matrix;

/// How far two elements of a Gram matrix that should be equal may differ, relative to the inputs that they are of.
const ASYMMETRY: f64 = 1e-2;

/// RegMean at work on a tensor.
pub struct RegMeanJob<'p> {
    plan: &'p RegMean,
    matrix: Option<Matrix>,
    /// For each model but the first the Gram matrices of the batch, one after the other, shrunk and weighted.
    grams: Vec<Vec<f64>>,
    /// The factors of their sums, the first model's included.
    factors: Vec<f64>,
    /// Changes from the first model that were gathered, one model after the other; then the solution.
    gathered: Mutex<Vec<f64>>,
    solution: Vec<f64>,
    is_gathering: bool,
}

impl<'p> RegMeanJob<'p> {
    /// For a tensor.
    pub fn new(plan: &'p RegMean, scope: Scope<'_>) -> Self {
        let matrix = scope.tensor.and_then(|t| t.matrix).filter(|_| scope.elements > 0);
        let is_gathering = matrix.is_some_and(|m| m.transposed);
        let gathered = if is_gathering { scope.elements as usize * (plan.experts.len() - 1) } else { 0 };
        Self {
            plan,
            matrix,
            grams: Vec::new(),
            factors: Vec::new(),
            gathered: Mutex::new(vec![0.0; gathered]),
            solution: Vec::new(),
            is_gathering,
        }
    }

    /// Rows and columns of a Gram matrix.
    fn side(&self) -> usize {
        self.matrix.map_or(0, |m| if m.transposed { m.rows } else { m.columns }) as usize
    }

    fn others(&self) -> usize {
        self.plan.experts.len() - 1
    }

    /// The changes from the first model into the experts' buffers.
    fn changes(&self, chunk: &mut Chunk<'_>) {
        for at in 0..self.others() {
            let (first, other) = (&chunk.values[0], &chunk.values[at + 1]);
            other.change(chunk.level, first, chunk.scratch.delta(at, chunk.len));
        }
    }

    fn solve(&mut self, level: Level) {
        let Some(m) = self.matrix else { return };
        let (side, width) = (self.side(), m.columns as usize);
        let gathered = std::mem::take(self.gathered.get_mut().unwrap_or_else(PoisonError::into_inner));
        let size = gathered.len() / self.others().max(1);
        self.solution = vec![0.0; size];
        for (batch, out) in self.solution.chunks_exact_mut(side * width).enumerate() {
            for (changes, grams) in gathered.chunks_exact(size).zip(&self.grams) {
                let changes = &changes[batch * side * width..][..side * width];
                let gram = &grams[batch * side * side..][..side * side];
                for (row, out) in gram.chunks_exact(side).zip(out.chunks_exact_mut(width)) {
                    for (g, change) in row.iter().zip(changes.chunks_exact(width)) {
                        rows::add_multiple(level, change, *g, out);
                    }
                }
            }
            cholesky::solve_columns(
                level,
                side,
                &self.factors[batch * side * side..][..side * side],
                out,
                width,
            );
        }
    }
}

/// Shrinks a Gram matrix beside its diagonal; says what is wrong if it is not symmetric.
fn shrink(side: usize, gram: &mut [f64], alpha: f64, weight: f64) -> std::result::Result<(), String> {
    for i in 0..side {
        for j in 0..i {
            let (a, b) = (gram[i * side + j], gram[j * side + i]);
            let scale = (gram[i * side + i] * gram[j * side + j]).sqrt();
            if (a - b).abs() > ASYMMETRY * scale {
                return Err(format!("not symmetric: {a} at [{i}, {j}], {b} at [{j}, {i}]"));
            }
            let mean = weight * alpha * f64::midpoint(a, b);
            (gram[i * side + j], gram[j * side + i]) = (mean, mean);
        }
    }
    for i in 0..side {
        gram[i * side + i] *= weight;
    }
    Ok(())
}

impl Job for RegMeanJob<'_> {
    fn take_statistics(
        &mut self,
        level: Level,
        mut grams: Vec<Vec<f64>>,
    ) -> std::result::Result<(), (usize, String)> {
        let side = self.side();
        if side == 0 {
            return Ok(());
        }
        for (at, (gram, (_, _, weight))) in grams.iter_mut().zip(&self.plan.experts).enumerate() {
            for matrix in gram.chunks_exact_mut(side * side) {
                shrink(side, matrix, self.plan.alpha, *weight).map_err(|message| (at, message))?;
            }
        }
        // An input that was zero for every model says nothing: its weights are averaged.
        for diagonal in (0..grams[0].len() / side).map(|row| row * side + row % side) {
            if grams.iter().all(|g| g[diagonal] == 0.0) {
                for (gram, (_, _, weight)) in grams.iter_mut().zip(&self.plan.experts) {
                    gram[diagonal] = *weight;
                }
            }
        }
        let mut sums = std::mem::take(&mut grams[0]);
        for gram in &grams[1..] {
            rows::add_multiple(level, gram, 1.0, &mut sums);
        }
        for matrix in sums.chunks_exact_mut(side * side) {
            cholesky::factor(level, side, matrix).map_err(|row| {
                (0, format!("the sum of all models' Gram matrices is not positive definite at row {row}; a smaller `alpha` helps"))
            })?;
        }
        grams.remove(0);
        (self.grams, self.factors) = (grams, sums);
        Ok(())
    }

    fn needs_scan(&self) -> bool {
        self.is_gathering
    }

    fn scan(&self, chunk: &mut Chunk<'_>, _partial: &mut Partial) {
        self.changes(chunk);
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        let size = gathered.len() / self.others().max(1);
        for at in 0..self.others() {
            let place = at * size + chunk.first as usize;
            gathered[place..place + chunk.len].copy_from_slice(chunk.scratch.delta(at, chunk.len));
        }
    }

    fn learn(&mut self, _partial: Partial, _tensor: &str) -> Result<()> {
        self.solve(Level::choose());
        self.is_gathering = false;
        Ok(())
    }

    fn apply(&self, chunk: &mut Chunk<'_>, _ties: &mut [Ties], squares: &mut [Lanes]) {
        let (level, len) = (chunk.level, chunk.len);
        for (values, squares) in chunk.values.iter().zip(squares) {
            values.add_squares_of(level, chunk.inner.clone(), squares);
        }
        let Some(m) = self.matrix else { return };
        if m.transposed {
            let first = chunk.first as usize;
            chunk.scratch.out[..len].copy_from_slice(&self.solution[first..first + len]);
        } else {
            self.changes(chunk);
            let side = self.side();
            let scratch = &mut *chunk.scratch;
            let out = &mut scratch.out[..len];
            out.fill(0.0);
            let matrix_of =
                |row: usize| ((chunk.first + (row * side) as u64) / (m.rows * m.columns)) as usize;
            let rows_here = len / side;
            // Runs of rows that belong to one matrix of the batch.
            let mut begin = 0;
            while begin < rows_here {
                let matrix = matrix_of(begin);
                let end = (begin..rows_here).find(|row| matrix_of(*row) != matrix).unwrap_or(rows_here);
                let out = &mut out[begin * side..end * side];
                for (at, grams) in self.grams.iter().enumerate() {
                    let gram = &grams[matrix * side * side..][..side * side];
                    let changes = &scratch.deltas[at * scratch.stride..][begin * side..end * side];
                    for (k, g) in gram.chunks_exact(side).enumerate() {
                        for (change, out) in changes.chunks_exact(side).zip(out.chunks_exact_mut(side)) {
                            if change[k] != 0.0 {
                                rows::add_multiple(level, g, change[k], out);
                            }
                        }
                    }
                }
                cholesky::solve_rows(level, side, &self.factors[matrix * side * side..][..side * side], out);
                begin = end;
            }
        }
        chunk.values[0].add_change(level, 1.0, &mut chunk.scratch.out[..len]);
    }
}
