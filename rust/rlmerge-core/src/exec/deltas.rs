//! Task-vector methods: base plus a combination of deltas, each made sparse by magnitude or at random,
//! with or without an election of signs.

use super::job::{Chunk, Job, Partial, Scope, Ties};
use crate::error::Result;
use crate::kernel::combine;
use crate::kernel::lanes::{self, Lanes};
use crate::kernel::rng::{self, Stream};
use crate::kernel::select::{Cut, Selection, Tally};
use crate::plan::family::deltas::{DeltaExpert, Deltas, Rescale, Sparsify, ZeroSign};

/// Below this L1 norm mergekit does not rescale.
const MERGEKIT_TINY: f64 = 1e-7;

/// How one expert's delta is made sparse.
enum Mask {
    Everything,
    Largest(Box<Selection>),
    Random(Stream, u64),
}

struct Expert {
    mask: Mask,
    weight: f64,
    /// Rescaling of the kept elements.
    factor: f64,
}

/// What is learnt next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Select,
    Norms,
    Vote,
    Done,
}

/// A task-vector method at work on a scope.
pub struct DeltasJob<'p> {
    plan: &'p Deltas,
    experts: Vec<Expert>,
    /// Share of each expert in the divisor of an election.
    shares: Vec<f64>,
    step: Step,
    sample: Vec<Vec<f64>>,
    zero_is_plus: bool,
    divisor: f64,
}

impl<'p> DeltasJob<'p> {
    /// For a tensor or the whole model.
    pub fn new(plan: &'p Deltas, scope: Scope<'_>) -> Self {
        let expert = |(at, e): (usize, &DeltaExpert)| Expert {
            mask: mask(plan, at, e, scope),
            weight: e.weight,
            factor: match plan.rescale {
                Rescale::InverseDensity if e.density < 1.0 => 1.0 / e.density,
                _ => 1.0,
            },
        };
        let mut job = Self {
            plan,
            experts: plan.experts.iter().enumerate().map(expert).collect(),
            shares: plan
                .experts
                .iter()
                .map(|e| if plan.mergekit { e.weight } else { e.weight.abs() })
                .collect(),
            step: Step::Select,
            sample: vec![Vec::new(); plan.experts.len()],
            zero_is_plus: plan.election != Some(ZeroSign::Minus),
            divisor: if plan.normalize { plan.experts.iter().map(|e| e.weight).sum() } else { 1.0 },
        };
        job.step = job.step_after(None);
        job
    }

    /// Whether a threshold is still to be found.
    fn is_selecting(&self) -> bool {
        self.experts.iter().any(|e| matches!(&e.mask, Mask::Largest(s) if s.cut().is_none()))
    }

    /// The step after `done`, passing over those with nothing to learn.
    fn step_after(&self, done: Option<Step>) -> Step {
        let sparse = self.experts.iter().any(|e| !matches!(e.mask, Mask::Everything));
        let steps = [
            (Step::Select, self.is_selecting()),
            (Step::Norms, sparse && matches!(self.plan.rescale, Rescale::L1 | Rescale::L2)),
            (Step::Vote, self.plan.election == Some(ZeroSign::Majority)),
            (Step::Done, true),
        ];
        let mut later = steps.iter().skip_while(|(step, _)| done.is_some_and(|d| *step <= d));
        later.find(|(_, needed)| *needed).map_or(Step::Done, |(step, _)| *step)
    }

    /// The delta of expert `at` into its buffer.
    fn delta(&self, chunk: &mut Chunk<'_>, at: usize) {
        let (base, expert) = (&chunk.values[0], &chunk.values[at + 1]);
        expert.delta(chunk.level, base, chunk.scratch.delta(at, chunk.len));
    }

