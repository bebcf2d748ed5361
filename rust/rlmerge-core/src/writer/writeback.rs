//! The one call that the safe wrappers lack.
#![allow(unsafe_code, reason = "sync_file_range has no safe wrapper")]

use std::os::fd::{AsRawFd, BorrowedFd};

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
