//! PCB's scores where few of them matter: a rough score tells at a fraction of the cost that an element is clearly
//! below the bound, and exact ones are computed for the others, brought together.

use super::element::{Rival, add_scaled, compete};
use super::elementary::rough_exp;
use super::level::{Level, by_level};
use super::select::{BITS, ROW};

/// Rough scores are wrong by less than this share: the tangent's argument itself instead of the tangent is, up to
/// [`REACH`], by `x²/3`, and the exponential's series by less than a hundredth of that.
const DOUBT: f32 = 1e-3;
/// Arguments of the tangent up to which rough scores count.
const REACH: f32 = 0.03;
/// Bounds below this could be a matter of underflow.
const LEAST_BOUND: f64 = 1e-30;
/// Where sizes are clipped to a narrower range, as a share of its upper end, f32 tells too little of where they lie in it.
const LEAST_WIDTH: f64 = 1.0 / 16.0;
/// And there must be no overflow.
const MOST_SIZE: f64 = 1e30;
/// The rough exponential is not for arguments below minus this.
const MOST_EXPERTS: f64 = 64.0;
/// Numbers of f64 in the widest register.
const REGISTER: usize = 8;

/// The elements of a chunk whose scores matter, brought together.
#[derive(Debug, Default)]
pub struct Picked {
    /// Which elements of each row these are.
    masks: Vec<u16>,
    /// Their deltas, and the sums of all experts' there. Behind these and the next there is room for a whole register.
    values: Vec<f64>,
    totals: Vec<f64>,
    scores: Vec<f64>,
    shares: Vec<f64>,
    len: usize,
}

/// What of a chunk's scores matters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Those from here on …
    pub low: f64,
    /// … but those from here on are only counted, …
    pub high: f64,
    /// … unless they may be larger than this.
    pub peak: f64,
}

impl Bounds {
    /// Whether rough scores can tell what is below: otherwise every element is to be scored.
    #[must_use]
    pub fn are_useful(&self, rival: &Rival) -> bool {
        let width = rival.high - rival.low;
        let tells = width == 0.0 || (width >= rival.high * LEAST_WIDTH && rival.high < MOST_SIZE);
        self.low > LEAST_BOUND && rival.count <= MOST_EXPERTS && tells
    }
}

impl Picked {
    /// Picks the elements whose scores are, or may be, within the bounds, and returns how many others are above them.
    pub fn pick(&mut self, level: Level, values: &[f64], total: &[f64], rival: Rival, bounds: Bounds) -> u64 {
        let rows = values.len().div_ceil(ROW);
        if self.masks.len() < rows {
            self.masks.resize(rows, 0);
            for buffer in [&mut self.values, &mut self.totals, &mut self.scores, &mut self.shares] {
                buffer.resize(rows * ROW + REGISTER, 0.0);
            }
        }
        self.len = 0;
        let mut above = 0;
        pick(level, values, total, Rough::new(rival, bounds), self, &mut above);
        above
    }

    /// Adds the last elements, fewer than a row: all of them.
    fn add_tail(&mut self, row: usize, values: &[f64], total: &[f64]) {
        if !values.is_empty() {
            self.masks[row] = (1 << values.len()) - 1;
            self.values[self.len..][..values.len()].copy_from_slice(values);
            self.totals[self.len..][..values.len()].copy_from_slice(total);
            self.len += values.len();
        }
    }

    /// The scores of what was picked.
    pub fn scores(&mut self, level: Level, rival: Rival) -> &[f64] {
        let len = self.len;
        compete(level, &self.values[..len], &self.totals[..len], rival, &mut self.scores[..len]);
        &self.scores[..len]
    }

    /// [`add_scaled`] for what was picked: all others have no scale.
    pub fn add_scaled(&mut self, level: Level, rival: Rival, mix: &mut [f64], share: &mut [f64]) {
        let len = self.len;
        let (scaled, shares) = (&mut self.scores[..len], &mut self.shares[..len]);
        scaled.fill(0.0);
        shares.fill(0.0);
        add_scaled(level, &self.values[..len], &self.totals[..len], rival, scaled, shares);
        put_back(level, &self.masks, &self.scores, &self.shares, mix, share);
    }
}

