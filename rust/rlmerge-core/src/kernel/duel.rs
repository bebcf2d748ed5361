//! PCB between two experts, the usual merge: few elements have a score above the cut, and for all others two additions
//! tell that they have none. What is left is brought together and merged exactly.
//!
//! The logarithm of a score is a parabola of the magnitude plus the logarithm of the product with the sum over experts,
//! and the bits of an f32 number, read as a whole number, are a logarithm that is wrong by little.

use super::element::Rival;
use super::elementary::ln;
use super::lanes::{LANES, Lanes};
use super::level::{Level, by_level, kernel};
use super::select::{BITS, ROW};

/// Steps of an f32's bits in an octave, and the bits of one.
const OCTAVE: f64 = (1u32 << (f32::MANTISSA_DIGITS - 1)) as f64;
const ONE: f64 = f32::MAX_EXP as f64 - 1.0;
/// Octaves by which a number lies above what its bits say, at most: `log₂(1 + f) − f`.
pub(super) const BENT: f64 = 0.0862;
/// Octaves that stand for all roundings in f32, and for the difference between the tangent of a small argument and that.
pub(super) const ROUNDINGS: f64 = 1e-3;
/// Bounds below this could be a matter of underflow, …
const LEAST_SCORE: f64 = 1e-30;
/// … and sizes outside of this.
const SIZES: std::ops::Range<f64> = 1e-12..1e12;
/// Where sizes are clipped to a narrower range, as a share of its upper end, f32 tells too little of where they lie in it.
const LEAST_WIDTH: f64 = 1.0 / 16.0;

/// Octaves as steps of an f32's bits.
pub(super) fn steps(octaves: f64) -> f32 {
    ((octaves + ONE) * OCTAVE) as f32
}

/// Octaves over the square of a magnitude, in such steps.
pub(super) fn slope_steps(slope: f64) -> f32 {
    (slope * OCTAVE) as f32
}

impl Rival {
    /// The parabola's rise in octaves, from the least magnitude to the largest.
    #[must_use]
    pub fn rise(&self) -> f64 {
        self.count * std::f64::consts::LOG2_E
    }

    /// The parabola's rise over the square of a magnitude.
    #[must_use]
    pub fn slope(&self) -> f64 {
        let width = self.high - self.low;
        self.rise() / (width * width)
    }

    /// How high a positive score lies above the foot of the parabola, in octaves.
    #[must_use]
    pub fn height(&self, score: f64) -> f64 {
        ln(score) / std::f64::consts::LN_2 + self.rise()
    }

    /// Whether bits tell which scores are below one.
    #[must_use]
    pub fn is_told_by_bits(&self, score: f64) -> bool {
        let width = self.high - self.low;
        score > LEAST_SCORE && SIZES.contains(&self.high) && width >= self.high * LEAST_WIDTH
    }
}

/// The elements of a chunk that may have a scale.
#[derive(Debug, Default)]
pub struct Duel {
    /// Which elements of each row these are.
    masks: Vec<u16>,
    /// The deltas of both experts there. Behind these and the next there is room for a whole register.
    deltas: [Vec<f32>; 2],
    means: Vec<f64>,
    len: usize,
}

impl Duel {
    /// Picks the elements of the deltas `x − from_x` and `y − from_y` that may have a score above the cut of their expert, or
    /// are not finite. The squares of all deltas join the lanes.
    pub fn pick(
        &mut self,
        level: Level,
        [x, from_x, y, from_y]: [&[f32]; 4],
        rivals: &[Rival; 2],
        squares: [&mut Lanes; 2],
    ) {
        let rows = x.len().div_ceil(ROW);
        if self.masks.len() < rows {
            self.masks.resize(rows, 0);
            self.deltas.iter_mut().for_each(|deltas| deltas.resize((rows + 1) * ROW, 0.0));
            self.means.resize((rows + 1) * ROW, 0.0);
        }
        pick(level, x, from_x, y, from_y, &rivals.map(|rival| Least::new(&rival)), self, squares);
    }

