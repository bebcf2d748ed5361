//! A virtual checkpoint: a base and an adapter seen as one model. Tensors keep the base's bytes, and those that the
//! adapter changes carry a [`Change`], which is applied tile by tile; no merged model is ever stored.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use super::adapter::{Adapter, AdapterConfig, Piece, piece};
use super::checkpoint::{Checkpoint, Composition, Tensor};
use super::heads::{is_embedding, is_head, tied_embedding};
use crate::dtype::DType;
use crate::error::escape;

/// How often the place of a name among the base's names is searched for: the names of one adapter all have the same
/// place, and nobody should wait for a hostile one.
const SEARCHES: usize = 16;

/// Where numbers of an adapter lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Which of the composed checkpoint's shards holds them.
    pub shard: usize,
    /// Offset of the first byte in that file.
    pub begin: u64,
    /// Number of elements.
    pub elements: u64,
    /// Element type.
    pub dtype: DType,
}

impl Stored {
    /// Number of bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.elements * (self.dtype.bits() / 8)
    }
}

/// One of the two factors of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Factor {
    /// Its numbers; `None` for a factor of ones.
    pub stored: Option<Stored>,
    /// Whether it is stored with rows and columns exchanged.
    pub transposed: bool,
}

/// What an adapter does to a tensor, seen as a matrix of rows as stored: it adds `scale · left · right`, and then,
/// for DoRA, brings each row to a length of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Rows of the tensor, and of the left factor.
    pub rows: u64,
    /// Columns of the tensor, and of the right factor.
    pub columns: u64,
    /// Columns of the left factor and rows of the right one.
    pub rank: u64,
    /// Factor of the product.
    pub scale: f64,
    /// The left factor.
    pub left: Factor,
    /// The right factor.
    pub right: Factor,
    /// Length of each row, for DoRA.
    pub magnitude: Option<Stored>,
}

impl Change {
    /// Bytes of its numbers.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        [&self.left.stored, &self.right.stored, &self.magnitude]
            .into_iter()
            .flatten()
            .map(Stored::bytes)
            .sum()
    }
}

/// What a composed checkpoint is composed of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// The base's file or folder.
    pub base: PathBuf,
    /// The adapter's folder.
    pub adapter: PathBuf,
    /// What the adapter is and does, for people.
    pub notes: Vec<String>,
}

/// Something that does not fit: the tensor and a line about it.
pub type Problem = (String, String);

/// The tensors of one module that an adapter changes.
#[derive(Default)]
struct Module<'a> {
    a: Option<&'a Tensor>,
    b: Option<&'a Tensor>,
    embedding_a: Option<&'a Tensor>,
    embedding_b: Option<&'a Tensor>,
    bias: Option<&'a Tensor>,
    magnitude: Option<&'a Tensor>,
}

/// How the base's names differ from those that the adapter was trained with.
enum Edit {
    /// They lack the first part.
    Drop,
    /// They have something before.
    Prefix(String),
}

impl Edit {
    fn apply(&self, name: &str) -> Option<String> {
        match self {
            Self::Drop => name.split_once('.').map(|(_, rest)| rest.to_owned()),
            Self::Prefix(prefix) => Some(format!("{prefix}{name}")),
        }
    }
}

/// A composed checkpoint in the making.
struct Composer<'a> {
    base: &'a Checkpoint,
    config: &'a AdapterConfig,
    /// The adapter's path, for messages.
    shown: String,
    edit: Option<Edit>,
    searches: usize,
    replaced: HashMap<String, Tensor>,
    added: Vec<Tensor>,
    changes: HashMap<String, Change>,
    problems: Vec<Problem>,
}

