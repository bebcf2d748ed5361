//! Every way of being malformed that we know, one named test each. The files are made here; what the
//! reference implementation says of each is part of the test: we refuse whatever it refuses, and
//! nothing more than the groups marked `stricter`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rlmerge_core::error::Error;
use rlmerge_core::shard::{Checkpoint, quantised};
use safetensors::SafeTensors;
use tempfile::TempDir;

/// A file of a header and tensor bytes, with a true length in front.
fn file(header: impl AsRef<[u8]>, data: usize) -> Vec<u8> {
    let header = header.as_ref();
    with_length(header.len() as u64, header, data)
}

fn with_length(length: u64, header: impl AsRef<[u8]>, data: usize) -> Vec<u8> {
    [&length.to_le_bytes(), header.as_ref(), &vec![7; data]].concat()
}

/// A file of one tensor `a` of 8 bytes whose entry is `entry`.
fn one(entry: &str) -> Vec<u8> {
    file(format!(r#"{{"a":{entry}}}"#), 8)
}

/// An entry of dtype U8.
fn bytes(name: &str, begin: u64, end: u64) -> String {
    format!(
        r#""{name}":{{"dtype":"U8","shape":[{}],"data_offsets":[{begin},{end}]}}"#,
        end.saturating_sub(begin)
    )
}

fn many(entries: &[String], data: usize) -> Vec<u8> {
    file(format!("{{{}}}", entries.join(",")), data)
}

fn set_len(path: &Path, length: u64) {
    fs::File::options().write(true).open(path).unwrap().set_len(length).unwrap();
}

const A: Option<&str> = Some("a");
const B: Option<&str> = Some("b");

/// Opens `contents` and checks all that an error must tell.
fn refuse(test: &str, contents: &[u8], code: &str, tensor: Option<&str>, says: &str) -> Error {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(format!("{test}.safetensors"));
    fs::write(&path, contents).unwrap();
    let error = Checkpoint::open(&path).expect_err("refused");
    check(&error, &format!("{test}.safetensors"), code, tensor, says);
    if let Error::BadHeader { offset, .. } = &error {
        assert!(offset.is_some_and(|at| at <= contents.len() as u64), "no byte: {error}");
    }
    error
}

fn check(error: &Error, file: &str, code: &str, tensor: Option<&str>, says: &str) {
    let text = error.to_string();
    assert_eq!((error.code(), error.exit_code()), (code, 3), "{text}");
    assert!(text.contains(file), "does not name the file {file}: {text}");
    assert_eq!(error.tensor(), tensor, "{text}");
    if let Some(tensor) = tensor {
        assert!(text.contains(&format!("`{tensor}`")), "does not name the tensor: {text}");
    }
    assert!(text.contains(says), "does not say `{says}`: {text}");
    assert!(error.hint().is_some() && !text.contains('\u{1b}') && text.len() < 2_000, "{text}");
}

macro_rules! refused {
    ($($test:ident: $contents:expr => $code:literal, $tensor:expr, $says:expr;)*) => { $(
        #[test]
        fn $test() {
            let contents: Vec<u8> = $contents.into();
            refuse(stringify!($test), &contents, $code, $tensor, $says);
            assert!(SafeTensors::deserialize(&contents).is_err(), "the reference accepts it");
        }
    )* };
}

/// Cases that the reference accepts.
macro_rules! stricter {
    ($($test:ident: $contents:expr => $tensor:expr, $says:expr;)*) => { $(
        #[test]
        fn $test() {
            let contents: Vec<u8> = $contents.into();
            refuse(stringify!($test), &contents, "bad_header", $tensor, $says);
            assert!(SafeTensors::deserialize(&contents).is_ok(), "the reference refuses it too");
        }
    )* };
}

macro_rules! accepted {
    ($($test:ident: $contents:expr => $warning:expr;)*) => { $(
        #[test]
        fn $test() {
            let contents: Vec<u8> = $contents.into();
            let warning: &str = $warning;
            let folder = TempDir::new().unwrap();
            let path = folder.path().join("accepted.safetensors");
            fs::write(&path, &contents).unwrap();
            let checkpoint = Checkpoint::open(&path).unwrap();
            let warnings = checkpoint.warnings();
            assert_eq!(warnings.is_empty(), warning.is_empty(), "{warnings:?}");
            assert!(warnings.iter().all(|w| w.contains(warning) && w.contains("accepted")), "{warnings:?}");
            let theirs = SafeTensors::deserialize(&contents).unwrap();
            assert_eq!(theirs.len(), checkpoint.tensors().len());
        }
    )* };
}

// ---- files of other formats ----

refused! {
    empty_file: [] => "wrong_format", None, "an empty file";
    torch_archive: b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0\0\0archive/data.pkl\x80\x02}" => "wrong_format", None, "pickle";
    zip_archive: b"PK\x03\x04\x14\0\x08\x08\0\0\0\0\0\0\0\0word.txt" => "wrong_format", None, "a zip archive";
    pickle: b"\x80\x02}q\0(X\x01\0\0\0aq\x01K\x01u." => "wrong_format", None, "a Python pickle";
    gguf: b"GGUF\x03\0\0\0\x10\0\0\0\0\0\0\0" => "wrong_format", None, "GGUF";
    gguf_magic_alone: b"GGUF" => "wrong_format", None, "GGUF";
    gzip: b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc" => "wrong_format", None, "gzip";
    html_page: b"\n<!DOCTYPE html><html><body>404</body></html>" => "wrong_format", None, "HTML";
    git_lfs_pointer: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n" => "wrong_format", None, "git-lfs pointer";
    numpy_array: b"\x93NUMPY\x01\0\x76\0{'descr': '<f4'}" => "wrong_format", None, "NumPy";
    hdf5: b"\x89HDF\r\n\x1a\n\0\0\0\0\0\x08\x08" => "wrong_format", None, "HDF5";
    json_text: br#"{"error":"Repository not found"}"# => "wrong_format", None, "JSON";
    plain_text: b"Entry not found" => "wrong_format", None, "`Entry not found`";
}

// ---- length and text of the header ----

refused! {
    three_bytes: [1, 2, 3] => "bad_header", None, "too short: 3 bytes";
    eight_bytes_of_length_only: with_length(2, "", 0) => "bad_header", None, "too short by 2 bytes";
    zero_length: with_length(0, "", 16) => "bad_header", None, "header length is 0";
    length_over_the_limit: with_length(100_000_001, "{}", 0) => "bad_header", None, "over the limit of 100000000";
    length_of_all_ones: with_length(u64::MAX, "{}", 0) => "bad_header", None, "18446744073709551615";
    length_beyond_the_file: with_length(50, "{}", 0) => "bad_header", None, "too short by 48 bytes";
    length_that_cuts_the_json: with_length(1, "{}", 0) => "bad_header", None, "not valid JSON";
    header_is_not_utf8: file(b"{\"\xff\":1}", 0) => "bad_header", None, "not UTF-8";
    header_has_overlong_utf8: file(b"{\"\xc0\xaf\":1}", 0) => "bad_header", None, "not UTF-8";
    header_has_cesu8: file(b"{\"\xed\xa0\x80\":1}", 0) => "bad_header", None, "not UTF-8";
    byte_order_mark: file("\u{feff}{}", 0) => "bad_header", None, "not valid JSON";
    padded_with_nul: file("{}\0\0", 0) => "bad_header", None, "trailing characters";
    text_after_the_object: file("{} {}", 0) => "bad_header", None, "trailing characters";
    comment: file("{/* */}", 0) => "bad_header", None, "not valid JSON";
    trailing_comma: many(&[bytes("a", 0, 8), String::new()], 8) => "bad_header", None, "trailing comma";
    single_quotes: file("{'a':1}", 0) => "bad_header", None, "not valid JSON";
    nan_in_an_unknown_field: one(r#"{"dtype":"U8","shape":[8],"data_offsets":[0,8],"x":NaN}"#) => "bad_header", A, "not valid JSON";
    huge_number_in_an_unknown_field: one(r#"{"dtype":"U8","shape":[8],"data_offsets":[0,8],"x":1e999}"#) => "bad_header", A, "out of range";
    depth_bomb: one(&format!(r#"{{"x":{}"#, "[".repeat(200))) => "bad_header", A, "recursion limit";
    object_depth_bomb: file(r#"{"a":"#.repeat(100_000), 0) => "bad_header", A, "";
    lone_surrogate: file(r#"{"\ud800":1}"#, 0) => "bad_header", None, "not valid JSON";
    control_character_in_a_string: file("{\"\u{1}\":1}", 0) => "bad_header", None, "control character";
    a_list: file("[]", 0) => "bad_header", None, "expected an object";
    a_number: file("1234", 0) => "bad_header", None, "expected an object";
    null: file("null", 0) => "bad_header", None, "expected an object";
    blank: file("      ", 0) => "bad_header", None, "EOF";
    unterminated: file(r#"{"a":{"dtype":"U8""#, 0) => "bad_header", A, "EOF";
}

// ---- entries ----

refused! {
    entry_is_null: one("null") => "bad_header", A, "expected an object with `dtype`";
    entry_is_a_number: one("8") => "bad_header", A, "expected an object with `dtype`";
    entry_is_a_string: one(r#""U8""#) => "bad_header", A, "expected an object with `dtype`";
    entry_is_empty: one("{}") => "bad_header", A, "`dtype` is missing";
    dtype_missing: one(r#"{"shape":[8],"data_offsets":[0,8]}"#) => "bad_header", A, "`dtype` is missing";
    shape_missing: one(r#"{"dtype":"U8","data_offsets":[0,8]}"#) => "bad_header", A, "`shape` is missing";
    offsets_missing: one(r#"{"dtype":"U8","shape":[8]}"#) => "bad_header", A, "`data_offsets` is missing";
    dtype_twice: one(r#"{"dtype":"U8","dtype":"U8","shape":[8],"data_offsets":[0,8]}"#) => "bad_header", A, "duplicate key `dtype`";
    shape_twice_once_escaped: one(r#"{"dtype":"U8","shape":[8],"sh\u0061pe":[8],"data_offsets":[0,8]}"#) => "bad_header", A, "duplicate key `shape`";
    offsets_twice: one(r#"{"dtype":"U8","shape":[8],"data_offsets":[0,8],"data_offsets":[0,8]}"#) => "bad_header", A, "duplicate key `data_offsets`";
    dtype_unknown: one(r#"{"dtype":"F31","shape":[8],"data_offsets":[0,8]}"#) => "bad_header", A, "unknown dtype `F31`";
    dtype_in_lower_case: one(r#"{"dtype":"u8","shape":[8],"data_offsets":[0,8]}"#) => "bad_header", A, "unknown dtype `u8`";
    dtype_is_null: one(r#"{"dtype":null,"shape":[8],"data_offsets":[0,8]}"#) => "bad_header", A, "expected `dtype` as a string";
    dtype_is_a_number: one(r#"{"dtype":8,"shape":[8],"data_offsets":[0,8]}"#) => "bad_header", A, "expected `dtype` as a string";
    dtype_with_terminal_codes: one(r#"{"dtype":"\u001b[31m","shape":[8],"data_offsets":[0,8]}"#) => "bad_header", A, "unknown dtype `\\u{1b}[31m`";
    shape_is_a_number: one(r#"{"dtype":"U8","shape":8,"data_offsets":[0,8]}"#) => "bad_header", A, "expected `shape` as a list";
    shape_is_null: one(r#"{"dtype":"U8","shape":null,"data_offsets":[0,8]}"#) => "bad_header", A, "expected `shape` as a list";
    shape_is_an_object: one(r#"{"dtype":"U8","shape":{"0":8},"data_offsets":[0,8]}"#) => "bad_header", A, "expected `shape` as a list";
    dimension_negative: one(r#"{"dtype":"U8","shape":[-8],"data_offsets":[0,8]}"#) => "bad_header", A, "a dimension of `shape`";
    dimension_minus_zero: one(r#"{"dtype":"U8","shape":[-0,8],"data_offsets":[0,0]}"#) => "bad_header", A, "a dimension of `shape`";
    dimension_with_fraction: one(r#"{"dtype":"U8","shape":[8.0],"data_offsets":[0,8]}"#) => "bad_header", A, "a dimension of `shape`";
    dimension_with_exponent: one(r#"{"dtype":"U8","shape":[8e0],"data_offsets":[0,8]}"#) => "bad_header", A, "a dimension of `shape`";
    dimension_is_a_string: one(r#"{"dtype":"U8","shape":["8"],"data_offsets":[0,8]}"#) => "bad_header", A, "a dimension of `shape`";
    dimension_is_true: one(r#"{"dtype":"U8","shape":[8,true],"data_offsets":[0,8]}"#) => "bad_header", A, "a dimension of `shape`";
    dimension_over_64_bits: one(r#"{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,8]}"#) => "bad_header", A, "a dimension of `shape`";
    dimension_with_leading_zero: one(r#"{"dtype":"U8","shape":[08],"data_offsets":[0,8]}"#) => "bad_header", A, "invalid number";
    dimension_in_hex: one(r#"{"dtype":"U8","shape":[0x8],"data_offsets":[0,8]}"#) => "bad_header", A, "not valid JSON";
    product_of_dimensions_overflows: one(r#"{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,8]}"#) => "bad_header", A, "overflows 64 bits";
    product_wraps_to_the_right_size: one(r#"{"dtype":"U8","shape":[9223372036854775808,2,8],"data_offsets":[0,0]}"#) => "bad_header", A, "overflows 64 bits";
    bits_overflow: one(r#"{"dtype":"F64","shape":[2305843009213693953],"data_offsets":[0,8]}"#) => "bad_header", A, "overflows 64 bits";
    overflow_before_a_zero: one(r#"{"dtype":"U8","shape":[1099511627776,1099511627776,0],"data_offsets":[0,0]}"#) => "bad_header", A, "overflows 64 bits";
    offsets_are_an_object: one(r#"{"dtype":"U8","shape":[8],"data_offsets":{"0":0,"1":8}}"#) => "bad_header", A, "expected `data_offsets` as a list";
    offsets_are_null: one(r#"{"dtype":"U8","shape":[8],"data_offsets":null}"#) => "bad_header", A, "expected `data_offsets` as a list";
    one_offset: one(r#"{"dtype":"U8","shape":[8],"data_offsets":[8]}"#) => "bad_header", A, "list of two integers";
    three_offsets: one(r#"{"dtype":"U8","shape":[8],"data_offsets":[0,8,8]}"#) => "bad_header", A, "list of two integers";
    no_offsets: one(r#"{"dtype":"U8","shape":[8],"data_offsets":[]}"#) => "bad_header", A, "list of two integers";
    offset_negative: one(r#"{"dtype":"U8","shape":[8],"data_offsets":[-8,0]}"#) => "bad_header", A, "an offset of `data_offsets`";
    offset_with_fraction: one(r#"{"dtype":"U8","shape":[8],"data_offsets":[0,8.0]}"#) => "bad_header", A, "an offset of `data_offsets`";
    offset_over_64_bits: one(r#"{"dtype":"U8","shape":[8],"data_offsets":[0,18446744073709551624]}"#) => "bad_header", A, "an offset of `data_offsets`";
    offsets_reversed: one(r#"{"dtype":"U8","shape":[8],"data_offsets":[8,0]}"#) => "bad_header", A, "end before they begin";
    range_smaller_than_the_shape: one(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#) => "bad_header", A, "needs 12 bytes, but `data_offsets` [0, 8] hold 8";
    range_larger_than_the_shape: one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,8]}"#) => "bad_header", A, "needs 4 bytes";
    four_bits_that_fill_no_byte: one(r#"{"dtype":"F4","shape":[15],"data_offsets":[0,8]}"#) => "bad_header", A, "60 bits, which do not fill whole bytes";
    six_bits_that_fill_no_byte: one(r#"{"dtype":"F6_E2M3","shape":[9],"data_offsets":[0,8]}"#) => "bad_header", A, "54 bits, which do not fill whole bytes";
}

stricter! {
    entry_is_a_list: one(r#"["U8",[8],[0,8]]"#) => A, "expected an object with `dtype`";
    dtype_is_an_object: one(r#"{"dtype":{"U8":null},"shape":[8],"data_offsets":[0,8]}"#) => A, "expected `dtype` as a string";
    rank_65: one(&format!(r#"{{"dtype":"U8","shape":[8{}],"data_offsets":[0,8]}}"#, ",1".repeat(64))) => A, "more than 64 dimensions";
    tensor_name_twice: many(&[bytes("a", 0, 8), bytes("a", 0, 8)], 8) => A, "in the header twice";
    tensor_name_twice_once_escaped: many(&[bytes("a", 0, 8), bytes("\\u0061", 0, 8)], 8) => A, "in the header twice";
    unknown_field_twice: one(r#"{"dtype":"U8","shape":[8],"data_offsets":[0,8],"x":1,"x":1}"#) => A, "duplicate key `x`";
    key_twice_deep_in_an_unknown_field: one(r#"{"dtype":"U8","shape":[8],"data_offsets":[0,8],"x":[{"y":1,"y":1}]}"#) => A, "duplicate key `y`";
    metadata_key_twice: file(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0) => None, "duplicate key `k` in `__metadata__`";
    metadata_key_twice_once_escaped: file(r#"{"__metadata__":{"k":"1","\u006b":"2"}}"#, 0) => None, "duplicate key `k` in `__metadata__`";
}

#[test]
fn one_tensor_over_the_cap() {
    let empty = |i: usize| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
    let entries: Vec<String> = (0..=rlmerge_core::shard::MAX_TENSORS).map(empty).collect();
    refuse(
        "one_tensor_over_the_cap",
        &many(&entries, 0),
        "bad_header",
        Some("500000"),
        "more than 500000 tensors",
    );
}

// ---- metadata ----

refused! {
    metadata_twice: file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0) => "bad_header", None, "duplicate key `__metadata__`";
    metadata_is_a_list: file(r#"{"__metadata__":[]}"#, 0) => "bad_header", None, "`__metadata__` as an object";
    metadata_is_a_string: file(r#"{"__metadata__":"pt"}"#, 0) => "bad_header", None, "`__metadata__` as an object";
    metadata_value_is_a_number: file(r#"{"__metadata__":{"k":1}}"#, 0) => "bad_header", None, "a string as value in `__metadata__`";
    metadata_value_is_null: file(r#"{"__metadata__":{"k":null}}"#, 0) => "bad_header", None, "a string as value in `__metadata__`";
    metadata_value_is_an_object: file(r#"{"__metadata__":{"k":{}}}"#, 0) => "bad_header", None, "a string as value in `__metadata__`";
    tensor_called_metadata: file(r#"{"__metadata__":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}"#, 8) => "bad_header", None, "a string as value in `__metadata__`";
}

// ---- how the tensors lie in the file ----

refused! {
    hole_before_the_first_tensor: many(&[bytes("a", 4, 8)], 8) => "bad_header", A, "hole of 4 bytes before";
    hole_between_tensors: many(&[bytes("b", 6, 8), bytes("a", 0, 4)], 8) => "bad_header", B, "hole of 2 bytes between tensor `a`";
    tensors_overlap: many(&[bytes("a", 0, 6), bytes("b", 4, 8)], 8) => "bad_header", B, "overlap [0, 6] of tensor `a`";
    tensors_share_all_bytes: many(&[bytes("a", 0, 8), bytes("b", 0, 8)], 8) => "bad_header", B, "overlap [0, 8] of tensor `a`";
    tensor_inside_another: many(&[bytes("a", 0, 8), bytes("b", 2, 4)], 8) => "bad_header", B, "overlap";
    empty_tensor_inside_another: many(&[bytes("a", 0, 8), bytes("b", 4, 4)], 8) => "bad_header", B, "overlap";
    empty_tensor_beyond_the_data: many(&[bytes("a", 0, 8), bytes("b", 9, 9)], 8) => "bad_header", B, "hole of 1 bytes";
    data_too_short: many(&[bytes("a", 0, 4), bytes("b", 4, 8)], 5) => "bad_header", B, "too short by 3 bytes";
    data_too_long: many(&[bytes("a", 0, 8)], 10) => "bad_header", None, "too long by 2 bytes";
    data_without_tensors: file("{}", 1) => "bad_header", None, "too long by 1 bytes";
    no_data_at_all: many(&[bytes("a", 0, 8)], 0) => "bad_header", A, "too short by 8 bytes";
    data_end_that_overflows_with_the_header: one(r#"{"dtype":"U8","shape":[2305843009213693951],"data_offsets":[0,2305843009213693951]}"#) => "bad_header", A, "too short by";
    end_of_all_ones: one(r#"{"dtype":"U8","shape":[0],"data_offsets":[18446744073709551615,18446744073709551615]}"#) => "bad_header", A, "hole of 18446744073709551615 bytes";
}

// ---- what is odd but opens ----

accepted! {
    no_tensor: file("{}", 0) => "";
    padded_with_spaces: file(format!("{{{}}}      ", bytes("a", 0, 8)), 8) => "";
    leading_space: file(format!("  {{{}}}", bytes("a", 0, 8)), 8) => "does not begin with `{`";
    leading_newline: file(format!("\n{{{}}}", bytes("a", 0, 8)), 8) => "does not begin with `{`";
    padded_with_newlines: file(format!("{{{}}}\n\n", bytes("a", 0, 8)), 8) => "padded with bytes other than spaces";
    metadata_is_null: file(r#"{"__metadata__":null}"#, 0) => "`__metadata__` is null";
    metadata_is_empty: file(r#"{"__metadata__":{}}"#, 0) => "";
    unknown_field: one(r#"{"dtype":"U8","shape":[8],"data_offsets":[0,8],"x":{"y":[1,-1,2.5,null,true,"z"]}}"#) => "first `x` of `a`";
    scalar: one(r#"{"dtype":"F64","shape":[],"data_offsets":[0,8]}"#) => "";
    rank_64: one(&format!(r#"{{"dtype":"U8","shape":[8{}],"data_offsets":[0,8]}}"#, ",1".repeat(63))) => "";
    sixteen_values_of_four_bits: one(r#"{"dtype":"F4","shape":[16],"data_offsets":[0,8]}"#) => "";
    empty_tensors_beside_others: many(&[bytes("z", 8, 8), bytes("a", 0, 8), bytes("y", 0, 0), bytes("x", 0, 0)], 8) => "";
    zero_before_an_overflow: file(r#"{"a":{"dtype":"U8","shape":[0,4611686018427387904,3],"data_offsets":[0,0]}}"#, 0) => "a dimension over 2^32";
    odd_names: many(&[bytes("", 0, 1), bytes("../../etc/passwd", 1, 2), bytes("\\u0000\\u001b", 2, 3), bytes("\u{202e}", 3, 4), bytes(&"n".repeat(1 << 20), 4, 5)], 5) => "";
    f32_at_an_odd_byte: file(r#"{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"F32","shape":[1],"data_offsets":[3,7]}}"#, 7) => "";
}

#[test]
fn errors_name_the_byte() {
    let offset = |error: Error| match error {
        Error::BadHeader { offset, .. } => offset,
        other => panic!("{other}"),
    };
    let at = |contents: &[u8], text: &str| {
        contents.windows(text.len()).rposition(|w| w == text.as_bytes()).map(|i| i as u64)
    };
    let twice = many(&[bytes("a", 0, 8), bytes("a", 0, 8)], 8);
    let error = refuse("name", &twice, "bad_header", A, "twice");
    assert_eq!(offset(error), at(&twice, r#""a""#));
    let dtype = one("{\n\n  \"dtype\":\"Q8\",\"shape\":[8],\"data_offsets\":[0,8]}");
    assert_eq!(offset(refuse("dtype", &dtype, "bad_header", A, "Q8")), at(&dtype, r#""Q8""#));
    let syntax = file("{\n \"a\" ?}", 0);
    assert_eq!(offset(refuse("syntax", &syntax, "bad_header", A, "JSON")), at(&syntax, "?"));
    let not_utf8 = file(b"{\"a\xff\"}", 0);
    assert_eq!(offset(refuse("utf8", &not_utf8, "bad_header", None, "UTF-8")), Some(11));
    let long = many(&[bytes("a", 0, 8)], 10);
    assert_eq!(offset(refuse("long", &long, "bad_header", None, "too long")), Some(long.len() as u64 - 2));
    let short = many(&[bytes("a", 0, 8)], 7);
    assert_eq!(offset(refuse("short", &short, "bad_header", A, "too short")), Some(short.len() as u64));
}

#[test]
fn hostile_strings_are_cut_and_escaped() {
    let name = format!("\\u001b]0;{} at line 9 column 9", "x".repeat(10_000));
    let contents = file(format!(r#"{{"{name}":{{"dtype":"{name}"}}}}"#), 0);
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("hostile.safetensors");
    fs::write(&path, contents).unwrap();
    let text = Checkpoint::open(&path).expect_err("refused").to_string();
    assert!(text.len() < 1_000 && !text.contains('\u{1b}') && text.contains("hostile.safetensors"), "{text}");
}

#[test]
fn every_truncation_of_a_good_file_is_refused() {
    let whole = many(&[bytes("a", 0, 8), bytes("b", 8, 16)], 16);
    let folder = TempDir::new().unwrap();
    for length in 0..whole.len() {
        let path = folder.path().join(format!("cut-{length}.safetensors"));
        fs::write(&path, &whole[..length]).unwrap();
        let error = Checkpoint::open(&path).expect_err("refused");
        assert!(matches!(error.code(), "bad_header" | "wrong_format"), "{error}");
    }
}

#[test]
fn a_sparse_file_of_64_gib_opens_at_once() {
    let bytes = 64u64 << 30;
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("sparse.safetensors");
    let header = format!(r#"{{"a":{{"dtype":"U8","shape":[{bytes}],"data_offsets":[0,{bytes}]}}}}"#);
    fs::write(&path, file(&header, 0)).unwrap();
    set_len(&path, 8 + header.len() as u64 + bytes);
    let started = Instant::now();
    assert_eq!(Checkpoint::open(&path).unwrap().tensors()[0].bytes(), bytes);
    assert!(started.elapsed() < Duration::from_secs(1));
}

// ---- what is at the path ----

/// Opens a path that holds no file, which must not take time.
fn refuse_path(path: &Path, code: &str, says: &str) {
    let started = Instant::now();
    let error = Checkpoint::open(path).expect_err("refused");
    assert!(started.elapsed() < Duration::from_secs(1));
    check(&error, &path.file_name().unwrap().to_string_lossy(), code, None, says);
}

#[test]
fn fifo() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("fifo.safetensors");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    refuse_path(&path, "not_a_checkpoint", "a named pipe");
    let link = folder.path().join("link.safetensors");
    symlink(&path, &link).unwrap();
    refuse_path(&link, "not_a_checkpoint", "a named pipe");
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    symlink(&path, model.join("model.safetensors")).unwrap();
    let error = Checkpoint::open(&model).expect_err("refused");
    check(&error, "model.safetensors", "not_a_checkpoint", None, "a named pipe");
}

#[test]
fn socket() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("socket");
    let _listener = UnixListener::bind(&path).unwrap();
    refuse_path(&path, "not_a_checkpoint", "a socket");
}

#[test]
fn device() {
    refuse_path(Path::new("/dev/zero"), "not_a_checkpoint", "a device");
}

#[test]
fn symlink_loop() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("loop.safetensors");
    symlink(&path, &path).unwrap();
    refuse_path(&path, "not_a_checkpoint", "leads back to itself");
}

#[test]
fn dangling_link() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("dangling.safetensors");
    symlink("blobs/gone", &path).unwrap();
    refuse_path(&path, "not_a_checkpoint", "a symbolic link to `blobs/gone`, where nothing is");
}

#[test]
fn nothing_there() {
    let folder = TempDir::new().unwrap();
    refuse_path(&folder.path().join("absent"), "model_not_found", "no such file");
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    refuse_path(&file.join("absent"), "model_not_found", "no such file");
}

#[test]
fn folder_as_a_shard() {
    let model = Model::new();
    fs::create_dir(model.path("model.safetensors")).unwrap();
    model.refused("model.safetensors", "not_a_checkpoint", None, "a folder, not a file");
}

// ---- folders and their indexes ----

/// A folder that becomes a model.
struct Model(TempDir);

impl Model {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn with(self, name: &str, contents: impl AsRef<[u8]>) -> Self {
        fs::write(self.path(name), contents).unwrap();
        self
    }
    /// A shard of one-byte tensors.
    fn shard(self, name: &str, tensors: &[&str]) -> Self {
        let entries: Vec<String> = (0..).zip(tensors).map(|(i, t)| bytes(t, i, i + 1)).collect();
        self.with(name, many(&entries, tensors.len()))
    }
    fn index(self, json: &str) -> Self {
        self.with(INDEX, json)
    }
    fn open(&self) -> Result<Checkpoint, Error> {
        Checkpoint::open(self.0.path())
    }
    /// The only warning.
    fn warned(&self, says: &str) -> Checkpoint {
        let checkpoint = self.open().unwrap();
        let warnings = checkpoint.warnings();
        assert!(warnings.len() == 1 && warnings[0].contains(says), "{warnings:?}");
        checkpoint
    }
    fn refused(&self, file: &str, code: &str, tensor: Option<&str>, says: &str) {
        check(&self.open().expect_err("refused"), file, code, tensor, says);
    }
    /// Refused by the folder's own path.
    fn no_checkpoint(&self, says: &str) {
        let name = self.0.path().file_name().unwrap().to_string_lossy().into_owned();
        self.refused(&name, "not_a_checkpoint", None, says);
    }
    fn bad_index(self, tensor: Option<&str>, says: &str) {
        self.refused(INDEX, "bad_index", tensor, says);
    }
}

const INDEX: &str = "model.safetensors.index.json";
const ONE: &str = "model-00001-of-00002.safetensors";
const TWO: &str = "model-00002-of-00002.safetensors";

/// Two shards, with `a` in one and `b` and `c` in the other.
fn sharded() -> Model {
    Model::new().shard(ONE, &["a"]).shard(TWO, &["b", "c"])
}

fn map(entries: &[(&str, &str)]) -> String {
    let entries: Vec<String> = entries.iter().map(|(t, s)| format!(r#""{t}":"{s}""#)).collect();
    format!(r#"{{"weight_map":{{{}}}}}"#, entries.join(","))
}

#[test]
fn an_index_and_its_shards() {
    let model = sharded().index(&map(&[("c", TWO), ("b", TWO), ("a", ONE)]));
    let checkpoint = model.open().unwrap();
    let names: Vec<(&str, usize)> = checkpoint.tensors().iter().map(|t| (t.name.as_str(), t.shard)).collect();
    assert_eq!(names, [("a", 0), ("b", 1), ("c", 1)]);
    assert_eq!(checkpoint.bytes_of(checkpoint.get("c").unwrap()).unwrap(), [7]);
    assert!(
        checkpoint.get("d").is_none() && checkpoint.warnings().is_empty() && checkpoint.config().is_none()
    );
}

#[test]
fn symlinks_into_a_cache() {
    let model = Model::new();
    fs::create_dir_all(model.path("snapshots/1")).unwrap();
    fs::create_dir(model.path("blobs")).unwrap();
    let model = model.shard("blobs/x", &["a"]).with("blobs/i", map(&[("a", ONE)])).with("blobs/c", "{}");
    for (name, blob) in [(ONE, "x"), (INDEX, "i"), ("config.json", "c")] {
        symlink(format!("../../blobs/{blob}"), model.path("snapshots/1").join(name)).unwrap();
    }
    let checkpoint = Checkpoint::open(&model.path("snapshots/1")).unwrap();
    assert!(checkpoint.get("a").is_some() && checkpoint.config().is_some());
    assert_eq!(checkpoint.shards()[0].name, ONE);
    model.no_checkpoint("Hugging Face cache");
}

#[test]
fn shard_names_that_lead_elsewhere() {
    let long = format!("{}.safetensors", "n".repeat(245));
    let cases = [
        ("", "is empty"),
        (".", "is a folder"),
        ("..", "is a folder"),
        ("../other/model.safetensors", "path separator"),
        ("/etc/model.safetensors", "path separator"),
        ("sub/model.safetensors", "path separator"),
        ("..\\\\model.safetensors", "path separator"),
        ("a\\u0000.safetensors", "control character"),
        ("a\\u001b.safetensors", "control character"),
        ("model.bin", "does not end in"),
        (".safetensors/..", "path separator"),
        (long.as_str(), "longer than 255"),
    ];
    for (shard, says) in cases {
        sharded().index(&map(&[("b", TWO), ("a", shard)])).bad_index(A, says);
    }
}

#[test]
fn indexes_that_break_a_rule() {
    let pair = format!(r#""a":"{ONE}""#);
    let cases = [
        (String::new(), None, "EOF"),
        ("[]".into(), None, "expected an object with `weight_map`"),
        ("null".into(), None, "expected an object with `weight_map`"),
        ("{}".into(), None, "`weight_map` is missing"),
        (r#"{"weight_map":{}}"#.into(), None, "names no tensor"),
        (r#"{"weight_map":null}"#.into(), None, "`weight_map` as an object"),
        (r#"{"weight_map":[]}"#.into(), None, "`weight_map` as an object"),
        (r#"{"metadata":3}"#.into(), None, "`metadata` as an object"),
        (r#"{"weight_map":{"a":1}}"#.into(), A, "a shard's file name as a string"),
        (format!(r#"{{"weight_map":{{{pair},{pair}}}}}"#), A, "duplicate key `a`"),
        (format!(r#"{{"weight_map":{{{pair},"\u0061":"{TWO}"}}}}"#), A, "duplicate key `a`"),
        (format!(r#"{{"weight_map":{{{pair}}},"weight_map":{{}}}}"#), None, "duplicate key `weight_map`"),
        (format!(r#"{{"metadata":{{"x":1,"x":1}},"weight_map":{{{pair}}}}}"#), None, "duplicate key `x`"),
        (
            format!(r#"{{"metadata":{{"total_size":1,"total_size":1}},"weight_map":{{{pair}}}}}"#),
            None,
            "duplicate key",
        ),
        (format!(r#"{{"weight_map":{{{pair}}}}} x"#), None, "trailing characters at byte"),
    ];
    for (json, tensor, says) in cases {
        sharded().index(&json).bad_index(tensor, says);
    }
    sharded().with(INDEX, b"{\"\xff\":1}").bad_index(None, "not UTF-8 at byte 2");
}

#[test]
fn index_over_the_size_limit() {
    let model = sharded().index("{}");
    set_len(&model.path(INDEX), 100_000_001);
    model.bad_index(None, "over the limit of 100000000 bytes");
}

#[test]
fn index_that_is_a_fifo() {
    let model = sharded();
    let path = model.path(INDEX);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    model.bad_index(None, "a named pipe");
}

#[test]
fn index_given_instead_of_its_folder() {
    let model = sharded().index(&map(&[("a", ONE)]));
    let error = Checkpoint::open(&model.path(INDEX)).expect_err("refused");
    check(&error, INDEX, "not_a_checkpoint", None, "give the folder that holds it");
}

#[test]
fn index_and_shards_that_disagree() {
    let absent = "model-00003-of-00003.safetensors";
    sharded().index(&map(&[("a", ONE), ("d", TWO)])).bad_index(Some("d"), TWO);
    sharded().index(&map(&[("a", ONE), ("b", ONE), ("c", TWO)])).bad_index(B, "holds it");
    sharded().index(&map(&[("a", ONE), ("d", absent)])).bad_index(Some("d"), absent);
    let twice = Model::new().shard(ONE, &["a", "b"]).shard(TWO, &["b"]);
    twice.index(&map(&[("a", ONE), ("b", TWO)])).bad_index(B, "in two shards");
    let dangling = sharded().index(&map(&[("a", ONE), ("d", absent)]));
    symlink("gone", dangling.path(absent)).unwrap();
    dangling.bad_index(Some("d"), "where nothing is");
    let damaged = sharded().with(TWO, b"GGUF\x03\0\0\0\0").index(&map(&[("a", ONE), ("b", TWO)]));
    damaged.refused(TWO, "wrong_format", None, "GGUF");
}

#[test]
fn tensor_that_the_index_leaves_out() {
    let model = sharded().index(&map(&[("a", ONE), ("b", TWO)]));
    let checkpoint = model.warned("1 tensors are in no entry of the index and are left out, first `c`");
    assert!(checkpoint.get("c").is_none() && checkpoint.tensors().len() == 2);
}

#[test]
fn total_size_that_is_wrong() {
    let with = |metadata: &str| {
        let entries = map(&[("a", ONE), ("b", TWO), ("c", TWO)]);
        sharded().index(&format!(r#"{{"metadata":{metadata},{}"#, &entries[1..]))
    };
    assert!(with(r#"{"total_size":3,"x":[]}"#).open().unwrap().warnings().is_empty());
    assert!(with("null").open().unwrap().warnings().is_empty());
    with(r#"{"total_size":4}"#).warned("is 4, but its tensors have 3 bytes");
    for odd in ["3.0", "-3", "\"3\"", "null", "[3]"] {
        with(&format!(r#"{{"total_size":{odd}}}"#)).warned("`total_size` of the index is not an integer");
    }
}

#[test]
fn both_a_single_file_and_an_index() {
    let both = sharded().shard("model.safetensors", &["a"]);
    both.index(&map(&[("a", ONE)])).no_checkpoint("holds both");
    let equal = Model::new().shard("model.safetensors", &["a"]).index(&map(&[("a", "model.safetensors")]));
    assert_eq!(equal.open().unwrap().tensors().len(), 1);
}

#[test]
fn folders_without_the_usual_names() {
    let sole = Model::new()
        .shard("weights.safetensors", &["a"])
        .with(".hidden.safetensors", "")
        .with("x.incomplete", "");
    assert_eq!(sole.open().unwrap().shards()[0].name, "weights.safetensors");
    sharded().no_checkpoint(&format!("holds `{ONE}`, `{TWO}` and no `{INDEX}`"));
    Model::new().shard(ONE, &["a"]).no_checkpoint(&format!("holds `{ONE}` of 2 shards"));
    Model::new().no_checkpoint("an empty folder");
    Model::new().with("README.md", "").no_checkpoint("holds no safetensors");
    Model::new().with("pytorch_model.bin", "").no_checkpoint("`pytorch_model.bin`: pickles");
    Model::new().with("model-q4.gguf", "").no_checkpoint("GGUF");
    let adapter = Model::new().with("adapter_config.json", "{}").shard("adapter_model.safetensors", &["a"]);
    let error = adapter.open().expect_err("a base is missing");
    assert_eq!((error.code(), error.exit_code()), ("adapter_without_base", 2), "{error}");
    assert!(error.to_string().contains("only together with its base") && error.hint().is_some(), "{error}");
    let beside = Model::new().with("adapter_config.json", "{}").shard("model.safetensors", &["a"]);
    beside.warned("also holds an adapter");
}

#[test]
fn configurations_that_cannot_be_read() {
    let with = |config: &[u8]| Model::new().shard("model.safetensors", &["a"]).with("config.json", config);
    for config in [b"".as_slice(), b"{", b"\xff", b"[1]", b"{'a':1}"] {
        with(config).refused("config.json", "bad_config", None, "JSON");
    }
    let long = with(b"{}");
    set_len(&long.path("config.json"), (16 << 20) + 1);
    long.refused("config.json", "bad_config", None, "over the limit");
    let folder = Model::new().shard("model.safetensors", &["a"]);
    fs::create_dir(folder.path("config.json")).unwrap();
    folder.refused("config.json", "bad_config", None, "a folder, not a file");
    let good = with(br#"{"architectures":["LlamaForCausalLM"],"tie_word_embeddings":false}"#).open().unwrap();
    let config = good.config().unwrap();
    assert_eq!(
        (config.architecture.as_deref(), config.tie_word_embeddings),
        (Some("LlamaForCausalLM"), Some(false))
    );
}

// ---- quantised models ----

#[test]
fn quantised_by_a_tensor_name() {
    let cases: &[(&[&str], Option<&str>)] = &[
        (&["l.qweight", "l.qzeros", "l.scales", "l.g_idx"], Some("l.qweight")),
        (&["l.qzeros"], Some("l.qzeros")),
        (&["l.weight", "l.weight.absmax"], Some("l.weight.absmax")),
        (&["l.weight.quant_state.bitsandbytes__nf4"], Some("l.weight.quant_state.bitsandbytes__nf4")),
        (&["l.weight", "l.weight_scale"], Some("l.weight_scale")),
        (&["l.weight_scale_inv"], Some("l.weight_scale_inv")),
        (&["l.input_scale"], Some("l.input_scale")),
        (&["l.SCB"], Some("l.SCB")),
        (&["l.weight", "l.scales", "l.biases"], Some("l.scales")),
        (&["m.down_proj_blocks", "m.down_proj_scales"], Some("m.down_proj_scales")),
        (&["l.weight", "l.bias", "norm.scales", "rope.scale"], None),
    ];
    for (tensors, expected) in cases {
        let model = Model::new().shard("model.safetensors", tensors);
        let error = quantised(&model.open().unwrap());
        assert_eq!(error.as_ref().and_then(Error::tensor), *expected, "{tensors:?}");
        if let Some(error) = error {
            assert_eq!((error.code(), error.exit_code()), ("quantised", 3));
        }
    }
}

#[test]
fn quantised_by_the_configuration() {
    let config = r#"{"quantization_config":{"quant_method":"fp8"}}"#;
    let model = Model::new().shard("model.safetensors", &["a"]).with("config.json", config);
    let error = quantised(&model.open().unwrap()).unwrap();
    assert!(error.tensor().is_none() && error.to_string().contains("quantization_config: fp8"), "{error}");
    let json = rlmerge_core::shard::inspect(model.0.path()).unwrap();
    assert!(json["warnings"][0].as_str().unwrap().contains("cannot be merged"));
}

// ---- files that change ----

#[test]
fn changes_are_noticed() {
    let changed = |change: fn(&Path)| {
        let model = Model::new().shard("model.safetensors", &["a", "b"]);
        let checkpoint = model.open().unwrap();
        checkpoint.verify_unchanged().unwrap();
        change(&model.path("model.safetensors"));
        checkpoint.verify_unchanged().map_err(|e| {
            check(&e, "model.safetensors", "input_changed", None, "changed while it was being read");
            e.to_string()
        })
    };
    let shrunk = changed(|p| set_len(p, 9)).unwrap_err();
    assert!(shrunk.contains("shrank from") && shrunk.contains("to 9 bytes"), "{shrunk}");
    let grown = changed(|p| set_len(p, 900)).unwrap_err();
    assert!(grown.contains("grew from"), "{grown}");
    let touched = changed(|p| {
        let long_ago = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        fs::File::options().write(true).open(p).unwrap().set_modified(long_ago).unwrap();
    });
    assert!(touched.unwrap_err().contains("modification time"));
    let hidden = changed(|p| {
        let before = fs::metadata(p).unwrap().modified().unwrap();
        // Longer than the clock of any file system stands still.
        std::thread::sleep(Duration::from_millis(30));
        let file = fs::File::options().write(true).open(p).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", 100).unwrap();
        file.set_modified(before).unwrap();
    });
    assert!(hidden.unwrap_err().contains("status change time"));
    changed(|p| fs::remove_file(p).unwrap()).unwrap();
    changed(|p| {
        fs::write(p.with_extension("new"), "x").unwrap();
        fs::rename(p.with_extension("new"), p).unwrap();
    })
    .unwrap();
}
