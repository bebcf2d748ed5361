//! Runs a plan: tiles in, tiles out, by workers of a private pool, into a staged output that appears whole.

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
mod neuromerging;
mod norms;
mod observer;
mod pass;
mod ram;
mod regmean;
mod resmerge;
mod run;
mod spectra;
mod statistics;
mod stats;
mod tile;
mod turnstile;

pub use conflicts::{Survey, SurveySettings, survey};
pub use observer::{Observer, Progress};

use crate::error::{Error, Result};
use crate::plan::family::Program;
use crate::plan::recipe::OutputForm;
use crate::plan::{MergePlan, marks};
use crate::report::{MarksReport, Report, TaskReport, TensorReport};
use crate::shard::Checkpoint;
use crate::writer::{Input, OutputKind, Stage, StagedFile, Target, preflight};
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
    let target = target(plan);
    check_output(plan, &target)?;
    let stage = Stage::create(&target)?;
    let mut files: Vec<StagedFile> =
        plan.layout.shards.iter().map(|s| stage.file(&s.name, s.bytes)).collect::<Result<_>>()?;
    for (file, shard) in files.iter().zip(&plan.layout.shards) {
        file.write_all_at(&shard.header, 0)?;
    }
    if let Some(marks) = &plan.marks {
        let file = stage.file(marks::FILE, marks.bytes)?;
        file.write_all_at(&marks.header, 0)?;
        files.push(file);
    }

    let (tensors, totals, learnt) = Run::new(plan, models, &files, observer)?.with_survey(survey).merge()?;
    let masks = plan.marks.as_ref().map(|m| write_scales(plan, m, &tensors, files.last())).transpose()?;
    for file in &files {
        file.settle(|| !observer.is_cancelled())?;
        file.finish()?;
    }
    for model in models {
        model.verify_unchanged()?;
    }
    check_expected(plan, &tensors)?;
    let report = Report {
        schema: "rlmerge.report/1",
        version: env!("CARGO_PKG_VERSION"),
        plan: plan.summary(),
        warnings: warnings(plan, &tensors),
        tensors,
        totals,
        learnt,
        masks,
    };
    if plan.recipe.strict {
        refuse_non_finite(&report)?;
    }
    if observer.is_cancelled() {
        return Err(Error::Cancelled);
    }
    if target.kind == OutputKind::Folder {
        write_small_files(&stage, plan, &report, sidecars)?;
    }
    stage.commit()?;
    Ok(report)
}

/// Everything about the output that can be checked without writing: it does not exist, is no input, fits.
///
/// # Errors
/// What [`preflight`] finds.
pub fn check(plan: &MergePlan) -> Result<()> {
    check_output(plan, &target(plan))
}

fn target(plan: &MergePlan) -> Target {
    let kind = match plan.recipe.output_kind {
        OutputForm::File => OutputKind::File,
        OutputForm::Folder => OutputKind::Folder,
    };
    let recipe = &plan.recipe;
    Target { path: recipe.output.clone(), kind, force: recipe.force, durability: recipe.durability }
}

fn check_output(plan: &MergePlan, target: &Target) -> Result<()> {
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
    let small = if target.kind == OutputKind::Folder { SMALL_FILES } else { 0 };
    preflight(target, &inputs, plan.bytes_to_write() + small, biggest)
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
        let inputs: u64 = t.non_finite.inputs.iter().sum();
        if inputs > 0 || t.non_finite.output > 0 {
            let first = t.non_finite.first.map_or_else(String::new, |i| format!(", first at element {i}"));
            out.push(format!(
                "tensor `{}`: {inputs} non-finite values in the models, {} in the output{first}",
                crate::error::escape(&t.name),
                t.non_finite.output
            ));
        }
    }
    out
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
