//! Telling a quantised checkpoint, whose stored numbers are codes and scales, from one of weights.

use super::checkpoint::{Checkpoint, Tensor};
use crate::dtype::DType;
use crate::error::{Error, escape};

/// Last parts of tensor names that only quantisers write.
const MARKS: &[&str] = &[
    "qweight",
    "qzeros",
    "g_idx",
    "absmax",
    "nested_absmax",
    "quant_map",
    "nested_quant_map",
    "SCB",
    "weight_format",
    "weight_packed",
    "weight_scale",
    "weight_scale_inv",
    "weight_scale_2",
    "weight_zero_point",
    "input_scale",
];

/// Last parts that mean quantisation only beside a sibling: the scales of GPTQ, AWQ and MLX are called
/// `scales`, those of MXFP4 experts end in `_scales`.
const PAIRS: &[(&str, &str)] =
    &[("scales", "qweight"), ("scales", "qzeros"), ("scales", "biases"), ("_scales", "_blocks")];

/// The error for a quantised checkpoint, with the tensor or configuration key that shows it; `None`
/// for one that can be merged. Plain F8 tensors without scales are weights.
#[must_use]
pub fn quantised(checkpoint: &Checkpoint) -> Option<Error> {
    let path = || checkpoint.path().to_path_buf();
    if let Some(tensor) = checkpoint.tensors().iter().find(|t| shows(t, checkpoint)) {
        let evidence = format!("tensor `{}`, {}", escape(&tensor.name), tensor.dtype);
        return Some(Error::Quantised { path: path(), evidence, tensor: Some(tensor.name.clone()) });
    }
    let method = checkpoint.config()?.quantization.as_ref()?;
    Some(Error::Quantised { path: path(), evidence: format!("`config.json` has {method}"), tensor: None })
}

fn shows(tensor: &Tensor, checkpoint: &Checkpoint) -> bool {
    let name = tensor.name.as_str();
    let last = name.rsplit('.').next().unwrap_or(name);
    if MARKS.contains(&last) || name.contains(".quant_state.") {
        return true;
    }
    PAIRS.iter().any(|(scale, codes)| {
        let Some(stem) = name.strip_suffix(scale) else { return false };
        // A whole last part, unless the mark itself is an ending.
        let whole = scale.starts_with('_') || stem.is_empty() || stem.ends_with('.');
        let integer = |t: &Tensor| matches!(t.dtype, DType::U8 | DType::I8 | DType::U32 | DType::I32);
        let sibling = || checkpoint.get(&format!("{stem}{codes}"));
        whole
            && sibling().is_some_and(|codes_tensor| {
                // `biases` are floats in MLX; its codes are the `weight` beside them.
                let packed = if *codes == "biases" {
                    checkpoint.get(&format!("{stem}weight"))
                } else {
                    Some(codes_tensor)
                };
                packed.is_some_and(integer)
            })
    })
}
