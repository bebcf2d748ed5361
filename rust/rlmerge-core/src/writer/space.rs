//! Room on the file system, and what to say when there is none.

use std::io;
use std::path::Path;

use rustix::fd::AsFd;
use rustix::fs::{StatVfs, fstatvfs};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::error::{Error, Result};

/// Refuses when fewer than `needed` bytes and one per cent (for metadata) are free at `dir`.
pub(super) fn require(output: &Path, dir: impl AsFd, needed: u64) -> Result<()> {
    let fs = fstatvfs(dir).map_err(|e| Error::io(output, "asking for free space", e))?;
    // Some network and user-space file systems do not know their size, and say zero.
    if fs.f_blocks == 0 {
        return Ok(());
    }
    let (needed, free) = (needed.saturating_add(needed / 100), free(&fs));
    if needed > free {
        return Err(Error::NoSpace { path: output.to_path_buf(), needed, free });
    }
    Ok(())
}

/// Refuses a file over `RLIMIT_FSIZE`: writing it would end the process with SIGXFSZ.
pub(super) fn require_file_size(output: &Path, biggest: u64) -> Result<()> {
    match getrlimit(Resource::Fsize).current {
        Some(limit) if limit < biggest => Err(Error::io(
            output,
            "creating its biggest file under this process's file size limit",
            Errno::FBIG,
        )),
        _ => Ok(()),
    }
}

/// The error for a refused creation, allocation or write of `needed` more bytes.
///
/// "No space left" has several meanings: bytes, inodes, a quota. Only the first is
/// [`Error::NoSpace`].
pub(super) fn refused(path: &Path, action: &'static str, needed: u64, fd: impl AsFd, errno: Errno) -> Error {
    if errno == Errno::NOSPC
        && let Ok(fs) = fstatvfs(fd)
    {
        if needed > free(&fs) {
            return Error::NoSpace { path: path.to_path_buf(), needed, free: free(&fs) };
        }
        if fs.f_files > 0 && fs.f_favail == 0 {
            let inodes = io::Error::new(io::ErrorKind::StorageFull, "the file system has no free inodes");
            return Error::io(path, action, inodes);
        }
    }
    Error::io(path, action, errno)
}

fn free(fs: &StatVfs) -> u64 {
    fs.f_bavail.saturating_mul(fs.f_frsize)
}
