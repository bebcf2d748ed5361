//! Who works in a folder: advisory locks, which end with the process however it ends.
//!
//! A stage is locked by the run that fills it. Where locks do not exist (some network file systems) work goes on
//! without: an output is whole all the same, because the rename decides, and only the loser's time is lost.

use std::time::Duration;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::{Errno, retry_on_intr};

use super::target::folder_flags;

/// What came of asking for a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lock {
    /// It is ours until the folder is closed.
    Taken,
    /// Somebody living has it.
    Held,
    /// There are no locks here.
    Unsupported,
}

/// Takes the lock of a folder if nobody has it.
pub(super) fn take(dir: impl AsFd) -> Lock {
    ask(dir, FlockOperation::NonBlockingLockExclusive)
}

/// Whether somebody works in a folder. Those who only look do not get in each other's way.
pub(super) fn look(dir: impl AsFd) -> Lock {
    let found = ask(&dir, FlockOperation::NonBlockingLockShared);
    if found == Lock::Taken {
        let _ = flock(dir, FlockOperation::Unlock);
    }
    found
}

fn ask(dir: impl AsFd, operation: FlockOperation) -> Lock {
    match retry_on_intr(|| flock(&dir, operation)) {
        Ok(()) => Lock::Taken,
        Err(Errno::WOULDBLOCK) => Lock::Held,
        Err(_) => Lock::Unsupported,
    }
}

/// A moment in which no other run makes or takes a stage in the same folder.
#[derive(Debug)]
pub(super) struct Turn(Option<OwnedFd>);

impl Turn {
    /// Waits for the turn, but not for long: whoever runs rlmerge may hold a lock on this folder for reasons of
    /// their own (`flock FOLDER rlmerge …`).
    pub fn take(parent: impl AsFd) -> Self {
        const TRIES: u32 = 20;
        const PAUSE: Duration = Duration::from_millis(10);
        // An opening of its own: a lock belongs to that, and this one ends with it.
        let Ok(dir) = openat(parent, ".", folder_flags() | OFlags::NOFOLLOW, Mode::empty()) else {
            return Self(None);
        };
        for _ in 0..TRIES {
            match take(&dir) {
                Lock::Taken => return Self(Some(dir)),
                Lock::Held => std::thread::sleep(PAUSE),
                Lock::Unsupported => break,
            }
        }
        Self(None)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(dir) = &self.0 {
            // A process that was forked meanwhile has the same opening, so closing alone would not do.
            let _ = flock(dir, FlockOperation::Unlock);
        }
    }
}
