//! The system calls that the safe wrappers lack.
#![allow(
    unsafe_code,
    reason = "sync_file_range has no safe wrapper, and close none that says what went wrong"
)]

use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};

use rustix::io::{Errno, fcntl_dupfd_cloexec};

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

/// Closes a second descriptor of the file. Network file systems tell of some write errors only when one is closed, and
/// the first goes with its owner, who could tell nobody.
pub(super) fn close_one(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    // Without a free descriptor there is nothing to close.
    let Ok(second) = fcntl_dupfd_cloexec(fd, 0) else { return Ok(()) };
    // SAFETY: the number is of a descriptor that was made here, and that nobody owns any more.
    let done = unsafe { libc::close(second.into_raw_fd()) };
    if done == 0 {
        return Ok(());
    }
    match std::io::Error::last_os_error().raw_os_error().map(Errno::from_raw_os_error) {
        // Linux has closed it all the same.
        None | Some(Errno::INTR) => Ok(()),
        Some(errno) => Err(errno),
    }
}
