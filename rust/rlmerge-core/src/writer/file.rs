//! One file of an output, written at any offset from any thread.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate, ftruncate};
use rustix::io::{Errno, pread, pwrite, retry_on_intr};

use super::{space, sync, writeback};
use crate::error::{Error, Result};
use crate::plan::recipe::Durability;

/// Bytes that the disk is waited for at once: a fraction of a second on slow disks.
const SETTLED_AT_ONCE: u64 = 16 << 20;

/// A file in a [`Stage`](super::Stage), of a length known beforehand.
#[derive(Debug)]
pub struct StagedFile {
    fd: OwnedFd,
    /// Where it will be after the commit: the path that errors name.
    path: PathBuf,
    len: u64,
    written: AtomicU64,
    durability: Durability,
    state: Arc<State>,
}

/// How far a file has come; shared with its stage, which publishes finished files only.
#[derive(Debug, Default)]
pub(super) struct State(AtomicU8);

impl State {
    const OPEN: u8 = 0;
    const FINISHED: u8 = 1;
    const LOST: u8 = 2;

    pub fn is_finished(&self) -> bool {
        self.0.load(Relaxed) == Self::FINISHED
    }
}

impl StagedFile {
    /// Takes over a new, empty file and reserves its bytes, so that a full disk shows now.
    pub(super) fn reserve(
        fd: OwnedFd,
        path: PathBuf,
        len: u64,
        durability: Durability,
        state: Arc<State>,
    ) -> Result<Self> {
        let file = Self { fd, path, len, written: AtomicU64::new(0), durability, state };
        if len == 0 {
            return Ok(file);
        }
        match retry_on_intr(|| fallocate(&file.fd, FallocateFlags::empty(), 0, len)) {
            Ok(()) => Ok(file),
            // Nothing can be reserved here; the size still shows a file size limit.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                retry_on_intr(|| ftruncate(&file.fd, len))
                    .map_err(|e| file.refused("setting the length", len, e))?;
                Ok(file)
            }
            Err(e) => Err(file.refused("reserving space", len, e)),
        }
    }

    /// Writes all of `bytes` at `offset`. Ranges written at the same time must not overlap.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`]; [`Error::Internal`] beyond the length or after
    /// [`finish`](Self::finish).
    pub fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(self.bug(format!("{} bytes at {offset} end beyond {}", bytes.len(), self.len)));
        }
        if self.state.0.load(Relaxed) != State::OPEN {
            return Err(self.bug("written after it was finished".into()));
        }
        let (mut rest, mut at) = (bytes, offset);
        while !rest.is_empty() {
            let n = match retry_on_intr(|| pwrite(&self.fd, rest, at)) {
                Ok(0) => return Err(Error::io(&self.path, "writing", std::io::ErrorKind::WriteZero)),
                Ok(n) => n,
                Err(e) => return Err(self.refused("writing", rest.len() as u64, e)),
            };
            rest = &rest[n..];
            at += n as u64;
        }
        self.written.fetch_add(bytes.len() as u64, Relaxed);
        Ok(())
    }

    /// Counts bytes as written that an earlier run wrote, and that were found to be what it said.
    pub fn reuse(&self, bytes: u64) {
        self.written.fetch_add(bytes, Relaxed);
    }

    /// Reads the bytes from `offset` on into all of `out`; only of a file that was [reopened](super::Stage::reopen).
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn read_all_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < out.len() {
            match retry_on_intr(|| pread(&self.fd, &mut out[done..], offset + done as u64)) {
                Ok(0) => return Err(Error::io(&self.path, "reading", std::io::ErrorKind::UnexpectedEof)),
                Ok(n) => done += n,
                Err(e) => return Err(Error::io(&self.path, "reading", e)),
            }
        }
        Ok(())
    }

    /// Lets the disk begin with a range that is written, while the next one is computed. Only a
    /// hint: errors show in [`finish`](Self::finish). Without durability nobody waits for the disk, so nothing.
    pub fn start_writeback(&self, offset: u64, len: u64) {
        if self.durability != Durability::None {
            writeback::start(self.fd.as_fd(), offset, len);
        }
    }

    /// Waits for the disk to have the file's bytes, a part at a time, and asks `go_on` before each part: fsync
    /// alone would keep an interrupted merge waiting for seconds. [`finish`](Self::finish) is still needed.
    /// Without durability it waits for nothing.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when `go_on` says no; [`Error::Io`] when a part cannot be written, and then the
    /// file can no longer be finished.
    pub fn settle(&self, go_on: impl Fn() -> bool) -> Result<()> {
        let mut offset = if self.durability == Durability::None { self.len } else { 0 };
        while offset < self.len {
            if !go_on() {
                return Err(Error::Cancelled);
            }
            let part = SETTLED_AT_ONCE.min(self.len - offset);
            if let Err(errno) = writeback::settle(self.fd.as_fd(), offset, part) {
                self.state.0.store(State::LOST, Relaxed);
                return Err(self.refused("writing to the disk", 0, errno));
            }
            offset += part;
        }
        Ok(())
    }

    /// Ends the file, and makes it durable if that was asked for. Once it failed it fails for ever: after a failed
    /// fsync the system may have dropped the bytes and call the next one a success.
    ///
    /// # Errors
    /// [`Error::Io`] when the bytes did not reach the disk; [`Error::Internal`] when fewer were
    /// written than planned: reserved space without data would look like a whole file.
    pub fn finish(&self) -> Result<()> {
        let written = self.written.load(Relaxed);
        if written < self.len {
            return Err(self.bug(format!("only {written} of {} bytes were written", self.len)));
        }
        // Lost until proven durable, so that a second call cannot find the file open again.
        match self.state.0.swap(State::LOST, Relaxed) {
            State::OPEN if self.durability == Durability::None => {}
            State::OPEN => sync::file(&self.fd).map_err(|e| self.refused("fsync", 0, e))?,
            State::FINISHED => {}
            _ => return Err(Error::io(&self.path, "fsync", Errno::IO)),
        }
        writeback::close_one(self.fd.as_fd()).map_err(|e| self.refused("closing the file", 0, e))?;
        self.state.0.store(State::FINISHED, Relaxed);
        Ok(())
    }

    /// Lets go of the memory that holds the file's bytes, so that who reads it asks the disk. Only a hint.
    pub fn forget(&self) {
        let _ = fadvise(&self.fd, 0, None, Advice::DontNeed);
    }

    fn refused(&self, action: &'static str, needed: u64, errno: Errno) -> Error {
        space::refused(&self.path, action, needed, &self.fd, errno)
    }

    fn bug(&self, what: String) -> Error {
        Error::Internal { message: format!("output file {}: {what}", self.path.display()) }
    }
}
