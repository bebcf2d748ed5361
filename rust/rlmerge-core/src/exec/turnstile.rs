//! Running totals in tile order, for workers that finish tiles in any order.
//!
//! A selection that keeps the first ties in flat index order needs, for each tile, the number of ties
//! before it. Workers take tiles in order, count their own tile's ties first, and pass through here in
//! tile order; since each waits only for tiles that were taken earlier, nobody waits for ever.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};

/// How often a waiting worker looks whether the merge was given up.
const LOOK: Duration = Duration::from_millis(20);

/// The running totals.
pub struct Turnstile {
    state: Mutex<(u64, Vec<u64>)>,
    passed: Condvar,
}

impl Turnstile {
    /// Totals of `width` numbers, starting with the tile of ordinal `first`.
    pub fn new(first: u64, width: usize) -> Self {
        Self { state: Mutex::new((first, vec![0; width])), passed: Condvar::new() }
    }

    /// Waits for all tiles before `tile`, and does something before any later one may.
    pub fn in_turn(&self, tile: u64, given_up: &dyn Fn() -> bool, action: impl FnOnce()) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.0 != tile {
            if given_up() {
                return Err(Error::Cancelled);
            }
            state = self.passed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        action();
        state.0 += 1;
        drop(state);
        self.passed.notify_all();
        Ok(())
    }

    /// Waits for all tiles before `tile`, adds its counts, and returns the totals before it.
    pub fn pass(&self, tile: u64, counts: &[u64], given_up: &dyn Fn() -> bool) -> Result<Vec<u64>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.0 != tile {
            if given_up() {
                return Err(Error::Cancelled);
            }
            state = self.passed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        let before = state.1.clone();
        state.0 += 1;
        for (total, count) in state.1.iter_mut().zip(counts) {
            *total += count;
        }
        drop(state);
        self.passed.notify_all();
        Ok(before)
    }
}
