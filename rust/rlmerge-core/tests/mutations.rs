//! A fuzzer that needs no tool: inputs are mutated from a saved corpus by a generator of a fixed seed, so that every
//! run of the tests tries the same ones. `RLMERGE_FUZZ_SECONDS=60` lets each target run that long from a fresh seed,
//! which it prints (`make fuzz`); an input that breaks a property is written to `target/fuzz/` and belongs into
//! `tests/corpus` once it is understood.
//!
//! Whatever is made of the files, nothing may panic or take long, and what is accepted must keep the rules, which are
//! recomputed here in another way than the parser's.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod agreement;
mod fuzzing;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use fuzzing::Random;
use rlmerge_core::dtype::DType;
use rlmerge_core::plan::recipe::Recipe;
use rlmerge_core::shard::{MAX_RANK, read_header, read_index};
use serde_json::Value;

/// Inputs of one target in a run of the tests.
const ROUNDS: u64 = 20_000;
/// Longest time that one small input may take, on a machine that does other things besides.
const PATIENCE: Duration = Duration::from_secs(2);

/// What stands in such files, and what stands there when somebody means harm.
const WORDS: &[&str] = &[
    "\"dtype\":",
    "\"shape\":",
    "\"data_offsets\":",
    "\"__metadata__\":",
    "\"weight_map\":",
    "\"metadata\":",
    "\"total_size\":",
    "\"method\":",
    "\"models\":",
    "\"path\":",
    "\"base\":",
    "\"parameters\":",
    "\"output\":",
    "\"threads\":",
    "\"shard_size\":",
    "\"modifiers\":",
    "\"U8\"",
    "\"F4\"",
    "\"F6_E2M3\"",
    "\"F64\"",
    "\"BF16\"",
    "\"BOOL\"",
    "\"C64\"",
    "{\"U8\":null}",
    "[\"U8\",[8],[0,8]]",
    "null",
    "true",
    "NaN",
    "1e999",
    "-0",
    "-1",
    "0.5",
    "8.0",
    "0x8",
    "18446744073709551615",
    "18446744073709551616",
    "4611686018427387904",
    "4294967296",
    "[",
    "]",
    "{",
    "}",
    "{}",
    "[]",
    ",",
    ":",
    "\"",
    "\\",
    "\\u0061",
    "\\ud800",
    "\\u0000",
    "\\u001b[31m",
    "\u{202e}",
    "\u{feff}",
    "\n",
    " ",
    "\t",
    "\0",
    "//",
    "\"a\":",
    "\"\":",
    "../",
    "/etc/passwd",
    "..\\\\",
    ".safetensors",
    "[[[[[[[[",
    "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1",
];

/// One to six small changes; `other` is another seed to take pieces from.
fn mutate(random: &mut Random, seed: &[u8], other: &[u8]) -> Vec<u8> {
    let mut out = seed.to_vec();
    for _ in 0..1 + random.below(6) {
        let (at, to) = (random.below(out.len() + 1), random.below(out.len() + 1));
        let (begin, end) = (at.min(to), at.max(to));
        // Long cuts leave nothing to look at, so most are short.
        let end = if random.below(4) == 0 { end } else { end.min(begin + 12) };
        match random.below(9) {
            0 if !out.is_empty() => {
                let bit = random.below(8);
                let at = at.min(out.len() - 1);
                out[at] ^= 1 << bit;
            }
            1 if !out.is_empty() => {
                let at = at.min(out.len() - 1);
                out[at] = random.next() as u8;
            }
            2 | 3 => drop(out.splice(at..at, random.pick(WORDS).bytes())),
            4 => drop(out.splice(begin..end, random.pick(WORDS).bytes())),
            5 => drop(out.drain(begin..end)),
            6 => {
                let piece = out[begin..end].to_vec();
                drop(out.splice(to..to, piece));
            }
            7 => {
                let from = random.below(other.len() + 1);
                let length = random.below(other.len() - from + 1).min(64);
                drop(out.splice(at..at, other[from..from + length].to_vec()));
            }
            _ => number(random, &mut out),
        }
    }
    out
}

/// Puts another number in the place of one.
fn number(random: &mut Random, out: &mut Vec<u8>) {
    let digits: Vec<usize> = (0..out.len()).filter(|i| out[*i].is_ascii_digit()).collect();
    let Some(begin) = digits.get(random.below(digits.len())).copied() else { return };
    let end = (begin..out.len()).find(|i| !out[*i].is_ascii_digit()).unwrap_or(out.len());
    let new = match random.below(4) {
        0 => random.below(20).to_string(),
        1 => (1u64 << random.below(64)).to_string(),
        2 => (u64::MAX >> random.below(64)).to_string(),
        _ => random.next().to_string(),
    };
    out.splice(begin..end, new.into_bytes());
}

/// The seeds of a target, in the order of their names.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(target);
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 5, "the corpus of {target} is gone");
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Runs `check` on the corpus as it is, and then on mutations of it. `finish` makes a file of a mutated seed. Gives
/// how many inputs were accepted.
fn fuzz(
    target: &str,
    finish: impl Fn(&mut Random, Vec<u8>) -> Vec<u8>,
    check: impl Fn(&Path, &[u8]) -> bool,
) {
    let seeds = corpus(target);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(format!("{target}.safetensors"));
    fuzzing::rounds(target, ROUNDS, |random, round, start| {
        let seed = &seeds[random.below(seeds.len())];
        let input = match seeds.get(round as usize) {
            Some(seed) => seed.clone(),
            None => {
                let other = &seeds[random.below(seeds.len())];
                let mutated = mutate(random, seed, other);
                finish(random, mutated)
            }
        };
        fs::write(&path, &input).unwrap();
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| check(&path, &input)));
        if outcome.is_err() || started.elapsed() >= PATIENCE {
            let at = keep(target, &input);
            panic!(
                "{target}: round {round} of seed {start} broke a property; the input is in {}",
                at.display()
            );
        }
        outcome.unwrap_or(false)
    });
}

