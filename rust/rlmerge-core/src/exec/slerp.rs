//! Spherical interpolation: one scan for the angle of the whole tensor, then a linear combination.

use super::job::{Chunk, Job, Partial, Ties};
use crate::error::{Error, Result};
use crate::kernel::lanes::Lanes;
use crate::kernel::slerp::{Arc, arc};
use crate::plan::family::slerp::Slerp;

/// Interpolation between two models at work.
pub struct SlerpJob {
    t: f64,
    mergekit: bool,
    arc: Option<Arc>,
    /// Whether the two tensors are the same.
    equal: bool,
}

impl SlerpJob {
    /// For any tensor.
    pub fn new(plan: Slerp) -> Self {
        Self { t: plan.t, mergekit: plan.mergekit, arc: None, equal: false }
    }
}

impl Job for SlerpJob {
    /// The weights of the two models do not sum to one, unless the angle is zero.
    fn keeps_common_values(&self) -> bool {
        self.equal
    }

    fn needs_scan(&self) -> bool {
        self.arc.is_none()
    }

    fn partial(&self) -> Partial {
        Partial::with_lanes(3)
    }

    fn scan(&self, chunk: &mut Chunk<'_>, partial: &mut Partial) {
        if let ([a, c, ..], [aa, ac, cc]) = (chunk.values, &mut partial.lanes[..]) {
            a.add_squares(chunk.level, aa);
            a.add_products(chunk.level, c, ac);
            c.add_squares(chunk.level, cc);
        }
    }

    fn learn(&mut self, partial: Partial, tensor: &str) -> Result<()> {
        let sums = partial.sums();
        self.equal = matches!(sums[..], [aa, ac, cc] if aa == ac && ac == cc);
        let found = match sums[..] {
            [aa, ac, cc] => arc(aa, ac, cc, self.t, self.mergekit),
            _ => None,
        };
        if found.is_none() {
            return Err(Error::NonFinite {
                tensor: tensor.into(),
                message: "the angle between the models is undefined, because a value is NaN or infinite"
                    .into(),
            });
        }
        self.arc = found;
        Ok(())
    }

    fn apply(&self, chunk: &mut Chunk<'_>, _ties: &mut [Ties], squares: &mut [Lanes]) {
        let Some(arc) = self.arc else { return };
        let out = &mut chunk.scratch.out[..chunk.len];
        if let ([a, c, ..], [aa, cc, ..]) = (chunk.values, squares) {
            a.weigh(chunk.level, arc.start, out, aa);
            c.add_weighed(chunk.level, arc.end, 1.0, out, cc);
        }
    }
}
