//! ResMerge at work. Rows are seen whole, so that one look gives `ΔᵀΔX` of every expert, and once the largest right
//! singular vectors `v` are known, the components `Hᵢ = Δᵢvᵢvᵢᵀ` of any row follow from that row. Everything else
//! needs inner products only: after the looks for `v` one more gathers `⟨Δᵢ, Δⱼ⟩`, `⟨Δᵢ, Hⱼ⟩` and `⟨Hᵢ, Hⱼ⟩`.

use std::sync::{Mutex, PoisonError};

use super::job::{Chunk, Folding, Job, Partial, Scope, Ties};
use crate::error::{Error, Result};
use crate::kernel::heads::Head;
use crate::kernel::lanes::{self, Lanes};
use crate::kernel::resmerge::{Inner, Mix, mix};
use crate::kernel::rows::{self, BLOCK};
use crate::plan::family::resmerge::{ResMerge, Treatment};
use crate::plan::role::Matrix;

/// Looks at a tensor of one tile: it is in the cache, they cost no reading.
const LOOKS_AT_ONE_TILE: u32 = 40;

/// What is learnt next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Heads,
    Products,
    Done,
}

/// ResMerge at work on a tensor.
pub struct ResMergeJob<'p> {
    plan: &'p ResMerge,
    matrix: Option<Matrix>,
    scored: bool,
    step: Step,
    looks_left: u32,
    /// For each matrix, one search an expert.
    heads: Vec<Head>,
    /// Sums over all tiles of the scan.
    sums: Mutex<Vec<f64>>,
    /// For each matrix, what the experts are multiplied by.
    mixes: Vec<Mix>,
}

impl<'p> ResMergeJob<'p> {
    /// For a tensor.
    pub fn new(plan: &'p ResMerge, scope: Scope<'_>) -> Self {
        let treatment = scope.tensor.map_or(Treatment::Mean, ResMerge::treatment);
        let matrix = scope.tensor.and_then(|t| t.matrix).filter(|_| treatment != Treatment::Mean);
        let searches = matrix.map_or(0, |m| m.batch as usize * plan.experts);
        let one_tile = scope.elements <= crate::plan::TILE_ELEMENTS;
        let mut job = Self {
            plan,
            matrix,
            scored: treatment == Treatment::Split { scored: true },
            step: if searches == 0 { Step::Done } else { Step::Heads },
            looks_left: if one_tile { plan.looks.max(LOOKS_AT_ONE_TILE) } else { plan.looks },
            heads: vec![Head::new(matrix.map_or(0, |m| m.columns as usize)); searches],
            sums: Mutex::default(),
            mixes: Vec::new(),
        };
        job.clear();
        job
    }

    /// Sums for each matrix in this step.
    fn width(&self) -> usize {
        let experts = self.plan.experts;
        match self.step {
            Step::Heads => experts * BLOCK * self.matrix.map_or(0, |m| m.columns as usize),
            Step::Products => 3 * experts * experts,
            Step::Done => 0,
        }
    }

    fn clear(&mut self) {
        let count = self.width() * self.matrix.map_or(0, |m| m.batch as usize);
        let sums = self.sums.get_mut().unwrap_or_else(PoisonError::into_inner);
        sums.clear();
        sums.resize(count, 0.0);
    }

    /// The deltas of a chunk into their buffers.
    fn deltas(&self, chunk: &mut Chunk<'_>) {
        for at in 0..self.plan.experts {
            let (base, expert) = (&chunk.values[0], &chunk.values[at + 1]);
            expert.change(chunk.level, base, chunk.scratch.delta(at, chunk.len));
        }
    }

    fn head(&self, matrix: usize, expert: usize) -> &Head {
        &self.heads[matrix * self.plan.experts + expert]
    }

    /// Adds a row's part of `ΔᵀΔX`.
    fn add_image(&self, chunk: &Chunk<'_>, row: std::ops::Range<usize>, matrix: usize, sums: &mut [f64]) {
        let columns = row.len();
        for (at, sums) in sums.chunks_exact_mut(BLOCK * columns).enumerate() {
            let head = self.head(matrix, at);
            if head.is_found() {
                continue;
            }
            let delta = &chunk.scratch.deltas[at * chunk.scratch.stride..][row.clone()];
            let factors = rows::project(chunk.level, delta, head.next());
            // Rows that training left alone are many.
            if factors != [0.0; BLOCK] {
                rows::spread(chunk.level, delta, &factors, sums.as_chunks_mut().0);
            }
        }
    }

    /// Adds a row's part of all inner products.
    fn add_products(&self, chunk: &Chunk<'_>, row: std::ops::Range<usize>, matrix: usize, sums: &mut [f64]) {
        let experts = self.plan.experts;
        let delta = |at: usize| &chunk.scratch.deltas[at * chunk.scratch.stride..][row.clone()];
        let (deltas, rest) = sums.split_at_mut(experts * experts);
        let (crossed, heads) = rest.split_at_mut(experts * experts);
        let own: Vec<f64> =
            (0..experts).map(|j| rows::dot(chunk.level, delta(j), self.head(matrix, j).vector())).collect();
        for i in 0..experts {
            for j in 0..experts {
                if j >= i {
                    deltas[i * experts + j] += rows::dot(chunk.level, delta(i), delta(j));
                    heads[i * experts + j] += own[i] * own[j];
                }
                let product = if i == j {
                    own[j]
                } else {
                    rows::dot(chunk.level, delta(i), self.head(matrix, j).vector())
                };
                crossed[i * experts + j] += product * own[j];
            }
        }
    }

