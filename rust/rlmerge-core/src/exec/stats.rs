//! Statistics of tensors, gathered tile by tile and summed in tile order.

use std::sync::{Mutex, PoisonError};

use blake3::hazmat::ChainingValue;

use super::digest::{self, Part};
use crate::plan::{MergePlan, PlannedTensor};
use crate::report::{NonFiniteCounts, Norm, TensorReport, Totals};

/// What is known of one tile after it was written.
#[derive(Debug, Clone)]
pub struct TileStats {
    /// Chaining value in the tensor's BLAKE3; unused for tensors of one tile.
    pub chaining: ChainingValue,
    /// BLAKE3 of the whole tensor, for tensors of one tile.
    pub whole: Option<String>,
    /// Squared norm of the output; `None` without arithmetic.
    pub square: Option<f64>,
    /// Squared norm for each model that was read: of its delta, or of its values without a base.
    pub squares: Vec<f64>,
    /// Number of non-finite values of each model that was read, and the tensor's index of the first.
    pub non_finite_inputs: Vec<(u64, Option<u64>)>,
    /// Non-finite values of the output.
    pub non_finite: u64,
    /// Index in the tensor of the first one.
    pub first_non_finite: Option<u64>,
    /// Those of them whose sources are all finite, and the index of the first.
    pub made_here: (u64, Option<u64>),
    /// Values that were cut off at the largest of the dtype.
    pub clamped: u64,
    /// Bytes of a tensor of truth values that are neither 0 nor 1.
    pub odd_bools: u64,
    /// Whether the tile was copied.
    pub copied: bool,
    /// Bits of all tasks, until they are written.
    pub marks: Vec<u8>,
    /// What they add to the BLAKE3 of each task's bits.
    pub mark_parts: Vec<Part>,
    /// What the bytes of the first models add to theirs.
    pub source_parts: Vec<Part>,
    /// Sums that the method wants over the tensor.
    pub sums: Vec<f64>,
}

/// A tensor that is done.
#[derive(Debug, Clone)]
pub struct Finished {
    /// What is said of it.
    pub report: TensorReport,
    /// Its tiles.
    pub tiles: u64,
    /// Of which copied.
    pub tiles_copied: u64,
}

/// Statistics of all tensors. A tensor's tiles are kept only until the last one has come.
pub struct Statistics {
    open: Vec<Mutex<Vec<Option<TileStats>>>>,
    done: Vec<Mutex<Option<Finished>>>,
}

impl Statistics {
    /// For the tensors of a plan.
    pub fn new(plan: &MergePlan) -> Self {
        Self {
            open: plan.tensors.iter().map(|_| Mutex::new(Vec::new())).collect(),
            done: plan.tensors.iter().map(|_| Mutex::new(None)).collect(),
        }
    }

    /// Adds a tile; gives the tensor when it was its last.
    pub fn add(&self, plan: &MergePlan, tensor: usize, tile: u64, stats: TileStats) -> Option<Finished> {
        let planned = &plan.tensors[tensor];
        let tiles = {
            let mut open = self.open[tensor].lock().unwrap_or_else(PoisonError::into_inner);
            if open.is_empty() {
                open.resize(planned.tiles() as usize, None);
            }
            open[tile as usize] = Some(stats);
            if open.iter().rev().any(Option::is_none) {
                return None;
            }
            std::mem::take(&mut *open)
        };
        let tiles: Vec<TileStats> = tiles.into_iter().flatten().collect();
        Some(Finished {
            report: summarise(plan, planned, &tiles),
            tiles: tiles.len() as u64,
            tiles_copied: tiles.iter().filter(|t| t.copied).count() as u64,
        })
    }

    /// Keeps a tensor that is done.
    pub fn keep(&self, tensor: usize, finished: Finished) {
        *self.done[tensor].lock().unwrap_or_else(PoisonError::into_inner) = Some(finished);
    }

    /// Reports of all tensors, in the order of the plan, and their sums.
    pub fn finish(self) -> (Vec<TensorReport>, Totals) {
        let mut totals = Totals { tensors: self.done.len() as u64, ..Totals::default() };
        let done = self.done.into_iter().map(|d| d.into_inner().unwrap_or_else(PoisonError::into_inner));
        let reports = done.flatten().map(|Finished { report, tiles, tiles_copied }| {
            totals.tiles += tiles;
            totals.tiles_copied += tiles_copied;
            totals.tensors_copied += u64::from(report.action == "copied");
            totals.non_finite_inputs += report.non_finite.inputs.iter().sum::<u64>();
            totals.non_finite_output += report.non_finite.output;
            totals.non_finite_made_here += report.non_finite.made_here;
            report
        });
        (reports.collect(), totals)
    }
}

fn summarise(plan: &MergePlan, tensor: &PlannedTensor, tiles: &[TileStats]) -> TensorReport {
    let read = plan.read_models(tensor);
    let sum = |of: &dyn Fn(&TileStats) -> f64| tiles.iter().map(of).sum::<f64>();
    let norm = tiles[0].square.map(|_| Norm(sum(&|t| t.square.unwrap_or(0.0)).sqrt()));
    let first_expert = usize::from(plan.base.is_some());
    let expert_norm = |model: usize| {
        let at = read.iter().position(|m| *m == model)?;
        // Where the base takes no part, what was summed are the values and not the delta.
        if plan.base == Some(0) && !read.contains(&0) {
            return None;
        }
        norm.filter(|_| tiles[0].squares.len() > at).map(|_| Norm(sum(&|t| t.squares[at]).sqrt()))
    };
    let inputs = |model: usize| {
        let at = read.iter().position(|m| *m == model);
        let found = |t: &TileStats| at.and_then(|at| t.non_finite_inputs.get(at).copied());
        let count: u64 = tiles.iter().filter_map(found).map(|(count, _)| count).sum();
        (count, tiles.iter().filter_map(found).find_map(|(_, first)| first))
    };
    let (inputs, input_first): (Vec<u64>, Vec<Option<u64>>) = (0..plan.models.len()).map(inputs).unzip();
    let chaining: Vec<ChainingValue> = tiles.iter().map(|t| t.chaining).collect();
    let hashes = |of: &dyn Fn(&TileStats) -> &[Part]| -> Vec<String> {
        (0..of(&tiles[0]).len()).map(|at| digest::whole(tiles.iter().map(|t| &of(t)[at]))).collect()
    };
    TensorReport {
        name: tensor.name.clone(),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        shard: plan.layout.shards[tensor.shard].name.clone(),
        action: if tiles.iter().all(|t| t.copied) { "copied" } else { "computed" },
        blake3: tiles[0].whole.clone().unwrap_or_else(|| digest::combine(&chaining)),
        norm,
        expert_norms: (first_expert..plan.models.len()).map(expert_norm).collect(),
        non_finite: NonFiniteCounts {
            inputs,
            input_first,
            output: tiles.iter().map(|t| t.non_finite).sum(),
            first: tiles.iter().find_map(|t| t.first_non_finite),
            made_here: tiles.iter().map(|t| t.made_here.0).sum(),
            made_here_first: tiles.iter().find_map(|t| t.made_here.1),
            clamped: tiles.iter().map(|t| t.clamped).sum(),
        },
        odd_bools: tiles.iter().map(|t| t.odd_bools).sum(),
        mask_blake3: hashes(&|t| &t.mark_parts),
        source_blake3: hashes(&|t| &t.source_parts),
        sums: (0..tiles[0].sums.len()).map(|at| sum(&|t| t.sums[at])).collect(),
    }
}
