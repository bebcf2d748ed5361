//! Families of methods. A family is what its methods share: the rows of the table, the numbers that they need
//! ([`Program`]), and, under the same name in `exec` and `kernel`, what is done with a tensor.

pub mod deltas;
pub mod element;
pub mod linear;
pub mod slerp;

use super::PlannedTensor;
use super::method::{ANY, Default, Method, Parameter, both, split};
use super::recipe::{Compat, Settings};
use crate::error::{Error, Result};

/// The rows of all families, in the order in which they are listed.
pub static METHODS: &[&[Method]] = &[linear::METHODS, deltas::METHODS, slerp::METHODS, element::METHODS];

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
    /// An element-wise method.
    Element(element::Element),
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
            Self::Element(p) => p,
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

    /// Number of neighbouring elements that must be seen together, such as a row; 1 where each element
    /// stands alone.
    fn group(&self, _tensor: &PlannedTensor) -> u64 {
        1
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
