//! The one system call that the safe wrappers lack.
#![allow(unsafe_code, reason = "sync_file_range has no safe wrapper")]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Writes the dirty pages of a range and waits for them. Unlike [`start`] this consumes a write error of the
/// file, so an error must not be ignored: a later fsync may not report it again.
///
/// File systems that do not have the call wait in fsync instead.
pub(super) fn settle(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<(), Errno> {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
        return Ok(());
    };
    if len == 0 {
        return Ok(());
    }
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: takes integers only; `fd` is open for as long as it is borrowed.
    let done = unsafe { libc::sync_file_range(fd.as_raw_fd(), offset, len, flags) };
    if done == 0 {
        return Ok(());
    }
    match std::io::Error::last_os_error().raw_os_error().map(Errno::from_raw_os_error) {
        None | Some(Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP | Errno::SPIPE | Errno::INTR) => Ok(()),
        Some(errno) => Err(errno),
    }
}

/// Starts writing the dirty pages of a range, without waiting for them.
///
/// A hint: a range or file system that does not support it changes nothing.
pub(super) fn start(fd: BorrowedFd<'_>, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
        return;
    };
    // A length of zero would mean "to the end of the file".
    if len > 0 {
        // SAFETY: takes integers only; `fd` is open for as long as it is borrowed.
        let _ = unsafe { libc::sync_file_range(fd.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
    }
}
