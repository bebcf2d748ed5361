//! Runs a plan: tiles in, tiles out, by workers of a private pool, into a staged output that appears whole.

mod checksums;
mod columns;
mod conflicts;
mod counters;
mod deltas;
mod digest;
mod element;
mod factors;
mod fisher;
mod gram;
mod job;
mod jobs;
mod linear;
mod mask;
mod masks;
mod memory;
mod neuromerging;
mod norms;
mod observer;
mod pass;
mod ram;
mod regmean;
mod reread;
mod resmerge;
mod resume;
mod run;
mod sieved;
mod spectra;
mod statistics;
mod stats;
mod tile;
mod turnstile;
mod verify;

pub use conflicts::{Survey, SurveySettings, survey};
pub use observer::{Observer, Progress};
pub use verify::verify;

use crate::error::{Error, Result};
use crate::kernel::PlainFloats;
use crate::plan::family::Program;
use crate::plan::recipe::{OnOverflow, OutputForm};
use crate::plan::{MergePlan, marks};
use crate::report::{MarksReport, NonFiniteCounts, Report, TaskReport, TensorReport};
use crate::shard::Checkpoint;
use crate::writer::{Input, OutputKind, Resumed, Stage, StagedFile, Target, left_over, preflight};
use run::Run;

/// A file that goes into an output folder besides the tensors.
#[derive(Debug, Clone)]
pub struct Sidecar {
    /// Its name in the folder.
    pub name: String,
    /// Its contents.
    pub contents: Contents,
}

/// Contents of a sidecar.
#[derive(Debug, Clone)]
pub enum Contents {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A copy of this file.
    CopyOf(std::path::PathBuf),
}

impl Sidecar {
    /// Bytes of its contents, as far as they can be known.
    fn bytes(&self) -> u64 {
        match &self.contents {
            Contents::Bytes(bytes) => bytes.len() as u64,
            Contents::CopyOf(path) => std::fs::metadata(path).map_or(0, |m| m.len()),
        }
    }
}

/// Room for the index, the report and other small files in the check for free space.
const SMALL_FILES: u64 = 16 << 20;
/// Name of the report in an output folder.
const REPORT: &str = "rlmerge.json";
/// Name of the index in a sharded output folder.
const INDEX: &str = "model.safetensors.index.json";

/// Runs a plan on the checkpoints that it was made from.
///
/// # Errors
/// Anything that goes wrong; the output then does not exist (or is the old one, under `force`).
pub fn run(
    plan: &MergePlan,
    models: &[Checkpoint],
    sidecars: &[Sidecar],
    observer: &Observer,
) -> Result<Report> {
    run_surveyed(plan, models, sidecars, None, observer)
}

/// Runs a plan, and gathers the statistics of a conflict report while its inputs are at hand.
///
/// # Errors
/// As for [`run`].
pub fn run_surveyed(
    plan: &MergePlan,
    models: &[Checkpoint],
    sidecars: &[Sidecar],
    survey: Option<&Survey>,
    observer: &Observer,
) -> Result<Report> {
    let _plain = PlainFloats::ask();
    let target = target(plan);
    let small = sidecars.iter().map(Sidecar::bytes).sum();
    check_output(plan, &target, small)?;
    let Resumed { mut stage, records } = open_stage(plan, &target)?;
    if records.is_none() {
        stage.start_journal(&resume::header(plan));
    }
    match fill(&stage, records.as_deref(), plan, models, sidecars, survey, observer) {
        Ok(report) => {
            let path = stage.path();
            let keep = keep_asked(plan) || is_dear(plan, &stage);
            if keep {
                stage.keep_if_refused();
            }
            stage.commit().inspect_err(|error| {
                if keep && matches!(error, Error::OutputExists { .. }) {
                    observer.keep(path);
                }
            })?;
            Ok(report)
        }
        Err(error) => {
            if is_kept(plan, &stage, &error) {
                observer.keep(stage.path());
                stage.keep();
            }
            Err(error)
        }
    }
}

/// Bytes of finished tensors from which on they are kept unasked.
const DEAR: u64 = 1_000_000_000;

/// Whether what is finished of a run that failed stays for a later one.
fn is_kept(plan: &MergePlan, stage: &Stage, error: &Error) -> bool {
    // The next run comes further than this one, if it is the same.
    let passing = matches!(
        error,
        Error::Cancelled | Error::NoSpace { .. } | Error::OutOfMemory { .. } | Error::NonFiniteOutput { .. }
    );
    // After an error of the disk nothing there is trusted: the system may have dropped bytes that it still shows.
    let trusted =
        !matches!(error, Error::Io { .. } | Error::NotDurable { .. } | Error::ReadBackDiffers { .. });
    stage.saved() > 0
        && (passing && (plan.recipe.resume || is_dear(plan, stage)) || trusted && plan.recipe.keep_partial)
}

