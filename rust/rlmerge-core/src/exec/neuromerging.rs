//! NeuroMerging at work: thresholds of the trim, what it kept, and, where neurons are columns, their inner products; then
//! each neuron by itself.

use std::sync::{Mutex, PoisonError};

use super::job::{Chunk, Folding, Job, Partial, Scope, Ties};
use crate::error::Result;
use crate::kernel::lanes::{self, Lanes};
use crate::kernel::select::{Selection, Tally};
use crate::kernel::{combine, neurons, rows};
use crate::plan::family::neuromerging::{NeuroMerging, Neurons};
use crate::plan::role::Matrix;

/// What is learnt next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Select,
    Norms,
    Columns,
    Done,
}

/// What a column of a matrix is multiplied by, for each expert and last for the base.
type Factors = Vec<Vec<f64>>;

/// NeuroMerging at work on a tensor.
pub struct NeuroMergingJob<'p> {
    plan: &'p NeuroMerging,
    neurons: Neurons,
    matrix: Option<Matrix>,
    step: Step,
    trims: Vec<Option<Selection>>,
    sample: Vec<Vec<f64>>,
    /// Factor of the part across the base.
    across: f64,
    sums: Mutex<Vec<f64>>,
    /// For each matrix whose neurons are columns.
    columns: Vec<Factors>,
}

impl<'p> NeuroMergingJob<'p> {
    /// For a tensor.
    pub fn new(plan: &'p NeuroMerging, scope: Scope<'_>) -> Self {
        let neurons = scope.tensor.map_or(Neurons::None, NeuroMerging::neurons);
        let trim = |density: &f64| {
            let rank = (density * scope.elements as f64 + 0.5).floor() as u64;
            (*density < 1.0 && neurons != Neurons::None && scope.elements > 0)
                .then(|| Selection::new(rank.clamp(1, scope.elements), scope.bins, scope.wide))
        };
        let trims: Vec<_> = plan.densities.iter().map(trim).collect();
        let mut job = Self {
            plan,
            neurons,
            matrix: scope.tensor.and_then(|t| t.matrix),
            step: Step::Select,
            sample: vec![Vec::new(); trims.len()],
            trims,
            across: plan.across,
            sums: Mutex::default(),
            columns: Vec::new(),
        };
        if job.trims.iter().all(Option::is_none) {
            job.step = job.after_trim();
        }
        job
    }

    fn experts(&self) -> usize {
        self.trims.len()
    }

    fn is_selecting(&self) -> bool {
        self.trims.iter().flatten().any(|s| s.cut().is_none())
    }

    fn end_selection(&mut self) {
        self.step = if self.plan.auto_scale { Step::Norms } else { self.after_trim() };
    }

    fn after_trim(&mut self) -> Step {
        if self.neurons != Neurons::Columns {
            return Step::Done;
        }
        let count = self.width() * self.matrix.map_or(0, |m| m.batch as usize);
        self.sums = Mutex::new(vec![0.0; count]);
        Step::Columns
    }

    /// Sums of a matrix whose neurons are columns.
    fn width(&self) -> usize {
        NeuroMerging::sums_a_column(self.experts()) * self.matrix.map_or(0, |m| m.columns as usize)
    }

    /// Drops what the trim of an expert drops.
    fn trim(&self, chunk: &mut Chunk<'_>, at: usize) {
        if let Some(cut) = self.trims[at].as_ref().and_then(Selection::cut)
            && cut.threshold != 0
        {
            combine::keep_large(chunk.level, chunk.scratch.delta(at, chunk.len), cut.threshold);
        }
    }

    /// The whole delta of an expert into its buffer.
    fn delta(chunk: &mut Chunk<'_>, at: usize) {
        let (base, expert) = (&chunk.values[0], &chunk.values[at + 1]);
        expert.change(chunk.level, base, chunk.scratch.delta(at, chunk.len));
    }

    /// The base's own weights into the buffer for sums.
    fn weights(chunk: &mut Chunk<'_>) {
        let out = &mut chunk.scratch.total[..chunk.len];
        chunk.values[0].weigh(chunk.level, 1.0, out, &mut Lanes::default());
    }

    fn matrix_at(&self, element: u64) -> usize {
        self.matrix.map_or(0, |m| (element / (m.rows * m.columns)) as usize)
    }

    /// Adds the products of a row with itself, column by column.
    fn add_columns(&self, chunk: &Chunk<'_>, row: std::ops::Range<usize>, sums: &mut [f64]) {
        let scratch = &chunk.scratch;
        let weights = &scratch.total[row.clone()];
        let delta = |at: usize| &scratch.deltas[at * scratch.stride..][row.clone()];
        let mut sums = sums.chunks_exact_mut(row.len());
        let mut add = |a: &[f64], b: &[f64]| {
            if let Some(sum) = sums.next() {
                rows::add_product(chunk.level, a, b, sum);
            }
        };
        add(weights, weights);
        for i in 0..self.experts() {
            add(delta(i), weights);
        }
        for i in 0..self.experts() {
            for j in i..self.experts() {
                add(delta(i), delta(j));
            }
        }
    }

