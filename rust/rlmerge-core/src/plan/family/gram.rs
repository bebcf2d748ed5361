//! Methods that need nothing of a tensor but the inner products between the models' vectors: spherical
//! interpolation, means on the sphere, Model Stock.

use super::{Family, Passes, Program, Setup, WEIGHT, linear};
use crate::error::Result;
use crate::plan::PlannedTensor;
use crate::plan::method::{BaseUse, Default, Kind, Memory, Method, Parameter, UNIT, both, split};
use crate::plan::role::Matrix;

const MAX_ITER: Parameter = both(
    "max_iter",
    Kind::Integer { low: 0, high: 1000 },
    false,
    Default::Integer(10),
    "most steps towards the mean; 0 gives the direction of the plain mean of directions",
);

/// The rows of this family.
pub const METHODS: &[Method] = &[
    Method {
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
        program: slerp,
        parameters: &[split(
            "t",
            UNIT,
            false,
            (Default::Number(0.5), Default::Missing),
            "position between the first model (0; the base, if one is given) and the second (1)",
        )],
        ignored_in_mergekit: &[],
        modes: "mergekit requires t and treats a zero tensor as if its norm were one; otherwise a zero tensor is interpolated along a straight line.",
    },
    Method {
        name: "nuslerp",
        aliases: &[],
        title: "Spherical interpolation of deltas",
        summary: "Moves from one expert to the other along the arc between their deltas (without a base, between the models), for each tensor, row or column.",
        formula: "θ = θ₀ + sin((1−t)φ)/sin φ · δ₁ + sin(tφ)/sin φ · δ₂, t = w₂/(w₁+w₂), cos φ = ⟨δ₁,δ₂⟩/(‖δ₁‖‖δ₂‖); a straight line where δ₁ and δ₂ are parallel, one is zero, or cos φ < −0.9995",
        paper: ("mergekit", "https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md"),
        base: BaseUse::Optional,
        experts: (2, Some(2)),
        reads: 1,
        memory: Memory::Row,
        seeded: false,
        program: nuslerp,
        parameters: &[
            WEIGHT,
            both(
                "nuslerp_flatten",
                Kind::Flag,
                false,
                Default::Flag(true),
                "one angle for each tensor; false: one for each row or column of a matrix",
            ),
            both(
                "nuslerp_row_wise",
                Kind::Flag,
                false,
                Default::Flag(false),
                "where tensors are not flattened: true takes what belongs to one output (a row of a Linear, a column of GPT-2's Conv1D, a filter), false what belongs to one input; with mergekit's semantics the first axis and the last axis",
            ),
        ],
        ignored_in_mergekit: &[],
        modes: "mergekit takes `nuslerp_row_wise` the other way round than its documentation says (true runs along the first axis, which are columns, false along the last one) and knows no transposed matrices; weights that sum to zero give t = 0.5 there and are an error otherwise; a zero delta counts as orthogonal to everything, and between opposite deltas the factors grow without bound. Stacked experts are a batch of matrices in both.",
    },
    Method {
        name: "multislerp",
        aliases: &["multi_slerp"],
        title: "Spherical mean of several models",
        summary: "The weighted mean of the experts' directions, at the weighted mean of their lengths, for each tensor.",
        formula: "θ = θ₀ + (Σ wᵢ‖δᵢ‖) m/‖m‖, m = Σ wᵢ δᵢ/‖δᵢ‖; θ = θ₀ + Σ wᵢ δᵢ where ‖m‖ < eps",
        paper: ("mergekit", "https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md"),
        base: BaseUse::Optional,
        experts: (1, None),
        reads: 1,
        memory: Memory::Tile,
        seeded: false,
        program: multislerp,
        parameters: &[
            WEIGHT,
            both(
                "normalize_weights",
                Kind::Flag,
                false,
                Default::Flag(true),
                "divide the weights by their sum",
            ),
            both(
                "eps",
                UNIT,
                false,
                Default::Number(1e-8),
                "length below which the mean of the directions has no direction itself",
            ),
        ],
        ignored_in_mergekit: &[],
        modes: "mergekit adds eps to each norm, and stops with an error where three or more models have no mean direction (a tensor that nobody changed, for example); here such a tensor gets the weighted sum in both.",
    },
    Method {
        name: "karcher",
        aliases: &[],
        title: "Karcher mean",
        summary: "The point of the sphere that is the mean of the models' directions by angle, at the mean of their lengths, for each tensor.",
        formula: "θ = mean ‖θᵢ‖ · u, u = argmin Σ ∠(u, θᵢ)²",
        paper: (
            "Karcher, Riemannian center of mass and mollifier smoothing, CPAM 1977; for models: mergekit, and arXiv 2603.04972",
            "https://doi.org/10.1002/cpa.3160300502",
        ),
        base: BaseUse::None,
        experts: (1, None),
        reads: 1,
        memory: Memory::Tile,
        seeded: false,
        program: karcher,
        parameters: &[
            MAX_ITER,
            both(
                "tol",
                Kind::Number { low: 0.0, high: 1.0, open: true },
                false,
                Default::Number(1e-5),
                "angle of a step at which the mean is taken as reached",
            ),
        ],
        ignored_in_mergekit: &[],
        modes: "mergekit leaves out models whose tensor has a norm up to tol, and ignores angles below it; otherwise only zeros are left out.",
    },
    Method {
        name: "model_stock",
        aliases: &[],
        title: "Model Stock",
        summary: "Moves from the base towards the mean of the experts, the further the smaller the angles between their deltas.",
        formula: "θ = θ₀ + t/N Σ δᵢ, t = N c/(1 + (N−1) c), c = mean of cos(δᵢ,δⱼ) over all pairs; t = 0 where c ≤ 0",
        paper: ("Jang et al., Model Stock, ECCV 2024", "https://arxiv.org/abs/2403.19522"),
        base: BaseUse::Required,
        experts: (2, None),
        reads: 1,
        memory: Memory::Row,
        seeded: false,
        program: model_stock,
        parameters: &[both(
            "filter_wise",
            Kind::Flag,
            false,
            Default::Flag(false),
            "an angle for each output (a row of a Linear, a column of GPT-2's Conv1D, a filter) instead of each tensor; with mergekit's semantics for each run along the last axis",
        )],
        ignored_in_mergekit: &[],
        modes: "mergekit takes the product of two norms as 1e-6 at least, which pulls small deltas towards the base, and lets t go below 0 where the experts disagree, to the far side of the base and beyond all bounds.",
    },
];

