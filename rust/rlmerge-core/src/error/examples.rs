//! One example of each error, from which the documentation shows messages and hints.

use std::io::{Error as IoError, ErrorKind};
use std::path::PathBuf;

use super::Error;

/// One error of each code, in the order of [`CODES`](super::CODES).
#[must_use]
pub fn examples() -> Vec<Error> {
    let at = PathBuf::from;
    let shard = || at("math/model-00002-of-00003.safetensors");
    let tensor = || "model.layers.0.mlp.down_proj.weight".to_owned();
    let read_only = || IoError::from(ErrorKind::PermissionDenied);
    vec![
        Error::RecipeInvalid { message: "unknown field `modles`".into() },
        Error::UnknownMethod { name: "tise".into(), suggestion: Some("ties".into()) },
        Error::UnknownParameter {
            name: "densty".into(),
            method: "ties".into(),
            suggestion: Some("density".into()),
        },
        Error::ParameterOutOfRange {
            parameter: "density".into(),
            place: "the recipe".into(),
            value: "1.5".into(),
            expected: "in (0, 1]".into(),
        },
        Error::ParameterCount { parameter: "weight".into(), expected: 2, got: 3 },
        Error::MissingParameter { parameter: "t".into(), method: "nearswap".into() },
        Error::ZeroWeightSum { method: "linear".into(), sum: 0.0 },
        Error::ModelCount { method: "slerp".into(), expected: "2 models".into(), got: "3".into() },
        Error::AdapterWithoutBase { path: at("lora") },
        Error::ModelNotFound { path: at("maths") },
        Error::NotACheckpoint { path: at("math"), message: "an empty folder".into() },
        Error::WrongFormat {
            path: shard(),
            found: "a git-lfs pointer: the file itself was not downloaded (`git lfs pull`)".into(),
        },
        Error::BadHeader {
            path: shard(),
            message: "bad header: this tensor name is in the header twice".into(),
            tensor: Some(tensor()),
            offset: Some(1209),
        },
        Error::BadIndex {
            path: at("math/model.safetensors.index.json"),
            message: "bad index: the shard name `../x.safetensors` has a path separator at byte 57".into(),
            tensor: Some(tensor()),
        },
        Error::BadConfig {
            path: at("math/config.json"),
            message: "not JSON: expected value at line 1".into(),
        },
        Error::Quantised {
            path: at("math"),
            evidence: "tensor `q.qweight`".into(),
            tensor: Some("q.qweight".into()),
        },
        Error::BadStatistics {
            path: at("math-fisher.safetensors"),
            tensor: tensor(),
            message: "a negative value at element 7".into(),
        },
        Error::AdapterUnsupported { path: at("lora"), message: "it is of kind LOHA".into() },
        Error::InputChanged { path: shard(), message: "modification time".into() },
        Error::InputShrank {
            path: shard(),
            tensor: Some(tensor()),
            offset: 524_392,
            from: 4_294_967_400,
            now: 1_048_576,
        },
        Error::ModelsDoNotFit {
            problems: vec![format!("`{}`: shape [4, 6] in base, [6, 4] in math", tensor())],
            tensor: Some(tensor()),
        },
        Error::OpaqueTensorsDiffer {
            path: at("math"),
            other: at("base"),
            tensor: "model.position_ids".into(),
            dtype: "I64",
            byte: 16,
        },
        Error::Io { path: at("merged"), action: "creating the stage folder", source: read_only() },
        Error::ReadFailed {
            path: shard(),
            tensor: Some(tensor()),
            offset: 524_392,
            source: IoError::from_raw_os_error(libc::EIO),
        },
        Error::NoSpace { path: at("merged"), needed: 14_483_464_704, free: 2_147_483_648 },
        Error::NotDurable { path: at("merged"), source: IoError::from_raw_os_error(libc::EIO) },
        Error::Threads { threads: 64, message: "Resource temporarily unavailable (os error 11)".into() },
        Error::OutOfMemory { tried: 1_073_741_824 },
        Error::OutputExists { path: at("merged") },
        Error::OutputNotReplaceable {
            path: at("merged"),
            message: "`notes.txt` is no part of a model".into(),
        },
        Error::OutputIsInput { path: at("math"), input: at("math"), relation: "is" },
        Error::OutputLocked { path: at("merged"), pid: 4711 },
        Error::StageDiffers {
            path: at(".merged.rlmerge-4711-2c1f0a9b8d7e6f50.partial"),
            message: "its recipe was another one".into(),
        },
        Error::NonFinite { tensor: tensor(), message: "the norm in expert `math` has no value".into() },
        Error::NonFiniteOutput { count: 3, tensors: 1, tensor: tensor(), element: 262_145 },
        Error::Overflow { count: 3, tensors: 1, tensor: tensor(), dtype: "F16", element: 262_145 },
        Error::ChecksumMismatch { path: at("merged"), tensor: tensor() },
        Error::ReadBackDiffers {
            path: at("merged/model-00001-of-00002.safetensors"),
            message: "its bytes have BLAKE3 d4…, the merge wrote 9a…".into(),
            tensor: Some(tensor()),
        },
        Error::Cancelled,
        Error::Internal { message: "index out of bounds".into() },
    ]
}

#[cfg(test)]
mod tests {
    use super::examples;
    use crate::error::{CODES, Error};

    #[test]
    fn every_code_has_its_example() {
        let examples: Vec<&str> = examples().iter().map(Error::code).collect();
        let codes: Vec<&str> = CODES.iter().map(|(code, ..)| *code).collect();
        assert_eq!(examples, codes);
    }

    /// `code()` has an arm for each variant, or it would not compile; each must have a row in the table too.
    #[test]
    fn every_variant_has_its_row() {
        let source = include_str!("../error.rs");
        let body = source.split("pub fn code(&self)").nth(1).unwrap().split("/// Exit code").next().unwrap();
        let arms: Vec<&str> =
            body.lines().filter_map(|l| l.split_once("=> \"")?.1.strip_suffix("\",")).collect();
        let mut codes: Vec<&str> = CODES.iter().map(|(code, ..)| *code).collect();
        assert_eq!(arms, codes);
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), CODES.len(), "a code is there twice");
    }

    #[test]
    fn messages_name_what_the_fields_name() {
        for error in examples() {
            let text = error.to_string();
            let path = error.path().map(|p| p.display().to_string());
            assert!(path.is_none_or(|p| text.contains(&p)), "{text}");
            let listed = matches!(error, Error::Quantised { .. } | Error::ModelsDoNotFit { .. });
            assert!(listed || error.tensor().is_none_or(|t| text.contains(&format!("`{t}`"))), "{text}");
            assert!(!text.is_empty() && !text.ends_with('.') && error.exit_code() > 0, "{text}");
            assert!(error.hint().is_none_or(|h| !h.is_empty() && !h.ends_with('.')), "{:?}", error.hint());
        }
    }

    #[test]
    fn panics_keep_their_words() {
        for (payload, words) in [
            (Box::new("static words") as Box<dyn std::any::Any + Send>, "static words"),
            (Box::new(String::from("owned words")), "owned words"),
            (Box::new(7), "a worker panicked"),
        ] {
            let error = Error::from_panic(&*payload);
            assert_eq!((error.code(), error.exit_code()), ("internal", 1));
            assert_eq!(error.to_string(), format!("internal error (a bug in rlmerge): {words}"));
        }
    }
}
