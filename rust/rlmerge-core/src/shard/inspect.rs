//! What `rlmerge inspect` shows of a model, as JSON of the schema `rlmerge.inspect/1`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::adapter::{Adapter, is_adapter};
use super::checkpoint::{Checkpoint, Kind};
use super::quantised::quantised;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// Describes a model by its headers, index and `config.json`, or an adapter by its header and `adapter_config.json`;
/// quantised models and adapters that cannot be merged too, with a warning.
///
/// # Errors
/// Those of [`Checkpoint::open`] and [`Adapter::open`].
pub fn inspect(path: &Path) -> Result<Value> {
    if !is_adapter(path) {
        let checkpoint = Checkpoint::open(path)?;
        return Ok(describe(path, &checkpoint, checkpoint.kind(), None, Vec::new()));
    }
    let adapter = Adapter::open_any(path)?;
    let reasons = adapter.config().refusals();
    let refusal =
        (!reasons.is_empty()).then(|| format!("an adapter that cannot be merged: {}", reasons.join("; ")));
    let words = adapter.config().json();
    Ok(describe(path, adapter.file(), Kind::Adapter, Some(words), refusal.into_iter().collect()))
}

fn describe(
    path: &Path,
    checkpoint: &Checkpoint,
    kind: Kind,
    adapter: Option<Value>,
    more: Vec<String>,
) -> Value {
    let mut warnings = checkpoint.warnings().to_vec();
    warnings.extend(more);
    if let Some(Error::Quantised { evidence, .. }) = quantised(checkpoint) {
        warnings.push(format!("a quantised checkpoint ({evidence}): it cannot be merged"));
    }
    let shards = checkpoint.shards();
    let tensors = checkpoint.tensors();
    let tensor_rows: Vec<Value> = tensors
        .iter()
        .map(|t| {
            let shard = &shards[t.shard].name;
            json!({"name": t.name, "dtype": t.dtype, "shape": t.shape, "bytes": t.bytes(), "shard": shard})
        })
        .collect();
    let shard_rows: Vec<Value> = shards
        .iter()
        .map(|s| {
            let path = s.path.to_string_lossy();
            json!({"path": path, "bytes": s.identity.size, "header_bytes": s.data_start})
        })
        .collect();
    let mut dtypes = Map::new();
    let mut total = Sum::default();
    for &dtype in DType::ALL {
        let mut sum = Sum::default();
        tensors.iter().filter(|t| t.dtype == dtype).for_each(|t| sum.add(t.elements(), t.bytes()));
        if sum.tensors > 0 {
            total.add(sum.parameters, sum.bytes);
            let Sum { tensors, parameters, bytes } = sum;
            dtypes.insert(
                dtype.name().into(),
                json!({"tensors": tensors, "parameters": parameters, "bytes": bytes}),
            );
        }
    }
    let config = checkpoint
        .config()
        .map(|c| json!({"architecture": c.architecture, "tie_word_embeddings": c.tie_word_embeddings}));
    json!({
        "schema": "rlmerge.inspect/1",
        "path": path.to_string_lossy(),
        "kind": kind.name(),
        "tensors": tensor_rows,
        "shards": shard_rows,
        "parameters": total.parameters,
        "bytes": total.bytes,
        "dtypes": dtypes,
        "metadata": checkpoint.metadata(),
        "config": config,
        "adapter": adapter,
        "warnings": warnings,
    })
}

/// Counts over tensors; shards of sparse files can describe more than 64 bits count, which saturate.
#[derive(Default)]
struct Sum {
    tensors: u64,
    parameters: u64,
    bytes: u64,
}

impl Sum {
    fn add(&mut self, parameters: u64, bytes: u64) {
        self.tensors += 1;
        self.parameters = self.parameters.saturating_add(parameters);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}
