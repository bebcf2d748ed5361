//! Task-vector methods: base plus a combination of sparse deltas. [`super::mask`] makes them sparse.

use serde_json::{Map, Value, json};

use super::job::{Chunk, Job, Partial, Scope, Ties};
use super::mask::{CUTS, Mask};
use crate::error::Result;
use crate::kernel::changes::Together;
use crate::kernel::combine;
use crate::kernel::lanes::{self, Lanes};
use crate::plan::family::deltas::{Combine, DeltaExpert, Deltas, Rescale, ZeroSign};

/// Below this L1 norm mergekit does not rescale.
const MERGEKIT_TINY: f64 = 1e-7;

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
    /// Share of each expert in the divisor of an election or a stitch.
    shares: Vec<f64>,
    step: Step,
    sample: Vec<Vec<f64>>,
    zero_is_plus: bool,
    divisor: f64,
}

impl<'p> DeltasJob<'p> {
    /// For a tensor or the whole model.
    pub fn new(plan: &'p Deltas, scope: Scope<'_>) -> Self {
        let expert = |(at, e): (usize, &DeltaExpert)| {
            let mask = Mask::new(plan, at, e, scope);
            let factor = match plan.rescale {
                Rescale::InverseDensity => mask.inverse_density(e.density),
                _ => 1.0,
            };
            Expert { mask, weight: e.weight, factor }
        };
        let signed = plan.mergekit && plan.combine != Combine::Stitch;
        let sums = plan.combine == Combine::Sum;
        let mut job = Self {
            plan,
            experts: plan.experts.iter().enumerate().map(expert).collect(),
            shares: plan.experts.iter().map(|e| if signed { e.weight } else { e.weight.abs() }).collect(),
            step: Step::Select,
            sample: vec![Vec::new(); plan.experts.len()],
            zero_is_plus: plan.combine != Combine::Elect(ZeroSign::Minus),
            divisor: if sums && plan.normalize { plan.experts.iter().map(|e| e.weight).sum() } else { 1.0 },
        };
        job.step = job.step_after(None);
        job
    }

    /// Whether a threshold is still to be found.
    fn is_selecting(&self) -> bool {
        self.experts.iter().any(|e| e.mask.is_selecting())
    }

    /// The step after `done`, passing over those with nothing to learn.
    fn step_after(&self, done: Option<Step>) -> Step {
        let sparse = self.experts.iter().any(|e| !matches!(e.mask, Mask::Everything));
        let steps = [
            (Step::Select, self.is_selecting()),
            (Step::Norms, sparse && matches!(self.plan.rescale, Rescale::L1 | Rescale::L2)),
            (Step::Vote, self.plan.combine == Combine::Elect(ZeroSign::Majority)),
            (Step::Done, true),
        ];
        let mut later = steps.iter().skip_while(|(step, _)| done.is_some_and(|d| *step <= d));
        later.find(|(_, needed)| *needed).map_or(Step::Done, |(step, _)| *step)
    }

    /// The sparse, weighed delta of expert `at` into its buffer; the squares of the whole delta into `squares`.
    fn sparse_delta(&self, chunk: &mut Chunk<'_>, at: usize, ties: &mut [Ties; CUTS], squares: &mut Lanes) {
        let expert = &self.experts[at];
        expert.mask.apply(chunk, at, expert.weight * expert.factor, ties, squares);
    }

    /// All sparse, weighed deltas into their buffers.
    fn sparse_deltas(&self, chunk: &mut Chunk<'_>, ties: &mut [Ties], squares: &mut [Lanes]) {
        let (ties, _) = ties.as_chunks_mut::<CUTS>();
        for (at, squares) in squares[1..].iter_mut().enumerate().take(self.experts.len()) {
            let all = &mut [Ties::All; CUTS];
            self.sparse_delta(chunk, at, ties.get_mut(at).unwrap_or(all), squares);
        }
    }

