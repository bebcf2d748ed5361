//! Adapters as experts: the same bits for any threads, shards, SIMD level and way of reading, for every method of the
//! table, alone and beside a checkpoint.

mod models;

use std::path::{Path, PathBuf};

use rlmerge_core::kernel::Level;
use rlmerge_core::plan::method::{BaseUse, Method, methods};
use serde_json::{Value, json};

/// An adapter of the two long tensors and a short one of [`models::tensors`]; the long ones reach over tiles.
fn write_adapter(path: &Path, seed: u64, dora: bool) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut stored = |name: &str, shape: &[u64]| -> models::Stored {
        let n: u64 = shape.iter().product();
        let bytes = (0..n).flat_map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (((state >> 40) as f32 / 8_388_608.0 - 1.0) * 0.05).to_le_bytes()
        });
        (format!("base_model.model.{name}"), "F32", shape.to_vec(), bytes.collect())
    };
    let mut tensors = vec![
        stored("layer.0.lora_A.weight", &[5, 33]),
        stored("layer.0.lora_B.weight", &[64, 5]),
        stored("layer.1.lora_A.weight", &[5, 300, 301]),
        stored("layer.1.lora_B.weight", &[3, 5, 1]),
    ];
    if dora {
        tensors = vec![
            stored("embed.lora_A.weight", &[5, 512]),
            stored("embed.lora_B.weight", &[700, 5]),
            stored("embed.lora_magnitude_vector", &[700]),
        ];
    } else {
        tensors.push(stored("embed.lora_embedding_A", &[5, 700]));
        tensors.push(stored("embed.lora_embedding_B", &[512, 5]));
    }
    std::fs::create_dir_all(path).expect("a folder");
    models::write_file(&path.join("adapter_model.safetensors"), &tensors);
    let config = json!({"peft_type": "LORA", "r": 5, "lora_alpha": 7, "use_rslora": true, "use_dora": dora});
    std::fs::write(path.join("adapter_config.json"), config.to_string()).expect("a file");
}

/// As many models as the method takes: two adapters, one of them DoRA, and a checkpoint.
fn choose(method: &Method, base: &Path, experts: &[PathBuf]) -> (Option<PathBuf>, Vec<Value>) {
    let based = !matches!(method.base, BaseUse::None | BaseUse::Model);
    let count = method.experts.1.unwrap_or(3).min(3);
    let entry = |path: &PathBuf| match path.extension() {
        None if !based && path.join("adapter_config.json").exists() => json!({"path": base, "adapter": path}),
        _ => json!({"path": path}),
    };
    (based.then(|| base.to_path_buf()), experts.iter().take(count).map(entry).collect())
}

#[test]
fn threads_shards_and_levels_do_not_change_a_bit() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    models::write_file(&at("base.safetensors"), &models::tensors(0));
    models::write_folder(&at("base-sharded"), &models::tensors(0), 4);
    models::write_file(&at("expert.safetensors"), &models::tensors(1));
    write_adapter(&at("lora"), 1, false);
    write_adapter(&at("dora"), 2, true);
    let experts = [at("lora"), at("dora"), at("expert.safetensors")];

    for (number, method) in methods().enumerate() {
        let mut first: Option<Value> = None;
        let levels: Vec<&str> = Level::available().iter().map(|l| l.name()).collect();
        for (run, (threads, level)) in
            [1, 3].into_iter().flat_map(|t| levels.iter().map(move |l| (t, *l))).enumerate()
        {
            // The level is read once a merge, and this is the only test of this program.
            #[allow(unsafe_code, reason = "setting the environment of a test without other threads")]
            // SAFETY: no other thread reads or writes the environment now.
            unsafe {
                std::env::set_var("RLMERGE_SIMD", level);
            }
            let base = if run % 2 == 0 { at("base.safetensors") } else { at("base-sharded") };
            let (base, entries) = choose(method, &base, &experts);
            let output = at(&format!("out-{number}-{run}.safetensors"));
            let io = if run % 3 == 0 { "mmap" } else { "pread" };
            let more =
                json!({"models": entries, "threads": threads, "seed": 5, "io": io, "durability": "none"});
            let recipe = models::recipe(method.name, base.as_deref(), &[], &output, more);
            let report = match models::merge(recipe) {
                Ok(report) => report,
                // A method that needs more than models to merge.
                Err(error) if error.code() == "missing_parameter" => break,
                Err(error) => panic!("{}: {error}", method.name),
            };
            let mut tensors: Vec<Value> =
                report.tensors.iter().map(|t| json!([t.name, t.blake3, t.norm, t.expert_norms])).collect();
            tensors.sort_by_key(ToString::to_string);
            let this = json!(tensors);
            match &first {
                None => first = Some(this),
                Some(expected) => {
                    assert_eq!(&this, expected, "{} with {threads} threads at {level}", method.name);
                }
            }
            std::fs::remove_file(&output).unwrap();
        }
    }
}
