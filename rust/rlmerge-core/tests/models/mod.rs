//! Small checkpoints and recipes for the integration tests.
#![allow(clippy::unwrap_used, reason = "a fixture that cannot be made is a failed test")]

use std::path::{Path, PathBuf};

use rlmerge_core::error::Result;
use rlmerge_core::exec::{self, Observer};
use rlmerge_core::plan::MergePlan;
use rlmerge_core::plan::recipe::Recipe;
use rlmerge_core::report::Report;
use serde_json::{Value, json};

/// A tensor to be stored: name, dtype, shape, bytes.
pub type Stored = (String, &'static str, Vec<u64>, Vec<u8>);

/// Writes a safetensors file.
pub fn write_file(path: &Path, tensors: &[Stored]) {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let begin = data.len();
        data.extend_from_slice(bytes);
        header.insert(
            name.clone(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()]}),
        );
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    std::fs::write(path, file).unwrap();
}

/// Writes a folder of `shards` shards and an index, the tensors dealt out in turn.
pub fn write_folder(path: &Path, tensors: &[Stored], shards: usize) {
    std::fs::create_dir_all(path).unwrap();
    let mut map = serde_json::Map::new();
    let mut total = 0;
    for shard in 0..shards {
        let name = format!("model-{:05}-of-{shards:05}.safetensors", shard + 1);
        let part: Vec<Stored> = tensors.iter().skip(shard).step_by(shards).cloned().collect();
        for (tensor, .., bytes) in &part {
            map.insert(tensor.clone(), name.clone().into());
            total += bytes.len();
        }
        write_file(&path.join(&name), &part);
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    std::fs::write(path.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// Tensors of several sizes, two of them longer than a tile, in bf16. `expert` 0 is the base; experts differ
/// from it in most elements by multiples of a step, so that magnitudes tie.
pub fn tensors(expert: u64) -> Vec<Stored> {
    let sizes: [(&str, &[u64]); 9] = [
        ("embed.weight", &[700, 512]),
        ("layer.0.weight", &[64, 33]),
        ("layer.0.bias", &[33]),
        ("layer.1.weight", &[3, 300, 301]),
        ("scale", &[]),
        ("none", &[0, 4]),
        ("layer.0.mlp.square.weight", &[600, 600]),
        ("layer.0.mlp.experts.up_proj", &[5, 200, 301]),
        ("h.0.mlp.c_fc.weight", &[700, 500]),
    ];
    sizes
        .iter()
        .enumerate()
        .map(|(at, (name, shape))| {
            let n: u64 = shape.iter().product();
            let mut state = 0x9E37_79B9_7F4A_7C15u64.wrapping_mul(at as u64 + 1);
            let mut noise = 0xD1B5_4A32_D192_ED03u64.wrapping_mul(expert + 7);
            let bytes = (0..n)
                .flat_map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(3);
                    let base = f32::from((state >> 48) as i16) / 1_000_000.0;
                    let step = if expert == 0 { 0 } else { ((noise >> 40) % 41) as i32 - 20 };
                    let value = base + step as f32 / 8192.0;
                    ((value.to_bits() >> 16) as u16).to_le_bytes()
                })
                .collect();
            ((*name).to_string(), "BF16", shape.to_vec(), bytes)
        })
        .collect()
}

/// A recipe over these models with further keys.
pub fn recipe(method: &str, base: Option<&Path>, models: &[PathBuf], output: &Path, more: Value) -> Recipe {
    let mut value = json!({
        "method": method,
        "base": base,
        "models": models.iter().map(|m| json!({"path": m})).collect::<Vec<_>>(),
        "output": output,
        "output_kind": "file",
    });
    if let (Some(map), Value::Object(more)) = (value.as_object_mut(), more) {
        map.extend(more);
    }
    Recipe::from_json(&value.to_string()).unwrap()
}

/// Plans and runs a recipe.
pub fn merge(recipe: Recipe) -> Result<Report> {
    merge_observed(recipe, &Observer::default())
}

/// Plans and runs a recipe under an observer.
pub fn merge_observed(recipe: Recipe, observer: &Observer) -> Result<Report> {
    let (plan, models) = MergePlan::prepare(recipe)?;
    exec::run(&plan, &models, &[], observer)
}
