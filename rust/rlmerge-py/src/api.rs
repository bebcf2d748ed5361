//! The functions that Python sees: JSON in, core call, JSON out.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use rlmerge_core::error::{self, CODES, Error, Result};
use rlmerge_core::exec::{self, Contents, Observer, Sidecar, Survey, SurveySettings};
use rlmerge_core::kernel::Level;
use rlmerge_core::plan::method::methods_json;
use rlmerge_core::plan::recipe::Recipe;
use rlmerge_core::plan::{ExpandRequest, MergePlan, ReportRequest};
use rlmerge_core::report::verification::DIAGNOSTICS;
use rlmerge_core::shard::{self, Checkpoint};
use rlmerge_core::writer;
use serde_json::{Value, json};

use crate::enter::enter;

/// Version of rlmerge.
#[pyfunction]
pub fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Version, SIMD level, build profile and target, as JSON.
#[pyfunction]
pub fn build_info() -> String {
    json!({
        "version": version(),
        "simd": Level::choose().name(),
        "profile": if cfg!(debug_assertions) { "debug" } else { "release" },
        "target": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
    })
    .to_string()
}

/// The table of methods, as JSON.
#[pyfunction]
pub fn methods() -> String {
    methods_json().to_string()
}

/// The closed list of error codes with an example of each, as JSON.
#[pyfunction]
pub fn errors() -> String {
    let list: Vec<Value> = CODES
        .iter()
        .zip(error::examples())
        .map(|((code, exit, kind), example)| {
            let (message, hint) = (example.to_string(), example.hint());
            json!({"code": code, "exit_code": exit, "kind": kind, "example": message, "hint": hint})
        })
        .collect();
    Value::from(list).to_string()
}

/// What is in a model, as JSON.
#[pyfunction]
pub fn inspect(py: Python<'_>, path: PathBuf) -> PyResult<String> {
    enter(py, &Observer::default(), None, move || Ok(shard::inspect(&path)?.to_string()))
}

/// Plans the merge that a recipe (JSON) asks for, from headers alone.
#[pyfunction]
pub fn prepare(py: Python<'_>, recipe_json: String) -> PyResult<Plan> {
    enter(py, &Observer::default(), None, move || {
        Ok(Plan::new(MergePlan::prepare(Recipe::from_json(&recipe_json)?)?))
    })
}

/// Plans what a request (JSON) asks to be rebuilt from a merged folder, its masks and its base.
#[pyfunction]
pub fn prepare_expand(py: Python<'_>, request_json: String) -> PyResult<Plan> {
    enter(py, &Observer::default(), None, move || {
        Ok(Plan::new(MergePlan::expand(ExpandRequest::from_json(&request_json)?)?))
    })
}

/// An immutable plan with the checkpoints that it was made from.
#[pyclass(frozen, module = "rlmerge._core")]
pub struct Plan {
    inner: Arc<(MergePlan, Vec<Checkpoint>)>,
    /// Of the runs that are at work.
    running: Mutex<Vec<Arc<Observer>>>,
}

impl Plan {
    fn new(inner: (MergePlan, Vec<Checkpoint>)) -> Self {
        Self { inner: Arc::new(inner), running: Mutex::default() }
    }

    fn running(&self) -> MutexGuard<'_, Vec<Arc<Observer>>> {
        // A list of pointers is whole after any panic.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Plan {
    /// The plan as JSON.
    pub fn to_json(&self) -> String {
        self.inner.0.json().to_string()
    }

    /// Checks the output's place without writing anything.
    pub fn check(&self, py: Python<'_>) -> PyResult<()> {
        let inner = Arc::clone(&self.inner);
        enter(py, &Observer::default(), None, move || exec::check(&inner.0))
    }

