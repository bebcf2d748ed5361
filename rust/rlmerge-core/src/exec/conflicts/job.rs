//! The scans of one tensor.

use super::cuts::{Cut, Keys, rank};
use super::guess::{Guess, Known, Sample};
use super::{SurveySettings, guess};
use crate::dtype::DType;
use crate::error::Result;
use crate::exec::counters::Counters;
use crate::exec::job::{Chunk, Job, Partial, Scratch, Ties};
use crate::kernel::lanes::Lanes;
use crate::kernel::stats::{self, BINS, Found, Thresholds, Trio, Width};
use crate::kernel::values::Values;
use crate::plan::PlannedTensor;
use crate::report::conflicts::{Sums, TOP, pairs};

/// What is still to be gathered of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Everything, by a guess where thresholds lie.
    AtOnce,
    Everything,
    BeyondThresholds,
    Done,
}

/// The scans of one tensor.
pub struct SurveyJob {
    settings: SurveySettings,
    elements: u64,
    /// Whether the arithmetic is f64.
    wide: bool,
    pairs: Vec<(usize, usize)>,
    /// Whether a sample is of use.
    helps: bool,
    /// Whether all models store bf16, and nothing is added to it.
    is_bf16: bool,
    guess: Option<Guess>,
    step: Step,
    sums: Sums,
    /// Of each expert, for each share of [`TOP`] and the density.
    cuts: Vec<[Cut; 3]>,
    /// Base weights under it are the smallest.
    below: f64,
    peaks: Vec<Option<(f64, u64)>>,
    keys: Vec<Keys>,
}

/// Sums of each expert, and of each pair, in the first scan.
const EXPERT_LANES: usize = 3;
const PAIR_LANES: usize = 9;
/// Counts of each expert, and of each pair, in the first scan.
const EXPERT_COUNTS: usize = 6;
const PAIR_COUNTS: usize = 2;
/// The same in the second scan.
const EXPERT_LANES_2: usize = 4;
const EXPERT_COUNTS_2: usize = 3;
/// Sums of a scan of two experts at once that need no threshold.
const AT_ONCE_LANES: usize = 1 + 2 * EXPERT_LANES + PAIR_LANES;

/// Some of the experts; all that no bit is left for are always among them.
#[derive(Default)]
struct Experts(u128);

impl Experts {
    fn add(&mut self, at: usize) {
        self.0 |= 1u128.checked_shl(at as u32).unwrap_or(0);
    }

    fn has(&self, at: usize) -> bool {
        at >= 128 || self.0 >> at & 1 == 1
    }
}

impl SurveyJob {
    /// Of a tensor, in which none has begun.
    pub fn new(settings: SurveySettings, experts: usize, tensor: &PlannedTensor) -> Self {
        Self {
            settings,
            elements: tensor.elements,
            wide: tensor.wide,
            pairs: pairs(experts).collect(),
            helps: guess::helps(experts, tensor),
            is_bf16: tensor.sources.iter().all(|s| s.dtype == DType::BF16 && !s.is_changed()),
            guess: None,
            step: Step::Everything,
            sums: Sums { tensors: 1, elements: tensor.elements, ..Sums::new(experts) },
            cuts: Vec::new(),
            below: 0.0,
            peaks: Vec::new(),
            keys: Vec::new(),
        }
    }

    fn experts(&self) -> usize {
        self.sums.experts.len()
    }

    /// Whether a sample would spare a scan.
    pub fn wants_sample(&self) -> bool {
        self.helps && self.step == Step::Everything
    }

    /// Takes a sample.
    pub fn take_sample(&mut self, sample: Sample) {
        self.guess = Guess::of(sample, self.elements, &self.settings);
        if self.guess.is_some() {
            self.step = Step::AtOnce;
        }
    }

    /// Whether no more than one scan is left.
    pub fn is_one_scan(&self) -> bool {
        self.step != Step::Everything
    }

    /// Whether the next scan goes by a sample.
    pub fn is_by_sample(&self) -> bool {
        self.step == Step::AtOnce
    }

    /// The keys of each expert's deltas.
    pub fn keys(&self) -> &[Keys] {
        &self.keys
    }

    /// What was gathered, and the largest deltas.
    pub fn into_sums(self) -> (Sums, Vec<Option<(f64, u64)>>) {
        (self.sums, self.peaks)
    }

