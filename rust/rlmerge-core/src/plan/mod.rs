//! From a recipe and the headers of its models to an immutable plan: what is read, computed and written,
//! decided before a tensor byte is touched.

mod alignment;
mod expand;
pub mod family;
pub mod layout;
pub mod marks;
pub mod method;
mod models;
pub mod modifiers;
pub mod recipe;
pub mod role;
pub mod statistics;
mod summary;

pub use alignment::{Stored, Unmatched};
pub use expand::{ExpandRequest, Expected, ExpectedTensor};

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::json;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shard::{Change, Checkpoint, ConfigFacts, FileIdentity, Kind, Parts, Tensor, refuse_links};
use alignment::Alignment;
use family::{Passes, Program, Setup, deltas, linear};
use layout::{Item, Layout};
use modifiers::{Alpha, MatchScope, Treatment};
use recipe::{IntFrom, Named, OutputForm, Recipe, Settings};

/// Elements in a tile of a tensor with arithmetic: the unit of work, of reductions and of checksums.
/// A power of two, so that checksums of tiles combine into the BLAKE3 of the tensor.
pub const TILE_ELEMENTS: u64 = 1 << 18;
/// Bytes in a tile of a tensor that is compared and copied.
pub const TILE_BYTES: u64 = 1 << 19;
/// Bytes that all counters of exact selections may take together.
pub const SELECTION_BYTES: u64 = 32 << 20;
/// Source bytes of a tensor up to which its pages stay mapped between passes.
pub const KEPT_BYTES: u64 = 64 << 20;
/// Bytes that may be kept of the changes of adapters between a scan and the pass that computes a tensor.
pub const SIEVED_BYTES: u64 = 48 << 20;

/// What is done with a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Merged by arithmetic.
    Compute,
    /// Taken from one model as it is.
    Copy,
    /// Without arithmetic: copied when equal in all models.
    Compare,
}

impl Action {
    /// Its name in plans.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Compute => "compute",
            Self::Copy => "copy",
            Self::Compare => "compare",
        }
    }
}

/// One model's copy of a tensor.
#[derive(Debug, Clone)]
pub struct Source {
    /// Index of the shard.
    pub shard: usize,
    /// First byte in the shard.
    pub begin: u64,
    /// Byte after the last.
    pub end: u64,
    /// Dtype.
    pub dtype: DType,
    /// The first model that has these very bytes of the same file; itself when it is the first.
    pub origin: usize,
    /// What an adapter adds to them.
    pub change: Option<Change>,
}

impl Source {
    /// No bytes at all, for what a model does not have.
    #[must_use]
    pub const fn empty(dtype: DType, origin: usize) -> Self {
        Self { shard: 0, begin: 0, end: 0, dtype, origin, change: None }
    }

    /// Whether the bytes alone are not the tensor.
    #[must_use]
    pub const fn is_changed(&self) -> bool {
        self.change.is_some()
    }
}

/// One tensor of the output.
#[derive(Debug, Clone)]
pub struct PlannedTensor {
    /// Name.
    pub name: String,
    /// Dtype in the output.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<u64>,
    /// Number of elements.
    pub elements: u64,
    /// Bytes in the output.
    pub bytes: u64,
    /// What is done.
    pub action: Action,
    /// Index of its program.
    pub program: usize,
    /// Position between the first layer (0) and the last (1).
    pub depth: f64,
    /// The tensor as a matrix, if it is one.
    pub matrix: Option<role::Matrix>,
    /// Whether the arithmetic is f64 because some model stores `F64`.
    pub wide: bool,
    /// The tensor in each model, then its statistics in each file of those; empty where it has none.
    pub sources: Vec<Source>,
    /// Index of the output shard.
    pub shard: usize,
    /// Absolute offset in the output shard.
    pub offset: u64,
}

impl PlannedTensor {
    /// Number of tiles; at least one, so that empty tensors are met too.
    #[must_use]
    pub fn tiles(&self) -> u64 {
        let tiles = match self.action {
            Action::Compare => self.bytes.div_ceil(TILE_BYTES),
            Action::Compute | Action::Copy => self.elements.div_ceil(TILE_ELEMENTS),
        };
        tiles.max(1)
    }
}

