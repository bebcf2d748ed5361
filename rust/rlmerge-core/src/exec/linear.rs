//! Weighted sums of models: `linear`, `passthrough` with a scale, and changes of dtype.

use super::job::{Chunk, Job, Ties};
use crate::kernel::combine;
use crate::kernel::lanes::Lanes;

/// A weighted sum at work.
pub struct LinearJob {
    /// Weight of each model.
    pub weights: Vec<f64>,
    /// The divisor.
    pub divisor: f64,
}

impl Job for LinearJob {
    fn keeps_common_values(&self) -> bool {
        self.weights.iter().sum::<f64>() == self.divisor
    }

    fn apply(&self, chunk: &mut Chunk<'_>, _ties: &mut [Ties], squares: &mut [Lanes]) {
        let out = &mut chunk.scratch.out[..chunk.len];
        let last = self.weights.len() - 1;
        for (at, ((values, weight), sums)) in chunk.values.iter().zip(&self.weights).zip(squares).enumerate()
        {
            if at == 0 {
                values.weigh(chunk.level, *weight, out, sums);
            } else {
                let divisor = if at == last { self.divisor } else { 1.0 };
                values.add_weighed(chunk.level, *weight, divisor, out, sums);
            }
        }
        if last == 0 && self.divisor != 1.0 {
            combine::divide_by(chunk.level, out, self.divisor);
        }
    }
}
