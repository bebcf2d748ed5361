//! SCE: a scan for the k-th largest variance, one for the squares that are left of each expert, then the election.

use super::load_deltas;
use crate::error::Result;
use crate::exec::job::{Chunk, Job, Partial, Scope, Ties};
use crate::kernel::element;
use crate::kernel::lanes::Lanes;
use crate::kernel::pair::{self, Election};
use crate::kernel::select::Selection;
use crate::kernel::values::Numbers;
use crate::kernel::{Level, combine};
use crate::plan::TILE_ELEMENTS;

/// Below this sum of mean squares mergekit weighs all experts alike.
const MERGEKIT_TINY: f64 = 1e-6;
/// mergekit divides by this much at least.
const MERGEKIT_LEAST: f64 = 1e-6;

/// Most counters: of bf16 weights most variances differ by wide steps, and more counters cost more to clear than a
/// further scan.
const BINS: usize = 1 << 15;

/// What is learnt next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The k-th largest variance.
    Select,
    /// The squares of what is kept.
    Weigh,
    /// Where in this tile the last kept tie is, and the squares before it.
    Divide {
        tile: u64,
        ties: u64,
    },
    Done,
}

/// The elements that are kept: those above a score, and those at it up to an index of the tensor.
#[derive(Debug, Clone, Copy)]
struct Cutoff {
    score: f64,
    end_of_ties: u64,
}

/// SCE at work on a tensor.
pub struct SceJob {
    experts: usize,
    elements: u64,
    share: f64,
    mergekit: bool,
    step: Step,
    selection: Selection,
    sample: Vec<f64>,
    cutoff: Cutoff,
    kept_ties: u64,
    /// Squares of each expert, as far as they are summed.
    squares: Vec<f64>,
    weights: Vec<f64>,
}

impl SceJob {
    /// For a tensor.
    pub fn new(experts: usize, share: f64, mergekit: bool, scope: Scope<'_>) -> Self {
        Self {
            experts,
            elements: scope.elements,
            share,
            mergekit,
            step: if share < 1.0 { Step::Select } else { Step::Weigh },
            selection: Selection::of_scores(1, scope.bins.min(BINS), scope.scores),
            sample: Vec::new(),
            // No variance is negative: everything is kept.
            cutoff: Cutoff { score: -1.0, end_of_ties: 0 },
            kept_ties: 0,
            squares: vec![0.0; experts],
            weights: Vec::new(),
        }
    }

    /// How many of so many non-zero variances are kept.
    fn rank(&self, non_zero: u64) -> u64 {
        let share = self.share * non_zero as f64;
        if self.mergekit { share as u64 } else { ((share + 0.5) as u64).max(1).min(non_zero) }
    }

    /// Deltas, and their variance times the number of experts into the buffer behind theirs: around the first
    /// expert's, so that equal deltas have no variance at all.
    fn load(&self, chunk: &mut Chunk<'_>, squares: Option<&mut [Lanes]>) {
        load_deltas(chunk, self.experts, squares);
        let (level, len) = (chunk.level, chunk.len);
        let scratch = &mut *chunk.scratch;
        let (deltas, spread) = scratch.deltas.split_at_mut(self.experts * scratch.stride);
        let (spread, mean) = (&mut spread[..len], &mut scratch.out[..len]);
        if self.experts == 2 {
            let (first, second) = deltas.split_at(scratch.stride);
            return pair::spread(level, &first[..len], &second[..len], spread);
        }
        let delta = |at: usize| &deltas[at * scratch.stride..at * scratch.stride + len];
        spread.fill(0.0);
        mean.fill(0.0);
        for at in 1..self.experts {
            element::add_distance(level, delta(at), delta(0), mean);
        }
        combine::divide_by(level, mean, self.experts as f64);
        for at in 0..self.experts {
            element::add_spread(level, delta(at), delta(0), mean, spread);
        }
    }

    /// What a scan gathers of two experts, straight from the models.
    fn scan_two(&self, chunk: &mut Chunk<'_>, partial: &mut Partial) {
        let (level, base, score) = (chunk.level, &chunk.values[0], self.cutoff.score);
        let spread = &mut chunk.scratch.out[..chunk.len];
        let weighs = self.step == Step::Weigh;
        match (chunk.values[1].against(base), chunk.values[2].against(base)) {
            ((Numbers::Narrow(x), Numbers::Narrow(u)), (Numbers::Narrow(y), Numbers::Narrow(v))) => {
                if weighs {
                    let ties = pair::weigh_narrow(level, x, u, y, v, score, &mut partial.lanes);
                    partial.lanes[4][0] += ties as f64;
                } else {
                    pair::spread_narrow(level, x, u, y, v, spread);
                }
            }
            ((Numbers::Wide(x), Numbers::Wide(u)), (Numbers::Wide(y), Numbers::Wide(v))) => {
                if weighs {
                    let ties = pair::weigh_wide(level, x, u, y, v, score, &mut partial.lanes);
                    partial.lanes[4][0] += ties as f64;
                } else {
                    pair::spread_wide(level, x, u, y, v, spread);
                }
            }
            _ => unreachable!("the models of a tensor share one width"),
        }
        if !weighs {
            self.count(level, spread, partial);
        }
    }