/// The statistics of one tensor in one file.
#[derive(Debug, Clone, Copy)]
pub struct StatisticToCheck<'a> {
    /// The tensor that they are about.
    pub tensor: &'a PlannedTensor,
    /// Index of the file, behind the models.
    pub file: usize,
    /// Where they are.
    pub source: &'a Source,
}

/// A shard of a model, as it was when the plan was made.
#[derive(Debug, Clone)]
pub struct PlannedShard {
    /// Its path.
    pub path: PathBuf,
    /// Where that leads, if it is a symbolic link.
    pub real_path: Option<PathBuf>,
    /// Device, inode, size and times.
    pub identity: FileIdentity,
    /// BLAKE3 of its header.
    pub header_blake3: String,
}

/// A model of the merge.
#[derive(Debug, Clone)]
pub struct PlannedModel {
    /// Its path as given.
    pub path: PathBuf,
    /// File, folder or adapter.
    pub kind: Kind,
    /// The base and the adapter that it is composed of.
    pub parts: Option<Parts>,
    /// Number of tensors.
    pub tensors: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Its shards.
    pub shards: Vec<PlannedShard>,
    /// Facts of its `config.json`.
    pub config: Option<ConfigFacts>,
}

/// What a conflict report is to read.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportRequest {
    /// The base.
    pub base: PathBuf,
    /// The folder of an adapter that changes it.
    #[serde(default)]
    pub base_adapter: Option<PathBuf>,
    /// The experts.
    pub experts: Vec<recipe::ModelEntry>,
    /// Number of worker threads; as many as there are processors when absent.
    #[serde(default)]
    pub threads: Option<usize>,
    /// How tensor bytes are read.
    #[serde(default)]
    pub io: recipe::Io,
    /// Whether tensors that not all models have alike are left out, and listed.
    #[serde(default)]
    pub common: bool,
}

impl ReportRequest {
    /// Reads a request from JSON.
    ///
    /// # Errors
    /// [`Error::RecipeInvalid`] with the key that is wrong.
    pub fn from_json(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|e| Error::RecipeInvalid { message: e.to_string() })
    }
}

/// Everything about a merge that can be known from headers and the recipe. Immutable.
#[derive(Debug, Clone)]
pub struct MergePlan {
    /// The recipe as given.
    pub recipe: Recipe,
    /// Its resolved parameters.
    pub settings: Settings,
    /// The method with its numbers, and what is done instead with tensors that it does not treat.
    pub programs: Vec<Program>,
    /// The models; the base first, if there is one.
    pub models: Vec<PlannedModel>,
    /// The files of statistics, one for each expert, where the method takes them; checkpoints are numbered on.
    pub statistics: Vec<PlannedModel>,
    /// Index of the base.
    pub base: Option<usize>,
    /// Output tensors: in the file order of the first model, or by name when a selection runs over the whole
    /// model.
    pub tensors: Vec<PlannedTensor>,
    /// Output files.
    pub layout: Layout,
    /// The file of masks beside them, where the method makes one.
    pub marks: Option<marks::MarksFile>,
    /// What the inputs have to be, where only certain ones will do.
    pub expected: Option<Expected>,
    /// Set when the output's configuration must say whether its head is tied.
    pub tie_word_embeddings: Option<bool>,
    /// Worker threads.
    pub threads: usize,
    /// Decisions that the user should know of.
    pub notes: Vec<String>,
    /// What looks wrong but does not prevent the merge.
    pub warnings: Vec<String>,
    /// Tensors that are left out, since not all models have them alike.
    pub unmatched: Vec<Unmatched>,
}

