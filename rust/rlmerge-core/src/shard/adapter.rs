//! PEFT adapters: what `adapter_config.json` says, and what each tensor of `adapter_model.safetensors` is.

use std::path::{Path, PathBuf};

use regex_lite::Regex;
use serde_json::{Value, json};

use super::checkpoint::Checkpoint;
use super::folder::is_there;
use super::source::{look, read_bounded};
use crate::error::{Error, Result, escape};

/// File name of an adapter's configuration.
const CONFIG: &str = "adapter_config.json";
/// File name of an adapter's tensors.
const TENSORS: &str = "adapter_model.safetensors";
/// File names under which older versions of PEFT stored pickles.
const PICKLE: &str = "adapter_model.bin";
/// Longest `adapter_config.json`, in bytes.
const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// What PEFT puts in front of the names of all tensors.
const WRAPPER: &str = "base_model.model.";

/// Kinds of adapters that change weights otherwise than by a product of two factors, as people call them.
const OTHER_KINDS: &[(&str, &str)] = &[
    ("VERA", "VeRA"),
    ("LOHA", "LoHa"),
    ("LOKR", "LoKr"),
    ("IA3", "(IA)³"),
    ("ADALORA", "AdaLoRA"),
    ("OFT", "OFT"),
    ("BOFT", "BOFT"),
    ("VBLORA", "VB-LoRA"),
    ("RANDLORA", "RandLoRA"),
    ("FOURIERFT", "FourierFT"),
    ("XLORA", "X-LoRA"),
    ("POLY", "Poly"),
    ("TRAINABLE_TOKENS", "trainable-tokens"),
    ("PROMPT_TUNING", "prompt-tuning"),
    ("PREFIX_TUNING", "prefix-tuning"),
    ("P_TUNING", "p-tuning"),
];

/// Options of LoRA under which the merged weight is something else than base + scale · B·A, or there is none.
const OTHER_OPTIONS: &[(&str, &str)] = &[
    ("use_qalora", "QA-LoRA pools the inputs of a quantised base"),
    ("layer_replication", "layers are repeated, so there is no base of the same shape"),
    ("alora_invocation_tokens", "activated LoRA applies only after certain tokens"),
    ("trainable_token_indices", "single rows of the embedding are trained"),
    ("target_parameters", "stacked parameters are targeted"),
    ("use_bdlora", "BD-LoRA has block-diagonal factors"),
    ("kasa_config", "KaSA cuts singular values off the base"),
    ("velora_config", "VeLoRA"),
    ("monteclora_config", "MonteCLoRA"),
    ("arrow_config", "Arrow routes between adapters"),
    ("megatron_config", "layers of Megatron"),
];

/// Values of `init_lora_weights` that leave the base as it is; all others train against a changed base.
const PLAIN_STARTS: &[&str] = &["true", "false", "gaussian", "eva", "orthogonal"];

/// Whether a path is a folder with an adapter and without a model.
#[must_use]
pub fn is_adapter(path: &Path) -> bool {
    let has = |name: &str| is_there(&path.join(name));
    has(CONFIG) && !has("model.safetensors") && !has("model.safetensors.index.json")
}

/// A LoRA adapter: its configuration, and its file open.
#[derive(Debug)]
pub struct Adapter {
    path: PathBuf,
    file: Checkpoint,
    config: AdapterConfig,
}

/// The part of an adapter that a tensor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// `A` of a module.
    A(String),
    /// `B` of a module.
    B(String),
    /// `A` of an embedding, whose columns are tokens.
    EmbeddingA(String),
    /// `B` of an embedding.
    EmbeddingB(String),
    /// What is added to a module's bias.
    Bias(String),
    /// Lengths of the rows of a module's weight, of DoRA.
    Magnitude(String),
    /// A tensor in place of the base's of this name.
    Whole(String),
    /// A copy of what the base holds.
    Original,
    /// None that we know.
    Unknown,
}

impl Adapter {
    /// Opens the adapter in a folder. Reads its configuration and header, and no tensor byte.
    ///
    /// # Errors
    /// Those of opening a checkpoint and reading a configuration, and [`Error::AdapterUnsupported`].
    pub fn open(path: &Path) -> Result<Self> {
        let adapter = Self::open_any(path)?;
        match adapter.config.refusals() {
            [] => Ok(adapter),
            reasons => {
                Err(Error::AdapterUnsupported { path: path.to_path_buf(), message: reasons.join("; ") })
            }
        }
    }

