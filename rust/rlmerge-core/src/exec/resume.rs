//! What the journal of a stage holds, and which of it still counts: a run goes on with a killed one only when both
//! would write the same bytes, and only with tensors whose bytes are there.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::checksums::{self, Extent};
use super::observer::Observer;
use super::pass::Workers;
use super::stats::Finished;
use crate::error::Result;
use crate::plan::family::Program;
use crate::plan::{MergePlan, PlannedModel, PlannedTensor, marks};
use crate::report::{NonFiniteCounts, Norm, TensorReport};
use crate::shard::FileIdentity;
use crate::writer::StagedFile;

/// Name and version of the form of a journal.
const SCHEMA: &str = "rlmerge.journal/1";

/// What may differ between a run and the one that goes on with it.
const INDIFFERENT: [&str; 11] = [
    "output",
    "threads",
    "io",
    "durability",
    "force",
    "resume",
    "keep_partial",
    "verify",
    "verify_inputs",
    "no_symlinks",
    "strict",
];

/// The first record: what decides the bytes of the output, in parts, so that a difference can be named.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    schema: String,
    version: String,
    /// BLAKE3 of what was asked for.
    recipe: String,
    /// BLAKE3 of which files are read.
    inputs: String,
    /// BLAKE3 of tensors and files of the output.
    output: String,
}

impl Header {
    fn of(plan: &MergePlan) -> Self {
        Self {
            schema: SCHEMA.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            recipe: digest(&recipe(plan)),
            inputs: digest(&inputs(plan)),
            output: digest(&output(plan)),
        }
    }
}

fn digest(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

/// The recipe without what changes no byte.
fn recipe(plan: &MergePlan) -> String {
    let mut recipe = json!(plan.recipe);
    if let Some(map) = recipe.as_object_mut() {
        for key in INDIFFERENT {
            map.remove(key);
        }
    }
    json!([recipe, plan.settings.method.name, plan.settings.global, plan.settings.experts]).to_string()
}

fn inputs(plan: &MergePlan) -> String {
    let file = |identity: &FileIdentity, header: &str| {
        json!([identity.dev, identity.ino, identity.size, identity.mtime_ns, header])
    };
    let model = |m: &PlannedModel| -> Value {
        m.shards.iter().map(|s| file(&s.identity, &s.header_blake3)).collect()
    };
    let mut all: Vec<Value> = plan.models.iter().chain(&plan.statistics).map(model).collect();
    for program in &plan.programs {
        if let Program::Expand(expand) = program {
            all.extend(expand.masks.shards().iter().map(|s| file(&s.identity, &s.header_blake3)));
        }
    }
    json!(all).to_string()
}

/// What is written where, and out of which bytes of the inputs; adapters with their scales.
fn output(plan: &MergePlan) -> String {
    let tensors = plan.tensors.iter().map(|t| {
        let sources = format!("{:?}", t.sources);
        json!([t.name, t.dtype, t.shape, t.action.name(), t.program, t.depth, t.shard, t.offset, sources])
    });
    let shards = plan.layout.shards.iter().map(|s| json!([s.name, s.bytes]));
    let tensors: Vec<Value> = tensors.chain(shards).collect();
    let masks = plan.marks.as_ref().map(|m| (blake3::hash(&m.header).to_hex().to_string(), &m.rows));
    json!([tensors, masks]).to_string()
}

/// The first record of the journal of a plan.
pub fn header(plan: &MergePlan) -> String {
    json!(Header::of(plan)).to_string()
}

/// How the run with this first record differs from a plan, if it does.
pub fn difference(plan: &MergePlan, header: &str) -> Option<String> {
    let ours = Header::of(plan);
    let Ok(theirs) = serde_json::from_str::<Header>(header) else {
        return Some("its journal is not one that this version writes".into());
    };
    let what = match () {
        () if theirs.schema != ours.schema => "its journal is of another version",
        () if theirs.version != ours.version => {
            return Some(format!("it was made by rlmerge {}, this is {}", theirs.version, ours.version));
        }
        () if theirs.recipe != ours.recipe => "its recipe was another one",
        () if theirs.inputs != ours.inputs => "its inputs were other files, or have changed since",
        () if theirs.output != ours.output => "its output was laid out otherwise",
        () => return None,
    };
    Some(what.into())
}

/// A tensor that is finished. Numbers with a fraction are kept as their bits: no digit may get lost.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    tensor: usize,
    name: String,
    tiles: u64,
    tiles_copied: u64,
    copied: bool,
    blake3: String,
    norm: Option<u64>,
    expert_norms: Vec<Option<u64>>,
    non_finite: NonFiniteCounts,
    odd_bools: u64,
    masks: Vec<String>,
    sources: Vec<String>,
    sums: Vec<u64>,
}

