//! The table of who may use whom (ARCHITECTURE.md), held against the `use` lines and paths of the sources.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Module, and the modules of this crate that it may use.
const MAY_USE: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("dtype", &[]),
    ("shard", &["error", "dtype"]),
    ("plan", &["error", "dtype", "shard"]),
    ("kernel", &["error", "dtype"]),
    ("writer", &["error", "plan"]),
    ("report", &["error", "dtype"]),
    ("exec", &["error", "dtype", "shard", "plan", "kernel", "writer", "report"]),
];

/// Crates that a module must not use.
const MUST_NOT_USE: &[(&str, &[&str])] = &[
    ("error", &["rayon", "serde_json", "pyo3"]),
    ("dtype", &["rayon", "pyo3"]),
    ("shard", &["rayon", "pyo3"]),
    ("plan", &["rayon", "memmap2", "pyo3"]),
    ("kernel", &["rayon", "serde", "serde_json", "memmap2", "std::fs", "pyo3"]),
    ("writer", &["rayon", "memmap2", "pyo3"]),
    ("report", &["rayon", "memmap2", "std::fs", "pyo3"]),
    ("exec", &["pyo3", "memmap2"]),
];

fn sources(path: &Path, out: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            sources(&entry.path(), out);
        }
    } else if path.extension().is_some_and(|e| e == "rs") {
        out.push(path.to_path_buf());
    }
}

/// The sources of a top-level module, without their unit tests.
fn text_of(module: &str) -> String {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src.join(module), &mut files);
    let single = src.join(format!("{module}.rs"));
    if single.exists() {
        files.push(single);
    }
    assert!(!files.is_empty(), "no sources of {module}");
    files
        .iter()
        .map(|f| std::fs::read_to_string(f).unwrap_or_default())
        .map(|t| t.split("#[cfg(test)]").next().unwrap_or_default().to_string())
        .flat_map(|t| {
            t.lines().filter(|l| !l.trim_start().starts_with("//")).map(str::to_string).collect::<Vec<_>>()
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn modules_use_only_what_they_may() {
    for (module, allowed) in MAY_USE {
        let text = text_of(module);
        let used: BTreeSet<&str> = text
            .split("crate::")
            .skip(1)
            .filter_map(|rest| rest.split(|c: char| !(c.is_alphanumeric() || c == '_')).next())
            .filter(|name| MAY_USE.iter().any(|(m, _)| m == name) && name != module)
            .collect();
        let extra: Vec<_> = used.iter().filter(|u| !allowed.contains(u)).collect();
        assert!(extra.is_empty(), "{module} uses {extra:?}");
    }
    for (module, forbidden) in MUST_NOT_USE {
        let text = text_of(module);
        for name in *forbidden {
            let path = format!("{name}::");
            assert!(!text.contains(&path), "{module} uses {name}");
        }
    }
}

#[test]
fn unsafe_code_stays_in_its_places() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let with_unsafe: BTreeSet<String> = files
        .iter()
        .filter(|f| std::fs::read_to_string(f).unwrap().contains("unsafe {"))
        .map(|f| f.strip_prefix(&src).unwrap().display().to_string())
        .collect();
    let expected = ["kernel/level.rs", "shard/mapping.rs", "writer/writeback.rs"];
    assert_eq!(with_unsafe, expected.map(String::from).into());
}