fn keep_asked(plan: &MergePlan) -> bool {
    plan.recipe.resume || plan.recipe.keep_partial
}

/// Whether the work in a stage is too dear to be thrown away; nothing goes on with a rebuilt model.
fn is_dear(plan: &MergePlan, stage: &Stage) -> bool {
    plan.expected.is_none() && stage.saved() >= DEAR
}

/// An empty stage, or the one that a killed run of the same plan left.
fn open_stage(plan: &MergePlan, target: &Target) -> Result<Resumed> {
    if !plan.recipe.resume {
        return Ok(Resumed { stage: Stage::create(target)?, records: None });
    }
    let shards = plan.layout.shards.iter().map(|s| s.name.as_str());
    let files: Vec<&str> = shards.chain(plan.marks.iter().map(|_| marks::FILE)).collect();
    Stage::resume(target, &files, |header| resume::difference(plan, header))
}

/// Writes everything into a stage; `records` are those of the journal of an earlier run.
fn fill(
    stage: &Stage,
    records: Option<&[String]>,
    plan: &MergePlan,
    models: &[Checkpoint],
    sidecars: &[Sidecar],
    survey: Option<&Survey>,
    observer: &Observer,
) -> Result<Report> {
    let open = |name: &str, bytes: u64| match records {
        Some(_) => stage.reopen(name, bytes),
        None => Ok((stage.file(name, bytes)?, false)),
    };
    let shards = plan.layout.shards.iter().map(|s| (s.name.as_str(), s.bytes, &s.header));
    let marks_file = plan.marks.iter().map(|m| (marks::FILE, m.bytes, &m.header));
    let (mut files, mut old) = (Vec::<StagedFile>::new(), Vec::new());
    for (name, bytes, header) in shards.chain(marks_file) {
        let (file, was_there) = open(name, bytes)?;
        file.write_all_at(header, 0)?;
        files.push(file);
        old.push(was_there);
    }

    let mut run = Run::new(plan, models, &files, observer)?.with_survey(survey)?.with_journal(stage);
    let reused = records.map(|records| run.resume(records, &old)).transpose()?.unwrap_or(0);
    let shortage = run.shortage();
    let (tensors, totals, learnt) = run.merge()?;
    let masks = plan.marks.as_ref().map(|m| write_scales(plan, m, &tensors, files.last())).transpose()?;
    for file in &files {
        file.settle(|| !observer.is_cancelled())?;
        file.finish()?;
    }
    if plan.recipe.verify_inputs {
        reread::reread(plan, models, &tensors, observer)?;
    }
    for model in models {
        model.verify_unchanged()?;
    }
    check_expected(plan, &tensors)?;
    let report = Report {
        schema: "rlmerge.report/1",
        version: env!("CARGO_PKG_VERSION"),
        plan: plan.summary(),
        warnings: shortage.into_iter().chain(warnings(plan, &tensors)).collect(),
        tensors,
        totals,
        learnt,
        masks,
        tensors_reused: reused,
    };
    if plan.recipe.strict {
        refuse_non_finite(&report)?;
    }
    if plan.recipe.on_overflow == OnOverflow::Error {
        refuse_overflow(&report)?;
    }
    if observer.is_cancelled() {
        return Err(Error::Cancelled);
    }
    if plan.recipe.output_kind == OutputForm::Folder {
        write_small_files(stage, plan, &report, sidecars)?;
    }
    if plan.recipe.verify {
        files.iter().for_each(StagedFile::forget);
        verify::read_back(stage, plan, &report, observer)?;
    }
    Ok(report)
}

/// Everything about the output that can be checked without writing: it does not exist, is no input, fits.
///
/// # Errors
/// What [`preflight`] finds.
pub fn check(plan: &MergePlan) -> Result<()> {
    check_output(plan, &target(plan), 0)
}

fn target(plan: &MergePlan) -> Target {
    let kind = match plan.recipe.output_kind {
        OutputForm::File => OutputKind::File,
        OutputForm::Folder => OutputKind::Folder,
    };
    let recipe = &plan.recipe;
    Target { path: recipe.output.clone(), kind, force: recipe.force, durability: recipe.durability }
}

