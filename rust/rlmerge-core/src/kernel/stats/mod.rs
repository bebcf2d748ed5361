//! What a conflict report counts and sums over the deltas of a chunk.
//!
//! Deltas stay in the width in which they were subtracted ([`Width`]): f32 for nearly all models, half the cache and
//! twice the lanes of f64. Sums are of f64 and go to fixed lanes, counts are exact, and thresholds are edges of
//! [`key`]s, so that nothing depends on the SIMD level.

mod at_once;
mod glance;
mod keys;
mod loops;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use glance::{Above, Changed, Glance, Limits, Open, Seen, Trio, glance, narrow_edge, settle};
pub use keys::{BINS, FRACTION, KEYS, KeyCounts, NearCounts, TABLE, Waiting, by_key, edge, key};

use super::Level;
use super::lanes::Lanes;
use super::values::Numbers;

/// How many elements of a chunk an expert changed, by several measures.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Changes {
    /// Bits that differ from the base's.
    pub different: u64,
    /// `|δ| > ε`.
    pub absolute: u64,
    /// `|δ| > r · max(|w|, |w′|)`.
    pub relative: u64,
    /// `bf16(w′) ≠ bf16(w)`.
    pub visible: u64,
    /// δ is NaN or infinite.
    pub non_finite: u64,
    /// The largest |δ|, NaN left out.
    pub peak: f64,
}

/// What counts as a change.
#[derive(Debug, Clone, Copy)]
pub struct Thresholds<T> {
    /// ε: a delta above it is a change.
    pub epsilon: T,
    /// r: a delta above this share of the larger weight is a relative change.
    pub relative: T,
}

/// How many elements of two experts lie beyond thresholds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Found {
    /// Those that TIES keeps of each.
    pub kept: [u64; 2],
    /// Those of them that have not the elected sign.
    pub lost: [u64; 2],
    /// Those kept of both …
    pub both: u64,
    /// … with different signs.
    pub opposed: u64,
}

impl Found {
    /// Adds what was found elsewhere.
    pub fn add(&mut self, other: &Self) {
        for e in 0..2 {
            self.kept[e] += other.kept[e];
            self.lost[e] += other.lost[e];
        }
        self.both += other.both;
        self.opposed += other.opposed;
    }
}

