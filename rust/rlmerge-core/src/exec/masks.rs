//! Methods made of one mask a task, and the way back from masks to a task's model.

use serde_json::{Map, Value};

use super::deltas::DeltasJob;
use super::job::{Chunk, Job, Partial, Scope, Ties};
use crate::error::Result;
use crate::kernel::lanes::Lanes;
use crate::kernel::{combine, masks};
use crate::plan::family::masks::{Emr, Expand, Tall, Use};
use crate::plan::marks;

/// TALL masks at work: whatever is learnt is learnt by the merge that they are made of.
pub struct TallJob<'p> {
    plan: &'p Tall,
    merge: DeltasJob<'p>,
}

impl<'p> TallJob<'p> {
    /// For a tensor or the whole model.
    pub fn new(plan: &'p Tall, scope: Scope<'_>) -> Self {
        Self { plan, merge: DeltasJob::new(&plan.merged, scope) }
    }

    /// The whole delta of expert `at` into its buffer.
    fn delta(chunk: &mut Chunk<'_>, at: usize) {
        let (base, expert) = (&chunk.values[0], &chunk.values[at + 1]);
        expert.delta(chunk.level, base, chunk.scratch.delta(at, chunk.len));
    }
}

impl Job for TallJob<'_> {
    fn wants_sample(&self) -> bool {
        self.merge.wants_sample()
    }

    fn sample(&mut self, chunk: &mut Chunk<'_>) {
        self.merge.sample(chunk);
    }

    fn learnt(&self) -> Map<String, Value> {
        self.merge.learnt()
    }

    fn end_sample(&mut self, population: u64) {
        self.merge.end_sample(population);
    }

    fn needs_scan(&self) -> bool {
        self.merge.needs_scan()
    }

    fn partial(&self) -> Partial {
        self.merge.partial()
    }

    fn scan(&self, chunk: &mut Chunk<'_>, partial: &mut Partial) {
        self.merge.scan(chunk, partial);
    }

    fn learn(&mut self, partial: Partial, tensor: &str) -> Result<()> {
        self.merge.learn(partial, tensor)
    }

    fn ordered_ties(&self) -> usize {
        self.merge.ordered_ties()
    }

    fn count_ties(&self, chunk: &mut Chunk<'_>, counts: &mut [u64]) {
        self.merge.count_ties(chunk, counts);
    }

    fn share_ties(&self, before: &[u64], counts: &[u64]) -> Vec<Ties> {
        self.merge.share_ties(before, counts)
    }

    fn apply(&self, chunk: &mut Chunk<'_>, ties: &mut [Ties], squares: &mut [Lanes]) {
        self.merge.change(chunk, ties, squares);
        let (level, len) = (chunk.level, chunk.len);
        let lambda = match self.plan.then {
            Use::Consensus { least, lambda } => {
                chunk.scratch.total[..len].fill(0.0);
                for (at, task) in self.plan.lambdas.iter().enumerate() {
                    Self::delta(chunk, at);
                    let scratch = &mut *chunk.scratch;
                    let delta = &scratch.deltas[at * scratch.stride..][..len];
                    masks::count_tall(level, delta, &scratch.out[..len], *task, &mut scratch.total[..len]);
                }
                let scratch = &mut *chunk.scratch;
                masks::keep_agreed(level, &scratch.total[..len], f64::from(least), &mut scratch.out[..len]);
                lambda
            }
            Use::Write => {
                for (at, task) in self.plan.lambdas.iter().enumerate() {
                    Self::delta(chunk, at);
                    let scratch = &mut *chunk.scratch;
                    let delta = &scratch.deltas[at * scratch.stride..][..len];
                    let bits = marks::of_chunk(&mut scratch.marks, at, chunk.first, len);
                    masks::mark_tall(level, delta, &scratch.out[..len], *task, bits);
                }
                1.0
            }
        };
        chunk.values[0].add_change(level, lambda, &mut chunk.scratch.out[..len]);
    }
}

/// EMR-Merging at work on any scope.
pub struct EmrJob {
    experts: usize,
}