    /// Counts the variances of a chunk.
    fn count(&self, level: Level, spread: &[f64], partial: &mut Partial) {
        partial.counts[0] += element::count_non_zero(level, spread) as i64;
        self.selection.count_scores(level, spread, &mut partial.tallies[0]);
    }

    /// Variances of a loaded chunk.
    fn spread<'c>(&self, chunk: &'c Chunk<'_>) -> &'c [f64] {
        let scratch = &*chunk.scratch;
        &scratch.deltas[self.experts * scratch.stride..][..chunk.len]
    }

    /// How many elements of the chunk come before the end of the kept ties.
    fn with_ties(&self, chunk: &Chunk<'_>) -> usize {
        self.cutoff.end_of_ties.saturating_sub(chunk.first).min(chunk.len as u64) as usize
    }

    /// Calls `each` with the scores and deltas of every expert.
    fn for_deltas(&self, chunk: &mut Chunk<'_>, mut each: impl FnMut(Level, usize, &[f64], &mut [f64])) {
        let (level, len) = (chunk.level, chunk.len);
        let scratch = &mut *chunk.scratch;
        let (deltas, spread) = scratch.deltas.split_at_mut(self.experts * scratch.stride);
        for (at, delta) in deltas.chunks_mut(scratch.stride).enumerate() {
            each(level, at, &spread[..len], &mut delta[..len]);
        }
    }

    fn learn_threshold(&mut self, rank: u64) {
        if rank == 0 {
            self.cutoff.score = f64::INFINITY;
        } else if let Some(cut) = self.selection.cut() {
            let score = f64::from_bits(cut.threshold);
            let all_ties = cut.kept_ties == cut.ties;
            (self.cutoff.score, self.kept_ties) =
                if all_ties { (score.next_down(), 0) } else { (score, cut.kept_ties) };
        } else {
            return;
        }
        self.step = Step::Weigh;
    }

    /// Squares of all tiles; those of ties only up to the tile in which the kept ones end.
    fn learn_squares(&mut self, tiles: &[Vec<f64>]) {
        let mut left = self.kept_ties;
        self.step = Step::Done;
        for (tile, sums) in (0..).zip(tiles) {
            let ties = sums[2 * self.experts] as u64;
            let all_ties = ties <= left;
            for (at, square) in self.squares.iter_mut().enumerate() {
                *square += sums[2 * at] + if all_ties { sums[2 * at + 1] } else { 0.0 };
            }
            if left > 0 {
                self.cutoff.end_of_ties = (tile + 1) * TILE_ELEMENTS;
                if !all_ties {
                    self.step = Step::Divide { tile, ties: left };
                }
                left = left.saturating_sub(ties);
            }
        }
    }

    fn learn_weights(&mut self) {
        let scale = if self.mergekit { self.elements.max(1) as f64 } else { 1.0 };
        let all: f64 = self.squares.iter().sum::<f64>() / scale;
        let alike = if self.mergekit { all < MERGEKIT_TINY } else { all == 0.0 };
        let weigh = |s: &f64| if alike { 1.0 / self.experts as f64 } else { s / scale / all };
        self.weights = self.squares.iter().map(weigh).collect();
    }
}

impl Job for SceJob {
    fn wants_sample(&self) -> bool {
        self.step == Step::Select
    }

    fn sample(&mut self, chunk: &mut Chunk<'_>) {
        self.load(chunk, None);
        let spread = self.spread(chunk).to_vec();
        self.sample.extend(spread);
    }

    fn end_sample(&mut self, population: u64) {
        let sample = std::mem::take(&mut self.sample);
        let non_zero = sample.iter().filter(|s| **s != 0.0).count() as f64;
        let whole = sample.len() as u64 == population;
        let rank = self.rank(if whole {
            non_zero as u64
        } else {
            (non_zero / sample.len().max(1) as f64 * population as f64) as u64
        });
        self.selection.set_rank(rank.max(1));
        self.selection.propose(&sample, population);
        if whole {
            self.learn_threshold(rank);
        }
    }

    fn needs_scan(&self) -> bool {
        self.step != Step::Done
    }

    fn partial(&self) -> Partial {
        let (mut partial, counts) = match self.step {
            Step::Select => (Partial::with_tallies(vec![self.selection.tally()]), 1),
            Step::Weigh => (Partial::with_lanes(2 * self.experts + 1), 0),
            Step::Divide { .. } => (Partial::with_lanes(self.experts), 2),
            Step::Done => (Partial::default(), 0),
        };
        partial.counts = vec![0; counts];
        partial
    }

    fn scans_tile(&self, first: u64) -> bool {
        match self.step {
            Step::Divide { tile, .. } => first == tile * TILE_ELEMENTS,
            _ => true,
        }
    }

