//! What a conflict report counts and sums over the deltas of a chunk.
//!
//! Deltas come in f64 (they were subtracted in the arithmetic of their tensor). Sums go to fixed lanes, counts are
//! exact, and thresholds are edges of [`key`]s, so that nothing depends on the SIMD level.

use super::lanes::{LANES, Lanes};
use super::level::kernel;

/// Number of magnitude keys: 128 for each power of two from 2^-150 on, which covers every f32.
pub const KEYS: usize = 280 << FRACTION;
/// Counters in a table of keys, those that no key uses included.
pub const ROOM: usize = 1 << 16;
/// Keys made at a time.
const PART: usize = 256;
/// Bits of the fraction that a key holds.
pub const FRACTION: u32 = 7;
/// Power of two at which keys begin.
pub const LOWEST: i32 = -150;
const SHIFT: u32 = f64::MANTISSA_DIGITS - 1 - FRACTION;
const OFFSET: u64 = ((1023 + LOWEST) as u64) << FRACTION;
const MAGNITUDE: u64 = u64::MAX >> 1;

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

/// An f32 rounded to bf16, to nearest even.
#[inline(always)]
fn bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits(bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}

/// How many elements of a chunk an expert changed, by several measures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
}

macro_rules! changes {
    ($name:ident, $ty:ty, $count:ty, $to_f32:expr) => {
        kernel! {
            /// `out = expert − base`, and what that changes.
            pub fn $name(expert: &[$ty], base: &[$ty], epsilon: $ty, relative: $ty, out: &mut [f64]) -> Changes {
                // Counters of one chunk; a row adds at most one to each.
                let mut counts = [[<$count>::default(); LANES]; 5];
                let one = |x: $ty, b: $ty, out: &mut f64, i: usize, counts: &mut [[$count; LANES]; 5]| {
                    let delta = x - b;
                    *out = f64::from(delta);
                    let size = delta.abs();
                    let (large, small) = (x.abs(), b.abs());
                    let large = if small > large { small } else { large };
                    counts[0][i] += <$count>::from(x.to_bits() != b.to_bits());
                    counts[1][i] += <$count>::from(size > epsilon);
                    counts[2][i] += <$count>::from(size > relative * large);
                    counts[3][i] += <$count>::from(bf16($to_f32(x)) != bf16($to_f32(b)));
                    counts[4][i] += <$count>::from(!size.is_finite());
                };
                let ((rows_x, tail_x), (rows_b, tail_b)) = (expert.as_chunks::<LANES>(), base.as_chunks::<LANES>());
                let (rows_o, tail_o) = out.as_chunks_mut::<LANES>();
                for ((x, b), o) in rows_x.iter().zip(rows_b).zip(rows_o) {
                    for i in 0..LANES {
                        one(x[i], b[i], &mut o[i], i, &mut counts);
                    }
                }
                for (i, ((x, b), o)) in tail_x.iter().zip(tail_b).zip(tail_o).enumerate() {
                    one(*x, *b, o, i, &mut counts);
                }
                let sum = |at: usize| counts[at].iter().map(|c| u64::from(*c)).sum();
                Changes { different: sum(0), absolute: sum(1), relative: sum(2), visible: sum(3), non_finite: sum(4) }
            }
        }
    };
}

changes!(changes_narrow, f32, u32, |v: f32| v);
changes!(changes_wide, f64, u64, |v: f64| v as f32);

/// Calls `each` with the lane of every element of some slices of one length.
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
        let tail = [$($name.1.len()),+][0];
        for $i in 0..tail {
            $(let $name = $name.1[$i];)+
            $each;
        }
    }};
}

/// The value, or zero: by a mask, because a choice makes the compiler keep sums in memory and store them by halves.
#[inline(always)]
fn only(when: bool, value: f64) -> f64 {
    f64::from_bits(value.to_bits() & 0u64.wrapping_sub(u64::from(when)))
}

kernel! {
    /// Adds δ², δ⁴, and δ² where `|δ| > epsilon`.
    pub fn add_moments(delta: &[f64], epsilon: f64, lanes: &mut [Lanes]) {
        let [squares, fourths, changed] = lanes else { return };
        let (mut s, mut f, mut c) = (*squares, *fourths, *changed);
        rows!(|i| {
            let square = delta * delta;
            s[i] += square;
            f[i] += square * square;
            c[i] += only(delta.abs() > epsilon, square);
        }, delta);
        (*squares, *fourths, *changed) = (s, f, c);
    }
}

kernel! {
    /// The largest magnitude, NaN left out.
    pub fn peak(delta: &[f64]) -> f64 {
        let mut peaks = Lanes::default();
        rows!(|i| peaks[i] = if delta.abs() > peaks[i] { delta.abs() } else { peaks[i] }, delta);
        peaks.into_iter().fold(0.0, f64::max)
    }
}

