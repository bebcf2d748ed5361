//! The statistics of a conflict report, gathered in two scans of each tensor while it is at hand: the first sums,
//! counts and histograms everything that needs no threshold, the second what lies beyond thresholds that the
//! histograms gave ([`job`]). The disk is read once; tensors of one tile go through both scans in the processor's cache.
//! Between two experts a sample tells where thresholds lie, and larger tensors take one scan too ([`guess`]). Spectral
//! statistics ([`spectra`]) come after, because they need whole matrices.

mod cuts;
pub mod guess;
mod job;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use cuts::{Cut, Keys, rank};
pub use job::SurveyJob;

use super::observer::Observer;
use super::run::Run;
use super::spectra::{self, Spectral};
use crate::error::{Error, Result};
use crate::kernel::PlainFloats;
use crate::kernel::stats::{self, KEYS};
use crate::plan::{Action, MergePlan, PlannedTensor, role};
use crate::report::conflicts::{Conflicts, Sums, TOP, TensorConflicts};
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
    /// Elements of the largest tensor.
    largest: u64,
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
            largest: plan.tensors.iter().map(|t| t.elements).max().unwrap_or(0),
            done: plan.tensors.iter().map(|_| Mutex::new(None)).collect(),
            keys: Mutex::new(vec![0; experts * KEYS]),
        })
    }

    /// The scans of one tensor.
    pub fn job(&self, tensor: &PlannedTensor) -> SurveyJob {
        SurveyJob::new(self.settings, self.experts, tensor)
    }

    /// Most memory that scans by so many workers take.
    pub fn bytes(&self, threads: u64) -> u64 {
        // Those of the workers, and their sum.
        let tables = (threads + 1) * (self.experts as u64 + 1) * (size_of::<u32>() * stats::TABLE) as u64;
        let keys = (self.experts * KEYS * size_of::<i64>()) as u64;
        tables + keys + if self.experts == 2 { guess::bytes(self.largest) } else { 0 }
    }

    /// Number of scans of all workers that a tensor takes, unless a guess is wrong.
    pub fn scans(&self, tensor: &PlannedTensor) -> u64 {
        if guess::helps(self.experts, tensor) { 1 } else { 2 }
    }

    /// Keeps what the scans of a tensor gave.
    pub fn put(&self, at: usize, tensor: &PlannedTensor, job: SurveyJob) {
        // A merge that goes through its tensors twice finds the same again.
        if self.is_done(at) {
            return;
        }
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        for (all, own) in keys.chunks_mut(KEYS).zip(job.keys()) {
            own.add_to(all);
        }
        drop(keys);
        let (sums, peaks) = job.into_sums();
        self.keep(at, TensorConflicts { sums, peaks, ..described(tensor) });
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