    fn scan(&self, chunk: &mut Chunk<'_>, partial: &mut Partial) {
        if let Step::Divide { tile, ties } = self.step {
            // A tensor of one tile, and the last chunks of any tile, come here for nothing.
            if chunk.first / TILE_ELEMENTS != tile || partial.counts[0] as u64 == ties {
                return;
            }
        }
        if self.experts == 2 && matches!(self.step, Step::Select | Step::Weigh) {
            return self.scan_two(chunk, partial);
        }
        self.load(chunk, None);
        let level = chunk.level;
        match self.step {
            Step::Select => {
                self.count(level, self.spread(chunk), partial);
            }
            Step::Weigh => {
                let score = self.cutoff.score;
                let ties = element::count_scores_at(level, self.spread(chunk), score);
                partial.lanes[2 * self.experts][0] += ties as f64;
                self.for_deltas(chunk, |level, at, spread, delta| {
                    if let [above, tied] = &mut partial.lanes[2 * at..2 * at + 2] {
                        element::add_scored_squares(level, spread, score, delta, above, tied);
                    }
                });
            }
            Step::Divide { ties, .. } => {
                let score = self.cutoff.score;
                let mut left = ties - partial.counts[0] as u64;
                let mut end = 0;
                for (at, s) in self.spread(chunk).iter().enumerate() {
                    if *s == score && left > 0 {
                        (left, end) = (left - 1, at + 1);
                    }
                }
                if left == 0 {
                    partial.counts[1] = (chunk.first + end as u64) as i64;
                }
                partial.counts[0] = (ties - left) as i64;
                let mut none = Lanes::default();
                self.for_deltas(chunk, |level, at, spread, delta| {
                    let lanes = &mut partial.lanes[at];
                    element::add_scored_squares(
                        level,
                        &spread[..end],
                        score,
                        &delta[..end],
                        &mut none,
                        lanes,
                    );
                });
            }
            Step::Done => {}
        }
    }

    fn learn(&mut self, mut partial: Partial, _tensor: &str) -> Result<()> {
        match self.step {
            Step::Select => {
                let rank = self.rank(partial.counts[0] as u64);
                // Without a rank any cut will do.
                self.selection.set_rank(rank.clamp(1, self.elements.max(1)));
                self.selection.learn(&mut partial.tallies[0]);
                self.learn_threshold(rank);
            }
            Step::Weigh => self.learn_squares(&partial.sums_by_tile()),
            Step::Divide { .. } => {
                self.cutoff.end_of_ties = partial.counts[1] as u64;
                for (square, more) in self.squares.iter_mut().zip(partial.sums()) {
                    *square += more;
                }
                self.step = Step::Done;
            }
            Step::Done => {}
        }
        if self.step == Step::Done {
            self.learn_weights();
        }
        Ok(())
    }

    fn apply(&self, chunk: &mut Chunk<'_>, _ties: &mut [Ties], squares: &mut [Lanes]) {
        self.load(chunk, Some(squares));
        let (score, ties) = (self.cutoff.score, self.with_ties(chunk));
        let least = if self.mergekit { MERGEKIT_LEAST } else { 0.0 };
        if let [x, y] = self.weights[..] {
            let (level, len, stride) = (chunk.level, chunk.len, chunk.scratch.stride);
            let scratch = &mut *chunk.scratch;
            let (first, rest) = scratch.deltas.split_at(stride);
            let (second, spread) = rest.split_at(stride);
            let mix = &mut scratch.out[..len];
            for (range, at_it) in [(0..ties, true), (ties..len, false)] {
                let election = Election { score, at_it, weights: [x, y], least };
                let [first, second, spread] = [first, second, spread].map(|v| &v[range.clone()]);
                let total = &scratch.total[range.clone()];
                pair::elect(level, first, second, total, spread, election, &mut mix[range]);
            }
            return chunk.values[0].add_change(level, 1.0, mix);
        }
        self.for_deltas(chunk, |level, _, spread, delta| {
            element::keep_scored(level, &spread[..ties], score, true, &mut delta[..ties]);
            element::keep_scored(level, &spread[ties..], score, false, &mut delta[ties..]);
        });
        let (level, len) = (chunk.level, chunk.len);
        let scratch = &mut *chunk.scratch;
        let (deltas, share) = scratch.deltas.split_at_mut(self.experts * scratch.stride);
        let (total, mix, share) = (&scratch.total[..len], &mut scratch.out[..len], &mut share[..len]);
        mix.fill(0.0);
        share.fill(0.0);
        for (delta, weight) in deltas.chunks(scratch.stride).zip(&self.weights) {
            element::add_agreeing(level, &delta[..len], total, *weight, mix, share);
        }
        element::divide_by_share(level, mix, share, least);
        element::show_non_finite(level, total, mix);
        chunk.values[0].add_change(level, 1.0, mix);
    }
}
