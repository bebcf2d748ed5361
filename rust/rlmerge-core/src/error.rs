//! Every way in which a merge can fail: one variant a cause, each with its fields, a stable
//! [`code`](Error::code), the [exit code](Error::exit_code) of the command line and, where there
//! is one, a [`hint`](Error::hint) that says what to do next.

mod examples;
mod panics;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

pub use examples::examples;
pub use panics::keep_panics_short;

/// Result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// The action of an [`Error::Io`] on the folder that is to hold the output; it has a hint of its own.
pub(crate) const OPEN_PARENT: &str = "opening the folder of the output";

/// A failed operation. Variants are grouped by what the user must do about them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    // ---- the recipe or the command line (exit 2) ----
    /// The recipe is not of the documented form.
    #[error("recipe: {message}")]
    RecipeInvalid {
        /// What is wrong, with the key.
        message: String,
    },
    /// No method has this name.
    #[error("unknown method `{name}`")]
    UnknownMethod {
        /// The name given.
        name: String,
        /// The nearest known name.
        suggestion: Option<String>,
    },
    /// The method has no such parameter.
    #[error("method `{method}` has no parameter `{name}`")]
    UnknownParameter {
        /// The name given.
        name: String,
        /// The method.
        method: String,
        /// The nearest parameter of that method.
        suggestion: Option<String>,
    },
    /// A value outside the documented range.
    #[error("parameter `{parameter}` of {place}: {value} is not {expected}")]
    ParameterOutOfRange {
        /// Its name.
        parameter: String,
        /// The model it was given for, or the recipe.
        place: String,
        /// The value given.
        value: String,
        /// The documented range.
        expected: String,
    },
    /// A list whose length is not the number of experts.
    #[error("parameter `{parameter}` has {got} values for {expected} experts")]
    ParameterCount {
        /// Its name.
        parameter: String,
        /// Number of experts.
        expected: usize,
        /// Number of values given.
        got: usize,
    },
    /// A parameter without a default was not given.
    #[error("method `{method}` needs parameter `{parameter}`")]
    MissingParameter {
        /// Its name.
        parameter: String,
        /// The method.
        method: String,
    },
    /// `normalize` would divide by zero.
    #[error("method `{method}`: the weights sum to {sum}, and `normalize` divides by that sum")]
    ZeroWeightSum {
        /// The method.
        method: String,
        /// The sum of the weights.
        sum: f64,
    },
    /// Too few or too many models for the method.
    #[error("method `{method}` takes {expected}, got {got}")]
    ModelCount {
        /// The method.
        method: String,
        /// What it takes, in words.
        expected: String,
        /// What it got, in words.
        got: String,
    },

    /// An adapter where a whole model is needed.
    #[error("{path}: an adapter, which is a model only together with its base", path = show(path))]
    AdapterWithoutBase {
        /// The adapter.
        path: PathBuf,
    },

    // ---- a bad input file (exit 3) ----
    /// Nothing is at the path of a model.
    #[error("{path}: no such file or folder", path = show(path))]
    ModelNotFound {
        /// The path given.
        path: PathBuf,
    },
    /// A folder without safetensors, or a path that is no model.
    #[error("{path}: {message}", path = show(path))]
    NotACheckpoint {
        /// The path given.
        path: PathBuf,
        /// What is there instead.
        message: String,
    },
    /// The file is of another format.
    #[error("{path}: not a safetensors file: {found}", path = show(path))]
    WrongFormat {
        /// The file.
        path: PathBuf,
        /// What its first bytes say that it is.
        found: String,
    },
    /// The file breaks a rule of the safetensors format.
    #[error("{path}: {message}{tensor}{offset}", path = show(path), tensor = on_tensor(tensor.as_deref()), offset = at_byte(*offset))]
    BadHeader {
        /// The file.
        path: PathBuf,
        /// Which rule, with the values.
        message: String,
        /// The tensor whose entry is wrong.
        tensor: Option<String>,
        /// Byte offset in the file.
        offset: Option<u64>,
    },
    /// The index file breaks a rule, or disagrees with its shards.
    #[error("{path}: {message}{tensor}", path = show(path), tensor = on_tensor(tensor.as_deref()))]
    BadIndex {
        /// The index file.
        path: PathBuf,
        /// Which rule, with the values.
        message: String,
        /// The tensor concerned.
        tensor: Option<String>,
    },
    /// `config.json` cannot be read as JSON.
    #[error("{path}: {message}", path = show(path))]
    BadConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A quantised checkpoint.
    #[error("{path}: a quantised checkpoint ({evidence}); its stored numbers are not weights and cannot be merged", path = show(path))]
    Quantised {
        /// The model.
        path: PathBuf,
        /// The tensor or configuration key that shows it.
        evidence: String,
        /// The tensor, when it was a tensor.
        tensor: Option<String>,
    },
    /// Statistics that an expert cannot have.
    #[error("{path}: tensor `{tensor}`: {message}", path = show(path), tensor = escape(tensor))]
    BadStatistics {
        /// The file or folder of statistics.
        path: PathBuf,
        /// The tensor that they are about.
        tensor: String,
        /// What is wrong, with the element.
        message: String,
    },
    /// An adapter whose merged weights are not the base plus a product of two factors.
    #[error("{path}: an adapter that cannot be merged: {message}", path = show(path))]
    AdapterUnsupported {
        /// The adapter.
        path: PathBuf,
        /// Every reason.
        message: String,
    },
    /// An input changed while it was read.
    #[error("{path}: changed while it was being read ({message})", path = show(path))]
    InputChanged {
        /// The file.
        path: PathBuf,
        /// What changed.
        message: String,
    },

    /// An input became shorter while it was read.
    #[error("{path}: shrank from {from} to {now} bytes while it was being read{tensor}{offset}", path = show(path), tensor = on_tensor(tensor.as_deref()), offset = at_byte(Some(*offset)))]
    InputShrank {
        /// The file.
        path: PathBuf,
        /// The tensor that was being read.
        tensor: Option<String>,
        /// Where in the file that reading began.
        offset: u64,
        /// Its length when it was opened.
        from: u64,
        /// Its length now.
        now: u64,
    },

    // ---- inputs that do not fit each other (exit 4) ----
    /// Tensor names, shapes or dtypes differ; all differences at once.
    #[error("the models do not fit together: {count} problem{s}\n{list}", count = problems.len(), s = if problems.len() == 1 { "" } else { "s" }, list = listing(problems))]
    ModelsDoNotFit {
        /// One line a difference.
        problems: Vec<String>,
        /// The first tensor concerned.
        tensor: Option<String>,
    },
    /// A tensor without arithmetic differs between models.
    #[error("{path}: tensor `{tensor}` ({dtype}) differs from the one in {other} at byte {byte}; {dtype} tensors are copied when equal and never averaged", path = show(path), other = show(other), tensor = escape(tensor))]
    OpaqueTensorsDiffer {
        /// The model.
        path: PathBuf,
        /// The model it was compared with.
        other: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: &'static str,
        /// First differing byte, counted from the tensor's start.
        byte: u64,
    },

    // ---- input and output (exit 5) ----
    /// The operating system refused.
    #[error("{path}: {action} failed: {source}", path = show(path))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The operating system could not read an input.
    #[error("{path}: reading failed: {source}{tensor}{offset}", path = show(path), tensor = on_tensor(tensor.as_deref()), offset = at_byte(Some(*offset)))]
    ReadFailed {
        /// The file.
        path: PathBuf,
        /// The tensor that was being read.
        tensor: Option<String>,
        /// Where in the file that reading began.
        offset: u64,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Not enough room for the output.
    #[error("{path}: no space: the output needs {needed} bytes, {free} are free", path = show(path))]
    NoSpace {
        /// The output.
        path: PathBuf,
        /// Bytes planned.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// The output is whole, but the folder that holds it could not be made durable.
    #[error("{path}: the output is whole but may not survive a power cut: {source}", path = show(path))]
    NotDurable {
        /// The output.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Worker threads could not be started.
    #[error("cannot start {threads} worker threads: {message}")]
    Threads {
        /// How many.
        threads: usize,
        /// The system's answer.
        message: String,
    },
    /// There is not as much memory as the work may take.
    #[error("out of memory (tried {tried} bytes)")]
    OutOfMemory {
        /// Bytes that the system would not give.
        tried: u64,
    },

    // ---- the output (exit 6) ----
    /// Something is at the output path already.
    #[error("{path}: already exists", path = show(path))]
    OutputExists {
        /// The output.
        path: PathBuf,
    },
    /// What is at the output path is more than this output would replace.
    #[error("{path}: cannot be replaced: {message}", path = show(path))]
    OutputNotReplaceable {
        /// The output.
        path: PathBuf,
        /// What is there.
        message: String,
    },
    /// The output is one of the inputs, inside one, or around one.
    #[error("output {path} {relation} input {input}; an input is never written to", path = show(path), input = show(input))]
    OutputIsInput {
        /// The output.
        path: PathBuf,
        /// The input.
        input: PathBuf,
        /// How they are related.
        relation: &'static str,
    },

    /// Another run is writing the same output.
    #[error("{path}: another rlmerge (process {pid}) is writing it", path = show(path))]
    OutputLocked {
        /// The output.
        path: PathBuf,
        /// The process that made its stage.
        pid: u32,
    },
    /// `--resume`, and what a killed run left is of another merge.
    #[error("{path}: a killed run left this, and {message}; nothing was written", path = show(path))]
    StageDiffers {
        /// The stage.
        path: PathBuf,
        /// What is different.
        message: String,
    },

    // ---- numbers (exit 7) ----
    /// A reduction met NaN or infinity and has no value.
    #[error("tensor `{tensor}`: {message}", tensor = escape(tensor))]
    NonFinite {
        /// The tensor.
        tensor: String,
        /// Which quantity, in which model.
        message: String,
    },
    /// `--strict`, and the output holds NaN or infinity.
    #[error("{count} non-finite values in {tensors} output tensors, first in `{tensor}` at element {element}; nothing was written", tensor = escape(tensor))]
    NonFiniteOutput {
        /// How many values.
        count: u64,
        /// In how many tensors.
        tensors: u64,
        /// The first such tensor.
        tensor: String,
        /// Its first such element.
        element: u64,
    },

    /// `--on-overflow error`, and the output's dtype cannot hold a value.
    #[error("{count} values in {tensors} output tensors are too large for their dtype, first in `{tensor}` ({dtype}) at element {element}; nothing was written", tensor = escape(tensor))]
    Overflow {
        /// How many values.
        count: u64,
        /// In how many tensors.
        tensors: u64,
        /// The first such tensor.
        tensor: String,
        /// Its dtype.
        dtype: &'static str,
        /// Its first such element.
        element: u64,
    },

    // ---- verification (exit 8) ----
    /// A tensor is not the one that something else was made from.
    #[error("{path}: tensor `{tensor}` is not the one that the merge was made with; nothing was written", path = show(path), tensor = escape(tensor))]
    ChecksumMismatch {
        /// The file or folder that holds it.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },

    /// `--verify`, and what was written reads back otherwise.
    #[error("{path}: what was written reads back otherwise: {message}{tensor}; nothing was published", path = show(path), tensor = on_tensor(tensor.as_deref()))]
    ReadBackDiffers {
        /// The file of the output.
        path: PathBuf,
        /// What is different.
        message: String,
        /// The tensor concerned.
        tensor: Option<String>,
    },

    // ---- interruption and bugs ----
    /// The caller asked to stop (exit 130).
    #[error("interrupted; nothing was written")]
    Cancelled,
    /// A bug of rlmerge (exit 1).
    #[error("internal error (a bug in rlmerge): {message}")]
    Internal {
        /// What was found.
        message: String,
    },
}

impl Error {
    /// Stable name of the cause, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::RecipeInvalid { .. } => "recipe_invalid",
            Self::UnknownMethod { .. } => "unknown_method",
            Self::UnknownParameter { .. } => "unknown_parameter",
            Self::ParameterOutOfRange { .. } => "parameter_out_of_range",
            Self::ParameterCount { .. } => "parameter_count",
            Self::MissingParameter { .. } => "missing_parameter",
            Self::ZeroWeightSum { .. } => "zero_weight_sum",
            Self::ModelCount { .. } => "model_count",
            Self::AdapterWithoutBase { .. } => "adapter_without_base",
            Self::ModelNotFound { .. } => "model_not_found",
            Self::NotACheckpoint { .. } => "not_a_checkpoint",
            Self::WrongFormat { .. } => "wrong_format",
            Self::BadHeader { .. } => "bad_header",
            Self::BadIndex { .. } => "bad_index",
            Self::BadConfig { .. } => "bad_config",
            Self::Quantised { .. } => "quantised",
            Self::BadStatistics { .. } => "bad_statistics",
            Self::AdapterUnsupported { .. } => "adapter_unsupported",
            Self::InputChanged { .. } => "input_changed",
            Self::InputShrank { .. } => "input_shrank",
            Self::ModelsDoNotFit { .. } => "models_do_not_fit",
            Self::OpaqueTensorsDiffer { .. } => "opaque_tensors_differ",
            Self::Io { .. } => "io",
            Self::ReadFailed { .. } => "read_failed",
            Self::NoSpace { .. } => "no_space",
            Self::NotDurable { .. } => "not_durable",
            Self::Threads { .. } => "threads",
            Self::OutOfMemory { .. } => "out_of_memory",
            Self::OutputExists { .. } => "output_exists",
            Self::OutputNotReplaceable { .. } => "output_not_replaceable",
            Self::OutputIsInput { .. } => "output_is_input",
            Self::OutputLocked { .. } => "output_locked",
            Self::StageDiffers { .. } => "stage_differs",
            Self::NonFinite { .. } => "non_finite",
            Self::NonFiniteOutput { .. } => "non_finite_output",
            Self::Overflow { .. } => "overflow",
            Self::ChecksumMismatch { .. } => "checksum_mismatch",
            Self::ReadBackDiffers { .. } => "read_back_differs",
            Self::Cancelled => "cancelled",
            Self::Internal { .. } => "internal",
        }
    }

    /// Exit code of the command line for this error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        exit_code_of(self.code())
    }

    /// The file or folder concerned, if there is one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::AdapterWithoutBase { path }
            | Self::ModelNotFound { path }
            | Self::NotACheckpoint { path, .. }
            | Self::WrongFormat { path, .. }
            | Self::BadHeader { path, .. }
            | Self::BadIndex { path, .. }
            | Self::BadConfig { path, .. }
            | Self::Quantised { path, .. }
            | Self::BadStatistics { path, .. }
            | Self::AdapterUnsupported { path, .. }
            | Self::InputChanged { path, .. }
            | Self::InputShrank { path, .. }
            | Self::OpaqueTensorsDiffer { path, .. }
            | Self::Io { path, .. }
            | Self::ReadFailed { path, .. }
            | Self::NoSpace { path, .. }
            | Self::NotDurable { path, .. }
            | Self::OutputExists { path }
            | Self::OutputNotReplaceable { path, .. }
            | Self::OutputIsInput { path, .. }
            | Self::OutputLocked { path, .. }
            | Self::StageDiffers { path, .. }
            | Self::ReadBackDiffers { path, .. }
            | Self::ChecksumMismatch { path, .. } => Some(path),
            _ => None,
        }
    }

    /// The tensor concerned, if there is one.
    #[must_use]
    pub fn tensor(&self) -> Option<&str> {
        match self {
            Self::BadHeader { tensor, .. }
            | Self::BadIndex { tensor, .. }
            | Self::Quantised { tensor, .. }
            | Self::InputShrank { tensor, .. }
            | Self::ReadFailed { tensor, .. }
            | Self::ReadBackDiffers { tensor, .. }
            | Self::ModelsDoNotFit { tensor, .. } => tensor.as_deref(),
            Self::OpaqueTensorsDiffer { tensor, .. }
            | Self::BadStatistics { tensor, .. }
            | Self::NonFinite { tensor, .. }
            | Self::NonFiniteOutput { tensor, .. }
            | Self::Overflow { tensor, .. }
            | Self::ChecksumMismatch { tensor, .. } => Some(tensor),
            _ => None,
        }
    }

    /// What to do next, if one thing helps.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::UnknownMethod { suggestion: Some(s), .. } => {
                format!("did you mean `{s}`? `rlmerge methods` lists them all")
            }
            Self::UnknownMethod { .. } => "`rlmerge methods` lists them all".into(),
            Self::UnknownParameter { suggestion: Some(s), method, .. } => {
                format!("did you mean `{s}`? `rlmerge methods {method}` lists its parameters")
            }
            Self::UnknownParameter { method, .. } | Self::MissingParameter { method, .. } => {
                format!("`rlmerge methods {method}` lists its parameters")
            }
            Self::ParameterCount { .. } => "give one value for all experts, or one for each".into(),
            Self::ZeroWeightSum { .. } => "change the weights, or set `normalize: false`".into(),
            Self::AdapterWithoutBase { path } => format!(
                "give the base with --base, or write BASE+{}, whatever the method",
                show(path)
            ),
            Self::AdapterUnsupported { .. } => {
                "merge it into its base with the library that made it (`merge_and_unload` of peft), then give the result".into()
            }
            Self::ModelNotFound { .. } => "check the path; `rlmerge inspect PATH` shows a model".into(),
            Self::NotACheckpoint { .. } => "give a `.safetensors` file, or a folder with `model.safetensors` or `model.safetensors.index.json`".into(),
            Self::WrongFormat { .. } => "convert it to safetensors first; rlmerge never reads pickles".into(),
            Self::BadHeader { .. } | Self::BadIndex { .. } | Self::BadConfig { .. } => "download or save the file again; it is damaged or was written by a faulty program".into(),
            Self::Quantised { .. } => "merge the unquantised checkpoints, then quantise the result".into(),
            Self::BadStatistics { .. } => "compute the statistics again; a file without this tensor leaves it to a plain average".into(),
            Self::InputChanged { .. } | Self::InputShrank { .. } => "wait until nothing writes to the inputs, then run the same command again".into(),
            Self::ModelsDoNotFit { .. } => "`rlmerge inspect MODEL` lists the tensors of a model; merge models of one family and one vocabulary".into(),
            Self::OpaqueTensorsDiffer { .. } => "such tensors are never averaged; say whose are right with --int-from base, or the number of an expert".into(),
            Self::ReadFailed { .. } => "check the disk that holds the file (`dmesg`), and copy the model anew".into(),
            Self::OutOfMemory { .. } => "use fewer workers with --threads, or raise the limit on memory (`ulimit -v`, the container's)".into(),
            Self::NoSpace { .. } => "free some space, or choose another place with -o".into(),
            Self::OutputExists { .. } => "choose another path with -o, or replace it with --force".into(),
            Self::OutputNotReplaceable { .. } => "choose another path with -o, or move away what is there".into(),
            Self::OutputIsInput { .. } => "choose another path with -o".into(),
            Self::OutputLocked { .. } => "wait for it to end, or choose another path with -o".into(),
            Self::StageDiffers { path, .. } => format!(
                "run what was killed again as it was, or remove what it left with `rlmerge clean {}`",
                path.parent().filter(|p| !p.as_os_str().is_empty()).map_or_else(|| ".".into(), show)
            ),
            Self::Io { action: OPEN_PARENT, source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                "create that folder first, or choose another path with -o".into()
            }
            Self::Io { source, .. } if matches!(source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                "every shard of every model is open during a merge: raise the limit on open files (`ulimit -n`)".into()
            }
            Self::NonFinite { .. } => "`rlmerge inspect MODEL` names the file; repair or leave out the model that holds the value".into(),
            Self::NonFiniteOutput { .. } => "run without --strict to write it all the same".into(),
            Self::Overflow { .. } => "write a wider dtype with --dtype, or choose --on-overflow inf or clamp".into(),
            Self::ChecksumMismatch { .. } => "give the very base of the merge with --base; if the merged folder itself was changed, merge again".into(),
            Self::ReadBackDiffers { .. } => "look after the disk and the memory of this machine, then merge again, to another disk if there is one".into(),
            Self::Internal { .. } => "please report it with the command and RLMERGE_DEBUG=1 output".into(),
            _ => return None,
        })
    }

    /// The same error with the name of the tensor that was being read, where there is room for it.
    #[must_use]
    pub(crate) fn in_tensor(mut self, name: &str) -> Self {
        if let Self::InputShrank { tensor, .. } | Self::ReadFailed { tensor, .. } = &mut self {
            tensor.get_or_insert_with(|| name.to_owned());
        }
        self
    }

    /// A caught panic: always a bug.
    #[must_use]
    pub fn from_panic(panic: &(dyn std::any::Any + Send)) -> Self {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let message = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a worker panicked");
        let place = panics::take_place().map_or_else(String::new, |place| format!(" ({place})"));
        Self::Internal { message: format!("{}{place}", escape(message)) }
    }

    /// An I/O error with what was tried on which path.
    pub(crate) fn io(path: &Path, action: &'static str, source: impl Into<std::io::Error>) -> Self {
        Self::Io { path: path.to_path_buf(), action, source: source.into() }
    }
}