impl MergePlan {
    /// Opens the models of a recipe and plans the merge.
    ///
    /// # Errors
    /// Everything that the recipe and the headers can tell: recipe errors first, then damaged inputs, then
    /// models that do not fit each other.
    pub fn prepare(recipe: Recipe) -> Result<(Self, Vec<Checkpoint>)> {
        let settings = Settings::resolve(&recipe)?;
        let dtype = recipe.output_dtype()?;
        let setup = Setup { settings: &settings, has_base: recipe.base.is_some(), seed: recipe.seed };
        let program = (settings.method.program)(&setup)?;
        let models = models::open(&recipe)?;
        let mut statistics = Vec::new();
        if let Some(statistic) = program.family().statistic() {
            let paths = settings.words(statistic.parameter);
            statistics = paths.iter().map(|p| Checkpoint::open(p.as_ref())).collect::<Result<_>>()?;
        }
        if recipe.no_symlinks {
            models.iter().chain(&statistics).try_for_each(refuse_links)?;
        }
        let experts = recipe.models.len();
        // One expert in full measure is copied, unless its delta is to be scaled by depth.
        let program = match program {
            Program::Scaled(one) if recipe.modifiers.lines.is_some() && one.model > 0 => {
                deltas::in_full(one.model)
            }
            other => other,
        };
        // In the order of `modifiers::Treatment`.
        let programs = vec![
            program,
            linear::weighted_sum(models.len() - experts, &vec![1.0; experts], experts as f64),
            Program::copy(0),
        ];
        recipe.modifiers.check_experts(&programs[Treatment::Merge as usize].family().models())?;
        recipe.check_int_from(programs[Treatment::Merge as usize].family().marks().is_some())?;
        let plan = Self::new(recipe, settings, programs, dtype, &models, &statistics)?;
        Ok((plan, models.into_iter().chain(statistics).collect()))
    }

    /// Opens a base and its experts, and plans to read them all: what a conflict report needs. Nothing is written.
    ///
    /// # Errors
    /// As for [`prepare`](Self::prepare).
    pub fn for_report(request: &ReportRequest) -> Result<(Self, Vec<Checkpoint>)> {
        let recipe = json!({
            "method": "task_arithmetic", "base": request.base, "base_adapter": request.base_adapter,
            "models": request.experts, "threads": request.threads, "io": request.io, "output": "none.safetensors",
            "output_kind": "file",
        });
        let recipe = Recipe::from_json(&recipe.to_string())?;
        let settings = Settings::resolve(&recipe)?;
        let models = models::open(&recipe)?;
        let experts = (0..models.len()).map(|model| (model, 1.0)).collect();
        let all = Program::Linear(family::linear::Linear { experts, divisor: 1.0 });
        let refs: Vec<&Checkpoint> = models.iter().collect();
        let (aligned, unmatched) = match request.common {
            true => alignment::align_common(&refs)?,
            false => (alignment::align(&refs, 0)?, Vec::new()),
        };
        let plan = Self::of_aligned(recipe, settings, vec![all], None, (&models, aligned), &[])?;
        Ok((Self { unmatched, ..plan }, models))
    }

    fn new(
        recipe: Recipe,
        settings: Settings,
        programs: Vec<Program>,
        dtype: Option<DType>,
        models: &[Checkpoint],
        statistics: &[Checkpoint],
    ) -> Result<Self> {
        let refs: Vec<&Checkpoint> = models.iter().collect();
        let aligned = alignment::align(&refs, 0)?;
        Self::of_aligned(recipe, settings, programs, dtype, (models, aligned), statistics)
    }

