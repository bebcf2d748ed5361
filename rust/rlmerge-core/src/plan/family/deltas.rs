//! Task-vector methods: base plus a combination of deltas. A method is one way to make deltas sparse, and one way to
//! combine what is left; [`super::sparse`] has the rows of further pairs.

use super::{Family, LAMBDA, Passes, Program, Setup, WEIGHT};
use crate::error::{Error, Result};
use crate::plan::PlannedTensor;
use crate::plan::method::{
    BaseUse, Default, Kind, Memory, Method, Parameter, RESCALE, SHARE, UNIT, both, split,
};

/// How the deltas are made sparse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sparsify {
    /// Not at all.
    Nothing,
    /// The largest magnitudes are kept.
    Magnitude,
    /// The largest magnitudes are kept but for the very largest.
    Band,
    /// A random share is kept.
    Random,
    /// A random share is kept, larger magnitudes of a row more often.
    Ranked,
    /// The largest magnitudes of each block are kept, different ones for each expert as far as that goes.
    Blocks {
        /// Elements kept of a block.
        keep: u64,
        /// Elements in a block.
        of: u64,
    },
}

impl Sparsify {
    /// Whether elements are kept by chance.
    #[must_use]
    pub const fn is_random(self) -> bool {
        matches!(self, Self::Random | Self::Ranked)
    }
}

/// How sparse deltas are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combine {
    /// They are added.
    Sum,
    /// A sign is elected for each element, and what agrees with it is added; the sign where the sum is zero.
    Elect(ZeroSign),
    /// Each element is the mean over the experts that keep it.
    Stitch,
}

/// The sign where the deltas cancel exactly.
pub const ZERO_SIGN: Parameter = both(
    "zero_sign",
    Kind::Choice(&["plus", "minus", "majority"]),
    false,
    Default::Word("plus"),
    "sign elected where the deltas cancel exactly; `majority` is the TIES paper's rule and costs one more read",
);

/// Whether the sum is divided by weights.
pub const fn normalize(paper: bool, mergekit: bool, meaning: &'static str) -> Parameter {
    split("normalize", Kind::Flag, false, (Default::Flag(paper), Default::Flag(mergekit)), meaning)
}

/// Share of elements kept.
pub const fn density(paper: f64, meaning: &'static str) -> Parameter {
    split("density", SHARE, true, (Default::Number(paper), Default::Number(1.0)), meaning)
}

/// How kept elements make up for dropped ones.
pub const fn rescale(paper: &'static str, mergekit: &'static str) -> Parameter {
    split(
        "rescale",
        RESCALE,
        false,
        (Default::Word(paper), Default::Word(mergekit)),
        "how kept elements make up for dropped ones: divide by the density, or restore the L1 or L2 norm of the delta",
    )
}

/// Whether shares are counted in each tensor or in the whole model.
pub const fn scope(default: &'static str) -> Parameter {
    both(
        "scope",
        Kind::Choice(&["tensor", "model"]),
        false,
        Default::Word(default),
        "whether the share is taken of each tensor or of the whole model (one more read), norms of `rescale` likewise",
    )
}

/// What becomes of elements exactly at the threshold.
pub const fn ties(default: &'static str) -> Parameter {
    both(
        "ties",
        Kind::Choice(&["index", "all"]),
        false,
        Default::Word(default),
        "elements exactly at the threshold: keep the first ones up to k, or all of them (the paper's rule)",
    )
}

/// Share of outliers.
pub const GAMMA: Parameter = both(
    "gamma",
    UNIT,
    true,
    Default::Number(0.01),
    "share of each delta's elements that is dropped as outliers, the largest first",
);

/// Half the width of the keep probabilities.
pub const EPSILON: Parameter = both(
    "epsilon",
    UNIT,
    true,
    Default::Number(0.15),
    "keep probabilities run from density − ε for the smallest to density + ε for the largest element of a row",
);

