//! One model's decoded chunk: in f32, or in f64 when any model stores this tensor as `F64`.

use std::ops::Range;

use super::changes::{self, Stay, Together};
use super::lowrank::Band;
use super::rng::Kept;
use super::sieve::Sieve;
use super::stats::Width;
use super::{CHUNK, Level, combine, convert, lanes, masks, rows, stats};
use crate::dtype::DType;

/// The decoded chunk of one model.
pub struct Values {
    narrow: Vec<f32>,
    wide: Vec<f64>,
    is_wide: bool,
    /// Whether they are numbers that bf16 holds.
    is_bf16: bool,
    len: usize,
    /// Whose stored numbers these are, if they are just that.
    plain: Option<usize>,
    /// Whether the numbers were left out, since only the delta is looked at.
    absent: bool,
    /// What was added to whose stored numbers.
    change: Change,
}

/// A change that is known by itself, so that the delta from what was changed needs no subtraction.
#[derive(Default)]
struct Change {
    from: Option<usize>,
    band: Band,
    /// Where in the band the chunk lies.
    part: Range<usize>,
    /// What a sieve kept of a chunk. Whoever made the band knows what is in it, so that it is left as it is.
    sieved: Band,
    /// Whether the change is what a sieve kept of it.
    is_sieved: bool,
    wide: Vec<f64>,
    /// As many zeros, which the kernels subtract from the change instead of the base.
    zeros: Vec<f64>,
    zeros_narrow: Vec<f32>,
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
#[must_use]
pub fn narrow_threshold(threshold: u64) -> (u32, bool) {
    let wide = f64::from_bits(threshold);
    let near = wide as f32;
    let bits = near.to_bits();
    // The magnitude of an f32 that rounding brought below the threshold is one step too small.
    if f64::from(near) < wide { (bits + 1, false) } else { (bits, f64::from(near) <= wide || wide.is_nan()) }
}

impl Default for Values {
    fn default() -> Self {
        Self {
            narrow: vec![0.0; CHUNK],
            wide: vec![0.0; CHUNK],
            is_wide: false,
            is_bf16: false,
            len: 0,
            plain: None,
            absent: false,
            change: Change::default(),
        }
    }
}

impl Values {
    /// Decodes `len` elements. `wide` is the same for all models of a tensor.
    pub fn load(&mut self, level: Level, dtype: DType, bytes: &[u8], len: usize, wide: bool) {
        (self.is_wide, self.len, self.absent) = (wide, len, false);
        self.is_bf16 = dtype == DType::BF16;
        (self.plain, self.change.from) = (None, None);
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

    /// Says whose stored numbers these are.
    pub fn mark(&mut self, origin: usize) {
        self.plain = Some(origin);
    }

    /// Where changes are made: the ones of the chunk are a part of it, and are not copied.
    pub fn band(&mut self) -> &mut Band {
        &mut self.change.band
    }

    /// Adds a change; where it is zero the numbers stay as they are, −0.0 included.
    pub fn add(&mut self, level: Level, change: &[f32]) {
        (self.plain, self.change.from, self.is_bf16) = (None, None, false);
        if self.is_wide {
            combine::shift_wide(level, &mut self.wide[..self.len], change);
        } else {
            combine::shift_narrow(level, &mut self.narrow[..self.len], change);
        }
    }

    /// Adds a part of the band. With `origin`, whose numbers these were, deltas from them will be the change itself, which
    /// the sum would round.
    pub fn add_part(&mut self, level: Level, part: Range<usize>, origin: Option<usize>) {
        let band = std::mem::take(&mut self.change.band);
        self.add(level, band.part(&part));
        self.change.band = band;
        if let Some(origin) = origin {
            self.keep_change(level, part, origin);
        }
    }

    /// Takes a part of the band as the change of `origin`'s stored numbers, without those: for jobs that look at deltas
    /// alone.
    pub fn take_change(&mut self, level: Level, part: Range<usize>, origin: usize, wide: bool) {
        (self.is_wide, self.len, self.absent, self.plain) = (wide, part.len(), true, None);
        self.keep_change(level, part, origin);
    }

    /// Takes what a sieve kept of the `len` changes from element `first` on as the change of `origin`'s stored numbers,
    /// without those: for jobs that look at deltas alone, and at none that did not stay.
    pub fn take_kept(&mut self, level: Level, sieve: &Sieve, first: usize, len: usize, origin: usize) {
        (self.is_wide, self.len, self.absent, self.plain) = (false, len, true, None);
        self.keep_change(level, 0..len, origin);
        self.change.is_sieved = true;
        sieve.spread(level, first, self.change.sieved.room(len));
    }

    /// Stands for `len` of `origin`'s stored numbers, which nobody looks at: deltas from them are known by themselves.
    pub fn stand_for(&mut self, origin: usize, len: usize, wide: bool) {
        (self.is_wide, self.len, self.absent) = (wide, len, true);
        (self.plain, self.change.from) = (Some(origin), None);
    }

    fn keep_change(&mut self, level: Level, part: Range<usize>, origin: usize) {
        let kept = &mut self.change;
        (kept.from, kept.part, kept.is_sieved) = (Some(origin), part, false);
        if self.is_wide {
            kept.wide.resize(self.len.max(kept.wide.len()), 0.0);
            kept.zeros.resize(kept.wide.len(), 0.0);
            convert::widen(level, kept.band.part(&kept.part), &mut kept.wide[..self.len]);
        } else {
            kept.zeros_narrow.resize(self.len.max(kept.zeros_narrow.len()), 0.0);
        }
    }

    /// Multiplies elements by a factor, rounded once.
    pub fn multiply(&mut self, elements: Range<usize>, factor: f64) {
        self.is_bf16 = false;
        if self.is_wide {
            self.wide[elements].iter_mut().for_each(|v| *v *= factor);
        } else {
            self.narrow[elements].iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
        }
    }

    /// Whether the delta from `base` is known by itself.
    #[must_use]
    pub fn is_known_change_of(&self, base: &Self) -> bool {
        self.change.from.is_some() && self.change.from == base.plain
    }

    /// The delta from `base`, where it is known by itself and in f32.
    #[must_use]
    pub fn known_change<'a>(&'a self, base: &'a Self) -> Option<&'a [f32]> {
        match self.against(base) {
            (Numbers::Narrow(change), _) if self.is_known_change_of(base) => Some(change),
            _ => None,
        }
    }

    /// Two runs of numbers whose difference is the delta from `base`: these and the base's, or a change and zeros.
    #[must_use]
    pub fn against<'a>(&'a self, base: &'a Self) -> (Numbers<'a>, Numbers<'a>) {
        if !self.is_known_change_of(base) {
            return (self.numbers(), base.numbers());
        }
        let kept = &self.change;
        if self.is_wide {
            (Numbers::Wide(&kept.wide[..self.len]), Numbers::Wide(&kept.zeros[..self.len]))
        } else {
            let band = if kept.is_sieved { &kept.sieved } else { &kept.band };
            (Numbers::Narrow(band.part(&kept.part)), Numbers::Narrow(&kept.zeros_narrow[..self.len]))
        }
    }

