//! ResMerge: each expert's delta without its largest singular component, merged on the sphere.

use super::{Family, LAMBDA, Passes, Program, Setup};
use crate::error::{Error, Result};
use crate::plan::PlannedTensor;
use crate::plan::method::{BaseUse, Default, Kind, Memory, Method, both};
use crate::plan::role::Role;

const EXPONENT: Kind = Kind::Number { low: 0.0, high: f64::INFINITY, open: false };

/// The rows of this family.
pub const METHODS: &[Method] = &[Method {
    name: "resmerge",
    aliases: &["res_merge"],
    title: "ResMerge",
    summary: "Splits the largest singular component off each delta, merges what remains as directions on a sphere, and adds the components back lightly.",
    formula: "δᵢ = Hᵢ + Rᵢ, Hᵢ = σuvᵀ its largest singular component; q = norm(Σ Rᵢ/‖Rᵢ‖), c = mean cos(Rᵢ, q); B = c^β · mean‖Rᵢ‖ · q, or mean Rᵢ where c ≤ 1/√T; β = β_max − (β_max − β_min)·½((s̄+1)/2 + (c+1)/2), s̄ = mean cos(Rᵢ, Rⱼ); θ = θ₀ + λ (B + ρ · mean⁺cos(Hᵢ, Hⱼ) · ‖B‖ · norm(Σ Hᵢ))",
    paper: (
        "ResMerge: merging experts trained by reinforcement learning through residuals, 2026",
        "https://arxiv.org/abs/2606.02252",
    ),
    base: BaseUse::Required,
    experts: (2, None),
    reads: 1,
    memory: Memory::Row,
    seeded: false,
    program,
    parameters: &[
        both("beta_min", EXPONENT, false, Default::Number(0.7), "β where the experts' residuals agree fully"),
        both(
            "beta_max",
            EXPONENT,
            false,
            Default::Number(1.0),
            "β where they do not, and outside of attention and feed-forward matrices",
        ),
        both(
            "head_ratio_budget",
            EXPONENT,
            false,
            Default::Number(0.2),
            "ρ: how much of the components comes back, relative to the merged residual, when they agree",
        ),
        LAMBDA,
        both(
            "looks",
            Kind::Integer { low: 1, high: 64 },
            false,
            Default::Integer(3),
            "most looks at a tensor of several tiles for its largest component; tensors of one tile take up to 40, which cost no reading",
        ),
    ],
    ignored_in_mergekit: &[],
    modes: "mergekit has no such method; the numbers are the same.",
}];

/// ResMerge.
#[derive(Debug, Clone, PartialEq)]
pub struct ResMerge {
    /// Number of experts; the base is model 0 and they follow.
    pub experts: usize,
    /// Exponent at full agreement.
    pub beta_min: f64,
    /// Exponent without agreement.
    pub beta_max: f64,
    /// Share of the components that comes back.
    pub budget: f64,
    /// Factor of the merged delta.
    pub lambda: f64,
    /// Most looks at large tensors for their components.
    pub looks: u32,
}

/// What a tensor gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// The mean of the deltas.
    Mean,
    /// Components split off; with `scored`, agreement counts towards the exponent.
    Split {
        /// Whether it belongs to attention or feed-forward.
        scored: bool,
    },
}

impl ResMerge {
    /// Vectors, embeddings, heads, norms and routers are averaged, as the authors do, routers by this project's rule. A
    /// matrix with a side of 1 is a vector: nothing would be left of it.
    #[must_use]
    pub fn treatment(tensor: &PlannedTensor) -> Treatment {
        match (Role::of(&tensor.name), tensor.matrix) {
            (Role::Embedding | Role::Head | Role::Norm | Role::Bias | Role::Router, _) | (_, None) => {
                Treatment::Mean
            }
            (_, Some(m)) if m.rows < 2 || m.columns < 2 => Treatment::Mean,
            (role, Some(_)) => {
                Treatment::Split { scored: matches!(role, Role::Attention | Role::FeedForward) }
            }
        }
    }
}

fn program(setup: &Setup<'_>) -> Result<Program> {
    let settings = setup.settings;
    let (beta_min, beta_max) = (settings.number("beta_min"), settings.number("beta_max"));
    if beta_min > beta_max {
        return Err(Error::RecipeInvalid {
            message: format!("`beta_min` {beta_min} is above `beta_max` {beta_max}"),
        });
    }
    Ok(Program::ResMerge(ResMerge {
        experts: setup.experts(),
        beta_min,
        beta_max,
        budget: settings.number("head_ratio_budget"),
        lambda: settings.number("lambda"),
        looks: settings.number("looks") as u32,
    }))
}

impl Family for ResMerge {
    fn models(&self) -> Vec<usize> {
        (0..=self.experts).collect()
    }

    fn passes(&self) -> Passes {
        Passes { scans: self.looks + 1, whole_model: false }
    }

    fn passes_of(&self, tensor: &PlannedTensor) -> Passes {
        match Self::treatment(tensor) {
            Treatment::Mean => Passes { scans: 0, whole_model: false },
            Treatment::Split { .. } => self.passes(),
        }
    }

    fn group(&self, tensor: &PlannedTensor) -> u64 {
        match (Self::treatment(tensor), tensor.matrix) {
            (Treatment::Split { .. }, Some(m)) => m.columns,
            _ => 1,
        }
    }

    fn memory(&self, tensor: &PlannedTensor) -> (u64, u64) {
        let Some(m) = tensor.matrix.filter(|_| Self::treatment(tensor) != Treatment::Mean) else {
            return (0, 0);
        };
        let experts = self.experts as u64;
        let columns = experts * m.columns;
        let sums = crate::plan::TILE_ELEMENTS / (m.rows * m.columns).max(1) + 2;
        (m.batch * columns * BYTES_A_COLUMN, sums.min(m.batch) * columns * 4 * 8)
    }
}

/// What the search for a component keeps for each column of a matrix; the plan counts it but does not know kernels.
const BYTES_A_COLUMN: u64 = 8 * 4 * (2 * 3 + 3);