/// The closed list of codes with their exit codes: `(code, exit code, what the user must look at)`.
pub const CODES: &[(&str, u8, &str)] = &[
    ("recipe_invalid", 2, "recipe"),
    ("unknown_method", 2, "recipe"),
    ("unknown_parameter", 2, "recipe"),
    ("parameter_out_of_range", 2, "recipe"),
    ("parameter_count", 2, "recipe"),
    ("missing_parameter", 2, "recipe"),
    ("zero_weight_sum", 2, "recipe"),
    ("model_count", 2, "recipe"),
    ("adapter_without_base", 2, "recipe"),
    ("model_not_found", 3, "checkpoint"),
    ("not_a_checkpoint", 3, "checkpoint"),
    ("wrong_format", 3, "checkpoint"),
    ("bad_header", 3, "checkpoint"),
    ("bad_index", 3, "checkpoint"),
    ("bad_config", 3, "checkpoint"),
    ("quantised", 3, "checkpoint"),
    ("bad_statistics", 3, "checkpoint"),
    ("adapter_unsupported", 3, "checkpoint"),
    ("input_changed", 3, "checkpoint"),
    ("input_shrank", 3, "checkpoint"),
    ("models_do_not_fit", 4, "alignment"),
    ("opaque_tensors_differ", 4, "alignment"),
    ("io", 5, "output"),
    ("read_failed", 5, "output"),
    ("no_space", 5, "output"),
    ("not_durable", 5, "output"),
    ("threads", 5, "output"),
    ("out_of_memory", 5, "output"),
    ("output_exists", 6, "output"),
    ("output_not_replaceable", 6, "output"),
    ("output_is_input", 6, "output"),
    ("output_locked", 6, "output"),
    ("stage_differs", 6, "output"),
    ("non_finite", 7, "numerics"),
    ("non_finite_output", 7, "numerics"),
    ("overflow", 7, "numerics"),
    ("checksum_mismatch", 8, "checkpoint"),
    ("read_back_differs", 8, "output"),
    ("cancelled", 130, "interrupt"),
    ("internal", 1, "bug"),
];