    fn of_aligned(
        recipe: Recipe,
        settings: Settings,
        mut programs: Vec<Program>,
        dtype: Option<DType>,
        (models, aligned): (&[Checkpoint], Alignment<'_>),
        statistics: &[Checkpoint],
    ) -> Result<Self> {
        let base = recipe.base.is_some().then_some(0);
        let model_type = models.iter().find_map(|m| m.config()?.model_type.as_deref());

        let names: Vec<&str> = aligned.tensors.iter().map(|t| t.name).collect();
        let idle: Vec<String> = recipe
            .modifiers
            .idle(&names)
            .map(|pattern| format!("`treat` names no tensor with `{}`", crate::error::escape(pattern)))
            .collect();
        let depths = modifiers::depths(&names);

        let mut tensors = Vec::with_capacity(aligned.tensors.len());
        for (tensor, depth) in aligned.tensors.iter().zip(depths) {
            let reference = tensor.sources[0];
            let has_arithmetic = reference.dtype.has_arithmetic();
            let dtype =
                dtype.filter(|_| has_arithmetic).unwrap_or_else(|| models[0].nominal_dtype(reference));
            let sources = sources(models, &tensor.sources);
            let program = recipe.modifiers.treatment(tensor.name) as usize;
            let read = programs[program].family().models();
            let action = match &programs[program] {
                _ if !has_arithmetic => Action::Compare,
                Program::Scaled(one)
                    if one.factor == 1.0
                        && sources[one.model].dtype == dtype
                        && !sources[one.model].is_changed() =>
                {
                    Action::Copy
                }
                _ => Action::Compute,
            };
            let elements = reference.elements();
            let bytes = dtype
                .bytes_of(elements)
                .ok_or_else(|| Error::Internal { message: format!("size of tensor {:?}", tensor.name) })?;
            tensors.push(PlannedTensor {
                name: tensor.name.into(),
                dtype,
                shape: reference.shape.clone(),
                elements,
                bytes,
                action,
                program,
                depth,
                matrix: role::matrix(tensor.name, &reference.shape, model_type),
                // Small deltas that are scaled need more than f32, beside a base.
                wide: program == Treatment::Merge as usize && recipe.modifiers.match_norm.is_some()
                    || read.iter().filter_map(|m| tensor.sources.get(*m)).any(|s| s.dtype == DType::F64),
                sources,
                shard: 0,
                offset: 0,
            });
        }
        let mut notes = settings.notes.clone();
        notes.extend(models.iter().filter_map(Checkpoint::parts).flat_map(|p| p.notes.iter().cloned()));
        notes.extend(aligned.notes);
        if let Some(statistic) = programs[0].family().statistic() {
            programs.extend(programs[0].family().without_statistics());
            let otherwise = programs.len() - 1;
            notes.extend(statistics::place(&statistic, statistics, models.len(), &mut tensors, otherwise)?);
        }
        if programs.iter().any(|p| p.family().passes().whole_model) {
            // The first ties of a whole model are kept in this order, which must not depend on shards.
            tensors.sort_by(|a, b| a.name.cmp(&b.name));
        }
        let items: Vec<Item<'_>> = tensors
            .iter()
            .map(|t| Item { name: &t.name, dtype: t.dtype, shape: &t.shape, bytes: t.bytes })
            .collect();
        let file_name = recipe.output.file_name().map(|n| n.to_string_lossy().into_owned());
        let single = match recipe.output_kind {
            OutputForm::File => Some(file_name.as_deref().unwrap_or("merged.safetensors")),
            OutputForm::Folder => None,
        };
        let layout = layout::lay_out(&items, recipe.shard_size, single)?;
        for (tensor, place) in tensors.iter_mut().zip(&layout.places) {
            (tensor.shard, tensor.offset) = (place.shard, place.offset);
        }

        let marks = Self::lay_out_marks(&recipe, &settings, &programs, &tensors)?;
        notes.extend(marks.iter().map(marks::MarksFile::note));
        // Adapters bring the warnings of their base along.
        let mut seen = std::collections::HashSet::new();
        let mut warnings: Vec<String> =
            models.iter().flat_map(Checkpoint::warnings).filter(|w| seen.insert(*w)).cloned().collect();
        warnings.extend(idle);
        if dtype.is_none() {
            warnings.extend(lossy_dtypes(&tensors, &programs));
        }
        let threads = recipe
            .threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
        Ok(Self {
            models: models.iter().map(planned_model).collect(),
            statistics: statistics.iter().map(planned_model).collect(),
            base,
            tensors,
            layout,
            marks,
            expected: None,
            tie_word_embeddings: aligned.untied_head.then_some(false),
            threads,
            notes,
            warnings,
            unmatched: Vec::new(),
            recipe,
            settings,
            programs,
        })
    }

    /// Tiles of all tensors.
    #[must_use]
    pub fn tiles(&self) -> u64 {
        self.tensors.iter().map(PlannedTensor::tiles).sum()
    }

    /// The program of a tensor.
    #[must_use]
    pub fn program(&self, tensor: &PlannedTensor) -> &Program {
        &self.programs[tensor.program]
    }

    /// The passes of a tensor before the one that computes it.
    #[must_use]
    pub fn passes(&self, tensor: &PlannedTensor) -> Passes {
        match tensor.action {
            Action::Compute => self.program(tensor).family().passes_of(tensor),
            Action::Copy | Action::Compare => Passes { scans: 0, whole_model: false },
        }
    }

    /// Number of neighbouring elements of a tensor that are seen together.
    #[must_use]
    pub fn group(&self, tensor: &PlannedTensor) -> u64 {
        match tensor.action {
            Action::Compute => self.program(tensor).family().group(tensor).max(1),
            Action::Copy | Action::Compare => 1,
        }
    }

    /// Elements of a tensor that are worked on together, about.
    #[must_use]
    pub fn chunk(&self, tensor: &PlannedTensor) -> u64 {
        let group = self.group(tensor);
        let many = CHUNK_ELEMENTS / group;
        let together = match tensor.action {
            Action::Compute => self.program(tensor).family().together(tensor),
            Action::Copy | Action::Compare => 1,
        };
        group * many.max(together).max(1)
    }

    /// Side of the Gram matrices of a tensor's inputs, where the method takes those.
    #[must_use]
    pub fn gram_side(&self, tensor: &PlannedTensor) -> Option<u64> {
        let statistic = self.programs[0].family().statistic().filter(|s| s.gram)?;
        statistics::shape(&statistic, tensor)?.last().copied()
    }

    /// The model whose tensors without arithmetic are taken, if it is said.
    fn int_from(&self) -> Option<usize> {
        self.recipe.int_from.map(|from| match from {
            IntFrom::Named(Named::Base) => 0,
            IntFrom::Expert(number) => number - 1 + usize::from(self.base.is_some()),
        })
    }

    /// The models whose bytes a tensor needs.
    #[must_use]
    pub fn read_models(&self, tensor: &PlannedTensor) -> Vec<usize> {
        match tensor.action {
            Action::Compare => self.int_from().map_or_else(|| (0..self.models.len()).collect(), |m| vec![m]),
            Action::Compute | Action::Copy => self.program(tensor).family().models(),
        }
    }

    /// Source bytes of a tensor, those counted once that several models share; without the numbers of adapters.
    #[must_use]
    pub fn source_bytes(&self, tensor: &PlannedTensor) -> u64 {
        let read = self.read_models(tensor);
        let mut origins: Vec<usize> = read.iter().map(|m| tensor.sources[*m].origin).collect();
        origins.sort_unstable();
        origins.dedup();
        origins.iter().map(|m| tensor.sources[*m].end - tensor.sources[*m].begin).sum()
    }

    /// Bytes of the factors that adapters change a tensor by.
    fn change_bytes(&self, tensor: &PlannedTensor) -> u64 {
        let read = self.read_models(tensor);
        read.iter().filter_map(|m| tensor.sources[*m].change.as_ref()).map(Change::bytes).sum()
    }

    /// How often the inputs are read from their files, at most.
    #[must_use]
    pub fn reads(&self) -> u32 {
        self.tensors.iter().map(|t| self.reads_of(t)).max().unwrap_or(1)
    }

    /// How often a tensor is read from its files.
    fn reads_of(&self, tensor: &PlannedTensor) -> u32 {
        let passes = self.passes(tensor);
        let method = if passes.whole_model { 1 + passes.scans } else { 1 };
        if tensor.action != Action::Compute || tensor.program != Treatment::Merge as usize {
            return method;
        }
        let modifiers = &self.recipe.modifiers;
        let alone = modifiers.match_norm_scope == MatchScope::Tensor && !passes.whole_model;
        let norms = modifiers.match_norm.is_some() && !alone;
        let measured = modifiers.lines.is_some_and(|l| matches!(l.alpha, Alpha::Auto(_)));
        method * if measured { 2 } else { 1 } + u32::from(norms)
    }

    /// Bytes read from the inputs.
    #[must_use]
    pub fn bytes_to_read(&self) -> u64 {
        let checked: u64 = self.statistics_to_check().iter().map(|s| s.source.end - s.source.begin).sum();
        let of = |t: &PlannedTensor| self.source_bytes(t) + self.change_bytes(t);
        checked + self.tensors.iter().map(|t| of(t) * u64::from(self.reads_of(t))).sum::<u64>()
    }

    /// The statistics that are used, sorted by the names of their tensors. They are read and checked before anything is
    /// merged.
    #[must_use]
    pub fn statistics_to_check(&self) -> Vec<StatisticToCheck<'_>> {
        let Some(statistic) = self.programs[0].family().statistic() else { return Vec::new() };
        // Sums over all of them must not depend on how models are cut into shards.
        let mut tensors: Vec<&PlannedTensor> =
            self.tensors.iter().filter(|t| t.action == Action::Compute && t.program == 0).collect();
        tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        tensors
            .into_iter()
            .flat_map(|tensor| {
                let of = move |file: &usize| StatisticToCheck {
                    tensor,
                    file: *file,
                    source: &tensor.sources[*file],
                };
                statistic.files.iter().map(of).collect::<Vec<_>>()
            })
            .collect()
    }

