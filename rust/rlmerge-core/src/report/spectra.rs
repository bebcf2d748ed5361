//! What the singular values and directions of the matrices say, as plain data: one number a name, of a matrix, and as
//! means over matrices.

use serde_json::{Map, Value, json};

use super::Norm;

/// Numbers of an expert.
pub const EXPERT: [&str; 21] = [
    "stable_rank",
    "stable_rank_chance",
    "effective_rank",
    "effective_rank_chance",
    "noise_rank",
    "signal_energy",
    "energy_1",
    "energy_1_chance",
    "energy_8",
    "energy_8_chance",
    "angle_left",
    "angle_right",
    "angle_left_typical",
    "angle_right_typical",
    "angle_left_chance",
    "angle_right_chance",
    "spectrum_shift",
    "spectrum_shift_share",
    "spectrum_shift_chance",
    "principal_overlap",
    "principal_overlap_chance",
];
/// Numbers of a pair.
pub const PAIR: [&str; 7] = [
    "subspace_a",
    "subspace_a_chance",
    "subspace_b",
    "subspace_b_chance",
    "interference",
    "interference_share",
    "interference_chance",
];
/// Numbers of all experts together.
pub const TOGETHER: [&str; 3] = ["interference", "interference_share", "interference_chance"];

/// A spectrum for a picture: some singular values of one matrix.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Curves {
    /// Sides of the matrix, the short one first.
    pub sides: [u64; 2],
    /// Indices of the values, the largest is 0.
    pub index: Vec<usize>,
    /// Those of the base.
    pub base: Vec<f64>,
    /// Those of each delta.
    pub deltas: Vec<Vec<f64>>,
    /// The size below which those of each delta count as noise.
    pub edges: Vec<f64>,
    /// Those of noise with norm 1.
    pub noise: Vec<f64>,
}

/// The numbers of a matrix, or means over some; one without a value is NaN.
#[derive(Debug, Clone, PartialEq)]
pub struct Spectra {
    /// Number of matrices.
    pub matrices: u64,
    /// Numbers of each expert, by [`EXPERT`].
    pub experts: Vec<[f64; EXPERT.len()]>,
    /// Numbers of each pair, by [`PAIR`].
    pub pairs: Vec<[f64; PAIR.len()]>,
    /// Numbers of all together, by [`TOGETHER`].
    pub together: [f64; TOGETHER.len()],
    /// For pictures: of a tensor, its first matrix.
    pub curves: Option<Curves>,
}

impl Spectra {
    /// Numbers without values.
    #[must_use]
    pub fn undefined(experts: usize, pairs: usize) -> Self {
        Self {
            matrices: 1,
            experts: vec![[f64::NAN; EXPERT.len()]; experts],
            pairs: vec![[f64::NAN; PAIR.len()]; pairs],
            together: [f64::NAN; TOGETHER.len()],
            curves: None,
        }
    }

    /// Means with weights, of the matrices in which a number has a value.
    #[must_use]
    pub fn mean(parts: &[(f64, &Self)]) -> Option<Self> {
        let (_, first) = parts.first()?;
        let mean = |of: &dyn Fn(&Self) -> f64| {
            let known = || parts.iter().map(|(weight, part)| (weight, of(part))).filter(|(_, v)| !v.is_nan());
            let weights: f64 = known().map(|(weight, _)| weight).sum();
            known().map(|(weight, value)| weight * value).sum::<f64>() / weights
        };
        Some(Self {
            matrices: parts.iter().map(|(_, part)| part.matrices).sum(),
            experts: (0..first.experts.len())
                .map(|at| std::array::from_fn(|i| mean(&|part| part.experts[at][i])))
                .collect(),
            pairs: (0..first.pairs.len())
                .map(|at| std::array::from_fn(|i| mean(&|part| part.pairs[at][i])))
                .collect(),
            together: std::array::from_fn(|i| mean(&|part| part.together[i])),
            curves: parts.iter().find_map(|(_, part)| part.curves.clone()),
        })
    }

    /// As JSON. What touches an expert with deltas that are not finite has no value.
    #[must_use]
    pub fn json(&self, odd: &[bool], pairs: &[(usize, usize)]) -> Value {
        let object = |names: &[&str], numbers: &[f64], odd: bool| -> Map<String, Value> {
            let number = |v: f64| json!(Norm(if odd { f64::NAN } else { v }));
            names.iter().zip(numbers).map(|(name, v)| ((*name).to_owned(), number(*v))).collect()
        };
        let experts = self.experts.iter().zip(odd).map(|(e, odd)| object(&EXPERT, e, *odd));
        let of_pairs = self.pairs.iter().zip(pairs).map(|(numbers, (a, b))| {
            let mut found = json!({"a": a, "b": b});
            if let Some(map) = found.as_object_mut() {
                map.extend(object(&PAIR, numbers, odd[*a] || odd[*b]));
            }
            found
        });
        json!({
            "matrices": self.matrices,
            "experts": experts.collect::<Vec<_>>(),
            "pairs": of_pairs.collect::<Vec<_>>(),
            "together": object(&TOGETHER, &self.together, odd.iter().any(|o| *o)),
        })
    }
}

impl Curves {
    /// As JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        let numbers = |values: &[f64]| values.iter().map(|v| json!(Norm(*v))).collect::<Vec<_>>();
        json!({
            "sides": self.sides,
            "index": self.index,
            "base": numbers(&self.base),
            "deltas": self.deltas.iter().map(|d| numbers(d)).collect::<Vec<_>>(),
            "edges": numbers(&self.edges),
            "noise": numbers(&self.noise),
        })
    }
}
