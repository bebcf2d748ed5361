//! The statistics of a conflict report, gathered in two scans of each tensor while it is at hand: the first sums,
//! counts and histograms everything that needs no threshold, the second what lies beyond thresholds that the
//! histograms gave. The disk is read once; tensors of one tile go through both scans in the processor's cache. Spectral
//! statistics ([`spectra`]) come after, because they need whole matrices.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::counters::Counters;
use super::job::{Chunk, Job, Partial, Scratch, Ties};
use super::observer::Observer;
use super::run::Run;
use super::spectra::{self, Spectral};
use crate::error::{Error, Result};
use crate::kernel::PlainFloats;
use crate::kernel::lanes::Lanes;
use crate::kernel::stats::{self, Beyond, Found, KEYS, Thresholds, Two, Width};
use crate::plan::{Action, MergePlan, PlannedTensor, role};
use crate::report::conflicts::{Conflicts, Sums, TOP, TensorConflicts, pairs};
use crate::report::spectra::Spectra;
use crate::shard::Checkpoint;

/// What counts as changed, large and small.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SurveySettings {
    /// ε: a delta above it is a change.
    pub epsilon: f64,
    /// r: a delta above this share of the larger weight is a relative change.
    pub relative: f64,
    /// Share of each tensor's deltas that TIES keeps, and that count as its largest.
    pub density: f64,
    /// Share of each tensor's base weights that count as its smallest.
    pub low: f64,
    /// λ of the direction retention.
    pub lambda: f64,
    /// Whether spectral statistics are wanted.
    pub spectral: bool,
    /// Most directions of each matrix that spectral statistics follow.
    pub directions: u32,
}

impl Default for SurveySettings {
    fn default() -> Self {
        Self {
            epsilon: 1e-5,
            relative: 1e-3,
            density: 0.2,
            low: 0.3,
            lambda: 1.0,
            spectral: false,
            directions: 32,
        }
    }
}

impl SurveySettings {
    /// Reads settings from JSON; what is not given has its default.
    ///
    /// # Errors
    /// [`Error::RecipeInvalid`] with the key that is wrong, [`Error::ParameterOutOfRange`] with its range.
    pub fn from_json(text: &str) -> Result<Self> {
        let settings: Self =
            serde_json::from_str(text).map_err(|e| Error::RecipeInvalid { message: e.to_string() })?;
        let share = |v: f64| v > 0.0 && v <= 1.0;
        let size = |v: f64| v >= 0.0 && v.is_finite();
        for (name, value, fits, expected) in [
            ("epsilon", settings.epsilon, size(settings.epsilon), "0 or more"),
            ("relative", settings.relative, size(settings.relative), "0 or more"),
            ("density", settings.density, share(settings.density), "above 0 and at most 1"),
            ("low", settings.low, share(settings.low), "above 0 and at most 1"),
            ("lambda", settings.lambda, settings.lambda.is_finite(), "a number"),
        ] {
            if !fits {
                return Err(Error::ParameterOutOfRange {
                    parameter: name.into(),
                    place: "the report".into(),
                    value: value.to_string(),
                    expected: expected.into(),
                });
            }
        }
        if !(1..=spectra::MOST_DIRECTIONS).contains(&settings.directions) {
            return Err(Error::ParameterOutOfRange {
                parameter: "directions".into(),
                place: "the report".into(),
                value: settings.directions.to_string(),
                expected: format!("1 to {}", spectra::MOST_DIRECTIONS),
            });
        }
        Ok(settings)
    }
}

/// What is gathered of all tensors.
pub struct Survey {
    settings: SurveySettings,
    experts: usize,
    done: Vec<Mutex<Option<TensorConflicts>>>,
    /// Counts of |δ| by key over the whole model, of each expert.
    keys: Mutex<Vec<i64>>,
}