fn check_output(plan: &MergePlan, target: &Target, sidecars: u64) -> Result<()> {
    let inputs: Vec<Input> = plan
        .models
        .iter()
        .chain(&plan.statistics)
        .flat_map(|m| {
            use std::os::unix::fs::MetadataExt as _;
            let parts = m.parts.as_ref().map_or_else(|| vec![&m.path], |p| vec![&p.base, &p.adapter]);
            let itself = parts.into_iter().filter_map(|path| {
                let meta = std::fs::metadata(path).ok()?;
                Some(Input { path: path.clone(), dev: meta.dev(), ino: meta.ino() })
            });
            let shards = m.shards.iter().map(|s| Input {
                path: s.path.clone(),
                dev: s.identity.dev,
                ino: s.identity.ino,
            });
            itself.chain(shards)
        })
        .collect();
    let shards = plan.layout.shards.iter().map(|s| s.bytes);
    let biggest = shards.chain(plan.marks.iter().map(|m| m.bytes)).max().unwrap_or(0);
    let small = if target.kind == OutputKind::Folder { SMALL_FILES + sidecars } else { 0 };
    let reserved = if plan.recipe.resume { left_over(&target.path) } else { 0 };
    preflight(target, &inputs, (plan.bytes_to_write() + small).saturating_sub(reserved), biggest)
}

fn write_small_files(stage: &Stage, plan: &MergePlan, report: &Report, sidecars: &[Sidecar]) -> Result<()> {
    if let Some(index) = &plan.layout.index {
        stage.write_file(INDEX, index)?;
    }
    let mut text =
        serde_json::to_vec_pretty(report).map_err(|e| Error::Internal { message: e.to_string() })?;
    text.push(b'\n');
    stage.write_file(REPORT, &text)?;
    for sidecar in sidecars {
        match &sidecar.contents {
            Contents::Bytes(bytes) => stage.write_file(&sidecar.name, bytes)?,
            Contents::CopyOf(path) => stage.copy_file(&sidecar.name, path)?,
        }
    }
    Ok(())
}

/// Writes the scale of each task into the file of masks.
///
/// EMR's scale of a task is the sum over the tensors of its mean |δ|, divided by that of its mean |m ⊙ τ|: means of
/// tensors, not of elements (methods.md of the project; Huang et al., section 3.2).
fn write_scales(
    plan: &MergePlan,
    marks: &marks::MarksFile,
    tensors: &[TensorReport],
    file: Option<&StagedFile>,
) -> Result<MarksReport> {
    // By name, so that the sums do not depend on how files are laid out.
    let mut by_name: Vec<(&TensorReport, u64)> = tensors
        .iter()
        .zip(&plan.tensors)
        .map(|(report, planned)| (report, planned.elements))
        .filter(|(report, elements)| !report.sums.is_empty() && *elements > 0)
        .collect();
    by_name.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    let scale = |task: usize| {
        let sum = |at: usize| by_name.iter().map(|(t, n)| t.sums[at] / *n as f64).sum::<f64>();
        let (whole, masked) = (sum(2 * task), sum(2 * task + 1));
        if marks.scaled && masked > 0.0 { whole / masked } else { 1.0 }
    };
    let tasks: Vec<TaskReport> = marks
        .tasks
        .iter()
        .enumerate()
        .map(|(task, name)| TaskReport { name: name.clone(), scale: scale(task) })
        .collect();
    let bytes: Vec<u8> = tasks.iter().flat_map(|t| t.scale.to_le_bytes()).collect();
    if let Some(file) = file {
        file.write_all_at(&bytes, marks.scales)?;
    }
    let hex = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
    Ok(MarksReport {
        file: marks::FILE,
        format: marks::FORMAT,
        bytes: marks.bytes,
        header_blake3: hex(&marks.header),
        scales_blake3: hex(&bytes),
        tasks,
    })
}

/// Compares what was read with what the merged model was written from: nothing is rebuilt out of other bytes.
fn check_expected(plan: &MergePlan, tensors: &[TensorReport]) -> Result<()> {
    let Some(expected) = &plan.expected else { return Ok(()) };
    for program in &plan.programs {
        if let Program::Expand(expand) = program {
            expand.masks.verify_unchanged()?;
        }
    }
    for report in tensors {
        let differs = |path: &std::path::Path| {
            Err(Error::ChecksumMismatch { path: path.to_path_buf(), tensor: report.name.clone() })
        };
        let Some(known) = expected.tensors.get(&report.name) else { return differs(&expected.merged) };
        let [merged, base] = &report.source_blake3[..] else {
            return Err(Error::Internal { message: "a tensor without checksums of its models".into() });
        };
        if *merged != known.merged {
            return differs(&expected.merged);
        }
        if known.base.as_ref().is_some_and(|known| known != base) {
            return differs(&expected.base);
        }
        if let (Some(known), Some(mask)) = (&known.mask, report.mask_blake3.first())
            && known != mask
        {
            return differs(&expected.masks);
        }
    }
    Ok(())
}