/// The base and the adapter as one model, and everything that does not fit.
#[must_use]
pub fn compose(base: Checkpoint, adapter: Adapter, path: PathBuf) -> (Checkpoint, Vec<Problem>) {
    let (folder, file, config) = adapter.into_parts();
    let mut composer = Composer {
        base: &base,
        config: &config,
        shown: escape(&folder.to_string_lossy()),
        edit: None,
        searches: SEARCHES,
        replaced: HashMap::new(),
        added: Vec::new(),
        changes: HashMap::new(),
        problems: Vec::new(),
    };
    let modules = composer.sort_out(&file);
    let wholes = composer.replaced.len() + composer.added.len();
    for (name, module) in &modules {
        composer.add_module(name, module);
    }
    if modules.is_empty() && wholes == 0 && composer.problems.is_empty() {
        composer.problem("", "it holds no tensors".into());
    }
    let Composer { replaced, added, changes, problems, shown, .. } = composer;

    let mut notes = vec![format!(
        "{shown}: {} on {}: {} tensors changed, {wholes} replaced",
        config.describe(),
        escape(&base.path().to_string_lossy()),
        changes.len(),
    )];
    let head = |t: &Tensor| is_head(&t.name);
    let tied = !base.tensors().iter().any(head) && tied_embedding(&base, "lm_head.weight").is_some();
    if tied && !added.iter().any(head) && changes.keys().chain(replaced.keys()).any(|n| is_embedding(n)) {
        notes.push(format!("{shown} changes the embedding, and the head, which is tied to it, changes too"));
    }
    let parts = Parts { base: base.path().to_path_buf(), adapter: folder, notes };
    (Checkpoint::composed(Composition { path, parts, base, file, replaced, added, changes }), problems)
}

impl<'a> Composer<'a> {
    fn problem(&mut self, tensor: &str, text: String) {
        self.problems.push((tensor.to_owned(), format!("{}: {text}", self.shown)));
    }

