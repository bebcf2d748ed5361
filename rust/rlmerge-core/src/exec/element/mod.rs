//! Methods that decide element by element. Those that need no more than a weight an expert stand here; those that
//! rank elements by scores have a file each.
//!
//! Elements at which an expert is not finite are left out of all statistics, and come out not finite: one NaN
//! changes nothing but its own element.

mod arcee;
mod pcb;
mod sce;

use serde_json::{Map, Value, json};

use super::job::{Chunk, Job, Partial, Scope, Ties};
use crate::error::Result;
use crate::kernel::lanes::{self, Lanes};
use crate::kernel::values::Numbers;
use crate::kernel::{combine, element, pair};
use crate::plan::family::element::{Element, Rule};

/// The method at work on a scope.
pub fn job(plan: Element, scope: Scope<'_>) -> Box<dyn Job> {
    let experts = plan.experts;
    match plan.rule {
        Rule::MagMax { lambda } => Box::new(MagMaxJob { experts, lambda }),
        Rule::NearSwap { t, mergekit } => {
            Box::new(NearSwapJob { t, blunt: if mergekit { BLUNT } else { 0.0 } })
        }
        Rule::Sce { select_topk, mergekit } => {
            Box::new(sce::SceJob::new(experts, select_topk, mergekit, scope))
        }
        Rule::ArceeFusion => Box::new(arcee::ArceeJob::new(scope)),
        Rule::Pcb { ratio, clip, lambda, .. } => {
            Box::new(pcb::PcbJob::new(experts, ratio, clip, lambda, scope))
        }
        Rule::MetaGpt { .. } => Box::new(MetaGptJob { experts, norms: Vec::new(), weights: None }),
    }
}

/// mergekit's least divisor in NearSwap.
const BLUNT: f64 = 1e-6;

/// The delta of each expert into its buffer, with zeros where the sum is not finite, and that sum into `total`. The
/// squares of the whole deltas join `squares`, if given.
fn load_deltas(chunk: &mut Chunk<'_>, experts: usize, mut squares: Option<&mut [Lanes]>) {
    let (level, len) = (chunk.level, chunk.len);
    let (base, scratch) = (&chunk.values[0], &mut *chunk.scratch);
    let total = &mut scratch.total[..len];
    if experts == 2 {
        let (first, second) = scratch.deltas.split_at_mut(scratch.stride);
        let (first, second) = (&mut first[..len], &mut second[..len]);
        let mut none = [Lanes::default(); 3];
        let [_, x_squares, y_squares, ..] = squares.unwrap_or(&mut none) else {
            unreachable!("there are sums for the base and two experts");
        };
        match (chunk.values[1].against(base), chunk.values[2].against(base)) {
            ((Numbers::Narrow(x), Numbers::Narrow(u)), (Numbers::Narrow(y), Numbers::Narrow(v))) => {
                pair::load_narrow(level, x, u, y, v, first, second, total, x_squares, y_squares);
            }
            ((Numbers::Wide(x), Numbers::Wide(u)), (Numbers::Wide(y), Numbers::Wide(v))) => {
                pair::load_wide(level, x, u, y, v, first, second, total, x_squares, y_squares);
            }
            _ => unreachable!("the models of a tensor share one width"),
        }
        return;
    }
    for (at, delta) in scratch.deltas.chunks_mut(scratch.stride).take(experts).enumerate() {
        let delta = &mut delta[..len];
        match &mut squares {
            Some(squares) => {
                chunk.values[at + 1].cut_delta(level, base, 0, false, 1.0, delta, &mut squares[at + 1])
            }
            None => chunk.values[at + 1].delta(level, base, delta),
        }
        if at == 0 { total.copy_from_slice(delta) } else { combine::add(level, delta, total) }
    }
    for at in 0..experts {
        let delta = &mut scratch.deltas[at * scratch.stride..at * scratch.stride + len];
        element::clean(level, delta, total);
    }
}

