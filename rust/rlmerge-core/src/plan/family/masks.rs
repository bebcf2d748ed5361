//! Methods made of one mask a task: what of the merged delta a task uses. `consensus` keeps what enough tasks use;
//! `tall_masks` and `emr` write the masks beside the merged model, from which each task's model can be rebuilt.

use std::sync::Arc;

use super::deltas::{DeltaExpert, Deltas, Rescale, Sparsify, ZeroSign};
use super::{Family, Passes, Program, Setup, WEIGHT};
use crate::error::{Error, Result};
use crate::plan::method::{BaseUse, Default, Kind, Memory, Method, Parameter, SHARE, both};
use crate::shard::Checkpoint;

const TALL: (&str, &str) = (
    "Wang et al., Localizing task information for improved model merging and compression, ICML 2024",
    "https://arxiv.org/abs/2405.07813",
);

const OVER: Parameter = both(
    "over",
    Kind::Choice(&["task_arithmetic", "ties"]),
    false,
    Default::Word("task_arithmetic"),
    "how τ is merged: the sum of all deltas, or of those that TIES keeps and elects",
);

const TALL_LAMBDA: Parameter = both(
    "tall_lambda",
    Kind::Number { low: 0.0, high: f64::MAX, open: false },
    true,
    Default::Number(0.4),
    "λₜ of the task's mask: a larger one keeps less (the paper tries 0.2, 0.3, 0.4, 0.5 and 0.6 on validation data)",
);

const DENSITY: Parameter = both(
    "density",
    SHARE,
    true,
    Default::Number(0.2),
    "with `over: ties`, share of each delta's elements that is kept",
);

const SCOPE: Parameter = both(
    "scope",
    Kind::Choice(&["tensor", "model"]),
    false,
    Default::Word("tensor"),
    "with `over: ties`, whether that share is taken of each tensor or of the whole model (one more read)",
);

const NORMALIZE: Parameter = both(
    "normalize",
    Kind::Flag,
    false,
    Default::Flag(false),
    "divide τ by the sum of the weights, or with `over: ties` by the weights of the experts that agree",
);

/// The rows of this family.
pub const METHODS: &[Method] = &[
    Method {
        name: "consensus",
        aliases: &["consensus_ta"],
        title: "Consensus merging",
        summary: "Task arithmetic or TIES without the elements that too few tasks use, by their TALL masks.",
        formula: "τ = Σ wᵢ δᵢ (or TIES); mₜ = |δₜ| > λₜ |τ − δₜ|; θ = θ₀ + λ [Σ mₜ ≥ k] τ",
        paper: TALL,
        base: BaseUse::Required,
        experts: (2, None),
        reads: 1,
        memory: Memory::Tile,
        seeded: false,
        program: consensus,
        parameters: &[
            WEIGHT,
            TALL_LAMBDA,
            both(
                "k",
                Kind::Integer { low: 0, high: 1024 },
                false,
                Default::Integer(2),
                "number of tasks that must use an element for it to be kept: 1 drops what none uses, 2 also what one alone uses",
            ),
            super::LAMBDA,
            OVER,
            DENSITY,
            SCOPE,
            NORMALIZE,
        ],
        ignored_in_mergekit: &[],
        modes: "mergekit has no such method; τ is then merged by mergekit's rules, which require a weight for each expert.",
    },
    Method {
        name: "tall_masks",
        aliases: &["tall"],
        title: "TALL masks",
        summary: "The merged model, with a mask for each task beside it: `rlmerge expand` rebuilds a task's model from both and the base.",
        formula: "τ = Σ wᵢ δᵢ (or TIES); mₜ = |δₜ| > λₜ |τ − δₜ|; θ = θ₀ + τ; θₜ = θ₀ + mₜ τ",
        paper: TALL,
        base: BaseUse::Required,
        experts: (2, None),
        reads: 1,
        memory: Memory::Tile,
        seeded: false,
        program: tall_masks,
        parameters: &[WEIGHT, TALL_LAMBDA, OVER, DENSITY, SCOPE, NORMALIZE],
        ignored_in_mergekit: &[],
        modes: "mergekit has no such method; τ is then merged by mergekit's rules, which require a weight for each expert.",
    },
    Method {
        name: "emr",
        aliases: &["emr_merging"],
        title: "EMR-Merging",
        summary: "Elects a sign for each element and takes the largest delta of that sign; writes a mask and a scale for each task beside the model, from which `rlmerge expand` rebuilds the task's model.",
        formula: "γ = sign Σ δᵢ; τ = γ max{|δᵢ| : γ δᵢ > 0}; mₜ = γ δₜ > 0; sₜ = Σ mean|δₜ| / Σ mean|mₜ τ| over the tensors; θ = θ₀ + τ; θₜ = θ₀ + sₜ mₜ τ",
        paper: (
            "Huang et al., EMR-Merging: tuning-free high-performance model merging, NeurIPS 2024",
            "https://arxiv.org/abs/2405.17461",
        ),
        base: BaseUse::Required,
        experts: (1, None),
        reads: 1,
        memory: Memory::Tile,
        seeded: false,
        program: |s| Ok(Program::Emr(Emr { experts: s.experts() })),
        parameters: &[],
        ignored_in_mergekit: &[],
        modes: "mergekit has no such method; the numbers are the same.",
    },
];