/// How coefficients are made of inner products.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// The point at `t` on an arc, straight for small angles.
    Slerp {
        /// Position on the arc.
        t: f64,
    },
    /// The point at `t` on an arc.
    Nuslerp {
        /// Position on the arc.
        t: f64,
    },
    /// The weighted mean of directions and of lengths.
    Mean {
        /// The weights.
        weights: Vec<f64>,
        /// Length of a mean that has no direction.
        eps: f64,
    },
    /// The Fréchet mean.
    Karcher {
        /// Most steps.
        max_iter: u32,
        /// Length of a step that is none.
        tol: f64,
    },
    /// Model Stock.
    Stock,
}

impl Rule {
    /// Whether vectors that are all equal give that vector.
    #[must_use]
    pub fn keeps_equal(&self) -> bool {
        match self {
            Self::Slerp { .. } | Self::Nuslerp { .. } | Self::Karcher { .. } => true,
            Self::Mean { weights, .. } => (weights.iter().sum::<f64>() - 1.0).abs() < 1e-12,
            Self::Stock => false,
        }
    }
}

/// What of a tensor is one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// All of it.
    Whole,
    /// What belongs to one output.
    Outputs,
    /// What belongs to one input.
    Inputs,
    /// A run along the last axis.
    LastAxis,
    /// A run along the first axis.
    FirstAxis,
}

/// The vectors of a tensor as they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vectors {
    /// One.
    Whole,
    /// Runs of so many neighbours.
    Rows(u64),
    /// The columns of a matrix, or of each matrix of a batch.
    Columns {
        /// Elements of a column.
        rows: u64,
        /// Columns of a matrix.
        columns: u64,
    },
}

/// A method of this family.
#[derive(Debug, Clone, PartialEq)]
pub struct Gram {
    /// Index of the base among the models, where deltas from one are merged.
    pub base: Option<usize>,
    /// Indices of the experts.
    pub experts: Vec<usize>,
    /// How coefficients are made.
    pub rule: Rule,
    /// What is one vector.
    pub cut: Cut,
    /// mergekit's treatment of small norms and large angles.
    pub mergekit: bool,
}

