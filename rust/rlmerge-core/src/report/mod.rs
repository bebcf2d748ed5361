//! What a merge did, as plain data (schema `rlmerge.report/1`).

pub mod conflicts;
pub mod spectra;
pub mod verification;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::dtype::DType;

/// A norm: null in JSON when it has no value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm(pub f64);

impl Serialize for Norm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_finite() { serializer.serialize_f64(self.0) } else { serializer.serialize_none() }
    }
}

/// NaN and infinite values of one tensor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NonFiniteCounts {
    /// In each model, base first; only models that were read count.
    pub inputs: Vec<u64>,
    /// Flat index of the first one in each model.
    pub input_first: Vec<Option<u64>>,
    /// In the output.
    pub output: u64,
    /// Flat index of the first one in the output.
    pub first: Option<u64>,
    /// Those of the output whose sources are all finite: overflows, made by the merge itself.
    pub made_here: u64,
    /// Flat index of the first one of these.
    pub made_here_first: Option<u64>,
    /// Finite values that were cut off at the largest one of the dtype, where the recipe asks for it.
    pub clamped: u64,
}

/// Whether a count is not worth a line; by reference, as serde hands it over.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
const fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// One tensor of the output.
#[derive(Debug, Clone, Serialize)]
pub struct TensorReport {
    /// Name.
    pub name: String,
    /// Dtype.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<u64>,
    /// File that holds it.
    pub shard: String,
    /// `computed`, or `copied` when all its bytes are those of a model.
    pub action: &'static str,
    /// BLAKE3 of its bytes.
    pub blake3: String,
    /// L2 norm of the output as stored; null without arithmetic or with non-finite values.
    pub norm: Option<Norm>,
    /// L2 norm of each expert's delta, or of the model where the method has no base; null for models that
    /// the method does not read.
    pub expert_norms: Vec<Option<Norm>>,
    /// NaN and infinite values.
    pub non_finite: NonFiniteCounts,
    /// Bytes of a tensor of truth values that are neither 0 nor 1; copied as they are.
    #[serde(skip_serializing_if = "is_zero")]
    pub odd_bools: u64,
    /// BLAKE3 of each task's bits in the file of masks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mask_blake3: Vec<String>,
    /// BLAKE3 of the tensor in the first models, where something depends on them later.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_blake3: Vec<String>,
    /// Sums that the method asked for.
    #[serde(skip)]
    pub sums: Vec<f64>,
}

/// The file of masks beside the output.
#[derive(Debug, Clone, Serialize)]
pub struct MarksReport {
    /// Its name in the folder.
    pub file: &'static str,
    /// Name and version of its format.
    pub format: &'static str,
    /// Its size.
    pub bytes: u64,
    /// BLAKE3 of length and header.
    pub header_blake3: String,
    /// BLAKE3 of the tensor of scales.
    pub scales_blake3: String,
    /// The tasks, in the order of the masks.
    pub tasks: Vec<TaskReport>,
}

/// A task whose model can be rebuilt.
#[derive(Debug, Clone, Serialize)]
pub struct TaskReport {
    /// Its name.
    pub name: String,
    /// Factor of what its mask keeps.
    pub scale: f64,
}

/// What was learnt over the whole model before anything was computed.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Learnt {
    /// What each expert's delta was multiplied by (`match_norm` over the model); null for one without weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_factors: Option<Vec<Option<f64>>>,
    /// The α of `lines`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lines_alpha: Option<f64>,
    /// Numbers of the method, such as thresholds, overlaps or weights, where they hold for the whole model.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub whole_model: Map<String, Value>,
}

/// Sums over all tensors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Tensors of the output.
    pub tensors: u64,
    /// Of which copied.
    pub tensors_copied: u64,
    /// Tiles of the output.
    pub tiles: u64,
    /// Of which copied.
    pub tiles_copied: u64,
    /// Non-finite values of all models.
    pub non_finite_inputs: u64,
    /// Non-finite values of the output.
    pub non_finite_output: u64,
    /// Those of them that the merge made out of finite values.
    pub non_finite_made_here: u64,
}

/// The report of a merge. Equal inputs and recipes give equal reports: it holds no clock.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Schema and version of this form.
    pub schema: &'static str,
    /// Version of rlmerge.
    pub version: &'static str,
    /// The plan, without its list of tensors.
    pub plan: Value,
    /// All tensors, in file order.
    pub tensors: Vec<TensorReport>,
    /// Their sums.
    pub totals: Totals,
    /// What was learnt over the whole model.
    pub learnt: Learnt,
    /// What looks wrong.
    pub warnings: Vec<String>,
    /// The file of masks, where the method writes one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masks: Option<MarksReport>,
    /// Tensors that an earlier run had finished. Not part of what is written: a run that went on with another one
    /// writes the same bytes as one that was never broken.
    #[serde(skip)]
    pub tensors_reused: u64,
}
