//! Strict parser of one safetensors header.
//!
//! Accepts nothing that the reference implementation refuses. Refuses more: duplicate keys anywhere,
//! ranks over [`MAX_RANK`], over [`MAX_TENSORS`] tensors, and the two odd spellings that serde's derived
//! code lets through (an entry as a list, a dtype as an object).
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::entry::{Document, Entry};
use super::sniff::{SNIFFED, sniff};
use super::strict::{Context, Fault};
use crate::dtype::DType;
use crate::error::{Error, Result, escape};

/// Longest header, in bytes; the reference has the same limit.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Most tensors in one file or index: far over any real model, far under what a hostile one could hold.
pub const MAX_TENSORS: usize = 500_000;
/// Most dimensions of a tensor; NumPy has the same limit.
pub const MAX_RANK: usize = 64;

/// Bytes of memory that a byte of header can ask for, at most: small entries of the table and of those made from it.
const MEMORY: u64 = 20;

/// Bytes of the length before the header.
const PREFIX: u64 = 8;

/// The parsed header of one file.
#[derive(Debug, Clone)]
pub struct Header {
    /// Tensors in offset order; empty ones that share an offset keep the header's order.
    pub tensors: Vec<HeaderTensor>,
    /// `__metadata__`, if there is one.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Offset of the first tensor byte: the length of prefix and header.
    pub data_start: u64,
    /// BLAKE3 of the bytes before [`data_start`](Self::data_start), in hex.
    pub blake3: String,
    /// What is odd but readable.
    pub warnings: Vec<String>,
}

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderTensor {
    /// Any string: never a path, and only ever printed escaped.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions; none for a scalar.
    pub shape: Vec<u64>,
    /// Offset of its first byte in the file.
    pub begin: u64,
    /// Offset after its last byte in the file.
    pub end: u64,
}

/// Reads and checks the header of `file`, which holds `file_size` bytes. `path` is for messages.
///
/// # Errors
/// [`Error::WrongFormat`] when the first bytes are those of another format, [`Error::BadHeader`] for
/// every broken rule, [`Error::Io`] when reading fails.
pub fn read_header(file: &File, path: &Path, file_size: u64) -> Result<Header> {
    let bytes = read_bytes(file, path, file_size)?;
    let data_start = u64::try_from(bytes.len()).map_err(|_| too_large(path))?;
    let json = bytes.get(8..).unwrap_or_default();
    let text = std::str::from_utf8(json).map_err(|e| {
        let at = u64::try_from(e.valid_up_to()).ok().and_then(|at| at.checked_add(PREFIX));
        bad(path, "the header is not UTF-8", at)
    })?;
    let context = Context::new(text, PREFIX);
    let parsed = context.parse(Document(&context)).map_err(|fault| fault_in(path, fault))?;
    let mut warnings = parsed.warnings();
    warnings.extend(padding(text));
    let tensors = lay_out(parsed.entries, path, data_start, file_size)?;
    let blake3 = blake3::hash(&bytes).to_hex().to_string();
    Ok(Header { tensors, metadata: parsed.metadata, data_start, blake3, warnings })
}

/// Prefix and header as an owned buffer: nothing that is checked can change afterwards.
fn read_bytes(file: &File, path: &Path, file_size: u64) -> Result<Vec<u8>> {
    let mut first = [0; SNIFFED];
    let wanted = usize::try_from(file_size).unwrap_or(SNIFFED).min(SNIFFED);
    let first = first.get_mut(..wanted).unwrap_or_default();
    file.read_exact_at(first, 0).map_err(|e| unreadable(path, file_size, e))?;
    if first.is_empty() {
        return Err(Error::WrongFormat { path: path.to_path_buf(), found: "an empty file".into() });
    }
    let length = first.first_chunk().map(|prefix| u64::from_le_bytes(*prefix));
    let room = file_size.checked_sub(PREFIX);
    let plausible = matches!((length, room), (Some(n), Some(room)) if n <= MAX_HEADER_BYTES.min(room))
        && matches!(first.get(8), Some(b'{' | b' ' | b'\t' | b'\n' | b'\r'));
    if !plausible && let Some(found) = sniff(first) {
        return Err(Error::WrongFormat { path: path.to_path_buf(), found });
    }
    let (Some(length), Some(room)) = (length, room) else {
        return Err(bad(
            path,
            format!(
                "too short: {file_size} bytes, and a safetensors file begins with 8 bytes of header length"
            ),
            Some(0),
        ));
    };
    if length == 0 {
        return Err(bad(path, "the header length is 0", Some(0)));
    }
    if length > MAX_HEADER_BYTES {
        return Err(bad(
            path,
            format!("the header length is {length}, over the limit of {MAX_HEADER_BYTES} bytes"),
            Some(0),
        ));
    }
    if length > room {
        let missing = length.saturating_sub(room);
        return Err(bad(
            path,
            format!(
                "the header length is {length}, but only {room} bytes follow: too short by {missing} bytes"
            ),
            Some(0),
        ));
    }
    let total =
        length.checked_add(PREFIX).and_then(|n| usize::try_from(n).ok()).ok_or_else(|| too_large(path))?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(total).map_err(|_| Error::OutOfMemory { tried: length })?;
    ensure_room(length)?;
    bytes.resize(total, 0);
    file.read_exact_at(&mut bytes, 0).map_err(|e| unreadable(path, file_size, e))?;
    // A writer between the two reads could otherwise give a header of another length.
    if bytes.first_chunk() != Some(&length.to_le_bytes()) {
        return Err(Error::InputChanged { path: path.to_path_buf(), message: "header length".into() });
    }
    Ok(bytes)
}