impl Gram {
    /// The vectors of a tensor.
    #[must_use]
    pub fn vectors(&self, tensor: &PlannedTensor) -> Vectors {
        vectors(self.cut, &tensor.shape, tensor.matrix)
    }
}

/// The vectors of a tensor of this shape.
fn vectors(cut: Cut, shape: &[u64], matrix: Option<Matrix>) -> Vectors {
    let elements: u64 = shape.iter().product();
    let (&[first, .., last], true) = (shape, elements > 0) else { return Vectors::Whole };
    let (rows, columns, along_rows) = match (cut, matrix) {
        (Cut::Whole, _) => return Vectors::Whole,
        (Cut::LastAxis, _) => (elements / last, last, true),
        (Cut::Outputs, Some(m)) => (m.rows, m.columns, !m.transposed),
        (Cut::Inputs, Some(m)) => (m.rows, m.columns, m.transposed),
        (Cut::FirstAxis, Some(m)) => (m.rows, m.columns, false),
        (Cut::Outputs, None) => (first, elements / first, true),
        (Cut::Inputs | Cut::FirstAxis, None) => (first, elements / first, false),
    };
    match along_rows {
        true if columns == elements => Vectors::Whole,
        true => Vectors::Rows(columns),
        false if rows == elements => Vectors::Whole,
        false if rows == 1 => Vectors::Rows(1),
        false => Vectors::Columns { rows, columns },
    }
}

fn program(setup: &Setup<'_>, rule: Rule, cut: Cut) -> Program {
    Program::Gram(Gram {
        base: setup.has_base.then_some(0),
        experts: (setup.first()..setup.first() + setup.experts()).collect(),
        rule,
        cut,
        mergekit: setup.mergekit(),
    })
}

fn slerp(setup: &Setup<'_>) -> Result<Program> {
    let t = setup.settings.number("t");
    Ok(if t == 0.0 {
        Program::copy(0)
    } else if t == 1.0 {
        Program::copy(1)
    } else {
        // A base is one of the ends, not what deltas are taken from.
        let (base, experts, cut) = (None, vec![0, 1], Cut::Whole);
        Program::Gram(Gram { base, experts, rule: Rule::Slerp { t }, cut, mergekit: setup.mergekit() })
    })
}

/// Sum of weights below which mergekit's `nuslerp` goes half way.
const MERGEKIT_NO_SUM: f64 = 1e-6;

fn nuslerp(setup: &Setup<'_>) -> Result<Program> {
    let settings = setup.settings;
    let weights = settings.weights();
    let sum: f64 = weights.iter().sum();
    let t = if setup.mergekit() && sum.abs() < MERGEKIT_NO_SUM {
        0.5
    } else {
        setup.check_weight_sum()?;
        weights[1] / sum
    };
    let row_wise = settings.flag("nuslerp_row_wise");
    let cut = match (settings.flag("nuslerp_flatten"), setup.mergekit()) {
        (true, _) => Cut::Whole,
        (false, true) if row_wise => Cut::FirstAxis,
        (false, true) => Cut::LastAxis,
        (false, false) if row_wise => Cut::Outputs,
        (false, false) => Cut::Inputs,
    };
    Ok(if t == 0.0 {
        Program::copy(setup.first())
    } else if t == 1.0 {
        Program::copy(setup.first() + 1)
    } else {
        program(setup, Rule::Nuslerp { t }, cut)
    })
}

fn multislerp(setup: &Setup<'_>) -> Result<Program> {
    let settings = setup.settings;
    let mut weights = settings.weights();
    if weights.len() == 1 {
        // Alone it is returned as it is, whatever its weight: mergekit's rule.
        return Ok(Program::copy(setup.first()));
    }
    if settings.flag("normalize_weights") {
        setup.check_weight_sum()?;
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= sum);
    }
    let experts: Vec<usize> = (0..weights.len()).filter(|i| weights[*i] != 0.0).collect();
    match (&experts[..], setup.has_base) {
        ([], true) => return Ok(Program::copy(0)),
        ([], false) => return Ok(linear::weighted_sum(0, &weights, 1.0)),
        ([one], _) if weights[*one] == 1.0 => return Ok(Program::copy(setup.first() + one)),
        _ => {}
    }
    weights.retain(|w| *w != 0.0);
    Ok(Program::Gram(Gram {
        base: setup.has_base.then_some(0),
        experts: experts.iter().map(|i| setup.first() + i).collect(),
        rule: Rule::Mean { weights, eps: settings.number("eps") },
        cut: Cut::Whole,
        mergekit: setup.mergekit(),
    }))
}

