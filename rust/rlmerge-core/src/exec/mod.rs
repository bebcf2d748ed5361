//! Runs a plan: tiles in, tiles out, by workers of a private pool, into a staged output that appears whole.

mod deltas;
mod digest;
mod fisher;
mod job;
mod jobs;
mod linear;
mod neuromerging;
mod norms;
mod observer;
mod pass;
mod regmean;
mod resmerge;
mod run;
mod slerp;
mod statistics;
mod stats;
mod tile;
mod turnstile;

pub use observer::{Observer, Progress};

use crate::error::{Error, Result};
use crate::plan::MergePlan;
use crate::plan::recipe::OutputForm;
use crate::report::{Report, TensorReport};
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
    let target = target(plan);
    check_output(plan, &target)?;
    let stage = Stage::create(&target)?;
    let files: Vec<StagedFile> =
        plan.layout.shards.iter().map(|s| stage.file(&s.name, s.bytes)).collect::<Result<_>>()?;
    for (file, shard) in files.iter().zip(&plan.layout.shards) {
        file.write_all_at(&shard.header, 0)?;
    }

    let (tensors, totals, modifiers) = Run::new(plan, models, &files, observer)?.merge()?;
    for file in &files {
        file.settle(|| !observer.is_cancelled())?;
        file.finish()?;
    }
    for model in models {
        model.verify_unchanged()?;
    }
    let report = Report {
        schema: "rlmerge.report/1",
        version: env!("CARGO_PKG_VERSION"),
        plan: plan.summary(),
        warnings: warnings(plan, &tensors),
        tensors,
        totals,
        modifiers,
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
            let itself = std::fs::metadata(&m.path)
                .map(|meta| Input { path: m.path.clone(), dev: meta.dev(), ino: meta.ino() })
                .ok();
            let shards = m.shards.iter().map(|s| Input {
                path: s.path.clone(),
                dev: s.identity.dev,
                ino: s.identity.ino,
            });
            itself.into_iter().chain(shards)
        })
        .collect();
    let biggest = plan.layout.shards.iter().map(|s| s.bytes).max().unwrap_or(0);
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
