//! What a conflict report counts and sums over the deltas of a chunk.
//!
//! Deltas stay in the width in which they were subtracted ([`Width`]): f32 for nearly all models, half the cache and
//! twice the lanes of f64. Sums are of f64 and go to fixed lanes, counts are exact, and thresholds are edges of
//! [`key`]s, so that nothing depends on the SIMD level.

mod keys;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use keys::{FRACTION, KEYS, TABLE, Waiting, by_key, edge, key};

use super::Level;
use super::lanes::{LANES, Lanes};
use super::level::{by_level, kernel};
use super::values::Numbers;

/// An f32 rounded to bf16, to nearest even.
#[inline(always)]
fn bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits(bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}

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

/// The numbers of two experts, those that their deltas are differences from, and the base's.
#[derive(Debug, Clone, Copy)]
pub struct Two<'a, T> {
    /// What each is …
    pub experts: [&'a [T]; 2],
    /// … and what is subtracted from it.
    pub from: [&'a [T]; 2],
    /// The base.
    pub base: &'a [T],
}

/// What lies beyond thresholds.
#[derive(Debug, Clone, Copy)]
pub struct Beyond<T> {
    /// A delta above it is a change.
    pub epsilon: T,
    /// Base weights under it are the smallest.
    pub below: T,
    /// Of each expert: magnitudes from which on deltas count as large; from the last on TIES keeps them.
    pub least: [[T; 3]; 2],
}

/// How many elements of two experts lie beyond thresholds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Found {
    /// Those that TIES keeps of each.
    pub kept: [u64; 2],
    /// Those of them that have not the elected sign.
    pub lost: [u64; 2],
    /// Those that each changed where the base is small.
    pub low: [u64; 2],
    /// Those kept of both …
    pub both: u64,
    /// … with different signs.
    pub opposed: u64,
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
    /// What is found beyond thresholds of two experts by [`subtract`](Self::subtract) and the methods after
    /// [`add_largest`](Self::add_largest), in one loop, where there is a kernel for it. Lanes are of each expert those of
    /// `add_largest` and then that of `count_lost`.
    fn find_beyond(
        _level: Level,
        _two: Two<'_, Self>,
        _beyond: Beyond<f64>,
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

/// The largest f32 that is not above a number: no f32 lies between the two.
fn floor_narrow(value: f64) -> f32 {
    let near = value as f32;
    if f64::from(near) > value { near.next_down() } else { near }
}

/// The smallest f32 that is not below a number.
fn ceil_narrow(value: f64) -> f32 {
    let near = value as f32;
    if f64::from(near) < value { near.next_up() } else { near }
}

/// Calls `each` with the lane of every element of some slices of one length, and with zeros that fill up the last row: no
/// kernel counts them, and rows of fixed length let the compiler keep sums in registers.
macro_rules! rows {
    (|$i:ident| $each:expr, $($name:ident),+) => {{
        $(let $name = $name.as_chunks::<LANES>();)+
        let rows = [$($name.0.len()),+][0];
        for row in 0..rows {
            $(let $name = &$name.0[row];)+
            for $i in 0..LANES {
                $(let $name = $name[$i];)+
                $each;
            }
        }
        if [$($name.1.len()),+][0] > 0 {
            $(let $name = filled($name.1);)+
            for $i in 0..LANES {
                $(let $name = $name[$i];)+
                $each;
            }
        }
    }};
}

/// The last elements, and zeros behind them.
#[inline(always)]
fn filled<T: Copy + Default>(tail: &[T]) -> [T; LANES] {
    let mut row = [T::default(); LANES];
    row[..tail.len()].copy_from_slice(tail);
    row
}

/// The sum of the counters of a chunk, each of which a row raises by at most one.
#[inline(always)]
fn count(counts: [u32; LANES]) -> u64 {
    counts.iter().map(|c| u64::from(*c)).sum()
}

/// In how many places two numbers are a hit. Not by rows: counters of lanes alone make the compiler gather the same lane
/// of many rows.
#[inline(always)]
fn hits<T: Copy, U: Copy>(a: &[T], b: &[U], hit: impl Fn(T, U) -> bool) -> u64 {
    // Of one chunk.
    let mut count = 0u32;
    for (a, b) in a.iter().zip(b) {
        count += u32::from(hit(*a, *b));
    }
    u64::from(count)
}

/// The value, or zero: by a mask, because a choice makes the compiler keep sums in memory and store them by halves.
#[inline(always)]
fn only(when: bool, value: f64) -> f64 {
    f64::from_bits(value.to_bits() & 0u64.wrapping_sub(u64::from(when)))
}

macro_rules! width {
    ($ty:ty, $numbers:ident, |$narrow:ident, $wide:ident| $buffer:ident, $floor:path, $ceil:path, $find_keys:path, { $($at_once:tt)* }) => {
        const _: () = {
            kernel! {
                fn changes(
                    expert: &[$ty], base: &[$ty], exact: bool, epsilon: $ty, relative: $ty, out: &mut [$ty],
                ) -> Changes {
                    // Told apart outside of the loops.
                    if exact {
                        changes_by(expert, base, epsilon, relative, out, |x, b| x != b)
                    } else {
                        changes_by(expert, base, epsilon, relative, out, |x, b| bf16(x as f32) != bf16(b as f32))
                    }
                }
            }

            #[inline(always)]
            fn changes_by(
                expert: &[$ty],
                base: &[$ty],
                epsilon: $ty,
                relative: $ty,
                out: &mut [$ty],
                visible: impl Fn($ty, $ty) -> bool,
            ) -> Changes {
                // Counters of one chunk; a row adds at most one to each.
                let (mut different, mut absolute, mut relatively) = ([0u32; LANES], [0u32; LANES], [0u32; LANES]);
                let (mut visibly, mut non_finite) = ([0u32; LANES], [0u32; LANES]);
                let mut peaks = [0.0; LANES];
                let mut one = |x: $ty, b: $ty, out: &mut $ty, i: usize| {
                    let delta = x - b;
                    *out = delta;
                    let size = delta.abs();
                    let (large, small) = (x.abs(), b.abs());
                    let large = if small > large { small } else { large };
                    different[i] += u32::from(x.to_bits() != b.to_bits());
                    absolute[i] += u32::from(size > epsilon);
                    relatively[i] += u32::from(size > relative * large);
                    visibly[i] += u32::from(visible(x, b));
                    non_finite[i] += u32::from(!size.is_finite());
                    peaks[i] = if size > peaks[i] { size } else { peaks[i] };
                };
                let ((rows_x, tail_x), (rows_b, tail_b)) = (expert.as_chunks::<LANES>(), base.as_chunks::<LANES>());
                let (rows_o, tail_o) = out.as_chunks_mut::<LANES>();
                for ((x, b), o) in rows_x.iter().zip(rows_b).zip(rows_o) {
                    for i in 0..LANES {
                        one(x[i], b[i], &mut o[i], i);
                    }
                }
                if !tail_x.is_empty() {
                    let (x, b, mut o) = (filled(tail_x), filled(tail_b), [0.0; LANES]);
                    for i in 0..LANES {
                        one(x[i], b[i], &mut o[i], i);
                    }
                    tail_o.copy_from_slice(&o[..tail_x.len()]);
                }
                let [different, absolute, relative, visible, non_finite] =
                    [different, absolute, relatively, visibly, non_finite].map(|of| of.iter().map(|c| u64::from(*c)).sum());
                let peak = f64::from(peaks.into_iter().fold(0.0, <$ty>::max));
                Changes { different, absolute, relative, visible, non_finite, peak }
            }

            kernel! {
                fn subtract(expert: &[$ty], base: &[$ty], out: &mut [$ty]) -> f64 {
                    let mut peaks = [0.0; LANES];
                    let ((rows_x, tail_x), (rows_b, tail_b)) = (expert.as_chunks::<LANES>(), base.as_chunks::<LANES>());
                    let (rows_o, tail_o) = out.as_chunks_mut::<LANES>();
                    let mut one = |x: $ty, b: $ty, out: &mut $ty, i: usize| {
                        let delta = x - b;
                        *out = delta;
                        peaks[i] = if delta.abs() > peaks[i] { delta.abs() } else { peaks[i] };
                    };
                    for ((x, b), o) in rows_x.iter().zip(rows_b).zip(rows_o) {
                        for i in 0..LANES {
                            one(x[i], b[i], &mut o[i], i);
                        }
                    }
                    if !tail_x.is_empty() {
                        let (x, b, mut o) = (filled(tail_x), filled(tail_b), [0.0; LANES]);
                        for i in 0..LANES {
                            one(x[i], b[i], &mut o[i], i);
                        }
                        tail_o.copy_from_slice(&o[..tail_x.len()]);
                    }
                    f64::from(peaks.into_iter().fold(0.0, <$ty>::max))
                }
            }

            kernel! {
                fn add_moments(delta: &[$ty], epsilon: f64, lanes: &mut [Lanes]) {
                    let [squares, fourths, changed] = lanes else { return };
                    let (mut s, mut f, mut c) = (*squares, *fourths, *changed);
                    rows!(|i| {
                        let delta = f64::from(delta);
                        let square = delta * delta;
                        s[i] += square;
                        f[i] += square * square;
                        c[i] += only(delta.abs() > epsilon, square);
                    }, delta);
                    (*squares, *fourths, *changed) = (s, f, c);
                }
            }

            kernel! {
                fn add_products(a: &[$ty], b: &[$ty], lanes: &mut [Lanes]) {
                    let [dots, negatives, squares, negative_squares] = lanes else { return };
                    let (mut d, mut n, mut s, mut m) = (*dots, *negatives, *squares, *negative_squares);
                    rows!(|i| {
                        let product = f64::from(a) * f64::from(b);
                        let negative = only(product < 0.0, product);
                        d[i] += product;
                        n[i] -= negative;
                        s[i] += product * product;
                        m[i] += negative * negative;
                    }, a, b);
                    (*dots, *negatives, *squares, *negative_squares) = (d, n, s, m);
                }
            }

            kernel! {
                fn add_overlap(a: &[$ty], b: &[$ty], epsilon: f64, lanes: &mut [Lanes]) -> (u64, u64) {
                    let [dots, squares_a, squares_b, a_on_b, b_on_a] = lanes else { return (0, 0) };
                    let (mut d, mut s, mut t, mut u, mut v) = (*dots, *squares_a, *squares_b, *a_on_b, *b_on_a);
                    let (mut both, mut opposed) = ([0u32; LANES], [0u32; LANES]);
                    rows!(|i| {
                        let (a, b) = (f64::from(a), f64::from(b));
                        let (in_a, in_b) = (a.abs() > epsilon, b.abs() > epsilon);
                        let product = a * b;
                        let a_there = only(in_b, a * a);
                        let b_there = only(in_a, b * b);
                        u[i] += a_there;
                        v[i] += b_there;
                        d[i] += only(in_a & in_b, product);
                        s[i] += only(in_a, a_there);
                        t[i] += only(in_b, b_there);
                        both[i] += u32::from(in_a & in_b);
                        opposed[i] += u32::from(in_a & in_b & (product < 0.0));
                    }, a, b);
                    (*dots, *squares_a, *squares_b, *a_on_b, *b_on_a) = (d, s, t, u, v);
                    (count(both), count(opposed))
                }
            }

            kernel! {
                fn add_owners(delta: &[$ty], epsilon: f64, owners: &mut [f64]) {
                    for (o, d) in owners.iter_mut().zip(delta) {
                        *o += only(f64::from(*d).abs() > epsilon, 1.0);
                    }
                }
            }

            kernel! {
                fn count_shared(delta: &[$ty], epsilon: f64, owners: &[f64]) -> u64 {
                    hits(delta, owners, |d, owners| (f64::from(d).abs() > epsilon) & (owners > 1.0))
                }
            }

            kernel! {
                fn add_largest(delta: &[$ty], least: [f64; 3], lanes: &mut [Lanes], total: &mut [f64]) {
                    let [first, second, third] = lanes else { return };
                    let (mut x, mut y, mut z) = (*first, *second, *third);
                    let mut one = |delta: $ty, total: &mut f64, i: usize| {
                        let delta = f64::from(delta);
                        let (size, square) = (delta.abs(), delta * delta);
                        let is_kept = size >= least[2];
                        x[i] += only(size >= least[0], square);
                        y[i] += only(size >= least[1], square);
                        z[i] += only(is_kept, square);
                        *total += only(is_kept, delta);
                    };
                    let ((rows, tail), (rows_t, tail_t)) = (delta.as_chunks::<LANES>(), total.as_chunks_mut::<LANES>());
                    for (d, t) in rows.iter().zip(rows_t) {
                        for i in 0..LANES {
                            one(d[i], &mut t[i], i);
                        }
                    }
                    if !tail.is_empty() {
                        let (d, mut t) = (filled(tail), filled(tail_t));
                        for i in 0..LANES {
                            one(d[i], &mut t[i], i);
                        }
                        tail_t.copy_from_slice(&t[..tail.len()]);
                    }
                    (*first, *second, *third) = (x, y, z);
                }
            }

            kernel! {
                fn count_lost(delta: &[$ty], least: f64, total: &[f64], lanes: &mut Lanes) -> (u64, u64) {
                    let mut sums = *lanes;
                    let (mut kept, mut lost) = ([0u32; LANES], [0u32; LANES]);
                    rows!(|i| {
                        let delta = f64::from(delta);
                        let stays = delta.abs() >= least;
                        let goes = stays & ((delta < 0.0) != (total < 0.0));
                        kept[i] += u32::from(stays);
                        lost[i] += u32::from(goes);
                        sums[i] += only(goes, delta * delta);
                    }, delta, total);
                    *lanes = sums;
                    (count(kept), count(lost))
                }
            }

            kernel! {
                fn count_opposed(a: &[$ty], b: &[$ty], least: [$ty; 2]) -> (u64, u64) {
                    let (mut both, mut opposed) = ([0u32; LANES], [0u32; LANES]);
                    rows!(|i| {
                        let large = (a.abs() >= least[0]) & (b.abs() >= least[1]);
                        both[i] += u32::from(large);
                        // A product could be too small for its sign.
                        opposed[i] += u32::from(large & (a.is_sign_negative() != b.is_sign_negative()));
                    }, a, b);
                    (count(both), count(opposed))
                }
            }

            kernel! {
                fn count_low(delta: &[$ty], base: &[$ty], epsilon: $ty, below: $ty) -> u64 {
                    hits(delta, base, |d, b| (d.abs() > epsilon) & (b.abs() < below))
                }
            }

            impl Width for $ty {
                fn of(numbers: Numbers<'_>) -> &[Self] {
                    match numbers {
                        Numbers::$numbers(values) => values,
                        _ => unreachable!("the models of a tensor share one width"),
                    }
                }
                fn buffer<'a>($narrow: &'a mut Vec<f32>, $wide: &'a mut Vec<f64>) -> &'a mut Vec<Self> {
                    $buffer
                }
                fn size(self) -> Self {
                    self.abs()
                }
                fn changes(
                    level: Level,
                    expert: &[Self],
                    base: &[Self],
                    exact: bool,
                    thresholds: Thresholds<f64>,
                    out: &mut [Self],
                    lanes: &mut [Lanes],
                ) -> Changes {
                    if let Some(found) = Self::changes_at_once(level, expert, base, exact, thresholds, out, lanes) {
                        return found;
                    }
                    let Thresholds { epsilon, relative } = thresholds;
                    let found = changes(level, expert, base, exact, $floor(epsilon), relative as $ty, out);
                    if found.different > 0 {
                        add_moments(level, out, epsilon, lanes);
                    }
                    found
                }
                fn subtract(level: Level, expert: &[Self], base: &[Self], out: &mut [Self]) -> f64 {
                    subtract(level, expert, base, out)
                }
                fn count_keys(level: Level, values: &[Self], waiting: &mut Waiting, table: &mut [u32]) {
                    $find_keys(level, values, waiting.room_for(values.len()), table);
                    waiting.raise_many(table);
                }
                fn add_moments(level: Level, delta: &[Self], epsilon: f64, lanes: &mut [Lanes]) {
                    add_moments(level, delta, epsilon, lanes);
                }
                fn add_pair(level: Level, a: &[Self], b: &[Self], epsilon: f64, lanes: &mut [Lanes]) -> (u64, u64) {
                    if let Some(counts) = Self::add_pair_at_once(level, a, b, epsilon, lanes) {
                        return counts;
                    }
                    // Two loops, since one would have more sums than there are registers.
                    let (products, overlap) = lanes.split_at_mut(4);
                    add_products(level, a, b, products);
                    add_overlap(level, a, b, epsilon, overlap)
                }
                fn add_owners(level: Level, delta: &[Self], epsilon: f64, owners: &mut [f64]) {
                    add_owners(level, delta, epsilon, owners);
                }
                fn count_shared(level: Level, delta: &[Self], epsilon: f64, owners: &[f64]) -> u64 {
                    count_shared(level, delta, epsilon, owners)
                }
                fn add_largest(
                    level: Level,
                    delta: &[Self],
                    least: [f64; 3],
                    lanes: &mut [Lanes],
                    total: &mut [f64],
                ) {
                    add_largest(level, delta, least, lanes, total);
                }
                fn count_lost(
                    level: Level,
                    delta: &[Self],
                    least: f64,
                    total: &[f64],
                    lanes: &mut Lanes,
                ) -> (u64, u64) {
                    count_lost(level, delta, least, total, lanes)
                }
                fn count_opposed(level: Level, a: &[Self], b: &[Self], least: [f64; 2]) -> (u64, u64) {
                    count_opposed(level, a, b, least.map($ceil))
                }
                fn count_low(level: Level, delta: &[Self], base: &[Self], epsilon: f64, below: f64) -> u64 {
                    count_low(level, delta, base, $floor(epsilon), $ceil(below))
                }
                $($at_once)*
            }
        };
    };
}

width!(f32, Narrow, |narrow, _wide| narrow, floor_narrow, ceil_narrow, keys::find_narrow, {
    fn changes_at_once(
        level: Level,
        expert: &[f32],
        base: &[f32],
        exact: bool,
        thresholds: Thresholds<f64>,
        out: &mut [f32],
        lanes: &mut [Lanes],
    ) -> Option<Changes> {
        let Thresholds { epsilon, relative } = thresholds;
        let thresholds = Thresholds { epsilon: floor_narrow(epsilon), relative: relative as f32 };
        find_changes_narrow(level, expert, base, exact, thresholds, out, lanes)
    }
    fn add_pair_at_once(
        level: Level,
        a: &[f32],
        b: &[f32],
        epsilon: f64,
        lanes: &mut [Lanes],
    ) -> Option<(u64, u64)> {
        add_pair_narrow(level, a, b, floor_narrow(epsilon), lanes)
    }
    fn find_beyond(
        level: Level,
        two: Two<'_, f32>,
        beyond: Beyond<f64>,
        lanes: &mut [Lanes],
    ) -> Option<Found> {
        let Beyond { epsilon, below, least } = beyond;
        let least = least.map(|least| least.map(ceil_narrow));
        let beyond = Beyond { epsilon: floor_narrow(epsilon), below: ceil_narrow(below), least };
        find_beyond_narrow(level, two, beyond, lanes)
    }
});
width!(f64, Wide, |_narrow, wide| wide, std::convert::identity, std::convert::identity, keys::find_wide, {});

by_level! {
    fn find_changes_narrow(
        expert: &[f32], base: &[f32], exact: bool, thresholds: Thresholds<f32>, out: &mut [f32], lanes: &mut [Lanes],
    ) -> Option<Changes> = no_changes, no_changes, x86::find_changes;
}

by_level! {
    fn add_pair_narrow(a: &[f32], b: &[f32], epsilon: f32, lanes: &mut [Lanes]) -> Option<(u64, u64)> =
        no_pair, no_pair, x86::add_pair;
}

by_level! {
    fn find_beyond_narrow(two: Two<'_, f32>, beyond: Beyond<f32>, lanes: &mut [Lanes]) -> Option<Found> =
        no_beyond, no_beyond, x86::find_beyond;
}

fn no_changes(
    _expert: &[f32],
    _base: &[f32],
    _exact: bool,
    _thresholds: Thresholds<f32>,
    _out: &mut [f32],
    _lanes: &mut [Lanes],
) -> Option<Changes> {
    None
}

fn no_pair(_a: &[f32], _b: &[f32], _epsilon: f32, _lanes: &mut [Lanes]) -> Option<(u64, u64)> {
    None
}

fn no_beyond(_two: Two<'_, f32>, _beyond: Beyond<f32>, _lanes: &mut [Lanes]) -> Option<Found> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        (0..len)
            .map(|i| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let v = (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
                if i % 5 == 0 { 0.0 } else { v * 1e-4 }
            })
            .collect()
    }

    /// Everything that is gathered of two runs of deltas: bits of sums, and counts.
    fn gathered<T: Width>(level: Level, a: &[T], b: &[T]) -> (Vec<u64>, Vec<u64>) {
        let len = a.len();
        let mut lanes = vec![Lanes::default(); 17];
        T::add_moments(level, a, 1e-5, &mut lanes[..3]);
        let pair = T::add_pair(level, a, b, 1e-5, &mut lanes[3..12]);
        let mut total = vec![0.0; len];
        T::add_largest(level, a, [1e-5, 2e-5, 1e-5], &mut lanes[12..15], &mut total);
        T::add_largest(level, b, [1e-5, 2e-5, 2e-5], &mut lanes[12..15], &mut total);
        let lost = T::count_lost(level, b, 2e-5, &total, &mut lanes[15]);
        let opposed = T::count_opposed(level, a, b, [1e-5, 2e-5]);
        let low = T::count_low(level, a, b, 1e-5, 2e-5);
        let mut owners = vec![0.0; len];
        T::add_owners(level, a, 1e-5, &mut owners);
        T::add_owners(level, b, 1e-5, &mut owners);
        let shared = T::count_shared(level, a, 1e-5, &owners);
        let bits = lanes.iter().flatten().map(|v| v.to_bits()).collect();
        (bits, vec![pair.0, pair.1, lost.0, lost.1, opposed.0, opposed.1, low, shared])
    }

    #[test]
    fn levels_and_widths_give_the_same_bits_and_plain_loops_the_same_counts() {
        for len in [0, 1, 7, 8, 9, 15, 16, 17, 1000, 1024] {
            let (a, b) = (noise(len, 1), noise(len, 2));
            let (x, y): (Vec<f64>, Vec<f64>) =
                (a.iter().map(|v| f64::from(*v)).collect(), b.iter().map(|v| f64::from(*v)).collect());
            let expected = gathered(Level::BASELINE, &x, &y);
            for level in Level::available() {
                assert_eq!(gathered(level, &a, &b), expected, "{len} at {}", level.name());
                assert_eq!(gathered(level, &x, &y), expected, "{len} at {}", level.name());
            }
            let both = x.iter().zip(&y).filter(|(x, y)| x.abs() > 1e-5 && y.abs() > 1e-5);
            let opposed = both.clone().filter(|(x, y)| *x * *y < 0.0).count() as u64;
            let counts = expected.1;
            assert_eq!(counts[..2], [both.count() as u64, opposed]);
            assert_eq!(counts[7], counts[0], "with two experts, shared is what both changed");
            let large = x.iter().zip(&y).filter(|(x, y)| x.abs() >= 1e-5 && y.abs() >= 2e-5);
            let opposed = large.clone().filter(|(x, y)| *x * *y < 0.0).count() as u64;
            assert_eq!(counts[4..6], [large.count() as u64, opposed]);
            let lost = |(y, x): &(&f64, &f64)| {
                let kept = |v: f64, t: f64| if v.abs() >= t { v } else { 0.0 };
                y.abs() >= 2e-5 && (**y < 0.0) != (kept(**x, 1e-5) + kept(**y, 2e-5) < 0.0)
            };
            assert_eq!(counts[3], y.iter().zip(&x).filter(lost).count() as u64);
        }
    }

    /// What [`Width::find_beyond`] finds, step by step.
    fn beyond_by_steps(two: Two<'_, f32>, beyond: Beyond<f64>, lanes: &mut [Lanes]) -> Found {
        let (level, len) = (Level::BASELINE, two.base.len());
        let (mut found, mut total, mut deltas) =
            (Found::default(), vec![0.0; len], [vec![0.0; len], vec![0.0; len]]);
        for e in 0..2 {
            f32::subtract(level, two.experts[e], two.from[e], &mut deltas[e]);
            f32::add_largest(level, &deltas[e], beyond.least[e], &mut lanes[4 * e..][..3], &mut total);
            found.low[e] = f32::count_low(level, &deltas[e], two.base, beyond.epsilon, beyond.below);
        }
        for e in 0..2 {
            (found.kept[e], found.lost[e]) =
                f32::count_lost(level, &deltas[e], beyond.least[e][2], &total, &mut lanes[4 * e + 3]);
        }
        let least = beyond.least.map(|least| least[2]);
        (found.both, found.opposed) = f32::count_opposed(level, &deltas[0], &deltas[1], least);
        found
    }

    #[test]
    fn kernels_that_do_all_at_once_find_what_steps_find() {
        let bits = |lanes: &[Lanes]| lanes.iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>();
        for len in [0, 1, 15, 16, 17, 100, 1000, 1024] {
            let (base, mut x, mut y) = (noise(len, 1), noise(len, 2), noise(len, 3));
            for round in 0..3 {
                // Opposite deltas, and then numbers without sense.
                for (i, ((x, y), b)) in x.iter_mut().zip(&mut y).zip(&base).enumerate() {
                    match (round, i % 7) {
                        (1, 3) => (*x, *y) = (*b + 3e-5, *b - 3e-5),
                        (2, 1) => (*x, *y) = (f32::INFINITY, f32::NEG_INFINITY),
                        (2, 2) => *x = f32::NAN,
                        (2, 4) => *y = f32::MIN_POSITIVE / 4.0,
                        _ => {}
                    }
                }
                let two = Two { experts: [&x, &y], from: [&base, &base], base: &base };
                let least = [[5e-5, 2e-5, 1e-5], [6e-5, 3e-5, f64::from(f32::from_bits(1))]];
                let beyond = Beyond { epsilon: 1e-5, below: 2e-5, least };
                let thresholds = Thresholds { epsilon: 1e-5, relative: 1e-3 };
                for level in Level::available() {
                    let mut lanes = [[Lanes::default(); 8]; 2];
                    if let Some(found) = f32::find_beyond(level, two, beyond, &mut lanes[0]) {
                        assert_eq!(found, beyond_by_steps(two, beyond, &mut lanes[1]), "{len}, {round}");
                        assert_eq!(bits(&lanes[0]), bits(&lanes[1]), "{len}, {round}");
                    }
                    for exact in [false, true] {
                        let (mut lanes, mut out) =
                            ([[Lanes::default(); 3]; 2], [vec![0.0; len], vec![0.0; len]]);
                        let changes = [Level::BASELINE, level].map(|level| {
                            let at = usize::from(level != Level::BASELINE);
                            f32::changes(level, &x, &base, exact, thresholds, &mut out[at], &mut lanes[at])
                        });
                        if level != Level::BASELINE {
                            assert_eq!(changes[0], changes[1], "{len}, {round}, {}", level.name());
                            assert_eq!(bits(&lanes[0]), bits(&lanes[1]), "{len}, {round}, {}", level.name());
                            let [a, b] = out.map(|v| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
                            assert_eq!(a, b, "{len}, {round}, {}", level.name());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn sums_of_a_pair_are_those_of_plain_loops() {
        let (a, b) = (noise(1000, 1), noise(1000, 2));
        let mut lanes = vec![Lanes::default(); 9];
        f32::add_pair(Level::BASELINE, &a, &b, 1e-5, &mut lanes);
        let sum = |of: &dyn Fn(f64, f64) -> f64| -> f64 {
            a.iter().zip(&b).map(|(a, b)| of(f64::from(*a), f64::from(*b))).sum()
        };
        let in_both = |a: f64, b: f64| f64::from(u8::from(a.abs() > 1e-5 && b.abs() > 1e-5));
        let expected = [
            sum(&|a, b| a * b),
            sum(&|a, b| -(a * b).min(0.0)),
            sum(&|a, b| (a * b).powi(2)),
            sum(&|a, b| (a * b).min(0.0).powi(2)),
            sum(&|a, b| a * b * in_both(a, b)),
            sum(&|a, b| a * a * in_both(a, b)),
            sum(&|a, b| b * b * in_both(a, b)),
            sum(&|a, b| a * a * in_both(b, b)),
            sum(&|a, b| b * b * in_both(a, a)),
        ];
        for (lanes, expected) in lanes.iter().zip(expected) {
            let found = super::super::lanes::total(lanes);
            assert!((found - expected).abs() <= 1e-12 * sum(&|a, b| (a * b).abs()), "{found} {expected}");
        }
    }

    #[test]
    fn changes_by_every_measure() {
        let base = [1.0f32, 1.0, 1.0, 0.0, 1e-3, f32::NAN, 2.0, 0.0];
        let expert = [1.0f32, 1.0 + 1e-4, 1.01, -0.0, 1e-3 + 5e-6, 1.0, f32::INFINITY, 2e-5];
        let thresholds = Thresholds { epsilon: 1e-5, relative: 1e-3 };
        for level in Level::available() {
            let (mut out, mut lanes) = ([0.0; 8], [Lanes::default(); 3]);
            let found = f32::changes(level, &expert, &base, false, thresholds, &mut out, &mut lanes);
            let expected = Changes {
                different: 7,
                absolute: 4,
                relative: 3,
                visible: 5,
                non_finite: 2,
                peak: f64::INFINITY,
            };
            assert_eq!(found, expected, "{}", level.name());
            assert_eq!(out[7], 2e-5);
            assert_eq!(f32::subtract(level, &expert, &base, &mut out), f64::INFINITY);
            assert_eq!(
                f32::subtract(level, &expert[..5], &base[..5], &mut out[..5]),
                f64::from(1.01f32 - 1.0)
            );
            let wide = |v: [f32; 8]| v.map(f64::from);
            let mut out = [0.0; 8];
            let found =
                f64::changes(level, &wide(expert), &wide(base), false, thresholds, &mut out, &mut lanes);
            assert_eq!(found, expected, "{}", level.name());
            // Numbers that bf16 holds differ there just where they differ.
            let (base, expert) = (base.map(bf16), expert.map(bf16));
            let mut out = [0.0; 8];
            let rounded = f32::changes(level, &expert, &base, false, thresholds, &mut out, &mut lanes);
            assert_eq!(f32::changes(level, &expert, &base, true, thresholds, &mut out, &mut lanes), rounded);
        }
    }
}