/// Gathers the statistics of a plan made by [`MergePlan::for_report`], and writes nothing.
///
/// # Errors
/// Whatever reading can meet.
pub fn survey(
    plan: &MergePlan,
    models: &[Checkpoint],
    settings: SurveySettings,
    observer: &Observer,
) -> Result<Value> {
    let _plain = PlainFloats::ask();
    let survey = Survey::new(plan, settings)?;
    let more = if settings.spectral { spectra::bytes(plan) } else { 0 };
    let run = Run::new(plan, models, &[], observer)?;
    let mut warnings: Vec<String> = run.shortage().into_iter().collect();
    warnings.extend(models.iter().flat_map(|m| m.warnings().iter().cloned()));
    run.survey(&survey, more)?;
    if settings.spectral {
        let spectral = Spectral {
            directions: settings.directions as usize,
            epsilon: settings.epsilon,
            share: settings.low,
        };
        let (found, left_out) = spectra::gather(plan, models, spectral, observer)?;
        survey.put_spectra(found);
        warnings.extend(left_out);
    }
    for model in models {
        model.verify_unchanged()?;
    }
    if observer.is_cancelled() {
        return Err(Error::Cancelled);
    }
    Ok(survey.finish(plan, warnings))
}

impl Survey {
    /// For the tensors of a plan.
    ///
    /// # Errors
    /// [`Error::RecipeInvalid`] when its tensors are not all made from the base and the same experts.
    pub fn new(plan: &MergePlan, settings: SurveySettings) -> Result<Self> {
        let computed = || plan.tensors.iter().filter(|t| t.action != Action::Compare);
        let read = computed().next().map_or_else(Vec::new, |t| plan.read_models(t));
        let alike = computed().all(|t| plan.read_models(t) == read);
        if !alike || plan.base.is_none() || read.first() != plan.base.as_ref() || read.len() < 2 {
            let message = "a conflict report compares experts with a base, and this merge does not read a base and \
                           the same experts for every tensor";
            return Err(Error::RecipeInvalid { message: message.into() });
        }
        let experts = read.len() - 1;
        Ok(Self {
            settings,
            experts,
            done: plan.tensors.iter().map(|_| Mutex::new(None)).collect(),
            keys: Mutex::new(vec![0; experts * KEYS]),
        })
    }

    /// The scans of one tensor.
    pub fn job(&self, tensor: &PlannedTensor) -> SurveyJob {
        SurveyJob {
            settings: self.settings,
            elements: tensor.elements,
            wide: tensor.wide,
            pairs: pairs(self.experts).collect(),
            step: Step::Everything,
            sums: Sums { tensors: 1, elements: tensor.elements, ..Sums::new(self.experts) },
            cuts: Vec::new(),
            below: 0.0,
            peaks: Vec::new(),
            keys: Vec::new(),
        }
    }

    /// Keeps what the scans of a tensor gave.
    pub fn put(&self, at: usize, tensor: &PlannedTensor, job: SurveyJob) {
        // A merge that goes through its tensors twice finds the same again.
        if self.is_done(at) {
            return;
        }
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        for (all, own) in keys.chunks_mut(KEYS).zip(&job.keys) {
            for (a, b) in all[own.first..].iter_mut().zip(&own.counts) {
                *a += b;
            }
        }
        drop(keys);
        self.keep(at, TensorConflicts { sums: job.sums, peaks: job.peaks, ..described(tensor) });
    }

    /// Keeps which experts hold the base's bytes in a tile of a tensor without arithmetic.
    pub fn put_equal(&self, at: usize, tensor: &PlannedTensor, equal: &[bool]) {
        let mut done = self.done[at].lock().unwrap_or_else(PoisonError::into_inner);
        let known = done.get_or_insert_with(|| TensorConflicts {
            equal: Some(vec![true; equal.len()]),
            ..described(tensor)
        });
        for (a, b) in known.equal.iter_mut().flatten().zip(equal) {
            *a &= b;
        }
    }

    /// Adds the spectral statistics of tensors to what their scans gave.
    fn put_spectra(&self, spectra: BTreeMap<usize, Spectra>) {
        for (at, spectra) in spectra {
            let mut done = self.done[at].lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = done.as_mut() {
                known.spectra = Some(spectra);
            }
        }
    }

