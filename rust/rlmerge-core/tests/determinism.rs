//! Output bits depend on the inputs, the recipe and the seed only: not on threads, shards, SIMD level, the way of
//! reading or what is synced.

mod models;

use std::path::{Path, PathBuf};

use rlmerge_core::kernel::Level;
use rlmerge_core::plan::method::{BaseUse, Kind, Method, methods};
use serde_json::{Value, json};

/// Every method of the table, and parameters that take every other path through the scans.
fn cases(statistics: &[PathBuf]) -> Vec<(&'static Method, Value)> {
    let mut cases: Vec<(&'static Method, Value)> =
        methods().map(|m| (m, statistics_of(m, statistics))).collect();
    for (name, parameters) in [
        ("passthrough", json!({"scale": 0.7})),
        ("ties", json!({"scope": "model"})),
        ("ties", json!({"scope": "model", "zero_sign": "majority", "rescale": "l2"})),
        ("ties", json!({"ties": "all", "rescale": "l1", "density": [0.1, 0.9]})),
        ("dare_ties", json!({"zero_sign": "majority", "rescale": "l1"})),
        ("neuromerging", json!({"density": [0.5, 1.0], "lambda_1": 0.3})),
        ("resmerge", json!({"looks": 1})),
    ] {
        cases.push((Method::find(name).expect("a row of the table"), parameters));
    }
    cases
}

/// Statistics of an expert for some of its tensors: a square matrix of the side that its inputs have is positive definite
/// and holds no negative number, so that it is a Fisher diagonal of a square tensor and a Gram matrix at once.
fn statistics(expert: u64) -> Vec<models::Stored> {
    let side = 600u64;
    let number = |at: u64| {
        if at.is_multiple_of(side + 1) {
            3.0 + expert as f32
        } else {
            1.0 / (1 + at / side + at % side) as f32
        }
    };
    let bytes = (0..side * side).flat_map(|at| number(at).to_le_bytes()).collect();
    vec![("layer.0.mlp.square.weight".into(), "F32", vec![side, side], bytes)]
}

/// The statistics that a method needs, one file for each expert.
fn statistics_of(method: &Method, files: &[PathBuf]) -> Value {
    let paths = method.parameters.iter().filter(|p| p.kind == Kind::Path);
    paths.map(|p| (p.name.to_string(), json!(files))).collect::<serde_json::Map<_, _>>().into()
}

/// A base, if the method can do with one, and as many experts as it takes of the three models.
fn choose<'m>(method: &Method, models: &'m [PathBuf]) -> (Option<&'m Path>, &'m [PathBuf]) {
    let most = method.experts.1.unwrap_or(usize::MAX);
    match method.base {
        BaseUse::Required | BaseUse::Optional => (Some(&models[0]), &models[1..=most.min(2)]),
        BaseUse::Model | BaseUse::None => (None, &models[..most.min(3)]),
    }
}

#[test]
fn threads_shards_and_levels_do_not_change_a_bit() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for expert in 0..3 {
        models::write_file(&at(&format!("{expert}.safetensors")), &models::tensors(expert));
        models::write_folder(&at(&format!("{expert}-sharded")), &models::tensors(expert), 4);
    }
    let brought: Vec<PathBuf> = (0..3).map(|e| at(&format!("{e}-statistics.safetensors"))).collect();
    for (expert, path) in brought.iter().enumerate() {
        models::write_file(path, &statistics(expert as u64));
    }
    let whole: Vec<PathBuf> = (0..3).map(|e| at(&format!("{e}.safetensors"))).collect();
    let sharded: Vec<PathBuf> = (0..3).map(|e| at(&format!("{e}-sharded"))).collect();

    for (number, (method, parameters)) in cases(&brought).into_iter().enumerate() {
        let mut first: Option<(Vec<(String, String)>, String)> = None;
        let levels: Vec<&str> = Level::available().iter().map(|l| l.name()).collect();
        for (run, (threads, level)) in
            [1, 2, 7].into_iter().flat_map(|t| levels.iter().map(move |l| (t, *l))).enumerate()
        {
            // The level is read once a merge, and this is the only test of this program.
            #[allow(unsafe_code, reason = "setting the environment of a test without other threads")]
            // SAFETY: no other thread reads or writes the environment now.
            unsafe {
                std::env::set_var("RLMERGE_SIMD", level);
            }
            let inputs = if run % 2 == 0 { &whole } else { &sharded };
            let (base, experts) = choose(method, inputs);
            let output = at(&format!("out-{number}-{run}.safetensors"));
            let io = if run % 3 == 0 { "mmap" } else { "pread" };
            let durability = ["full", "file", "none"][run % 3];
            let more = json!({"parameters": parameters, "threads": threads, "seed": 5, "io": io, "durability": durability});
            let report = models::merge(models::recipe(method.name, base, experts, &output, more)).unwrap();
            let mut hashes: Vec<(String, String)> =
                report.tensors.iter().map(|t| (t.name.clone(), t.blake3.clone())).collect();
            hashes.sort();
            let mut norms: Vec<Value> =
                report.tensors.iter().map(|t| json!([t.name, t.norm, t.expert_norms, t.action])).collect();
            norms.sort_by_key(ToString::to_string);
            let this = (hashes, json!(norms).to_string());
            match &first {
                None => first = Some(this),
                Some(expected) => {
                    assert_eq!(
                        &this, expected,
                        "{} {parameters} with {threads} threads at {level}",
                        method.name
                    );
                }
            }
            std::fs::remove_file(&output).unwrap();
        }
    }
}
