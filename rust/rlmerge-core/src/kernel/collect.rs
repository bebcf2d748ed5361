//! Writing down the keys in the window of a selection, where there are few of them and bins could not tell them apart.
//!
//! Few keys lie inside, so most rows have nothing to write down; the compiler does not find out by itself how little has
//! to be done for them.

use super::Level;
use super::level::by_level;
use super::select::{BITS, NARROW_MAGNITUDE, ROW, score_key};

/// Writes down the keys of the deltas in the window of `width` keys from `low`, as offsets there, and returns how many
/// lie above.
pub(super) fn collect_narrow(
    level: Level,
    expert: &[f32],
    base: &[f32],
    (low, width): (u32, u32),
    keys: &mut Vec<u32>,
) -> u64 {
    let mut above = 0;
    let ((xs, x_tail), (bs, b_tail)) = (expert.as_chunks::<ROW>(), base.as_chunks::<ROW>());
    collect_rows(level, xs, bs, low, width, keys, &mut above);
    for (x, b) in x_tail.iter().zip(b_tail) {
        let offset = narrow_key(*x, *b).wrapping_sub(low);
        if offset < width {
            keys.push(offset);
        } else {
            above += u64::from(narrow_key(*x, *b) >= low);
        }
    }
    above
}

#[inline(always)]
fn narrow_key(x: f32, b: f32) -> u32 {
    (x - b).to_bits() & NARROW_MAGNITUDE
}

by_level! {
    /// [`collect_narrow`] for whole rows.
    fn collect_rows(expert: &[[f32; ROW]], base: &[[f32; ROW]], low: u32, width: u32, keys: &mut Vec<u32>, above: &mut u64) = by_bits, x86::by_bits_avx2, x86::compressed;
}

/// Makes a bit of every comparison, and goes from one bit that is set to the next.
#[inline(always)]
fn by_bits(
    expert: &[[f32; ROW]],
    base: &[[f32; ROW]],
    low: u32,
    width: u32,
    keys: &mut Vec<u32>,
    above: &mut u64,
) {
    let end = low + width;
    for (x, b) in expert.iter().zip(base) {
        let mut offsets = [0; ROW];
        let mut bits = [0u32; ROW];
        let mut beyond = 0u32;
        for i in 0..ROW {
            let key = narrow_key(x[i], b[i]);
            offsets[i] = key.wrapping_sub(low);
            bits[i] = if offsets[i] < width { BITS[i] } else { 0 };
            beyond += u32::from(key >= end);
        }
        let mut inside = 0;
        for bit in bits {
            inside |= bit;
        }
        *above += u64::from(beyond);
        while inside != 0 {
            keys.push(offsets[inside.trailing_zeros() as usize]);
            inside &= inside - 1;
        }
    }
}

/// Writes down the keys of the scores from `low` to `last`, and returns how many lie above.
pub(super) fn collect_scores(level: Level, scores: &[f64], low: f64, last: f64, keys: &mut Vec<u64>) -> u64 {
    let mut above = 0;
    let (rows, tail) = scores.as_chunks::<ROW>();
    sift(level, rows, low, last, keys, &mut above);
    sift_plainly(tail, low, last, keys, &mut above);
    above
}

by_level! {
    /// [`sift_plainly`] for whole rows.
    fn sift(rows: &[[f64; ROW]], low: f64, last: f64, keys: &mut Vec<u64>, above: &mut u64) = sift_rows, sift_rows, x86::sift;
}

fn sift_rows(rows: &[[f64; ROW]], low: f64, last: f64, keys: &mut Vec<u64>, above: &mut u64) {
    sift_plainly(rows.as_flattened(), low, last, keys, above);
}

