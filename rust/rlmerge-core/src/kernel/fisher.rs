//! Weighted averages with a weight for each element, kept as the change from the first model, so that elements that are
//! equal everywhere stay as they are.

use super::Level;
use super::level::kernel;
use super::values::{Numbers, Values};

macro_rules! per_width {
    ($start:ident, $join:ident, $ty:ty) => {
        kernel! {
            /// `total = factor · max(F, floor)`.
            fn $start(statistics: &[$ty], factor: f64, floor: f64, total: &mut [f64]) {
                for (t, f) in total.iter_mut().zip(statistics) {
                    *t = factor * f64::from(*f).max(floor);
                }
            }
        }
        kernel! {
            /// Adds a model: its weight to `total`, its weighted change from the first model to `sum`, and the change
            /// that it would have without statistics to `plain`.
            fn $join(
                values: &[$ty], first: &[$ty], statistics: &[$ty], factor: f64, weight: f64, floor: f64,
                total: &mut [f64], sum: &mut [f64], plain: &mut [f64],
            ) {
                let len = total.len();
                let (values, first, statistics) = (&values[..len], &first[..len], &statistics[..len]);
                let (sum, plain) = (&mut sum[..len], &mut plain[..len]);
                for i in 0..len {
                    let share = factor * f64::from(statistics[i]).max(floor);
                    // Equal infinities differ by nothing.
                    let change = if values[i] == first[i] { 0.0 } else { f64::from(values[i]) - f64::from(first[i]) };
                    total[i] += share;
                    sum[i] += share * change;
                    plain[i] += weight * change;
                }
            }
        }
    };
}

per_width!(start_narrow, join_narrow, f32);
per_width!(start_wide, join_wide, f64);

kernel! {
    /// `out = sum / total`, or `plain / weights` where no model has any information.
    pub fn divide(total: &[f64], sum: &[f64], plain: &[f64], weights: f64, out: &mut [f64]) {
        for (((o, t), s), p) in out.iter_mut().zip(total).zip(sum).zip(plain) {
            *o = if *t > 0.0 { *s / *t } else { *p / weights };
        }
    }
}

impl Values {
    /// `total = factor · max(self, floor)`.
    pub fn start_fisher(&self, level: Level, factor: f64, floor: f64, total: &mut [f64]) {
        match self.numbers() {
            Numbers::Narrow(f) => start_narrow(level, f, factor, floor, total),
            Numbers::Wide(f) => start_wide(level, f, factor, floor, total),
        }
    }

    /// Adds a model with its statistics: see the kernel.
    #[allow(clippy::too_many_arguments, reason = "one pass over the chunk does it all")]
    pub fn join_fisher(
        &self,
        level: Level,
        first: &Self,
        statistics: &Self,
        (factor, weight, floor): (f64, f64, f64),
        total: &mut [f64],
        sum: &mut [f64],
        plain: &mut [f64],
    ) {
        match (self.numbers(), first.numbers(), statistics.numbers()) {
            (Numbers::Narrow(x), Numbers::Narrow(b), Numbers::Narrow(f)) => {
                join_narrow(level, x, b, f, factor, weight, floor, total, sum, plain);
            }
            (Numbers::Wide(x), Numbers::Wide(b), Numbers::Wide(f)) => {
                join_wide(level, x, b, f, factor, weight, floor, total, sum, plain);
            }
            _ => unreachable!("the models of a tensor share one width"),
        }
    }
}