/// The record of a tensor.
pub fn record(tensor: usize, finished: &Finished) -> String {
    let Finished { report, tiles, tiles_copied } = finished;
    let bits = |norm: &Option<Norm>| norm.map(|n| n.0.to_bits());
    json!(Record {
        tensor,
        name: report.name.clone(),
        tiles: *tiles,
        tiles_copied: *tiles_copied,
        copied: report.action == "copied",
        blake3: report.blake3.clone(),
        norm: bits(&report.norm),
        expert_norms: report.expert_norms.iter().map(bits).collect(),
        non_finite: report.non_finite.clone(),
        odd_bools: report.odd_bools,
        masks: report.mask_blake3.clone(),
        sources: report.source_blake3.clone(),
        sums: report.sums.iter().map(|s| s.to_bits()).collect(),
    })
    .to_string()
}

fn restored(plan: &MergePlan, tensor: &PlannedTensor, record: Record) -> Finished {
    let norm = |bits: Option<u64>| bits.map(|b| Norm(f64::from_bits(b)));
    Finished {
        report: TensorReport {
            name: tensor.name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            shard: plan.layout.shards[tensor.shard].name.clone(),
            action: if record.copied { "copied" } else { "computed" },
            blake3: record.blake3,
            norm: norm(record.norm),
            expert_norms: record.expert_norms.into_iter().map(norm).collect(),
            non_finite: record.non_finite,
            odd_bools: record.odd_bools,
            mask_blake3: record.masks,
            source_blake3: record.sources,
            sums: record.sums.into_iter().map(f64::from_bits).collect(),
        },
        tiles: record.tiles,
        tiles_copied: record.tiles_copied,
    }
}

/// The tensors that the records of a journal tell of: those that are wanted, in files that were there. Of several
/// records of a tensor the last counts.
pub fn read(
    plan: &MergePlan,
    records: &[String],
    old: &[bool],
    wanted: &dyn Fn(&PlannedTensor) -> bool,
) -> Vec<(usize, Finished)> {
    let is_old = |file: usize| old.get(file).copied().unwrap_or(false);
    let mut found: Vec<Option<Finished>> = plan.tensors.iter().map(|_| None).collect();
    for line in records {
        let Ok(record) = serde_json::from_str::<Record>(line) else { continue };
        let at = record.tensor;
        let Some(tensor) = plan.tensors.get(at).filter(|t| t.name == record.name && wanted(t)) else {
            continue;
        };
        let rows = plan.mark_rows(tensor);
        if is_old(tensor.shard)
            && record.masks.len() == rows
            && (record.sums.is_empty() || record.sums.len() == 2 * rows)
            && (rows == 0 || is_old(plan.layout.shards.len()))
            && record.tiles == tensor.tiles()
        {
            found[at] = Some(restored(plan, tensor, record));
        }
    }
    found.into_iter().enumerate().filter_map(|(at, tensor)| tensor.map(|t| (at, t))).collect()
}

/// Hashes what is in the files, and leaves those tensors whose bytes are what was recorded.
pub fn check(
    plan: &MergePlan,
    files: &[StagedFile],
    recorded: Vec<(usize, Finished)>,
    workers: &Workers,
    observer: &Observer,
) -> Result<Vec<(usize, Finished)>> {
    let mut extents = Vec::new();
    let mut counts = Vec::with_capacity(recorded.len());
    for (at, _) in &recorded {
        let tensor = &plan.tensors[*at];
        let before = extents.len();
        extents.push(Extent { file: &files[tensor.shard], begin: tensor.offset, len: tensor.bytes });
        let begin = plan.marks.as_ref().and_then(|m| m.rows[*at]);
        if let (Some(begin), Some(file)) = (begin, files.get(plan.layout.shards.len())) {
            let len = marks::row_bytes(tensor.elements);
            let rows = 0..plan.mark_rows(tensor) as u64;
            extents.extend(rows.map(|row| Extent { file, begin: begin + row * len, len }));
        }
        counts.push(extents.len() - before);
    }
    let mut hashes = checksums::hash(&extents, workers, observer, &|_| ())?.into_iter();
    let mut kept = Vec::new();
    for ((at, tensor), count) in recorded.into_iter().zip(counts) {
        let report = &tensor.report;
        let found: Vec<_> = hashes.by_ref().take(count).collect();
        let expected = std::iter::once(&report.blake3).chain(&report.mask_blake3);
        let same = found.len() == 1 + report.mask_blake3.len()
            && expected.zip(&found).all(|(expected, found)| found.as_ref().is_ok_and(|f| f == expected));
        if same {
            kept.push((at, tensor));
        }
    }
    Ok(kept)
}
