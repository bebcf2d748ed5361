//! The plan that rebuilds one task's model from a merged folder, its masks and its base. It is run like any merge:
//! the same tiles, the same staged output.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::MergePlan;
use super::family::Program;
use super::family::masks::Expand;
use super::marks::{self, FORMAT};
use super::method::{BaseUse, Memory, Method};
use super::recipe::{Compat, Durability, Io, ModelEntry, OutputForm, Recipe, Settings};
use crate::error::{Error, Result, escape};
use crate::shard::{Checkpoint, read_report};

/// What is to be rebuilt, and whereto.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpandRequest {
    /// The merged folder.
    pub merged: PathBuf,
    /// Name of the task.
    pub task: String,
    /// The base; the one that the folder's report names when absent.
    #[serde(default)]
    pub base: Option<PathBuf>,
    /// Where the output goes.
    pub output: PathBuf,
    /// Its shape.
    pub output_kind: OutputForm,
    /// Most tensor bytes in one shard.
    pub shard_size: u64,
    /// Number of worker threads.
    #[serde(default)]
    pub threads: Option<usize>,
    /// How tensor bytes are read.
    #[serde(default)]
    pub io: Io,
    /// What is synced.
    #[serde(default)]
    pub durability: Durability,
    /// Whether an existing output may be replaced.
    #[serde(default)]
    pub force: bool,
}

impl ExpandRequest {
    /// Reads a request from JSON.
    ///
    /// # Errors
    /// [`Error::RecipeInvalid`] with the key that is wrong.
    pub fn from_json(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|e| Error::RecipeInvalid { message: e.to_string() })
    }
}

/// Checksums that the inputs of a plan must have.
#[derive(Debug, Clone)]
pub struct Expected {
    /// The merged model.
    pub merged: PathBuf,
    /// Its base.
    pub base: PathBuf,
    /// The file of masks.
    pub masks: PathBuf,
    /// What is known of each tensor.
    pub tensors: HashMap<String, ExpectedTensor>,
}

/// Checksums of one tensor.
#[derive(Debug, Clone)]
pub struct ExpectedTensor {
    /// BLAKE3 of the merged tensor.
    pub merged: String,
    /// BLAKE3 of the base's.
    pub base: Option<String>,
    /// BLAKE3 of the task's bits, if the tensor has some.
    pub mask: Option<String>,
}

/// Not a method that anybody asks for: what plans and reports say of an expansion.
static EXPAND: Method = Method {
    name: "expand",
    aliases: &[],
    title: "One task's model",
    summary: "Rebuilds one task's model from a merged model, its masks and its base.",
    formula: "θₜ = θ₀ + sₜ mₜ (θ − θ₀)",
    paper: ("", ""),
    base: BaseUse::Required,
    experts: (1, Some(1)),
    reads: 1,
    memory: Memory::Tile,
    seeded: false,
    program: |_| Err(Error::Internal { message: "an expansion is not merged by name".into() }),
    parameters: &[],
    ignored_in_mergekit: &[],
    modes: "",
};

/// What a merged folder says of its masks.
struct Folder {
    path: PathBuf,
    report: Value,
}

impl Folder {
    fn open(path: &Path) -> Result<Self> {
        let report = read_report(path)?;
        let folder = Self { path: path.to_path_buf(), report };
        if folder.masks().is_none() {
            let message =
                "its `rlmerge.json` tells of no masks; it was not merged with `tall_masks` or `emr`".into();
            return Err(Error::NotACheckpoint { path: folder.path, message });
        }
        Ok(folder)
    }

    fn masks(&self) -> Option<&Value> {
        self.report.get("masks").filter(|m| m.is_object())
    }

    fn bad(&self, message: impl Into<String>) -> Error {
        Error::BadConfig { path: self.path.join("rlmerge.json"), message: message.into() }
    }

    fn text<'v>(&self, value: &'v Value, key: &str) -> Result<&'v str> {
        value.get(key).and_then(Value::as_str).ok_or_else(|| self.bad(format!("`{key}` is not a text")))
    }

    fn list<'v>(&self, value: &'v Value, key: &str) -> Result<&'v [Value]> {
        let list = value.get(key).and_then(Value::as_array);
        list.map(Vec::as_slice).ok_or_else(|| self.bad(format!("`{key}` is not a list")))
    }

    /// Path of the base that it was merged with.
    fn base(&self) -> Result<PathBuf> {
        let plan = &self.report["plan"];
        let at = plan["base"].as_u64().ok_or_else(|| self.bad("`plan` has no `base`"))?;
        let model = self.list(plan, "models")?.get(usize::try_from(at).unwrap_or(usize::MAX));
        let model = model.ok_or_else(|| self.bad("`plan` has no such model as its base"))?;
        Ok(PathBuf::from(self.text(model, "path")?))
    }

    /// Index of a task.
    fn task(&self, masks: &Value, name: &str) -> Result<u64> {
        let tasks = self.list(masks, "tasks")?;
        let names: Vec<&str> = tasks.iter().map(|t| self.text(t, "name")).collect::<Result<_>>()?;
        names.iter().position(|n| *n == name).map(|at| at as u64).ok_or_else(|| {
            let known: Vec<String> = names.iter().map(|n| format!("`{}`", escape(n))).collect();
            Error::ParameterOutOfRange {
                parameter: "task".into(),
                place: escape(&self.path.to_string_lossy()),
                value: format!("`{}`", escape(name)),
                expected: format!("one of {}", known.join(", ")),
            }
        })
    }

    /// Checksums of all tensors, with the bits of the task in this row.
    fn tensors(&self, row: u64) -> Result<HashMap<String, ExpectedTensor>> {
        let row = usize::try_from(row).unwrap_or(usize::MAX);
        let nth = |tensor: &Value, key: &str, at: usize| {
            tensor.get(key).and_then(|list| list.get(at)?.as_str()).map(String::from)
        };
        let of = |tensor: &Value| {
            let known = ExpectedTensor {
                merged: self.text(tensor, "blake3")?.into(),
                base: nth(tensor, "source_blake3", 0),
                mask: nth(tensor, "mask_blake3", row),
            };
            Ok((self.text(tensor, "name")?.to_string(), known))
        };
        self.list(&self.report, "tensors")?.iter().map(of).collect()
    }
}