    /// The numbers.
    ///
    /// # Panics
    /// If they were left out: a job that looks at them must not say that it looks at deltas alone.
    #[must_use]
    pub fn numbers(&self) -> Numbers<'_> {
        assert!(!self.absent, "these numbers were left out");
        if self.is_wide {
            Numbers::Wide(&self.wide[..self.len])
        } else {
            Numbers::Narrow(&self.narrow[..self.len])
        }
    }

    /// `out = self`.
    pub fn widen(&self, level: Level, out: &mut [f64]) {
        match self.numbers() {
            Numbers::Narrow(values) => convert::widen(level, values, out),
            Numbers::Wide(values) => out.copy_from_slice(values),
        }
    }

    /// `out = self − base`, subtracted in the arithmetic of the tensor (f32 or f64).
    pub fn delta(&self, level: Level, base: &Self, out: &mut [f64]) {
        match self.against(base) {
            (Numbers::Narrow(x), Numbers::Narrow(b)) => combine::delta_narrow(level, x, b, out),
            (Numbers::Wide(x), Numbers::Wide(b)) => combine::delta_wide(level, x, b, out),
            _ => unreachable!("the models of a tensor share one width"),
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

    /// `out = self − base` in the width of the tensor, and what that changes; adds the moments of these deltas if it changes
    /// anything.
    pub fn changes<T: Width>(
        &self,
        level: Level,
        base: &Self,
        thresholds: stats::Thresholds<f64>,
        out: &mut [T],
        lanes: &mut [lanes::Lanes],
    ) -> stats::Changes {
        let (expert, of) = (T::of(self.numbers()), T::of(base.numbers()));
        let exact = self.is_bf16 && base.is_bf16;
        if !self.is_known_change_of(base) {
            return T::changes(level, expert, of, exact, thresholds, out, lanes);
        }
        // What it changes is told by the sums as they are stored, its size by the change itself.
        let rounded = &mut [lanes::Lanes::default(); 3];
        let found = T::changes(level, expert, of, exact, thresholds, out, rounded);
        let peak = self.deltas(level, base, out);
        if found.different > 0 {
            T::add_moments(level, out, thresholds.epsilon, lanes);
        }
        stats::Changes { peak, ..found }
    }

    /// The numbers of two experts and of their base, which are f32.
    #[must_use]
    pub fn trio<'a>([first, second]: [&'a Self; 2], base: &'a Self) -> stats::Trio<'a> {
        let models = [base, first, second];
        let exact = models.iter().all(|values| values.is_bf16);
        stats::Trio::Decoded(models.map(|values| f32::of(values.numbers())), exact)
    }

    /// `out = self − base` in the width of the tensor; gives the largest magnitude, NaN left out.
    pub fn deltas<T: Width>(&self, level: Level, base: &Self, out: &mut [T]) -> f64 {
        let (expert, of) = self.against(base);
        T::subtract(level, T::of(expert), T::of(of), out)
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
        match self.against(base) {
            // A change that is kept whole needs no comparisons, and zeros no subtraction.
            (Numbers::Narrow(change), _) if threshold == 0 && !strict && self.is_known_change_of(base) => {
                combine::weigh_narrow(level, change, factor, out, squares);
            }
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

    /// `out = factor · (self − base)` where the delta's magnitude lies between two, else zero; adds the squares of all
    /// deltas to the lanes. Each bound is the bits of a magnitude; the lower one itself is out when `strict`, the upper
    /// one in when `closed`.
    #[allow(clippy::too_many_arguments, reason = "one pass over the chunk does it all")]
    pub fn band_delta(
        &self,
        level: Level,
        base: &Self,
        (low, strict): (u64, bool),
        (high, closed): (u64, bool),
        factor: f64,
        out: &mut [f64],
        squares: &mut lanes::Lanes,
    ) {
        match self.against(base) {
            (Numbers::Narrow(x), Numbers::Narrow(b)) => {
                let ((least, exact), (end, reached)) = (narrow_threshold(low), narrow_threshold(high));
                let (least, end) = (least + u32::from(strict && exact), end + u32::from(closed && reached));
                combine::band_narrow(level, x, b, least, end, factor, out, squares);
            }
            (Numbers::Wide(x), Numbers::Wide(b)) => {
                let (least, end) = (low + u64::from(strict), high + u64::from(closed));
                combine::band_wide(level, x, b, least, end, factor, out, squares);
            }
            _ => unreachable!("the models of a tensor share one width"),
        }
    }

    /// Drops from `out`, which holds multiples of `self − base`, what lies outside of two magnitudes. Of the deltas at the
    /// lower one the first so many are kept, of those at the upper one the first so many are dropped; both numbers are
    /// counted down.
    pub fn keep_between(
        &self,
        base: &Self,
        (low, to_keep): (u64, &mut u64),
        (high, to_drop): (u64, &mut u64),
        out: &mut [f64],
    ) {
        let mut keep = |delta: f64| {
            let magnitude = delta.to_bits() & combine::MAGNITUDE;
            let next = |threshold: u64, left: &mut u64| {
                let counted = magnitude == threshold && *left > 0;
                *left -= u64::from(counted);
                magnitude > threshold || counted
            };
            let (kept, dropped) = (next(low, to_keep), next(high, to_drop));
            kept && !dropped
        };
        for (i, o) in out.iter_mut().enumerate() {
            let delta = match self.against(base) {
                (Numbers::Narrow(x), Numbers::Narrow(b)) => f64::from(x[i] - b[i]),
                (Numbers::Wide(x), Numbers::Wide(b)) => x[i] - b[i],
                _ => unreachable!("the models of a tensor share one width"),
            };
            *o = if keep(delta) { *o } else { 0.0 };
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
        match self.against(base) {
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
        match self.against(base) {
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

    /// `out = self + factor · (Σ weight · delta)` of two experts where that adds something, else `self`; adds the squares of
    /// their deltas to their lanes. Gives whether it did: not in f64.
    pub fn add_two_deltas(
        &self,
        level: Level,
        experts: [&Self; 2],
        weights: [f64; 2],
        factor: f64,
        out: &mut [f64],
        squares: [&mut lanes::Lanes; 2],
    ) -> bool {
        match (self.numbers(), experts[0].against(self), experts[1].against(self)) {
            (
                Numbers::Narrow(base),
                (Numbers::Narrow(x), Numbers::Narrow(b)),
                (Numbers::Narrow(y), Numbers::Narrow(c)),
            ) => {
                combine::add_two_deltas(level, base, (x, b), (y, c), weights, factor, out, squares);
                true
            }
            _ => false,
        }
    }

    /// `out = self + factor · (what two changes of it become)` where that adds something, else `self`; adds the squares of
    /// the changes to their lanes. Gives whether it did: where both are known by themselves, and in f32.
    #[allow(clippy::too_many_arguments, reason = "one pass over the chunk does it all")]
    pub fn add_two_changes(
        &self,
        level: Level,
        experts: [&Self; 2],
        stay: impl FnOnce() -> Option<[Stay; 2]>,
        weights: [f64; 2],
        together: Together,
        factor: f64,
        out: &mut [f64],
        squares: &mut [lanes::Lanes; 2],
    ) -> bool {
        let (Some(one), Some(two)) = (experts[0].known_change(self), experts[1].known_change(self)) else {
            return false;
        };
        let (Numbers::Narrow(base), Some(stay)) = (self.numbers(), stay()) else { return false };
        let [first, second] = stay;
        let changes = [
            changes::Change { numbers: one, stay: first, factor: weights[0] },
            changes::Change { numbers: two, stay: second, factor: weights[1] },
        ];
        changes::add_two(level, base, &changes, together, factor, out, squares);
        true
    }

    /// `change = self + factor · change` where that adds something, else `self`, signed zeros included.
    pub fn add_change(&self, level: Level, factor: f64, change: &mut [f64]) {
        match self.numbers() {
            Numbers::Narrow(v) => combine::add_change_narrow(level, v, factor, change),
            Numbers::Wide(v) => combine::add_change_wide(level, v, factor, change),
        }
    }

    /// Multiplies the difference to `base` by a factor; where they are equal nothing changes. In f64, since rounding
    /// to f32 would lose most of a small difference.
    pub fn scale_delta(&mut self, level: Level, base: &Self, factor: f64) {
        debug_assert!(self.is_wide && base.is_wide && !self.absent, "norms are matched in f64");
        if factor != 1.0 {
            combine::scale_difference(level, &base.wide[..self.len], factor, &mut self.wide[..self.len]);
            (self.plain, self.is_bf16) = (None, false);
            if self.change.from.is_some() {
                combine::scale(level, &mut self.change.wide[..self.len], factor);
            }
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

    /// `out = self` where the delta is the unified one and not zero.
    pub fn take_where_unified(&self, level: Level, delta: &[f64], unified: &[f64], out: &mut [f64]) {
        match self.numbers() {
            Numbers::Narrow(v) => masks::take_narrow(level, v, delta, unified, out),
            Numbers::Wide(v) => masks::take_wide(level, v, delta, unified, out),
        }
    }

    /// `out = self` where the element's bit is clear, elsewhere `merged`, or `self + scale · (merged − self)` when the
    /// scale is not 1.
    pub fn expand(&self, level: Level, merged: &Self, bits: &[u8], scale: f64, out: &mut [f64]) {
        match (self.numbers(), merged.numbers()) {
            (Numbers::Narrow(b), Numbers::Narrow(m)) => masks::expand_narrow(level, b, m, bits, scale, out),
            (Numbers::Wide(b), Numbers::Wide(m)) => masks::expand_wide(level, b, m, bits, scale, out),
            _ => unreachable!("the models of a tensor share one width"),
        }
    }

    /// Adds the squares of all elements to the lanes.
    pub fn add_squares(&self, level: Level, lanes: &mut lanes::Lanes) {
        self.add_squares_of(level, 0..self.len, lanes);
    }

    /// Adds the squares of some elements to the lanes.
    pub fn add_squares_of(&self, level: Level, range: Range<usize>, lanes: &mut lanes::Lanes) {
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
        match (self.numbers(), other.numbers()) {
            (Numbers::Narrow(a), Numbers::Narrow(b)) => lanes::add_products_narrow(level, a, b, lanes),
            (Numbers::Wide(a), Numbers::Wide(b)) => lanes::add_products_wide(level, a, b, lanes),
            _ => unreachable!("the models of a tensor share one width"),
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
        let count = match self.numbers() {
            Numbers::Narrow(v) => v.iter().filter(|v| !v.is_finite()).count(),
            Numbers::Wide(v) => v.iter().filter(|v| !v.is_finite()).count(),
        };
        count as u64
    }

    /// Index in the chunk of the first NaN or infinite element.
    #[must_use]
    pub fn first_non_finite(&self) -> Option<usize> {
        match self.numbers() {
            Numbers::Narrow(v) => v.iter().position(|v| !v.is_finite()),
            Numbers::Wide(v) => v.iter().position(|v| !v.is_finite()),
        }
    }
}
