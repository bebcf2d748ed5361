//! Spherical interpolation: one scan for the angle of the whole tensor, then a linear combination.

use super::job::{Chunk, Job, Partial, Ties};
use crate::error::{Error, Result};
use crate::kernel::lanes::Lanes;
use crate::kernel::slerp::{Arc, arc};

/// Interpolation between two models.
pub struct Slerp {
    t: f64,
    mergekit: bool,
    arc: Option<Arc>,
}

impl Slerp {
    /// At position `t`.
    pub fn new(t: f64, mergekit: bool) -> Self {
        Self { t, mergekit, arc: None }
    }
}

impl Job for Slerp {
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
