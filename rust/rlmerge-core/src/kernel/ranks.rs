//! Ranks of magnitudes within rows, and masks whose probability depends on them (DELLA).
//!
//! Ranks are exact: a row's magnitudes are sorted by their bit patterns, least significant digit first, over those digits
//! only in which they differ. Deltas of 16-bit weights differ in few bits, and elements that were not changed are not
//! sorted at all.

use super::level::{Level, kernel};
use super::philox;
use super::rng::{self, Stream};

/// How a run of elements falls into rows: row `r` of a slab of `len · stride` elements is its elements `r`,
/// `r + stride`, …
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// Elements of a row.
    pub len: usize,
    /// Distance between neighbours in a row; 1 where rows lie one after the other.
    pub stride: usize,
}

/// Keep probabilities by rank: from `low` for the smallest magnitude of a row, `step` more with each rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slope {
    /// Probability of rank 1.
    pub low: f64,
    /// Difference between neighbouring ranks.
    pub step: f64,
}

impl Slope {
    /// From `density − epsilon` to `density + epsilon` over the ranks of a row; a row of one element has only `density`.
    #[must_use]
    pub fn new(density: f64, epsilon: f64, len: usize) -> Self {
        if len < 2 {
            return Self { low: density, step: 0.0 };
        }
        Self { low: density - epsilon, step: 2.0 * epsilon / (len - 1) as f64 }
    }
}

/// Buffers for ranking, kept from chunk to chunk.
#[derive(Debug, Default)]
pub struct Ranks {
    /// Magnitude in the upper half, position in the lower.
    items: Vec<u64>,
    spare: Vec<u64>,
    /// The same where magnitudes are 64 bits wide.
    wide: Vec<(u64, u32)>,
    /// Where the run of equal magnitudes begins, for each item.
    begins: Vec<u32>,
    /// Twice the rank of each element, so that means of neighbouring ranks are whole.
    twice: Vec<u32>,
    pieces: Vec<u16>,
}

impl Ranks {
    /// Twice the ranks of the magnitudes of `values` within their rows, 1 the smallest. Equal magnitudes share the mean of
    /// their ranks, so that nothing depends on where in the row they stand; NaN ranks highest. Zeros get rank 1: they stay
    /// zero whatever becomes of them, but take up the lowest ranks. `wide` says that values carry full f64 precision.
    pub fn rank(&mut self, values: &[f64], rows: Rows, wide: bool) -> &[u32] {
        self.twice.clear();
        self.twice.resize(values.len(), 2);
        let slab = rows.len * rows.stride;
        for (at, values) in values.chunks(slab.max(1)).enumerate() {
            let twice = &mut self.twice[at * slab..at * slab + values.len()];
            for row in 0..rows.stride {
                if wide {
                    let magnitudes = |i: usize| values[i].to_bits() & (u64::MAX >> 1);
                    let positions = (row..values.len()).step_by(rows.stride);
                    self.wide.clear();
                    self.wide.extend(positions.map(|i| (magnitudes(i), i as u32)).filter(|(m, _)| *m != 0));
                    self.wide.sort_unstable();
                    share_ranks(&self.wide, rows.len, &mut self.begins, twice);
                } else {
                    gather(values, row, rows, &mut self.items);
                    sort(&mut self.items, &mut self.spare);
                    share_ranks(&self.items, rows.len, &mut self.begins, twice);
                }
            }
        }
        &self.twice
    }

    /// Keeps each of `values`, the tensor's elements from `first` on, with the probability that its rank gives it, and
    /// multiplies what is kept by `factor`, divided by that probability when `inverse`.
    #[allow(clippy::too_many_arguments, reason = "one pass over the chunk does it all")]
    pub fn thin(
        &mut self,
        level: Level,
        values: &mut [f64],
        first: u64,
        rows: Rows,
        wide: bool,
        stream: Stream,
        slope: Slope,
        factor: f64,
        inverse: bool,
    ) {
        self.rank(values, rows, wide);
        let skipped = rng::upper_halves(level, stream, first, values.len(), &mut self.pieces);
        let pieces = &self.pieces[skipped..skipped + values.len()];
        if !decide(level, values, &self.twice, pieces, slope, factor, inverse) {
            return;
        }
        // One element in 65536 is settled by the other half of its number.
        for (i, v) in values.iter_mut().enumerate() {
            let (least, bound) = (u64::from(pieces[i]) << 16, bound(slope, self.twice[i]));
            if (least + 1) as f64 <= bound && (least + 65536) as f64 > bound {
                let number = least + u64::from(rng::lower_half(stream, first + i as u64));
                *v = if (number + 1) as f64 <= bound { *v } else { 0.0 };
            }
        }
    }
}

