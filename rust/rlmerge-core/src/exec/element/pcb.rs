//! PCB-Merging: a scan for the quantiles of the magnitudes, which the scores need; one for the quantile and the
//! largest of the scores; then the mean.

use serde_json::{Map, Value, json};

use super::load_deltas;
use crate::error::Result;
use crate::exec::job::{Chunk, Job, Partial, Scope, Ties};
use crate::kernel::Level;
use crate::kernel::element::{self, Rival};
use crate::kernel::lanes::Lanes;
use crate::kernel::rivals::{Bounds, Picked};
use crate::kernel::select::{Selection, Tally};

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
    elements: u64,
    lambda: f64,
    step: Step,
    experts: Vec<Search>,
    /// Sampled deltas of each expert, and their sums.
    sample: Vec<Vec<f64>>,
    totals: Vec<f64>,
}

impl PcbJob {
    /// For a tensor or the whole model.
    pub fn new(experts: usize, ratio: f64, clip: f64, lambda: f64, scope: Scope<'_>) -> Self {
        let n = scope.elements;
        let clipped = ((clip * n as f64) as u64).min(n.saturating_sub(1) / 2);
        let dropped = ((1.0 - ratio) * n as f64) as u64;
        // Two selections of an expert are counted at a time.
        let bins = (scope.bins / 2).clamp(1024, BINS);
        let search = || Search {
            low: Selection::new(n - clipped, bins, scope.wide),
            high: Selection::new(1 + clipped, bins, scope.wide),
            cut: Selection::of_scores((n - dropped.min(n)).max(1), bins.min(SCORE_BINS), scope.scores),
            rival: Rival { low: 0.0, high: 0.0, count: experts as f64, cut: 0.0, peak: f64::NEG_INFINITY },
        };
        Self {
            elements: n,
            lambda,
            step: if n == 0 { Step::Done } else { Step::Clip },
            experts: (0..experts).map(|_| search()).collect(),
            sample: vec![Vec::new(); experts],
            totals: Vec::new(),
        }
    }

    /// Goes on to the scores once all magnitudes are known, and starts from those of the sample.
    fn learn_clips(&mut self) {
        for search in &mut self.experts {
            let (Some(low), Some(high)) = (value(&search.low), value(&search.high)) else { return };
            (search.rival.low, search.rival.high) = (low, high);
        }
        self.step = Step::Score;
        for (search, sample) in self.experts.iter_mut().zip(&mut self.sample) {
            for (value, total) in sample.iter_mut().zip(&self.totals) {
                *value = search.rival.score(*value, *total);
            }
            search.cut.propose(sample, self.elements);
            search.rival.peak = sample.iter().copied().fold(search.rival.peak, f64::max);
            *sample = Vec::new();
        }
        self.totals = Vec::new();
        self.learn_cuts();
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

    fn end_sample(&mut self, population: u64) {
        for (search, sample) in self.experts.iter_mut().zip(&self.sample) {
            search.low.propose(sample, population);
            search.high.propose(sample, population);
        }
        self.learn_clips();
    }

    fn needs_scan(&self) -> bool {
        self.step != Step::Done
    }

    fn partial(&self) -> Partial {
        let tally = |s: &Selection| if s.cut().is_none() { s.tally() } else { Tally::default() };
        let tallies = match self.step {
            Step::Clip => self.experts.iter().flat_map(|s| [tally(&s.low), tally(&s.high)]).collect(),
            Step::Score => self.experts.iter().map(|s| tally(&s.cut)).collect(),
            Step::Done => Vec::new(),
        };
        let mut partial = Partial::with_tallies(tallies);
        partial.maxima = vec![f64::NEG_INFINITY; self.experts.len()];
        partial
    }

    fn scan(&self, chunk: &mut Chunk<'_>, partial: &mut Partial) {
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
        if self.step == Step::Clip {
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