    /// `out` is the mean of the clipped deltas by their scales, whose sum counts as `least` at least; zero for what was not
    /// picked, and the sum over experts where that is not finite.
    pub fn merge(&mut self, level: Level, rivals: &[Rival; 2], least: f64, out: &mut [f64]) {
        let [first, second] = &self.deltas;
        merge(level, &first[..self.len], &second[..self.len], rivals, least, &mut self.means[..self.len]);
        put_back(level, &self.masks, &self.means, out);
    }

    /// Picks one more element.
    fn push(&mut self, first: f32, second: f32) {
        (self.deltas[0][self.len], self.deltas[1][self.len]) = (first, second);
        self.len += 1;
    }
}

/// From where on a score may be above the cut, in steps of bits.
#[derive(Debug, Clone, Copy)]
struct Least {
    low: f32,
    high: f32,
    slope: f32,
    height: f32,
}

impl Least {
    fn new(rival: &Rival) -> Self {
        let height = steps(rival.height(rival.cut) - BENT - ROUNDINGS);
        Self { low: rival.low as f32, high: rival.high as f32, slope: slope_steps(rival.slope()), height }
    }

    /// Whether an element reaches it. Below the least magnitude the parabola rises again, by too little to matter.
    #[inline(always)]
    fn is_reached(&self, delta: f32, sum: f32) -> bool {
        let size = delta.abs();
        let size = if size > self.high { self.high } else { size };
        let above = size - self.low;
        let bits = (delta * sum).to_bits() as i32 as f32;
        above * above * self.slope + bits >= self.height
    }
}

by_level! {
    /// See [`Duel::pick`]. Levels may pick other elements; exact scores decide about all of them.
    #[allow(clippy::too_many_arguments, reason = "kernels take plain slices and numbers")]
    fn pick(
        x: &[f32], from_x: &[f32], y: &[f32], from_y: &[f32], least: &[Least; 2], duel: &mut Duel,
        squares: [&mut Lanes; 2],
    ) = pick_rows, x86::pick_256, x86::pick_512;
}

by_level! {
    /// The numbers where they came from, zeros elsewhere.
    fn put_back(masks: &[u16], numbers: &[f64], out: &mut [f64]) = put_back_rows, put_back_rows, x86::put_back_512;
}

/// Adds the squares of what is less than a row, and picks all of it.
fn pick_tail(tails: [&[f32]; 4], duel: &mut Duel, [first, second]: [&mut Lanes; 2]) {
    let [x, from_x, y, from_y] = tails;
    for i in 0..x.len() {
        let (a, b) = (x[i] - from_x[i], y[i] - from_y[i]);
        first[i] += f64::from(a) * f64::from(a);
        second[i] += f64::from(b) * f64::from(b);
        duel.push(a, b);
    }
}

#[inline(always)]
fn pick_rows(
    x: &[f32],
    from_x: &[f32],
    y: &[f32],
    from_y: &[f32],
    least: &[Least; 2],
    duel: &mut Duel,
    [first, second]: [&mut Lanes; 2],
) {
    let ((xs, x_tail), (us, u_tail)) = (x.as_chunks::<ROW>(), from_x.as_chunks::<ROW>());
    let ((ys, y_tail), (vs, v_tail)) = (y.as_chunks::<ROW>(), from_y.as_chunks::<ROW>());
    let (mut first_sums, mut second_sums) = (*first, *second);
    duel.len = 0;
    for (row, ((x, u), (y, v))) in xs.iter().zip(us).zip(ys.iter().zip(vs)).enumerate() {
        let (mut a, mut b, mut marks) = ([0.0; ROW], [0.0; ROW], [0; ROW]);
        for i in 0..ROW {
            (a[i], b[i]) = (x[i] - u[i], y[i] - v[i]);
            let sum = a[i] + b[i];
            let reached = least[0].is_reached(a[i], sum) | least[1].is_reached(b[i], sum);
            marks[i] = if reached | !sum.is_finite() { BITS[i] } else { 0 };
        }
        for i in 0..LANES {
            first_sums[i] += f64::from(a[i]) * f64::from(a[i]);
            second_sums[i] += f64::from(b[i]) * f64::from(b[i]);
        }
        let picked = marks.iter().fold(0, |all, mark| all | mark);
        duel.masks[row] = picked as u16;
        let mut left = picked;
        while left != 0 {
            let i = left.trailing_zeros() as usize;
            duel.push(a[i], b[i]);
            left &= left - 1;
        }
    }
    (*first, *second) = (first_sums, second_sums);
    pick_tail([x_tail, u_tail, y_tail, v_tail], duel, [first, second]);
}