    fn gather<T: Width>(&self, chunk: &mut Chunk<'_>, partial: &mut Partial) {
        let (level, len, experts) = (chunk.level, chunk.len, self.experts());
        let Scratch { stride, deltas, narrow, total, .. } = &mut *chunk.scratch;
        let (stride, deltas) = (*stride, T::buffer(narrow, deltas));
        deltas.resize((experts * stride).max(deltas.len()), T::default());
        let (base, epsilon) = (&chunk.values[0], self.settings.epsilon);
        let thresholds = Thresholds { epsilon, relative: self.settings.relative };
        let Partial { counts, lanes, keys, peaks, .. } = partial;
        let mut keys = keys.room_for(len as u64);
        let (base_lanes, lanes) = lanes.split_at_mut(1);
        base.add_squares(level, &mut base_lanes[0]);
        if let Some((waiting, table)) = keys.next() {
            T::count_keys(level, T::of(base.numbers()), waiting, table);
        }
        // Experts of which this chunk holds a change; zeros need not be added.
        let mut moved = Experts::default();
        for (at, (waiting, table)) in keys.enumerate() {
            let delta = &mut deltas[at * stride..at * stride + len];
            let sums = &mut lanes[EXPERT_LANES * at..][..EXPERT_LANES];
            let found = chunk.values[at + 1].changes(level, base, thresholds, delta, sums);
            let numbers = [found.different, found.absolute, found.relative, found.visible, found.non_finite];
            for (count, number) in counts[EXPERT_COUNTS * at..].iter_mut().zip(numbers) {
                *count += number as i64;
            }
            if found.different == 0 {
                continue;
            }
            moved.add(at);
            T::count_keys(level, delta, waiting, table);
            if found.peak > peaks[at].map_or(0.0, |(delta, _)| delta.abs())
                && let Some(i) = delta.iter().position(|d| Into::<f64>::into(d.size()) == found.peak)
            {
                peaks[at] = Some((delta[i].into(), chunk.first + i as u64));
            }
        }
        let delta = |at: usize| &deltas[at * stride..at * stride + len];
        let pair_lanes = lanes[EXPERT_LANES * experts..].chunks_mut(PAIR_LANES);
        let pair_counts = counts[EXPERT_COUNTS * experts..].chunks_mut(PAIR_COUNTS);
        for ((&(a, b), lanes), counts) in self.pairs.iter().zip(pair_lanes).zip(pair_counts) {
            if moved.has(a) && moved.has(b) {
                let (both, opposed) = T::add_pair(level, delta(a), delta(b), epsilon, lanes);
                counts[0] += both as i64;
                counts[1] += opposed as i64;
            }
        }
        // With two experts, what is shared is what both changed.
        if experts > 2 {
            let owners = &mut total[..len];
            owners.fill(0.0);
            for at in (0..experts).filter(|at| moved.has(*at)) {
                T::add_owners(level, delta(at), epsilon, owners);
            }
            for at in (0..experts).filter(|at| moved.has(*at)) {
                counts[EXPERT_COUNTS * at + 5] += T::count_shared(level, delta(at), epsilon, owners) as i64;
            }
        }
    }

    fn gather_beyond<T: Width>(&self, chunk: &mut Chunk<'_>, partial: &mut Partial) {
        let (level, len, experts) = (chunk.level, chunk.len, self.experts());
        let Scratch { stride, deltas, narrow, total, .. } = &mut *chunk.scratch;
        let (stride, deltas) = (*stride, T::buffer(narrow, deltas));
        deltas.resize((experts * stride).max(deltas.len()), T::default());
        let (base, epsilon) = (&chunk.values[0], self.settings.epsilon);
        let (counts, lanes) = (&mut partial.counts, &mut partial.lanes);
        if let [a, b] = &self.cuts[..] {
            let mut low = [0; 2];
            for (at, low) in low.iter_mut().enumerate() {
                let delta = &mut deltas[at * stride..at * stride + len];
                chunk.values[at + 1].deltas(level, base, delta);
                *low = T::count_low(level, delta, T::of(base.numbers()), epsilon, self.below);
            }
            let both = [&deltas[..len], &deltas[stride..stride + len]];
            let found = T::find_beyond(level, both, [a.map(Cut::edge), b.map(Cut::edge)], total, lanes);
            add_found(&found, low, counts);
            return;
        }
        let total = &mut total[..len];
        total.fill(0.0);
        let mut moved = Experts::default();
        for at in 0..experts {
            let delta = &mut deltas[at * stride..at * stride + len];
            // Where an expert has no size it has nothing large, and nothing changed.
            if chunk.values[at + 1].deltas(level, base, delta) == 0.0 {
                continue;
            }
            moved.add(at);
            let least = self.cuts[at].map(Cut::edge);
            T::add_largest(level, delta, least, &mut lanes[EXPERT_LANES_2 * at..][..3], total);
            counts[EXPERT_COUNTS_2 * at + 2] +=
                T::count_low(level, delta, T::of(base.numbers()), epsilon, self.below) as i64;
        }
        let delta = |at: usize| &deltas[at * stride..at * stride + len];
        for at in (0..experts).filter(|at| moved.has(*at)) {
            let sums = &mut lanes[EXPERT_LANES_2 * at + 3];
            let (kept, lost) = T::count_lost(level, delta(at), self.cuts[at][2].edge(), total, sums);
            counts[EXPERT_COUNTS_2 * at] += kept as i64;
            counts[EXPERT_COUNTS_2 * at + 1] += lost as i64;
        }
        let counts = counts[EXPERT_COUNTS_2 * experts..].chunks_mut(PAIR_COUNTS);
        for (&(a, b), counts) in self.pairs.iter().zip(counts) {
            if moved.has(a) && moved.has(b) {
                let least = [self.cuts[a][2].edge(), self.cuts[b][2].edge()];
                let (both, opposed) = T::count_opposed(level, delta(a), delta(b), least);
                counts[0] += both as i64;
                counts[1] += opposed as i64;
            }
        }
    }

