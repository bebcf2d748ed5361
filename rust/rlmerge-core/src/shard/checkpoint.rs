//! The table of tensors over all shards of one model.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::composed::{Change, Parts};
use super::config::ConfigFacts;
use super::folder::{Weights, is_there, weights};
use super::header::HeaderTensor;
use super::index::{Index, read_index};
use super::source::{Shard, look};
use crate::dtype::DType;
use crate::error::{Error, Result, escape};

/// What the path of a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A `.safetensors` file.
    File,
    /// A folder.
    Folder,
    /// An adapter's folder, with the base that it belongs to.
    Adapter,
}

impl Kind {
    /// `file`, `folder` or `adapter`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Folder => "folder",
            Self::Adapter => "adapter",
        }
    }
}

/// A tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Any string: never a path, and only ever printed escaped.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions; none for a scalar.
    pub shape: Vec<u64>,
    /// Which of [`Checkpoint::shards`] holds it.
    pub shard: usize,
    /// Offset of its first byte in that file.
    pub begin: u64,
    /// Offset after its last byte in that file.
    pub end: u64,
}

impl Tensor {
    /// Number of elements; the header's check made sure that it does not overflow.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Number of bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.end - self.begin
    }
}

/// All shards of one model, open, with a table of their tensors.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    kind: Kind,
    shards: Vec<Shard>,
    tensors: Vec<Tensor>,
    /// Positions in `tensors`, sorted by name.
    by_name: Vec<usize>,
    config: Option<ConfigFacts>,
    warnings: Vec<String>,
    /// What an adapter adds to tensors, by name.
    changes: HashMap<String, Change>,
    /// The dtype of the base's tensors in whose place an adapter stores others, by name.
    dtypes: HashMap<String, DType>,
    parts: Option<Parts>,
}

/// The base and the adapter of a composed checkpoint, taken apart and put together anew.
pub(super) struct Composition {
    pub(super) path: PathBuf,
    pub(super) parts: Parts,
    pub(super) base: Checkpoint,
    pub(super) file: Checkpoint,
    /// Instead of the base's, by name.
    pub(super) replaced: HashMap<String, Tensor>,
    /// Besides the base's.
    pub(super) added: Vec<Tensor>,
    pub(super) changes: HashMap<String, Change>,
}

impl Checkpoint {
    /// Opens a `.safetensors` file, or a folder with `model.safetensors`, an index and its shards, or
    /// one other `.safetensors` file. Reads headers, index and `config.json`, and no tensor byte.
    ///
    /// # Errors
    /// Whatever these can tell about a model that cannot be merged, except that it is
    /// [`quantised`](super::quantised()).
    pub fn open(path: &Path) -> Result<Self> {
        let folder = look(path)?.is_dir();
        let mut table = Table::default();
        if folder {
            match weights(path)? {
                Weights::Single(file) => table.add_file(&file)?,
                Weights::Sharded(index) => table.add_sharded(path, &index)?,
            }
        } else {
            if path.to_string_lossy().ends_with(".safetensors.index.json") {
                let message = "the index of a checkpoint; give the folder that holds it".into();
                return Err(Error::NotACheckpoint { path: path.to_path_buf(), message });
            }
            table.add_file(path)?;
        }
        let config = path.join("config.json");
        let config = if folder && is_there(&config) { Some(ConfigFacts::read(&config)?) } else { None };
        if folder && is_there(&path.join("adapter_config.json")) {
            table.warnings.push("the folder also holds an adapter, which is not read".into());
        }
        let Table { shards, tensors, warnings } = table;
        let kind = if folder { Kind::Folder } else { Kind::File };
        Ok(Self {
            path: path.to_path_buf(),
            kind,
            shards,
            by_name: sorted(&tensors),
            tensors,
            config,
            warnings,
            changes: HashMap::new(),
            dtypes: HashMap::new(),
            parts: None,
        })
    }

    /// A base and an adapter as one model. Shards of the adapter follow those of the base.
    pub(super) fn composed(composition: Composition) -> Self {
        let Composition { path, parts, base, file, mut replaced, added, changes } = composition;
        let mut dtypes = HashMap::new();
        let mut tensors = base.tensors;
        for tensor in &mut tensors {
            if let Some(other) = replaced.remove(&tensor.name) {
                dtypes.insert(tensor.name.clone(), tensor.dtype);
                *tensor = other;
            }
        }
        tensors.extend(added);
        let mut shards = base.shards;
        shards.extend(file.shards);
        let mut warnings = base.warnings;
        warnings.extend(file.warnings);
        Self {
            path,
            kind: Kind::Adapter,
            shards,
            by_name: sorted(&tensors),
            tensors,
            config: base.config,
            warnings,
            changes,
            dtypes,
            parts: Some(parts),
        }
    }

    /// What an adapter adds to one of its tensors.
    #[must_use]
    pub fn change(&self, tensor: &Tensor) -> Option<&Change> {
        self.changes.get(&tensor.name)
    }

    /// The dtype in which the tensor is written out when nobody asks for another: its own, or the base's where an
    /// adapter stores a whole tensor.
    #[must_use]
    pub fn nominal_dtype(&self, tensor: &Tensor) -> DType {
        self.dtypes.get(&tensor.name).copied().unwrap_or(tensor.dtype)
    }

    /// What it is composed of, if it is.
    #[must_use]
    pub const fn parts(&self) -> Option<&Parts> {
        self.parts.as_ref()
    }

