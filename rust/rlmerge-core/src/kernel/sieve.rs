//! Deltas that may reach a threshold, of many that do not, and where they are: a fifth of the memory that all of them
//! take, and enough for whoever knows later where exactly the threshold is.

use super::lanes::{self, LANES, Lanes};
use super::level::by_level;
use super::select::{NARROW_MAGNITUDE, ROW};
use super::{CHUNK, Level};

/// Of how many elements a sieve keeps as many as it has room for.
const OF: usize = 8;
/// How many of those it has room for.
const KEPT: usize = 3;

/// What stays in the sieve.
#[derive(Debug)]
pub struct Sieve {
    /// One bit for each element that went through, a row in each number.
    bits: Vec<u16>,
    /// The deltas whose bit is set, in their order, and room for more.
    kept: Vec<f32>,
    /// Where those of each chunk begin.
    starts: Vec<usize>,
    /// How many stay.
    count: usize,
    /// How many elements went through.
    seen: usize,
    /// Whether there were more than it has room for.
    is_full: bool,
    /// Squares of all deltas that went through.
    squares: Lanes,
}

impl Sieve {
    /// Bytes of a sieve for so many elements.
    #[must_use]
    pub const fn bytes(elements: usize) -> usize {
        4 * Self::room(elements) + 2 * elements.div_ceil(ROW) + 8 * elements.div_ceil(CHUNK)
    }

    const fn room(elements: usize) -> usize {
        elements / OF * KEPT + CHUNK + ROW
    }

    /// An empty sieve for so many elements.
    #[must_use]
    pub fn new(elements: usize) -> Self {
        Self {
            bits: Vec::with_capacity(elements.div_ceil(ROW)),
            kept: vec![0.0; Self::room(elements)],
            starts: Vec::with_capacity(elements.div_ceil(CHUNK)),
            count: 0,
            seen: 0,
            is_full: false,
            squares: Lanes::default(),
        }
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.bits.clear();
        self.starts.clear();
        (self.count, self.seen, self.is_full, self.squares) = (0, 0, false, Lanes::default());
    }

    /// Keeps those deltas of a chunk whose magnitude has at least the bits `low`. Gives them, unless there is no room; all
    /// chunks but the last are as long as chunks are.
    pub fn sift(&mut self, level: Level, deltas: &[f32], low: u32) -> Option<&[f32]> {
        debug_assert!(self.seen.is_multiple_of(CHUNK) && deltas.len() <= CHUNK, "chunk by chunk");
        if self.is_full || self.count + CHUNK + ROW > self.kept.len() {
            self.is_full = true;
            return None;
        }
        let (row, begin) = (self.bits.len(), self.count);
        self.bits.resize(row + deltas.len().div_ceil(ROW), 0);
        self.starts.push(begin);
        self.seen += deltas.len();
        let (rows, tail) = deltas.as_chunks::<ROW>();
        let (bits, kept) = (&mut self.bits[row..], &mut self.kept[begin..]);
        let mut count = sift_rows(level, rows, low, bits, kept, &mut self.squares);
        if let Some(bits) = bits.get_mut(rows.len()) {
            count += sift_row(tail, low, bits, &mut kept[count..], &mut self.squares);
        }
        self.count += count;
        Some(&self.kept[begin..self.count])
    }

    /// Whether so many elements went through, and all that should stay did.
    #[must_use]
    pub fn holds(&self, elements: usize) -> bool {
        !self.is_full && self.seen == elements
    }

    /// The deltas of a chunk from element `first` on; zeros for those that did not stay.
    pub fn spread(&self, level: Level, first: usize, out: &mut [f32]) {
        for (at, out) in out.chunks_mut(CHUNK).enumerate() {
            let chunk = first / CHUNK + at;
            let (rows, tail) = out.as_chunks_mut::<ROW>();
            let bits = &self.bits[chunk * (CHUNK / ROW)..];
            let kept = &self.kept[self.starts[chunk]..];
            let count = spread_rows(level, bits, kept, rows);
            if let Some(bits) = bits.get(rows.len()) {
                spread_row(*bits, &kept[count..], tail);
            }
        }
    }

