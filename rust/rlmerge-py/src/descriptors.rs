//! Closed standard descriptors: the next file that is opened would get their numbers, and whatever somebody writes to
//! stderr would land in a shard.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd as _, IntoRawFd as _};

/// Opens `/dev/null` in the places of stdin, stdout and stderr that are closed, as Rust's own programs do at their
/// start.
pub fn fill() {
    // A new file gets the lowest free number.
    while let Ok(nowhere) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        if nowhere.as_raw_fd() > 2 {
            break;
        }
        // Kept for as long as the process lives.
        let _ = nowhere.into_raw_fd();
    }
}
