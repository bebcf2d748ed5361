//! L2 norms of the experts' deltas, for matching them before a merge.

use super::job::{Chunk, Job, Partial, Ties};
use crate::error::Result;
use crate::kernel::lanes::{self, Lanes};

/// One scan for the norm of each expert's delta from the first model.
pub struct NormsJob {
    experts: usize,
    norms: Option<Vec<f64>>,
}

impl NormsJob {
    /// For so many experts.
    pub fn new(experts: usize) -> Self {
        Self { experts, norms: None }
    }

    /// The norms, once they are learnt.
    pub fn into_norms(self) -> Vec<f64> {
        self.norms.unwrap_or_else(|| vec![0.0; self.experts])
    }
}

impl Job for NormsJob {
    fn needs_scan(&self) -> bool {
        self.norms.is_none()
    }

    fn partial(&self) -> Partial {
        Partial::with_lanes(self.experts)
    }

    fn scan(&self, chunk: &mut Chunk<'_>, partial: &mut Partial) {
        for (at, lanes) in partial.lanes.iter_mut().enumerate() {
            let (base, expert) = (&chunk.values[0], &chunk.values[at + 1]);
            let delta = chunk.scratch.delta(at, chunk.len);
            expert.delta(chunk.level, base, delta);
            lanes::add_squares_wide(chunk.level, delta, lanes);
        }
    }

    fn learn(&mut self, partial: Partial, _scope: &str) -> Result<()> {
        self.norms = Some(partial.sums().into_iter().map(f64::sqrt).collect());
        Ok(())
    }

    fn apply(&self, chunk: &mut Chunk<'_>, _ties: &mut [Ties], _squares: &mut [Lanes]) {
        chunk.scratch.out[..chunk.len].fill(0.0);
    }
}