    /// Opens any adapter, even one that cannot be merged.
    pub(super) fn open_any(path: &Path) -> Result<Self> {
        let refuse = |message: String| Error::NotACheckpoint { path: path.to_path_buf(), message };
        if !look(path)?.is_dir() {
            return Err(refuse(format!("a file; an adapter is a folder with `{CONFIG}` and `{TENSORS}`")));
        }
        let config = path.join(CONFIG);
        if !is_there(&config) {
            return Err(refuse(format!("no adapter: it holds no `{CONFIG}`")));
        }
        let config = AdapterConfig::read(&config)?;
        let file = path.join(TENSORS);
        if !is_there(&file) {
            return Err(refuse(if is_there(&path.join(PICKLE)) {
                format!(
                    "an adapter whose tensors are a pickle, `{PICKLE}`, which rlmerge never reads; convert it to safetensors"
                )
            } else {
                format!("an adapter without `{TENSORS}`")
            }));
        }
        Ok(Self { path: path.to_path_buf(), file: Checkpoint::open(&file)?, config })
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its tensors as they are stored.
    #[must_use]
    pub const fn file(&self) -> &Checkpoint {
        &self.file
    }

    /// Its configuration.
    #[must_use]
    pub const fn config(&self) -> &AdapterConfig {
        &self.config
    }

    pub(super) fn into_parts(self) -> (PathBuf, Checkpoint, AdapterConfig) {
        (self.path, self.file, self.config)
    }
}

/// What `adapter_config.json` says, as far as it matters here.
#[derive(Debug, Clone)]
pub struct AdapterConfig {
    kind: String,
    rank: u64,
    alpha: f64,
    root: bool,
    /// Whether rows have lengths of their own (DoRA).
    pub dora: bool,
    /// Whether weights are stored with a row for each input, unless their shapes say otherwise.
    pub transposed: bool,
    /// The base by the name that the adapter was trained from.
    pub base: Option<String>,
    ranks: Vec<(Regex, String, u64)>,
    alphas: Vec<(Regex, String, f64)>,
    refused: Vec<String>,
    given: Value,
}

impl AdapterConfig {
    fn read(path: &Path) -> Result<Self> {
        let bad = |message: String| Error::BadConfig { path: path.to_path_buf(), message };
        let contents = read_bounded(path, MAX_CONFIG_BYTES, bad)?;
        let value: Value = serde_json::from_slice(&contents)
            .map_err(|e| bad(format!("not valid JSON: {}", escape(&e.to_string()))))?;
        Self::of(value).map_err(bad)
    }

    /// Reads the configuration; an error says which key is wrong.
    fn of(given: Value) -> std::result::Result<Self, String> {
        if !given.is_object() {
            return Err("not a JSON object".into());
        }
        let kind = given["peft_type"].as_str().ok_or("`peft_type` is missing")?.to_ascii_uppercase();
        let lora = kind == "LORA";
        let flag = |key: &str| given[key].as_bool().unwrap_or(false);
        let rank = match &given["r"] {
            Value::Null if !lora => 0,
            r => r.as_u64().filter(|r| *r > 0).ok_or("`r` is not a positive whole number")?,
        };
        let alpha = match &given["lora_alpha"] {
            Value::Null if !lora => 0.0,
            a => a.as_f64().ok_or("`lora_alpha` is not a number")?,
        };
        let refused = if lora { other_options(&given) } else { vec![other_kind(&kind)] };
        let ranks = patterns(&given, "rank_pattern", Value::as_u64)?;
        let alphas = patterns(&given, "alpha_pattern", Value::as_f64)?;
        Ok(Self {
            rank,
            alpha,
            root: flag("use_rslora"),
            dora: flag("use_dora"),
            transposed: flag("fan_in_fan_out"),
            base: given["base_model_name_or_path"].as_str().filter(|b| !b.is_empty()).map(str::to_owned),
            ranks,
            alphas,
            refused,
            kind,
            given,
        })
    }

    /// Why the adapter cannot be merged: every reason.
    #[must_use]
    pub fn refusals(&self) -> &[String] {
        &self.refused
    }

    /// The rank of a module, by the first pattern that matches its name.
    #[must_use]
    pub fn rank_of(&self, module: &str) -> u64 {
        first(&self.ranks, module).unwrap_or(self.rank)
    }

    /// The factor of B·A of a module: alpha over its rank, or over the root of its rank (rsLoRA).
    #[must_use]
    pub fn scale_of(&self, module: &str) -> f64 {
        let rank = self.rank_of(module) as f64;
        let alpha = first(&self.alphas, module).unwrap_or(self.alpha);
        if self.root { alpha / rank.sqrt() } else { alpha / rank }
    }

