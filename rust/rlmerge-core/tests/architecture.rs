//! The table of who may use whom in ARCHITECTURE.md, held against the paths in the sources.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// One row of the table: a module, the modules that it may use, and the paths that it must not.
struct Row {
    module: String,
    may_use: Vec<String>,
    must_not_use: Vec<String>,
}

/// The table under "Who may use whom" of ARCHITECTURE.md.
fn table() -> Vec<Row> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ARCHITECTURE.md");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let words = |cell: &str| cell.split(',').map(|w| w.trim().to_string()).filter(|w| w != "std").collect();
    let rows: Vec<Row> = text
        .lines()
        .skip_while(|l| !l.starts_with("| module | may use | must not use |"))
        .skip(2)
        .take_while(|l| l.starts_with('|'))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            Row { module: cells[0].into(), may_use: words(cells[1]), must_not_use: words(cells[2]) }
        })
        .collect();
    assert!(rows.len() >= 8, "the table is gone");
    rows
}

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
    let table = table();
    let modules: BTreeSet<&str> = table.iter().map(|row| row.module.as_str()).collect();
    for row in &table {
        let text = text_of(&row.module);
        let used: BTreeSet<&str> = text
            .split("crate::")
            .skip(1)
            .filter_map(|rest| rest.split(|c: char| !(c.is_alphanumeric() || c == '_')).next())
            .filter(|name| modules.contains(name) && *name != row.module)
            .collect();
        let extra: Vec<_> = used.iter().filter(|u| !row.may_use.iter().any(|m| m == *u)).collect();
        assert!(extra.is_empty(), "{} uses {extra:?}", row.module);
        for name in &row.must_not_use {
            assert!(!text.contains(&format!("{name}::")), "{} uses {name}", row.module);
        }
    }
}

#[test]
fn every_module_is_in_the_table() {
    let table = table();
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs"));
    for line in text.unwrap_or_default().lines() {
        if let Some(module) = line.strip_prefix("pub mod ").and_then(|m| m.strip_suffix(';')) {
            assert!(table.iter().any(|row| row.module == module), "{module} is not in ARCHITECTURE.md");
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
    let expected = [
        "kernel/level.rs",
        "kernel/plain_floats.rs",
        "shard/guard.rs",
        "shard/mapping.rs",
        "writer/writeback.rs",
    ];
    assert_eq!(with_unsafe, expected.map(String::from).into());
}