    /// Drops what the mask of expert `at` drops.
    fn thin(&self, chunk: &mut Chunk<'_>, at: usize, ties: &mut Ties) {
        let values = chunk.scratch.delta(at, chunk.len);
        match &self.experts[at].mask {
            Mask::Everything => {}
            Mask::Random(stream, threshold) => {
                rng::keep_random(chunk.level, values, *stream, chunk.first, *threshold);
            }
            Mask::Largest(selection) => {
                let Some(cut) = selection.cut() else { return };
                match ties {
                    // Zeros stay zeros whether they are kept or not.
                    _ if cut.threshold == 0 => {}
                    Ties::All => combine::keep_large(chunk.level, values, cut.threshold, false),
                    Ties::None | Ties::First(0) => {
                        combine::keep_large(chunk.level, values, cut.threshold, true)
                    }
                    Ties::First(n) => combine::keep_large_and_first_ties(values, cut.threshold, n),
                }
            }
        }
    }

    /// Weight and rescaling in one factor.
    fn factor(&self, at: usize) -> f64 {
        self.experts[at].weight * self.experts[at].factor
    }

    /// The sparse, weighed delta of expert `at` into its buffer; the squares of the whole delta into `squares`.
    fn sparse_delta(&self, chunk: &mut Chunk<'_>, at: usize, ties: &mut Ties, squares: &mut Lanes) {
        let (base, expert) = (&chunk.values[0], &chunk.values[at + 1]);
        let (level, len) = (chunk.level, chunk.len);
        let out = chunk.scratch.delta(at, len);
        let cut = match &self.experts[at].mask {
            Mask::Largest(selection) => selection.cut(),
            Mask::Everything => None,
            Mask::Random(stream, threshold) => {
                let kept = rng::kept(level, *stream, chunk.first, len, *threshold);
                return expert.pick_delta(level, base, &kept, self.factor(at), out, squares);
            }
        };
        match (cut, &ties) {
            // The one tile in which a tie group ends goes element by element.
            (Some(cut), Ties::First(n)) if cut.threshold != 0 && *n > 0 => {
                expert.cut_delta(level, base, 0, false, 1.0, out, squares);
                self.thin(chunk, at, ties);
                combine::scale(level, chunk.scratch.delta(at, len), self.factor(at));
            }
            (Some(cut), _) => {
                let strict = cut.threshold != 0 && *ties != Ties::All;
                expert.cut_delta(level, base, cut.threshold, strict, self.factor(at), out, squares);
            }
            (None, _) => {
                expert.cut_delta(level, base, 0, false, self.factor(at), out, squares);
                self.thin(chunk, at, ties);
            }
        }
    }

    /// The sum of the experts' buffers into `total`.
    fn add_up(&self, chunk: &mut Chunk<'_>) {
        let (level, len) = (chunk.level, chunk.len);
        let scratch = &mut *chunk.scratch;
        let total = &mut scratch.total[..len];
        for (at, values) in scratch.deltas.chunks(scratch.stride).take(self.experts.len()).enumerate() {
            if at == 0 {
                total.copy_from_slice(&values[..len])
            } else {
                combine::add(level, &values[..len], total)
            }
        }
    }

    /// The merged delta, before its factor `lambda`, into `out`.
    pub fn change(&self, chunk: &mut Chunk<'_>, ties: &mut [Ties], squares: &mut [Lanes]) {
        let (level, len) = (chunk.level, chunk.len);
        for (at, squares) in squares[1..].iter_mut().enumerate().take(self.experts.len()) {
            self.sparse_delta(chunk, at, ties.get_mut(at).unwrap_or(&mut Ties::All), squares);
        }
        if self.plan.election.is_some() {
            self.elect(chunk);
            return;
        }
        self.add_up(chunk);
        let out = &mut chunk.scratch.out[..len];
        out.copy_from_slice(&chunk.scratch.total[..len]);
        if self.divisor != 1.0 {
            combine::divide_by(level, out, self.divisor);
        }
    }

    /// The disjoint merge of the experts' buffers into `out`.
    fn elect(&self, chunk: &mut Chunk<'_>) {
        let scratch = &mut *chunk.scratch;
        let (values, normalize) = ((&scratch.deltas[..], scratch.stride), self.plan.normalize);
        let out = &mut scratch.out[..chunk.len];
        combine::merge_disjoint(chunk.level, values, &self.shares, self.zero_is_plus, normalize, out);
    }