    /// The merged delta, before its factor `lambda`, into `out`.
    pub fn change(&self, chunk: &mut Chunk<'_>, ties: &mut [Ties], squares: &mut [Lanes]) {
        self.sparse_deltas(chunk, ties, squares);
        match self.plan.combine {
            Combine::Elect(_) => self.elect(chunk),
            Combine::Stitch => self.stitch(chunk),
            Combine::Sum => {
                self.add_up(chunk);
                let (scratch, len) = (&mut *chunk.scratch, chunk.len);
                let out = &mut scratch.out[..len];
                out.copy_from_slice(&scratch.total[..len]);
                if self.divisor != 1.0 {
                    combine::divide_by(chunk.level, out, self.divisor);
                }
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

    /// The base plus the sum of two whole deltas in one step, into `out`. Gives whether it did.
    fn add_two(&self, chunk: &mut Chunk<'_>, squares: &mut [Lanes]) -> bool {
        let ([one, two], [_, first, second, ..]) = (&self.experts[..], squares) else { return false };
        if !matches!((&one.mask, &two.mask), (Mask::Everything, Mask::Everything)) || self.divisor != 1.0 {
            return false;
        }
        chunk.values[0].add_two_deltas(
            chunk.level,
            [&chunk.values[1], &chunk.values[2]],
            [one.weight * one.factor, two.weight * two.factor],
            self.plan.lambda,
            &mut chunk.scratch.out[..chunk.len],
            [first, second],
        )
    }

    /// The base plus what two changes become, in one step, into `out`. Gives whether it did.
    fn add_two_changes(&self, chunk: &mut Chunk<'_>, ties: &[Ties], squares: &mut [Lanes]) -> bool {
        let (true, [one, two], [_, squares @ ..]) = (self.divisor == 1.0, &self.experts[..], squares) else {
            return false;
        };
        let (plan, Some(squares)) = (self.plan, squares.first_chunk_mut()) else { return false };
        let together = match plan.combine {
            Combine::Sum => Together::Sum,
            Combine::Elect(_) => Together::Elect {
                shares: [self.shares[0], self.shares[1]],
                zero_is_plus: self.zero_is_plus,
                normalize: plan.normalize,
            },
            Combine::Stitch => return false,
        };
        let all = [Ties::All; CUTS];
        let (ties, _) = ties.as_chunks::<CUTS>();
        let ties = |at: usize| ties.get(at).unwrap_or(&all);
        let (base, level, first, len) = (&chunk.values[0], chunk.level, chunk.first, chunk.len);
        let of = |at: usize| self.experts[at].mask.stay(level, first, len, ties(at));
        let stay = || Some([of(0)?, of(1)?]);
        let experts = [&chunk.values[1], &chunk.values[2]];
        let weights = [one.weight * one.factor, two.weight * two.factor];
        base.add_two_changes(
            level,
            experts,
            stay,
            weights,
            together,
            plan.lambda,
            &mut chunk.scratch.out[..len],
            squares,
        )
    }

    /// Where experts overlap, the mean of what they keep, into `out`.
    fn stitch(&self, chunk: &mut Chunk<'_>) {
        let (level, len) = (chunk.level, chunk.len);
        let scratch = &mut *chunk.scratch;
        let (out, divisor) = (&mut scratch.out[..len], &mut scratch.total[..len]);
        out.fill(0.0);
        divisor.fill(0.0);
        for (values, share) in scratch.deltas.chunks(scratch.stride).zip(&self.shares) {
            combine::add_covering(level, &values[..len], *share, out, divisor);
        }
        combine::divide_covered(level, out, divisor);
    }

    /// The disjoint merge of the experts' buffers into `out`.
    fn elect(&self, chunk: &mut Chunk<'_>) {
        let scratch = &mut *chunk.scratch;
        let (values, normalize) = ((&scratch.deltas[..], scratch.stride), self.plan.normalize);
        let out = &mut scratch.out[..chunk.len];
        combine::merge_disjoint(chunk.level, values, &self.shares, self.zero_is_plus, normalize, out);
    }

    /// The base plus λ times what is in `out`.
    fn add_change(&self, chunk: &mut Chunk<'_>) {
        chunk.values[0].add_change(chunk.level, self.plan.lambda, &mut chunk.scratch.out[..chunk.len]);
    }

    /// Adds the norm of expert `at`'s delta, and of what is kept of it, to two sums.
    fn add_norms(&self, chunk: &mut Chunk<'_>, at: usize, sums: &mut [Lanes]) {
        let squares = self.plan.rescale == Rescale::L2;
        let add = if squares { lanes::add_squares_wide } else { lanes::add_magnitudes };
        let (base, values) = (&chunk.values[0], &chunk.values[at + 1]);
        let (level, len) = (chunk.level, chunk.len);
        values.delta(level, base, chunk.scratch.delta(at, len));
        add(level, chunk.scratch.delta(at, len), &mut sums[0]);
        self.experts[at].mask.apply(chunk, at, 1.0, &mut [Ties::None, Ties::All], &mut Lanes::default());
        add(level, chunk.scratch.delta(at, len), &mut sums[1]);
    }

    fn learn_norms(&mut self, sums: &[f64]) {
        let squares = self.plan.rescale == Rescale::L2;
        for (expert, pair) in self.experts.iter_mut().zip(sums.chunks_exact(2)) {
            // The scan summed what lies within the cuts; what is kept at them all has their magnitudes.
            let (before, kept) = (pair[0], pair[1] + expert.mask.kept_at_cuts(squares));
            let (before, kept) = if squares { (before.sqrt(), kept.sqrt()) } else { (before, kept) };
            let tiny = if self.plan.mergekit { MERGEKIT_TINY } else { 0.0 };
            let usable = before > tiny && kept > tiny && before.is_finite() && kept.is_finite();
            expert.factor = if usable { before / kept } else { 1.0 };
        }
    }
}

impl Job for DeltasJob<'_> {
    fn wants_sample(&self) -> bool {
        self.step == Step::Select
    }

    fn sample(&mut self, chunk: &mut Chunk<'_>) {
        for (at, expert) in self.experts.iter().enumerate() {
            if expert.mask.is_selecting() {
                let (base, values) = (&chunk.values[0], &chunk.values[at + 1]);
                let delta = chunk.scratch.delta(at, chunk.len);
                values.delta(chunk.level, base, delta);
                self.sample[at].extend_from_slice(delta);
            }
        }
    }

    fn end_sample(&mut self, population: u64) {
        for (expert, sample) in self.experts.iter_mut().zip(&mut self.sample) {
            expert.mask.propose(sample, population);
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
                Partial::with_tallies(self.experts.iter().flat_map(|e| e.mask.tallies()).collect())
            }
            Step::Norms => Partial::with_lanes(2 * self.experts.len()),
            Step::Vote => Partial::with_counts(1),
            Step::Done => Partial::default(),
        }
    }

    fn looks_at_deltas(&self) -> bool {
        true
    }

    fn sieves(&self) -> usize {
        let sieves = self.step == Step::Select && self.experts.iter().all(|e| e.mask.sieves());
        if sieves { self.experts.len() } else { 0 }
    }

    fn scan(&self, chunk: &mut Chunk<'_>, partial: &mut Partial) {
        for at in 0..self.experts.len() {
            match self.step {
                Step::Select => {
                    let (base, values) = (&chunk.values[0], &chunk.values[at + 1]);
                    let tallies = &mut partial.tallies[CUTS * at..CUTS * (at + 1)];
                    let sieve = chunk.scratch.sieves.get_mut(at);
                    self.experts[at].mask.count(chunk.level, values, base, tallies, sieve);
                }
                Step::Norms => self.add_norms(chunk, at, &mut partial.lanes[2 * at..2 * at + 2]),
                Step::Vote => {
                    // What is at a cut votes, whether it is kept or not: which of it is kept is not known yet.
                    self.sparse_delta(chunk, at, &mut [Ties::All, Ties::None], &mut Lanes::default());
                }
                Step::Done => {}
            }
        }
        if self.step == Step::Vote {
            self.add_up(chunk);
            partial.counts[0] += combine::sum_of_signs(chunk.level, &chunk.scratch.total[..chunk.len]);
        }
    }

    fn learn(&mut self, mut partial: Partial, _tensor: &str) -> Result<()> {
        match self.step {
            Step::Select => {
                let tallies = partial.tallies.chunks_mut(CUTS);
                for (expert, tallies) in self.experts.iter_mut().zip(tallies) {
                    expert.mask.learn(tallies);
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

    fn learnt(&self) -> Map<String, Value> {
        let each = |number: &dyn Fn(&Expert) -> Value| self.experts.iter().map(number).collect::<Vec<_>>();
        let mut learnt = Map::new();
        learnt.insert("thresholds".into(), each(&|e| json!(e.mask.thresholds())).into());
        if matches!(self.plan.rescale, Rescale::L1 | Rescale::L2) {
            learnt.insert("rescale".into(), each(&|e| json!(e.factor)).into());
        }
        if self.plan.combine == Combine::Elect(ZeroSign::Majority) {
            learnt.insert("zero_sign".into(), if self.zero_is_plus { "plus" } else { "minus" }.into());
        }
        learnt
    }

    fn ordered_ties(&self) -> usize {
        let any = self.experts.iter().any(|e| e.mask.split_ties().iter().any(Option::is_some));
        if any { CUTS * self.experts.len() } else { 0 }
    }

    fn count_ties(&self, chunk: &mut Chunk<'_>, counts: &mut [u64]) {
        for ((expert, values), counts) in
            self.experts.iter().zip(&chunk.values[1..]).zip(counts.chunks_mut(CUTS))
        {
            for (cut, count) in expert.mask.split_ties().into_iter().zip(counts) {
                if let Some(cut) = cut {
                    *count += values.count_deltas_at(chunk.level, &chunk.values[0], cut.threshold);
                }
            }
        }
    }

    fn share_ties(&self, before: &[u64], counts: &[u64]) -> Vec<Ties> {
        let cuts = self.experts.iter().flat_map(|e| e.mask.split_ties());
        cuts.zip(before.iter().zip(counts))
            .map(|(cut, (before, count))| match cut {
                None => Ties::All,
                Some(cut) => match cut.kept_ties.saturating_sub(*before) {
                    0 => Ties::None,
                    left if left >= *count => Ties::All,
                    left => Ties::First(left),
                },
            })
            .collect()
    }

    fn apply(&self, chunk: &mut Chunk<'_>, ties: &mut [Ties], squares: &mut [Lanes]) {
        if self.plan.combine == Combine::Sum && self.add_two(chunk, squares)
            || self.add_two_changes(chunk, ties, squares)
        {
            return;
        }
        self.sparse_deltas(chunk, ties, squares);
        match self.plan.combine {
            Combine::Sum => self.add_to_base(chunk),
            Combine::Stitch => {
                self.stitch(chunk);
                self.add_change(chunk);
            }
            Combine::Elect(_) => {
                self.elect(chunk);
                self.add_change(chunk);
            }
        }
    }
}