    /// `LoRA adapter (rank 16, alpha 32)` and the like.
    #[must_use]
    pub fn describe(&self) -> String {
        let patterns = if self.ranks.is_empty() { "" } else { " and others" };
        let root = if self.root { ", rank-stabilised" } else { "" };
        let kind = if self.dora { "DoRA" } else { "LoRA" };
        format!("a {kind} adapter (rank {}{patterns}, alpha {}{root})", self.rank, self.alpha)
    }

    /// What `inspect` shows.
    pub(super) fn json(&self) -> Value {
        let of = |key: &str| self.given[key].clone();
        json!({
            "peft_type": self.kind,
            "base_model": self.base,
            "rank": self.rank,
            "alpha": self.alpha,
            "scale": if self.kind == "LORA" { json!(self.scale_of("")) } else { Value::Null },
            "rank_stabilised": self.root,
            "dora": self.dora,
            "fan_in_fan_out": self.transposed,
            "bias": of("bias"),
            "target_modules": of("target_modules"),
            "modules_to_save": of("modules_to_save"),
            "rank_pattern": of("rank_pattern"),
            "alpha_pattern": of("alpha_pattern"),
        })
    }
}

fn other_kind(kind: &str) -> String {
    let name =
        OTHER_KINDS.iter().find(|(k, _)| *k == kind).map_or_else(|| escape(kind), |(_, n)| (*n).into());
    format!("`peft_type` is {}: {name} adapters are not supported, only LoRA and DoRA", escape(kind))
}

/// The options of LoRA that are set and not supported.
fn other_options(given: &Value) -> Vec<String> {
    let set = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    };
    let mut refused: Vec<String> = OTHER_OPTIONS
        .iter()
        .filter(|(key, _)| set(&given[*key]))
        .map(|(key, why)| format!("`{key}` is not supported: {why}"))
        .collect();
    if let Some(start) = given["init_lora_weights"].as_str()
        && !PLAIN_STARTS.contains(&start.to_ascii_lowercase().as_str())
    {
        refused.push(format!(
            "`init_lora_weights: {}` is not supported: it trains against a changed base; save the adapter with `path_initial_model_for_weight_conversion`, which makes a plain one of it",
            escape(start)
        ));
    }
    refused
}

/// `rank_pattern` or `alpha_pattern` in the order of the file: regular expressions over the end of a module's name.
fn patterns<T>(
    given: &Value,
    key: &str,
    number: impl Fn(&Value) -> Option<T>,
) -> std::result::Result<Vec<(Regex, String, T)>, String> {
    let Some(map) = given[key].as_object() else { return Ok(Vec::new()) };
    map.iter()
        .map(|(pattern, value)| {
            // As `peft.utils.other.get_pattern_key` has it.
            let regex = Regex::new(&format!("^(?:.*\\.)?(?:{pattern})$"))
                .map_err(|e| format!("`{key}`: {}: {}", escape(pattern), escape(&e.to_string())))?;
            let number = number(value)
                .ok_or_else(|| format!("`{key}`: the value of {} is no such number", escape(pattern)))?;
            Ok((regex, pattern.clone(), number))
        })
        .collect()
}