    /// The factors of the columns of one matrix from their sums.
    fn column_factors(&self, sums: &[f64], columns: usize) -> Factors {
        let experts = self.experts();
        let mut factors = vec![vec![0.0; columns]; experts + 1];
        let mut gram = vec![0.0; experts * experts];
        for c in 0..columns {
            let sum = |k: usize| sums[k * columns + c];
            let weight = sum(0);
            let along: Vec<f64> =
                (0..experts).map(|i| if weight > 0.0 { sum(1 + i) / weight } else { 0.0 }).collect();
            let mut k = 1 + experts;
            for i in 0..experts {
                for j in i..experts {
                    let across = sum(k) - along[i] * sum(1 + j);
                    (gram[i * experts + j], gram[j * experts + i]) = (across, across);
                    k += 1;
                }
            }
            let own = neurons::factors(experts, &gram);
            let mut base = self.plan.along * neurons::elect(&along);
            for i in 0..experts {
                factors[i][c] = self.across * own[i];
                base -= factors[i][c] * along[i];
            }
            factors[experts][c] = base;
        }
        factors
    }

    /// The merged delta of a neuron that is a row, from the trimmed deltas in their buffers, which change.
    fn merge_row(&self, chunk: &mut Chunk<'_>, row: std::ops::Range<usize>) {
        let (level, experts) = (chunk.level, self.experts());
        let scratch = &mut *chunk.scratch;
        let stride = scratch.stride;
        let weights = &scratch.total[row.clone()];
        let out = &mut scratch.out[row.clone()];
        let weight = rows::dot(level, weights, weights);
        let mut along = vec![0.0; experts];
        for (i, along) in along.iter_mut().enumerate() {
            let delta = &mut scratch.deltas[i * stride..][row.clone()];
            *along = if weight > 0.0 { rows::dot(level, delta, weights) / weight } else { 0.0 };
            if *along != 0.0 {
                rows::add_multiple(level, weights, -*along, delta);
            }
        }
        let delta = |at: usize| &scratch.deltas[at * stride..][row.clone()];
        let mut gram = vec![0.0; experts * experts];
        for i in 0..experts {
            for j in i..experts {
                let product = rows::dot(level, delta(i), delta(j));
                (gram[i * experts + j], gram[j * experts + i]) = (product, product);
            }
        }
        for (i, factor) in neurons::factors(experts, &gram).iter().enumerate() {
            rows::add_multiple(level, delta(i), self.across * factor, out);
        }
        let along = self.plan.along * neurons::elect(&along);
        if along != 0.0 {
            rows::add_multiple(level, weights, along, out);
        }
    }
}