/// The width of numbers and of their deltas: f32, or f64 where a model stores F64.
pub trait Width: Copy + Default + Into<f64> {
    /// The numbers of a chunk.
    ///
    /// # Panics
    /// When they have the other width: the models of a tensor share one.
    fn of(numbers: Numbers<'_>) -> &[Self];
    /// The buffer of this width.
    fn buffer<'a>(narrow: &'a mut Vec<f32>, wide: &'a mut Vec<f64>) -> &'a mut Vec<Self>;
    /// The magnitude.
    #[must_use]
    fn size(self) -> Self;
    /// `out = expert − base`, and what that changes; adds the [moments](Self::add_moments) of these deltas if it changes
    /// anything. When all are `exact` in bf16 nothing is rounded to tell.
    fn changes(
        level: Level,
        expert: &[Self],
        base: &[Self],
        exact: bool,
        thresholds: Thresholds<f64>,
        out: &mut [Self],
        lanes: &mut [Lanes],
    ) -> Changes;
    /// `out = expert − base`; gives the largest magnitude, NaN left out.
    fn subtract(level: Level, expert: &[Self], base: &[Self], out: &mut [Self]) -> f64;
    /// Counts magnitudes in a table of [`TABLE`] counters, some of which may wait to be raised.
    fn count_keys(level: Level, values: &[Self], waiting: &mut Waiting, table: &mut [u32]);
    /// Adds δ², δ⁴, and δ² where `|δ| > epsilon`.
    fn add_moments(level: Level, delta: &[Self], epsilon: f64, lanes: &mut [Lanes]);
    /// With `c = a·b`: adds c, |c⁻|, c² and (c⁻)², where c⁻ is c where it is negative; then, over elements that both
    /// changed, a·b, a² and b²; then a² where b changed, and b² where a changed. Counts what both changed, and where
    /// their signs differ there.
    fn add_pair(level: Level, a: &[Self], b: &[Self], epsilon: f64, lanes: &mut [Lanes]) -> (u64, u64);
    /// [`changes`](Self::changes) in one loop, where there is a kernel for it.
    fn changes_at_once(
        _level: Level,
        _expert: &[Self],
        _base: &[Self],
        _exact: bool,
        _thresholds: Thresholds<f64>,
        _out: &mut [Self],
        _lanes: &mut [Lanes],
    ) -> Option<Changes> {
        None
    }
    /// [`add_pair`](Self::add_pair) in one loop, where there is a kernel for it.
    fn add_pair_at_once(
        _level: Level,
        _a: &[Self],
        _b: &[Self],
        _epsilon: f64,
        _lanes: &mut [Lanes],
    ) -> Option<(u64, u64)> {
        None
    }
    /// What of two experts is beyond thresholds, which are three of each as for [`add_largest`](Self::add_largest). Lanes
    /// are of each expert those of `add_largest` and then that of [`count_lost`](Self::count_lost).
    fn find_beyond(
        level: Level,
        deltas: [&[Self]; 2],
        least: [[f64; 3]; 2],
        total: &mut Vec<f64>,
        lanes: &mut [Lanes],
    ) -> Found {
        if let Some(found) = Self::find_beyond_at_once(level, deltas, least, lanes) {
            return found;
        }
        let (mut found, len) = (Found::default(), deltas[0].len());
        total.resize(len.max(total.len()), 0.0);
        let total = &mut total[..len];
        total.fill(0.0);
        for e in 0..2 {
            Self::add_largest(level, deltas[e], least[e], &mut lanes[4 * e..][..3], total);
        }
        for e in 0..2 {
            let sums = &mut lanes[4 * e + 3];
            (found.kept[e], found.lost[e]) = Self::count_lost(level, deltas[e], least[e][2], total, sums);
        }
        (found.both, found.opposed) = Self::count_opposed(level, deltas[0], deltas[1], least.map(|l| l[2]));
        found
    }
    /// [`find_beyond`](Self::find_beyond) in one loop, where there is a kernel for it.
    fn find_beyond_at_once(
        _level: Level,
        _deltas: [&[Self]; 2],
        _least: [[f64; 3]; 2],
        _lanes: &mut [Lanes],
    ) -> Option<Found> {
        None
    }
    /// Adds one to the owners of each element with `|δ| > epsilon`.
    fn add_owners(level: Level, delta: &[Self], epsilon: f64, owners: &mut [f64]);
    /// Counts the elements with `|δ| > epsilon` that have another owner.
    fn count_shared(level: Level, delta: &[Self], epsilon: f64, owners: &[f64]) -> u64;
    /// Adds δ² where `|δ|` is at least each of three thresholds; `total += δ` where it is at least the last of them: the
    /// sum whose sign TIES elects.
    fn add_largest(level: Level, delta: &[Self], least: [f64; 3], lanes: &mut [Lanes], total: &mut [f64]);
    /// Of the elements whose `|δ|` is at least a threshold: how many, how many have not the sign of `total` (a total
    /// of zero elects plus), and the sum of δ² of those.
    fn count_lost(level: Level, delta: &[Self], least: f64, total: &[f64], lanes: &mut Lanes) -> (u64, u64);
    /// Counts elements where both magnitudes reach their thresholds, which are above zero, and where the signs differ
    /// there.
    fn count_opposed(level: Level, a: &[Self], b: &[Self], least: [f64; 2]) -> (u64, u64);
    /// Counts elements with `|δ| > epsilon` whose base is smaller than `below`.
    fn count_low(level: Level, delta: &[Self], base: &[Self], epsilon: f64, below: f64) -> u64;
}
