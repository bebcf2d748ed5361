//! Which job does the work of which program.

use super::job::{Job, Scope};
use super::{deltas, fisher, linear, neuromerging, regmean, resmerge, slerp};
use crate::plan::family::Program;

/// The program at work on a scope.
pub fn job<'p>(program: &'p Program, scope: Scope<'_>) -> Box<dyn Job + 'p> {
    match program {
        Program::Scaled(plan) => Box::new(linear::LinearJob { weights: vec![plan.factor], divisor: 1.0 }),
        Program::Linear(plan) => Box::new(linear::LinearJob {
            weights: plan.experts.iter().map(|(_, w)| *w).collect(),
            divisor: plan.divisor,
        }),
        Program::Fisher(plan) => Box::new(fisher::FisherJob::new(plan, scope)),
        Program::ResMerge(plan) => Box::new(resmerge::ResMergeJob::new(plan, scope)),
        Program::NeuroMerging(plan) => Box::new(neuromerging::NeuroMergingJob::new(plan, scope)),
        Program::RegMean(plan) => Box::new(regmean::RegMeanJob::new(plan, scope)),
        Program::Slerp(plan) => Box::new(slerp::SlerpJob::new(*plan)),
        Program::Deltas(plan) => Box::new(deltas::DeltasJob::new(plan, scope)),
    }
}