/// The numbers below this, one at least, are kept: a number `u` is kept when `u < ⌊p·2³² + ½⌋`, that is `u + 1 ≤ p·2³² + ½`.
#[inline(always)]
fn bound(slope: Slope, twice: u32) -> f64 {
    probability(slope, twice) * 4_294_967_296.0 + 0.5
}

#[inline(always)]
fn probability(slope: Slope, twice: u32) -> f64 {
    slope.low + slope.step * (0.5 * f64::from(twice as i32 - 2))
}

kernel! {
    /// Drops what the upper halves of the numbers say is not kept and scales the rest; whether an element is left to be
    /// settled by the lower halves. Those are scaled and not yet dropped.
    fn decide(
        values: &mut [f64], twice: &[u32], pieces: &[u16], slope: Slope, factor: f64, inverse: bool,
    ) -> bool {
        let mut open = 0u32;
        for ((v, twice), piece) in values.iter_mut().zip(twice).zip(pieces) {
            let p = probability(slope, *twice);
            let bound = p * 4_294_967_296.0 + 0.5;
            let least = f64::from(i32::from(*piece)) * 65536.0;
            let (some, all) = (least + 1.0 <= bound, least + 65536.0 <= bound);
            open |= u32::from(some != all);
            let by = if inverse { factor * (1.0 / p) } else { factor };
            *v = if some { by * *v } else { 0.0 };
        }
        open != 0
    }
}

/// The changed elements of a row, as items.
fn gather(values: &[f64], row: usize, rows: Rows, items: &mut Vec<u64>) {
    items.resize(rows.len, 0);
    let mut count = 0;
    let mut put = |i: usize, v: f64| {
        let magnitude = (v as f32).to_bits() & (u32::MAX >> 1);
        items[count] = u64::from(magnitude) << 32 | i as u64;
        // Without a branch, which deltas of a model that was tuned a little would make unforeseeable.
        count += usize::from(magnitude != 0);
    };
    if rows.stride == 1 {
        for (i, v) in values.iter().enumerate() {
            put(i, *v);
        }
    } else {
        for i in (row..values.len()).step_by(rows.stride) {
            put(i, values[i]);
        }
    }
    items.truncate(count);
}

/// Most bits of a digit.
const DIGIT: u32 = 11;
/// Items that are sorted sooner by comparing.
const FEW: usize = 128;

/// Sorts items by their magnitudes.
fn sort(items: &mut Vec<u64>, spare: &mut Vec<u64>) {
    if items.len() < FEW {
        return items.sort_unstable();
    }
    let (all, any) = items.iter().fold((u64::MAX, 0), |(all, any), item| (all & item, any | item));
    let differing = ((any & !all) >> 32) as u32;
    if differing == 0 {
        return;
    }
    let low = differing.trailing_zeros();
    let bits = u32::BITS - differing.leading_zeros() - low;
    let passes = bits.div_ceil(DIGIT.min(items.len().ilog2()));
    let width = bits.div_ceil(passes);
    spare.resize(items.len(), 0);
    let mut counts = [0u32; 1 << DIGIT];
    for pass in 0..passes {
        let digit = |item: u64| (item >> (32 + low + pass * width)) as usize & ((1 << width) - 1);
        let counts = &mut counts[..1 << width];
        counts.fill(0);
        for item in &*items {
            counts[digit(*item)] += 1;
        }
        let mut before = 0;
        for count in counts.iter_mut() {
            before += std::mem::replace(count, before);
        }
        for item in &*items {
            let place = &mut counts[digit(*item)];
            spare[*place as usize] = *item;
            *place += 1;
        }
        std::mem::swap(items, spare);
    }
}

/// A magnitude and its position.
trait Item: Copy {
    fn magnitude(self) -> u64;
    fn position(self) -> usize;
}

impl Item for u64 {
    fn magnitude(self) -> u64 {
        self >> 32
    }
    fn position(self) -> usize {
        self as u32 as usize
    }
}

impl Item for (u64, u32) {
    fn magnitude(self) -> u64 {
        self.0
    }
    fn position(self) -> usize {
        self.1 as usize
    }
}