fn exit_code_of(code: &str) -> u8 {
    CODES.iter().find(|(c, ..)| *c == code).map_or(1, |(_, exit, _)| *exit)
}

/// A hostile string made fit for a terminal: control characters escaped, cut to 256 bytes.
#[must_use]
pub fn escape(text: &str) -> String {
    const LIMIT: usize = 256;
    let mut out = String::new();
    for (at, c) in text.char_indices() {
        if at + c.len_utf8() > LIMIT {
            let _ = write!(out, "… ({} bytes)", text.len());
            break;
        }
        let hidden = c.is_control()
            || matches!(c,
                '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
                | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
        if hidden { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

fn show(path: &Path) -> String {
    escape(&path.to_string_lossy())
}

fn on_tensor(tensor: Option<&str>) -> String {
    tensor.map_or_else(String::new, |t| format!(" (tensor `{}`)", escape(t)))
}

fn at_byte(offset: Option<u64>) -> String {
    offset.map_or_else(String::new, |o| format!(" (at byte {o})"))
}

fn listing(problems: &[String]) -> String {
    const SHOWN: usize = 50;
    let mut out = String::new();
    for line in problems.iter().take(SHOWN) {
        let _ = writeln!(out, "  {line}");
    }
    if problems.len() > SHOWN {
        let _ = writeln!(out, "  … and {} more", problems.len() - SHOWN);
    }
    out.truncate(out.trim_end().len());
    out
}
