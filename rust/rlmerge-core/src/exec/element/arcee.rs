//! Arcee Fusion: a score for each element out of its change and the divergence of its row, one scan for the three
//! quartiles of the scores, then the choice.

use std::sync::atomic::{AtomicU64, Ordering};

use super::load_deltas;
use crate::error::Result;
use crate::exec::job::{Chunk, Job, Partial, Scope, Ties};
use crate::exec::run::learning::WHOLE_SAMPLE;
use crate::kernel::lanes::{self, Lanes};
use crate::kernel::select::{Selection, Tally};
use crate::kernel::values::Numbers;
use crate::kernel::{Level, element, rows};

use crate::plan::family::element::remembered_rows;

/// Scores of a sampled chunk that are remembered, unless the sample is the whole tensor: those of a row go together,
/// so that more of them say little more.
const SAMPLE_OF_CHUNK: usize = 256;

/// Stands for a divergence that is not known yet; none has these bits, which are those of a NaN.
const UNKNOWN: u64 = u64::MAX;
/// Most counters of a quartile. Hardly two scores are equal, so that no number of counters tells them all apart in one
/// scan; these stay in the processor's cache.
const BINS: usize = 1 << 13;

/// Arcee Fusion at work on a tensor.
pub struct ArceeJob {
    elements: u64,
    /// Elements of a row.
    row: usize,
    /// First quartile, median and third quartile.
    quartiles: [Selection; 3],
    sample: Vec<f64>,
    threshold: Option<f64>,
    /// Bits of the divergence of each row, if they are remembered. Whoever meets a row first puts it in; all who meet
    /// it compute the same.
    divergences: Vec<AtomicU64>,
}

impl ArceeJob {
    /// For a tensor.
    pub fn new(scope: Scope<'_>) -> Self {
        let n = scope.elements;
        // The elements with these numbers in ascending order, counted from the largest.
        let rank = |quarters: u64| n - n.saturating_sub(1) * quarters / 4;
        // Three selections where there are two models.
        let of = |quarters| Selection::of_scores(rank(quarters), scope.bins.min(BINS), scope.scores / 3);
        let row = scope.tensor.and_then(|t| t.shape.last().copied()).unwrap_or(1).max(1);
        let remembered = remembered_rows(n / row);
        Self {
            elements: n,
            row: row as usize,
            divergences: (0..remembered).map(|_| AtomicU64::new(UNKNOWN)).collect(),
            quartiles: [of(1), of(2), of(3)],
            sample: Vec::new(),
            threshold: if n == 0 { Some(0.0) } else { None },
        }
    }

    /// The divergences of the rows of a chunk, if all of them are remembered.
    fn remembered(&self, chunk: &Chunk<'_>) -> Option<&[AtomicU64]> {
        let first = chunk.first as usize / self.row;
        let rows = self.divergences.get(first..first + chunk.len / self.row)?;
        rows.iter().all(|d| d.load(Ordering::Relaxed) != UNKNOWN).then_some(rows)
    }

    /// The scores of a chunk of whole rows into `out`.
    fn score(&self, chunk: &mut Chunk<'_>) {
        let Some(divergences) = self.remembered(chunk) else { return self.score_anew(chunk) };
        let (level, len, row) = (chunk.level, chunk.len, self.row);
        let out = &mut chunk.scratch.out[..len];
        for ((at, out), divergence) in (0..).step_by(row).zip(out.chunks_mut(row)).zip(divergences) {
            let divergence = f64::from_bits(divergence.load(Ordering::Relaxed));
            let row = at..at + out.len();
            match chunk.values[1].against(&chunk.values[0]) {
                (Numbers::Narrow(x), Numbers::Narrow(b)) => {
                    element::sizes_narrow(level, &x[row.clone()], &b[row], divergence, out);
                }
                (Numbers::Wide(x), Numbers::Wide(b)) => {
                    element::sizes_wide(level, &x[row.clone()], &b[row], divergence, out);
                }
                _ => unreachable!("the models of a tensor share one width"),
            }
        }
    }