    /// Groups an adapter's tensors by module, and puts whole tensors in their places.
    fn sort_out<'f>(&mut self, file: &'f Checkpoint) -> BTreeMap<String, Module<'f>> {
        let mut modules: BTreeMap<String, Module<'f>> = BTreeMap::new();
        for tensor in file.tensors() {
            let slot = match piece(&tensor.name) {
                Piece::A(m) => &mut modules.entry(m).or_default().a,
                Piece::B(m) => &mut modules.entry(m).or_default().b,
                Piece::EmbeddingA(m) => &mut modules.entry(m).or_default().embedding_a,
                Piece::EmbeddingB(m) => &mut modules.entry(m).or_default().embedding_b,
                Piece::Bias(m) => &mut modules.entry(m).or_default().bias,
                Piece::Magnitude(m) => &mut modules.entry(m).or_default().magnitude,
                Piece::Whole(name) => {
                    self.add_whole(&name, tensor);
                    continue;
                }
                Piece::Original => continue,
                Piece::Unknown => {
                    self.problem(
                        &tensor.name,
                        format!("`{}` is no tensor of a LoRA adapter", escape(&tensor.name)),
                    );
                    continue;
                }
            };
            if slot.replace(tensor).is_some() {
                self.problem(&tensor.name, format!("`{}` is there under two names", escape(&tensor.name)));
            }
        }
        modules
    }

    /// The base's tensor that the adapter calls `name`.
    fn find(&mut self, name: &str) -> Option<&'a Tensor> {
        let base = self.base;
        let edited = |edit: &Edit| edit.apply(name).and_then(|name| base.get(&name));
        if let Some(found) = base.get(name).or_else(|| self.edit.as_ref().and_then(edited)) {
            return Some(found);
        }
        self.searches = self.searches.checked_sub(1)?;
        let mut edit = Edit::Drop;
        let found = edited(&edit).or_else(|| {
            let place = |t: &'a Tensor| Some((t, t.name.strip_suffix(name).filter(|p| p.ends_with('.'))?));
            let mut places = base.tensors().iter().filter_map(place);
            let (tensor, prefix) = places.next()?;
            edit = Edit::Prefix(prefix.to_owned());
            places.next().is_none().then_some(tensor)
        })?;
        self.edit = Some(edit);
        Some(found)
    }

    /// The base's name for a head that the base does not store.
    fn head_name(&self, name: &str) -> String {
        self.edit.as_ref().and_then(|e| e.apply(name)).unwrap_or_else(|| name.to_owned())
    }

    /// A tensor of the adapter's file as one of the composed checkpoint.
    fn own(&self, tensor: &Tensor, name: String) -> Tensor {
        Tensor { name, shard: self.base.shards().len() + tensor.shard, ..tensor.clone() }
    }

    fn stored(&self, tensor: &Tensor) -> Stored {
        Stored {
            shard: self.base.shards().len() + tensor.shard,
            begin: tensor.begin,
            elements: tensor.elements(),
            dtype: tensor.dtype,
        }
    }

    /// A tensor of `modules_to_save`, a bias, or an embedding that was stored whole.
    fn add_whole(&mut self, name: &str, tensor: &Tensor) {
        let found = self.find(name);
        let Some(place) = found.or_else(|| tied_embedding(self.base, name)) else {
            return self.problem(name, format!("`{}` is not in the base", escape(name)));
        };
        let fits =
            tensor.dtype == place.dtype || (tensor.dtype.has_arithmetic() && place.dtype.has_arithmetic());
        if tensor.shape != place.shape || !fits {
            let (name, shape, other) = (escape(name), &tensor.shape, &place.shape);
            let text = format!(
                "`{name}`: {} {shape:?} in the adapter, {} {other:?} in the base",
                tensor.dtype, place.dtype
            );
            return self.problem(&place.name, text);
        }
        if found.is_some() {
            let own = self.own(tensor, place.name.clone());
            if self.replaced.insert(place.name.clone(), own).is_some() {
                self.problem(&place.name, format!("`{}` is there twice", escape(name)));
            }
        } else {
            let own = self.own(tensor, self.head_name(name));
            self.added.push(own);
        }
    }

    fn add_module(&mut self, name: &str, module: &Module<'_>) {
        let shown = escape(name);
        let weight = format!("{name}.weight");
        let (a, b, embedding) = match (module.a, module.b, module.embedding_a, module.embedding_b) {
            (Some(a), Some(b), None, None) => (a, b, false),
            (None, None, Some(a), Some(b)) => (a, b, true),
            (a, b, ea, eb) => {
                let missing = [
                    ("lora_A", a, b),
                    ("lora_B", b, a),
                    ("lora_embedding_A", ea, eb),
                    ("lora_embedding_B", eb, ea),
                ];
                let mut missing = missing.iter().filter(|(_, one, other)| one.is_none() && other.is_some());
                let text = match missing.next() {
                    Some((what, ..)) => format!("`{shown}`: {what} is missing"),
                    None if a.is_some() => format!("`{shown}`: factors of a matrix and of an embedding"),
                    None => format!("`{shown}`: a bias or magnitude without lora_A and lora_B"),
                };
                return self.problem(&weight, text);
            }
        };
        if let Some(odd) = [Some(a), Some(b), module.bias, module.magnitude]
            .into_iter()
            .flatten()
            .find(|t| !t.dtype.has_arithmetic())
        {
            let text = format!("`{}`: {} has no arithmetic", escape(&odd.name), odd.dtype);
            return self.problem(&weight, text);
        }
        let found = self.find(&weight);
        let Some(place) = found.or_else(|| tied_embedding(self.base, &weight)) else {
            return self.problem(&weight, format!("`{}` is not in the base", escape(&weight)));
        };
        let (place_name, shape) = (place.name.clone(), place.shape.clone());
        if !place.dtype.has_arithmetic() {
            let text =
                format!("`{}` of the base is {}, which has no arithmetic", escape(&place_name), place.dtype);
            return self.problem(&place_name, text);
        }
        let (ranks, expected) = ((a.shape.first(), b.shape.get(1)), self.config.rank_of(name));
        if let (Some(of_a), Some(of_b)) = ranks
            && of_a != of_b
        {
            let text = format!("`{shown}`: lora_A has rank {of_a}, lora_B has rank {of_b}");
            return self.problem(&place_name, text);
        }
        let Some(fit) = fit(&shape, &a.shape, &b.shape, embedding || self.config.transposed) else {
            let (a, b) = (&a.shape, &b.shape);
            let text = format!(
                "`{shown}`: lora_A {a:?} and lora_B {b:?} make no change of {shape:?}, the base's shape"
            );
            return self.problem(&place_name, text);
        };
        if fit.rank != expected {
            let text =
                format!("`{shown}`: its factors have rank {}, the configuration says {expected}", fit.rank);
            return self.problem(&place_name, text);
        }
        let scale = self.config.scale_of(name);
        let (left, right) = if fit.transposed { (a, b) } else { (b, a) };
        let factor = |t: &Tensor| Factor { stored: Some(self.stored(t)), transposed: fit.transposed };
        let change = Change {
            rows: fit.rows,
            columns: fit.columns,
            rank: fit.rank,
            scale,
            left: factor(left),
            right: factor(right),
            magnitude: module.magnitude.map(|t| self.stored(t)),
        };
        if let Some(text) = self.odd_magnitude(&change, embedding || fit.transposed || shape.len() != 2) {
            return self.problem(&place_name, format!("`{shown}`: {text}"));
        }
        let target = if found.is_some() { place_name } else { self.head_name(&weight) };
        if found.is_none() && !self.added.iter().any(|t| t.name == target) {
            // The head gets bytes of its own: those of the embedding that it was tied to.
            self.added.push(Tensor { name: target.clone(), ..place.clone() });
        }
        self.insert(target, change);
        if let Some(bias) = module.bias {
            self.add_bias(name, bias, scale);
        }
    }

    /// What is wrong with the row lengths of DoRA, or with there being none.
    fn odd_magnitude(&self, change: &Change, odd: bool) -> Option<String> {
        match &change.magnitude {
            None if self.config.dora => Some("lora_magnitude_vector is missing".into()),
            None => None,
            Some(_) if !self.config.dora => Some("a lora_magnitude_vector, but `use_dora` is not set".into()),
            Some(_) if odd => Some("DoRA of an embedding, a Conv1D or a convolution is not supported".into()),
            Some(m) if m.elements != change.rows => {
                Some(format!("lora_magnitude_vector has {} elements for {} rows", m.elements, change.rows))
            }
            Some(_) => None,
        }
    }

    /// What `lora_bias` adds to a module's bias: a product of rank 1.
    fn add_bias(&mut self, module: &str, bias: &Tensor, scale: f64) {
        let name = format!("{module}.bias");
        let Some(place) = self.find(&name) else {
            return self.problem(
                &name,
                format!("`{}`, which lora_B has a bias for, is not in the base", escape(&name)),
            );
        };
        if place.shape != bias.shape || !place.dtype.has_arithmetic() {
            let (shape, other) = (&bias.shape, &place.shape);
            let text = format!(
                "`{}`: {shape:?} in the adapter, {} {other:?} in the base",
                escape(&name),
                place.dtype
            );
            return self.problem(&place.name, text);
        }
        let change = Change {
            rows: 1,
            columns: bias.elements(),
            rank: 1,
            scale,
            left: Factor { stored: None, transposed: false },
            right: Factor { stored: Some(self.stored(bias)), transposed: false },
            magnitude: None,
        };
        self.insert(place.name.clone(), change);
    }

    fn insert(&mut self, target: String, change: Change) {
        if self.changes.contains_key(&target) {
            let text = format!("two modules change `{}`", escape(&target));
            return self.problem(&target, text);
        }
        self.changes.insert(target, change);
    }
}

/// How two factors fit a tensor.
struct Fit {
    rows: u64,
    columns: u64,
    rank: u64,
    transposed: bool,
}

/// The way in which `a` and `b` make a change of `shape`: b·a, with further dimensions of a kernel as columns, or its
/// transpose, which is how embeddings and GPT-2's `Conv1D` are stored. Where both do, `transposed` decides.
fn fit(shape: &[u64], a: &[u64], b: &[u64], transposed: bool) -> Option<Fit> {
    let straight = match (shape, a, b) {
        ([rows, rest @ ..], [rank, inner @ ..], [outer, across, ones @ ..])
            if rows == outer
                && rank == across
                && rest == inner
                && !rest.is_empty()
                && ones.iter().all(|d| *d == 1) =>
        {
            Some(Fit { rows: *rows, columns: rest.iter().product(), rank: *rank, transposed: false })
        }
        _ => None,
    };
    let turned = match (shape, a, b) {
        ([rows, columns], [rank, inner], [outer, across])
            if rows == inner && columns == outer && rank == across =>
        {
            Some(Fit { rows: *rows, columns: *columns, rank: *rank, transposed: true })
        }
        _ => None,
    };
    if transposed { turned.or(straight) } else { straight.or(turned) }
}
