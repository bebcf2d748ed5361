//! Good files come back as they were written, and the reference implementation agrees about every
//! file, good or bad, except where we are stricter by design.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod agreement;

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use agreement::{assert_same, theirs};
use proptest::prelude::*;
use rlmerge_core::dtype::DType;
use rlmerge_core::shard::{Checkpoint, FileIdentity, Kind, inspect};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

/// A folder that is deleted with the test, and a file in it.
fn written(contents: &[u8]) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, contents).unwrap();
    (folder, path)
}

/// A whole file, byte by byte: 8 bytes of length, 144 of header, 11 of tensors.
const GOLDEN: &[u8] = b"\x90\0\0\0\0\0\0\0\
    {\"__metadata__\":{\"format\":\"pt\"},\
    \"w\":{\"dtype\":\"BF16\",\"shape\":[2,2],\"data_offsets\":[3,11]},\
    \"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]}}\x20\x20\x20\
    \x01\x02\x03\x80\x3f\x00\xc0\x00\x00\x00\x80";

#[test]
fn golden_file() {
    let (_folder, path) = written(GOLDEN);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let seen: Vec<_> = checkpoint
        .tensors()
        .iter()
        .map(|t| (t.name.as_str(), t.dtype, t.shape.as_slice(), t.begin, t.end))
        .collect();
    assert_eq!(seen, [("b", DType::U8, &[3][..], 152, 155), ("w", DType::BF16, &[2, 2][..], 155, 163)]);
    let w = checkpoint.get("w").unwrap();
    assert_eq!((w.elements(), w.bytes(), w.shard), (4, 8, 0));
    assert_eq!(checkpoint.bytes_of(w).unwrap(), b"\x80\x3f\x00\xc0\x00\x00\x00\x80");
    assert_eq!(checkpoint.metadata().unwrap()["format"], "pt");
    assert_eq!((checkpoint.kind(), checkpoint.path()), (Kind::File, path.as_path()));
    let shard = &checkpoint.shards()[0];
    assert_eq!((shard.name.as_str(), shard.data_start, shard.identity.size), ("model.safetensors", 152, 163));
    assert_eq!(shard.header_blake3, blake3::hash(&GOLDEN[..152]).to_hex().as_str());
    shard.prefetch(0, u64::MAX);
    let mapping = shard.mapping().unwrap();
    mapping.release(155, 163);
    assert_eq!(mapping.bytes(152, 155), [1, 2, 3]);
    checkpoint.verify_unchanged().unwrap();
}

#[test]
fn golden_inspection() {
    let (folder, path) = written(GOLDEN);
    fs::write(folder.path().join("config.json"), r#"{"architectures":["A"]}"#).unwrap();
    let expected = serde_json::json!({
        "schema": "rlmerge.inspect/1",
        "path": folder.path().to_str(),
        "kind": "folder",
        "tensors": [
            {"name": "b", "dtype": "U8", "shape": [3], "bytes": 3, "shard": "model.safetensors"},
            {"name": "w", "dtype": "BF16", "shape": [2, 2], "bytes": 8, "shard": "model.safetensors"},
        ],
        "shards": [{"path": path.to_str(), "bytes": 163, "header_bytes": 152}],
        "parameters": 7,
        "bytes": 11,
        "dtypes": {
            "U8": {"tensors": 1, "parameters": 3, "bytes": 3},
            "BF16": {"tensors": 1, "parameters": 4, "bytes": 8},
        },
        "metadata": {"format": "pt"},
        "config": {"architecture": "A", "tie_word_embeddings": null},
        "adapter": null,
        "warnings": [],
    });
    assert_eq!(inspect(folder.path()).unwrap().to_string(), expected.to_string());
}

#[test]
fn identity_shows_what_a_plan_keeps() {
    let identity = FileIdentity { dev: 1, ino: 2, size: 3, mtime_ns: 4, ctime_ns: 5, links: 1 };
    let json = serde_json::to_value(identity).unwrap();
    assert_eq!(json, serde_json::json!({"inode": 2, "bytes": 3, "mtime_ns": 4}));
}

/// Failures are printed in full; a file of seeds beside the tests would say less.
fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// A tensor of any dtype and a small shape that fills whole bytes.
fn tensor() -> impl Strategy<Value = (DType, Vec<usize>)> {
    let shape = prop::collection::vec(0usize..5, 0..4);
    (prop::sample::select(DType::ALL), shape).prop_map(|(dtype, mut shape)| {
        if dtype.bits() % 8 != 0 {
            shape.push(8);
        }
        (dtype, shape)
    })
}

fn bytes_of(dtype: DType, shape: &[usize]) -> usize {
    shape.iter().product::<usize>() * dtype.bits() as usize / 8
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn what_the_reference_writes_reads_the_same(
        tensors in prop::collection::hash_map(any::<String>(), tensor(), 0..8),
        // Not empty: given that and no tensor, the reference writes a header that it cannot read.
        metadata in prop::option::of(prop::collection::hash_map(any::<String>(), any::<String>(), 1..3)),
        fill in any::<[u8; 7]>(),
    ) {
        let data: Vec<u8> = fill.iter().cycle().take(8 * 5 * 5 * 5 * 8).copied().collect();
        let views: HashMap<&String, TensorView<'_>> = tensors
            .iter()
            .filter(|(name, _)| *name != "__metadata__")
            .map(|(name, (dtype, shape))| {
                let bytes = &data[..bytes_of(*dtype, shape)];
                (name, TensorView::new(theirs(*dtype), shape.clone(), bytes).unwrap())
            })
            .collect();
        let contents = safetensors::serialize(&views, metadata.clone()).unwrap();
        let (_folder, path) = written(&contents);
        let ours = Checkpoint::open(&path).unwrap();
        prop_assert!(ours.warnings().is_empty(), "{:?}", ours.warnings());
        assert_same(&ours, &SafeTensors::deserialize(&contents).unwrap());
        let seen: Option<HashMap<String, String>> =
            ours.metadata().map(|m| m.iter().map(|(k, v)| (k.clone(), v.clone())).collect());
        prop_assert_eq!(seen, metadata);
    }

    #[test]
    fn tensors_come_back_in_offset_order(
        tensors in prop::collection::vec(tensor(), 1..12),
        order in any::<prop::sample::Index>(),
    ) {
        let mut end = 0;
        let mut entries = Vec::new();
        for (i, (dtype, shape)) in tensors.iter().enumerate() {
            let begin = end;
            end += bytes_of(*dtype, shape);
            let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]});
            entries.push(format!(r#""t{i}":{entry}"#));
        }
        let turn = order.index(entries.len());
        entries.rotate_left(turn);
        let header = format!("{{{}}}", entries.join(","));
        let contents = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![9; end]].concat();
        let (_folder, path) = written(&contents);
        let ours = Checkpoint::open(&path).unwrap();
        assert_same(&ours, &SafeTensors::deserialize(&contents).unwrap());
        let mut at = ours.shards()[0].data_start;
        for t in ours.tensors() {
            prop_assert_eq!(t.begin, at);
            at = t.end;
        }
        prop_assert_eq!(at, contents.len() as u64);
    }
}

