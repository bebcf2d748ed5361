//! Reading an output back against what the merge said of it: every tensor's checksum, every header, the index both
//! ways, the configuration, the masks.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::checksums::{self, Extent};
use super::observer::Observer;
use super::pass::Workers;
use super::tile::Work;
use crate::dtype::DType;
use crate::error::{Error, Result, escape};
use crate::kernel::{CHUNK, Level};
use crate::plan::recipe::OutputForm;
use crate::plan::{MergePlan, marks};
use crate::report::Report;
use crate::report::verification as found;
use crate::report::verification::{Diagnostic, Finding, Severity, Verification};
use crate::shard::{Checkpoint, Tensor, is_embedding, read_report, read_report_file};
use crate::writer::Stage;

/// Longest plain file name.
const LONGEST_NAME: usize = 255;

/// As much of a report as can be checked.
#[derive(Debug, Deserialize)]
struct Manifest {
    schema: String,
    plan: Plan,
    tensors: Vec<Entry>,
    #[serde(default)]
    masks: Option<Masks>,
}

#[derive(Debug, Deserialize)]
struct Plan {
    output: Output,
}

#[derive(Debug, Deserialize)]
struct Output {
    shards: Vec<ShardEntry>,
    index: bool,
    #[serde(default)]
    tie_word_embeddings: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct ShardEntry {
    name: String,
    bytes: u64,
}

#[derive(Debug, Deserialize)]
struct Entry {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    shard: String,
    blake3: String,
    #[serde(default)]
    mask_blake3: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Masks {
    bytes: u64,
    header_blake3: String,
    scales_blake3: String,
    tasks: Vec<Task>,
}

#[derive(Debug, Deserialize)]
struct Task {
    name: String,
}

impl Manifest {
    fn parse(value: Value) -> std::result::Result<Self, String> {
        let manifest: Self = serde_json::from_value(value).map_err(|e| escape(&e.to_string()))?;
        if manifest.schema != "rlmerge.report/1" {
            return Err(format!("its schema is `{}`, not `rlmerge.report/1`", escape(&manifest.schema)));
        }
        let mut shards = HashSet::new();
        for shard in &manifest.plan.output.shards {
            if !is_plain(&shard.name) || !shards.insert(shard.name.as_str()) {
                return Err(format!("`{}` is not the name of a file of its own", escape(&shard.name)));
            }
        }
        let mut names = HashSet::new();
        for tensor in &manifest.tensors {
            if !shards.contains(tensor.shard.as_str()) || !names.insert(tensor.name.as_str()) {
                return Err(format!("tensor `{}` is there twice, or in no file", escape(&tensor.name)));
            }
        }
        Ok(manifest)
    }
}

/// A name that leads nowhere but into the folder.
fn is_plain(name: &str) -> bool {
    let odd = |c: char| matches!(c, '/' | '\\') || c.is_control();
    !name.is_empty() && !matches!(name, "." | "..") && name.len() <= LONGEST_NAME && !name.contains(odd)
}

/// What a checksum is of.
enum Expected<'a> {
    Tensor(&'a Entry),
    /// The bits of this task in this tensor.
    Mask(&'a Entry, usize),
    Scales,
}

/// A verification at work.
struct Verifier<'a> {
    path: &'a Path,
    manifest: &'a Manifest,
    /// Whether the path is that of a single file.
    single: bool,
    /// Whether the observer is told how far it is.
    counted: bool,
    findings: Vec<Finding>,
}

/// Reads back what a merge has written and not yet published, and compares it with what the merge computed.
///
/// # Errors
/// [`Error::ReadBackDiffers`] with the first thing that is wrong; [`Error::Threads`], [`Error::Cancelled`].
pub fn read_back(stage: &Stage, plan: &MergePlan, report: &Report, observer: &Observer) -> Result<()> {
    let manifest = serde_json::to_value(report).map_err(|e| e.to_string()).and_then(Manifest::parse);
    let manifest = manifest.map_err(|message| Error::Internal { message })?;
    let single = plan.recipe.output_kind == OutputForm::File;
    let folder = stage.path();
    let first = plan.layout.shards.first().filter(|_| single);
    let path = first.map_or_else(|| folder.clone(), |shard| folder.join(&shard.name));
    let workers = Workers::start(plan.threads.max(1), || Work::new(Level::choose(), 1, CHUNK))?;
    let mut verifier =
        Verifier { path: &path, manifest: &manifest, single, counted: false, findings: Vec::new() };
    verifier.run(&workers, observer)?;
    let wrong = verifier.findings.into_iter().find(|f| f.diagnostic.severity == Severity::Error);
    wrong.map_or(Ok(()), |finding| {
        let output = &plan.recipe.output;
        Err(Error::ReadBackDiffers {
            path: if single { output.clone() } else { output.join(&finding.file) },
            message: finding.message,
            tensor: finding.tensor,
        })
    })
}

/// Verifies an output against the report in its folder, or against another one (`manifest`); a single file has none of
/// its own. Only the system's refusal to start is an error: what is wrong with the output is among the findings.
///
/// # Errors
/// [`Error::ModelNotFound`], [`Error::NotACheckpoint`] when there is nothing to verify against, [`Error::Threads`],
/// [`Error::Cancelled`].
pub fn verify(
    path: &Path,
    manifest: Option<&Path>,
    threads: Option<usize>,
    observer: &Observer,
) -> Result<Verification> {
    let metadata = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::ModelNotFound { path: path.to_path_buf() },
        _ => Error::io(path, "looking at the path", e),
    })?;
    let single = !metadata.is_dir();
    let report = match manifest {
        Some(file) => read_report_file(file),
        None if single => {
            let message = "a single file, which holds no report to verify it against; give the one that `rlmerge \
                           merge --json` printed with --manifest";
            return Err(Error::NotACheckpoint { path: path.to_path_buf(), message: message.into() });
        }
        None => read_report(path),
    };
    let parsed = match report {
        Ok(value) => Manifest::parse(value),
        Err(Error::BadConfig { message, .. }) => Err(message),
        Err(error) => return Err(error),
    };
    let mut result = Verification {
        schema: "rlmerge.verify/1",
        path: path.to_string_lossy().into_owned(),
        ok: false,
        shards: 0,
        tensors: 0,
        tensors_verified: 0,
        bytes: 0,
        findings: Vec::new(),
    };
    let manifest = match parsed {
        Ok(manifest) => manifest,
        Err(message) => {
            let file = manifest.map_or_else(|| "rlmerge.json".into(), |m| m.to_string_lossy().into_owned());
            let diagnostic = found::MANIFEST_DAMAGED;
            result.findings.push(Finding { diagnostic, file, tensor: None, message });
            return Ok(result);
        }
    };
    let threads = threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
        .max(1);
    let workers = Workers::start(threads, || Work::new(Level::choose(), 1, CHUNK))?;
    let mut verifier = Verifier { path, manifest: &manifest, single, counted: true, findings: Vec::new() };
    (result.tensors_verified, result.bytes) = verifier.run(&workers, observer)?;
    result.shards = manifest.plan.output.shards.len();
    result.tensors = manifest.tensors.len();
    result.ok = verifier.findings.iter().all(|f| f.diagnostic.severity == Severity::Warning);
    result.findings = verifier.findings;
    Ok(result)
}