/// The file of masks, found to be the one that the report tells of, and the scale of a task.
fn open_masks(folder: &Folder, facts: &Value, row: u64) -> Result<(Arc<Checkpoint>, f64)> {
    let format = folder.text(facts, "format")?;
    if format != FORMAT {
        return Err(folder.bad(format!("the masks have format `{}`, not `{FORMAT}`", escape(format))));
    }
    let path = folder.path.join(marks::FILE);
    let masks = Checkpoint::open(&path)?;
    let differs = |tensor: &str| Error::ChecksumMismatch { path: path.clone(), tensor: tensor.into() };
    let shard = &masks.shards()[0];
    if shard.header_blake3 != folder.text(facts, "header_blake3")? {
        return Err(differs("__metadata__"));
    }
    let scales = masks.get(marks::SCALES).ok_or_else(|| differs(marks::SCALES))?;
    let mut bytes = vec![0; usize::try_from(scales.bytes()).unwrap_or(0)];
    shard.read_at(scales.begin, &mut bytes)?;
    if blake3::hash(&bytes).to_hex().as_str() != folder.text(facts, "scales_blake3")? {
        return Err(differs(marks::SCALES));
    }
    let at = usize::try_from(row).unwrap_or(usize::MAX);
    let scale = bytes.as_chunks::<8>().0.get(at).map(|b| f64::from_le_bytes(*b));
    let scale = scale.ok_or_else(|| differs(marks::SCALES))?;
    Ok((Arc::new(masks), scale))
}

impl MergePlan {
    /// Opens a merged folder, its masks and its base, and plans to rebuild one task's model.
    ///
    /// # Errors
    /// [`Error::NotACheckpoint`] for a folder without masks, [`Error::ParameterOutOfRange`] for an unknown task,
    /// [`Error::ChecksumMismatch`] for another file of masks, and whatever headers can tell.
    pub fn expand(request: ExpandRequest) -> Result<(Self, Vec<Checkpoint>)> {
        let folder = Folder::open(&request.merged)?;
        let facts = folder.masks().ok_or_else(|| folder.bad("`masks` is missing"))?;
        let row = folder.task(facts, &request.task)?;
        let (masks, scale) = open_masks(&folder, facts, row)?;
        let base = match &request.base {
            Some(base) => base.clone(),
            None => folder.base()?,
        };
        let expected = Expected {
            merged: request.merged.clone(),
            base: base.clone(),
            masks: folder.path.join(marks::FILE),
            tensors: folder.tensors(row)?,
        };
        // The merged model comes first: its dtypes and its order are those of the output.
        let models = vec![Checkpoint::open(&request.merged)?, Checkpoint::open(&base)?];
        let entry =
            |path: PathBuf| ModelEntry { path, name: None, adapter: None, parameters: BTreeMap::new() };
        let recipe = Recipe {
            method: EXPAND.name.into(),
            models: vec![entry(request.merged), entry(base)],
            base: None,
            base_adapter: None,
            parameters: BTreeMap::new(),
            seed: 0,
            dtype: None,
            compat: Compat::Paper,
            output: request.output,
            output_kind: request.output_kind,
            shard_size: request.shard_size,
            threads: request.threads,
            io: request.io,
            durability: request.durability,
            force: request.force,
            resume: false,
            keep_partial: false,
            verify: false,
            strict: false,
            on_overflow: super::recipe::OnOverflow::default(),
            int_from: None,
            verify_inputs: false,
            no_symlinks: false,
            modifiers: super::modifiers::Modifiers::default(),
        };
        let settings = Settings {
            method: &EXPAND,
            compat: Compat::Paper,
            global: BTreeMap::from([("task", request.task.into()), ("scale", scale.into())]),
            experts: vec![BTreeMap::new(); 2],
            notes: Vec::new(),
        };
        let program = Program::Expand(Expand { masks, row, scale });
        let mut plan = Self::new(recipe, settings, vec![program], None, &models, &[])?;
        for tensor in plan.tensors.iter().filter(|t| t.action == super::Action::Compute) {
            check_shape(&plan, &tensor.name, tensor.elements)?;
        }
        plan.base = Some(1);
        plan.expected = Some(expected);
        plan.warnings = models.iter().flat_map(|m| m.warnings().iter().cloned()).collect();
        Ok((plan, models))
    }
}

/// Refuses masks that are not as long as their tensor: their header is what it was, so the model is another.
fn check_shape(plan: &MergePlan, name: &str, elements: u64) -> Result<()> {
    let Some(Program::Expand(expand)) = plan.programs.first() else { return Ok(()) };
    match expand.masks.get(&marks::name(name)) {
        Some(stored) if stored.shape.get(1) != Some(&marks::row_bytes(elements)) => {
            Err(Error::ChecksumMismatch { path: expand.masks.path().to_path_buf(), tensor: name.into() })
        }
        _ => Ok(()),
    }
}
