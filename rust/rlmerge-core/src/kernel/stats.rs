//! What a conflict report counts and sums over the deltas of a chunk.
//!
//! Deltas stay in the width in which they were subtracted ([`Width`]): f32 for nearly all models, half the cache and
//! twice the lanes of f64. Sums are of f64 and go to fixed lanes, counts are exact, and thresholds are edges of
//! [`key`]s, so that nothing depends on the SIMD level.

use super::Level;
use super::lanes::{LANES, Lanes};
use super::level::kernel;
use super::values::Numbers;

/// Number of magnitude keys: 128 for each power of two from 2^-150 on, which covers every f32.
pub const KEYS: usize = 280 << FRACTION;
/// Counters that an index of 16 bits can tell apart, and so need no check of their bounds.
const ROOM: usize = 1 << 16;
/// Counters of f32 that are not normal numbers, by their keys.
const TINY: usize = ((f32::MIN_EXP - 1 - LOWEST) as usize) << FRACTION;
/// Counters in a table of magnitudes; [`by_key`] reads it.
pub const TABLE: usize = ROOM + TINY;
/// Counters that each magnitude of an f32 has in turn: adding to one again waits for the addition before.
const TURNS: usize = 2;
/// Counters over which zeros are spread, of which there may be many in a row.
const ZEROS: usize = 64;
/// Indices of counters made at a time.
const PART: usize = 256;
/// Bits of the fraction that a key holds.
pub const FRACTION: u32 = 7;
/// Power of two at which keys begin.
pub const LOWEST: i32 = -150;
const SHIFT: u32 = f64::MANTISSA_DIGITS - 1 - FRACTION;
const SHIFT_NARROW: u32 = f32::MANTISSA_DIGITS - 1 - FRACTION;
const OFFSET: u64 = ((1023 + LOWEST) as u64) << FRACTION;
const MAGNITUDE: u64 = u64::MAX >> 1;
const MAGNITUDE_NARROW: u32 = u32::MAX >> 1;

/// A magnitude to eight significant bits, as a small number that orders like it. Zero has key 0.
#[inline(always)]
#[must_use]
pub fn key(value: f64) -> usize {
    let bits = (value.to_bits() & MAGNITUDE) >> SHIFT;
    bits.saturating_sub(OFFSET).min(KEYS as u64 - 1) as usize
}

/// The smallest magnitude with this key, for keys above 0.
#[must_use]
pub fn edge(key: usize) -> f64 {
    f64::from_bits((key as u64 + OFFSET) << SHIFT)
}

/// How many magnitudes have each key, out of a table and, where there is one, what was counted before it was cleared.
/// Zeros are left out.
#[must_use]
pub fn by_key(table: &[u32], before: &[u64], wide: bool) -> Vec<i64> {
    let mut keys = vec![0; KEYS];
    for (block, counts) in table.chunks(ZEROS).enumerate() {
        // Most counters of most tables were never used.
        if before.is_empty() && counts.iter().fold(0, |any, c| any | c) == 0 {
            continue;
        }
        for (i, count) in counts.iter().enumerate() {
            let place = block * ZEROS + i;
            let count = i64::from(*count) + before.get(place).map_or(0, |c| *c as i64);
            if let Some(key) = key_at(place, wide) {
                keys[key] += count;
            }
        }
    }
    keys
}

/// What a counter of a table counts, unless that is zeros.
fn key_at(place: usize, wide: bool) -> Option<usize> {
    if wide {
        return (place < KEYS).then_some(place);
    }
    // The upper half of an f32 without its sign is a key from another beginning.
    let (normal, infinite) = (1 << FRACTION, 255 << FRACTION);
    match place / TURNS {
        _ if place >= ROOM => Some(place - ROOM),
        upper if upper < normal => None,
        upper if upper < infinite => Some(upper - normal + TINY),
        _ => Some(KEYS - 1),
    }
}

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

/// What a threshold is in the width of the numbers that are compared with it.
#[derive(Debug, Clone, Copy)]
pub struct Thresholds {
    /// ε: a delta above it is a change.
    pub epsilon: f64,
    /// r: a delta above this share of the larger weight is a relative change.
    pub relative: f64,
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
    /// `out = expert − base`, and what that changes. When all are `exact` in bf16 nothing is rounded to tell.
    fn changes(
        level: Level,
        expert: &[Self],
        base: &[Self],
        exact: bool,
        thresholds: Thresholds,
        out: &mut [Self],
    ) -> Changes;
    /// `out = expert − base`; gives the largest magnitude, NaN left out.
    fn subtract(level: Level, expert: &[Self], base: &[Self], out: &mut [Self]) -> f64;
    /// Counts magnitudes in a table of [`TABLE`] counters.
    fn count_keys(level: Level, values: &[Self], table: &mut [u32]);
    /// Adds δ², δ⁴, and δ² where `|δ| > epsilon`.
    fn add_moments(level: Level, delta: &[Self], epsilon: f64, lanes: &mut [Lanes]);
    /// With `c = a·b`: adds c, |c⁻|, c² and (c⁻)², where c⁻ is c where it is negative; then, over elements that both
    /// changed, a·b, a² and b²; then a² where b changed, and b² where a changed. Counts what both changed, and where
    /// their signs differ there.
    fn add_pair(level: Level, a: &[Self], b: &[Self], epsilon: f64, lanes: &mut [Lanes]) -> (u64, u64);
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
    ($ty:ty, $numbers:ident, |$narrow:ident, $wide:ident| $buffer:ident, $floor:path, $ceil:path, $count_keys:path) => {
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
                    thresholds: Thresholds,
                    out: &mut [Self],
                ) -> Changes {
                    let Thresholds { epsilon, relative } = thresholds;
                    changes(level, expert, base, exact, $floor(epsilon), relative as $ty, out)
                }
                fn subtract(level: Level, expert: &[Self], base: &[Self], out: &mut [Self]) -> f64 {
                    subtract(level, expert, base, out)
                }
                fn count_keys(level: Level, values: &[Self], table: &mut [u32]) {
                    $count_keys(level, values, table);
                }
                fn add_moments(level: Level, delta: &[Self], epsilon: f64, lanes: &mut [Lanes]) {
                    add_moments(level, delta, epsilon, lanes);
                }
                fn add_pair(level: Level, a: &[Self], b: &[Self], epsilon: f64, lanes: &mut [Lanes]) -> (u64, u64) {
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
            }
        };
    };
}