/// Saves an input that broke something.
fn keep(target: &str, input: &[u8]) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{target}-{}", &blake3::hash(input).to_hex()[..16]));
    fs::write(&path, input).unwrap();
    path
}

/// A seed of `header` is a whole file. Its text is what is interesting, so most inputs get a true length again, and
/// many get the data that their offsets ask for.
fn framed(random: &mut Random, mut input: Vec<u8>) -> Vec<u8> {
    let Some(text) = input.get(8..) else { return input };
    let end = text.iter().rposition(|b| *b == b'}').map_or(text.len(), |at| at + 1);
    if random.below(8) == 0 {
        return input;
    }
    input[..8].copy_from_slice(&(end as u64).to_le_bytes());
    if random.below(2) == 0 {
        let header = serde_json::from_slice::<Value>(&input[8..8 + end]).unwrap_or_default();
        let entries = header.as_object().into_iter().flatten();
        let last = entries.filter_map(|(_, e)| e.get("data_offsets")?.get(1)?.as_u64()).max().unwrap_or(0);
        if last < 1 << 16 {
            input.resize(8 + end + last as usize, 7);
        }
    }
    input
}

/// The rules of the format, recomputed from the JSON by another parser: types, sizes, and one owner for each byte.
fn keeps_the_rules(contents: &[u8]) {
    let length = u64::from_le_bytes(*contents.first_chunk().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&contents[8..8 + length]).unwrap();
    let mut owners = vec![0u8; contents.len() - 8 - length];
    for (name, entry) in header.as_object().unwrap() {
        if name == "__metadata__" {
            let strings = |m: &serde_json::Map<String, Value>| m.values().all(Value::is_string);
            assert!(entry.is_null() || entry.as_object().is_some_and(strings));
            continue;
        }
        let dtype = DType::parse(entry["dtype"].as_str().unwrap()).unwrap();
        let shape: Vec<u128> =
            entry["shape"].as_array().unwrap().iter().map(|d| u128::from(d.as_u64().unwrap())).collect();
        let offsets: Vec<usize> =
            entry["data_offsets"].as_array().unwrap().iter().map(|o| o.as_u64().unwrap() as usize).collect();
        let [begin, end] = offsets[..] else { panic!("{entry}") };
        // With a zero among them other dimensions may be anything.
        let elements = if shape.contains(&0) { 0 } else { shape.iter().product() };
        assert!(
            shape.len() <= MAX_RANK && elements * u128::from(dtype.bits()) == 8 * (end - begin) as u128,
            "{entry}"
        );
        owners[begin..end].iter_mut().for_each(|count| *count += 1);
    }
    assert!(owners.iter().all(|count| *count == 1), "a byte of the data has no owner, or two");
}

#[test]
fn header() {
    fuzz("header", framed, |path, contents| {
        let file = fs::File::open(path).unwrap();
        match read_header(&file, path, contents.len() as u64) {
            Ok(_) => {
                keeps_the_rules(contents);
                true
            }
            Err(error) => {
                let text = error.to_string();
                assert!(error.exit_code() == 3 && text.contains("header.safetensors"), "{text}");
                assert!(text.len() < 4_000 && !text.contains(['\u{1b}', '\0', '\u{202e}']), "{text}");
                false
            }
        }
    });
}

#[test]
fn header_against_the_reference() {
    // Other seeds of the generator than above, so that the two try different inputs.
    fuzz(
        "header",
        |random, input| {
            let _ = random.next();
            framed(random, input)
        },
        agreement::agree,
    );
}

#[test]
fn index() {
    fuzz(
        "index",
        |_, input| input,
        |path, _| match read_index(path) {
            Ok(index) => {
                for (_, shard) in &index.weight_map {
                    let parts: Vec<Component<'_>> = Path::new(shard).components().collect();
                    assert!(
                        matches!(parts[..], [Component::Normal(name)] if name.len() == shard.len()),
                        "{shard:?}"
                    );
                    assert!(
                        !shard.chars().any(char::is_control) && !shard.contains('\\') && shard.len() <= 255
                    );
                    assert!(shard.ends_with(".safetensors"), "{shard:?}");
                }
                let names: std::collections::HashSet<&String> =
                    index.weight_map.iter().map(|(t, _)| t).collect();
                assert_eq!(names.len(), index.weight_map.len(), "a tensor is there twice");
                true
            }
            Err(error) => {
                let text = error.to_string();
                assert_eq!((error.code(), error.exit_code()), ("bad_index", 3), "{text}");
                assert!(
                    text.contains("index.safetensors") && text.len() < 4_000 && !text.contains('\u{1b}'),
                    "{text}"
                );
                false
            }
        },
    );
}

#[test]
fn recipe() {
    fuzz(
        "recipe",
        |_, input| input,
        |_, contents| {
            let Ok(text) = std::str::from_utf8(contents) else { return false };
            match Recipe::from_json(text) {
                Ok(recipe) => {
                    let written = serde_json::to_string(&recipe).unwrap();
                    let again = Recipe::from_json(&written).unwrap();
                    assert_eq!(serde_json::to_string(&again).unwrap(), written);
                    assert!(recipe.shard_size > 0 && recipe.threads.is_none_or(|t| t > 0));
                    true
                }
                Err(error) => {
                    assert_eq!((error.code(), error.exit_code()), ("recipe_invalid", 2), "{error}");
                    false
                }
            }
        },
    );
}