    /// Takes over the sums and counts that need no threshold.
    fn take_sums(&mut self, sums: &[f64], counts: &[i64], peaks: Vec<Option<(f64, u64)>>) {
        let experts = self.experts();
        self.peaks = peaks;
        self.sums.base_square = sums[0];
        for (at, e) in self.sums.experts.iter_mut().enumerate() {
            let sums = &sums[1 + EXPERT_LANES * at..][..EXPERT_LANES];
            (e.square, e.fourth, e.changed_square) = (sums[0], sums[1], sums[2]);
            let counts = &counts[EXPERT_COUNTS * at..][..EXPERT_COUNTS];
            e.different = counts[0] as u64;
            e.changed = counts[1] as u64;
            e.changed_relative = counts[2] as u64;
            e.changed_bf16 = counts[3] as u64;
            e.non_finite = counts[4] as u64;
            e.shared = counts[5] as u64;
            e.max = self.peaks[at].map_or(0.0, |(delta, _)| delta.abs());
        }
        for (at, p) in self.sums.pairs.iter_mut().enumerate() {
            let sums = &sums[1 + EXPERT_LANES * experts + PAIR_LANES * at..][..PAIR_LANES];
            (p.dot, p.negative, p.square, p.negative_square) = (sums[0], sums[1], sums[2], sums[3]);
            (p.overlap_dot, p.overlap_a, p.overlap_b) = (sums[4], sums[5], sums[6]);
            (p.a_on_b, p.b_on_a) = (sums[7], sums[8]);
            let counts = &counts[EXPERT_COUNTS * experts + PAIR_COUNTS * at..];
            (p.both, p.opposed) = (counts[0] as u64, counts[1] as u64);
        }
        if let (2, [pair]) = (experts, &self.sums.pairs[..]) {
            let both = pair.both;
            self.sums.experts.iter_mut().for_each(|e| e.shared = both);
        }
    }

    /// Finds the thresholds of the experts.
    fn take_keys(&mut self, keys: Vec<Keys>) {
        for (keys, e) in keys.iter().zip(&mut self.sums.experts) {
            // A bin of the report is a power of two.
            e.histogram = vec![0; BINS];
            for (key, count) in keys.each() {
                e.histogram[key >> stats::FRACTION] += count;
            }
        }
        let ranks = self.ranks();
        self.cuts = keys.iter().map(|keys| ranks.map(|rank| Cut::of(keys, rank))).collect();
        self.keys = keys;
    }

    /// Takes over what is beyond thresholds.
    fn take_beyond(&mut self, sums: &[f64], counts: &[i64]) {
        let experts = self.experts();
        for (at, e) in self.sums.experts.iter_mut().enumerate() {
            let sums = &sums[EXPERT_LANES_2 * at..][..EXPERT_LANES_2];
            let [first, second, _] = self.cuts[at];
            e.top = [first.trimmed(sums[0]), second.trimmed(sums[1])];
            (e.kept_square, e.lost_square) = (sums[2], sums[3]);
            let counts = &counts[EXPERT_COUNTS_2 * at..][..EXPERT_COUNTS_2];
            (e.kept, e.lost, e.changed_low) = (counts[0] as u64, counts[1] as u64, counts[2] as u64);
        }
        for (at, p) in self.sums.pairs.iter_mut().enumerate() {
            let counts = &counts[EXPERT_COUNTS_2 * experts + PAIR_COUNTS * at..];
            (p.top_both, p.top_opposed) = (counts[0] as u64, counts[1] as u64);
        }
    }

