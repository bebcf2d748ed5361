//! Task-vector methods: base plus a combination of deltas, each made sparse by magnitude or at random, with or
//! without an election of signs.

use super::{Family, LAMBDA, Passes, Program, Setup, WEIGHT};
use crate::error::Result;
use crate::plan::method::{BaseUse, Default, Kind, Memory, Method, Parameter, RESCALE, SHARE, both, split};

/// How the deltas are made sparse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sparsify {
    /// Not at all.
    Nothing,
    /// The largest magnitudes are kept.
    Magnitude,
    /// A random share is kept.
    Random,
}

const ZERO_SIGN: Parameter = both(
    "zero_sign",
    Kind::Choice(&["plus", "minus", "majority"]),
    false,
    Default::Word("plus"),
    "sign elected where the deltas cancel exactly; `majority` is the TIES paper's rule and costs one more read",
);

const fn normalize(paper: bool, mergekit: bool, meaning: &'static str) -> Parameter {
    split("normalize", Kind::Flag, false, (Default::Flag(paper), Default::Flag(mergekit)), meaning)
}

const fn density(paper: f64, meaning: &'static str) -> Parameter {
    split("density", SHARE, true, (Default::Number(paper), Default::Number(1.0)), meaning)
}

const fn rescale(paper: &'static str, mergekit: &'static str) -> Parameter {
    split(
        "rescale",
        RESCALE,
        false,
        (Default::Word(paper), Default::Word(mergekit)),
        "how kept elements make up for dropped ones: divide by the density, or restore the L1 or L2 norm of the delta",
    )
}

const BY_SUM: &str = "divide by the sum of the weights";
const BY_AGREEING: &str =
    "divide each element by the weights of the experts that agree with the elected sign";

/// The rows of this family.
pub const METHODS: &[Method] = &[
    Method {
        name: "task_arithmetic",
        aliases: &["ta"],
        title: "Task arithmetic",
        summary: "Adds the weighted sum of the experts' deltas to the base.",
        formula: "θ = θ₀ + λ Σ wᵢ δᵢ",
        paper: (
            "Ilharco et al., Editing models with task arithmetic, ICLR 2023",
            "https://arxiv.org/abs/2212.04089",
        ),
        base: BaseUse::Required,
        experts: (1, None),
        reads: 1,
        memory: Memory::Tile,
        seeded: false,
        program: |s| program(s, Sparsify::Nothing, false),
        parameters: &[WEIGHT, LAMBDA, normalize(false, false, BY_SUM)],
        ignored_in_mergekit: &["density", "rescale"],
        modes: "mergekit requires a weight for each expert; the numbers are the same.",
    },
    Method {
        name: "ties",
        aliases: &[],
        title: "TIES",
        summary: "Trims each delta to its largest elements, elects a sign for each element, and averages the deltas that agree with it.",
        formula: "δ̂ᵢ = top-k(|δᵢ|); γ = sign Σ wᵢ δ̂ᵢ; θ = θ₀ + λ Σ_{sign(wᵢδ̂ᵢ)=γ} wᵢ δ̂ᵢ / Σ_{sign(wᵢδ̂ᵢ)=γ} |wᵢ|",
        paper: ("Yadav et al., TIES-Merging, NeurIPS 2023", "https://arxiv.org/abs/2306.01708"),
        base: BaseUse::Required,
        experts: (1, None),
        reads: 1,
        memory: Memory::Tile,
        seeded: false,
        program: |s| program(s, Sparsify::Magnitude, true),
        parameters: &[
            WEIGHT,
            density(0.2, "share of each delta's elements that is kept, the largest first"),
            LAMBDA,
            normalize(true, true, BY_AGREEING),
            rescale("none", "none"),
            both(
                "scope",
                Kind::Choice(&["tensor", "model"]),
                false,
                Default::Word("tensor"),
                "whether the share is taken of each tensor or of the whole model (the paper's rule; one more read)",
            ),
            both(
                "ties",
                Kind::Choice(&["index", "all"]),
                false,
                Default::Word("index"),
                "elements exactly at the threshold: keep the first ones up to k, or all of them (the paper's rule)",
            ),
            ZERO_SIGN,
        ],
        ignored_in_mergekit: &[],
        modes: "mergekit divides by the signed sum of the agreeing weights, keeps ⌊density·n⌋ elements, has density 1 by default and rescales by the L1 norm when asked to.",
    },
    Method {
        name: "dare_linear",
        aliases: &["dare"],
        title: "DARE",
        summary: "Drops a random share of each delta, divides the rest by the share kept, and adds the weighted sum to the base.",
        formula: "δ̂ᵢ = mᵢ ⊙ δᵢ / p, mᵢ ~ Bernoulli(p); θ = θ₀ + λ Σ wᵢ δ̂ᵢ",
        paper: ("Yu et al., Language models are super Mario, ICML 2024", "https://arxiv.org/abs/2311.03099"),
        base: BaseUse::Required,
        experts: (1, None),
        reads: 1,
        memory: Memory::Tile,
        seeded: true,
        program: |s| program(s, Sparsify::Random, false),
        parameters: &[
            WEIGHT,
            density(0.5, "probability p with which an element is kept"),
            LAMBDA,
            normalize(false, false, BY_SUM),
            rescale("inverse_p", "l1"),
        ],
        ignored_in_mergekit: &[],
        modes: "mergekit restores each tensor's L1 norm instead of dividing by p, and has density 1 by default.",
    },
    Method {
        name: "dare_ties",
        aliases: &[],
        title: "DARE with TIES",
        summary: "Drops a random share of each delta, divides the rest by the share kept, elects signs and averages the deltas that agree, as TIES does.",
        formula: "δ̂ᵢ = mᵢ ⊙ δᵢ / p, mᵢ ~ Bernoulli(p); then as `ties` without its trim",
        paper: ("Yu et al., Language models are super Mario, ICML 2024", "https://arxiv.org/abs/2311.03099"),
        base: BaseUse::Required,
        experts: (1, None),
        reads: 1,
        memory: Memory::Tile,
        seeded: true,
        program: |s| program(s, Sparsify::Random, true),
        parameters: &[
            WEIGHT,
            density(0.5, "probability p with which an element is kept"),
            LAMBDA,
            normalize(true, false, BY_AGREEING),
            rescale("inverse_p", "l1"),
            ZERO_SIGN,
        ],
        ignored_in_mergekit: &[],
        modes: "mergekit restores each tensor's L1 norm instead of dividing by p, sums instead of averaging, and has density 1 by default.",
    },
];

