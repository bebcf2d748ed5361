//! One model's decoded chunk: in f32, or in f64 when any model stores this tensor as `F64`.

use super::rng::Kept;
use super::{CHUNK, Level, combine, convert, lanes, rows};
use crate::dtype::DType;

/// The decoded chunk of one model.
pub struct Values {
    narrow: Vec<f32>,
    wide: Vec<f64>,
    is_wide: bool,
    len: usize,
}

/// The numbers of a chunk in their width.
pub enum Numbers<'a> {
    /// f32.
    Narrow(&'a [f32]),
    /// f64.
    Wide(&'a [f64]),
}

/// Bits of the smallest f32 magnitude that is not below the f64 magnitude with these bits, and whether they
/// are equal.
fn narrow_threshold(threshold: u64) -> (u32, bool) {
    let wide = f64::from_bits(threshold);
    let near = wide as f32;
    let bits = near.to_bits();
    // The magnitude of an f32 that rounding brought below the threshold is one step too small.
    if f64::from(near) < wide { (bits + 1, false) } else { (bits, f64::from(near) <= wide || wide.is_nan()) }
}

impl Default for Values {
    fn default() -> Self {
        Self { narrow: vec![0.0; CHUNK], wide: vec![0.0; CHUNK], is_wide: false, len: 0 }
    }
}

impl Values {
    /// Decodes `len` elements. `wide` is the same for all models of a tensor.
    pub fn load(&mut self, level: Level, dtype: DType, bytes: &[u8], len: usize, wide: bool) {
        (self.is_wide, self.len) = (wide, len);
        if self.narrow.len() < len {
            self.narrow.resize(len, 0.0);
            self.wide.resize(len, 0.0);
        }
        if dtype == DType::F64 {
            convert::decode_wide(level, bytes, &mut self.wide[..len]);
        } else {
            convert::decode_narrow(level, dtype, bytes, &mut self.narrow[..len]);
            if wide {
                convert::widen(level, &self.narrow[..len], &mut self.wide[..len]);
            }
        }
    }

    /// The numbers.
    #[must_use]
    pub fn numbers(&self) -> Numbers<'_> {
        if self.is_wide {
            Numbers::Wide(&self.wide[..self.len])
        } else {
            Numbers::Narrow(&self.narrow[..self.len])
        }
    }

    /// `out = self − base`, subtracted in the arithmetic of the tensor (f32 or f64).
    pub fn delta(&self, level: Level, base: &Self, out: &mut [f64]) {
        if self.is_wide {
            combine::delta_wide(level, &self.wide[..self.len], &base.wide[..self.len], out);
        } else {
            combine::delta_narrow(level, &self.narrow[..self.len], &base.narrow[..self.len], out);
        }
    }

    /// The delta, and zero where both hold the very same infinity or NaN: nothing changed there. For methods in which
    /// one element counts for others.
    pub fn change(&self, level: Level, base: &Self, out: &mut [f64]) {
        self.delta(level, base, out);
        if rows::is_finite(level, out) {
            return;
        }
        match (self.numbers(), base.numbers()) {
            (Numbers::Narrow(x), Numbers::Narrow(b)) => {
                for ((o, x), b) in out.iter_mut().zip(x).zip(b) {
                    *o = if x.to_bits() == b.to_bits() { 0.0 } else { *o };
                }
            }
            (Numbers::Wide(x), Numbers::Wide(b)) => {
                for ((o, x), b) in out.iter_mut().zip(x).zip(b) {
                    *o = if x.to_bits() == b.to_bits() { 0.0 } else { *o };
                }
            }
            _ => unreachable!("the models of a tensor share one width"),
        }
    }

    /// `out = factor · (self − base)` where the delta's magnitude is at least (above, when `strict`) the one with
    /// the bits `threshold`, else zero; adds the squares of all deltas to the lanes.
    #[allow(clippy::too_many_arguments, reason = "one pass over the chunk does it all")]
    pub fn cut_delta(
        &self,
        level: Level,
        base: &Self,
        threshold: u64,
        strict: bool,
        factor: f64,
        out: &mut [f64],
        squares: &mut lanes::Lanes,
    ) {
        match (self.numbers(), base.numbers()) {
            (Numbers::Narrow(x), Numbers::Narrow(b)) => {
                let (least, exact) = narrow_threshold(threshold);
                combine::cut_narrow(level, x, b, least, strict && exact, factor, out, squares);
            }
            (Numbers::Wide(x), Numbers::Wide(b)) => {
                combine::cut_wide(level, x, b, threshold, strict, factor, out, squares);
            }
            _ => unreachable!("the models of a tensor share one width"),
        }
    }

    /// `out = factor · (self − base)` for the elements that are kept, else zero; adds the squares of all deltas to
    /// the lanes.
    pub fn pick_delta(
        &self,
        level: Level,
        base: &Self,
        kept: &Kept,
        factor: f64,
        out: &mut [f64],
        squares: &mut lanes::Lanes,
    ) {
        match (self.numbers(), base.numbers()) {
            (Numbers::Narrow(x), Numbers::Narrow(b)) => {
                combine::pick_narrow(level, x, b, kept, factor, out, squares);
            }
            (Numbers::Wide(x), Numbers::Wide(b)) => {
                combine::pick_wide(level, x, b, kept, factor, out, squares);
            }
            _ => unreachable!("the models of a tensor share one width"),
        }
    }

    /// Number of deltas whose magnitude has exactly the bits `threshold`.
    #[must_use]
    pub fn count_deltas_at(&self, level: Level, base: &Self, threshold: u64) -> u64 {
        match (self.numbers(), base.numbers()) {
            (Numbers::Narrow(x), Numbers::Narrow(b)) => match narrow_threshold(threshold) {
                (bits, true) => combine::count_narrow(level, x, b, bits),
                (_, false) => 0,
            },
            (Numbers::Wide(x), Numbers::Wide(b)) => combine::count_wide(level, x, b, threshold),
            _ => unreachable!("the models of a tensor share one width"),
        }
    }

    /// `out = weight · self`; adds the squares of all elements to the lanes.
    pub fn weigh(&self, level: Level, weight: f64, out: &mut [f64], squares: &mut lanes::Lanes) {
        match self.numbers() {
            Numbers::Narrow(v) => combine::weigh_narrow(level, v, weight, out, squares),
            Numbers::Wide(v) => combine::weigh_wide(level, v, weight, out, squares),
        }
    }

    /// `out = (out + weight · self) / divisor`; adds the squares of all elements to the lanes.
    pub fn add_weighed(
        &self,
        level: Level,
        weight: f64,
        divisor: f64,
        out: &mut [f64],
        squares: &mut lanes::Lanes,
    ) {
        match self.numbers() {
            Numbers::Narrow(v) => combine::add_weighed_narrow(level, v, weight, divisor, out, squares),
            Numbers::Wide(v) => combine::add_weighed_wide(level, v, weight, divisor, out, squares),
        }
    }

    /// `out = self + factor · (a + b) / divisor` where that adds something, else `self`, signed zeros included.
    #[allow(clippy::too_many_arguments, reason = "one pass over the chunk does it all")]
    pub fn add_changes(
        &self,
        level: Level,
        a: &[f64],
        b: &[f64],
        divisor: f64,
        factor: f64,
        out: &mut [f64],
    ) {
        match self.numbers() {
            Numbers::Narrow(v) => combine::add_changes_narrow(level, v, a, b, divisor, factor, out),
            Numbers::Wide(v) => combine::add_changes_wide(level, v, a, b, divisor, factor, out),
        }
    }

    /// `change = self + factor · change` where that adds something, else `self`, signed zeros included.
    pub fn add_change(&self, level: Level, factor: f64, change: &mut [f64]) {
        if self.is_wide {
            combine::add_change_wide(level, &self.wide[..self.len], factor, change);
        } else {
            combine::add_change_narrow(level, &self.narrow[..self.len], factor, change);
        }
    }

    /// Multiplies the difference to `base` by a factor; where they are equal nothing changes. In f64, since rounding
    /// to f32 would lose most of a small difference.
    pub fn scale_delta(&mut self, level: Level, base: &Self, factor: f64) {
        debug_assert!(self.is_wide && base.is_wide, "norms are matched in f64");
        if factor != 1.0 {
            combine::scale_difference(level, &base.wide[..self.len], factor, &mut self.wide[..self.len]);
        }
    }

    /// `out = self + factor · (out − self)`; where they are equal nothing changes.
    pub fn scale_change(&self, level: Level, factor: f64, out: &mut [f64]) {
        match self.numbers() {
            Numbers::Narrow(base) => combine::scale_difference_narrow(level, base, factor, out),
            Numbers::Wide(base) => combine::scale_difference(level, base, factor, out),
        }
    }

    /// `out −= self`.
    pub fn subtract_from(&self, level: Level, out: &mut [f64]) {
        match self.numbers() {
            Numbers::Narrow(base) => combine::subtract_narrow(level, base, out),
            Numbers::Wide(base) => combine::subtract_wide(level, base, out),
        }
    }

    /// Adds the squares of all elements to the lanes.
    pub fn add_squares(&self, level: Level, lanes: &mut lanes::Lanes) {
        if self.is_wide {
            lanes::add_squares_wide(level, &self.wide[..self.len], lanes);
        } else {
            lanes::add_squares_narrow(level, &self.narrow[..self.len], lanes);
        }
    }

    /// Adds the squares of some elements to the lanes.
    pub fn add_squares_of(&self, level: Level, range: std::ops::Range<usize>, lanes: &mut lanes::Lanes) {
        match self.numbers() {
            Numbers::Narrow(v) => lanes::add_squares_narrow(level, &v[range], lanes),
            Numbers::Wide(v) => lanes::add_squares_wide(level, &v[range], lanes),
        }
    }

    /// The numbers in f64.
    #[must_use]
    pub fn to_f64(&self) -> Vec<f64> {
        match self.numbers() {
            Numbers::Narrow(v) => v.iter().map(|v| f64::from(*v)).collect(),
            Numbers::Wide(v) => v.to_vec(),
        }
    }

    /// Adds the products with the elements of `other` to the lanes.
    pub fn add_products(&self, level: Level, other: &Self, lanes: &mut lanes::Lanes) {
        if self.is_wide {
            lanes::add_products_wide(level, &self.wide[..self.len], &other.wide[..self.len], lanes);
        } else {
            lanes::add_products_narrow(level, &self.narrow[..self.len], &other.narrow[..self.len], lanes);
        }
    }

    /// Index in the chunk of the first number that is `wanted`, at a place that counts.
    #[must_use]
    pub fn find(&self, wanted: impl Fn(f64) -> bool, counts: impl Fn(usize) -> bool) -> Option<usize> {
        match self.numbers() {
            Numbers::Narrow(v) => (0..v.len()).find(|at| wanted(f64::from(v[*at])) && counts(*at)),
            Numbers::Wide(v) => (0..v.len()).find(|at| wanted(v[*at]) && counts(*at)),
        }
    }

    /// Number of NaN and infinite elements.
    #[must_use]
    pub fn non_finite(&self) -> u64 {
        let count = if self.is_wide {
            self.wide[..self.len].iter().filter(|v| !v.is_finite()).count()
        } else {
            self.narrow[..self.len].iter().filter(|v| !v.is_finite()).count()
        };
        count as u64
    }

    /// Index in the chunk of the first NaN or infinite element.
    #[must_use]
    pub fn first_non_finite(&self) -> Option<usize> {
        if self.is_wide {
            self.wide[..self.len].iter().position(|v| !v.is_finite())
        } else {
            self.narrow[..self.len].iter().position(|v| !v.is_finite())
        }
    }
}