    /// The base plus the sum of the experts' buffers, added in their order, into `out`.
    fn add_to_base(&self, chunk: &mut Chunk<'_>) {
        let (level, len) = (chunk.level, chunk.len);
        let (base, scratch) = (&chunk.values[0], &mut *chunk.scratch);
        let (sum, others) = scratch.deltas.split_at_mut(scratch.stride);
        let (sum, out) = (&mut sum[..len], &mut scratch.out[..len]);
        let mut others =
            others.chunks(scratch.stride).take(self.experts.len() - 1).map(|values| &values[..len]);
        let Some(last) = others.next_back() else {
            if self.divisor != 1.0 {
                combine::divide_by(level, sum, self.divisor);
            }
            out.copy_from_slice(sum);
            return base.add_change(level, self.plan.lambda, out);
        };
        for values in others {
            combine::add(level, values, sum);
        }
        base.add_changes(level, sum, last, self.divisor, self.plan.lambda, out);
    }

    /// The cut of expert `at` if only some of its ties are kept.
    fn split_ties(&self, at: usize) -> Option<Cut> {
        match &self.experts[at].mask {
            Mask::Largest(s) => {
                s.cut().filter(|c| !self.plan.keep_all_ties && c.threshold != 0 && c.kept_ties < c.ties)
            }
            _ => None,
        }
    }

    fn learn_norms(&mut self, sums: &[f64]) {
        let squares = self.plan.rescale == Rescale::L2;
        for (expert, pair) in self.experts.iter_mut().zip(sums.chunks_exact(2)) {
            let (before, mut kept) = (pair[0], pair[1]);
            if let Mask::Largest(selection) = &expert.mask
                && let Some(cut) = selection.cut()
            {
                // The scan summed what lies above the threshold; the kept ties all have its magnitude.
                let ties = if self.plan.keep_all_ties { cut.ties } else { cut.kept_ties };
                let tie = f64::from_bits(cut.threshold);
                kept += ties as f64 * if squares { tie * tie } else { tie };
            }
            let (before, kept) = if squares { (before.sqrt(), kept.sqrt()) } else { (before, kept) };
            let tiny = if self.plan.mergekit { MERGEKIT_TINY } else { 0.0 };
            let usable = before > tiny && kept > tiny && before.is_finite() && kept.is_finite();
            expert.factor = if usable { before / kept } else { 1.0 };
        }
    }
}

fn mask(plan: &Deltas, at: usize, expert: &DeltaExpert, scope: Scope<'_>) -> Mask {
    if expert.density >= 1.0 || scope.elements == 0 {
        return Mask::Everything;
    }
    match plan.sparsify {
        Sparsify::Nothing => Mask::Everything,
        Sparsify::Random => {
            Mask::Random(Stream::new(plan.seed, at as u32, scope.name()), rng::threshold(expert.density))
        }
        Sparsify::Magnitude => {
            let share = expert.density * scope.elements as f64;
            let rank = if plan.mergekit { share.floor() } else { (share + 0.5).floor() } as u64;
            Mask::Largest(Box::new(Selection::new(rank.clamp(1, scope.elements), scope.bins, scope.wide)))
        }
    }
}