fn sift_plainly(scores: &[f64], low: f64, last: f64, keys: &mut Vec<u64>, above: &mut u64) {
    for score in scores {
        if *score > last {
            *above += 1;
        } else if *score >= low {
            keys.push(score_key(*score));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{NARROW_MAGNITUDE, ROW, by_bits, score_key};
    use crate::kernel::level::registers::{load_512, load_512_wide, store_512_bits};

    #[target_feature(enable = "avx2,popcnt,bmi1")]
    pub fn by_bits_avx2(
        expert: &[[f32; ROW]],
        base: &[[f32; ROW]],
        low: u32,
        width: u32,
        keys: &mut Vec<u32>,
        above: &mut u64,
    ) {
        by_bits(expert, base, low, width, keys, above);
    }

    /// Rows whose offsets are brought together before they are written down.
    const TOGETHER: usize = 16;

    /// Each row gives sixteen offsets, those inside first, and the next row writes over the others: nothing is decided,
    /// so nothing is decided wrongly.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1")]
    pub fn compressed(
        expert: &[[f32; ROW]],
        base: &[[f32; ROW]],
        low: u32,
        width: u32,
        keys: &mut Vec<u32>,
        above: &mut u64,
    ) {
        let of = |bits: u32| _mm512_set1_epi32(bits.cast_signed());
        let (magnitude, first, count, end) = (of(NARROW_MAGNITUDE), of(low), of(width), of(low + width));
        let mut beyond = _mm512_setzero_si512();
        let mut places = [0; (TOGETHER + 1) * ROW];
        for (xs, bs) in expert.chunks(TOGETHER).zip(base.chunks(TOGETHER)) {
            let mut written = 0;
            for (x, b) in xs.iter().zip(bs) {
                let delta = _mm512_castps_si512(_mm512_sub_ps(load_512(x), load_512(b)));
                let key = _mm512_and_si512(delta, magnitude);
                let offset = _mm512_sub_epi32(key, first);
                let inside = _mm512_cmplt_epu32_mask(offset, count);
                let above = _mm512_cmpge_epu32_mask(key, end);
                beyond = _mm512_mask_add_epi32(beyond, above, beyond, of(1));
                if let Some(place) = places[written..].first_chunk_mut() {
                    store_512_bits(_mm512_maskz_compress_epi32(inside, offset), place);
                }
                written += inside.count_ones() as usize;
            }
            keys.extend_from_slice(&places[..written]);
        }
        *above += u64::from(_mm512_reduce_add_epi32(beyond).cast_unsigned());
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1")]
    pub fn sift(rows: &[[f64; ROW]], low: f64, last: f64, keys: &mut Vec<u64>, above: &mut u64) {
        let (lows, lasts) = (_mm512_set1_pd(low), _mm512_set1_pd(last));
        for row in rows {
            let (mut reach, mut beyond) = (0, 0);
            for (half, shift) in row.as_chunks().0.iter().zip([0, 8]) {
                let scores = load_512_wide(half);
                reach |= u32::from(_mm512_cmp_pd_mask::<_CMP_GE_OQ>(scores, lows)) << shift;
                beyond |= u32::from(_mm512_cmp_pd_mask::<_CMP_GT_OQ>(scores, lasts)) << shift;
            }
            *above += u64::from(beyond.count_ones());
            let mut inside = reach & !beyond;
            while inside != 0 {
                keys.push(score_key(row[inside.trailing_zeros() as usize % ROW]));
                inside &= inside - 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_writes_down_the_same_keys_in_order() {
        let mut state = 1u64;
        let mut number = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let odd = [f32::NAN, f32::INFINITY, -0.0, f32::MIN_POSITIVE / 4.0];
            let u = (state >> 40) as f32 / 8_388_608.0 - 1.0;
            odd.get((state >> 33) as usize % 64).copied().unwrap_or(u)
        };
        for n in (0..70).chain([1000, 5000]) {
            let (x, b): (Vec<f32>, Vec<f32>) = (0..n).map(|_| (number(), number())).unzip();
            let scores: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            // Nearly everything lies inside, a few keys do, and none.
            for (low, high) in [(0.0, f32::MAX), (0.5f32, 0.7), (0.5, 0.5)] {
                let window = (low.to_bits(), high.to_bits() - low.to_bits());
                let keys: Vec<u32> = x.iter().zip(&b).map(|(x, b)| narrow_key(*x, *b)).collect();
                let inside = |key: &&u32| (low.to_bits()..high.to_bits()).contains(key);
                let want: Vec<u32> = keys.iter().filter(inside).map(|key| key - low.to_bits()).collect();
                let above = keys.iter().filter(|key| **key >= high.to_bits()).count() as u64;
                let (low, last) = (f64::from(low), f64::from(high));
                let want_scores: Vec<u64> =
                    scores.iter().filter(|s| **s >= low && **s <= last).map(|s| score_key(*s)).collect();
                for level in Level::available() {
                    let (mut got, mut got_scores) = (Vec::new(), Vec::new());
                    assert_eq!(collect_narrow(level, &x, &b, window, &mut got), above, "{level:?} {n}");
                    assert_eq!(got, want, "{level:?} {n}");
                    let beyond = collect_scores(level, &scores, low, last, &mut got_scores);
                    assert_eq!(beyond, scores.iter().filter(|s| **s > last).count() as u64);
                    assert_eq!(got_scores, want_scores, "{level:?} {n}");
                }
            }
        }
    }
}