    /// Runs the plan and returns the report as JSON; with settings (JSON) for one, also the conflict report, as its
    /// key `conflicts`.
    #[pyo3(signature = (sidecars, progress = None, conflicts = None))]
    pub fn run(
        &self,
        py: Python<'_>,
        sidecars: Vec<(String, Bound<'_, PyAny>)>,
        progress: Option<Bound<'_, PyAny>>,
        conflicts: Option<String>,
    ) -> PyResult<String> {
        let sidecars = sidecars.into_iter().map(sidecar).collect::<PyResult<Vec<_>>>()?;
        let inner = Arc::clone(&self.inner);
        let observer = Arc::new(Observer::default());
        self.running().push(Arc::clone(&observer));
        let shared: &Observer = &observer;
        let result = enter(py, shared, progress.as_ref(), move || {
            run(&inner, &sidecars, conflicts.as_deref(), shared)
        });
        self.running().retain(|other| !Arc::ptr_eq(other, &observer));
        result
    }

    /// Stops the runs of this plan that are at work, from any thread.
    pub fn cancel(&self) {
        self.running().iter().for_each(|observer| observer.cancel());
    }
}

/// Gathers a conflict report: a request (JSON) says what to read, settings (JSON) what counts as a change. Returns
/// the report as JSON.
#[pyfunction]
#[pyo3(signature = (request_json, settings_json, progress = None))]
pub fn conflicts(
    py: Python<'_>,
    request_json: String,
    settings_json: String,
    progress: Option<Bound<'_, PyAny>>,
) -> PyResult<String> {
    let observer = Observer::default();
    let shared = &observer;
    enter(py, &observer, progress.as_ref(), move || {
        let started = Instant::now();
        let settings = SurveySettings::from_json(&settings_json)?;
        let (plan, models) = MergePlan::for_report(&ReportRequest::from_json(&request_json)?)?;
        let mut value = exec::survey(&plan, &models, settings, shared)?;
        if let Some(map) = value.as_object_mut() {
            map.insert("elapsed_seconds".into(), started.elapsed().as_secs_f64().into());
            map.insert("bytes_read".into(), plan.bytes_to_read().into());
        }
        Ok(value.to_string())
    })
}

/// Reads an output back against the report in its folder, or against the one in the file `manifest`. Returns what was
/// found as JSON.
#[pyfunction]
#[pyo3(signature = (path, manifest = None, threads = None, progress = None))]
pub fn verify(
    py: Python<'_>,
    path: PathBuf,
    manifest: Option<PathBuf>,
    threads: Option<usize>,
    progress: Option<Bound<'_, PyAny>>,
) -> PyResult<String> {
    let observer = Observer::default();
    let shared = &observer;
    enter(py, &observer, progress.as_ref(), move || {
        let started = Instant::now();
        let found = exec::verify(&path, manifest.as_deref(), threads, shared)?;
        let mut value =
            serde_json::to_value(&found).map_err(|e| Error::Internal { message: e.to_string() })?;
        if let Some(map) = value.as_object_mut() {
            map.insert("elapsed_seconds".into(), started.elapsed().as_secs_f64().into());
        }
        Ok(value.to_string())
    })
}

/// The closed list of what `verify` can find, as JSON.
#[pyfunction]
pub fn diagnostics() -> String {
    json!(DIAGNOSTICS).to_string()
}

/// Removes the stages of killed runs in a folder, and those of an output; returns them as JSON.
#[pyfunction]
#[pyo3(signature = (path, dry_run = false))]
pub fn clean(py: Python<'_>, path: PathBuf, dry_run: bool) -> PyResult<String> {
    enter(py, &Observer::default(), None, move || {
        let strays = writer::clean(&path, dry_run)?;
        let list = strays.iter().map(|s| {
            json!({
                "path": s.path.to_string_lossy(),
                "bytes": s.bytes,
                "pid": s.pid,
                "removed": s.kept.is_none() && !dry_run,
                "kept": s.kept,
            })
        });
        Ok(Value::from(list.collect::<Vec<_>>()).to_string())
    })
}

fn run(
    inner: &(MergePlan, Vec<Checkpoint>),
    sidecars: &[Sidecar],
    conflicts: Option<&str>,
    observer: &Observer,
) -> Result<String> {
    let (plan, models) = inner;
    let started = Instant::now();
    let survey = conflicts.map(|text| Survey::new(plan, SurveySettings::from_json(text)?)).transpose()?;
    let report = exec::run_surveyed(plan, models, sidecars, survey.as_ref(), observer)?;
    let mut value = serde_json::to_value(&report).map_err(|e| Error::Internal { message: e.to_string() })?;
    if let Some(map) = value.as_object_mut() {
        if let Some(survey) = survey {
            map.insert("conflicts".into(), survey.finish(plan, Vec::new()));
        }
        map.insert("elapsed_seconds".into(), started.elapsed().as_secs_f64().into());
        map.insert("bytes_read".into(), plan.bytes_to_read().into());
        map.insert("bytes_written".into(), plan.bytes_to_write().into());
        map.insert("tensors_reused".into(), report.tensors_reused.into());
    }
    Ok(value.to_string())
}

fn sidecar((name, contents): (String, Bound<'_, PyAny>)) -> PyResult<Sidecar> {
    let contents = if let Ok(bytes) = contents.cast::<PyBytes>() {
        Contents::Bytes(bytes.as_bytes().to_vec())
    } else if let Ok(path) = contents.cast::<PyString>() {
        Contents::CopyOf(PathBuf::from(path.to_cow()?.as_ref()))
    } else {
        return Err(PyTypeError::new_err(format!("contents of {name:?} are neither bytes nor a path")));
    };
    Ok(Sidecar { name, contents })
}
