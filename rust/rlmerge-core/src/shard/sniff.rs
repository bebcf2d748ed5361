//! What a file is that is not a safetensors file, told from its first bytes.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

/// How many first bytes are worth looking at.
pub(super) const SNIFFED: usize = 512;

/// Signatures of formats that people hand in by mistake.
const SIGNATURES: &[(&[u8], &str)] = &[
    (b"GGUF", "a GGUF file (llama.cpp)"),
    (b"GGML", "a GGML file (llama.cpp)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x93NUMPY", "a NumPy array file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"version https://git-lfs", "a git-lfs pointer: the file itself was not downloaded (`git lfs pull`)"),
    (b"%PDF", "a PDF file"),
    (b"\x7fELF", "an ELF binary"),
];

/// Names the format of a file by its first bytes, if they are of a known one.
pub(super) fn sniff(first: &[u8]) -> Option<String> {
    // A damaged safetensors file must not be taken for something else by its header length.
    if first.get(4..9) == Some(b"\0\0\0\0{") {
        return None;
    }
    if let Some((_, name)) = SIGNATURES.iter().find(|(signature, _)| first.starts_with(signature)) {
        return Some((*name).to_owned());
    }
    if first.starts_with(b"PK\x03\x04") {
        let torch = first.windows(8).any(|w| w == b"data.pkl");
        let found = if torch { "a PyTorch archive (zip with a pickle)" } else { "a zip archive" };
        return Some(found.to_owned());
    }
    if matches!(first, [0x80, 2..=5, ..]) {
        return Some("a Python pickle (PyTorch before 1.6)".to_owned());
    }
    text(first)
}

/// Names a text, such as the page that a server sent instead of the file.
fn text(first: &[u8]) -> Option<String> {
    let valid = match std::str::from_utf8(first) {
        Ok(_) => first.len(),
        // The first bytes may end inside a character.
        Err(e) if e.error_len().is_none() => e.valid_up_to(),
        Err(_) => return None,
    };
    let control = |b: &u8| b.is_ascii_control() && !matches!(b, b'\t' | b'\n' | b'\r');
    if valid < 4 || first.iter().any(control) {
        return None;
    }
    let start = first.trim_ascii_start().to_ascii_lowercase();
    if start.starts_with(b"<!doctype html") || start.starts_with(b"<html") {
        return Some("an HTML page: the download gave a web page instead of the file".to_owned());
    }
    if start.starts_with(b"<?xml") {
        return Some("an XML text".to_owned());
    }
    if start.starts_with(b"{") || start.starts_with(b"[") {
        return Some("a JSON text".to_owned());
    }
    let line: String =
        String::from_utf8_lossy(first).lines().next().unwrap_or_default().chars().take(60).collect();
    Some(format!("a text that begins `{}`", crate::error::escape(&line)))
}
