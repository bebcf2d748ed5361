//! What modifiers need to know before a tensor is merged: the norms of the experts' deltas, and LiNeS's α.

use std::ops::Range;
use std::sync::PoisonError;

use super::learning::Material;
use super::{Run, is_merged};
use crate::error::{Error, Result};
use crate::exec::norms::NormsJob;
use crate::exec::pass::TileId;
use crate::exec::tile::{Modified, Slice, Work};
use crate::plan::PlannedTensor;
use crate::plan::modifiers::{MatchNorm, MatchScope, Treatment};

/// What the experts' deltas are multiplied by.
#[derive(Clone, Copy)]
pub(super) enum Factors<'s> {
    /// The same in all tensors; empty when they stay as they are.
    Same(&'s [f64]),
    /// For each tensor of the plan.
    Each(&'s [Vec<f64>]),
}

impl<'s> Factors<'s> {
    pub(super) const NONE: Self = Self::Same(&[]);

    /// Those of one tensor.
    pub(super) fn of(self, tensor: usize) -> &'s [f64] {
        match self {
            Self::Same(factors) => factors,
            Self::Each(factors) => &factors[tensor],
        }
    }
}

impl Run<'_> {
    /// LiNeS's α out of what was measured: `‖Σ δᵢ‖₁ / (T · ‖δ‖₁)`.
    pub(super) fn find_alpha(&mut self) -> Result<f64> {
        let measured = self.measured.take().map(|m| m.into_inner().unwrap_or_else(PoisonError::into_inner));
        let mut tiles = measured.unwrap_or_default();
        tiles.sort_unstable_by_key(|(ordinal, _)| *ordinal);
        let sum = |at: usize| tiles.iter().map(|(_, sums)| sums[at]).sum::<f64>();
        let (merged, added) = (sum(0), sum(1));
        let alpha = added / merged / self.experts().len() as f64;
        if alpha.is_finite() {
            return Ok(alpha);
        }
        if merged == 0.0 && added == 0.0 {
            // Nothing is added to the base, so that no factor changes anything.
            return Ok(1.0);
        }
        Err(Error::NonFinite {
            tensor: "the whole model".into(),
            message:
                "the α of `lines` has no value, because the merged delta is zero or not finite; give a number"
                    .into(),
        })
    }

    /// The experts that the method reads, as indices among the models: those without weight take no part.
    pub(super) fn experts(&self) -> Vec<usize> {
        self.plan.programs[Treatment::Merge as usize].family().models().split_off(1)
    }

    /// The factors that bring these norms to one, in the order of the experts that are read.
    pub(super) fn factors(&self, norm: MatchNorm, norms: &[f64]) -> Vec<f64> {
        norm.factors(norms, |number| self.experts().iter().position(|model| *model == number))
    }

    /// The factors of all experts of the recipe; none for those that take no part.
    pub(super) fn factors_by_expert(&self) -> Vec<Option<f64>> {
        let experts = self.experts();
        let factor = |number| experts.iter().position(|model| *model == number).map(|at| self.factors[at]);
        (1..=self.plan.recipe.models.len()).map(factor).collect()
    }

    /// Norms of the experts' deltas over those tensors of a range that are `mine`.
    pub(super) fn norms(
        &self,
        tensors: Range<usize>,
        mine: &(dyn Fn(&PlannedTensor) -> bool + Sync),
        scope: &str,
        keep_pages: bool,
    ) -> Result<Vec<f64>> {
        let mut job = NormsJob::new(self.experts().len());
        let material = Material { tensors, mine, scope, keep_pages, factors: Factors::NONE };
        self.learn(&mut job, material, None)?;
        Ok(job.into_norms())
    }

    /// Whether the norms of the experts are matched in this tensor alone.
    pub(super) fn matches_alone(&self, tensor: &PlannedTensor) -> Option<MatchNorm> {
        let modifiers = &self.plan.recipe.modifiers;
        let here = modifiers.match_norm_scope == MatchScope::Tensor && is_merged(tensor);
        modifiers.match_norm.filter(|_| here)
    }

    /// What modifiers do to a tile, given the factors of the experts that hold for its tensor.
    pub(super) fn modified<'s>(&self, tensor: &PlannedTensor, factors: &'s [f64]) -> Modified<'s> {
        if !is_merged(tensor) {
            return Modified::NOT;
        }
        let change = match self.plan.recipe.modifiers.lines {
            Some(lines) if self.measured.is_none() => self.alpha + lines.beta * tensor.depth,
            _ => 1.0,
        };
        Modified { experts: factors, change }
    }

    /// The factors of the experts in a tensor of one tile.
    pub(super) fn match_alone(
        &self,
        work: &mut Work,
        slice: &Slice<'_>,
        id: TileId,
        norm: MatchNorm,
    ) -> Result<Vec<f64>> {
        let mut job = NormsJob::new(self.experts().len());
        self.learn_alone(work, slice, id, &mut job, &[])?;
        Ok(self.factors(norm, &job.into_norms()))
    }

    /// The factors in each tensor that is `mine`, where they differ between tensors.
    pub(super) fn factors_of_each(
        &self,
        mine: &(dyn Fn(&PlannedTensor) -> bool + Sync),
    ) -> Result<Option<Vec<Vec<f64>>>> {
        let tensors = || self.plan.tensors.iter().enumerate();
        if !tensors().any(|(_, t)| mine(t) && self.matches_alone(t).is_some()) {
            return Ok(None);
        }
        let of = |(at, tensor): (usize, &PlannedTensor)| match self.matches_alone(tensor) {
            Some(norm) if mine(tensor) => {
                Ok(self.factors(norm, &self.norms(at..at + 1, &|_| true, &tensor.name, false)?))
            }
            _ => Ok(Vec::new()),
        };
        tensors().map(of).collect::<Result<_>>().map(Some)
    }
}
