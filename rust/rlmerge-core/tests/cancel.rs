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
        let code = if change == "shrank" { "input_shrank" } else { "input_changed" };
        assert_eq!((error.code(), error.exit_code()), (code, 3), "{error}");
        assert_eq!(error.path(), Some(paths[1].as_path()));
        assert!(change != "shrank" || error.tensor().is_some(), "{error}");
        assert_eq!(names(dir.path()), ["0.safetensors", "1.safetensors"]);
    }
}

/// Through a map too, at any moment and never by a signal: the file shrinks while workers read it.
#[test]
fn an_input_that_shrinks_under_its_map_is_an_error_at_any_moment() {
    let mut refused = 0;
    for micros in (0..6000).step_by(300) {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..2).map(|e| dir.path().join(format!("{e}.safetensors"))).collect();
        for (expert, path) in paths.iter().enumerate() {
            models::write_file(path, &models::tensors(expert as u64));
        }
        let output = dir.path().join("out.safetensors");
        let recipe = models::recipe(
            "ties",
            Some(&paths[0]),
            &paths[1..],
            &output,
            json!({"io": "mmap", "threads": 2}),
        );
        let (plan, opened) = MergePlan::prepare(recipe).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&paths[1]).unwrap();
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_micros(micros));
                file.set_len(5_000).unwrap();
            });
            exec::run(&plan, &opened, &[], &Observer::default())
        });
        let Err(error) = result else { continue };
        refused += 1;
        assert!(matches!(error.code(), "input_shrank" | "input_changed"), "{error}");
        assert_eq!((error.exit_code(), error.path()), (3, Some(paths[1].as_path())), "{error}");
        assert!(error.to_string().contains("from"), "{error}");
        assert_eq!(names(dir.path()), ["0.safetensors", "1.safetensors"]);
    }
    assert!(refused > 0, "every merge was done before its file shrank");
}

/// Bytes written through a shared map need not touch the file's times: only reading again finds them.
#[test]
#[allow(unsafe_code, reason = "a writable map is the other program that this is about")]
fn bytes_that_changed_without_a_trace_are_found_by_reading_again() {
    const LEN: usize = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (0..2).map(|e| dir.path().join(format!("{e}.safetensors"))).collect();
    for path in &paths {
        let tensor = |i: usize| (format!("t{i:02}"), "BF16", vec![LEN as u64 / 2], vec![i as u8; LEN]);
        models::write_file(path, &(0..24).map(tensor).collect::<Vec<models::Stored>>());
    }
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&paths[1]).unwrap();
    let output = dir.path().join("out.safetensors");
    let mut found = 0;
    for verify in [true, false].repeat(6) {
        // SAFETY: the file keeps its length, and nothing else is done with the map than writing a byte.
        let mut map = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
        let byte = map.len() - 24 * LEN + 5;
        // From here on the page is writable without the system noticing each time.
        map[byte] ^= 1;
        let options = json!({"threads": 1, "verify_inputs": verify, "force": true});
        let recipe = models::recipe("linear", None, &paths, &output, options);
        let (plan, opened) = MergePlan::prepare(recipe).unwrap();
        let observer = Observer::default();
        let (result, written) = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                while observer.progress().tensors_done == 0 && !observer.is_cancelled() {
                    std::hint::spin_loop();
                }
                map[byte] ^= 2;
                observer.progress().tensors_done < 24
            });
            let result = exec::run(&plan, &opened, &[], &observer);
            (result, writer.join().unwrap())
        });
        match result {
            Err(error) => {
                assert_eq!((error.code(), error.exit_code()), ("input_changed", 3), "{error}");
                assert_eq!(error.path(), Some(paths[1].as_path()));
                found += u32::from(error.to_string().contains("tensor `t00`"));
            }
            Ok(_) => assert!(!verify || !written, "a changed byte was published"),
        }
    }
    assert!(found > 0, "no change was found by reading again");
}
