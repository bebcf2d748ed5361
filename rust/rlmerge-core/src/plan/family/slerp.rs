//! Spherical interpolation between two models.

use super::{Family, Passes, Program, Setup};
use crate::error::Result;
use crate::plan::method::{BaseUse, Default, Memory, Method, UNIT, split};

/// The rows of this family.
pub const METHODS: &[Method] = &[Method {
    name: "slerp",
    aliases: &[],
    title: "Spherical interpolation",
    summary: "Moves from the first model to the second along the arc between them, one angle for each tensor.",
    formula: "θ = sin((1−t)φ)/sin φ · θ₁ + sin(tφ)/sin φ · θ₂, cos φ = ⟨θ₁,θ₂⟩/(‖θ₁‖‖θ₂‖); a straight line where |cos φ| > 0.9995",
    paper: (
        "Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985",
        "https://doi.org/10.1145/325334.325242",
    ),
    base: BaseUse::Model,
    experts: (1, Some(2)),
    reads: 1,
    memory: Memory::Tile,
    seeded: false,
    program,
    parameters: &[split(
        "t",
        UNIT,
        false,
        (Default::Number(0.5), Default::Missing),
        "position between the first model (0; the base, if one is given) and the second (1)",
    )],
    ignored_in_mergekit: &[],
    modes: "mergekit requires t and treats a zero tensor as if its norm were one; otherwise a zero tensor is interpolated along a straight line.",
}];

/// The point at `t` on the arc from one model to another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slerp {
    /// Index of the model at t = 0.
    pub start: usize,
    /// Index of the model at t = 1.
    pub end: usize,
    /// Position on the arc.
    pub t: f64,
    /// mergekit's treatment of zero tensors.
    pub mergekit: bool,
}

fn program(setup: &Setup<'_>) -> Result<Program> {
    let t = setup.settings.number("t");
    Ok(if t == 0.0 {
        Program::copy(0)
    } else if t == 1.0 {
        Program::copy(1)
    } else {
        Program::Slerp(Slerp { start: 0, end: 1, t, mergekit: setup.mergekit() })
    })
}

impl Family for Slerp {
    fn models(&self) -> Vec<usize> {
        vec![self.start, self.end]
    }

    fn passes(&self) -> Passes {
        Passes { scans: 1, whole_model: false }
    }
}
