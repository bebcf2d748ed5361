//! PCB-Merging: a scan for the quantiles of the magnitudes, which the scores need; one for the quantile and the
//! largest of the scores; then the mean. Between two experts one scan finds it all where the sample was right.

mod guess;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use guess::{Aim, Settled};
use serde_json::{Map, Value, json};

use super::load_deltas;
use crate::error::Result;
use crate::exec::job::{Chunk, Job, Partial, Scope, Ties};
use crate::kernel::Level;
use crate::kernel::candidates::{Candidates, Guess};
use crate::kernel::element::{self, Rival};
use crate::kernel::lanes::Lanes;
use crate::kernel::rivals::{Bounds, Picked};
use crate::kernel::select::{Selection, Tally};
use crate::kernel::values::{Numbers, Values};

/// The authors divide by this much at least.
const LEAST_SHARE: f64 = 1e-12;

/// Most counters of magnitudes: of bf16 weights most differ by wide steps, and more counters cost more to clear than a
/// further scan.
const BINS: usize = 1 << 15;
/// Most counters of scores. Hardly two are equal, so that no number of counters tells them all apart in one scan;
/// these stay in the processor's cache.
const SCORE_BINS: usize = 1 << 13;

/// What is learnt next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// All that follows, of two experts.
    Guess,
    /// Quantiles of magnitudes.
    Clip,
    /// Quantile and largest of scores.
    Score,
    Done,
}

/// What is looked for in one expert.
struct Search {
    low: Selection,
    high: Selection,
    cut: Selection,
    rival: Rival,
}

/// PCB-Merging at work on a scope.
pub struct PcbJob {
    aim: Aim,
    lambda: f64,
    step: Step,
    experts: Vec<Search>,
    /// Sampled deltas of each expert, and their sums.
    sample: Vec<Vec<f64>>,
    totals: Vec<f64>,
    /// Whether deltas are f32.
    narrow: bool,
    /// What the sample says, where one scan may find everything, …
    guesses: Option<[Guess; 2]>,
    /// … and how many candidates that scan has written down.
    written: [Arc<AtomicUsize>; 2],
}

impl PcbJob {
    /// For a tensor or the whole model.
    pub fn new(experts: usize, ratio: f64, clip: f64, lambda: f64, scope: Scope<'_>) -> Self {
        let n = scope.elements;
        let clipped = ((clip * n as f64) as u64).min(n.saturating_sub(1) / 2);
        let dropped = ((1.0 - ratio) * n as f64) as u64;
        // Two selections of an expert are counted at a time.
        let bins = (scope.bins / 2).clamp(1024, BINS);
        let rank = (n - dropped.min(n)).max(1);
        let search = || Search {
            low: Selection::new(n - clipped, bins, scope.wide),
            high: Selection::new(1 + clipped, bins, scope.wide),
            cut: Selection::of_scores(rank, bins.min(SCORE_BINS), scope.scores),
            rival: Rival { low: 0.0, high: 0.0, count: experts as f64, cut: 0.0, peak: f64::NEG_INFINITY },
        };
        // There are no counters beside candidates, and nothing is copied where those of all workers come together.
        let room = 2 * scope.scores;
        Self {
            aim: Aim { level: scope.level, elements: n, clipped, rank, room },
            lambda,
            step: if n == 0 { Step::Done } else { Step::Clip },
            experts: (0..experts).map(|_| search()).collect(),
            sample: vec![Vec::new(); experts],
            totals: Vec::new(),
            narrow: !scope.wide,
            guesses: None,
            written: Default::default(),
        }
    }

    /// What the sample says of two experts, where that may be enough.
    fn guess(&self) -> Option<[Guess; 2]> {
        let ([first, second], [of_first, of_second]) = (&self.experts[..], &self.sample[..]) else {
            return None;
        };
        let may = self.narrow && (self.totals.len() as u64) < self.aim.elements;
        may.then(|| guess::guess(&self.aim, [of_first, of_second], &self.totals, [&first.cut, &second.cut]))?
    }

    /// Looks for the magnitudes by themselves, from those of the sample.
    fn look_for_clips(&mut self) {
        self.step = Step::Clip;
        for (search, sample) in self.experts.iter_mut().zip(&self.sample) {
            search.low.propose(sample, self.aim.elements);
            search.high.propose(sample, self.aim.elements);
        }
        self.learn_clips();
    }

    /// Takes over what one scan found of two experts, and goes on where the sample was wrong.
    fn learn_all(&mut self, candidates: Vec<Candidates>) {
        let Some(guesses) = self.guesses.take() else { return };
        let found = candidates.into_iter().zip(&guesses).enumerate();
        let settled: Vec<Settled> =
            found.map(|(at, (found, guess))| guess::settle(&self.aim, at, found, guess)).collect();
        for (search, settled) in self.experts.iter_mut().zip(&settled) {
            let Some(range) = settled.range else { return self.look_for_clips() };
            (search.rival.low, search.rival.high) = range;
        }
        for (search, settled) in self.experts.iter_mut().zip(&settled) {
            let Some(scores) = settled.scores else { return self.look_for_scores() };
            (search.rival.cut, search.rival.peak) = scores;
        }
        self.step = Step::Done;
        (self.sample, self.totals) = (Vec::new(), Vec::new());
    }