impl<'a> Verifier<'a> {
    /// All checks; gives the tensors whose checksum held and the bytes that were hashed.
    fn run(&mut self, workers: &Workers, observer: &Observer) -> Result<(usize, u64)> {
        let manifest = self.manifest;
        let shards: HashMap<&str, Checkpoint> = manifest
            .plan
            .output
            .shards
            .iter()
            .filter_map(|shard| Some((shard.name.as_str(), self.open_shard(shard)?)))
            .collect();
        let mut extents = Vec::new();
        let mut expected = Vec::new();
        for entry in &manifest.tensors {
            if let Some(shard) = shards.get(entry.shard.as_str())
                && let Some(tensor) = self.tensor(entry, shard)
            {
                extents.push(extent(shard, tensor));
                expected.push(Expected::Tensor(entry));
            }
        }
        self.unexpected_tensors(&shards);
        let masks = self.masks();
        if let Some(masks) = &masks {
            self.expect_masks(masks, &mut extents, &mut expected);
        }
        if !self.single {
            self.folder(&shards)?;
        }

        let bytes = extents.iter().map(|e| e.len).sum();
        let counted = self.counted;
        if counted {
            observer.begin(bytes, manifest.tensors.len() as u64);
        }
        let seen = |n| {
            if counted {
                observer.add_bytes(n)
            }
        };
        let hashes = checksums::hash(&extents, workers, observer, &seen)?;
        let mut verified = 0;
        for (want, hash) in expected.iter().zip(hashes) {
            verified += usize::from(self.compare(want, hash));
        }
        if counted {
            manifest.tensors.iter().for_each(|_| observer.add_tensor());
        }
        Ok((verified, bytes))
    }