/// What a program writes beside the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marks {
    /// The experts, one mask each, as indices among the models.
    pub experts: Vec<usize>,
    /// Whether each has a scale as well.
    pub scaled: bool,
}

/// What is made of the TALL masks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Use {
    /// Elements that at least so many tasks use are kept, times a factor.
    Consensus {
        /// Least number of tasks.
        least: u32,
        /// Factor of what is kept.
        lambda: f64,
    },
    /// They are written beside the model.
    Write,
}

/// TALL masks over task arithmetic or TIES.
#[derive(Debug, Clone, PartialEq)]
pub struct Tall {
    /// The merge that the masks are made of.
    pub merged: Deltas,
    /// λ of each task's mask.
    pub lambdas: Vec<f64>,
    /// What is made of them.
    pub then: Use,
}

/// EMR-Merging.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emr {
    /// Number of experts; they follow the base, which is model 0.
    pub experts: usize,
}

/// One task's model out of a merged one, its base and its masks.
#[derive(Debug, Clone)]
pub struct Expand {
    /// The file of masks.
    pub masks: Arc<Checkpoint>,
    /// Which of its rows is the task's.
    pub row: u64,
    /// Factor of the difference between the merged model and the base.
    pub scale: f64,
}

impl PartialEq for Expand {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.masks, &other.masks) && (self.row, self.scale) == (other.row, other.scale)
    }
}

fn tall(setup: &Setup<'_>, then: Use) -> Result<Tall> {
    let settings = setup.settings;
    let ties = settings.word("over") == "ties";
    if !ties && settings.flag("normalize") {
        setup.check_weight_sum()?;
    }
    let (weights, densities) = (settings.weights(), settings.numbers("density"));
    let lambdas = settings.numbers("tall_lambda");
    let taking_part: Vec<usize> = (0..weights.len()).filter(|i| weights[*i] != 0.0).collect();
    let merged = Deltas {
        base: 0,
        experts: taking_part
            .iter()
            .map(|i| DeltaExpert {
                model: 1 + i,
                weight: weights[*i],
                density: if ties { densities[*i] } else { 1.0 },
            })
            .collect(),
        sparsify: if ties { Sparsify::Magnitude } else { Sparsify::Nothing },
        election: ties.then_some(ZeroSign::Plus),
        normalize: settings.flag("normalize"),
        lambda: 1.0,
        rescale: Rescale::Nothing,
        keep_all_ties: false,
        whole_model: ties && settings.word("scope") == "model",
        seed: setup.seed,
        mergekit: setup.mergekit(),
    };
    Ok(Tall { merged, lambdas: taking_part.iter().map(|i| lambdas[*i]).collect(), then })
}

fn consensus(setup: &Setup<'_>) -> Result<Program> {
    let (k, lambda) = (setup.settings.number("k"), setup.settings.number("lambda"));
    let tall = tall(setup, Use::Consensus { least: k as u32, lambda })?;
    match tall.lambdas.len() {
        0 => Ok(Program::copy(0)),
        experts if k > experts as f64 => Err(Error::ParameterOutOfRange {
            parameter: "k".into(),
            place: "the recipe".into(),
            value: format!("{k}"),
            expected: format!("at most {experts}, the number of experts that take part"),
        }),
        _ => Ok(Program::Tall(tall)),
    }
}

fn tall_masks(setup: &Setup<'_>) -> Result<Program> {
    let tall = tall(setup, Use::Write)?;
    if tall.lambdas.is_empty() {
        let message = "all weights are 0, so that no task is left whose model could be rebuilt".into();
        return Err(Error::RecipeInvalid { message });
    }
    Ok(Program::Tall(tall))
}

impl Family for Tall {
    fn models(&self) -> Vec<usize> {
        self.merged.models()
    }

    fn passes(&self) -> Passes {
        self.merged.passes()
    }

    fn marks(&self) -> Option<Marks> {
        let experts = self.merged.experts.iter().map(|e| e.model).collect();
        (self.then == Use::Write).then_some(Marks { experts, scaled: false })
    }
}

impl Family for Emr {
    fn models(&self) -> Vec<usize> {
        (0..=self.experts).collect()
    }

    fn marks(&self) -> Option<Marks> {
        Some(Marks { experts: (1..=self.experts).collect(), scaled: true })
    }
}

impl Family for Expand {
    fn models(&self) -> Vec<usize> {
        vec![0, 1]
    }
}