impl Job for DeltasJob<'_> {
    fn wants_sample(&self) -> bool {
        self.step == Step::Select
    }

    fn sample(&mut self, chunk: &mut Chunk<'_>) {
        for at in 0..self.experts.len() {
            if matches!(self.experts[at].mask, Mask::Largest(_)) {
                self.delta(chunk, at);
                let delta = chunk.scratch.delta(at, chunk.len);
                self.sample[at].extend_from_slice(delta);
            }
        }
    }

    fn end_sample(&mut self, population: u64) {
        for (expert, sample) in self.experts.iter_mut().zip(&mut self.sample) {
            if let Mask::Largest(selection) = &mut expert.mask {
                selection.propose(sample, population);
            }
            *sample = Vec::new();
        }
        self.step = self.step_after(None);
    }

    fn needs_scan(&self) -> bool {
        self.step != Step::Done
    }

    fn partial(&self) -> Partial {
        match self.step {
            Step::Select => {
                let tally = |e: &Expert| match &e.mask {
                    Mask::Largest(s) if s.cut().is_none() => s.tally(),
                    _ => Tally::default(),
                };
                Partial::with_tallies(self.experts.iter().map(tally).collect())
            }
            Step::Norms => Partial::with_lanes(2 * self.experts.len()),
            Step::Vote => Partial::with_counts(1),
            Step::Done => Partial::default(),
        }
    }

    fn scan(&self, chunk: &mut Chunk<'_>, partial: &mut Partial) {
        for at in 0..self.experts.len() {
            match self.step {
                Step::Select => {
                    if let Mask::Largest(selection) = &self.experts[at].mask
                        && selection.cut().is_none()
                    {
                        let (base, expert) = (&chunk.values[0], &chunk.values[at + 1]);
                        selection.count(chunk.level, expert, base, &mut partial.tallies[at]);
                    }
                }
                Step::Norms => {
                    let add = if self.plan.rescale == Rescale::L2 {
                        lanes::add_squares_wide
                    } else {
                        lanes::add_magnitudes
                    };
                    self.delta(chunk, at);
                    add(chunk.level, chunk.scratch.delta(at, chunk.len), &mut partial.lanes[2 * at]);
                    self.thin(chunk, at, &mut Ties::None);
                    add(chunk.level, chunk.scratch.delta(at, chunk.len), &mut partial.lanes[2 * at + 1]);
                }
                Step::Vote => {
                    self.sparse_delta(chunk, at, &mut Ties::All, &mut Lanes::default());
                }
                Step::Done => {}
            }
        }
        if self.step == Step::Vote {
            self.add_up(chunk);
            partial.counts[0] += combine::sum_of_signs(chunk.level, &chunk.scratch.total[..chunk.len]);
        }
    }

    fn learn(&mut self, partial: Partial, _tensor: &str) -> Result<()> {
        match self.step {
            Step::Select => {
                for (expert, tally) in self.experts.iter_mut().zip(&partial.tallies) {
                    if let Mask::Largest(selection) = &mut expert.mask
                        && selection.cut().is_none()
                    {
                        selection.learn(tally);
                    }
                }
            }
            Step::Norms => self.learn_norms(&partial.sums()),
            Step::Vote => self.zero_is_plus = partial.counts[0] >= 0,
            Step::Done => {}
        }
        if !(self.step == Step::Select && self.is_selecting()) {
            self.step = self.step_after(Some(self.step));
        }
        Ok(())
    }

    fn ordered_ties(&self) -> usize {
        let any = (0..self.experts.len()).any(|at| self.split_ties(at).is_some());
        if any { self.experts.len() } else { 0 }
    }

    fn count_ties(&self, chunk: &mut Chunk<'_>, counts: &mut [u64]) {
        for (at, count) in counts.iter_mut().enumerate() {
            if let Some(cut) = self.split_ties(at) {
                *count += chunk.values[at + 1].count_deltas_at(chunk.level, &chunk.values[0], cut.threshold);
            }
        }
    }

    fn share_ties(&self, before: &[u64], counts: &[u64]) -> Vec<Ties> {
        (0..self.experts.len())
            .map(|at| match self.split_ties(at) {
                None => Ties::All,
                Some(cut) => match cut.kept_ties.saturating_sub(before[at]) {
                    0 => Ties::None,
                    left if left >= counts[at] => Ties::All,
                    left => Ties::First(left),
                },
            })
            .collect()
    }

    fn apply(&self, chunk: &mut Chunk<'_>, ties: &mut [Ties], squares: &mut [Lanes]) {
        let (level, len) = (chunk.level, chunk.len);
        for (at, squares) in squares[1..].iter_mut().enumerate().take(self.experts.len()) {
            self.sparse_delta(chunk, at, ties.get_mut(at).unwrap_or(&mut Ties::All), squares);
        }
        if self.plan.election.is_some() {
            self.elect(chunk);
            chunk.values[0].add_change(level, self.plan.lambda, &mut chunk.scratch.out[..len]);
        } else {
            self.add_to_base(chunk);
        }
    }
}