    fn learn_everything(&mut self, mut partial: Partial) {
        let (counts, peaks) = (std::mem::take(&mut partial.counts), std::mem::take(&mut partial.peaks));
        let mut keys = self.keys_of(&mut partial);
        self.take_sums(&partial.sums(), &counts, peaks);
        self.below = self.smallest(&keys.remove(0));
        self.take_keys(keys);
        // Where nothing was changed, nothing is beyond a threshold.
        let changed = self.sums.experts.iter().any(|e| e.different > 0);
        self.step = if changed { Step::BeyondThresholds } else { Step::Done };
    }

    /// The keys of each table.
    fn keys_of(&self, partial: &mut Partial) -> Vec<Keys> {
        let of = |(table, before): (&[u32], &[u64])| Keys::of(&stats::by_key(table, before, self.wide));
        let mut tables = std::mem::take(&mut partial.keys);
        tables.tables().map(of).collect()
    }

    fn learn_beyond(&mut self, mut partial: Partial) {
        let counts = std::mem::take(&mut partial.counts);
        self.take_beyond(&partial.sums(), &counts);
        self.step = Step::Done;
    }

    /// Sets how many base weights are the smallest, and gives the magnitude that they are all under.
    fn smallest(&mut self, keys: &Keys) -> f64 {
        let wanted = rank(self.settings.low, self.elements);
        // Zeros are not counted.
        let mut count = self.elements - keys.each().map(|(_, count)| count).sum::<u64>();
        let mut end = 1;
        for (key, more) in keys.each() {
            if count >= wanted {
                break;
            }
            count += more;
            end = key + 1;
        }
        self.sums.low = count;
        stats::edge(end)
    }

    /// The chunk of a scan by a guess.
    fn glance(&self, guess: &Guess, chunk: &mut Chunk<'_>, partial: &mut Partial) {
        let (level, epsilon) = (chunk.level, self.settings.epsilon);
        let thresholds = Thresholds { epsilon, relative: self.settings.relative };
        let Partial { counts, lanes, peaks, opened, .. } = partial;
        let decoded = || Values::trio([&chunk.values[1], &chunk.values[2]], &chunk.values[0]);
        let trio = chunk.stored.map_or_else(decoded, Trio::Stored);
        let (limits, seen) = (guess.limits(), &mut chunk.scratch.seen);
        let AtOnce { first, beyond, others, bins } = AtOnce::of(counts);
        let glance = stats::glance(level, trio, thresholds, limits, bins, seen, lanes, opened.open());
        opened.note();
        for (at, expert) in glance.experts.iter().enumerate() {
            let found = &expert.changes;
            let numbers = [found.different, found.absolute, found.relative, found.visible, found.non_finite];
            for (count, number) in first[EXPERT_COUNTS * at..].iter_mut().zip(numbers) {
                *count += number as i64;
            }
            if found.peak > peaks[at].map_or(0.0, |(delta, _)| delta.abs()) {
                peaks[at] = seen.find(at, found.peak).map(|(i, delta)| (delta, chunk.first + i as u64));
            }
        }
        first[2 * EXPERT_COUNTS] += glance.shared.0 as i64;
        first[2 * EXPERT_COUNTS + 1] += glance.shared.1 as i64;
        add_found(&glance.found, glance.experts.map(|e| e.low), beyond);
        others[0] += glance.smallest as i64;
        for (count, above) in others[1..].iter_mut().zip(glance.above.as_flattened().as_flattened()) {
            *count += *above as i64;
        }
    }

    fn learn_at_once(&mut self, mut partial: Partial) {
        let (mut counts, peaks) = (std::mem::take(&mut partial.counts), std::mem::take(&mut partial.peaks));
        let opened = std::mem::take(&mut partial.opened);
        let mut sums = partial.sums();
        let AtOnce { first, beyond, others, bins } = AtOnce::of(&mut counts);
        let known = Known {
            smallest: others[0] as u64,
            above: std::array::from_fn(|e| {
                std::array::from_fn(|cut| [0, 1].map(|next| others[1 + 6 * e + 2 * cut + next] as u64))
            }),
            ranks: self.ranks(),
            wanted: rank(self.settings.low, self.elements),
        };
        let settled = self.guess.take().and_then(|guess| guess.settle(&known, opened, &bins));
        let Some(settled) = settled else {
            // All over again.
            (self.step, self.helps) = (Step::Everything, false);
            return;
        };
        self.take_sums(&sums, first, peaks);
        for (bins, e) in bins.iter().zip(&mut self.sums.experts) {
            e.histogram = bins.iter().map(|count| *count as u64).collect();
        }
        add_found(&settled.found, settled.changed, beyond);
        sums[AT_ONCE_LANES..].iter_mut().zip(settled.sums).for_each(|(all, open)| *all += open);
        self.sums.low = settled.smallest;
        (self.cuts, self.keys) = (settled.cuts.to_vec(), settled.keys);
        self.take_beyond(&sums[AT_ONCE_LANES..], beyond);
        self.step = Step::Done;
    }