/// How kept elements make up for dropped ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rescale {
    /// They do not.
    Nothing,
    /// Divide by the density.
    InverseDensity,
    /// Restore the L1 norm of the delta.
    L1,
    /// Restore the L2 norm of the delta.
    L2,
}

/// Sign elected where the deltas cancel exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroSign {
    /// Plus.
    Plus,
    /// Minus.
    Minus,
    /// The sign that most elements of the scope elect, counted over elements at or above the threshold;
    /// plus when there are as many of each.
    Majority,
}

/// One expert of a task-vector method.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeltaExpert {
    /// Index among the models.
    pub model: usize,
    /// Its weight, not zero.
    pub weight: f64,
    /// Share of elements kept; 1 for methods that keep all.
    pub density: f64,
}

/// A task-vector method.
#[derive(Debug, Clone, PartialEq)]
pub struct Deltas {
    /// Index of the base among the models.
    pub base: usize,
    /// The experts that take part.
    pub experts: Vec<DeltaExpert>,
    /// How deltas are made sparse.
    pub sparsify: Sparsify,
    /// Whether signs are elected, and what is elected at zero.
    pub election: Option<ZeroSign>,
    /// Whether the sum is divided by weights.
    pub normalize: bool,
    /// Factor of the merged delta.
    pub lambda: f64,
    /// Rescaling of sparse deltas.
    pub rescale: Rescale,
    /// Keep all elements at the threshold, not only the first ones.
    pub keep_all_ties: bool,
    /// Trim over the whole model instead of each tensor.
    pub whole_model: bool,
    /// Seed of random masks.
    pub seed: u64,
    /// mergekit's way of counting and dividing.
    pub mergekit: bool,
}

fn program(setup: &Setup<'_>, sparsify: Sparsify, elects: bool) -> Result<Program> {
    let settings = setup.settings;
    if !elects && settings.flag("normalize") {
        setup.check_weight_sum()?;
    }
    let weights = settings.weights();
    let densities = match sparsify {
        Sparsify::Nothing => vec![1.0; weights.len()],
        _ => settings.numbers("density"),
    };
    let experts: Vec<DeltaExpert> = weights
        .iter()
        .zip(&densities)
        .enumerate()
        .map(|(i, (weight, density))| DeltaExpert { model: 1 + i, weight: *weight, density: *density })
        .filter(|e| e.weight != 0.0)
        .collect();
    let (normalize, lambda) = (settings.flag("normalize"), settings.number("lambda"));
    match experts[..] {
        [] => return Ok(Program::copy(0)),
        // One whole expert in full measure is that expert, whatever its deltas round to.
        [one] if one.density == 1.0 && lambda == 1.0 => {
            let full = if normalize { one.weight > 0.0 || !elects } else { one.weight == 1.0 };
            if full {
                return Ok(Program::copy(one.model));
            }
        }
        _ => {}
    }
    Ok(Program::Deltas(Deltas {
        base: 0,
        experts,
        sparsify,
        election: elects.then(|| match settings.word("zero_sign") {
            "minus" => ZeroSign::Minus,
            "majority" => ZeroSign::Majority,
            _ => ZeroSign::Plus,
        }),
        normalize,
        lambda,
        rescale: match settings.word("rescale") {
            "inverse_p" => Rescale::InverseDensity,
            "l1" => Rescale::L1,
            "l2" => Rescale::L2,
            _ => Rescale::Nothing,
        },
        keep_all_ties: settings.word("ties") == "all",
        whole_model: settings.word("scope") == "model",
        seed: setup.seed,
        mergekit: setup.mergekit(),
    }))
}

impl Family for Deltas {
    fn models(&self) -> Vec<usize> {
        std::iter::once(self.base).chain(self.experts.iter().map(|e| e.model)).collect()
    }

    fn passes(&self) -> Passes {
        let sparse = self.experts.iter().any(|e| e.density < 1.0);
        let select = u32::from(sparse && self.sparsify == Sparsify::Magnitude);
        let norms = u32::from(sparse && matches!(self.rescale, Rescale::L1 | Rescale::L2));
        let vote = u32::from(self.election == Some(ZeroSign::Majority));
        Passes { scans: select + norms + vote, whole_model: self.whole_model }
    }
}