    /// Bytes written to the output's tensor files.
    #[must_use]
    pub fn bytes_to_write(&self) -> u64 {
        let marks = self.marks.as_ref().map_or(0, |m| m.bytes);
        marks + self.layout.shards.iter().map(|s| s.bytes).sum::<u64>()
    }

    /// Most memory that the merge takes, beyond the interpreter's: tiles in work, mapped pages and counters.
    #[must_use]
    pub fn memory_bound(&self) -> u64 {
        let models = (self.models.len() + self.statistics.len()) as u64;
        let widest = self.tensors.iter().map(|t| t.dtype.bits().div_ceil(8)).max().unwrap_or(1);
        let widest_in = self
            .tensors
            .iter()
            .flat_map(|t| t.sources.iter().map(|s| s.dtype.bits().div_ceil(8)))
            .max()
            .unwrap_or(1);
        let longest = self.tensors.iter().map(|t| self.group(t)).max().unwrap_or(1);
        let chunk = self.tensors.iter().map(|t| self.chunk(t)).max().unwrap_or(1);
        let chunks = (3 * models + 4) * 2 * 8 * CHUNK_ELEMENTS.max(chunk);
        let changes: u64 = (0..self.models.len()).map(|m| self.change_memory(m)).sum();
        let a_worker =
            TILE_ELEMENTS * widest + models * (TILE_ELEMENTS + 2 * longest) * widest_in + chunks + changes;
        let scanning = if self.tensors.iter().any(|t| self.passes(t).scans > 0) {
            // Those of the workers, and their sum.
            KEPT_BYTES + 2 * SELECTION_BYTES + if changes > 0 { SIEVED_BYTES } else { 0 }
        } else {
            0
        };
        let tasks = self.tensors.iter().map(|t| self.mark_rows(t) as u64).max().unwrap_or(0);
        let a_worker = a_worker + 3 * tasks * (TILE_ELEMENTS / 8);
        let hashes = 1 + tasks + self.hashed_models() as u64;
        let digests = 40 * hashes * self.tensors.iter().map(PlannedTensor::tiles).max().unwrap_or(0);
        let tables = 512 * self.tensors.len() as u64 * (models + 1);
        let matrices = self
            .tensors
            .iter()
            .filter(|t| t.action == Action::Compute)
            .map(|t| self.program(t).family().memory(t))
            .map(|(kept, worker)| kept + self.threads as u64 * worker)
            .max()
            .unwrap_or(0);
        self.threads as u64 * a_worker + scanning + matrices + digests + tables
    }