impl Job for NeuroMergingJob<'_> {
    fn wants_sample(&self) -> bool {
        self.step == Step::Select
    }

    fn sample(&mut self, chunk: &mut Chunk<'_>) {
        for at in 0..self.experts() {
            if self.trims[at].is_some() {
                let (base, expert) = (&chunk.values[0], &chunk.values[at + 1]);
                expert.delta(chunk.level, base, chunk.scratch.delta(at, chunk.len));
                self.sample[at].extend_from_slice(chunk.scratch.delta(at, chunk.len));
            }
        }
    }

    fn end_sample(&mut self, population: u64) {
        for (trim, sample) in self.trims.iter_mut().zip(&mut self.sample) {
            if let Some(selection) = trim {
                selection.propose(sample, population);
            }
            *sample = Vec::new();
        }
        if !self.is_selecting() {
            self.end_selection();
        }
    }

    fn needs_scan(&self) -> bool {
        self.step != Step::Done
    }

    fn partial(&self) -> Partial {
        match self.step {
            Step::Select => {
                let tally = |t: &Option<Selection>| match t {
                    Some(s) if s.cut().is_none() => s.tally(),
                    _ => Tally::default(),
                };
                Partial::with_tallies(self.trims.iter().map(tally).collect())
            }
            Step::Norms => Partial::with_lanes(2 * self.experts()),
            Step::Columns | Step::Done => Partial::default(),
        }
    }

    fn scan(&self, chunk: &mut Chunk<'_>, partial: &mut Partial) {
        for at in 0..self.experts() {
            match self.step {
                Step::Select => {
                    if let Some(selection) = self.trims[at].as_ref().filter(|s| s.cut().is_none()) {
                        let (base, expert) = (&chunk.values[0], &chunk.values[at + 1]);
                        selection.count(chunk.level, expert, base, &mut partial.tallies[at]);
                    }
                }
                Step::Norms => {
                    Self::delta(chunk, at);
                    let level = chunk.level;
                    lanes::add_magnitudes(
                        level,
                        chunk.scratch.delta(at, chunk.len),
                        &mut partial.lanes[2 * at],
                    );
                    self.trim(chunk, at);
                    lanes::add_magnitudes(
                        level,
                        chunk.scratch.delta(at, chunk.len),
                        &mut partial.lanes[2 * at + 1],
                    );
                }
                Step::Columns => {
                    Self::delta(chunk, at);
                    self.trim(chunk, at);
                }
                Step::Done => {}
            }
        }
        if let (Step::Columns, Some(m)) = (self.step, self.matrix) {
            Self::weights(chunk);
            for begin in (0..chunk.len).step_by(m.columns as usize) {
                let sums = partial.folding.of(self.matrix_at(chunk.first + begin as u64), self.width());
                self.add_columns(chunk, begin..begin + m.columns as usize, sums);
            }
        }
    }

    fn folds(&self) -> bool {
        self.step == Step::Columns
    }

    fn fold(&self, folding: &mut Folding) {
        folding.add_to(&mut self.sums.lock().unwrap_or_else(PoisonError::into_inner), self.width());
    }

    fn learn(&mut self, mut partial: Partial, _tensor: &str) -> Result<()> {
        match self.step {
            Step::Select => {
                for (trim, tally) in self.trims.iter_mut().zip(&mut partial.tallies) {
                    if let Some(selection) = trim.as_mut().filter(|s| s.cut().is_none()) {
                        selection.learn(tally);
                    }
                }
                if !self.is_selecting() {
                    self.end_selection();
                }
            }
            Step::Norms => {
                let kept = |pair: &[f64]| if pair[0] > 0.0 { pair[1] / pair[0] } else { 1.0 };
                let least = partial.sums().chunks_exact(2).map(kept).fold(1.0, f64::min);
                // A norm that is not finite says nothing about what was kept.
                if least > 0.0 {
                    self.across = self.plan.across / least;
                }
                self.step = self.after_trim();
            }
            Step::Columns => {
                let sums = std::mem::take(self.sums.get_mut().unwrap_or_else(PoisonError::into_inner));
                let columns = self.matrix.map_or(0, |m| m.columns as usize);
                let matrices = sums.chunks_exact(self.width().max(1));
                self.columns = matrices.map(|sums| self.column_factors(sums, columns)).collect();
                self.step = Step::Done;
            }
            Step::Done => {}
        }
        Ok(())
    }

    fn apply(&self, chunk: &mut Chunk<'_>, _ties: &mut [Ties], squares: &mut [Lanes]) {
        let (level, len, experts) = (chunk.level, chunk.len, self.experts());
        for (at, squares) in squares[1..].iter_mut().enumerate().take(experts) {
            if self.neurons == Neurons::None {
                let (base, expert) = (&chunk.values[0], &chunk.values[at + 1]);
                expert.delta(level, base, chunk.scratch.delta(at, len));
            } else {
                Self::delta(chunk, at);
            }
            let inner = chunk.inner.clone();
            lanes::add_squares_wide(level, &chunk.scratch.delta(at, len)[inner], squares);
            self.trim(chunk, at);
        }
        match (self.neurons, self.matrix) {
            (Neurons::Rows, Some(m)) => {
                Self::weights(chunk);
                chunk.scratch.out[..len].fill(0.0);
                for begin in (0..len).step_by(m.columns as usize) {
                    self.merge_row(chunk, begin..begin + m.columns as usize);
                }
            }
            (Neurons::Columns, Some(m)) => {
                Self::weights(chunk);
                for begin in (0..len).step_by(m.columns as usize) {
                    let factors = &self.columns[self.matrix_at(chunk.first + begin as u64)];
                    let scratch = &mut *chunk.scratch;
                    let row = begin..begin + m.columns as usize;
                    let out = &mut scratch.out[row.clone()];
                    out.fill(0.0);
                    for (at, factors) in factors[..experts].iter().enumerate() {
                        rows::add_product(
                            level,
                            &scratch.deltas[at * scratch.stride..][row.clone()],
                            factors,
                            out,
                        );
                    }
                    rows::add_product(level, &scratch.total[row], &factors[experts], out);
                }
            }
            _ => {
                let scratch = &mut *chunk.scratch;
                let values = (&scratch.deltas[..], scratch.stride);
                combine::merge_disjoint(
                    level,
                    values,
                    &vec![1.0; experts],
                    true,
                    true,
                    &mut scratch.out[..len],
                );
            }
        }
        chunk.values[0].add_change(level, 1.0, &mut chunk.scratch.out[..len]);
    }
}