    /// The sum of the squares of all deltas that went through.
    #[must_use]
    pub fn square(&self) -> f64 {
        lanes::total(&self.squares)
    }
}

by_level! {
    /// [`sift_row`] for whole rows; `kept` has room for one more row than there may be.
    fn sift_rows(rows: &[[f32; ROW]], low: u32, bits: &mut [u16], kept: &mut [f32], squares: &mut Lanes) -> usize = plain_sift, x86::sift_avx2, x86::sift;
}

by_level! {
    /// [`spread_row`] for whole rows; behind the last number that is kept there is one more row.
    fn spread_rows(bits: &[u16], kept: &[f32], out: &mut [[f32; ROW]]) -> usize = plain_spread, plain_spread, x86::spread;
}

#[inline(always)]
fn plain_sift(
    rows: &[[f32; ROW]],
    low: u32,
    bits: &mut [u16],
    kept: &mut [f32],
    squares: &mut Lanes,
) -> usize {
    let mut count = 0;
    for (row, bits) in rows.iter().zip(bits) {
        count += sift_row(row, low, bits, &mut kept[count..], squares);
    }
    count
}

/// Keeps those of at most a row whose magnitude has at least the bits `low`. Gives how many.
#[inline(always)]
fn sift_row(row: &[f32], low: u32, bits: &mut u16, kept: &mut [f32], squares: &mut [f64; LANES]) -> usize {
    let mut count = 0;
    for (i, (delta, sum)) in row.iter().zip(squares).enumerate() {
        let wide = f64::from(*delta);
        *sum += wide * wide;
        let stays = delta.to_bits() & NARROW_MAGNITUDE >= low;
        *bits |= u16::from(stays) << i;
        kept[count] = *delta;
        count += usize::from(stays);
    }
    count
}

fn plain_spread(bits: &[u16], kept: &[f32], out: &mut [[f32; ROW]]) -> usize {
    let mut count = 0;
    for (bits, out) in bits.iter().zip(out) {
        count += spread_row(*bits, &kept[count..], out);
    }
    count
}