    /// Most memory that a worker needs for the changes of one model: the right factor, the rows of the left one that a
    /// tile needs, each as read and decoded, and a band of rows of their product.
    fn change_memory(&self, model: usize) -> u64 {
        let of = |change: &Change| {
            let rows = (TILE_ELEMENTS / change.columns.max(1) + 16).min(change.rows + 16);
            let factors = change.rank * (change.columns + 16 + rows) * (2 * 4 + 8);
            factors + 4 * (CHANGE_BAND.max(16 * change.columns) + 2 * CHUNK_ELEMENTS) + 16 * CHUNK_ELEMENTS
        };
        let changes = self.tensors.iter().filter_map(|t| t.sources[model].change.as_ref());
        changes.map(of).max().unwrap_or(0)
    }
}

/// Elements of a product of factors that are made at once, unless its rows are longer.
pub const CHANGE_BAND: u64 = 1 << 14;

/// The tensor in each model, and whose bytes it is made of.
fn sources(models: &[Checkpoint], tensors: &[&Tensor]) -> Vec<Source> {
    let mut sources: Vec<Source> = Vec::with_capacity(tensors.len());
    for (model, tensor) in tensors.iter().enumerate() {
        let file = |m: usize, t: &Tensor| models[m].shards()[t.shard].identity;
        let change = models[model].change(tensor).cloned();
        // The lengths of rows need whole rows, which are read apart from the others' tiles.
        let apart = change.as_ref().is_some_and(|c| c.magnitude.is_some());
        let same = |m: &usize| {
            let other = tensors[*m];
            sources[*m].origin == *m
                && (other.begin, other.end, other.dtype) == (tensor.begin, tensor.end, tensor.dtype)
                && file(*m, other) == file(model, tensor)
                && sources[*m].change.as_ref().is_none_or(|c| c.magnitude.is_none())
        };
        let origin = if apart { model } else { (0..model).find(same).unwrap_or(model) };
        let (shard, begin, end, dtype) = (tensor.shard, tensor.begin, tensor.end, tensor.dtype);
        sources.push(Source { shard, begin, end, dtype, origin, change });
    }
    sources
}

