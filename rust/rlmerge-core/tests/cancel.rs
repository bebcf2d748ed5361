//! A merge that is cancelled, or that fails half way, leaves nothing behind.

mod models;

use std::path::PathBuf;
use std::time::Duration;

use rlmerge_core::exec::{self, Observer};
use rlmerge_core::plan::MergePlan;
use serde_json::json;

fn names(dir: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn cancelling_at_any_moment_leaves_nothing_or_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (0..3).map(|e| dir.path().join(format!("{e}.safetensors"))).collect();
    for (expert, path) in paths.iter().enumerate() {
        models::write_file(path, &models::tensors(expert as u64));
    }
    let output = dir.path().join("out.safetensors");
    let before = names(dir.path());
    for micros in (0..4000).step_by(200) {
        let observer = Observer::default();
        let recipe = models::recipe("ties", Some(&paths[0]), &paths[1..], &output, json!({"threads": 2}));
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_micros(micros));
                observer.cancel();
            });
            models::merge_observed(recipe, &observer)
        });
        match result {
            Ok(report) => {
                assert_eq!(report.tensors.len(), 6);
                std::fs::remove_file(&output).unwrap();
            }
            Err(error) => assert_eq!(error.code(), "cancelled"),
        }
        assert_eq!(names(dir.path()), before);
    }
}

#[test]
fn a_tensor_that_differs_is_named_and_nothing_stays() {
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (0..2).map(|e| dir.path().join(format!("{e}.safetensors"))).collect();
    for (expert, path) in paths.iter().enumerate() {
        let mut tensors = models::tensors(expert as u64);
        let mut ids: Vec<u8> = (0..=255).cycle().take(1_200_000).collect();
        ids[1_000_003] ^= expert as u8;
        tensors.push(("position_ids".into(), "I64", vec![150_000], ids));
        if expert == 0 { models::write_file(path, &tensors) } else { models::write_folder(path, &tensors, 2) }
    }
    let before = names(dir.path());
    let output = dir.path().join("out.safetensors");
    let error =
        models::merge(models::recipe("linear", None, &paths, &output, json!({}))).expect_err("they differ");
    assert_eq!((error.code(), error.exit_code()), ("opaque_tensors_differ", 4));
    assert_eq!(error.tensor(), Some("position_ids"));
    assert!(error.to_string().contains("at byte 1000003"), "{error}");
    assert_eq!(names(dir.path()), before);
}

#[test]
fn an_input_that_shrank_or_changed_is_an_error_and_nothing_stays() {
    for change in ["shrank", "overwritten"] {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..2).map(|e| dir.path().join(format!("{e}.safetensors"))).collect();
        for (expert, path) in paths.iter().enumerate() {
            models::write_file(path, &models::tensors(expert as u64));
        }
        let output = dir.path().join("out.safetensors");
        let recipe = models::recipe("linear", None, &paths, &output, json!({}));
        let (plan, opened) = MergePlan::prepare(recipe).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&paths[1]).unwrap();
        if change == "shrank" {
            file.set_len(100_000).unwrap();
        } else {
            std::thread::sleep(Duration::from_millis(20));
            std::os::unix::fs::FileExt::write_all_at(&file, &[1; 64], 500_000).unwrap();
        }
        let error = exec::run(&plan, &opened, &[], &Observer::default()).expect_err("the input changed");
        assert_eq!((error.code(), error.exit_code()), ("input_changed", 3), "{error}");
        assert_eq!(error.path(), Some(paths[1].as_path()));
        assert_eq!(names(dir.path()), ["0.safetensors", "1.safetensors"]);
    }
}
