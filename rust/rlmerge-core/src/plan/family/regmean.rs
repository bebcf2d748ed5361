//! RegMean: the matrix whose outputs are nearest to those of all models on their own inputs.

use super::fisher::SHARE_OF_MODEL;
use super::linear::weighted_sum;
use super::{Family, Passes, Program, Setup, Statistic};
use crate::error::{Error, Result};
use crate::plan::method::{BaseUse, Default, Kind, Memory, Method, UNIT, both};
use crate::plan::{PlannedTensor, TILE_ELEMENTS};

/// The rows of this family.
pub const METHODS: &[Method] = &[Method {
    name: "regmean",
    aliases: &["reg_mean"],
    title: "RegMean",
    summary: "Solves for the matrix whose outputs come nearest to each model's own on that model's inputs, from Gram matrices of the inputs, which the user brings.",
    formula: "W = (Σ wᵢ Wᵢ G̃ᵢ)(Σ wᵢ G̃ᵢ)⁻¹; Gᵢ = XᵢᵀXᵢ, G̃ᵢ = α Gᵢ + (1 − α) diag Gᵢ",
    paper: (
        "Jin et al., Dataless knowledge fusion by merging weights of language models, ICLR 2023",
        "https://arxiv.org/abs/2212.09849",
    ),
    base: BaseUse::None,
    experts: (1, None),
    reads: 1,
    memory: Memory::Matrix,
    seeded: false,
    program,
    parameters: &[
        both(
            "gram",
            Kind::Path,
            true,
            Default::Missing,
            "safetensors file or folder with the Gram matrix XᵀX of the inputs of each linear layer that is to be solved for, inputs × inputs, under the name of its weight",
        ),
        SHARE_OF_MODEL,
        both(
            "alpha",
            UNIT,
            false,
            Default::Number(0.9),
            "α: factor of the elements of the Gram matrices beside the diagonal",
        ),
    ],
    ignored_in_mergekit: &[],
    modes: "mergekit has no such method; the numbers are the same.",
}];

/// RegMean.
#[derive(Debug, Clone, PartialEq)]
pub struct RegMean {
    /// Index of each model that takes part, index of its statistics behind the models, and weight.
    pub experts: Vec<(usize, usize, f64)>,
    /// Factor beside the diagonal.
    pub alpha: f64,
}

fn program(setup: &Setup<'_>) -> Result<Program> {
    let settings = setup.settings;
    let weights = settings.weights();
    let experts: Vec<(usize, usize, f64)> = weights
        .iter()
        .enumerate()
        .filter(|(_, weight)| **weight != 0.0)
        .map(|(at, weight)| (at, weights.len() + at, *weight))
        .collect();
    match experts[..] {
        [] => Err(Error::ZeroWeightSum { method: settings.method.name.into(), sum: 0.0 }),
        [(model, ..)] => Ok(Program::copy(model)),
        _ => Ok(Program::RegMean(RegMean { experts, alpha: settings.number("alpha") })),
    }
}

impl Family for RegMean {
    fn models(&self) -> Vec<usize> {
        self.experts.iter().map(|(model, ..)| *model).collect()
    }

    fn passes(&self) -> Passes {
        // Before the tiles of a tensor come its statistics, and where inputs are rows all of it is gathered.
        Passes { scans: 1, whole_model: false }
    }

    fn group(&self, tensor: &PlannedTensor) -> u64 {
        tensor.matrix.map_or(1, |m| m.columns.max(1))
    }

    fn together(&self, tensor: &PlannedTensor) -> u64 {
        16.min(TILE_ELEMENTS / self.group(tensor)).max(1)
    }

    fn memory(&self, tensor: &PlannedTensor) -> (u64, u64) {
        let Some(m) = tensor.matrix else { return (0, 0) };
        let side = if m.transposed { m.rows } else { m.columns };
        let models = self.experts.len() as u64;
        let gathered = if m.transposed { models * tensor.elements } else { 0 };
        (8 * ((models + 1) * m.batch * side * side + gathered), 0)
    }

    fn statistic(&self) -> Option<Statistic> {
        let files = self.experts.iter().map(|(_, file, _)| *file).collect();
        Some(Statistic { parameter: "gram", gram: true, files })
    }

    fn without_statistics(&self) -> Option<Program> {
        let mut weights = vec![0.0; self.experts.iter().map(|(m, ..)| m + 1).max().unwrap_or(0)];
        for (model, _, weight) in &self.experts {
            weights[*model] = *weight;
        }
        Some(weighted_sum(0, &weights, weights.iter().sum()))
    }
}