    /// Whether a tensor needs no scan any more.
    pub fn is_done(&self, at: usize) -> bool {
        self.done[at].lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn keep(&self, at: usize, conflicts: TensorConflicts) {
        *self.done[at].lock().unwrap_or_else(PoisonError::into_inner) = Some(conflicts);
    }

    /// The report as JSON.
    pub fn finish(self, plan: &MergePlan, warnings: Vec<String>) -> Value {
        let mut tensors: Vec<TensorConflicts> = self
            .done
            .into_iter()
            .filter_map(|d| d.into_inner().unwrap_or_else(PoisonError::into_inner))
            .collect();
        // An order that does not depend on files: whole layers, those without a layer last.
        tensors.sort_by(|a, b| {
            (a.layer.unwrap_or(u32::MAX), &a.name).cmp(&(b.layer.unwrap_or(u32::MAX), &b.name))
        });
        let elements = tensors.iter().map(|t| t.sums.elements).sum::<u64>();
        let keys = self.keys.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut shares = vec![TOP[0], TOP[1], self.settings.density, 0.5];
        shares.sort_by(f64::total_cmp);
        shares.dedup();
        let quantiles = keys.chunks(KEYS).map(|keys| {
            let keys = Keys::of(keys);
            let of = |share: f64| {
                let cut = Cut::of(&keys, rank(share, elements));
                (share, if cut.reached { stats::edge(cut.key) } else { 0.0 })
            };
            shares.iter().map(|s| of(*s)).collect()
        });
        let conflicts = Conflicts { tensors, quantiles: quantiles.collect(), lambda: self.settings.lambda };
        let mut value = json!({
            "schema": "rlmerge.conflicts/1",
            "version": env!("CARGO_PKG_VERSION"),
            "settings": self.settings,
            "models": plan.summary()["models"],
            "notes": plan.notes,
            "warnings": warnings,
        });
        if let (Some(map), Value::Object(numbers)) = (value.as_object_mut(), conflicts.json(self.experts)) {
            map.extend(numbers);
            if !plan.unmatched.is_empty() {
                map.insert("unmatched".into(), json!(plan.unmatched));
            }
        }
        value
    }
}

/// A tensor without its numbers.
fn described(tensor: &PlannedTensor) -> TensorConflicts {
    TensorConflicts {
        name: tensor.name.clone(),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        layer: role::layer(&tensor.name),
        kind: role::kind(&tensor.name),
        equal: None,
        sums: Sums::default(),
        peaks: Vec::new(),
        spectra: None,
    }
}

/// Number of elements that a share of some means, rounded up.
fn rank(share: f64, elements: u64) -> u64 {
    (share * elements as f64).ceil() as u64
}

/// How many elements have each key, from the first to the last key that there is: few of them, so that a small tensor
/// does not pay for all keys.
struct Keys {
    first: usize,
    counts: Vec<i64>,
}

impl Keys {
    /// Of a table of all keys.
    fn of(table: &[i64]) -> Self {
        let first = table.iter().position(|c| *c != 0).unwrap_or(0);
        let end = table.iter().rposition(|c| *c != 0).map_or(first, |last| last + 1);
        Self { first, counts: table[first..end].to_vec() }
    }

    /// Each key with its count, the smallest first.
    fn each(&self) -> impl DoubleEndedIterator<Item = (usize, u64)> + '_ {
        self.counts.iter().enumerate().map(|(at, count)| (self.first + at, *count as u64))
    }
}

/// The smallest set of the largest keys that holds at least so many elements.
#[derive(Debug, Clone, Copy)]
struct Cut {
    /// The smallest key in it; at least 1, for zeros are never large.
    key: usize,
    /// How many it holds.
    count: u64,
    /// How many were asked for.
    rank: u64,
    /// Whether it holds as many.
    reached: bool,
}