width!(f32, Narrow, |narrow, _wide| narrow, floor_narrow, ceil_narrow, count_narrow);
width!(f64, Wide, |_narrow, wide| wide, std::convert::identity, std::convert::identity, count_wide);

kernel! {
    /// Counts f32 by their upper halves, each in turns, and those that are not normal by their keys.
    fn count_narrow(values: &[f32], table: &mut [u32]) {
        let Some((counts, tiny)) = table.split_first_chunk_mut::<ROOM>() else { return };
        for part in values.chunks(PART) {
            let mut places = [0u16; PART];
            let mut any_tiny = 0;
            for (i, (place, v)) in places.iter_mut().zip(part).enumerate() {
                let bits = v.to_bits() & MAGNITUDE_NARROW;
                any_tiny |= u32::from(bits.wrapping_sub(1) < f32::MIN_POSITIVE.to_bits() - 1);
                let upper = bits >> SHIFT_NARROW;
                let upper = if upper == 0 { (i % ZEROS) as u32 } else { upper };
                *place = (upper * TURNS as u32 + (i % TURNS) as u32) as u16;
            }
            for place in &places[..part.len()] {
                counts[usize::from(*place)] += 1;
            }
            if any_tiny != 0 {
                for v in part.iter().filter(|v| v.is_subnormal()) {
                    tiny[key(f64::from(*v))] += 1;
                }
            }
        }
    }
}

kernel! {
    /// Counts f64 by their keys.
    fn count_wide(values: &[f64], table: &mut [u32]) {
        let Some(counts) = table.first_chunk_mut::<ROOM>() else { return };
        for part in values.chunks(PART) {
            let mut places = [0u16; PART];
            for (i, (place, v)) in places.iter_mut().zip(part).enumerate() {
                let bits = (v.to_bits() & MAGNITUDE) >> SHIFT;
                let above = bits.saturating_sub(OFFSET);
                let key = if above < KEYS as u64 { above } else { KEYS as u64 - 1 };
                // Counters that no key uses.
                *place = if key == 0 { (KEYS + i % ZEROS) as u16 } else { key as u16 };
            }
            for place in &places[..part.len()] {
                counts[usize::from(*place)] += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_magnitudes_and_edges_are_their_smallest() {
        assert_eq!(key(0.0), 0);
        assert_eq!(key(-0.0), 0);
        assert!(key(f64::from(f32::from_bits(1))) > 0, "the smallest f32 is not zero");
        assert_eq!(key(f64::INFINITY), KEYS - 1);
        for value in [1.0, 1.5, 0.1, 3e-5, 1e30, 1e-44] {
            let k = key(value);
            assert_eq!(k, key(-value));
            assert!(edge(k) <= value && value < edge(k + 1), "{value}");
            assert!(edge(k + 1) / edge(k) <= 1.0 + 1.0 / 128.0);
            assert_eq!(key(edge(k)), k);
        }
    }

    #[test]
    fn both_widths_count_by_the_same_keys() {
        let mut values =
            vec![0.0f32, -0.0, f32::NAN, f32::INFINITY, f32::MAX, f32::MIN_POSITIVE, -1.0, 1.0, 1.004];
        values.extend((0..2000u32).map(|i| f32::from_bits(i.wrapping_mul(2_147_483_659) % 0x7f80_0000)));
        values.extend((0..200).map(|i| f32::from_bits(i * 40_000)));
        let wide: Vec<f64> = values.iter().map(|v| f64::from(*v)).collect();
        let mut expected = vec![0; KEYS];
        wide.iter().filter(|v| **v != 0.0).for_each(|v| expected[key(*v)] += 1);
        for level in Level::available() {
            let (mut a, mut b) = (vec![0; TABLE], vec![0; TABLE]);
            f32::count_keys(level, &values, &mut a);
            f64::count_keys(level, &wide, &mut b);
            assert_eq!(by_key(&a, &[], false), expected, "{}", level.name());
            assert_eq!(by_key(&b, &[], true), expected, "{}", level.name());
            let before: Vec<u64> = a.iter().map(|c| u64::from(*c)).collect();
            assert_eq!(by_key(&vec![0; TABLE], &before, false), expected, "{}", level.name());
        }
    }

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
            let mut out = [0.0; 8];
            let found = f32::changes(level, &expert, &base, false, thresholds, &mut out);
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
            let found = f64::changes(level, &wide(expert), &wide(base), false, thresholds, &mut out);
            assert_eq!(found, expected, "{}", level.name());
            // Numbers that bf16 holds differ there just where they differ.
            let (base, expert) = (base.map(bf16), expert.map(bf16));
            let mut out = [0.0; 8];
            let rounded = f32::changes(level, &expert, &base, false, thresholds, &mut out);
            assert_eq!(f32::changes(level, &expert, &base, true, thresholds, &mut out), rounded);
        }
    }
}
