//! A file mapped read-only, and the advice to the operating system that keeps resident memory
//! bounded while it is read.
#![allow(
    unsafe_code,
    reason = "mapping a file and dropping its pages are unsafe by nature; nothing else here is"
)]

use std::fs::File;
use std::ptr::NonNull;

use memmap2::{Advice, Mmap, UncheckedAdvice};

use super::guard::Guard;

/// Bytes around a fault that Linux maps together (`fault_around_bytes`, 64 KiB by default). Without
/// counting them in, each tile would leave pages of its neighbours mapped behind the reading head.
const FAULT_AROUND: u64 = 1 << 16;

/// A whole file, mapped read-only.
///
/// Pages that are lost because the file was truncated read as zeros, and [`is_intact`](Self::is_intact) says so
/// afterwards: whoever reads must ask before using what was read.
#[derive(Debug)]
pub struct Mapping {
    /// `None` for an empty file: the system refuses to map nothing. Dropped before the map that it guards.
    guard: Option<Guard>,
    map: Option<Mmap>,
}

impl Mapping {
    /// Maps the whole of `file` and says that it will be read in order. Reads nothing.
    pub(super) fn new(file: &File) -> std::io::Result<Self> {
        if file.metadata()?.len() == 0 {
            return Ok(Self { guard: None, map: None });
        }
        // SAFETY: the mapping is read-only. A `&[u8]` into it assumes that nobody writes to the file
        // meanwhile, which no process can enforce: `Shard::verify_unchanged` finds such writers before
        // anything is published, and no decision is ever taken twice on the same bytes (headers are
        // parsed from owned copies), so other bytes give other numbers and nothing worse.
        let map = unsafe { Mmap::map(file)? };
        let start = NonNull::from(&map[..]).cast();
        let guard = Guard::new(start, map.len()).ok_or(std::io::ErrorKind::ResourceBusy)?;
        // Advice only: a file system may not care, and reading works all the same.
        let _ = map.advise(Advice::Sequential);
        Ok(Self { guard: Some(guard), map: Some(map) })
    }

    /// Whether every page that was read so far was there; one that was not has shown zeros.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.guard.as_ref().is_none_or(|guard| !guard.lost())
    }

    /// Length of the mapping in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.map.as_ref().map_or(0, |m| m.len() as u64)
    }

    /// Whether the file was empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes from offset `begin` to `end` of the file.
    ///
    /// # Panics
    /// If the range is not inside the file as it was when it was mapped: headers are checked against
    /// the file's size, so that is a bug.
    #[must_use]
    pub fn bytes(&self, begin: u64, end: u64) -> &[u8] {
        assert!(begin <= end && end <= self.len(), "bytes {begin}..{end} of a mapping of {}", self.len());
        self.map.as_ref().map_or(&[], |m| &m[begin as usize..end as usize])
    }

    /// Gives the pages that hold `begin..end` back to the system, and the neighbours that a fault at an
    /// edge may have mapped with them: whoever still reads those only faults them in again from the page
    /// cache.
    pub fn release(&self, begin: u64, end: u64) {
        let (begin, end) = (begin - begin % FAULT_AROUND, end.next_multiple_of(FAULT_AROUND));
        if let Some((map, begin, len)) = self.clipped(begin, end) {
            // SAFETY: the mapping is file-backed and read-only, so its dropped pages come back with the
            // file's contents at the next access: no byte that a `&[u8]` shows changes.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, begin, len) };
        }
    }

    /// Reads `begin..end` into memory now. `false` when the file no longer holds the whole range, when
    /// it cannot be read, or when the system (Linux before 5.14) has no such call.
    #[must_use]
    pub fn populate(&self, begin: u64, end: u64) -> bool {
        match self.clipped(begin, end) {
            Some((map, begin, len)) => map.advise_range(Advice::PopulateRead, begin, len).is_ok(),
            None => true,
        }
    }

    /// The part of a range that lies in the file, as offset and length; `None` when that is nothing.
    fn clipped(&self, begin: u64, end: u64) -> Option<(&Mmap, usize, usize)> {
        let end = end.min(self.len());
        let map = self.map.as_ref().filter(|_| begin < end)?;
        Some((map, begin as usize, (end - begin) as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn mapped(contents: &[u8]) -> (tempfile::NamedTempFile, Mapping) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(contents).unwrap();
        let mapping = Mapping::new(file.as_file()).unwrap();
        (file, mapping)
    }

    #[test]
    fn an_empty_file_maps_to_no_bytes() {
        let (_file, mapping) = mapped(b"");
        assert!(mapping.is_empty() && mapping.bytes(0, 0).is_empty() && mapping.populate(0, 0));
        mapping.release(0, 1);
    }

    #[test]
    fn released_pages_come_back() {
        let contents: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        let (_file, mapping) = mapped(&contents);
        assert!(mapping.populate(1, 99_999) && mapping.populate(100_000, 200_000));
        mapping.release(4_097, 99_999);
        mapping.release(50_000, 10);
        assert!(mapping.bytes(0, 100_000) == contents && mapping.bytes(7, 7).is_empty());
    }

    #[test]
    fn a_truncated_file_cannot_be_populated() {
        let (file, mapping) = mapped(&[1; 100_000]);
        file.as_file().set_len(10).unwrap();
        assert!(!mapping.populate(50_000, 60_000) && mapping.populate(0, 10));
    }

    #[test]
    fn lost_pages_read_as_zeros_and_are_told() {
        let (file, mapping) = mapped(&[1; 100_000]);
        let (_other_file, other) = mapped(&[2; 100_000]);
        assert!(mapping.bytes(0, 100_000).iter().all(|b| *b == 1) && mapping.is_intact());
        mapping.release(0, 100_000);
        file.as_file().set_len(10).unwrap();
        // The rest of the last page that the file still has reads as zeros without a signal.
        assert_eq!(mapping.bytes(0, 11), [[1; 10].as_slice(), &[0]].concat());
        assert!(mapping.bytes(99_000, 99_010) == [0; 10] && !mapping.is_intact());
        assert!(mapping.bytes(50_000, 90_000).iter().all(|b| *b == 0));
        assert!(other.is_intact() && other.bytes(99_999, 100_000) == [2]);
        drop(mapping);
        let (_file, again) = mapped(&[3; 100_000]);
        assert!(again.is_intact() && again.bytes(70_000, 70_001) == [3], "a place in the table begins anew");
    }
}