/// Asks for the memory that parsing may take and gives it back: one failed allocation there would end the process.
fn ensure_room(length: u64) -> Result<()> {
    let tried = length.saturating_mul(MEMORY);
    let mut room: Vec<u8> = Vec::new();
    let refused = usize::try_from(tried).is_ok_and(|wanted| room.try_reserve_exact(wanted).is_err());
    std::hint::black_box(room.as_ptr());
    if refused { Err(Error::OutOfMemory { tried }) } else { Ok(()) }
}

fn unreadable(path: &Path, file_size: u64, e: std::io::Error) -> Error {
    if e.kind() == std::io::ErrorKind::UnexpectedEof {
        let message = format!("shrank from {file_size} bytes");
        return Error::InputChanged { path: path.to_path_buf(), message };
    }
    Error::io(path, "reading the header", e)
}

fn too_large(path: &Path) -> Error {
    bad(path, "the header does not fit this machine's address space", Some(0))
}

fn bad(path: &Path, message: impl Into<String>, offset: Option<u64>) -> Error {
    Error::BadHeader { path: path.to_path_buf(), message: message.into(), tensor: None, offset }
}

fn fault_in(path: &Path, fault: Fault) -> Error {
    let Fault { message, tensor, offset } = fault;
    Error::BadHeader { path: path.to_path_buf(), message: format!("bad header: {message}"), tensor, offset }
}

/// Warnings about what surrounds the JSON object.
fn padding(text: &str) -> Option<String> {
    let white = |c: char| matches!(c, ' ' | '\t' | '\n' | '\r');
    if text.starts_with(white) {
        return Some("the header does not begin with `{`, as the format demands".into());
    }
    let tail = text.trim_end_matches(' ');
    tail.ends_with(white).then(|| "the header is padded with bytes other than spaces".into())
}

/// Puts the tensors in offset order and checks that they cover the data section without hole or
/// overlap, to its last byte.
fn lay_out(
    mut entries: Vec<Entry>,
    path: &Path,
    data_start: u64,
    file_size: u64,
) -> Result<Vec<HeaderTensor>> {
    entries.sort_by_key(|e| (e.begin, e.end));
    let held = file_size.saturating_sub(data_start);
    let mut position = 0u64;
    let mut previous: Option<&Entry> = None;
    for entry in &entries {
        if entry.begin != position {
            return Err(misplaced(entry, previous, position, path));
        }
        if entry.end > held {
            let needed = entries.last().map_or(entry.end, |last| last.end.max(entry.end));
            let missing = needed.saturating_sub(held);
            let message = format!(
                "the file is too short by {missing} bytes: the header describes {needed} bytes of tensors, {held} are there"
            );
            let (tensor, offset) = (Some(entry.name.clone()), Some(file_size));
            return Err(Error::BadHeader { path: path.to_path_buf(), message, tensor, offset });
        }
        position = entry.end;
        previous = Some(entry);
    }
    if let Some(extra) = held.checked_sub(position).filter(|extra| *extra > 0) {
        let message = format!(
            "the file is too long by {extra} bytes: the header describes {position} bytes of tensors, {held} are there"
        );
        return Err(bad(path, message, data_start.checked_add(position)));
    }
    let absolute = |entry: Entry| {
        let begin = data_start.checked_add(entry.begin)?;
        let end = data_start.checked_add(entry.end)?;
        Some(HeaderTensor { name: entry.name, dtype: entry.dtype, shape: entry.shape, begin, end })
    };
    entries.into_iter().map(absolute).collect::<Option<_>>().ok_or_else(|| too_large(path))
}

/// The error for a tensor that does not begin where the one before it ends.
fn misplaced(entry: &Entry, previous: Option<&Entry>, position: u64, path: &Path) -> Error {
    let Entry { name, at, begin, end, .. } = entry;
    let message = match (begin.checked_sub(position), previous) {
        (Some(hole), Some(before)) => {
            format!(
                "hole of {hole} bytes between tensor `{}` and data offsets [{begin}, {end}]",
                escape(&before.name)
            )
        }
        (Some(hole), None) => format!("hole of {hole} bytes before data offsets [{begin}, {end}], the first"),
        (None, before) => {
            let before = before.map_or_else(String::new, |b| {
                format!("[{}, {}] of tensor `{}`", b.begin, b.end, escape(&b.name))
            });
            format!("data offsets [{begin}, {end}] overlap {before}")
        }
    };
    Error::BadHeader { path: path.to_path_buf(), message, tensor: Some(name.clone()), offset: *at }
}
