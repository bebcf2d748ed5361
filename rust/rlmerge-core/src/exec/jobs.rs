//! Which job does the work of which program.

use super::job::{Job, Scope};
use super::{deltas, element, linear, slerp};
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
        Program::Element(plan) => element::job(*plan, scope),
        Program::Deltas(plan) => Box::new(deltas::DeltasJob::new(plan, scope)),
    }
}
