//! BLAKE3 of runs of bytes that are in files already, by all workers, at the speed of the disk.

use super::digest::{self, Part};
use super::observer::Observer;
use super::pass::{TileMap, Workers};
use crate::error::{Error, Result};
use crate::shard::Shard;
use crate::writer::StagedFile;

/// Bytes that are hashed at once: a power of two, so that the parts combine into the BLAKE3 of the whole.
const PART: u64 = 1 << 20;
/// Parts that are read ahead of each worker.
const READ_AHEAD: u64 = 4;

/// A file whose bytes are hashed.
pub trait Bytes: Sync {
    /// Reads the bytes from `begin` on into all of `out`.
    fn read(&self, begin: u64, out: &mut [u8]) -> Result<()>;

    /// Asks the system to have these bytes ready soon.
    fn read_ahead(&self, _begin: u64, _end: u64) {}
}

impl Bytes for Shard {
    fn read(&self, begin: u64, out: &mut [u8]) -> Result<()> {
        self.read_at(begin, out)
    }

    fn read_ahead(&self, begin: u64, end: u64) {
        self.prefetch(begin, end);
    }
}

impl Bytes for StagedFile {
    fn read(&self, begin: u64, out: &mut [u8]) -> Result<()> {
        self.read_all_at(begin, out)
    }
}

/// A run of bytes.
#[derive(Clone, Copy)]
pub struct Extent<'a> {
    /// The file.
    pub file: &'a dyn Bytes,
    /// Its first byte.
    pub begin: u64,
    /// Their number.
    pub len: u64,
}

/// What one worker made.
#[derive(Default)]
struct Hashed {
    buffer: Vec<u8>,
    /// Ordinal and part of each tile.
    parts: Vec<(u64, Part)>,
    failed: Vec<(usize, Error)>,
}

/// The BLAKE3 of each extent as hex, or why it could not be read. `seen` is told the bytes of each part.
///
/// # Errors
/// [`Error::Cancelled`].
pub fn hash(
    extents: &[Extent<'_>],
    workers: &Workers,
    observer: &Observer,
    seen: &(dyn Fn(u64) + Sync),
) -> Result<Vec<Result<String>>> {
    let map = TileMap::of(extents.iter().map(|e| e.len.div_ceil(PART).max(1)));
    let tiles = map.all();
    let gathered = workers.run(&map, tiles.clone(), observer, Hashed::default, |_, hashed, id, _| {
        let ahead = id.ordinal + READ_AHEAD * workers.count();
        if ahead < tiles.end {
            let next = map.find(ahead);
            let (extent, first) = (&extents[next.tensor], next.index * PART);
            extent.file.read_ahead(extent.begin + first, extent.begin + extent.len.min(first + PART));
        }
        let extent = &extents[id.tensor];
        let first = id.index * PART;
        let len = PART.min(extent.len - first);
        hashed.buffer.resize(len as usize, 0);
        match extent.file.read(extent.begin + first, &mut hashed.buffer) {
            Ok(()) => {
                hashed.parts.push((id.ordinal, digest::part(&hashed.buffer, first, extent.len <= PART)));
            }
            Err(error) => hashed.failed.push((id.tensor, error)),
        }
        seen(len);
        Ok(())
    })?;
    let mut parts = Vec::new();
    let mut errors: Vec<Option<Error>> = extents.iter().map(|_| None).collect();
    for hashed in gathered {
        parts.extend(hashed.parts);
        for (at, error) in hashed.failed {
            errors[at] = Some(error);
        }
    }
    parts.sort_unstable_by_key(|(ordinal, _)| *ordinal);
    let whole = |(at, error): (usize, Option<Error>)| {
        if let Some(error) = error {
            return Err(error);
        }
        let tiles = map.tiles(at..at + 1);
        let find = |ordinal: u64| parts.partition_point(|(o, _)| *o < ordinal);
        Ok(digest::whole(parts[find(tiles.start)..find(tiles.end)].iter().map(|(_, part)| part)))
    };
    Ok(errors.into_iter().enumerate().map(whole).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::tile::Work;
    use crate::kernel::{CHUNK, Level};

    struct Memory(Vec<u8>);

    impl Bytes for Memory {
        fn read(&self, begin: u64, out: &mut [u8]) -> Result<()> {
            let begin = begin as usize;
            let bytes = self.0.get(begin..begin + out.len());
            out.copy_from_slice(bytes.ok_or_else(|| Error::Internal { message: "beyond".into() })?);
            Ok(())
        }
    }

    #[test]
    fn extents_hash_as_a_whole() {
        let file = Memory((0..5_000_000u32).map(|i| (i % 251) as u8).collect());
        let workers = Workers::start(2, || Work::new(Level::choose(), 1, CHUNK)).unwrap();
        let ranges = [(0, 0), (5, 1), (3, 1 << 20), (1, (1 << 20) + 1), (7, 4_000_001), (4_999_999, 2)];
        let extents: Vec<Extent<'_>> =
            ranges.iter().map(|(begin, len)| Extent { file: &file, begin: *begin, len: *len }).collect();
        let hashes = hash(&extents, &workers, &Observer::default(), &|_| ()).unwrap();
        for ((begin, len), hash) in ranges.iter().zip(hashes) {
            match file.0.get(*begin as usize..(begin + len) as usize) {
                Some(bytes) => assert_eq!(hash.unwrap(), blake3::hash(bytes).to_hex().as_str()),
                None => assert!(hash.is_err()),
            }
        }
        assert!(hash(&[], &workers, &Observer::default(), &|_| ()).unwrap().is_empty());
    }
}
