//! Fisher-weighted averages: one pass over models and statistics side by side.

use super::job::{Chunk, Job, Scope, Ties};
use crate::kernel::fisher;
use crate::kernel::lanes::Lanes;
use crate::plan::family::fisher::Fisher;

/// A Fisher-weighted average at work.
pub struct FisherJob {
    /// Factor of each model's statistics, its plain weight, and its floor.
    experts: Vec<(f64, f64, f64)>,
    weight_sum: f64,
}

impl FisherJob {
    /// For any tensor.
    pub fn new(plan: &Fisher, scope: Scope<'_>) -> Self {
        let norm =
            |file: usize| scope.statistic_norms.get(file).copied().filter(|n| plan.normalize && *n > 0.0);
        Self {
            experts: plan
                .experts
                .iter()
                .map(|e| (e.weight / norm(e.statistics).unwrap_or(1.0), e.weight, e.floor))
                .collect(),
            weight_sum: plan.experts.iter().map(|e| e.weight).sum(),
        }
    }
}

impl Job for FisherJob {
    fn apply(&self, chunk: &mut Chunk<'_>, _ties: &mut [Ties], squares: &mut [Lanes]) {
        let (level, len, count) = (chunk.level, chunk.len, self.experts.len());
        let (models, statistics) = chunk.values.split_at(count);
        for (values, squares) in models.iter().zip(squares) {
            values.add_squares(level, squares);
        }
        let scratch = &mut *chunk.scratch;
        let (sum, rest) = scratch.deltas.split_at_mut(scratch.stride);
        let (sum, plain) = (&mut sum[..len], &mut rest[..len]);
        let total = &mut scratch.total[..len];
        for (at, (factor, weight, floor)) in self.experts.iter().enumerate() {
            if at == 0 {
                statistics[0].start_fisher(level, *factor, *floor, total);
                sum.fill(0.0);
                plain.fill(0.0);
            } else {
                let (values, first) = (&models[at], &models[0]);
                values.join_fisher(
                    level,
                    first,
                    &statistics[at],
                    (*factor, *weight, *floor),
                    total,
                    sum,
                    plain,
                );
            }
        }
        fisher::divide(level, total, sum, plain, self.weight_sum, &mut scratch.out[..len]);
        models[0].add_change(level, 1.0, &mut scratch.out[..len]);
    }
}