    fn find(&mut self, diagnostic: Diagnostic, file: &str, tensor: Option<&str>, message: impl Into<String>) {
        let tensor = tensor.map(str::to_owned);
        self.findings.push(Finding { diagnostic, file: file.into(), tensor, message: message.into() });
    }

    fn place(&self, name: &str) -> PathBuf {
        if self.single { self.path.to_path_buf() } else { self.path.join(name) }
    }

    /// Opens a file of tensors by the strict parser.
    fn open_shard(&mut self, shard: &ShardEntry) -> Option<Checkpoint> {
        self.open(&shard.name, shard.bytes, [found::SHARD_MISSING, found::SHARD_SIZE, found::SHARD_DAMAGED])
    }

    /// Opens a file that should have so many bytes; `kinds` are the findings when it is missing, of another size, or
    /// damaged.
    fn open(&mut self, name: &str, bytes: u64, kinds: [Diagnostic; 3]) -> Option<Checkpoint> {
        let [missing, size, damaged] = kinds;
        let path = self.place(name);
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(e) => {
                self.find(missing, name, None, format!("cannot be opened: {e}"));
                return None;
            }
        };
        if metadata.is_dir() {
            self.find(damaged, name, None, "a folder, not a file");
            return None;
        }
        let whole = metadata.len() == bytes;
        if !whole {
            self.find(size, name, None, format!("{} bytes, the merge wrote {bytes}", metadata.len()));
        }
        match Checkpoint::open(&path) {
            Ok(checkpoint) => {
                for warning in checkpoint.warnings() {
                    self.find(found::UNUSUAL, name, None, warning.clone());
                }
                Some(checkpoint)
            }
            Err(error) => {
                if whole {
                    self.find(damaged, name, error.tensor(), error.to_string());
                }
                None
            }
        }
    }

    /// A tensor in its file, when it is there as the merge described it.
    fn tensor<'c>(&mut self, entry: &Entry, shard: &'c Checkpoint) -> Option<&'c Tensor> {
        let name = Some(entry.name.as_str());
        let Some(tensor) = shard.get(&entry.name) else {
            self.find(found::TENSOR_MISSING, &entry.shard, name, "is not in the file");
            return None;
        };
        if tensor.dtype.name() != entry.dtype || tensor.shape != entry.shape {
            let message = format!(
                "is {} of shape {:?}, the merge wrote {} of shape {:?}",
                tensor.dtype,
                tensor.shape,
                escape(&entry.dtype),
                entry.shape
            );
            self.find(found::TENSOR_DESCRIBED, &entry.shard, name, message);
            return None;
        }
        Some(tensor)
    }

    fn unexpected_tensors(&mut self, shards: &HashMap<&str, Checkpoint>) {
        let manifest = self.manifest;
        let known: HashSet<(&str, &str)> =
            manifest.tensors.iter().map(|t| (t.shard.as_str(), t.name.as_str())).collect();
        for shard in &manifest.plan.output.shards {
            let Some(checkpoint) = shards.get(shard.name.as_str()) else { continue };
            for tensor in checkpoint.tensors() {
                if !known.contains(&(shard.name.as_str(), tensor.name.as_str())) {
                    let message = "the merge wrote no such tensor into this file";
                    self.find(found::TENSOR_UNEXPECTED, &shard.name, Some(&tensor.name), message);
                }
            }
        }
    }

    /// Opens the file of masks, if the merge wrote one.
    fn masks(&mut self) -> Option<Checkpoint> {
        let manifest = self.manifest;
        let masks = manifest.masks.as_ref().filter(|_| !self.single)?;
        let file = self.open(marks::FILE, masks.bytes, [found::MASKS_DAMAGED; 3])?;
        if file.shards()[0].header_blake3 != masks.header_blake3 {
            self.find(
                found::MASKS_DAMAGED,
                marks::FILE,
                None,
                "its header is not the one that the merge wrote",
            );
            return None;
        }
        Some(file)
    }

    /// Adds what the file of masks should hold: the scales, and the bits of every task.
    fn expect_masks<'f>(
        &mut self,
        masks: &'f Checkpoint,
        extents: &mut Vec<Extent<'f>>,
        expected: &mut Vec<Expected<'a>>,
    ) {
        if let Some(scales) = masks.get(marks::SCALES) {
            extents.push(extent(masks, scales));
            expected.push(Expected::Scales);
        }
        let manifest = self.manifest;
        for entry in manifest.tensors.iter().filter(|t| !t.mask_blake3.is_empty()) {
            let tasks = entry.mask_blake3.len() as u64;
            let Some(tensor) =
                masks.get(&marks::name(&entry.name)).filter(|t| t.shape.first() == Some(&tasks))
            else {
                self.find(found::MASKS_DAMAGED, marks::FILE, Some(&entry.name), "has no masks in the file");
                continue;
            };
            let len = tensor.bytes() / tasks;
            for task in 0..entry.mask_blake3.len() {
                let begin = tensor.begin + task as u64 * len;
                extents.push(Extent { file: &masks.shards()[tensor.shard], begin, len });
                expected.push(Expected::Mask(entry, task));
            }
        }
    }

    /// Whether a checksum is what it should be.
    fn compare(&mut self, want: &Expected<'_>, hash: Result<String>) -> bool {
        let manifest = self.manifest;
        let (diagnostic, file, tensor, known, what) = match want {
            Expected::Tensor(entry) => (
                found::TENSOR_CHANGED,
                entry.shard.as_str(),
                Some(entry.name.as_str()),
                &entry.blake3,
                "its bytes".to_owned(),
            ),
            Expected::Mask(entry, task) => {
                let name =
                    manifest.masks.as_ref().and_then(|m| m.tasks.get(*task)).map_or("", |t| t.name.as_str());
                (
                    found::MASKS_CHANGED,
                    marks::FILE,
                    Some(entry.name.as_str()),
                    &entry.mask_blake3[*task],
                    format!("the bits of task `{}`", escape(name)),
                )
            }
            Expected::Scales => {
                let Some(masks) = &manifest.masks else { return false };
                (found::MASKS_CHANGED, marks::FILE, None, &masks.scales_blake3, "the scales".to_owned())
            }
        };
        match hash {
            Ok(hash) if hash == *known => matches!(want, Expected::Tensor(_)),
            Ok(hash) => {
                let message = format!("{what} have BLAKE3 {hash}, the merge wrote {}", escape(known));
                self.find(diagnostic, file, tensor, message);
                false
            }
            Err(error) => {
                self.find(found::TENSOR_UNREADABLE, file, tensor, error.to_string());
                false
            }
        }
    }

    /// What only a folder has: the index, other files, the configuration.
    fn folder(&mut self, shards: &HashMap<&str, Checkpoint>) -> Result<()> {
        let manifest = self.manifest;
        let known: HashSet<&str> = manifest.plan.output.shards.iter().map(|s| s.name.as_str()).collect();
        let mut strangers: Vec<String> = std::fs::read_dir(self.path)
            .map_err(|e| Error::io(self.path, "listing the folder", e))?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.ends_with(".safetensors") && !known.contains(name.as_str()))
            .collect();
        strangers.sort();
        for name in &strangers {
            self.find(found::SHARD_UNEXPECTED, name, None, "the merge wrote no such file");
        }
        let index = if manifest.plan.output.index { "model.safetensors.index.json" } else { "" };
        match Checkpoint::open(self.path) {
            Ok(whole) => {
                self.index(&whole, shards, index);
                self.config(&whole);
            }
            Err(Error::BadConfig { path, message }) if path.ends_with("config.json") => {
                self.find(found::CONFIG_DAMAGED, "config.json", None, message);
            }
            // Told of already, file by file.
            Err(_) if shards.len() < known.len() => {}
            Err(error) => {
                let file = if index.is_empty() { "." } else { index };
                self.find(found::INDEX_DAMAGED, file, error.tensor(), error.to_string());
            }
        }
        Ok(())
    }

    /// Whether loaders that follow the index see every tensor. That it names nothing else was checked on opening.
    fn index(&mut self, whole: &Checkpoint, shards: &HashMap<&str, Checkpoint>, index: &str) {
        let (manifest, before) = (self.manifest, self.findings.len());
        for entry in &manifest.tensors {
            let held = shards.get(entry.shard.as_str()).is_some_and(|s| s.get(&entry.name).is_some());
            if held && whole.get(&entry.name).is_none() {
                let message = format!("is in `{}` and not in the index", escape(&entry.shard));
                self.find(found::INDEX_INCOMPLETE, index, Some(&entry.name), message);
            }
        }
        let told: HashSet<&String> = shards.values().flat_map(Checkpoint::warnings).collect();
        let more: Vec<String> = whole.warnings().iter().filter(|w| !told.contains(w)).cloned().collect();
        if self.findings.len() == before {
            for warning in more {
                self.find(found::UNUSUAL, index, None, warning);
            }
        }
    }

    fn config(&mut self, whole: &Checkpoint) {
        const FILE: &str = "config.json";
        let Some(facts) = whole.config() else { return };
        if self.manifest.plan.output.tie_word_embeddings == Some(false)
            && facts.tie_word_embeddings != Some(false)
        {
            let message = "`tie_word_embeddings` is not false, and the output has a head of its own";
            self.find(found::CONFIG_TIED, FILE, None, message);
        }
        // It was read and found to be JSON a moment ago.
        let text = std::fs::read(self.path.join(FILE)).unwrap_or_default();
        let Ok(config) = serde_json::from_slice::<Value>(&text) else { return };
        let part = if config["text_config"].is_object() { &config["text_config"] } else { &config };
        let manifest = self.manifest;
        let named =
            [&config, part].into_iter().find_map(|c| c["torch_dtype"].as_str().or(c["dtype"].as_str()));
        if let Some(dtype) = named.and_then(of_torch)
            && !manifest.tensors.is_empty()
            && manifest.tensors.iter().all(|t| t.dtype != dtype.name())
        {
            let message = format!("names dtype {dtype}, which no tensor has");
            self.find(found::CONFIG_DTYPE, FILE, None, message);
        }
        let embedding = manifest.tensors.iter().find(|t| is_embedding(&t.name) && t.shape.len() == 2);
        if let (Some(tensor), Some(size)) = (embedding, part["vocab_size"].as_u64())
            && tensor.shape[0] != size
        {
            let message = format!("`vocab_size` is {size}, the embedding has {} rows", tensor.shape[0]);
            self.find(found::CONFIG_VOCABULARY, FILE, Some(&tensor.name), message);
        }
        let layers = manifest.tensors.iter().filter_map(|t| layer(&t.name)).max().map(|last| last + 1);
        if let (Some(layers), Some(said)) = (layers, part["num_hidden_layers"].as_u64())
            && layers < said
        {
            let message = format!("`num_hidden_layers` is {said}, the tensors have {layers} layers");
            self.find(found::CONFIG_LAYERS, FILE, None, message);
        }
    }
}

fn extent<'c>(checkpoint: &'c Checkpoint, tensor: &Tensor) -> Extent<'c> {
    Extent { file: &checkpoint.shards()[tensor.shard], begin: tensor.begin, len: tensor.bytes() }
}

/// The layer that a tensor belongs to.
fn layer(name: &str) -> Option<u64> {
    let (_, rest) = name.split_once("layers.")?;
    rest.split('.').next()?.parse().ok()
}

/// A dtype by the name that configurations have for it.
fn of_torch(name: &str) -> Option<DType> {
    Some(match name {
        "float64" => DType::F64,
        "float32" => DType::F32,
        "float16" => DType::F16,
        "bfloat16" => DType::BF16,
        _ => return None,
    })
}