/// What rough scores need, in f32: these are twice as many at a time.
#[derive(Debug, Clone, Copy)]
struct Rough {
    low: f32,
    high: f32,
    count: f32,
    by: f32,
    plus: f32,
    least: f32,
    enough: f32,
    peak: f32,
}

impl Rough {
    fn new(rival: Rival, bounds: Bounds) -> Self {
        let width = (rival.high - rival.low) as f32;
        let (by, plus) = if width > 0.0 { (1.0 / width, 0.0) } else { (0.0, 1.0) };
        let [low, high, count] = [rival.low, rival.high, rival.count].map(|v| v as f32);
        let [least, enough, peak] = [bounds.low, bounds.high, bounds.peak].map(|v| v as f32);
        Self { low, high, count, by, plus, least, enough, peak }
    }
}

by_level! {
    /// Picks the elements whose scores are, or may be, within the bounds, and counts the others that are above. Levels may
    /// doubt other elements; exact scores decide about all of them.
    fn pick(values: &[f64], total: &[f64], rough: Rough, picked: &mut Picked, above: &mut u64) =
        pick_rows, x86::pick_256, x86::pick_512;
}

by_level! {
    /// Adds what was computed of the picked elements where they came from.
    fn put_back(
        masks: &[u16], scaled: &[f64], shares: &[f64], mix: &mut [f64], share: &mut [f64],
    ) = put_back_rows, put_back_rows, x86::put_back_512;
}

#[inline(always)]
fn pick_rows(values: &[f64], total: &[f64], rough: Rough, picked: &mut Picked, above: &mut u64) {
    let Rough { low, high, count, by, plus, least, enough, peak } = rough;
    let ((vs, v_tail), (ts, t_tail)) = (values.as_chunks::<ROW>(), total.as_chunks::<ROW>());
    for (row, (v, t)) in vs.iter().zip(ts).enumerate() {
        let (mut marks, mut sure) = ([0u32; ROW], 0u32);
        for i in 0..ROW {
            let (v, t) = (v[i] as f32, t[i] as f32);
            let size = v.abs();
            let size = if size > high { high } else { size };
            let size = if size < low { low } else { size };
            let m = (size - low) * by + plus;
            let product = v * t;
            let score = rough_exp(count * (m * m - 1.0)) * product;
            let (most, at_least) = (score * (1.0 + DOUBT), score * (1.0 - DOUBT));
            let known = product <= REACH;
            let below = known & (most < least);
            let over = known & (at_least >= enough) & (most <= peak);
            marks[i] = if below | over { 0 } else { BITS[i] };
            sure += u32::from(over);
        }
        let inside = marks.iter().fold(0, |all, mark| all | mark);
        picked.masks[row] = inside as u16;
        *above += u64::from(sure);
        let mut left = inside;
        while left != 0 {
            let i = left.trailing_zeros() as usize;
            (picked.values[picked.len], picked.totals[picked.len]) = (v[i], t[i]);
            picked.len += 1;
            left &= left - 1;
        }
    }
    picked.add_tail(vs.len(), v_tail, t_tail);
}