impl EmrJob {
    /// For any scope.
    pub fn new(plan: &Emr) -> Self {
        Self { experts: plan.experts }
    }
}

impl Job for EmrJob {
    fn apply(&self, chunk: &mut Chunk<'_>, _ties: &mut [Ties], squares: &mut [Lanes]) {
        let (level, len) = (chunk.level, chunk.len);
        for at in 0..self.experts {
            let (base, expert) = (&chunk.values[0], &chunk.values[at + 1]);
            let out = chunk.scratch.delta(at, len);
            expert.cut_delta(level, base, 0, false, 1.0, out, &mut squares[at + 1]);
        }
        let scratch = &mut *chunk.scratch;
        // There is one buffer more than experts; the base needs none.
        let (deltas, unified) = scratch.deltas.split_at_mut(self.experts * scratch.stride);
        let unified = &mut unified[..len];
        let deltas = || deltas.chunks(scratch.stride).map(|d| &d[..len]);
        let (sum, out) = (&mut scratch.total[..len], &mut scratch.out[..len]);
        sum.fill(0.0);
        unified.fill(0.0);
        for delta in deltas() {
            combine::add(level, delta, sum);
        }
        for delta in deltas() {
            masks::raise_agreeing(level, delta, sum, unified);
        }
        for (at, delta) in deltas().enumerate() {
            let bits = marks::of_chunk(&mut scratch.marks, at, chunk.first, len);
            let [whole, masked] = &mut scratch.sums[at];
            masks::mark_agreeing(level, delta, unified, bits, whole, masked);
        }
        // What is unified is one expert's delta, so the sum with the base is that expert's own value; taking it
        // saves two roundings.
        out.copy_from_slice(unified);
        chunk.values[0].add_change(level, 1.0, out);
        for (at, delta) in deltas().enumerate().rev() {
            chunk.values[at + 1].take_where_unified(level, delta, unified, out);
        }
    }
}

/// A task's model at work: the merged model is model 0, its base model 1.
pub struct ExpandJob<'p> {
    plan: &'p Expand,
    /// First byte of the task's bits of this tensor in the file of masks, and how many; `None` for a tensor that has
    /// no masks, which all tasks share.
    row: Option<(u64, u64)>,
}

impl<'p> ExpandJob<'p> {
    /// For a tensor.
    pub fn new(plan: &'p Expand, scope: Scope<'_>) -> Self {
        let stored = plan.masks.get(&marks::name(scope.name()));
        let row = stored.map(|tensor| {
            let len = marks::row_bytes(scope.elements);
            (tensor.begin + plan.row * len, len)
        });
        Self { plan, row }
    }
}

impl Job for ExpandJob<'_> {
    /// The bits are read, and so checked, in any case.
    fn keeps_common_values(&self) -> bool {
        false
    }

    fn apply(&self, chunk: &mut Chunk<'_>, _ties: &mut [Ties], squares: &mut [Lanes]) {
        let (level, len) = (chunk.level, chunk.len);
        let (merged, base) = (&chunk.values[0], &chunk.values[1]);
        let (first, rest) = squares.split_at_mut(1);
        let out = &mut chunk.scratch.out[..len];
        merged.weigh(level, 1.0, out, &mut first[0]);
        base.add_squares(level, &mut rest[0]);
        let Some((begin, row_len)) = self.row else { return };
        let at = marks::byte_in_tile(chunk.first);
        if at == 0 {
            // The bits of the whole tile at once. What cannot be read stays zero, and is found by its checksum.
            let skipped = chunk.first / 8;
            let tile = (marks::TILE_BYTES as u64).min(row_len - skipped) as usize;
            let bits = &mut chunk.scratch.marks[..tile];
            if self.plan.masks.shards()[0].read_at(begin + skipped, bits).is_err() {
                bits.fill(0);
            }
        }
        let bits = &chunk.scratch.marks[at..at + len.div_ceil(8)];
        base.expand(level, merged, bits, self.plan.scale, out);
    }
}
