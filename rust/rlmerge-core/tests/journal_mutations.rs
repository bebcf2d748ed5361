//! What a killed run left, with a journal that somebody damaged or wrote himself; and reports of outputs, the same way.
//!
//! Journals are mutated by a generator of a fixed seed, so that every run of the tests tries the same ones;
//! `RLMERGE_FUZZ_SECONDS=60` lets each target run that long from a fresh seed, which it prints. Whatever a journal says,
//! going on with it writes the bytes of an unbroken run or refuses, and touches nothing but the stage and the output.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod fuzzing;
#[allow(dead_code, reason = "other tests use the rest")]
mod models;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fuzzing::Random;
use rlmerge_core::error::Error;
use rlmerge_core::exec::{self, Observer};
use serde_json::json;

const JOURNAL: &str = "rlmerge.journal";
/// Inputs of one target in a run of the tests: each is a whole merge.
const ROUNDS: u64 = 100;
/// Longest that one of them may take, on a machine that does other things besides.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is put into a record or a report.
const WORDS: &[&str] = &[
    "null",
    "true",
    "[]",
    "{}",
    "-1",
    "0",
    "18446744073709551615",
    "1e999",
    "\"\"",
    "\"../../witness\"",
    "\"/etc/passwd\"",
    "\"rlmerge.journal\"",
    "[0,0,0,0,0,0,0,0]",
    ",",
    "[",
    "}",
    "\\u0000",
    "\"tensor\":",
    "\"name\":",
    "\"masks\":",
    "\"sums\":",
    "\"tiles\":",
    "\"shard\":",
    "\"bytes\":",
    "9",
];

/// One to four small changes to a text.
fn mutate(random: &mut Random, text: &[u8]) -> Vec<u8> {
    let mut out = text.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(out.len() + 1);
        let end = (at + random.below(12)).min(out.len());
        match random.below(6) {
            0 if at < out.len() => out[at] ^= 1 << random.below(8),
            1 => drop(out.drain(at..end)),
            2 => drop(out.splice(at..at, random.pick(WORDS).bytes())),
            3 | 4 => value(random, &mut out),
            _ => {
                let piece = out[at..end].to_vec();
                let to = random.below(out.len() + 1);
                drop(out.splice(to..to, piece));
            }
        }
    }
    out
}

/// Puts something else in the place of a value behind a colon or a comma.
fn value(random: &mut Random, out: &mut Vec<u8>) {
    let starts: Vec<usize> = (0..out.len()).filter(|i| matches!(out[*i], b':' | b',')).collect();
    let Some(start) = starts.get(random.below(starts.len())) else { return };
    let begin = start + 1;
    let end = (begin..out.len()).find(|i| matches!(out[*i], b',' | b'}' | b']')).unwrap_or(out.len());
    drop(out.splice(begin..end, random.pick(WORDS).bytes()));
}

/// A line of a journal whose checksum holds.
fn line(record: &[u8]) -> Vec<u8> {
    let sum = &blake3::hash(record).to_hex()[..16];
    [sum.as_bytes(), b" ", record, b"\n"].concat()
}

/// Gives inputs to `check` until there were enough. None may take long.
fn fuzz(target: &str, mut check: impl FnMut(&mut Random, u64) -> bool) {
    fuzzing::rounds(target, ROUNDS, |random, round, seed| {
        let started = Instant::now();
        let accepted = check(random, round);
        assert!(started.elapsed() < PATIENCE, "{target}: round {round} of seed {seed}");
        accepted
    });
}

type Files = BTreeMap<String, Vec<u8>>;