fn put_back_rows(masks: &[u16], scaled: &[f64], shares: &[f64], mix: &mut [f64], share: &mut [f64]) {
    let mut from = scaled.iter().zip(shares);
    for ((mask, mix), share) in masks.iter().zip(mix.chunks_mut(ROW)).zip(share.chunks_mut(ROW)) {
        let mut left = *mask;
        while left != 0 {
            let i = left.trailing_zeros() as usize;
            let Some((scaled, own)) = from.next() else { return };
            mix[i] += scaled;
            share[i] += own;
            left &= left - 1;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::elementary::rough_exp_512;
    use super::super::level::registers::{load_512_wide, store_512_wide};
    use super::{DOUBT, Picked, REACH, REGISTER, ROW, Rough, pick_rows};

    #[target_feature(enable = "avx2,popcnt,bmi1,fma")]
    pub fn pick_256(values: &[f64], total: &[f64], rough: Rough, picked: &mut Picked, above: &mut u64) {
        pick_rows(values, total, rough, picked, above);
    }

    /// As [`pick_rows`], with an instruction that brings marked elements together.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
    pub fn pick_512(values: &[f64], total: &[f64], rough: Rough, picked: &mut Picked, above: &mut u64) {
        let [low, high, count, by, plus] =
            [rough.low, rough.high, rough.count, rough.by, rough.plus].map(|v| _mm512_set1_ps(v));
        let [least, enough, peak] = [rough.least, rough.enough, rough.peak].map(|v| _mm512_set1_ps(v));
        let (one, reach) = (_mm512_set1_ps(1.0), _mm512_set1_ps(REACH));
        let (more, less) = (_mm512_set1_ps(1.0 + DOUBT), _mm512_set1_ps(1.0 - DOUBT));
        let ((vs, v_tail), (ts, t_tail)) = (values.as_chunks::<REGISTER>(), total.as_chunks::<REGISTER>());
        let ((vs, v_odd), (ts, t_odd)) = (vs.as_chunks::<2>(), ts.as_chunks::<2>());
        let (mut len, mut over_all) = (0, 0);
        for ((v, t), mask) in vs.iter().zip(ts).zip(&mut picked.masks) {
            let v = [load_512_wide(&v[0]), load_512_wide(&v[1])];
            let t = [load_512_wide(&t[0]), load_512_wide(&t[1])];
            let (value, all) = (narrow(v), narrow(t));
            // The second operand where either is NaN.
            let size = _mm512_max_ps(low, _mm512_min_ps(high, _mm512_abs_ps(value)));
            let m = _mm512_fmadd_ps(_mm512_sub_ps(size, low), by, plus);
            let product = _mm512_mul_ps(value, all);
            let power = rough_exp_512(_mm512_mul_ps(count, _mm512_fmsub_ps(m, m, one)));
            let score = _mm512_mul_ps(power, product);
            let (most, at_least) = (_mm512_mul_ps(score, more), _mm512_mul_ps(score, less));
            let known = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(product, reach);
            let below = known & _mm512_cmp_ps_mask::<_CMP_LT_OQ>(most, least);
            let over = known
                & _mm512_cmp_ps_mask::<_CMP_GE_OQ>(at_least, enough)
                & _mm512_cmp_ps_mask::<_CMP_LE_OQ>(most, peak);
            let inside = !(below | over);
            *mask = inside;
            over_all += over.count_ones();
            if inside == 0 {
                continue;
            }
            for (half, mask) in [inside as u8, (inside >> REGISTER) as u8].into_iter().enumerate() {
                store(_mm512_maskz_compress_pd(mask, v[half]), &mut picked.values, len);
                store(_mm512_maskz_compress_pd(mask, t[half]), &mut picked.totals, len);
                len += mask.count_ones() as usize;
            }
        }
        picked.len = len;
        *above += u64::from(over_all);
        let mut rest = [[0.0; ROW]; 2];
        let odd = v_odd.len() * REGISTER;
        for (rest, (odd, tail)) in rest.iter_mut().zip([(v_odd, v_tail), (t_odd, t_tail)]) {
            let numbers = odd.iter().flatten().chain(tail);
            rest.iter_mut().zip(numbers).for_each(|(rest, number)| *rest = *number);
        }
        let len = odd + v_tail.len();
        picked.add_tail(vs.len(), &rest[0][..len], &rest[1][..len]);
    }

    #[target_feature(enable = "avx512f,avx512dq")]
    #[inline]
    fn narrow([low, high]: [__m512d; 2]) -> __m512 {
        let low = _mm512_castps256_ps512(_mm512_cvtpd_ps(low));
        _mm512_insertf32x8::<1>(low, _mm512_cvtpd_ps(high))
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn store(register: __m512d, numbers: &mut [f64], at: usize) {
        if let Some(room) = numbers.get_mut(at..).and_then(<[f64]>::first_chunk_mut::<REGISTER>) {
            store_512_wide(register, room);
        }
    }

    /// As [`put_back_rows`]; zeros are added to all other elements, none of which is −0.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt")]
    pub fn put_back_512(masks: &[u16], scaled: &[f64], shares: &[f64], mix: &mut [f64], share: &mut [f64]) {
        let mut from = 0;
        let ((mixes, mix_tail), (all, share_tail)) =
            (mix.as_chunks_mut::<REGISTER>(), share.as_chunks_mut::<REGISTER>());
        let ((mixes, mix_odd), (all, share_odd)) = (mixes.as_chunks_mut::<2>(), all.as_chunks_mut::<2>());
        for ((mask, mix), share) in masks.iter().zip(mixes).zip(all) {
            if *mask == 0 {
                continue;
            }
            for half in 0..2 {
                let mask = (*mask >> (half * REGISTER)) as u8;
                add(mask, scaled, from, &mut mix[half]);
                add(mask, shares, from, &mut share[half]);
                from += mask.count_ones() as usize;
            }
        }
        for (tail, odd, of) in [(mix_tail, mix_odd, scaled), (share_tail, share_odd, shares)] {
            // Of the last elements all were picked.
            let numbers = odd.iter_mut().flatten().chain(tail);
            numbers.zip(&of[from..]).for_each(|(sum, number)| *sum += *number);
        }
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn add(mask: u8, numbers: &[f64], at: usize, to: &mut [f64; REGISTER]) {
        if let Some(from) = numbers.get(at..).and_then(<[f64]>::first_chunk::<REGISTER>) {
            let spread = _mm512_maskz_expand_pd(mask, load_512_wide(from));
            store_512_wide(_mm512_add_pd(load_512_wide(to), spread), to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u64, size: f64) -> Vec<f64> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let u = (state >> 40) as i32 % 2000 - 1000;
                if u % 5 == 0 { 0.0 } else { f64::from(u) * size }
            })
            .collect()
    }

    #[test]
    fn what_is_picked_and_counted_is_all_that_matters() {
        for level in Level::available() {
            for (n, size) in [(0, 1e-4), (5, 1e-4), (1000, 1e-4), (1024, 1e-3), (1024, 0.1), (999, 1e-6)] {
                let values = numbers(n, 1, size);
                let mut total = numbers(n, 2, size);
                if n > 20 {
                    (total[3], total[7], total[15]) = (f64::NAN, f64::INFINITY, 1e300);
                }
                for (low, high) in [(0.0, 1000.0 * size), (10.0 * size, 900.0 * size), (size, size)] {
                    let rival = Rival { low, high, count: 2.0, cut: 0.0, peak: 0.0 };
                    let mut scores = vec![0.0; n];
                    compete(level, &values, &total, rival, &mut scores);
                    let mut sorted: Vec<f64> = scores.iter().copied().filter(|s| *s > 0.0).collect();
                    sorted.sort_unstable_by(f64::total_cmp);
                    let at = |share: f64| sorted.get((share * sorted.len() as f64) as usize).copied();
                    let low = at(0.7).unwrap_or(1e-9);
                    let high = at(0.8).unwrap_or(1e-8);
                    let peak = at(0.95).unwrap_or(1e-7);
                    let bounds = Bounds { low, high, peak };
                    assert!(bounds.are_useful(&rival));
                    let mut picked = Picked::default();
                    let above = picked.pick(level, &values, &total, rival, bounds);
                    let got = picked.scores(level, rival).to_vec();
                    let inside = |s: &&f64| **s >= low && **s < high;
                    assert_eq!(got.iter().filter(inside).count(), scores.iter().filter(inside).count());
                    let all_above = scores.iter().filter(|s| **s >= high).count() as u64;
                    let got_above = got.iter().filter(|s| **s >= high).count() as u64;
                    assert_eq!(above + got_above, all_above, "{n} elements of {size}");
                    let greatest = |s: &[f64]| s.iter().copied().fold(peak, f64::max);
                    assert_eq!(greatest(&got), greatest(&scores));

                    let rival = Rival { cut: low, peak: at(0.999).unwrap_or(1.0), ..rival };
                    let bounds = Bounds { low, high: f64::NAN, peak: f64::NEG_INFINITY };
                    assert_eq!(picked.pick(level, &values, &total, rival, bounds), 0);
                    let (mut mix, mut share) = (vec![0.5; n], vec![0.25; n]);
                    let (mut want, mut want_share) = (mix.clone(), share.clone());
                    picked.add_scaled(level, rival, &mut mix, &mut share);
                    add_scaled(level, &values, &total, rival, &mut want, &mut want_share);
                    assert_eq!((mix, share), (want, want_share), "{n} elements of {size}");
                }
            }
        }
    }
}