impl Cut {
    fn of(keys: &Keys, rank: u64) -> Self {
        let mut count = 0;
        for (key, more) in keys.each().rev() {
            count += more;
            if count >= rank {
                return Self { key, count, rank, reached: true };
            }
        }
        Self { key: 1, count, rank, reached: false }
    }

    fn edge(self) -> f64 {
        stats::edge(self.key)
    }

    /// The energy of exactly so many elements: what the last key holds too many is taken out at its lower edge.
    fn trimmed(self, energy: f64) -> f64 {
        let excess = self.count.saturating_sub(self.rank) as f64;
        (energy - excess * self.edge() * self.edge()).max(0.0)
    }
}

/// What is still to be gathered of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
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
    fn experts(&self) -> usize {
        self.sums.experts.len()
    }

    /// Whether its first scan is done: with a method's, or by itself where a sample told the method everything.
    pub fn has_begun(&self) -> bool {
        self.step != Step::Everything
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
        if let ([a, b], [_, x, y]) = (&self.cuts[..], chunk.values) {
            let ((x, u), (y, v)) = (x.against(base), y.against(base));
            let two = Two {
                experts: [T::of(x), T::of(y)],
                from: [T::of(u), T::of(v)],
                base: T::of(base.numbers()),
            };
            let least = [a.map(Cut::edge), b.map(Cut::edge)];
            let beyond = Beyond { epsilon, below: self.below, least };
            if let Some(found) = T::find_beyond(level, two, beyond, lanes) {
                let Found { kept, lost, low, both, opposed } = found;
                let numbers = [kept[0], lost[0], low[0], kept[1], lost[1], low[1], both, opposed];
                for (count, number) in counts.iter_mut().zip(numbers) {
                    *count += number as i64;
                }
                return;
            }
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

    fn learn_everything(&mut self, mut partial: Partial) {
        let experts = self.experts();
        let counts = std::mem::take(&mut partial.counts);
        self.peaks = std::mem::take(&mut partial.peaks);
        let mut tables = std::mem::take(&mut partial.keys);
        let sums = partial.sums();
        self.sums.base_square = sums[0];
        let of = |(table, before): (&[u32], &[u64])| Keys::of(&stats::by_key(table, before, self.wide));
        let mut keys: Vec<Keys> = tables.tables().map(of).collect();
        let base = keys.remove(0);
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
            // A bin of the report is a power of two.
            e.histogram = vec![0; KEYS >> stats::FRACTION];
            for (key, count) in keys[at].each() {
                e.histogram[key >> stats::FRACTION] += count;
            }
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
        self.below = self.smallest(&base);
        let ranks = [TOP[0], TOP[1], self.settings.density].map(|share| rank(share, self.elements));
        self.cuts = keys.iter().map(|keys| ranks.map(|rank| Cut::of(keys, rank))).collect();
        self.keys = keys;
        // Where nothing was changed, nothing is beyond a threshold.
        let changed = self.sums.experts.iter().any(|e| e.different > 0);
        self.step = if changed { Step::BeyondThresholds } else { Step::Done };
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

    fn learn_beyond(&mut self, mut partial: Partial) {
        let experts = self.experts();
        let counts = std::mem::take(&mut partial.counts);
        let sums = partial.sums();
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
}

impl Job for SurveyJob {
    fn needs_scan(&self) -> bool {
        self.step != Step::Done
    }

    fn partial(&self) -> Partial {
        let (experts, pairs) = (self.experts(), self.pairs.len());
        let (lanes, counts) = match self.step {
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
        partial
    }

    fn scan(&self, chunk: &mut Chunk<'_>, partial: &mut Partial) {
        match (self.step, self.wide) {
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
            Step::BeyondThresholds | Step::Done => {
                self.learn_beyond(partial);
                self.step = Step::Done;
            }
        }
        Ok(())
    }

    /// A survey computes no output.
    fn apply(&self, _chunk: &mut Chunk<'_>, _ties: &mut [Ties], _squares: &mut [Lanes]) {}
}