/// The largest change of all experts.
struct MagMaxJob {
    experts: usize,
    lambda: f64,
}

impl Job for MagMaxJob {
    fn apply(&self, chunk: &mut Chunk<'_>, _ties: &mut [Ties], squares: &mut [Lanes]) {
        let (level, len) = (chunk.level, chunk.len);
        let (base, scratch) = (&chunk.values[0], &mut *chunk.scratch);
        let (delta, best) = (&mut scratch.deltas[..len], &mut scratch.out[..len]);
        for (at, squares) in squares.iter_mut().enumerate().skip(1).take(self.experts) {
            chunk.values[at].cut_delta(level, base, 0, false, 1.0, delta, squares);
            if at == 1 { best.copy_from_slice(delta) } else { element::take_larger(level, delta, best) }
        }
        base.add_change(level, self.lambda, best);
    }
}

/// A step towards one expert.
struct NearSwapJob {
    t: f64,
    /// mergekit's least divisor, or zero.
    blunt: f64,
}

impl Job for NearSwapJob {
    fn apply(&self, chunk: &mut Chunk<'_>, _ties: &mut [Ties], squares: &mut [Lanes]) {
        let (level, out) = (chunk.level, &mut chunk.scratch.out[..chunk.len]);
        let squares = &mut squares[1];
        match (chunk.values[1].numbers(), chunk.values[0].numbers()) {
            (Numbers::Narrow(x), Numbers::Narrow(b)) => {
                element::near_swap_narrow(level, x, b, self.t, self.blunt, out, squares);
            }
            (Numbers::Wide(x), Numbers::Wide(b)) => {
                element::near_swap_wide(level, x, b, self.t, self.blunt, out, squares);
            }
            _ => unreachable!("the models of a tensor share one width"),
        }
    }
}

/// Task arithmetic with weights from norms.
struct MetaGptJob {
    experts: usize,
    norms: Vec<f64>,
    weights: Option<Vec<f64>>,
}

impl Job for MetaGptJob {
    fn needs_scan(&self) -> bool {
        self.weights.is_none()
    }

    fn partial(&self) -> Partial {
        Partial::with_lanes(self.experts)
    }

    fn scan(&self, chunk: &mut Chunk<'_>, partial: &mut Partial) {
        load_deltas(chunk, self.experts, None);
        for (at, sum) in partial.lanes.iter_mut().enumerate() {
            lanes::add_squares_wide(chunk.level, chunk.scratch.delta(at, chunk.len), sum);
        }
    }

    fn learn(&mut self, partial: Partial, _tensor: &str) -> Result<()> {
        let squares = partial.sums();
        let all: f64 = squares.iter().sum();
        // Without any change there is nothing to weigh.
        self.norms = squares.iter().map(|s| s.sqrt()).collect();
        self.weights = Some(squares.iter().map(|s| if all > 0.0 { s / all } else { 0.0 }).collect());
        Ok(())
    }

    fn learnt(&self) -> Map<String, Value> {
        let lists = [("norms", json!(self.norms)), ("weights", json!(self.weights))];
        lists.map(|(name, list)| (name.to_string(), list)).into_iter().collect()
    }

    fn apply(&self, chunk: &mut Chunk<'_>, _ties: &mut [Ties], squares: &mut [Lanes]) {
        let Some(weights) = &self.weights else { return };
        load_deltas(chunk, self.experts, Some(squares));
        let (level, len) = (chunk.level, chunk.len);
        let scratch = &mut *chunk.scratch;
        let (total, out) = (&scratch.total[..len], &mut scratch.out[..len]);
        for (at, delta) in scratch.deltas.chunks_mut(scratch.stride).take(self.experts).enumerate() {
            let delta = &mut delta[..len];
            combine::scale(level, delta, weights[at]);
            if at == 0 { out.copy_from_slice(delta) } else { combine::add(level, delta, out) }
        }
        element::show_non_finite(level, total, out);
        chunk.values[0].add_change(level, 1.0, out);
    }
}
