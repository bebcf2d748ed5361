//! Families of methods. A family is what its methods share: the rows of the table, the numbers that they need
//! ([`Program`]), and, under the same name in `exec` and `kernel`, what is done with a tensor.

pub mod deltas;
pub mod fisher;
pub mod linear;
pub mod neuromerging;
pub mod regmean;
pub mod resmerge;
pub mod slerp;

use super::PlannedTensor;
use super::method::{ANY, Default, Method, Parameter, both, split};
use super::recipe::{Compat, Settings};
use crate::error::{Error, Result};

/// The rows of all families, in the order in which they are listed.
pub static METHODS: &[&[Method]] = &[
    linear::METHODS,
    deltas::METHODS,
    slerp::METHODS,
    fisher::METHODS,
    resmerge::METHODS,
    neuromerging::METHODS,
    regmean::METHODS,
];

/// A method with its numbers filled in: what [`crate::exec`] interprets.
#[derive(Debug, Clone, PartialEq)]
pub enum Program {
    /// One model times a factor.
    Scaled(linear::Scaled),
    /// A weighted sum of models.
    Linear(linear::Linear),
    /// A task-vector method.
    Deltas(deltas::Deltas),
    /// Spherical interpolation.
    Slerp(slerp::Slerp),
    /// A Fisher-weighted average.
    Fisher(fisher::Fisher),
    /// ResMerge.
    ResMerge(resmerge::ResMerge),
    /// NeuroMerging.
    NeuroMerging(neuromerging::NeuroMerging),
    /// RegMean.
    RegMean(regmean::RegMean),
}

impl Program {
    /// A copy of one model.
    #[must_use]
    pub const fn copy(model: usize) -> Self {
        Self::Scaled(linear::Scaled { model, factor: 1.0 })
    }

    /// What the plan needs to know of it.
    #[must_use]
    pub fn family(&self) -> &dyn Family {
        match self {
            Self::Scaled(p) => p,
            Self::Linear(p) => p,
            Self::Deltas(p) => p,
            Self::Slerp(p) => p,
            Self::Fisher(p) => p,
            Self::ResMerge(p) => p,
            Self::NeuroMerging(p) => p,
            Self::RegMean(p) => p,
        }
    }
}

/// What the plan needs to know of a program.
pub trait Family {
    /// The models whose bytes are read for tensors with arithmetic, in order. A base comes first.
    fn models(&self) -> Vec<usize>;

    /// How often the inputs are gone through: from the disk for whole-model statistics, otherwise from
    /// the page cache, one tensor at a time.
    fn passes(&self) -> Passes {
        Passes { scans: 0, whole_model: false }
    }

    /// The passes over one tensor, where that depends on the tensor.
    fn passes_of(&self, _tensor: &PlannedTensor) -> Passes {
        self.passes()
    }

    /// Bytes that are kept while a tensor is merged, and those of each worker, beyond tiles and counters.
    fn memory(&self, _tensor: &PlannedTensor) -> (u64, u64) {
        (0, 0)
    }

    /// Number of neighbouring elements that must be seen together, such as a row; 1 where each element
    /// stands alone.
    fn group(&self, _tensor: &PlannedTensor) -> u64 {
        1
    }

    /// Number of groups that are worth seeing together.
    fn together(&self, _tensor: &PlannedTensor) -> u64 {
        1
    }

    /// The statistics that it needs besides models.
    fn statistic(&self) -> Option<Statistic> {
        None
    }

    /// What is done with tensors for which the user brought no statistics.
    fn without_statistics(&self) -> Option<Program> {
        None
    }
}

/// Statistics of experts that the user brings: one safetensors file or folder for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statistic {
    /// The parameter that names the files.
    pub parameter: &'static str,
    /// Whether they are Gram matrices of a layer's inputs; otherwise there is one number for each element.
    pub gram: bool,
    /// Those that are used, as indices behind the models.
    pub files: Vec<usize>,
}

/// Scans before the pass that computes the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passes {
    /// Number of scans.
    pub scans: u32,
    /// Whether they run over the whole model before anything is computed.
    pub whole_model: bool,
}

/// What a program is made from.
#[derive(Debug)]
pub struct Setup<'a> {
    /// The resolved parameters.
    pub settings: &'a Settings,
    /// Whether there is a base; it is model 0 then, and the experts follow.
    pub has_base: bool,
    /// Seed of random choices.
    pub seed: u64,
}

impl Setup<'_> {
    /// Whether mergekit's semantics count.
    #[must_use]
    pub fn mergekit(&self) -> bool {
        self.settings.compat == Compat::Mergekit
    }

    /// Index of the first expert among the models.
    #[must_use]
    pub fn first(&self) -> usize {
        usize::from(self.has_base)
    }

    /// Number of experts.
    #[must_use]
    pub fn experts(&self) -> usize {
        self.settings.experts.len()
    }

    /// Refuses weights whose sum is to be divided by and is zero.
    ///
    /// # Errors
    /// [`Error::ZeroWeightSum`].
    pub fn check_weight_sum(&self) -> Result<()> {
        let sum: f64 = self.settings.weights().iter().sum();
        // mergekit takes a tiny sum for zero, and then silently does not divide.
        let tiny = if self.mergekit() { MERGEKIT_TINY_SUM } else { 0.0 };
        if sum.abs() <= tiny || !sum.is_finite() {
            return Err(Error::ZeroWeightSum { method: self.settings.method.name.into(), sum });
        }
        Ok(())
    }
}

/// Sum of weights that mergekit takes for zero.
const MERGEKIT_TINY_SUM: f64 = 1e-8;

/// Weight of an expert.
pub const WEIGHT: Parameter = split(
    "weight",
    ANY,
    true,
    (Default::Number(1.0), Default::Missing),
    "factor of the expert; an expert of weight 0 takes no part",
);

/// Factor of a merged delta.
pub const LAMBDA: Parameter = both(
    "lambda",
    ANY,
    false,
    Default::Number(1.0),
    "factor of the merged delta before it is added to the base",
);
