//! Further task-vector methods: other ways to make deltas sparse and to combine what is left. Their program is
//! [`super::deltas::Deltas`].

use super::deltas::{
    BY_AGREEING, BY_SUM, Combine, ELECT, EPSILON, GAMMA, Sparsify, ZERO_SIGN, density, normalize, program,
    rescale, scope, ties,
};
use super::{LAMBDA, Program, Setup, WEIGHT};
use crate::error::{Error, Result};
use crate::plan::method::{BaseUse, Default, Kind, Memory, Method, Parameter, both};

const DELLA: (&str, &str) = ("Deep et al., DELLA-Merging, 2024", "https://arxiv.org/abs/2406.11617");
const BREADCRUMBS: (&str, &str) =
    ("Davari and Belilovsky, Model Breadcrumbs, ECCV 2024", "https://arxiv.org/abs/2312.06795");
const KEPT_ON_AVERAGE: &str = "probability with which an element is kept, on average over a row";
const KEPT_BELOW_OUTLIERS: &str =
    "share of each delta's elements that is kept, the largest first after the outliers";

const fn block(name: &'static str, default: i64, meaning: &'static str) -> Parameter {
    both(name, Kind::Integer { low: 1, high: 65_536 }, false, Default::Integer(default), meaning)
}

/// The rows of this family.
pub const METHODS: &[Method] = &[
    Method {
        name: "della_linear",
        aliases: &[],
        title: "DELLA without election",
        summary: "Drops elements of each delta at random, small ones of a row more often, divides the rest by their keep probabilities, and adds the weighted sum to the base.",
        formula: "pᵢ = density − ε + 2ε (rank(|δᵢ|) − 1)/(L − 1) in each row of L; δ̂ᵢ = mᵢ ⊙ δᵢ / pᵢ, mᵢ ~ Bernoulli(pᵢ); θ = θ₀ + λ Σ wᵢ δ̂ᵢ",
        paper: DELLA,
        base: BaseUse::Required,
        experts: (1, None),
        reads: 1,
        memory: Memory::Row,
        seeded: true,
        program: |s| program(s, Sparsify::Ranked, Combine::Sum),
        parameters: &[
            WEIGHT,
            density(0.5, KEPT_ON_AVERAGE),
            EPSILON,
            LAMBDA,
            normalize(false, false, BY_SUM),
            rescale("inverse_p", "l1"),
        ],
        ignored_in_mergekit: &[],
        modes: "mergekit restores each tensor's L1 norm instead of dividing by p, has density 1 by default, and ranks along the second axis of tensors of any number of axes.",
    },
    Method {
        name: "della",
        aliases: &["della_ties"],
        title: "DELLA",
        summary: "Drops elements of each delta at random, small ones of a row more often, divides the rest by their keep probabilities, elects signs and averages the deltas that agree, as TIES does.",
        formula: "δ̂ᵢ as in `della_linear`; then as `ties` without its trim",
        paper: DELLA,
        base: BaseUse::Required,
        experts: (1, None),
        reads: 1,
        memory: Memory::Row,
        seeded: true,
        program: |s| program(s, Sparsify::Ranked, ELECT),
        parameters: &[
            WEIGHT,
            density(0.5, KEPT_ON_AVERAGE),
            EPSILON,
            LAMBDA,
            normalize(true, true, BY_AGREEING),
            rescale("inverse_p", "l1"),
            ZERO_SIGN,
        ],
        ignored_in_mergekit: &[],
        modes: "mergekit restores each tensor's L1 norm instead of dividing by p, has density 1 by default, ranks along the second axis of tensors of any number of axes, and divides by the signed sum of the agreeing weights.",
    },
    Method {
        name: "breadcrumbs",
        aliases: &[],
        title: "Model Breadcrumbs",
        summary: "Drops the largest elements of each delta as outliers and all the small ones, and adds the weighted sum of the rest to the base.",
        formula: "δ̂ᵢ = elements of |δᵢ| from rank ⌊γn⌋ + 1 to ⌊γn⌋ + density·n, the largest first; θ = θ₀ + λ Σ wᵢ δ̂ᵢ",
        paper: BREADCRUMBS,
        base: BaseUse::Required,
        experts: (1, None),
        reads: 1,
        memory: Memory::Tile,
        seeded: false,
        program: |s| program(s, Sparsify::Band, Combine::Sum),
        parameters: &[
            WEIGHT,
            density(0.1, KEPT_BELOW_OUTLIERS),
            GAMMA,
            LAMBDA,
            normalize(false, false, BY_SUM),
            rescale("none", "none"),
            scope("tensor"),
        ],
        ignored_in_mergekit: &[],
        modes: "mergekit keeps ⌊density·n⌋ elements, none where that is zero, has density 1 by default and rescales by the L1 norm when asked to.",
    },
    Method {
        name: "breadcrumbs_ties",
        aliases: &[],
        title: "Model Breadcrumbs with TIES",
        summary: "Drops the largest elements of each delta as outliers and all the small ones, elects signs and averages the deltas that agree, as TIES does.",
        formula: "δ̂ᵢ as in `breadcrumbs`; then as `ties` without its trim",
        paper: BREADCRUMBS,
        base: BaseUse::Required,
        experts: (1, None),
        reads: 1,
        memory: Memory::Tile,
        seeded: false,
        program: |s| program(s, Sparsify::Band, ELECT),
        parameters: &[
            WEIGHT,
            density(0.1, KEPT_BELOW_OUTLIERS),
            GAMMA,
            LAMBDA,
            normalize(true, false, BY_AGREEING),
            rescale("none", "none"),
            scope("tensor"),
            ZERO_SIGN,
        ],
        ignored_in_mergekit: &[],
        modes: "mergekit sums instead of averaging, keeps ⌊density·n⌋ elements, none where that is zero, has density 1 by default and rescales by the L1 norm when asked to.",
    },
    Method {
        name: "cabs",
        aliases: &[],
        title: "CABS",
        summary: "Keeps the n largest of every m neighbouring elements of each delta, each expert among those that the experts before it left, and adds the weighted sum to the base.",
        formula: "δ̂ᵢ = the n largest |δᵢ| of each block of m, outside of the masks of experts 1 … i−1 as long as n are left; θ = θ₀ + λ Σ wᵢ δ̂ᵢ",
        paper: (
            "Yang et al., CABS: conflict-aware and balanced sparsification, ICML 2025",
            "https://arxiv.org/abs/2503.01874",
        ),
        base: BaseUse::Required,
        experts: (1, None),
        reads: 1,
        memory: Memory::Tile,
        seeded: false,
        program: cabs,
        parameters: &[
            WEIGHT,
            block("n", 64, "elements kept of each block"),
            block("m", 256, "elements in a block"),
            LAMBDA,
            normalize(false, false, BY_SUM),
            rescale("none", "none"),
        ],
        ignored_in_mergekit: &[],
        modes: "mergekit does not have it; the same in both.",
    },
    Method {
        name: "dots_trim",
        aliases: &[],
        title: "DoTS trim",
        summary: "Trims each tensor's delta to its largest elements, restores its norm when asked to, and adds the weighted sum to the base.",
        formula: "δ̂ᵢ = top-k(|δᵢ|) in each tensor, times ‖δᵢ‖/‖top-k(|δᵢ|)‖ with `rescale: l2`; θ = θ₀ + λ Σ wᵢ δ̂ᵢ",
        paper: (
            "Yuan et al., Decouple before integration: DoTS, 2026",
            "https://github.com/chaohaoyuan/DoTS",
        ),
        base: BaseUse::Required,
        experts: (1, None),
        reads: 1,
        memory: Memory::Tile,
        seeded: false,
        program: |s| program(s, Sparsify::Magnitude, Combine::Sum),
        parameters: &[
            WEIGHT,
            density(0.3, "share of each delta's elements that is kept, the largest first"),
            LAMBDA,
            normalize(false, false, BY_SUM),
            rescale("none", "none"),
            scope("tensor"),
            ties("all"),
        ],
        ignored_in_mergekit: &[],
        modes: "mergekit does not have it; its mode keeps ⌊density·n⌋ elements and has density 1 by default.",
    },
    Method {
        name: "localize_and_stitch",
        aliases: &[],
        title: "Localize-and-Stitch, without data",
        summary: "Keeps the largest elements of each whole delta, and where experts overlap takes the mean of what they keep.",
        formula: "γᵢ = 1[|δᵢ| among the top k of the model]; θ = θ₀ + λ Σ wᵢ γᵢ ⊙ δᵢ / Σ |wᵢ| γᵢ",
        paper: ("He et al., Localize-and-Stitch, TMLR 2025", "https://arxiv.org/abs/2408.13656"),
        base: BaseUse::Required,
        experts: (1, None),
        reads: 2,
        memory: Memory::Tile,
        seeded: false,
        program: |s| program(s, Sparsify::Magnitude, Combine::Stitch),
        parameters: &[
            WEIGHT,
            density(0.05, "share of each delta's elements that is kept, the largest first"),
            LAMBDA,
            rescale("none", "none"),
            scope("model"),
            ties("index"),
        ],
        ignored_in_mergekit: &[],
        modes: "mergekit does not have it; its mode keeps ⌊density·n⌋ elements and has density 1 by default.",
    },
];

fn cabs(setup: &Setup<'_>) -> Result<Program> {
    let (keep, of) = (setup.settings.number("n"), setup.settings.number("m"));
    if keep > of {
        return Err(Error::ParameterOutOfRange {
            parameter: "n".into(),
            place: "the recipe".into(),
            value: keep.to_string(),
            expected: format!("at most m, which is {of}"),
        });
    }
    program(setup, Sparsify::Blocks { keep: keep as u64, of: of as u64 }, Combine::Sum)
}
