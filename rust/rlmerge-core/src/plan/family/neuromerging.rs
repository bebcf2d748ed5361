//! NeuroMerging: neurons, the rows of a matrix, are merged across the base's direction only.

use super::{Family, Passes, Program, Setup};
use crate::error::Result;
use crate::plan::PlannedTensor;
use crate::plan::method::{ANY, BaseUse, Default, Kind, Memory, Method, SHARE, both};
use crate::plan::role::Role;

/// The rows of this family.
pub const METHODS: &[Method] = &[Method {
    name: "neuromerging",
    aliases: &["neuro_merging", "neuro"],
    title: "NeuroMerging",
    summary: "Trims each delta, takes from each neuron the part along the base's own weights, and merges the rest by sign election in the basis of the experts' deltas.",
    formula: "δ̂ᵢ = top-k(|δᵢ|); for each neuron with base w: pᵢ = δ̂ᵢ − (⟨δ̂ᵢ,w⟩/‖w‖²) w; [p₁ … p_T] = U S Vᵀ; m_r = mean of the ⟨pᵢ,v_r⟩ that have the sign of their sum; θ = θ₀ + λ₂/(1−σ) Σ m_r v_r + λ₁ (the part along w, merged alike); σ = maxᵢ (1 − ‖δ̂ᵢ‖₁/‖δᵢ‖₁)",
    paper: (
        "Fang et al., To see a world in a spark of neuron: disentangling multi-task interference for training-free model merging, EMNLP 2025",
        "https://arxiv.org/abs/2503.05320",
    ),
    base: BaseUse::Required,
    experts: (1, None),
    reads: 1,
    memory: Memory::Row,
    seeded: false,
    program,
    parameters: &[
        both(
            "density",
            SHARE,
            true,
            Default::Number(0.2),
            "share of each delta's elements that is kept, the largest first; equal ones are all kept",
        ),
        both(
            "lambda_1",
            ANY,
            false,
            Default::Number(0.0),
            "factor of the part along the base's weights, which the authors drop",
        ),
        both("lambda_2", ANY, false, Default::Number(1.0), "factor of the part across them"),
        both(
            "auto_scale",
            Kind::Flag,
            false,
            Default::Flag(true),
            "divide the part across by 1 − σ, σ the largest share of an expert's L1 norm that was trimmed: the authors' rule without validation data",
        ),
    ],
    ignored_in_mergekit: &[],
    modes: "mergekit has no such method; the numbers are the same.",
}];

/// NeuroMerging.
#[derive(Debug, Clone, PartialEq)]
pub struct NeuroMerging {
    /// Share that is kept of each expert's delta; the base is model 0 and experts follow.
    pub densities: Vec<f64>,
    /// Factor of the part along the base's weights.
    pub along: f64,
    /// Factor of the part across.
    pub across: f64,
    /// Whether that is divided by what the trim left.
    pub auto_scale: bool,
}

/// Where a tensor's neurons are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Neurons {
    /// Each row as stored is one.
    Rows,
    /// Each column as stored.
    Columns,
    /// It has none: signs are elected for each element.
    None,
}

impl NeuroMerging {
    /// Matrices hold neurons. Norms and vectors do not (the authors' point behaviour), nor do routers, by this project's
    /// rule.
    #[must_use]
    pub fn neurons(tensor: &PlannedTensor) -> Neurons {
        match (Role::of(&tensor.name), tensor.matrix) {
            (Role::Norm | Role::Bias | Role::Router, _) | (_, None) => Neurons::None,
            (_, Some(m)) if m.transposed => Neurons::Columns,
            (_, Some(_)) => Neurons::Rows,
        }
    }

    /// Sums for each column of a matrix whose neurons are columns.
    #[must_use]
    pub fn sums_a_column(experts: usize) -> usize {
        1 + experts + experts * (experts + 1) / 2
    }
}

fn program(setup: &Setup<'_>) -> Result<Program> {
    let settings = setup.settings;
    Ok(Program::NeuroMerging(NeuroMerging {
        densities: settings.numbers("density"),
        along: settings.number("lambda_1"),
        across: settings.number("lambda_2"),
        auto_scale: settings.flag("auto_scale"),
    }))
}

impl Family for NeuroMerging {
    fn models(&self) -> Vec<usize> {
        (0..=self.densities.len()).collect()
    }

    fn passes(&self) -> Passes {
        let trims = u32::from(self.densities.iter().any(|d| *d < 1.0));
        Passes { scans: trims * (1 + u32::from(self.auto_scale)), whole_model: false }
    }

    fn passes_of(&self, tensor: &PlannedTensor) -> Passes {
        let trims = self.passes().scans;
        let scans = match Self::neurons(tensor) {
            Neurons::None => 0,
            Neurons::Rows => trims,
            Neurons::Columns => trims + 1,
        };
        Passes { scans, whole_model: false }
    }

    fn group(&self, tensor: &PlannedTensor) -> u64 {
        match (Self::neurons(tensor), tensor.matrix) {
            (Neurons::Rows | Neurons::Columns, Some(m)) => m.columns.max(1),
            _ => 1,
        }
    }

    fn memory(&self, tensor: &PlannedTensor) -> (u64, u64) {
        let Some(m) = tensor.matrix.filter(|_| Self::neurons(tensor) == Neurons::Columns) else {
            return (0, 0);
        };
        let sums = Self::sums_a_column(self.densities.len()) as u64 * m.columns * 8;
        let touched = crate::plan::TILE_ELEMENTS / (m.rows * m.columns).max(1) + 2;
        (2 * m.batch * sums, touched.min(m.batch) * sums)
    }
}
