//! Whether rlmerge and the reference implementation say the same of a file.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::path::Path;

use rlmerge_core::dtype::DType;
use rlmerge_core::shard::Checkpoint;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

/// What we refuse and the reference does not; `tests/malformed.rs` has a test for each, `docs/promises.md` the list.
pub const STRICTER: &[&str] = &[
    "in the header twice",
    "duplicate key",
    "more than 64 dimensions",
    "more than 500000 tensors",
    "expected an object with `dtype`",
    "expected `dtype` as a string",
];

/// Their dtype of the same name.
pub fn theirs(dtype: DType) -> Dtype {
    serde_json::from_value(dtype.name().into()).unwrap()
}

/// Compares our table with theirs.
pub fn assert_same(ours: &Checkpoint, theirs: &SafeTensors<'_>) {
    assert_eq!(ours.tensors().len(), theirs.len());
    for t in ours.tensors() {
        let view = theirs.tensor(&t.name).unwrap();
        assert_eq!(view.dtype(), self::theirs(t.dtype), "{}", t.name);
        assert!(t.shape.iter().eq(view.shape().iter().map(|d| *d as u64).collect::<Vec<_>>().iter()));
        assert!(ours.bytes_of(t).unwrap() == view.data(), "bytes of {}", t.name);
        assert_eq!(ours.get(&t.name), Some(t));
    }
}

/// How often a name is a key of the header.
fn times(contents: &[u8], name: &str) -> usize {
    struct Names(Vec<String>);
    impl<'de> serde::Deserialize<'de> for Names {
        fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl<'de> serde::de::Visitor<'de> for Visitor {
                type Value = Names;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an object")
                }
                fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
                    let mut names = Vec::new();
                    while let Some((name, serde::de::IgnoredAny)) = map.next_entry()? {
                        names.push(name);
                    }
                    Ok(Names(names))
                }
            }
            from.deserialize_map(Visitor)
        }
    }
    let header = contents.get(8..).unwrap_or_default();
    let length = contents.first_chunk().map_or(0, |n| u64::from_le_bytes(*n)).min(header.len() as u64);
    let names = serde_json::from_slice::<Names>(&header[..length as usize]);
    names.map_or(0, |names| names.0.iter().filter(|n| *n == name).count())
}

/// Opens the file at `path`, which holds `contents`, with both. Gives whether we open it.
pub fn agree(path: &Path, contents: &[u8]) -> bool {
    let shown = || String::from_utf8_lossy(contents).into_owned();
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    match (Checkpoint::open(path), SafeTensors::deserialize(contents)) {
        (Ok(ours), Ok(theirs)) => {
            assert_same(&ours, &theirs);
            true
        }
        (Ok(_), Err(e)) => panic!("only the reference refuses it: {e}\n{}", shown()),
        (Err(e), theirs) => {
            let text = e.to_string();
            let documented = STRICTER.iter().any(|reason| text.contains(reason));
            // The reference does not look at the first of two entries of one name; it may be anything.
            let documented = documented || e.tensor().is_some_and(|tensor| times(contents, tensor) > 1);
            assert!(theirs.is_err() || documented, "only we refuse it: {text}\n{}", shown());
            assert!(e.exit_code() == 3 && text.contains(&name), "{text}");
            false
        }
    }
}