    /// The inner products of the experts' parts of one matrix.
    fn inner(&self, matrix: usize, sums: &[f64]) -> Inner {
        let experts = self.plan.experts;
        let square = experts * experts;
        let level = crate::kernel::Level::BASELINE;
        let mut inner = Inner::new(experts);
        for i in 0..experts {
            for j in 0..experts {
                let at = i.min(j) * experts + i.max(j);
                let vectors = rows::dot(level, self.head(matrix, i).vector(), self.head(matrix, j).vector());
                inner.deltas[i * experts + j] = sums[at];
                inner.crossed[i * experts + j] = sums[square + i * experts + j];
                inner.heads[i * experts + j] = sums[2 * square + at] * vectors;
            }
        }
        inner
    }
}

impl Job for ResMergeJob<'_> {
    fn needs_scan(&self) -> bool {
        self.step != Step::Done
    }

    fn folds(&self) -> bool {
        true
    }

    fn scan(&self, chunk: &mut Chunk<'_>, partial: &mut Partial) {
        let Some(m) = self.matrix else { return };
        self.deltas(chunk);
        let columns = m.columns as usize;
        for begin in (0..chunk.len).step_by(columns) {
            let matrix = ((chunk.first + begin as u64) / (m.rows * m.columns)) as usize;
            let sums = partial.folding.of(matrix, self.width());
            let row = begin..begin + columns;
            match self.step {
                Step::Heads => self.add_image(chunk, row, matrix, sums),
                Step::Products => self.add_products(chunk, row, matrix, sums),
                Step::Done => {}
            }
        }
    }

    fn fold(&self, folding: &mut Folding) {
        folding.add_to(&mut self.sums.lock().unwrap_or_else(PoisonError::into_inner), self.width());
    }

    fn learn(&mut self, _partial: Partial, tensor: &str) -> Result<()> {
        let sums = std::mem::take(self.sums.get_mut().unwrap_or_else(PoisonError::into_inner));
        if sums.iter().any(|s| !s.is_finite()) {
            return Err(Error::NonFinite {
                tensor: tensor.into(),
                message: "its largest singular component is undefined, because a value is NaN or infinite"
                    .into(),
            });
        }
        let experts = self.plan.experts;
        match self.step {
            Step::Heads => {
                self.looks_left -= 1;
                let size = sums.len() / self.heads.len().max(1);
                for (head, image) in self.heads.iter_mut().zip(sums.chunks_exact(size)) {
                    if !head.is_found() {
                        head.learn(image.as_chunks().0, self.looks_left == 0);
                    }
                }
                if self.heads.iter().all(Head::is_found) {
                    self.step = Step::Products;
                }
            }
            Step::Products => {
                let plan = self.plan;
                let of = |(matrix, sums)| {
                    let inner = self.inner(matrix, sums);
                    mix(&inner, self.scored, (plan.beta_min, plan.beta_max), plan.budget)
                };
                self.mixes = sums.chunks_exact(3 * experts * experts).enumerate().map(of).collect();
                self.step = Step::Done;
            }
            Step::Done => {}
        }
        self.clear();
        Ok(())
    }

    fn apply(&self, chunk: &mut Chunk<'_>, _ties: &mut [Ties], squares: &mut [Lanes]) {
        let (level, len, experts) = (chunk.level, chunk.len, self.plan.experts);
        self.deltas(chunk);
        let scratch = &mut *chunk.scratch;
        let out = &mut scratch.out[..len];
        out.fill(0.0);
        for (at, squares) in squares[1..].iter_mut().enumerate().take(experts) {
            let delta = &scratch.deltas[at * scratch.stride..][..len];
            lanes::add_squares_wide(level, &delta[chunk.inner.clone()], squares);
            let Some(m) = self.matrix else {
                rows::add_multiple(level, delta, 1.0 / experts as f64, out);
                continue;
            };
            let columns = m.columns as usize;
            for begin in (0..len).step_by(columns) {
                let matrix = ((chunk.first + begin as u64) / (m.rows * m.columns)) as usize;
                let (mix, vector) = (&self.mixes[matrix], self.head(matrix, at).vector());
                let (row, out) = (&delta[begin..begin + columns], &mut out[begin..begin + columns]);
                let strength = rows::dot(level, row, vector);
                rows::add_multiple(level, row, mix.residuals[at], out);
                if strength != 0.0 {
                    rows::add_multiple(level, vector, mix.heads[at] * strength, out);
                }
            }
        }
        chunk.values[0].add_change(level, self.plan.lambda, out);
    }
}