fn warnings(plan: &MergePlan, tensors: &[TensorReport]) -> Vec<String> {
    let mut out = plan.warnings.clone();
    for t in tensors {
        let name = crate::error::escape(&t.name);
        let NonFiniteCounts { inputs, input_first, output, first, made_here, made_here_first, clamped } =
            &t.non_finite;
        let total: u64 = inputs.iter().sum();
        let at = |first: &Option<u64>| first.map_or_else(String::new, |i| format!(", first at element {i}"));
        if total > 0 || *output > 0 {
            let first = if first.is_some() {
                first
            } else {
                input_first.iter().find(|i| i.is_some()).unwrap_or(first)
            };
            out.push(format!(
                "tensor `{name}`: {total} non-finite values in the models, {output} in the output{}",
                at(first)
            ));
        }
        if *made_here > 0 {
            out.push(format!(
                "tensor `{name}`: {made_here} of them come of finite values, which {} cannot hold{}",
                t.dtype.name(),
                at(made_here_first)
            ));
        }
        if *clamped > 0 {
            out.push(format!(
                "tensor `{name}`: {clamped} values were cut off at the largest that {} can hold",
                t.dtype.name()
            ));
        }
        if t.odd_bools > 0 {
            out.push(format!(
                "tensor `{name}`: {} bytes of BOOL are neither 0 nor 1; they were copied",
                t.odd_bools
            ));
        }
    }
    out
}

fn refuse_overflow(report: &Report) -> Result<()> {
    let mut odd = report.tensors.iter().filter(|t| t.non_finite.made_here > 0);
    let Some(first) = odd.next() else { return Ok(()) };
    Err(Error::Overflow {
        count: report.totals.non_finite_made_here,
        tensors: 1 + odd.count() as u64,
        tensor: first.name.clone(),
        dtype: first.dtype.name(),
        element: first.non_finite.made_here_first.unwrap_or(0),
    })
}

fn refuse_non_finite(report: &Report) -> Result<()> {
    let mut odd = report.tensors.iter().filter(|t| t.non_finite.output > 0);
    let Some(first) = odd.next() else { return Ok(()) };
    Err(Error::NonFiniteOutput {
        count: report.totals.non_finite_output,
        tensors: 1 + odd.count() as u64,
        tensor: first.name.clone(),
        element: first.non_finite.first.unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::plan::recipe::Recipe;

    fn write(path: &Path, names: &[&str]) {
        const LEN: usize = 1 << 20;
        let mut header = serde_json::Map::new();
        for (at, name) in names.iter().enumerate() {
            let offsets = [at * LEN, (at + 1) * LEN];
            let entry = serde_json::json!({"dtype": "F32", "shape": [LEN / 4], "data_offsets": offsets});
            header.insert((*name).to_owned(), entry);
        }
        let header = serde_json::to_vec(&header).unwrap();
        let data = vec![1; LEN * names.len()];
        std::fs::write(path, [&(header.len() as u64).to_le_bytes(), &header[..], &data].concat()).unwrap();
    }

    #[test]
    fn a_panic_in_a_worker_is_an_error_that_leaves_nothing() {
        crate::error::keep_panics_short();
        for at in 0..6 {
            let dir = tempfile::tempdir().unwrap();
            let mut names: Vec<String> = (0..6).map(|i| format!("t{i}")).collect();
            names[at] = run::PANICS.to_owned();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            for model in ["base", "a", "b"] {
                write(&dir.path().join(format!("{model}.safetensors")), &names);
            }
            let path = |name: &str| dir.path().join(name);
            let recipe = serde_json::json!({
                "method": "ties", "models": [{"path": path("a.safetensors")}, {"path": path("b.safetensors")}],
                "base": path("base.safetensors"), "output": path("out.safetensors"), "output_kind": "file",
                "threads": 3,
            });
            let (plan, models) = MergePlan::prepare(Recipe::from_json(&recipe.to_string()).unwrap()).unwrap();
            let error = run(&plan, &models, &[], &Observer::default()).unwrap_err();
            assert_eq!((error.code(), error.exit_code()), ("internal", 1));
            let text = error.to_string();
            assert!(
                text.starts_with("internal error (a bug in rlmerge): asked to (")
                    && text.contains("output.rs:"),
                "{text}"
            );
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "something was left behind");
        }
    }
}