fn files(folder: &Path) -> Files {
    let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

fn write(folder: &Path, files: &Files) {
    fs::create_dir(folder).unwrap();
    files.iter().for_each(|(name, bytes)| fs::write(folder.join(name), bytes).unwrap());
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A merge with masks beside the model, what an unbroken run of it writes, and what a killed one left.
struct Scene {
    root: tempfile::TempDir,
    paths: Vec<PathBuf>,
    whole: Files,
    stage: String,
    left: Files,
}

impl Scene {
    fn new(method: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("in")).unwrap();
        fs::create_dir(root.path().join("out")).unwrap();
        fs::write(root.path().join("witness"), "untouched").unwrap();
        let paths: Vec<PathBuf> = (0..3).map(|e| root.path().join(format!("in/{e}.safetensors"))).collect();
        for (expert, path) in paths.iter().enumerate() {
            models::write_file(path, &models::tensors(expert as u64));
        }
        let mut scene = Self { root, paths, whole: Files::new(), stage: String::new(), left: Files::new() };
        scene.merge(method, &Observer::default()).unwrap();
        scene.whole = files(&scene.output());
        fs::remove_dir_all(scene.output()).unwrap();
        // A run that is told to stop once a few tensors are finished.
        while scene.stage.is_empty() {
            let observer = Observer::default();
            let result = std::thread::scope(|scope| {
                scope.spawn(|| {
                    let end = Instant::now() + Duration::from_secs(5);
                    while observer.progress().tensors_done < 4 && Instant::now() < end {
                        std::thread::yield_now();
                    }
                    observer.cancel();
                });
                scene.merge(method, &observer)
            });
            if result.is_ok() {
                fs::remove_dir_all(scene.output()).unwrap();
                continue;
            }
            scene.stage = names(&scene.folder()).pop().unwrap();
            assert_eq!(observer.kept(), Some(&*scene.folder().join(&scene.stage)));
            scene.left = files(&scene.folder().join(&scene.stage));
            fs::remove_dir_all(scene.folder().join(&scene.stage)).unwrap();
        }
        assert!(scene.left[JOURNAL].iter().filter(|b| **b == b'\n').count() >= 4);
        scene
    }

    fn folder(&self) -> PathBuf {
        self.root.path().join("out")
    }

    fn output(&self) -> PathBuf {
        self.folder().join("merged")
    }

    fn merge(&self, method: &str, observer: &Observer) -> Result<(), Error> {
        let more = json!({"output_kind": "folder", "shard_size": 1_200_000, "threads": 2, "durability": "none",
            "resume": true});
        let recipe = models::recipe(method, Some(&self.paths[0]), &self.paths[1..], &self.output(), more);
        models::merge_observed(recipe, observer).map(drop)
    }

    /// Goes on with the stage under another journal; whether it was taken.
    fn go_on(&self, method: &str, journal: Vec<u8>, forged: bool) -> bool {
        let mut left = self.left.clone();
        left.insert(JOURNAL.into(), journal);
        write(&self.folder().join(&self.stage), &left);
        let result = self.merge(method, &Observer::default());
        let taken = match result {
            Ok(()) => {
                let mut written = files(&self.output());
                let mut whole = self.whole.clone();
                if forged {
                    // Numbers of a record whose checksum holds are believed; no byte of a tensor is.
                    for files in [&mut written, &mut whole] {
                        files.remove("rlmerge.json");
                    }
                }
                assert!(written == whole, "the output differs");
                fs::remove_dir_all(self.output()).unwrap();
                true
            }
            Err(error) => {
                assert_eq!(error.code(), "stage_differs", "{error}");
                assert!(error.to_string().len() < 4_000, "{error}");
                assert_eq!(names(&self.folder()), [self.stage.as_str()]);
                false
            }
        };
        // Without a header nothing says what it is for, so that it is left alone.
        let _ = fs::remove_dir_all(self.folder().join(&self.stage));
        assert!(names(&self.folder()).is_empty());
        assert_eq!(names(self.root.path()), ["in", "out", "witness"]);
        assert_eq!(fs::read(self.root.path().join("witness")).unwrap(), b"untouched");
        taken
    }
}

#[test]
fn journals() {
    const METHOD: &str = "ties";
    let scene = Scene::new(METHOD);
    let journal = scene.left[JOURNAL].clone();
    let lines: Vec<Vec<u8>> = journal.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    fuzz("journal", |random, round| {
        if round == 0 {
            return scene.go_on(METHOD, journal.clone(), false);
        }
        if random.below(2) == 0 {
            // As an accident damages it: bytes, or whole lines in another order.
            let damaged = match random.below(3) {
                0 => mutate(random, &journal),
                1 => journal[..random.below(journal.len())].to_vec(),
                _ => {
                    let mut lines = lines.clone();
                    let (a, b) = (2 + random.below(lines.len() - 2), 2 + random.below(lines.len() - 2));
                    lines.swap(a, b);
                    lines.push(lines[a].clone());
                    lines.concat()
                }
            };
            return scene.go_on(METHOD, damaged, false);
        }
        // As somebody writes it who knows its form.
        let mut lines = lines.clone();
        let at = random.below(lines.len());
        let record = lines[at][17..lines[at].len() - 1].to_vec();
        lines[at] = line(&mutate(random, &record));
        scene.go_on(METHOD, lines.concat(), true)
    });
}

#[test]
fn journals_of_merges_with_masks() {
    const METHOD: &str = "emr";
    let scene = Scene::new(METHOD);
    let lines: Vec<Vec<u8>> =
        scene.left[JOURNAL].split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    fuzz("journal with masks", |random, _| {
        let mut lines = lines.clone();
        // Mostly records: a header that differs is refused at once.
        let at = if random.below(6) == 0 { 1 } else { 2 + random.below(lines.len() - 2) };
        let record = lines[at][17..lines[at].len() - 1].to_vec();
        lines[at] = line(&mutate(random, &record));
        // The scales are sums of what records say, so that a forged one shows in the masks.
        scene.go_on_with_masks(METHOD, lines.concat())
    });
}

impl Scene {
    fn go_on_with_masks(&self, method: &str, journal: Vec<u8>) -> bool {
        let mut left = self.left.clone();
        left.insert(JOURNAL.into(), journal);
        write(&self.folder().join(&self.stage), &left);
        let taken = match self.merge(method, &Observer::default()) {
            Ok(()) => {
                let written = files(&self.output());
                for (name, bytes) in &self.whole {
                    let same = written.get(name).is_some_and(|w| w.len() == bytes.len() && w == bytes);
                    assert!(
                        same || matches!(name.as_str(), "rlmerge.json" | "rlmerge.masks"),
                        "{name} differs"
                    );
                }
                assert!(written.len() == self.whole.len());
                fs::remove_dir_all(self.output()).unwrap();
                true
            }
            Err(error) => {
                assert_eq!(error.code(), "stage_differs", "{error}");
                false
            }
        };
        let _ = fs::remove_dir_all(self.folder().join(&self.stage));
        assert!(names(&self.folder()).is_empty());
        assert_eq!(fs::read(self.root.path().join("witness")).unwrap(), b"untouched");
        taken
    }
}

#[test]
fn reports_of_outputs() {
    let scene = Scene::new("emr");
    let output = scene.output();
    write(&output, &scene.whole);
    let report = scene.whole["rlmerge.json"].clone();
    let before = exec::verify(&output, None, Some(2), &Observer::default()).unwrap();
    assert!(before.ok, "{:?}", before.findings);
    fuzz("report", |random, round| {
        if round > 0 {
            fs::write(output.join("rlmerge.json"), mutate(random, &report)).unwrap();
        }
        match exec::verify(&output, None, Some(2), &Observer::default()) {
            Ok(found) => {
                let text = serde_json::to_string(&found).unwrap();
                assert!(!text.contains("root:"), "it read what lies outside of the folder: {text}");
                found.ok
            }
            Err(error) => {
                assert!(matches!(error.exit_code(), 3 | 5), "{error}");
                false
            }
        }
    });
}