fn karcher(setup: &Setup<'_>) -> Result<Program> {
    if setup.experts() == 1 {
        return Ok(Program::copy(setup.first()));
    }
    let max_iter = setup.settings.number("max_iter") as u32;
    Ok(program(setup, Rule::Karcher { max_iter, tol: setup.settings.number("tol") }, Cut::Whole))
}

fn model_stock(setup: &Setup<'_>) -> Result<Program> {
    let cut = match (setup.settings.flag("filter_wise"), setup.mergekit()) {
        (false, _) => Cut::Whole,
        (true, true) => Cut::LastAxis,
        (true, false) => Cut::Outputs,
    };
    Ok(program(setup, Rule::Stock, cut))
}

impl Family for Gram {
    fn models(&self) -> Vec<usize> {
        self.base.into_iter().chain(self.experts.iter().copied()).collect()
    }

    fn passes(&self) -> Passes {
        Passes { scans: 1, whole_model: false }
    }

    fn passes_of(&self, tensor: &PlannedTensor) -> Passes {
        match self.vectors(tensor) {
            Vectors::Rows(_) => Passes { scans: 0, whole_model: false },
            Vectors::Whole | Vectors::Columns { .. } => self.passes(),
        }
    }

    fn group(&self, tensor: &PlannedTensor) -> u64 {
        match self.vectors(tensor) {
            Vectors::Rows(len) => len,
            Vectors::Whole | Vectors::Columns { .. } => 1,
        }
    }

    fn memory(&self, tensor: &PlannedTensor) -> (u64, u64) {
        match self.vectors(tensor) {
            Vectors::Columns { rows, .. } => {
                let count = self.experts.len() as u64;
                // Inner products and coefficients of all columns, and those of a few tiles.
                (8 * (tensor.elements / rows) * (4 * count * (count + 1) / 2 + count), 0)
            }
            Vectors::Whole | Vectors::Rows(_) => (0, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_of_every_kind_of_tensor() {
        let linear = Some(Matrix { batch: 1, rows: 4, columns: 6, transposed: false });
        let conv1d = linear.map(|m| Matrix { transposed: true, ..m });
        let stacked = Some(Matrix { batch: 3, rows: 4, columns: 6, transposed: false });
        let (rows, columns) = (Vectors::Rows(6), Vectors::Columns { rows: 4, columns: 6 });
        for (cut, shape, matrix, want) in [
            (Cut::Outputs, &[4, 6][..], linear, rows),
            (Cut::Inputs, &[4, 6], linear, columns),
            (Cut::Outputs, &[4, 6], conv1d, columns),
            (Cut::Inputs, &[4, 6], conv1d, rows),
            (Cut::LastAxis, &[4, 6], conv1d, rows),
            (Cut::FirstAxis, &[4, 6], conv1d, columns),
            (Cut::Outputs, &[3, 4, 6], stacked, rows),
            (Cut::FirstAxis, &[3, 4, 6], stacked, columns),
            (Cut::Outputs, &[5, 2, 3, 3], None, Vectors::Rows(18)),
            (Cut::LastAxis, &[5, 2, 3, 3], None, Vectors::Rows(3)),
            (Cut::FirstAxis, &[5, 2, 3, 3], None, Vectors::Columns { rows: 5, columns: 18 }),
            (Cut::Outputs, &[1, 6], None, Vectors::Whole),
            (Cut::Inputs, &[1, 6], None, Vectors::Rows(1)),
            (Cut::Inputs, &[6, 1], None, Vectors::Whole),
            (Cut::Outputs, &[6, 1], None, Vectors::Rows(1)),
            (Cut::Outputs, &[6], None, Vectors::Whole),
            (Cut::Outputs, &[], None, Vectors::Whole),
            (Cut::Inputs, &[0, 4], None, Vectors::Whole),
            (Cut::Whole, &[4, 6], linear, Vectors::Whole),
        ] {
            assert_eq!(vectors(cut, shape, matrix), want, "{cut:?} {shape:?}");
        }
    }
}