    /// The path by which it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether that is a file or a folder.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// All tensors in shard order, within a shard in offset order.
    #[must_use]
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor of this name, compared byte by byte.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        let at = self.by_name.binary_search_by(|i| self.tensors[*i].name.as_str().cmp(name)).ok()?;
        Some(&self.tensors[self.by_name[at]])
    }

    /// All shards, sorted by file name.
    #[must_use]
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// What the folder's `config.json` says; `None` for a file, and for a folder without one.
    #[must_use]
    pub const fn config(&self) -> Option<&ConfigFacts> {
        self.config.as_ref()
    }

    /// `__metadata__` of the first shard that has one.
    #[must_use]
    pub fn metadata(&self) -> Option<&BTreeMap<String, String>> {
        self.shards.iter().find_map(|shard| shard.metadata.as_ref())
    }

    /// What is odd but readable, one sentence each.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// A copy of the bytes of one of its tensors.
    ///
    /// # Errors
    /// Those of [`Shard::read_at`], with the tensor.
    pub fn bytes_of(&self, tensor: &Tensor) -> Result<Vec<u8>> {
        let mut bytes = vec![0; tensor.bytes() as usize];
        self.shards[tensor.shard].read_at(tensor.begin, &mut bytes).map_err(|e| e.in_tensor(&tensor.name))?;
        Ok(bytes)
    }

    /// Whether all shards are still what they were when they were opened.
    ///
    /// # Errors
    /// [`Error::InputChanged`] for the first that is not.
    pub fn verify_unchanged(&self) -> Result<()> {
        self.shards.iter().try_for_each(Shard::verify_unchanged)
    }
}

/// Positions of the tensors, sorted by name.
fn sorted(tensors: &[Tensor]) -> Vec<usize> {
    let mut by_name: Vec<usize> = (0..tensors.len()).collect();
    by_name.sort_unstable_by(|a, b| tensors[*a].name.cmp(&tensors[*b].name));
    by_name
}

/// A checkpoint in the making.
#[derive(Default)]
struct Table {
    shards: Vec<Shard>,
    tensors: Vec<Tensor>,
    warnings: Vec<String>,
}

impl Table {
    /// A model in one file.
    fn add_file(&mut self, file: &Path) -> Result<()> {
        let tensors = self.add_shard(file)?;
        self.tensors.extend(tensors.into_iter().map(|t| placed(t, 0)));
        Ok(())
    }

    fn add_shard(&mut self, file: &Path) -> Result<Vec<HeaderTensor>> {
        let (shard, tensors, warnings) = Shard::open(file)?;
        self.warnings.extend(warnings.iter().map(|w| format!("{}: {w}", escape(&shard.name))));
        self.shards.push(shard);
        Ok(tensors)
    }

    /// A model whose index says which tensor is in which shard. Both must agree: what an index names
    /// and a shard lacks is an error, what only the shard has is left out with a warning.
    fn add_sharded(&mut self, folder: &Path, index_path: &Path) -> Result<()> {
        let Index { weight_map, total_size, warnings } = read_index(index_path)?;
        self.warnings.extend(warnings);
        let bad = |message: String, tensor: Option<&str>| Error::BadIndex {
            path: index_path.to_path_buf(),
            message,
            tensor: tensor.map(str::to_owned),
        };
        let names: Vec<&str> =
            weight_map.iter().map(|(_, shard)| shard.as_str()).collect::<BTreeSet<_>>().into_iter().collect();
        let mut home: HashMap<&str, &str> = HashMap::with_capacity(weight_map.len());
        home.extend(weight_map.iter().map(|(tensor, shard)| (tensor.as_str(), shard.as_str())));
        let mut found: HashMap<String, &str> = HashMap::with_capacity(weight_map.len());
        let mut left_out = Vec::new();
        for (number, &shard) in names.iter().enumerate() {
            let first = || weight_map.iter().find(|(_, s)| s == shard).map(|(tensor, _)| tensor.as_str());
            let tensors = self.add_shard(&folder.join(shard)).map_err(|e| match e {
                Error::ModelNotFound { .. } => bad(format!("shard `{shard}` is not in the folder"), first()),
                Error::NotACheckpoint { message, .. } => bad(format!("shard `{shard}`: {message}"), first()),
                other => other,
            })?;
            for tensor in tensors {
                if let Some(other) = found.insert(tensor.name.clone(), shard) {
                    return Err(bad(format!("in two shards, `{other}` and `{shard}`"), Some(&tensor.name)));
                }
                match home.get(tensor.name.as_str()) {
                    None => left_out.push(format!("`{}` in `{shard}`", escape(&tensor.name))),
                    Some(named) if *named == shard => self.tensors.push(placed(tensor, number)),
                    // Reported below, once all shards have been seen.
                    Some(_) => {}
                }
            }
        }
        for (tensor, shard) in &weight_map {
            match found.get(tensor) {
                Some(holder) if holder == shard => {}
                Some(holder) => {
                    return Err(bad(
                        format!("the index says shard `{shard}`, but `{holder}` holds it"),
                        Some(tensor),
                    ));
                }
                None => return Err(bad(format!("shard `{shard}` does not hold it"), Some(tensor))),
            }
        }
        if let Some(first) = left_out.first() {
            self.warnings.push(format!(
                "{} tensors are in no entry of the index and are left out, first {first}",
                left_out.len()
            ));
        }
        // Shards of sparse files can describe more bytes together than fit 64 bits.
        let bytes = self.tensors.iter().try_fold(0u64, |sum, t| sum.checked_add(t.bytes()));
        if let (Some(said), Some(bytes)) = (total_size, bytes)
            && said != bytes
        {
            self.warnings
                .push(format!("`total_size` of the index is {said}, but its tensors have {bytes} bytes"));
        }
        Ok(())
    }
}

fn placed(tensor: HeaderTensor, shard: usize) -> Tensor {
    let HeaderTensor { name, dtype, shape, begin, end } = tensor;
    Tensor { name, dtype, shape, shard, begin, end }
}
