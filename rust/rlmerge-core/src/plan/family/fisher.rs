//! Averages weighted element by element with Fisher information that the user brings.

use super::linear::weighted_sum;
use super::{Family, Program, Setup, Statistic};
use crate::error::{Error, Result};
use crate::plan::method::{BaseUse, Default, Kind, Memory, Method, Parameter, both};

/// Weight of a model where a negative one has no meaning.
pub const SHARE_OF_MODEL: Parameter = both(
    "weight",
    Kind::Number { low: 0.0, high: f64::INFINITY, open: false },
    true,
    Default::Number(1.0),
    "factor of the model's statistics; a model of weight 0 takes no part",
);

/// The rows of this family.
pub const METHODS: &[Method] = &[Method {
    name: "fisher",
    aliases: &["fisher_merging"],
    title: "Fisher-weighted average",
    summary: "Averages the models element by element, each weighted by its diagonal Fisher information, which the user brings.",
    formula: "θ = Σ cᵢ max(Fᵢ, ε) θᵢ / Σ cᵢ max(Fᵢ, ε); cᵢ = wᵢ / ‖Fᵢ‖₂ over the whole model, or wᵢ without `normalize`",
    paper: (
        "Matena and Raffel, Merging models with Fisher-weighted averaging, NeurIPS 2022",
        "https://arxiv.org/abs/2111.09832",
    ),
    base: BaseUse::None,
    experts: (1, None),
    reads: 1,
    memory: Memory::Tile,
    seeded: false,
    program,
    parameters: &[
        both(
            "fisher",
            Kind::Path,
            true,
            Default::Missing,
            "safetensors file or folder with the diagonal of the model's Fisher information: a tensor of the same name and shape for each tensor that is to be weighted",
        ),
        SHARE_OF_MODEL,
        both(
            "floor",
            Kind::Number { low: 0.0, high: f64::INFINITY, open: false },
            false,
            Default::Number(1e-6),
            "ε: smaller statistics count as this; where all are zero and the floor too, the plain weighted average",
        ),
        both(
            "normalize",
            Kind::Flag,
            false,
            Default::Flag(true),
            "divide each model's statistics by their norm over the whole model, as the authors' code does",
        ),
        both(
            "favor_target_model",
            Kind::Flag,
            false,
            Default::Flag(false),
            "the floor is for the first model alone, which then wins where no other has information (the authors' code)",
        ),
    ],
    ignored_in_mergekit: &[],
    modes: "mergekit has no such method; the numbers are the same.",
}];

/// A model of a Fisher-weighted average.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FisherExpert {
    /// Index among the models.
    pub model: usize,
    /// Index of its statistics, behind the models.
    pub statistics: usize,
    /// Its weight, above 0.
    pub weight: f64,
    /// Smallest value that its statistics count as.
    pub floor: f64,
}

/// A Fisher-weighted average.
#[derive(Debug, Clone, PartialEq)]
pub struct Fisher {
    /// The models that take part.
    pub experts: Vec<FisherExpert>,
    /// Whether statistics are divided by their norm over the model.
    pub normalize: bool,
}

fn program(setup: &Setup<'_>) -> Result<Program> {
    let settings = setup.settings;
    let floor = settings.number("floor");
    let favoured = settings.flag("favor_target_model");
    let weights = settings.weights();
    let experts: Vec<FisherExpert> = weights
        .iter()
        .enumerate()
        .filter(|(_, weight)| **weight != 0.0)
        .enumerate()
        .map(|(rank, (at, weight))| FisherExpert {
            model: at,
            statistics: weights.len() + at,
            weight: *weight,
            floor: if favoured && rank > 0 { 0.0 } else { floor },
        })
        .collect();
    match experts[..] {
        [] => Err(Error::ZeroWeightSum { method: settings.method.name.into(), sum: 0.0 }),
        [one] => Ok(Program::copy(one.model)),
        _ => Ok(Program::Fisher(Fisher { experts, normalize: settings.flag("normalize") })),
    }
}

impl Family for Fisher {
    fn models(&self) -> Vec<usize> {
        let models = self.experts.iter().map(|e| e.model);
        models.chain(self.experts.iter().map(|e| e.statistics)).collect()
    }

    fn statistic(&self) -> Option<Statistic> {
        Some(Statistic {
            parameter: "fisher",
            gram: false,
            files: self.experts.iter().map(|e| e.statistics).collect(),
        })
    }

    fn without_statistics(&self) -> Option<Program> {
        let models: Vec<(usize, f64)> = self.experts.iter().map(|e| (e.model, e.weight)).collect();
        let mut weights = vec![0.0; models.iter().map(|(m, _)| m + 1).max().unwrap_or(0)];
        for (model, weight) in models {
            weights[model] = weight;
        }
        let sum = weights.iter().sum();
        Some(weighted_sum(0, &weights, sum))
    }
}
