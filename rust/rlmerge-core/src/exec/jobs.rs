//! Which job does the work of which program.

use super::job::{Job, Scope};
use super::{deltas, linear, masks, ram, slerp};
use crate::plan::family::Program;

/// The program at work on a scope.
pub fn job<'p>(program: &'p Program, scope: Scope<'_>) -> Box<dyn Job + 'p> {
    match program {
        Program::Scaled(plan) => Box::new(linear::LinearJob { weights: vec![plan.factor], divisor: 1.0 }),
        Program::Linear(plan) => Box::new(linear::LinearJob {
            weights: plan.experts.iter().map(|(_, w)| *w).collect(),
            divisor: plan.divisor,
        }),
        Program::Slerp(plan) => Box::new(slerp::SlerpJob::new(*plan)),
        Program::Ram(plan) => Box::new(ram::RamJob::new(plan)),
        Program::Tall(plan) => Box::new(masks::TallJob::new(plan, scope)),
        Program::Emr(plan) => Box::new(masks::EmrJob::new(plan)),
        Program::Expand(plan) => Box::new(masks::ExpandJob::new(plan, scope)),
        Program::Deltas(plan) => Box::new(deltas::DeltasJob::new(plan, scope)),
    }
}
