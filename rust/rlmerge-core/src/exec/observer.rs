//! What the caller sees of a running merge, and how it stops one.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Progress counters and the cancel flag, shared between the caller and the workers.
#[derive(Debug, Default)]
pub struct Observer {
    cancelled: AtomicBool,
    bytes_done: AtomicU64,
    bytes_total: AtomicU64,
    tensors_done: AtomicU64,
    tensors_total: AtomicU64,
    kept: OnceLock<PathBuf>,
}

/// Progress at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Source bytes gone through, all passes counted.
    pub bytes_done: u64,
    /// Source bytes to go through.
    pub bytes_total: u64,
    /// Output tensors finished.
    pub tensors_done: u64,
    /// Output tensors.
    pub tensors_total: u64,
}

impl Observer {
    /// Asks the merge to stop; workers look once a tile.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether the merge was asked to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Progress now.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            bytes_done: self.bytes_done.load(Ordering::Relaxed),
            bytes_total: self.bytes_total.load(Ordering::Relaxed),
            tensors_done: self.tensors_done.load(Ordering::Relaxed),
            tensors_total: self.tensors_total.load(Ordering::Relaxed),
        }
    }

    /// The stage of a merge that failed, where what was done is kept for a later run.
    #[must_use]
    pub fn kept(&self) -> Option<&Path> {
        self.kept.get().map(PathBuf::as_path)
    }

    pub(super) fn keep(&self, stage: PathBuf) {
        // One observer watches one merge.
        let _ = self.kept.set(stage);
    }

    pub(super) fn begin(&self, bytes: u64, tensors: u64) {
        self.bytes_total.store(bytes, Ordering::Relaxed);
        self.tensors_total.store(tensors, Ordering::Relaxed);
    }

    pub(super) fn add_bytes(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_tensor(&self) {
        self.tensors_done.fetch_add(1, Ordering::Relaxed);
    }
}
