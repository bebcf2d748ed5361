//! What `rlmerge verify` can find, as plain data (schema `rlmerge.verify/1`): a closed table of diagnostics, each with
//! a stable identifier, a cause and a remedy.

use serde::Serialize;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The output is not what the merge wrote.
    Error,
    /// It is, and something about it is odd.
    Warning,
}

/// A kind of finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// Stable identifier.
    pub id: &'static str,
    /// Name in words.
    pub name: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// How it comes about.
    pub cause: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

macro_rules! diagnostics {
    ($($constant:ident = $id:literal $name:literal $severity:ident: $cause:literal; $remedy:literal.)*) => {
        $(#[doc = concat!("`", $id, "`: ", $name, ".")]
        pub const $constant: Diagnostic = Diagnostic {
            id: $id, name: $name, severity: Severity::$severity, cause: $cause, remedy: $remedy,
        };)*

        /// All diagnostics, by identifier.
        pub const DIAGNOSTICS: &[Diagnostic] = &[$($constant),*];
    };
}

diagnostics! {
    MANIFEST_DAMAGED = "RLM-V001" "manifest-damaged" Error:
        "rlmerge.json is not the report of a merge: it was edited, cut short, or written by something else";
        "bring rlmerge.json back from a copy, or merge again".
    SHARD_MISSING = "RLM-V010" "shard-missing" Error:
        "a file that the merge wrote is gone or was renamed";
        "bring the file back from a copy, or merge again".
    SHARD_SIZE = "RLM-V011" "shard-size" Error:
        "a file is longer or shorter than the merge wrote it: a copy or download broke off, or something was appended";
        "copy or download the file again, or merge again".
    SHARD_DAMAGED = "RLM-V012" "shard-damaged" Error:
        "a file cannot be opened as safetensors: its header is damaged, or it is another kind of file";
        "copy or download the file again, or merge again".
    SHARD_UNEXPECTED = "RLM-V013" "shard-unexpected" Warning:
        "a safetensors file lies in the folder that the merge did not write";
        "move it away: some loaders read every safetensors file of a folder".
    TENSOR_MISSING = "RLM-V020" "tensor-missing" Error:
        "a tensor that the merge wrote is not in its file";
        "copy or download the file again, or merge again".
    TENSOR_UNEXPECTED = "RLM-V021" "tensor-unexpected" Error:
        "a file holds a tensor that the merge did not write: it was saved again by another program";
        "bring the file back from a copy, or merge again".
    TENSOR_DESCRIBED = "RLM-V022" "tensor-described-otherwise" Error:
        "a tensor has another dtype or shape than the merge gave it: the file was saved again by another program";
        "bring the file back from a copy, or merge again".
    TENSOR_CHANGED = "RLM-V023" "tensor-changed" Error:
        "the bytes of a tensor are not those that the merge wrote: a faulty disk, memory or transfer, or an edit";
        "copy or download the file again, or merge again; look after the disk if nobody touched the file".
    TENSOR_UNREADABLE = "RLM-V024" "tensor-unreadable" Error:
        "the system cannot read the bytes of a tensor: mostly a failing disk";
        "look after the disk, then bring the file back from a copy, or merge again".
    INDEX_DAMAGED = "RLM-V030" "index-damaged" Error:
        "model.safetensors.index.json is missing or damaged, or disagrees with the files";
        "bring the index back from a copy, or merge again".
    INDEX_INCOMPLETE = "RLM-V031" "index-incomplete" Error:
        "the index does not name a tensor that its files hold, so that loaders leave it out";
        "bring the index back from a copy, or merge again".
    UNUSUAL = "RLM-V032" "unusual" Warning:
        "a header or the index says something that loaders understand in different ways";
        "see the message; what rlmerge writes has no such warnings, so something was edited".
    CONFIG_DAMAGED = "RLM-V040" "config-damaged" Error:
        "config.json is not JSON";
        "bring it back from a copy, or from the model that the merge took it from".
    CONFIG_TIED = "RLM-V041" "config-tied-head" Error:
        "config.json says that the head is tied to the embedding, but the merge wrote a head of its own";
        "set `tie_word_embeddings` to false in config.json".
    CONFIG_DTYPE = "RLM-V042" "config-dtype" Warning:
        "config.json names a dtype that no tensor has";
        "set `torch_dtype` (or `dtype`) in config.json to that of the tensors".
    CONFIG_VOCABULARY = "RLM-V043" "config-vocabulary" Warning:
        "`vocab_size` in config.json is not the number of rows of the embedding";
        "set `vocab_size` to the number of rows".
    CONFIG_LAYERS = "RLM-V044" "config-layers" Warning:
        "`num_hidden_layers` in config.json is not the number of layers among the tensors";
        "set `num_hidden_layers` to the number of layers".
    MASKS_DAMAGED = "RLM-V050" "masks-damaged" Error:
        "the file of masks is missing, or its size or header is not what the merge wrote";
        "bring rlmerge.masks back from a copy, or merge again".
    MASKS_CHANGED = "RLM-V051" "masks-changed" Error:
        "the bits of a task, or the scales, are not those that the merge wrote";
        "bring rlmerge.masks back from a copy, or merge again".
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind of thing.
    #[serde(flatten)]
    pub diagnostic: Diagnostic,
    /// Name of the file in the folder.
    pub file: String,
    /// The tensor, if it is about one.
    pub tensor: Option<String>,
    /// What exactly, with the values.
    pub message: String,
}

/// What verifying an output gave.
#[derive(Debug, Clone, Serialize)]
pub struct Verification {
    /// Schema and version of this form.
    pub schema: &'static str,
    /// The output.
    pub path: String,
    /// Whether there are no findings but warnings.
    pub ok: bool,
    /// Files of tensors that the manifest names.
    pub shards: usize,
    /// Tensors that the manifest names.
    pub tensors: usize,
    /// Of which the checksum held.
    pub tensors_verified: usize,
    /// Bytes that were hashed.
    pub bytes: u64,
    /// What was found, file by file.
    pub findings: Vec<Finding>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_unique_and_in_order() {
        assert!(DIAGNOSTICS.is_sorted_by(|a, b| a.id < b.id));
        let names: std::collections::HashSet<_> = DIAGNOSTICS.iter().map(|d| d.name).collect();
        assert_eq!(names.len(), DIAGNOSTICS.len());
    }
}