fn first<T: Copy>(patterns: &[(Regex, String, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(regex, ..)| regex.is_match(module)).map(|(.., number)| *number)
}

/// What the tensor of this name is.
pub(super) fn piece(name: &str) -> Piece {
    let name = name.strip_prefix(WRAPPER).unwrap_or(name);
    let parts: Vec<&str> = name.split('.').collect();
    let Some(at) = parts.iter().rposition(|p| p.starts_with("lora_")) else { return whole(&parts) };
    let module = parts[..at].join(".");
    // Older files keep the name of the adapter, `lora_A.default.weight`.
    let end = match parts[at + 1..] {
        [] | [_] if parts[at].starts_with("lora_embedding") || parts[at] == "lora_magnitude_vector" => "",
        [end] | [_, end] => end,
        _ => return Piece::Unknown,
    };
    match (parts[at], end) {
        ("lora_A", "weight") => Piece::A(module),
        ("lora_B", "weight") => Piece::B(module),
        ("lora_B", "bias") => Piece::Bias(module),
        ("lora_embedding_A", "") => Piece::EmbeddingA(module),
        ("lora_embedding_B", "") => Piece::EmbeddingB(module),
        ("lora_magnitude_vector", "" | "weight") => Piece::Magnitude(module),
        _ => Piece::Unknown,
    }
}

/// A tensor that stands for one of the base's: of `modules_to_save`, a bias, a resized embedding.
fn whole(parts: &[&str]) -> Piece {
    if parts.contains(&"original_module") {
        return Piece::Original;
    }
    if parts.contains(&"token_adapter")
        || parts.iter().any(|p| p.starts_with("vera_") || p.starts_with("hada_"))
    {
        return Piece::Unknown;
    }
    let mut kept = Vec::with_capacity(parts.len());
    let mut rest = parts.iter().peekable();
    while let Some(part) = rest.next() {
        match *part {
            "base_layer" => {}
            // The name of the adapter follows in files that were not saved by PEFT itself.
            "modules_to_save" => {
                rest.next_if(|next| **next == "default");
            }
            other => kept.push(other),
        }
    }
    Piece::Whole(kept.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: Value) -> std::result::Result<AdapterConfig, String> {
        let mut value = json!({"peft_type": "LORA", "r": 8, "lora_alpha": 16});
        if let (Some(map), Value::Object(more)) = (value.as_object_mut(), more) {
            map.extend(more);
        }
        AdapterConfig::of(value)
    }

    #[test]
    fn scale_follows_rank_alpha_and_the_first_pattern() {
        let plain = config(json!({})).unwrap();
        assert_eq!((plain.rank_of("a.q_proj"), plain.scale_of("a.q_proj")), (8, 2.0));
        let root = config(json!({"use_rslora": true, "rank_pattern": {"q_proj": 4}})).unwrap();
        assert_eq!((root.scale_of("model.layers.0.q_proj"), root.rank_of("x.mq_proj")), (8.0, 8));
        let many = config(json!({
            "rank_pattern": {"^model.layers.0.q_proj": 4, "q_proj": 2},
            "alpha_pattern": {"layers\\.[01]\\..*": 4},
        }))
        .unwrap();
        assert_eq!(many.scale_of("model.layers.0.q_proj"), 1.0);
        assert_eq!(many.scale_of("model.layers.7.q_proj"), 8.0);
        assert_eq!(many.scale_of("model.layers.1.k_proj"), 0.5);
    }

    #[test]
    fn what_cannot_be_merged_is_refused_by_name() {
        for (more, word) in [
            (json!({"peft_type": "VERA"}), "VeRA"),
            (json!({"peft_type": "loha"}), "LoHa"),
            (json!({"peft_type": "LOKR"}), "LoKr"),
            (json!({"peft_type": "IA3"}), "(IA)³"),
            (json!({"peft_type": "SOMETHING"}), "SOMETHING"),
            (json!({"use_qalora": true}), "use_qalora"),
            (json!({"layer_replication": [[0, 4], [2, 5]]}), "layer_replication"),
            (json!({"init_lora_weights": "pissa_niter_4"}), "pissa_niter_4"),
            (json!({"init_lora_weights": "loftq"}), "loftq"),
            (json!({"target_parameters": ["experts.gate_up_proj"]}), "target_parameters"),
        ] {
            let reasons = config(more.clone()).unwrap().refusals().join("; ");
            assert!(reasons.contains(word), "{more}: {reasons}");
        }
        let fine = json!({"init_lora_weights": "gaussian", "target_parameters": [], "use_qalora": false, "loftq_config": {}});
        assert!(config(fine).unwrap().refusals().is_empty());
        assert!(config(json!({"r": 0})).is_err() && config(json!({"alpha_pattern": {"(": 1}})).is_err());
    }

    #[test]
    fn names_say_what_a_tensor_is() {
        let module = || "model.layers.0.q_proj".to_string();
        for (name, expected) in [
            ("lora_A.weight", Piece::A(module())),
            ("lora_B.default.weight", Piece::B(module())),
            ("lora_B.bias", Piece::Bias(module())),
            ("lora_embedding_A", Piece::EmbeddingA(module())),
            ("lora_embedding_B.default", Piece::EmbeddingB(module())),
            ("lora_magnitude_vector", Piece::Magnitude(module())),
            ("lora_magnitude_vector.default.weight", Piece::Magnitude(module())),
            ("lora_E", Piece::Unknown),
            ("lora_diag.weight", Piece::Unknown),
            ("base_layer.bias", Piece::Whole(module() + ".bias")),
            ("modules_to_save.default.weight", Piece::Whole(module() + ".weight")),
            ("original_module.weight", Piece::Original),
        ] {
            assert_eq!(piece(&format!("base_model.model.model.layers.0.q_proj.{name}")), expected, "{name}");
        }
        assert_eq!(piece("base_model.model.lm_head.weight"), Piece::Whole("lm_head.weight".into()));
    }
}
