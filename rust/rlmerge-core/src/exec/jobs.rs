//! Which job does the work of which program.

use super::job::{Job, Scope};
use super::{deltas, element, fisher, gram, linear, masks, neuromerging, ram, regmean, resmerge};
use crate::plan::family::Program;

/// The program at work on a scope.
pub fn job<'p>(program: &'p Program, scope: Scope<'_>) -> Box<dyn Job + 'p> {
    match program {
        Program::Scaled(plan) => Box::new(linear::LinearJob { weights: vec![plan.factor], divisor: 1.0 }),
        Program::Linear(plan) => Box::new(linear::LinearJob {
            weights: plan.experts.iter().map(|(_, w)| *w).collect(),
            divisor: plan.divisor,
        }),
        Program::Ram(plan) => Box::new(ram::RamJob::new(plan)),
        Program::Tall(plan) => Box::new(masks::TallJob::new(plan, scope)),
        Program::Emr(plan) => Box::new(masks::EmrJob::new(plan)),
        Program::Expand(plan) => Box::new(masks::ExpandJob::new(plan, scope)),
        Program::Element(plan) => element::job(*plan, scope),
        Program::Fisher(plan) => Box::new(fisher::FisherJob::new(plan, scope)),
        Program::ResMerge(plan) => Box::new(resmerge::ResMergeJob::new(plan, scope)),
        Program::NeuroMerging(plan) => Box::new(neuromerging::NeuroMergingJob::new(plan, scope)),
        Program::RegMean(plan) => Box::new(regmean::RegMeanJob::new(plan, scope)),
        Program::Deltas(plan) => Box::new(deltas::DeltasJob::new(plan, scope)),
        Program::Gram(plan) => Box::new(gram::GramJob::new(plan, scope)),
    }
}