/// An expert's part in the mean, and its scale.
#[inline(always)]
fn part(rival: &Rival, delta: f64, total: f64) -> (f64, f64) {
    let scale = rival.scale(rival.score(delta, total));
    let clipped = rival.clipped(delta.abs()).copysign(delta);
    (if delta == 0.0 { 0.0 } else { clipped * scale }, scale)
}

kernel! {
    /// See [`Duel::merge`]: with the bits of [`add_scaled`](super::element::add_scaled) for one expert after the other and
    /// [`divide_by_share`](super::element::divide_by_share).
    fn merge(first: &[f32], second: &[f32], rivals: &[Rival; 2], least: f64, out: &mut [f64]) {
        for ((o, a), b) in out.iter_mut().zip(first).zip(second) {
            let (a, b) = (f64::from(*a), f64::from(*b));
            let total = a + b;
            let finite = total.is_finite();
            let (first, first_scale) = part(&rivals[0], if finite { a } else { 0.0 }, total);
            let (second, second_scale) = part(&rivals[1], if finite { b } else { 0.0 }, total);
            let (mix, share) = (0.0 + first + second, first_scale + second_scale);
            let by = if share > least { share } else { least };
            *o = if finite { mix / by } else { total };
        }
    }
}

fn put_back_rows(masks: &[u16], numbers: &[f64], out: &mut [f64]) {
    let (rows, tail) = out.as_chunks_mut::<ROW>();
    let mut from = 0;
    for (mask, row) in masks.iter().zip(rows) {
        row.fill(0.0);
        let mut left = *mask;
        while left != 0 {
            row[left.trailing_zeros() as usize] = numbers[from];
            from += 1;
            left &= left - 1;
        }
    }
    // Of the last elements all were picked.
    tail.copy_from_slice(&numbers[from..][..tail.len()]);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::lanes::Lanes;
    use super::super::level::registers::{load_512, load_512_wide, put_512, store_512_wide};
    use super::{Duel, Least, ROW, pick_rows, pick_tail};

    /// Numbers of f64 in the widest register.
    const HALF: usize = ROW / 2;

    #[target_feature(enable = "avx2,popcnt,bmi1,fma")]
    pub fn pick_256(
        x: &[f32],
        from_x: &[f32],
        y: &[f32],
        from_y: &[f32],
        least: &[Least; 2],
        duel: &mut Duel,
        squares: [&mut Lanes; 2],
    ) {
        pick_rows(x, from_x, y, from_y, least, duel, squares);
    }

    /// As [`pick_rows`], with an instruction that brings marked elements together.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
    pub fn pick_512(
        x: &[f32],
        from_x: &[f32],
        y: &[f32],
        from_y: &[f32],
        least: &[Least; 2],
        duel: &mut Duel,
        [first, second]: [&mut Lanes; 2],
    ) {
        let ((xs, x_tail), (us, u_tail)) = (x.as_chunks::<ROW>(), from_x.as_chunks::<ROW>());
        let ((ys, y_tail), (vs, v_tail)) = (y.as_chunks::<ROW>(), from_y.as_chunks::<ROW>());
        let [mut first_low, mut first_high] = load_sums(first);
        let [mut second_low, mut second_high] = load_sums(second);
        let most = _mm512_set1_ps(f32::MAX);
        let mut len = 0;
        for (((x, u), (y, v)), mask) in xs.iter().zip(us).zip(ys.iter().zip(vs)).zip(&mut duel.masks) {
            let a = _mm512_sub_ps(load_512(x), load_512(u));
            let b = _mm512_sub_ps(load_512(y), load_512(v));
            let sum = _mm512_add_ps(a, b);
            first_low = add_squares(_mm512_castps512_ps256(a), first_low);
            first_high = add_squares(_mm512_extractf32x8_ps::<1>(a), first_high);
            second_low = add_squares(_mm512_castps512_ps256(b), second_low);
            second_high = add_squares(_mm512_extractf32x8_ps::<1>(b), second_high);
            let finite = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(_mm512_abs_ps(sum), most);
            let picked = reached(&least[0], a, sum) | reached(&least[1], b, sum) | !finite;
            *mask = picked;
            put_512(_mm512_maskz_compress_ps(picked, a), &mut duel.deltas[0], len);
            put_512(_mm512_maskz_compress_ps(picked, b), &mut duel.deltas[1], len);
            len += picked.count_ones() as usize;
        }
        duel.len = len;
        store_sums([first_low, first_high], first);
        store_sums([second_low, second_high], second);
        pick_tail([x_tail, u_tail, y_tail, v_tail], duel, [first, second]);
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn load_sums(lanes: &Lanes) -> [__m512d; 2] {
        let halves = lanes.as_chunks().0;
        [load_512_wide(&halves[0]), load_512_wide(&halves[1])]
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn store_sums([low, high]: [__m512d; 2], lanes: &mut Lanes) {
        let [first, second] = lanes.as_chunks_mut().0 else { return };
        store_512_wide(low, first);
        store_512_wide(high, second);
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn add_squares(deltas: __m256, sums: __m512d) -> __m512d {
        let wide = _mm512_cvtps_pd(deltas);
        _mm512_add_pd(sums, _mm512_mul_pd(wide, wide))
    }

    /// See [`Least::is_reached`].
    #[target_feature(enable = "avx512f,avx512dq")]
    #[inline]
    fn reached(least: &Least, delta: __m512, sum: __m512) -> u16 {
        let size = _mm512_min_ps(_mm512_abs_ps(delta), _mm512_set1_ps(least.high));
        let above = _mm512_sub_ps(size, _mm512_set1_ps(least.low));
        let bits = _mm512_cvtepi32_ps(_mm512_castps_si512(_mm512_mul_ps(delta, sum)));
        let height = _mm512_fmadd_ps(_mm512_mul_ps(above, above), _mm512_set1_ps(least.slope), bits);
        _mm512_cmp_ps_mask::<_CMP_GE_OQ>(height, _mm512_set1_ps(least.height))
    }

    /// As [`put_back_rows`](super::put_back_rows).
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt")]
    pub fn put_back_512(masks: &[u16], numbers: &[f64], out: &mut [f64]) {
        let (rows, tail) = out.as_chunks_mut::<ROW>();
        let mut from = 0;
        for (mask, row) in masks.iter().zip(rows) {
            for (half, mask) in
                row.as_chunks_mut::<HALF>().0.iter_mut().zip([*mask as u8, (*mask >> HALF) as u8])
            {
                if let Some(numbers) = numbers.get(from..).and_then(<[f64]>::first_chunk::<HALF>) {
                    store_512_wide(_mm512_maskz_expand_pd(mask, load_512_wide(numbers)), half);
                }
                from += mask.count_ones() as usize;
            }
        }
        tail.copy_from_slice(&numbers[from..][..tail.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::element::{add_scaled, clean, compete, divide_by_share, show_non_finite};
    use super::*;

    fn numbers(n: usize, seed: u64, size: f32) -> Vec<f32> {
        let mut state = seed;
        let mut values: Vec<f32> = (0..n)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let u = (state >> 40) as i32 % 2000 - 1000;
                if u % 5 == 0 { 0.0 } else { u as f32 * size }
            })
            .collect();
        for (at, odd) in [(3, f32::NAN), (40, f32::INFINITY), (58, f32::NEG_INFINITY), (90, f32::MAX)] {
            if at + seed as usize * 7 < n {
                values[at + seed as usize * 7] = odd;
            }
        }
        values
    }

    #[test]
    fn two_experts_at_once_are_two_experts_one_by_one() {
        for level in Level::available() {
            for (n, size) in [(0, 1e-4), (5, 1e-4), (1000, 1e-4), (1024, 1e-3), (1024, 0.1), (999, 1e-6)] {
                let (x, y) = (numbers(n, 1, size), numbers(n, 2, size));
                let (u, v) = (vec![size; n], vec![0.5 * size; n]);
                let delta = |x: &[f32], u: &[f32]| -> Vec<f64> {
                    x.iter().zip(u).map(|(x, u)| f64::from(x - u)).collect()
                };
                let (mut a, mut b) = (delta(&x, &u), delta(&y, &v));
                let mut want_lanes = [[0.5; LANES]; 2];
                for (lanes, deltas) in want_lanes.iter_mut().zip([&a, &b]) {
                    deltas.iter().enumerate().for_each(|(i, d)| lanes[i % LANES] += d * d);
                }
                let total: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
                clean(level, &mut a, &total);
                clean(level, &mut b, &total);
                for (low, high) in [(0.0, 1000.0), (10.0, 900.0), (100.0, 120.0)] {
                    let mut rivals = [&a, &b].map(|deltas| {
                        let (low, high) = (low * f64::from(size), high * f64::from(size));
                        let rival = Rival { low, high, count: 2.0, cut: 1e-9, peak: 1.0 };
                        let mut scores = vec![0.0; n];
                        compete(level, deltas, &total, rival, &mut scores);
                        scores.sort_unstable_by(f64::total_cmp);
                        let cut = scores.get(n * 9 / 10).copied().unwrap_or(1e-9);
                        Rival { cut, peak: scores.last().copied().unwrap_or(1.0), ..rival }
                    });
                    rivals[1].high *= 1.5;
                    assert!(rivals.iter().all(|rival| rival.is_told_by_bits(rival.cut)));
                    let (mut want, mut share) = (vec![0.0; n], vec![0.0; n]);
                    for (deltas, rival) in [&a, &b].into_iter().zip(rivals) {
                        add_scaled(level, deltas, &total, rival, &mut want, &mut share);
                    }
                    divide_by_share(level, &mut want, &share, 1e-12);
                    show_non_finite(level, &total, &mut want);

                    let (mut duel, mut got, mut lanes) = (Duel::default(), vec![7.0; n], [[0.5; LANES]; 2]);
                    let [first, second] = &mut lanes;
                    duel.pick(level, [&x, &u, &y, &v], &rivals, [first, second]);
                    duel.merge(level, &rivals, 1e-12, &mut got);
                    // Which of two NaNs an addition hands on is the processor's choice.
                    let bits = |v: &[f64]| -> Vec<u64> {
                        v.iter().map(|v| if v.is_nan() { u64::MAX } else { v.to_bits() }).collect()
                    };
                    assert_eq!(bits(&got), bits(&want), "{n} elements of {size}");
                    assert_eq!(lanes.map(|l| bits(&l)), want_lanes.map(|l| bits(&l)));
                    // Large products all have a tangent of one.
                    assert!(n < 999 || size > 1e-2 || duel.len < n / 2, "{} of {n} were picked", duel.len);
                }
            }
        }
    }
}
