//! Weighted sums of models: `linear` and `passthrough`.

use super::{Family, Program, Setup, WEIGHT};
use crate::error::Result;
use crate::plan::method::{ANY, BaseUse, Default, Memory, Method, Parameter, both};

/// Whether weights are divided by their sum.
const NORMALIZE: Parameter = both(
    "normalize",
    crate::plan::method::Kind::Flag,
    false,
    Default::Flag(true),
    "divide by the sum of the weights",
);

/// The rows of this family.
pub const METHODS: &[Method] = &[
    Method {
        name: "linear",
        aliases: &["average", "weighted_average", "soup"],
        title: "Weighted average",
        summary: "The weighted mean of the models.",
        formula: "θ = Σ wᵢ θᵢ / Σ wᵢ",
        paper: ("Wortsman et al., Model soups, ICML 2022", "https://arxiv.org/abs/2203.05482"),
        base: BaseUse::None,
        experts: (1, None),
        reads: 1,
        memory: Memory::Tile,
        seeded: false,
        program: linear,
        parameters: &[WEIGHT, NORMALIZE],
        ignored_in_mergekit: &[],
        modes: "mergekit requires a weight for each model; the numbers are the same.",
    },
    Method {
        name: "passthrough",
        aliases: &[],
        title: "Passthrough",
        summary: "Copies one model, byte for byte, or scales it.",
        formula: "θ = s θ₁",
        paper: ("mergekit", "https://github.com/arcee-ai/mergekit"),
        base: BaseUse::None,
        experts: (1, Some(1)),
        reads: 1,
        memory: Memory::Tile,
        seeded: false,
        program: passthrough,
        parameters: &[both("scale", ANY, false, Default::Number(1.0), "factor of every element")],
        ignored_in_mergekit: &[],
        modes: "The same in both.",
    },
];

/// One model times a factor; with factor 1, its bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scaled {
    /// Index among the models.
    pub model: usize,
    /// The factor.
    pub factor: f64,
}

/// `Σ wᵢ θᵢ / divisor`.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// Index among the models, and weight.
    pub experts: Vec<(usize, f64)>,
    /// The divisor.
    pub divisor: f64,
}

fn passthrough(setup: &Setup<'_>) -> Result<Program> {
    Ok(Program::Scaled(Scaled { model: setup.first(), factor: setup.settings.number("scale") }))
}

fn linear(setup: &Setup<'_>) -> Result<Program> {
    let weights = setup.settings.weights();
    let sum: f64 = weights.iter().sum();
    let normalize = setup.settings.flag("normalize");
    if normalize {
        setup.check_weight_sum()?;
    }
    Ok(weighted_sum(setup.first(), &weights, if normalize { sum } else { 1.0 }))
}

/// The weighted sum of models from number `first` on.
#[must_use]
pub fn weighted_sum(first: usize, weights: &[f64], divisor: f64) -> Program {
    let mut experts: Vec<(usize, f64)> =
        weights.iter().enumerate().map(|(i, w)| (first + i, *w)).filter(|(_, w)| *w != 0.0).collect();
    if experts.is_empty() {
        // Nothing has weight and nothing is divided: zeros, in the shape of the first model.
        experts.push((first, 0.0));
    }
    match experts[..] {
        [(model, weight)] if weight / divisor == 1.0 => Program::copy(model),
        _ => Program::Linear(Linear { experts, divisor }),
    }
}

impl Family for Scaled {
    fn models(&self) -> Vec<usize> {
        vec![self.model]
    }
}

impl Family for Linear {
    fn models(&self) -> Vec<usize> {
        self.experts.iter().map(|(model, _)| *model).collect()
    }
}