/// Writes twice the ranks of a row's sorted items; its other elements are zeros, which come before them. There and back
/// over the items without a branch: in 16 bits many magnitudes are equal, and how many cannot be foreseen.
fn share_ranks<T: Item>(items: &[T], len: usize, begins: &mut Vec<u32>, twice: &mut [u32]) {
    let zeros = (len - items.len()) as u32;
    begins.resize(items.len(), 0);
    let (mut before, mut begin) = (0, 0);
    for (i, (item, slot)) in items.iter().zip(&mut *begins).enumerate() {
        begin = if item.magnitude() == before { begin } else { i as u32 };
        before = item.magnitude();
        *slot = begin;
    }
    let (mut after, mut end) = (0, 0);
    for (i, (item, begin)) in items.iter().zip(begins).enumerate().rev() {
        end = if item.magnitude() == after { end } else { i as u32 + 1 };
        after = item.magnitude();
        twice[item.position()] = 2 * zeros + *begin + end + 1;
    }
}

const _: () = assert!(philox::PIECES == 64, "numbers are made for 64 elements at once");

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, step: f64) -> Vec<f64> {
        let mut state = 0x1234_5678_9abc_def0u64;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let u = (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5;
                f64::from(((u * u * u / step).round() * step) as f32)
            })
            .collect()
    }

    /// Twice the mean rank, by counting.
    fn by_counting(row: &[f64]) -> Vec<u32> {
        let key = |v: &f64| v.abs().to_bits();
        row.iter()
            .map(|v| {
                let below = row.iter().filter(|o| key(o) < key(v)).count();
                let same = row.iter().filter(|o| key(o) == key(v)).count();
                if *v == 0.0 { 2 } else { (2 * below + same + 1) as u32 }
            })
            .collect()
    }

    #[test]
    fn ranks_are_those_of_counting() {
        let mut ranks = Ranks::default();
        for (len, step) in
            [(1, 1e-9), (2, 1e-9), (7, 0.01), (127, 1e-4), (128, 1e-9), (1500, 1e-4), (3000, 1e-9)]
        {
            let mut values = noise(3 * len, step);
            values[len / 2] = f64::NAN;
            for wide in [false, true] {
                let got = ranks.rank(&values, Rows { len, stride: 1 }, wide).to_vec();
                let expected: Vec<u32> = values.chunks(len).flat_map(by_counting).collect();
                assert_eq!(got, expected, "{len} {wide}");
            }
        }
    }

    #[test]
    fn rows_across_a_slab() {
        let (len, stride) = (5, 3);
        let values = noise(2 * len * stride, 0.01);
        let mut ranks = Ranks::default();
        let got = ranks.rank(&values, Rows { len, stride }, false);
        for slab in 0..2 {
            for row in 0..stride {
                let at = |k: usize| slab * len * stride + row + k * stride;
                let expected = by_counting(&(0..len).map(|k| values[at(k)]).collect::<Vec<_>>());
                assert_eq!((0..len).map(|k| got[at(k)]).collect::<Vec<_>>(), expected);
            }
        }
    }

    #[test]
    fn without_a_slope_the_mask_is_that_of_equal_probabilities_at_every_level() {
        let (stream, values) = (Stream::new(5, 1, "w"), noise(1000, 1e-9));
        for level in Level::available() {
            for first in [0u64, 37, 64, 1_000_003] {
                let (mut ranked, mut ranks) = (values.clone(), Ranks::default());
                let (rows, slope) = (Rows { len: 250, stride: 1 }, Slope::new(0.3, 0.0, 250));
                ranks.thin(level, &mut ranked, first, rows, false, stream, slope, 2.0, false);
                let mut all = vec![1.0; (first + 1000) as usize % 64 + 64 + 1000];
                let begin = first / 64 * 64;
                rng::keep_random(level, &mut all, stream, begin, rng::threshold(0.3));
                for (i, v) in ranked.iter().enumerate() {
                    let kept = all[(first - begin) as usize + i] * 2.0 * values[i];
                    assert_eq!(v.to_bits() << 1, kept.to_bits() << 1, "{level:?} {first} {i}");
                }
            }
        }
    }

    #[test]
    fn a_row_of_one_element_has_the_density() {
        assert_eq!(Slope::new(0.4, 0.2, 1), Slope { low: 0.4, step: 0.0 });
        let slope = Slope::new(0.5, 0.25, 5);
        assert_eq!([2, 6, 10].map(|twice| probability(slope, twice)), [0.25, 0.5, 0.75]);
    }
}
