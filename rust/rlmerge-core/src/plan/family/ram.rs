//! Reinforced Agent Merging: elements that one expert alone changed are kept whole, those that several changed are
//! averaged over the experts that changed them.

use super::{Family, Passes, Program, Setup};
use crate::plan::method::{BaseUse, Default, Kind, Memory, Method, Parameter, both};

const EPSILON: Parameter = both(
    "epsilon",
    Kind::Number { low: 0.0, high: f64::MAX, open: false },
    false,
    Default::Number(1e-5),
    "magnitude of a delta up to which an element counts as unchanged",
);

const PAPER: (&str, &str) = (
    "Yuan et al., Behavior knowledge merge in reinforced agentic models, 2026",
    "https://arxiv.org/abs/2601.13572",
);

/// The rows of this family.
pub const METHODS: &[Method] = &[
    Method {
        name: "ram",
        aliases: &["reinforced_agent_merging"],
        title: "RAM",
        summary: "Keeps what one expert alone changed, and averages what several changed over those that changed it.",
        formula: "aᵢ = |δᵢ| > ε; c = Σ aᵢ; θ = θ₀ + Σ aᵢ δᵢ / max(c, 1)",
        paper: PAPER,
        base: BaseUse::Required,
        experts: (1, None),
        reads: 1,
        memory: Memory::Tile,
        seeded: false,
        program: |s| Ok(program(s, None)),
        parameters: &[EPSILON],
        ignored_in_mergekit: &[],
        modes: "the numbers are the same.",
    },
    Method {
        name: "ram_plus",
        aliases: &["ram+"],
        title: "RAM+",
        summary: "RAM, with what one expert alone changed scaled up by how much that expert overlaps with others, counted over the whole model.",
        formula: "aᵢ = |δᵢ| > ε; c = Σ aᵢ; ρᵢ = #(aᵢ, c>1) / #(aᵢ, c=1); λᵢ = 1 + (r−1)·min(1, ρᵢ); θ = θ₀ + Σ aᵢ δᵢ · (λᵢ where c=1, 1/c where c>1)",
        paper: PAPER,
        base: BaseUse::Required,
        experts: (1, None),
        reads: 2,
        memory: Memory::Tile,
        seeded: false,
        program: |s| {
            let scale = Scale { gain: s.settings.number("r") - 1.0, most: 1.0, whole_model: true };
            Ok(program(s, Some(scale)))
        },
        parameters: &[
            both(
                "r",
                Kind::Number { low: 1.0, high: f64::MAX, open: false },
                false,
                Default::Number(1.05),
                "factor of the unique elements of an expert that overlaps with others at least as often as not",
            ),
            EPSILON,
        ],
        ignored_in_mergekit: &[],
        modes: "mergekit has no such method (its `ramplus_tl` counts over each tensor and scales otherwise); the numbers are the same.",
    },
    Method {
        name: "ramplus_tl",
        aliases: &["ram_plus_tl"],
        title: "RAM+, tensor by tensor",
        summary: "mergekit's RAM+: overlaps are counted over each tensor, and the scale is capped otherwise.",
        formula: "aᵢ = |δᵢ| > ε; c = Σ aᵢ; ρᵢ = #(aᵢ, c>1) / #(aᵢ, c=1); λᵢ = 1 + r·min(ρᵢ, α); θ = θ₀ + Σ aᵢ δᵢ · (λᵢ where c=1, 1/c where c>1)",
        paper: PAPER,
        base: BaseUse::Required,
        experts: (1, None),
        reads: 1,
        memory: Memory::Tile,
        seeded: false,
        program: |s| {
            let (gain, most) = (s.settings.number("r"), s.settings.number("alpha"));
            Ok(program(s, Some(Scale { gain, most, whole_model: false })))
        },
        parameters: &[
            both(
                "r",
                Kind::Number { low: 0.0, high: f64::MAX, open: false },
                false,
                Default::Number(0.1),
                "how strongly the overlap of an expert scales its unique elements",
            ),
            both(
                "alpha",
                Kind::Number { low: 0.0, high: f64::MAX, open: false },
                false,
                Default::Number(0.2),
                "most overlap that counts",
            ),
            EPSILON,
        ],
        ignored_in_mergekit: &[],
        modes: "the numbers are the same.",
    },
];

/// How the unique elements of an expert are scaled: by `1 + gain · min(most, overlap / unique)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// Factor of the ratio.
    pub gain: f64,
    /// Most that counts of the ratio.
    pub most: f64,
    /// Whether elements are counted over the whole model instead of each tensor.
    pub whole_model: bool,
}

/// Reinforced Agent Merging.
#[derive(Debug, Clone, PartialEq)]
pub struct Ram {
    /// Number of experts; they follow the base, which is model 0.
    pub experts: usize,
    /// Magnitude up to which a delta is none.
    pub epsilon: f64,
    /// Scaling of unique elements.
    pub scale: Option<Scale>,
}

fn program(setup: &Setup<'_>, scale: Option<Scale>) -> Program {
    let (experts, epsilon) = (setup.experts(), setup.settings.number("epsilon"));
    // An expert without others shares nothing: everything that it changed is unique, with a scale of 1.
    if experts == 1 && epsilon == 0.0 {
        return Program::copy(1);
    }
    Program::Ram(Ram { experts, epsilon, scale: scale.filter(|s| s.gain != 0.0 && experts > 1) })
}

impl Family for Ram {
    fn models(&self) -> Vec<usize> {
        (0..=self.experts).collect()
    }

    fn passes(&self) -> Passes {
        Passes {
            scans: u32::from(self.scale.is_some()),
            whole_model: self.scale.is_some_and(|s| s.whole_model),
        }
    }
}