    /// Goes on to the scores once all magnitudes are known.
    fn learn_clips(&mut self) {
        for search in &mut self.experts {
            let (Some(low), Some(high)) = (value(&search.low), value(&search.high)) else { return };
            (search.rival.low, search.rival.high) = (low, high);
        }
        self.look_for_scores();
    }

    /// Looks for the scores, from those of the sample.
    fn look_for_scores(&mut self) {
        self.step = Step::Score;
        let mut scores = vec![0.0; self.totals.len()];
        for (search, sample) in self.experts.iter_mut().zip(&mut self.sample) {
            element::compete(self.aim.level, sample, &self.totals, search.rival, &mut scores);
            search.cut.propose(&scores, self.aim.elements);
            search.rival.peak = element::greatest(self.aim.level, &scores);
        }
        (self.sample, self.totals) = (Vec::new(), Vec::new());
        self.learn_cuts();
    }

    /// Merges a chunk of two experts, where bits tell which of their elements matter.
    fn duel(&self, chunk: &mut Chunk<'_>, squares: &mut [Lanes]) -> Option<()> {
        let [first, second] = &self.experts[..] else { return None };
        let rivals = [first.rival, second.rival];
        // Scores below the cut have no scale, if there are larger ones than that at the cut.
        if !rivals.iter().all(|rival| rival.peak > rival.cut && rival.is_told_by_bits(rival.cut)) {
            return None;
        }
        let numbers = narrow_pair(chunk.values)?;
        let [_, x_squares, y_squares, ..] = squares else { return None };
        let (level, out) = (chunk.level, &mut chunk.scratch.out[..chunk.len]);
        chunk.scratch.duel.pick(level, numbers, &rivals, [x_squares, y_squares]);
        chunk.scratch.duel.merge(level, &rivals, LEAST_SHARE, out);
        chunk.values[0].add_change(level, self.lambda, out);
        Some(())
    }

    /// Ends the search once all thresholds are known. A sample that knows them is the whole scope, and knows the
    /// largest scores too.
    fn learn_cuts(&mut self) {
        for search in &mut self.experts {
            let Some(cut) = value(&search.cut) else { return };
            search.rival.cut = cut;
        }
        self.step = Step::Done;
    }
}

impl Search {
    /// Counts the scores of a chunk and finds the largest; exactly as far as it matters for the two.
    #[allow(clippy::too_many_arguments, reason = "buffers of the worker, and its counts")]
    fn count_scores(
        &self,
        level: Level,
        delta: &[f64],
        total: &[f64],
        scores: &mut [f64],
        picked: &mut Picked,
        tally: &mut Tally,
        peak: &mut f64,
    ) {
        let (low, high) = self.cut.window();
        let bounds = Bounds { low, high, peak: peak.max(self.rival.peak) };
        let scores = if bounds.are_useful(&self.rival) {
            tally.add_above(picked.pick(level, delta, total, self.rival, bounds));
            picked.scores(level, self.rival)
        } else {
            element::compete(level, delta, total, self.rival, scores);
            &*scores
        };
        self.cut.count_scores(level, scores, tally);
        *peak = peak.max(element::greatest(level, scores));
    }

    /// Adds the expert's part of a chunk to the mean.
    fn add_scaled(
        &self,
        level: Level,
        delta: &[f64],
        total: &[f64],
        picked: &mut Picked,
        mix: &mut [f64],
        share: &mut [f64],
    ) {
        let rival = self.rival;
        // Scores below the cut have no scale, if there are larger ones than that at the cut.
        let bounds = Bounds { low: rival.cut, high: f64::NAN, peak: f64::NEG_INFINITY };
        if rival.peak > rival.cut && bounds.are_useful(&rival) {
            picked.pick(level, delta, total, rival, bounds);
            picked.add_scaled(level, rival, mix, share);
        } else {
            element::add_scaled(level, delta, total, rival, mix, share);
        }
    }
}

/// The numbers of two experts, each before those that make them deltas, where they are f32.
fn narrow_pair(values: &[Values]) -> Option<[&[f32]; 4]> {
    let [base, first, second] = values else { return None };
    let ((Numbers::Narrow(x), Numbers::Narrow(u)), (Numbers::Narrow(y), Numbers::Narrow(v))) =
        (first.against(base), second.against(base))
    else {
        return None;
    };
    Some([x, u, y, v])
}

fn value(selection: &Selection) -> Option<f64> {
    selection.cut().map(|c| f64::from_bits(c.threshold))
}

impl Job for PcbJob {
    fn wants_sample(&self) -> bool {
        self.step == Step::Clip
    }

