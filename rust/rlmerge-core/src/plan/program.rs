//! A method with its numbers filled in: what [`crate::exec`] interprets.

use super::method::{Family, Sparsify};
use super::recipe::{Compat, Settings};

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

/// A method with its numbers.
#[derive(Debug, Clone, PartialEq)]
pub enum Program {
    /// One model times a factor; with factor 1, its bytes.
    Scaled {
        /// Index among the models.
        model: usize,
        /// The factor.
        factor: f64,
    },
    /// `Σ wᵢ θᵢ / divisor`.
    Linear {
        /// Index among the models, and weight.
        experts: Vec<(usize, f64)>,
        /// The divisor.
        divisor: f64,
    },
    /// A task-vector method.
    Deltas(Deltas),
    /// Spherical interpolation.
    Slerp {
        /// Index of the model at t = 0.
        start: usize,
        /// Index of the model at t = 1.
        end: usize,
        /// Position on the arc.
        t: f64,
        /// mergekit's treatment of zero tensors.
        mergekit: bool,
    },
}

impl Program {
    /// Fills in the numbers. Models are numbered with the base first, if there is one.
    #[must_use]
    pub fn new(settings: &Settings, base: Option<usize>, seed: u64) -> Self {
        let first = usize::from(base.is_some());
        let count = settings.experts.len();
        match settings.method.family {
            Family::Passthrough => Self::Scaled { model: first, factor: settings.number("scale") },
            Family::Slerp => {
                let t = settings.number("t");
                if t == 0.0 {
                    Self::Scaled { model: 0, factor: 1.0 }
                } else if t == 1.0 {
                    Self::Scaled { model: 1, factor: 1.0 }
                } else {
                    Self::Slerp { start: 0, end: 1, t, mergekit: settings.compat == Compat::Mergekit }
                }
            }
            Family::Linear => Self::linear(settings, first, count),
            Family::Deltas(sparsify, elects) => Self::deltas(settings, sparsify, elects, seed),
        }
    }

    fn linear(settings: &Settings, first: usize, count: usize) -> Self {
        let weights = settings.weights();
        let sum: f64 = weights.iter().sum();
        let divisor = if settings.flag("normalize") { sum } else { 1.0 };
        let mut experts: Vec<(usize, f64)> =
            (0..count).map(|i| (first + i, weights[i])).filter(|(_, w)| *w != 0.0).collect();
        if experts.is_empty() {
            // Nothing has weight and nothing is divided: zeros, in the shape of the first model.
            experts.push((first, 0.0));
        }
        match experts[..] {
            [(model, weight)] if weight / divisor == 1.0 => Self::Scaled { model, factor: 1.0 },
            _ => Self::Linear { experts, divisor },
        }
    }

    fn deltas(settings: &Settings, sparsify: Sparsify, elects: bool, seed: u64) -> Self {
        let mergekit = settings.compat == Compat::Mergekit;
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
            [] => return Self::Scaled { model: 0, factor: 1.0 },
            // One whole expert in full measure is that expert, whatever its deltas round to.
            [one] if one.density == 1.0 && lambda == 1.0 => {
                let full = if normalize { one.weight > 0.0 || !elects } else { one.weight == 1.0 };
                if full {
                    return Self::Scaled { model: one.model, factor: 1.0 };
                }
            }
            _ => {}
        }
        Self::Deltas(Deltas {
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
            seed,
            mergekit,
        })
    }

    /// The models whose bytes are read for tensors with arithmetic, in order.
    #[must_use]
    pub fn models(&self) -> Vec<usize> {
        match self {
            Self::Scaled { model, .. } => vec![*model],
            Self::Linear { experts, .. } => experts.iter().map(|(m, _)| *m).collect(),
            Self::Deltas(d) => std::iter::once(d.base).chain(d.experts.iter().map(|e| e.model)).collect(),
            Self::Slerp { start, end, .. } => vec![*start, *end],
        }
    }

    /// Index of the base, for programs that merge deltas.
    #[must_use]
    pub fn base(&self) -> Option<usize> {
        match self {
            Self::Deltas(d) => Some(d.base),
            _ => None,
        }
    }

    /// Whether equal inputs give that same output, so that a tile that is byte-identical in all of them
    /// can be copied.
    #[must_use]
    pub fn keeps_common_values(&self) -> bool {
        match self {
            Self::Scaled { factor, .. } => *factor == 1.0,
            Self::Linear { experts, divisor } => experts.iter().map(|(_, w)| w).sum::<f64>() == *divisor,
            Self::Deltas(_) | Self::Slerp { .. } => true,
        }
    }

    /// How often the inputs are gone through: from the disk for whole-model statistics, otherwise from
    /// the page cache, one tensor at a time.
    #[must_use]
    pub fn passes(&self) -> Passes {
        match self {
            Self::Scaled { .. } | Self::Linear { .. } => Passes { scans: 0, whole_model: false },
            Self::Slerp { .. } => Passes { scans: 1, whole_model: false },
            Self::Deltas(d) => {
                let sparse = d.experts.iter().any(|e| e.density < 1.0);
                let select = u32::from(sparse && d.sparsify == Sparsify::Magnitude);
                let norms = u32::from(sparse && matches!(d.rescale, Rescale::L1 | Rescale::L2));
                let vote = u32::from(d.election == Some(ZeroSign::Majority));
                Passes { scans: select + norms + vote, whole_model: d.whole_model }
            }
        }
    }
}

/// Scans before the pass that computes the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passes {
    /// Number of scans.
    pub scans: u32,
    /// Whether they run over the whole model before anything is computed.
    pub whole_model: bool,
}