    /// The same, with the divergences, which are remembered.
    fn score_anew(&self, chunk: &mut Chunk<'_>) {
        load_deltas(chunk, 1, None);
        let (level, len) = (chunk.level, chunk.len);
        let first_row = chunk.first as usize / self.row;
        let scratch = &mut *chunk.scratch;
        let (delta, q) = scratch.deltas.split_at_mut(scratch.stride);
        let (delta, total) = (&delta[..len], &scratch.total[..len]);
        let (p, q) = (&mut scratch.out[..len], &mut q[..len]);
        let all_finite = rows::is_finite(level, total);
        for (model, values) in [(1, &mut *p), (0, &mut *q)] {
            chunk.values[model].weigh(level, 1.0, values, &mut Lanes::default());
            if !all_finite {
                // What is not finite has no share in either distribution.
                element::hide_non_finite(level, total, values);
            }
        }
        for (index, at) in (0..len).step_by(self.row).enumerate() {
            let row = at..(at + self.row).min(len);
            let (p, q) = (&mut p[row.clone()], &mut q[row.clone()]);
            let divergence = divergence(level, p, q);
            if let Some(slot) = self.divergences.get(first_row + index) {
                slot.store(divergence.to_bits(), Ordering::Relaxed);
            }
            element::magnitudes(level, &delta[row], divergence, p);
        }
    }

    fn learn_threshold(&mut self) {
        let found = |s: &Selection| s.cut().map(|c| f64::from_bits(c.threshold));
        if let [Some(low), Some(median), Some(high)] = self.quartiles.each_ref().map(found) {
            self.threshold = Some(median + 1.5 * (high - low));
        }
    }
}

/// Divergence of the distribution with the logits `p` from the one with the logits `q`. Both are used up.
fn divergence(level: Level, p: &mut [f64], q: &mut [f64]) -> f64 {
    let exponentials = |values: &mut [f64]| {
        let mut sum = Lanes::default();
        let greatest = element::greatest(level, values);
        // A row without a finite element has no distribution.
        if greatest == f64::NEG_INFINITY {
            return 0.0;
        }
        element::exponentials(level, values, greatest, &mut sum);
        lanes::total(&sum)
    };
    let (p_sum, q_sum) = (exponentials(p), exponentials(q));
    let mut divergence = Lanes::default();
    if p_sum > 0.0 && q_sum > 0.0 {
        element::add_divergence(level, p, p_sum, q, q_sum, &mut divergence);
    }
    // It is never negative but for rounding.
    lanes::total(&divergence).max(0.0)
}

impl Job for ArceeJob {
    fn wants_sample(&self) -> bool {
        self.threshold.is_none()
    }

    fn sample(&mut self, chunk: &mut Chunk<'_>) {
        self.score(chunk);
        let scores = &chunk.scratch.out[..chunk.len];
        let whole = self.elements <= WHOLE_SAMPLE;
        let step = if whole { 1 } else { scores.len().div_ceil(SAMPLE_OF_CHUNK) };
        self.sample.extend(scores.iter().step_by(step));
    }

    fn end_sample(&mut self, population: u64) {
        for selection in &mut self.quartiles {
            selection.propose(&self.sample, population);
        }
        self.sample = Vec::new();
        self.learn_threshold();
    }

    fn needs_scan(&self) -> bool {
        self.threshold.is_none()
    }

    fn partial(&self) -> Partial {
        let tally = |s: &Selection| if s.cut().is_none() { s.tally() } else { Tally::default() };
        Partial::with_tallies(self.quartiles.iter().map(tally).collect())
    }

    fn scan(&self, chunk: &mut Chunk<'_>, partial: &mut Partial) {
        self.score(chunk);
        for (selection, tally) in self.quartiles.iter().zip(&mut partial.tallies) {
            if selection.cut().is_none() {
                selection.count_scores(chunk.level, &chunk.scratch.out[..chunk.len], tally);
            }
        }
    }

    fn learn(&mut self, mut partial: Partial, _tensor: &str) -> Result<()> {
        for (selection, tally) in self.quartiles.iter_mut().zip(&mut partial.tallies) {
            if selection.cut().is_none() {
                selection.learn(tally);
            }
        }
        self.learn_threshold();
        Ok(())
    }

    fn apply(&self, chunk: &mut Chunk<'_>, _ties: &mut [Ties], squares: &mut [Lanes]) {
        let Some(threshold) = self.threshold else { return };
        self.score(chunk);
        let (level, len, inner) = (chunk.level, chunk.len, chunk.inner.clone());
        let scratch = &mut *chunk.scratch;
        let delta = &mut scratch.deltas[..len];
        chunk.values[1].delta(level, &chunk.values[0], delta);
        lanes::add_squares_wide(level, &delta[inner], &mut squares[1]);
        let out = &mut scratch.out[..len];
        match (chunk.values[1].numbers(), chunk.values[0].numbers()) {
            (Numbers::Narrow(x), Numbers::Narrow(b)) => element::choose_narrow(level, x, b, threshold, out),
            (Numbers::Wide(x), Numbers::Wide(b)) => element::choose_wide(level, x, b, threshold, out),
            _ => unreachable!("the models of a tensor share one width"),
        }
    }
}
