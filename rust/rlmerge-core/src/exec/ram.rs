//! Reinforced Agent Merging: one pass; RAM+ counts overlaps first.

use serde_json::{Map, Value, json};

use super::job::{Chunk, Job, Partial, Ties};
use crate::error::Result;
use crate::kernel::lanes::Lanes;
use crate::kernel::masks;
use crate::plan::family::ram::Ram;

/// RAM at work on a tensor, or on the whole model.
pub struct RamJob<'p> {
    plan: &'p Ram,
    /// Factors of unique elements, once they are known.
    scales: Option<Vec<f64>>,
    /// Elements that each expert shares with others, and those that it alone changed.
    counts: Vec<i64>,
}

impl<'p> RamJob<'p> {
    /// For any scope.
    pub fn new(plan: &'p Ram) -> Self {
        let known = plan.scale.is_none().then(|| vec![1.0; plan.experts]);
        Self { plan, scales: known, counts: Vec::new() }
    }

    /// The changed elements of all experts' deltas into their buffers, zeros elsewhere.
    ///
    /// NaN counts as a change, so that it comes out.
    fn changes(&self, chunk: &mut Chunk<'_>, squares: &mut [Lanes]) {
        let (level, len) = (chunk.level, chunk.len);
        let threshold = self.plan.epsilon.to_bits();
        for (at, squares) in squares.iter_mut().enumerate() {
            let (base, expert) = (&chunk.values[0], &chunk.values[at + 1]);
            expert.cut_delta(level, base, threshold, true, 1.0, chunk.scratch.delta(at, len), squares);
        }
    }
}

impl Job for RamJob<'_> {
    fn needs_scan(&self) -> bool {
        self.scales.is_none()
    }

    fn partial(&self) -> Partial {
        Partial::with_counts(2 * self.plan.experts)
    }

    fn scan(&self, chunk: &mut Chunk<'_>, partial: &mut Partial) {
        self.changes(chunk, &mut vec![Lanes::default(); self.plan.experts]);
        let scratch = &mut *chunk.scratch;
        let how_many = &mut scratch.total[..chunk.len];
        let changes = || scratch.deltas.chunks(scratch.stride).take(self.plan.experts);
        how_many.fill(0.0);
        for values in changes() {
            masks::count_changed(chunk.level, &values[..chunk.len], how_many);
        }
        for (values, counts) in changes().zip(partial.counts.chunks_exact_mut(2)) {
            let (shared, unique) = masks::count_shared(chunk.level, &values[..chunk.len], how_many);
            counts[0] += shared;
            counts[1] += unique;
        }
    }

    fn learn(&mut self, partial: Partial, _tensor: &str) -> Result<()> {
        let Some(scale) = self.plan.scale else { return Ok(()) };
        let of = |counts: &[i64]| match (counts[0], counts[1]) {
            // Without unique elements there is nothing to scale.
            (_, 0) => 1.0,
            (shared, unique) => 1.0 + scale.gain * (shared as f64 / unique as f64).min(scale.most),
        };
        self.scales = Some(partial.counts.chunks_exact(2).map(of).collect());
        self.counts = partial.counts;
        Ok(())
    }

    fn learnt(&self) -> Map<String, Value> {
        let count = |at: usize| self.counts.chunks_exact(2).map(|c| c[at]).collect::<Vec<_>>();
        let lists = [
            ("shared_elements", json!(count(0))),
            ("unique_elements", json!(count(1))),
            ("scales", json!(self.scales)),
        ];
        lists.map(|(name, list)| (name.to_string(), list)).into_iter().collect()
    }

    fn apply(&self, chunk: &mut Chunk<'_>, _ties: &mut [Ties], squares: &mut [Lanes]) {
        let Some(scales) = &self.scales else { return };
        self.changes(chunk, &mut squares[1..=self.plan.experts]);
        let scratch = &mut *chunk.scratch;
        let out = &mut scratch.out[..chunk.len];
        masks::unique_or_mean(chunk.level, (&scratch.deltas, scratch.stride), scales, out);
        chunk.values[0].add_change(chunk.level, 1.0, out);
    }
}