    fn learnt(&self) -> Map<String, Value> {
        let each =
            |number: &dyn Fn(&Search) -> f64| json!(self.experts.iter().map(number).collect::<Vec<_>>());
        let lists = [
            ("least_magnitudes", each(&|e| e.rival.low)),
            ("largest_magnitudes", each(&|e| e.rival.high)),
            ("score_thresholds", each(&|e| e.rival.cut)),
        ];
        lists.map(|(name, list)| (name.to_string(), list)).into_iter().collect()
    }

    fn sample(&mut self, chunk: &mut Chunk<'_>) {
        load_deltas(chunk, self.experts.len(), None);
        for (at, sample) in self.sample.iter_mut().enumerate() {
            sample.extend_from_slice(chunk.scratch.delta(at, chunk.len));
        }
        self.totals.extend_from_slice(&chunk.scratch.total[..chunk.len]);
    }

    fn end_sample(&mut self, _population: u64) {
        self.guesses = self.guess();
        match self.guesses {
            Some(_) => self.step = Step::Guess,
            None => self.look_for_clips(),
        }
    }

    fn needs_scan(&self) -> bool {
        self.step != Step::Done
    }

    fn partial(&self) -> Partial {
        let tally = |s: &Selection| if s.cut().is_none() { s.tally() } else { Tally::default() };
        let tallies = match self.step {
            Step::Clip => self.experts.iter().flat_map(|s| [tally(&s.low), tally(&s.high)]).collect(),
            Step::Score => self.experts.iter().map(|s| tally(&s.cut)).collect(),
            Step::Guess | Step::Done => Vec::new(),
        };
        let mut partial = Partial::with_tallies(tallies);
        partial.maxima = vec![f64::NEG_INFINITY; self.experts.len()];
        if self.step == Step::Guess {
            partial.candidates = self.written.each_ref().map(|w| Candidates::new(w, self.aim.room)).into();
        }
        partial
    }

    fn scan(&self, chunk: &mut Chunk<'_>, partial: &mut Partial) {
        if let Some(guesses) = &self.guesses {
            let Some(numbers) = narrow_pair(chunk.values) else {
                unreachable!("a guess is of two experts in f32");
            };
            return chunk.scratch.finder.find(chunk.level, numbers, guesses, &mut partial.candidates);
        }
        load_deltas(chunk, self.experts.len(), None);
        let (level, len) = (chunk.level, chunk.len);
        let scratch = &mut *chunk.scratch;
        let (total, scores) = (&scratch.total[..len], &mut scratch.out[..len]);
        for (at, search) in self.experts.iter().enumerate() {
            let delta = &scratch.deltas[at * scratch.stride..][..len];
            if self.step == Step::Clip {
                for (selection, tally) in
                    [&search.low, &search.high].into_iter().zip(&mut partial.tallies[2 * at..])
                {
                    if selection.cut().is_none() {
                        selection.count_deltas(level, delta, tally);
                    }
                }
            } else if search.cut.cut().is_none() {
                // Otherwise the largest score is known too.
                let (tally, peak) = (&mut partial.tallies[at], &mut partial.maxima[at]);
                search.count_scores(level, delta, total, scores, &mut scratch.picked, tally, peak);
            }
        }
    }

    fn learn(&mut self, mut partial: Partial, _tensor: &str) -> Result<()> {
        let learn = |selection: &mut Selection, tally: &mut Tally| {
            if selection.cut().is_none() {
                selection.learn(tally);
            }
        };
        if self.step == Step::Guess {
            self.learn_all(partial.candidates);
        } else if self.step == Step::Clip {
            for (search, [low, high]) in self.experts.iter_mut().zip(partial.tallies.as_chunks_mut().0) {
                learn(&mut search.low, low);
                learn(&mut search.high, high);
            }
            self.learn_clips();
        } else {
            for (at, search) in self.experts.iter_mut().enumerate() {
                learn(&mut search.cut, &mut partial.tallies[at]);
                search.rival.peak = search.rival.peak.max(partial.maxima[at]);
            }
            self.learn_cuts();
        }
        Ok(())
    }

    fn apply(&self, chunk: &mut Chunk<'_>, _ties: &mut [Ties], squares: &mut [Lanes]) {
        if self.duel(chunk, squares).is_some() {
            return;
        }
        load_deltas(chunk, self.experts.len(), Some(squares));
        let (level, len) = (chunk.level, chunk.len);
        let scratch = &mut *chunk.scratch;
        let (deltas, share) = scratch.deltas.split_at_mut(self.experts.len() * scratch.stride);
        let (total, mix, share) = (&scratch.total[..len], &mut scratch.out[..len], &mut share[..len]);
        mix.fill(0.0);
        share.fill(0.0);
        for (delta, search) in deltas.chunks(scratch.stride).zip(&self.experts) {
            search.add_scaled(level, &delta[..len], total, &mut scratch.picked, mix, share);
        }
        element::divide_by_share(level, mix, share, LEAST_SHARE);
        element::show_non_finite(level, total, mix);
        chunk.values[0].add_change(level, self.lambda, mix);
    }
}