    /// How many elements each cut holds at least.
    fn ranks(&self) -> [u64; 3] {
        [TOP[0], TOP[1], self.settings.density].map(|share| rank(share, self.elements))
    }
}

/// Counts of a scan of two experts at once.
struct AtOnce<'a> {
    /// What needs no threshold.
    first: &'a mut [i64],
    /// What is beyond thresholds for certain.
    beyond: &'a mut [i64],
    /// Base weights that are among the smallest for certain; deltas above each threshold.
    others: &'a mut [i64],
    /// Deltas of each expert by powers of two.
    bins: [&'a mut [i64]; 2],
}

impl<'a> AtOnce<'a> {
    const FIRST: usize = 2 * EXPERT_COUNTS + PAIR_COUNTS;
    const BEYOND: usize = 2 * EXPERT_COUNTS_2 + PAIR_COUNTS;
    const OTHERS: usize = 1 + 2 * 3 * 2;
    const ALL: usize = Self::FIRST + Self::BEYOND + Self::OTHERS + 2 * BINS;

    fn of(counts: &'a mut [i64]) -> Self {
        let (first, rest) = counts.split_at_mut(Self::FIRST);
        let (beyond, rest) = rest.split_at_mut(Self::BEYOND);
        let (others, bins) = rest.split_at_mut(Self::OTHERS);
        Self { first, beyond, others, bins: bins.split_at_mut(BINS).into() }
    }
}

/// Adds counts of two experts to those that a scan for what is beyond thresholds makes.
fn add_found(found: &Found, low: [u64; 2], counts: &mut [i64]) {
    let Found { kept, lost, both, opposed } = *found;
    let numbers = [kept[0], lost[0], low[0], kept[1], lost[1], low[1], both, opposed];
    for (count, number) in counts.iter_mut().zip(numbers) {
        *count += number as i64;
    }
}

impl Job for SurveyJob {
    fn needs_scan(&self) -> bool {
        self.step != Step::Done
    }

    fn partial(&self) -> Partial {
        let (experts, pairs) = (self.experts(), self.pairs.len());
        let (lanes, counts) = match self.step {
            Step::AtOnce => (AT_ONCE_LANES + 2 * EXPERT_LANES_2, AtOnce::ALL),
            Step::Everything => {
                let lanes = 1 + EXPERT_LANES * experts + PAIR_LANES * pairs;
                (lanes, EXPERT_COUNTS * experts + PAIR_COUNTS * pairs)
            }
            _ => (EXPERT_LANES_2 * experts, EXPERT_COUNTS_2 * experts + PAIR_COUNTS * pairs),
        };
        let mut partial = Partial::with_lanes(lanes);
        partial.counts = vec![0; counts];
        partial.peaks = vec![None; experts];
        if self.step == Step::Everything {
            partial.keys = Counters::new(experts + 1, stats::TABLE);
        }
        if let Some(guess) = &self.guess {
            partial.opened = guess.opened();
        }
        partial
    }

    fn looks_at_stored(&self) -> bool {
        self.step == Step::AtOnce && self.is_bf16
    }

    fn scan(&self, chunk: &mut Chunk<'_>, partial: &mut Partial) {
        match (self.step, self.wide) {
            (Step::AtOnce, _) => {
                if let Some(guess) = &self.guess {
                    self.glance(guess, chunk, partial);
                }
            }
            (Step::Everything, false) => self.gather::<f32>(chunk, partial),
            (Step::Everything, true) => self.gather::<f64>(chunk, partial),
            (Step::BeyondThresholds, false) => self.gather_beyond::<f32>(chunk, partial),
            (Step::BeyondThresholds, true) => self.gather_beyond::<f64>(chunk, partial),
            (Step::Done, _) => {}
        }
    }

    fn learn(&mut self, partial: Partial, _tensor: &str) -> Result<()> {
        match self.step {
            Step::Everything => self.learn_everything(partial),
            Step::AtOnce => self.learn_at_once(partial),
            Step::BeyondThresholds | Step::Done => self.learn_beyond(partial),
        }
        Ok(())
    }

    /// A survey computes no output.
    fn apply(&self, _chunk: &mut Chunk<'_>, _ties: &mut [Ties], _squares: &mut [Lanes]) {}
}