/// Puts what was kept of at most a row to its places, and zeros to the others. Gives how many were kept.
fn spread_row(bits: u16, kept: &[f32], out: &mut [f32]) -> usize {
    let mut count = 0;
    for (i, o) in out.iter_mut().enumerate() {
        let stays = bits >> i & 1 == 1;
        *o = if stays { kept[count] } else { 0.0 };
        count += usize::from(stays);
    }
    count
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Lanes, NARROW_MAGNITUDE, ROW, plain_sift};
    use crate::kernel::level::registers::{load_512, load_512_wide, put_512, store_512, store_512_wide};

    #[target_feature(enable = "avx2,popcnt,bmi1")]
    pub fn sift_avx2(
        rows: &[[f32; ROW]],
        low: u32,
        bits: &mut [u16],
        kept: &mut [f32],
        squares: &mut Lanes,
    ) -> usize {
        plain_sift(rows, low, bits, kept, squares)
    }

    /// Each row gives sixteen numbers, those that stay first, and the next row writes over the others.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1")]
    pub fn sift(
        rows: &[[f32; ROW]],
        low: u32,
        bits: &mut [u16],
        kept: &mut [f32],
        squares: &mut Lanes,
    ) -> usize {
        let magnitude = _mm512_set1_epi32(NARROW_MAGNITUDE.cast_signed());
        let low = _mm512_set1_epi32(low.cast_signed());
        let [first, second] = squares.as_chunks_mut().0 else { unreachable!("two registers of lanes") };
        let (mut sum, mut next_sum) = (load_512_wide(first), load_512_wide(second));
        let mut count = 0;
        for (row, bits) in rows.iter().zip(bits) {
            let deltas = load_512(row);
            // The squares are exact, so that the sum alone rounds.
            let wide = _mm512_cvtps_pd(_mm512_castps512_ps256(deltas));
            let next = _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(deltas));
            sum = _mm512_fmadd_pd(wide, wide, sum);
            next_sum = _mm512_fmadd_pd(next, next, next_sum);
            let key = _mm512_and_si512(_mm512_castps_si512(deltas), magnitude);
            let stays = _mm512_cmpge_epu32_mask(key, low);
            put_512(_mm512_maskz_compress_ps(stays, deltas), kept, count);
            *bits = stays;
            count += stays.count_ones() as usize;
        }
        store_512_wide(sum, first);
        store_512_wide(next_sum, second);
        count
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1")]
    pub fn spread(bits: &[u16], kept: &[f32], out: &mut [[f32; ROW]]) -> usize {
        let mut count = 0;
        for (bits, out) in bits.iter().zip(out) {
            let Some(next) = kept[count..].first_chunk() else {
                unreachable!("there is one more row behind the last that is kept");
            };
            store_512(_mm512_maskz_expand_ps(*bits, load_512(next)), out);
            count += bits.count_ones() as usize;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize) -> Vec<f32> {
        let mut state = 1u64;
        let odd = [f32::NAN, f32::INFINITY, -0.0, f32::MIN_POSITIVE / 4.0, -0.75, 0.75];
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let u = (state >> 40) as f32 / 8_388_608.0 - 1.0;
                odd.get((state >> 33) as usize % 512).copied().unwrap_or(u)
            })
            .collect()
    }

    #[test]
    fn what_stays_comes_back_to_its_place() {
        for n in (1..70).chain([1000, 1024, 1025, 3000, 5000]) {
            let deltas = numbers(n);
            let low = 0.75f32.to_bits();
            let stays = |v: &&f32| v.to_bits() & NARROW_MAGNITUDE >= low;
            let want: Vec<u32> = deltas.iter().map(|v| if stays(&v) { v.to_bits() } else { 0 }).collect();
            for level in Level::available() {
                let mut sieve = Sieve::new(n);
                let mut squares = Lanes::default();
                for chunk in deltas.chunks(CHUNK) {
                    let kept = sieve.sift(level, chunk, low).unwrap();
                    let want: Vec<u32> = chunk.iter().filter(stays).map(|v| v.to_bits()).collect();
                    let kept: Vec<u32> = kept.iter().map(|v| v.to_bits()).collect();
                    assert_eq!(kept, want, "{level:?} {n}");
                    lanes::add_squares_narrow(level, chunk, &mut squares);
                }
                assert!(sieve.holds(n) && !sieve.holds(n + 1));
                assert_eq!(sieve.square().to_bits(), lanes::total(&squares).to_bits(), "{level:?} {n}");
                for first in (0..n).step_by(CHUNK) {
                    let mut out = vec![1.0; n - first];
                    sieve.spread(level, first, &mut out);
                    let got: Vec<u32> = out.iter().map(|v| v.to_bits()).collect();
                    assert_eq!(got, want[first..], "{level:?} {n} from {first}");
                }
                sieve.clear();
                assert!(!sieve.holds(n) && sieve.holds(0));
            }
        }
    }

    #[test]
    fn a_sieve_that_is_full_says_so() {
        let n = 16 * CHUNK;
        let ones = vec![1.0; CHUNK];
        for level in Level::available() {
            let mut sieve = Sieve::new(n);
            let kept = (0..16).take_while(|_| sieve.sift(level, &ones, 1).is_some()).count();
            assert_eq!(kept, 7, "a chunk more than three eighths");
            assert!(sieve.sift(level, &vec![0.0; CHUNK], 1).is_none(), "nor later");
            assert!(!sieve.holds(n) && !sieve.holds(kept * CHUNK));
        }
    }
}