/// Upper bound of the chunk that kernels work on; the plan counts it but does not know kernels.
const CHUNK_ELEMENTS: u64 = 1024;

fn planned_model(model: &Checkpoint) -> PlannedModel {
    PlannedModel {
        path: model.path().to_path_buf(),
        kind: model.kind(),
        parts: model.parts().cloned(),
        tensors: model.tensors().len(),
        bytes: model.tensors().iter().map(crate::shard::Tensor::bytes).sum(),
        shards: model
            .shards()
            .iter()
            .map(|s| PlannedShard {
                path: s.path.clone(),
                real_path: s.real_path.clone(),
                identity: s.identity,
                header_blake3: s.header_blake3.clone(),
            })
            .collect(),
        config: model.config().cloned(),
    }
}

/// Warns once for each pair of dtypes where the output is narrower than an input.
fn lossy_dtypes(tensors: &[PlannedTensor], programs: &[Program]) -> Vec<String> {
    let mut pairs: Vec<(DType, DType, usize)> = Vec::new();
    for tensor in tensors.iter().filter(|t| t.action == Action::Compute) {
        let read = programs[tensor.program].family().models();
        let widest = read.iter().map(|m| tensor.sources[*m].dtype).max_by_key(|d| d.bits());
        if let Some(input) = widest.filter(|d| d.bits() > tensor.dtype.bits()) {
            match pairs.iter_mut().find(|(a, b, _)| (*a, *b) == (input, tensor.dtype)) {
                Some((_, _, n)) => *n += 1,
                None => pairs.push((input, tensor.dtype, 1)),
            }
        }
    }
    pairs
        .into_iter()
        .map(|(from, to, n)| {
            format!("{n} tensors are read as {from} and written as {to}; choose another with --dtype")
        })
        .collect()
}