/// What the sum of deltas is divided by.
pub const BY_SUM: &str = "divide by the sum of the weights";
/// What the sum of agreeing deltas is divided by.
pub const BY_AGREEING: &str =
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
        program: |s| program(s, Sparsify::Nothing, Combine::Sum),
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
        program: |s| program(s, Sparsify::Magnitude, ELECT),
        parameters: &[
            WEIGHT,
            density(0.2, "share of each delta's elements that is kept, the largest first"),
            LAMBDA,
            normalize(true, true, BY_AGREEING),
            rescale("none", "none"),
            scope("tensor"),
            ties("index"),
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
        program: |s| program(s, Sparsify::Random, Combine::Sum),
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
        program: |s| program(s, Sparsify::Random, ELECT),
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
    /// Share of elements dropped as outliers.
    pub gamma: f64,
    /// Half the width of the keep probabilities.
    pub epsilon: f64,
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
    /// How they are combined.
    pub combine: Combine,
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

/// An election; the recipe says what a zero sum elects.
pub const ELECT: Combine = Combine::Elect(ZeroSign::Plus);

/// The program of a pair of ways.
///
/// # Errors
/// When numbers of the recipe do not go together.
pub fn program(setup: &Setup<'_>, sparsify: Sparsify, combine: Combine) -> Result<Program> {
    let settings = setup.settings;
    let normalize = settings.flag("normalize");
    if combine == Combine::Sum && normalize {
        setup.check_weight_sum()?;
    }
    let numbers = |name: &str, absent: f64| match settings.method.parameter(name) {
        Some(_) => settings.numbers(name),
        None => vec![absent; setup.experts()],
    };
    let densities = match sparsify {
        Sparsify::Blocks { keep, of } => vec![keep as f64 / of as f64; setup.experts()],
        _ => numbers("density", 1.0),
    };
    let (gammas, epsilons) = (numbers("gamma", 0.0), numbers("epsilon", 0.0));
    let mut experts = Vec::new();
    for (i, weight) in settings.weights().into_iter().enumerate() {
        let (density, gamma, epsilon) = (densities[i], gammas[i], epsilons[i]);
        let expert = DeltaExpert { model: 1 + i, weight, density, gamma, epsilon };
        if sparsify == Sparsify::Ranked {
            check_probabilities(setup, &expert)?;
        }
        if weight != 0.0 {
            experts.push(expert);
        }
    }
    let lambda = settings.number("lambda");
    match experts[..] {
        [] => return Ok(Program::copy(0)),
        // One whole expert in full measure is that expert, whatever its deltas round to.
        [one] if one.density == 1.0 && lambda == 1.0 => {
            let full = match combine {
                Combine::Sum => normalize || one.weight == 1.0,
                Combine::Elect(_) if normalize => one.weight > 0.0,
                Combine::Elect(_) => one.weight == 1.0,
                Combine::Stitch => one.weight > 0.0,
            };
            if full {
                return Ok(Program::copy(one.model));
            }
        }
        _ => {}
    }
    let combine = match (combine, settings.word("zero_sign")) {
        (Combine::Elect(_), "minus") => Combine::Elect(ZeroSign::Minus),
        (Combine::Elect(_), "majority") => Combine::Elect(ZeroSign::Majority),
        (other, _) => other,
    };
    Ok(Program::Deltas(Deltas {
        base: 0,
        experts,
        sparsify,
        combine,
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

/// Refuses probabilities that are none. Where everything is kept, there are no probabilities.
fn check_probabilities(setup: &Setup<'_>, expert: &DeltaExpert) -> Result<()> {
    let (low, high) = (expert.density - expert.epsilon, expert.density + expert.epsilon);
    // mergekit refuses a probability of one too.
    let fits = low > 0.0 && if setup.mergekit() { high < 1.0 } else { high <= 1.0 };
    if fits || expert.density >= 1.0 {
        return Ok(());
    }
    let (below, at_most) = (expert.density, if setup.mergekit() { "less than" } else { "at most" });
    Err(Error::ParameterOutOfRange {
        parameter: "epsilon".into(),
        place: format!("expert {}", expert.model),
        value: expert.epsilon.to_string(),
        expected: format!(
            "less than the density {below} and {at_most} 1 − density, so that every keep probability is one"
        ),
    })
}

/// How a tensor falls into rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowShape {
    /// Elements of a row.
    pub len: u64,
    /// Distance between neighbours in a row.
    pub stride: u64,
}

impl Deltas {
    /// The rows in which magnitudes are ranked: those of a matrix as it is stored, all weights of one output channel of a
    /// convolution, and a vector as a whole. mergekit ranks along the second axis whatever there is.
    #[must_use]
    pub fn rows(&self, tensor: &PlannedTensor) -> RowShape {
        let product = |axes: &[u64]| axes.iter().product::<u64>().max(1);
        let row = |len: u64| RowShape { len: len.max(1), stride: 1 };
        match (&tensor.shape[..], tensor.matrix) {
            ([] | [_], _) => row(tensor.elements),
            ([_, second, rest @ ..], _) if self.mergekit => {
                RowShape { len: (*second).max(1), stride: product(rest) }
            }
            (_, Some(matrix)) => row(matrix.columns),
            ([_, rest @ ..], None) => row(product(rest)),
        }
    }
}

impl Family for Deltas {
    fn models(&self) -> Vec<usize> {
        std::iter::once(self.base).chain(self.experts.iter().map(|e| e.model)).collect()
    }

    fn passes(&self) -> Passes {
        let sparse = self.experts.iter().any(|e| e.density < 1.0);
        let selects = matches!(self.sparsify, Sparsify::Magnitude | Sparsify::Band);
        let select = u32::from(sparse && selects);
        let norms = u32::from(sparse && matches!(self.rescale, Rescale::L1 | Rescale::L2));
        let vote = u32::from(self.combine == Combine::Elect(ZeroSign::Majority));
        Passes { scans: select + norms + vote, whole_model: self.whole_model }
    }

    fn group(&self, tensor: &PlannedTensor) -> u64 {
        match self.sparsify {
            Sparsify::Ranked => {
                let rows = self.rows(tensor);
                rows.len * rows.stride
            }
            Sparsify::Blocks { of, .. } => of,
            _ => 1,
        }
    }
}