/// Opens `contents` with both.
fn agree(contents: &[u8]) {
    let (_folder, path) = written(contents);
    agreement::agree(&path, contents);
}

/// Pieces of headers: right ones, and one of everything that a rule is about.
fn value() -> impl Strategy<Value = String> {
    let pieces = [
        "0",
        "1",
        "2",
        "4",
        "8",
        "12",
        "16",
        "-1",
        "-0",
        "1.0",
        "1e0",
        "08",
        "18446744073709551615",
        "18446744073709551616",
        "null",
        "true",
        "NaN",
        "\"U8\"",
        "\"F4\"",
        "\"F32\"",
        "\"\\u0055\\u0038\"",
        "\"x\"",
        "\"\\ud800\"",
        "[]",
        "{}",
        "[0]",
        "[8]",
        "[2,2]",
        "[0,8]",
        "[8,16]",
        "[8,8]",
        "[0,4611686018427387904,3]",
        "{\"U8\":null}",
        "{\"k\":\"v\"}",
        "{\"k\":\"v\",\"k\":\"v\"}",
        "[\"U8\",[8],[0,8]]",
        "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,8]",
    ];
    prop::sample::select(pieces.to_vec()).prop_map(str::to_owned)
}

/// One entry, mostly good: `wrong` spoils a field now and then.
fn entry(index: u64) -> impl Strategy<Value = String> {
    let good = format!(r#"{{"dtype":"U8","shape":[8],"data_offsets":[{},{}]}}"#, index * 8, index * 8 + 8);
    let (at, fields) =
        (index * 8, [r#""dtype""#, r#""shape""#, r#""data_offsets""#, r#""x""#, r#""sh\u0061pe""#]);
    let spoilt = (prop::sample::select(fields.to_vec()), value()).prop_map(move |(field, value)| {
        let end = at + 8;
        let rest = [
            ("\"dtype\"", "\"U8\"".to_owned()),
            ("\"shape\"", "[8]".into()),
            ("\"data_offsets\"", format!("[{at},{end}]")),
        ];
        let rest: Vec<String> =
            rest.iter().filter(|(f, _)| *f != field).map(|(f, v)| format!("{f}:{v}")).collect();
        format!("{{{field}:{value},{}}}", rest.join(","))
    });
    prop_oneof![6 => Just(good), 3 => spoilt, 1 => value()]
}

/// A header of a few entries with names that may collide, between paddings that may be wrong.
fn header() -> impl Strategy<Value = String> {
    let name = || prop::sample::select(vec!["a", "b", "c", "\\u0061", "__metadata__", "", "\\n", "é"]);
    let around = || prop::sample::select(vec!["", "", "", "", "  ", "\n", "\0", "x", "\u{feff}"]);
    let entries = (
        prop::collection::vec((name(), prop::option::weighted(0.1, value())), 0..4),
        [entry(0), entry(1), entry(2), entry(3)],
        around(),
        around(),
    );
    entries.prop_map(|(names, entries, before, after)| {
        let list: Vec<String> = names
            .iter()
            .zip(&entries)
            .map(|((n, other), e)| format!("\"{n}\":{}", other.as_ref().unwrap_or(e)))
            .collect();
        format!("{before}{{{}}}{after}", list.join(","))
    })
}

proptest! {
    #![proptest_config(cases(4_000))]

    #[test]
    fn both_agree_about_built_headers(header in header(), blocks in 0usize..5, extra in prop::sample::select(vec![0usize, 0, 0, 1])) {
        let contents = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![3; blocks * 8 + extra]].concat();
        agree(&contents);
    }

    #[test]
    fn both_agree_about_damaged_files(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut contents = GOLDEN.to_vec();
        for (at, byte) in edits {
            contents[at.index(GOLDEN.len())] = byte;
        }
        if let Some(cut) = cut {
            contents.truncate(cut.index(GOLDEN.len()));
        }
        agree(&contents);
    }
}
