//! Stages of killed runs: one run works in a stage, another goes on with it, `clean` removes what nobody needs.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::{Path, PathBuf};

use rlmerge_core::error::Error;
use rlmerge_core::plan::recipe::Durability;
use rlmerge_core::writer::{OutputKind, Resumed, Stage, Target, clean, left_over};
use tempfile::TempDir;

const SHARD: &str = "model.safetensors";

fn target(path: impl AsRef<Path>) -> Target {
    Target {
        path: path.as_ref().to_path_buf(),
        kind: OutputKind::Folder,
        force: false,
        durability: Durability::Full,
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What a killed run leaves: half a shard and one record, under the header `plan`.
fn leave(target: &Target, plan: &str) -> PathBuf {
    let before = names(target.path.parent().unwrap());
    let mut stage = Stage::create(target).unwrap();
    stage.start_journal(plan);
    let shard = stage.file(SHARD, 8).unwrap();
    shard.write_all_at(b"done", 0).unwrap();
    stage.record("the first half", 1);
    stage.keep();
    drop(stage);
    let parent = target.path.parent().unwrap();
    let name = names(parent).into_iter().find(|n| !before.contains(n)).unwrap();
    parent.join(name)
}

fn resume(target: &Target, plan: &str) -> rlmerge_core::error::Result<Resumed> {
    Stage::resume(target, &[SHARD], |header| (header != plan).then(|| format!("it is {header}")))
}

#[test]
fn a_run_goes_on_with_what_another_left() {
    let tmp = TempDir::new().unwrap();
    let target = target(tmp.path().join("out"));
    let left = leave(&target, "a plan");
    fs::write(left.join("rlmerge.json"), "of the killed run").unwrap();
    assert!(left_over(&target.path) >= 8);
    let Resumed { stage, records } = resume(&target, "a plan").unwrap();
    assert_eq!(records.unwrap(), ["the first half"]);
    assert!(!left.exists(), "the stage has the name of its new run");
    let (shard, old) = stage.reopen(SHARD, 8).unwrap();
    assert!(old);
    let mut bytes = [0; 4];
    shard.read_all_at(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"done");
    shard.reuse(4);
    shard.write_all_at(b"more", 4).unwrap();
    shard.finish().unwrap();
    stage.record("the second half", 1);
    stage.write_file("rlmerge.json", b"whole").unwrap();
    stage.commit().unwrap();
    assert_eq!(names(tmp.path()), ["out"]);
    assert_eq!(names(&target.path), [SHARD, "rlmerge.json"]);
    assert_eq!(fs::read(target.path.join(SHARD)).unwrap(), b"donemore");
}

#[test]
fn without_a_stage_a_run_begins_anew() {
    let tmp = TempDir::new().unwrap();
    let target = target(tmp.path().join("out"));
    let Resumed { stage, records } = resume(&target, "a plan").unwrap();
    assert!(records.is_none());
    drop(stage);
    assert!(names(tmp.path()).is_empty());
}

#[test]
fn a_file_of_another_length_is_made_anew() {
    let tmp = TempDir::new().unwrap();
    let target = target(tmp.path().join("out"));
    let left = leave(&target, "a plan");
    fs::write(left.join(SHARD), "half").unwrap();
    let Resumed { stage, .. } = resume(&target, "a plan").unwrap();
    let (shard, old) = stage.reopen(SHARD, 8).unwrap();
    assert!(!old);
    shard.write_all_at(b"all anew", 0).unwrap();
    shard.finish().unwrap();
    stage.commit().unwrap();
    assert_eq!(fs::read(target.path.join(SHARD)).unwrap(), b"all anew");
}

#[test]
fn what_is_left_of_another_plan_is_refused_and_stays() {
    let tmp = TempDir::new().unwrap();
    let target = target(tmp.path().join("out"));
    let left = leave(&target, "a plan");
    let error = resume(&target, "another plan").unwrap_err();
    assert!(matches!(&error, Error::StageDiffers { path, .. } if *path == left), "{error}");
    assert_eq!((error.code(), error.exit_code()), ("stage_differs", 6));
    assert!(error.to_string().contains("it is a plan"), "{error}");
    assert!(error.hint().unwrap().contains("rlmerge clean"), "{:?}", error.hint());
    assert!(left.join(SHARD).exists());
    // A stage without a journal says nothing, and stands in nobody's way.
    fs::remove_file(left.join("rlmerge.journal")).unwrap();
    assert!(resume(&target, "another plan").unwrap().records.is_none());
    assert!(left.join(SHARD).exists());
}

#[test]
fn the_stage_with_the_most_records_counts() {
    let tmp = TempDir::new().unwrap();
    let target = target(tmp.path().join("out"));
    leave(&target, "a plan");
    let Resumed { mut stage, .. } = resume(&target, "a plan").unwrap();
    stage.record("the second half", 1);
    stage.keep();
    drop(stage);
    leave(&target, "a plan");
    leave(&target, "another plan");
    let Resumed { stage, records } = resume(&target, "a plan").unwrap();
    assert_eq!(records.unwrap().len(), 2);
    drop(stage);
}

#[test]
fn a_finished_stage_stays_on_request_when_the_output_came_to_be() {
    for keep in [false, true] {
        let tmp = TempDir::new().unwrap();
        let target = target(tmp.path().join("out"));
        let mut stage = Stage::create(&target).unwrap();
        stage.start_journal("a plan");
        stage.write_file(SHARD, b"whole").unwrap();
        if keep {
            stage.keep_if_refused();
        }
        let path = stage.path();
        fs::create_dir(&target.path).unwrap();
        fs::write(target.path.join("theirs"), "").unwrap();
        assert!(matches!(stage.commit(), Err(Error::OutputExists { .. })));
        assert_eq!(names(&target.path), ["theirs"]);
        assert_eq!(path.exists(), keep);
        if keep {
            assert_eq!(names(&path), [SHARD], "whole, and without a journal");
        }
    }
}

#[test]
fn one_run_works_on_an_output() {
    let tmp = TempDir::new().unwrap();
    let (out, other) = (target(tmp.path().join("out")), target(tmp.path().join("out2")));
    let living = Stage::create(&out).unwrap();
    living.start_journal("a plan");
    let elsewhere = Stage::create(&other).unwrap();
    for error in [Stage::create(&out).unwrap_err(), resume(&out, "a plan").unwrap_err()] {
        assert!(matches!(&error, Error::OutputLocked { pid, .. } if *pid == std::process::id()), "{error}");
        assert_eq!((error.code(), error.exit_code()), ("output_locked", 6));
    }
    drop(living);
    drop(Stage::create(&out).unwrap());
    drop(elsewhere);
    assert!(names(tmp.path()).is_empty());
}

#[test]
fn clean_removes_what_nobody_holds() {
    let tmp = TempDir::new().unwrap();
    let (out, other) = (target(tmp.path().join("out")), target(tmp.path().join("other")));
    let dead = leave(&out, "a plan");
    let strange = leave(&other, "a plan");
    fs::create_dir(strange.join("folder")).unwrap();
    let living = Stage::create(&other).unwrap();
    fs::create_dir(tmp.path().join(".out.rlmerge-notes")).unwrap();

    let would = clean(tmp.path(), true).unwrap();
    assert_eq!(would.len(), 3);
    assert_eq!(names(tmp.path()).len(), 4);
    let only = clean(&other.path, false).unwrap();
    assert_eq!(only.iter().filter(|s| s.kept.is_none()).count(), 0);
    assert_eq!(only.len(), 2);

    let found = clean(tmp.path(), false).unwrap();
    let kept: Vec<_> = found.iter().filter_map(|s| s.kept).collect();
    assert_eq!(kept.len(), 2);
    assert!(kept.contains(&"a run is at work in it"), "{kept:?}");
    let gone: Vec<_> = found.iter().filter(|s| s.kept.is_none()).collect();
    assert_eq!(gone.len(), 1);
    assert_eq!(gone[0].path, dead);
    assert!(gone[0].bytes > 0);
    assert!(!dead.exists() && strange.exists());
    drop(living);
    fs::remove_dir(strange.join("folder")).unwrap();
    assert_eq!(clean(tmp.path(), false).unwrap().len(), 1);
    assert_eq!(names(tmp.path()), [".out.rlmerge-notes"]);
    assert_eq!(clean(&tmp.path().join("no/such"), false).unwrap_err().code(), "model_not_found");
}