kernel! {
    /// Counts magnitudes by their keys, in a table of [`ROOM`] counters. Zeros are left out.
    pub fn count_keys(values: &[f64], counts: &mut [i64]) {
        // As many counters as an index can tell apart need no check of their bounds.
        let Some(counts) = counts.first_chunk_mut::<ROOM>() else { return };
        for part in values.chunks(PART) {
            let mut keys = [0u16; PART];
            for (i, (k, v)) in keys.iter_mut().zip(part).enumerate() {
                let bits = (v.to_bits() & MAGNITUDE) >> SHIFT;
                let above = bits.saturating_sub(OFFSET);
                let key = if above < KEYS as u64 { above } else { KEYS as u64 - 1 };
                // Zeros, of which there may be many, are spread over counters that no key uses: adding to one
                // counter again and again would wait for itself.
                *k = if key == 0 { (KEYS + i % 64) as u16 } else { key as u16 };
            }
            for k in &keys[..part.len()] {
                counts[usize::from(*k)] += 1;
            }
        }
    }
}

kernel! {
    /// With `c = a·b`: adds c, |c⁻|, c² and (c⁻)², where c⁻ is c where it is negative.
    pub fn add_products(a: &[f64], b: &[f64], lanes: &mut [Lanes]) {
        let [dots, negatives, squares, negative_squares] = lanes else { return };
        let (mut d, mut n, mut s, mut m) = (*dots, *negatives, *squares, *negative_squares);
        rows!(|i| {
            let product = a * b;
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
    /// Over elements that both changed: adds a·b, a² and b². Adds a² where b changed, and b² where a changed. Counts
    /// what both changed, and where their signs differ there.
    pub fn add_overlap(a: &[f64], b: &[f64], epsilon: f64, lanes: &mut [Lanes]) -> (u64, u64) {
        let [dots, squares_a, squares_b, a_on_b, b_on_a] = lanes else { return (0, 0) };
        let (mut d, mut s, mut t, mut u, mut v) = (*dots, *squares_a, *squares_b, *a_on_b, *b_on_a);
        let (mut shared, mut opposed) = ([0u64; LANES], [0u64; LANES]);
        rows!(|i| {
            let (in_a, in_b) = (a.abs() > epsilon, b.abs() > epsilon);
            let product = a * b;
            let a_there = only(in_b, a * a);
            let b_there = only(in_a, b * b);
            u[i] += a_there;
            v[i] += b_there;
            d[i] += only(in_a & in_b, product);
            s[i] += only(in_a, a_there);
            t[i] += only(in_b, b_there);
            shared[i] += u64::from(in_a & in_b);
            opposed[i] += u64::from(in_a & in_b & (product < 0.0));
        }, a, b);
        (*dots, *squares_a, *squares_b, *a_on_b, *b_on_a) = (d, s, t, u, v);
        (shared.iter().sum(), opposed.iter().sum())
    }
}

kernel! {
    /// Adds one to the owners of each element with `|δ| > epsilon`.
    pub fn add_owners(delta: &[f64], epsilon: f64, owners: &mut [f64]) {
        for (o, d) in owners.iter_mut().zip(delta) {
            *o += only(d.abs() > epsilon, 1.0);
        }
    }
}

kernel! {
    /// Counts the elements with `|δ| > epsilon` that have another owner.
    pub fn count_shared(delta: &[f64], epsilon: f64, owners: &[f64]) -> u64 {
        let mut counts = [0u64; LANES];
        rows!(|i| counts[i] += u64::from((delta.abs() > epsilon) & (owners > 1.0)), delta, owners);
        counts.iter().sum()
    }
}

kernel! {
    /// Adds δ² where `|δ|` is at least each of three thresholds.
    pub fn add_largest(delta: &[f64], least: [f64; 3], lanes: &mut [Lanes]) {
        let [first, second, third] = lanes else { return };
        let (mut x, mut y, mut z) = (*first, *second, *third);
        rows!(|i| {
            let (size, square) = (delta.abs(), delta * delta);
            x[i] += only(size >= least[0], square);
            y[i] += only(size >= least[1], square);
            z[i] += only(size >= least[2], square);
        }, delta);
        (*first, *second, *third) = (x, y, z);
    }
}

kernel! {
    /// `total += δ` where `|δ|` is at least a threshold: the sum whose sign TIES elects.
    pub fn add_kept(delta: &[f64], least: f64, total: &mut [f64]) {
        for (t, d) in total.iter_mut().zip(delta) {
            *t += only(d.abs() >= least, *d);
        }
    }
}

kernel! {
    /// Of the elements whose `|δ|` is at least a threshold: how many, how many have not the sign of `total` (a total
    /// of zero elects plus), and the sum of δ² of those.
    pub fn count_lost(delta: &[f64], least: f64, total: &[f64], lanes: &mut Lanes) -> (u64, u64) {
        let mut sums = *lanes;
        let (mut kept, mut lost) = ([0u64; LANES], [0u64; LANES]);
        rows!(|i| {
            let stays = delta.abs() >= least;
            let goes = stays & ((delta < 0.0) != (total < 0.0));
            kept[i] += u64::from(stays);
            lost[i] += u64::from(goes);
            sums[i] += only(goes, delta * delta);
        }, delta, total);
        *lanes = sums;
        (kept.iter().sum(), lost.iter().sum())
    }
}

kernel! {
    /// Counts elements where both magnitudes reach their thresholds, and where the signs differ there.
    pub fn count_opposed(a: &[f64], b: &[f64], least_a: f64, least_b: f64) -> (u64, u64) {
        let (mut both, mut opposed) = ([0u64; LANES], [0u64; LANES]);
        rows!(|i| {
            let large = (a.abs() >= least_a) & (b.abs() >= least_b);
            both[i] += u64::from(large);
            opposed[i] += u64::from(large & (a * b < 0.0));
        }, a, b);
        (both.iter().sum(), opposed.iter().sum())
    }
}

kernel! {
    /// Counts elements with `|δ| > epsilon` whose base is smaller than `below`.
    pub fn count_low(delta: &[f64], base: &[f64], epsilon: f64, below: f64) -> u64 {
        let mut counts = [0u64; LANES];
        rows!(|i| counts[i] += u64::from((delta.abs() > epsilon) & (base.abs() < below)), delta, base);
        counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Level;

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

    fn noise(len: usize, seed: u64) -> Vec<f64> {
        let mut state = seed;
        (0..len)
            .map(|i| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let v = (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
                if i % 5 == 0 { 0.0 } else { f64::from(v * 1e-4) }
            })
            .collect()
    }

    #[test]
    fn levels_give_the_same_bits_and_plain_loops_the_same_counts() {
        for len in [0, 1, 15, 16, 17, 1000, 1024] {
            let (a, b) = (noise(len, 1), noise(len, 2));
            let mut expected = None;
            for level in Level::available() {
                let mut lanes = vec![Lanes::default(); 16];
                add_moments(level, &a, 1e-5, &mut lanes[..3]);
                add_products(level, &a, &b, &mut lanes[3..7]);
                let overlap = add_overlap(level, &a, &b, 1e-5, &mut lanes[7..12]);
                add_largest(level, &a, [1e-5, 2e-5, 3e-5], &mut lanes[12..15]);
                let mut total = vec![0.0; len];
                add_kept(level, &a, 1e-5, &mut total);
                add_kept(level, &b, 2e-5, &mut total);
                let lost = count_lost(level, &b, 2e-5, &total, &mut lanes[15]);
                let opposed = count_opposed(level, &a, &b, 1e-5, 2e-5);
                let low = count_low(level, &a, &b, 1e-5, 2e-5);
                let mut owners = vec![0.0; len];
                add_owners(level, &a, 1e-5, &mut owners);
                add_owners(level, &b, 1e-5, &mut owners);
                let shared = count_shared(level, &a, 1e-5, &owners);
                let mut keys = vec![0; ROOM];
                count_keys(level, &a, &mut keys);
                let bits: Vec<u64> = lanes.iter().flatten().map(|v| v.to_bits()).collect();
                let peak = peak(level, &a).to_bits();
                let all = (bits, overlap, lost, opposed, low, shared, keys[..KEYS].to_vec(), peak);
                assert_eq!(expected.get_or_insert_with(|| all.clone()), &all, "{len} at {}", level.name());
            }
            let both = a.iter().zip(&b).filter(|(x, y)| x.abs() > 1e-5 && y.abs() > 1e-5);
            let opposed = both.clone().filter(|(x, y)| *x * *y < 0.0).count() as u64;
            let expected = expected.unwrap();
            assert_eq!(expected.1, (both.count() as u64, opposed));
            assert_eq!(expected.5, expected.1.0, "with two experts, shared is what both changed");
            assert_eq!(expected.6.iter().sum::<i64>(), a.iter().filter(|v| **v != 0.0).count() as i64);
            let lost = |(y, x): &(&f64, &f64)| {
                let kept = |v: f64, t: f64| if v.abs() >= t { v } else { 0.0 };
                y.abs() >= 2e-5 && (**y < 0.0) != (kept(**x, 1e-5) + kept(**y, 2e-5) < 0.0)
            };
            assert_eq!(expected.2.1, b.iter().zip(&a).filter(lost).count() as u64);
        }
    }

    #[test]
    fn changes_by_every_measure() {
        let base = [1.0f32, 1.0, 1.0, 0.0, 1e-3, f32::NAN, 2.0, 0.0];
        let expert = [1.0f32, 1.0 + 1e-4, 1.01, -0.0, 1e-3 + 5e-6, 1.0, f32::INFINITY, 2e-5];
        for level in Level::available() {
            let mut out = [0.0; 8];
            let found = changes_narrow(level, &expert, &base, 1e-5, 1e-3, &mut out);
            let expected = Changes { different: 7, absolute: 4, relative: 3, visible: 5, non_finite: 2 };
            assert_eq!(found, expected, "{}", level.name());
            assert_eq!(out[7], f64::from(2e-5f32));
            let wide = |v: [f32; 8]| v.map(f64::from);
            let found = changes_wide(level, &wide(expert), &wide(base), 1e-5, 1e-3, &mut out);
            assert_eq!(found, expected, "{}", level.name());
        }
    }
}
