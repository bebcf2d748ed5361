//! The steps of the methods that decide element by element: MagMax, NearSwap, SCE, Arcee Fusion and PCB.

use super::combine::MAGNITUDE;
use super::elementary::{exp, ln, tanh};
use super::lanes::{LANES, Lanes, only};
use super::level::kernel;

kernel! {
    /// Sets to zero the values at which the sum over experts is not finite: statistics leave such elements out.
    pub fn clean(values: &mut [f64], total: &[f64]) {
        for (v, t) in values.iter_mut().zip(total) {
            *v = if t.is_finite() { *v } else { 0.0 };
        }
    }
}

kernel! {
    /// `out` takes over the totals that are not finite, so that they show.
    pub fn show_non_finite(total: &[f64], out: &mut [f64]) {
        for (o, t) in out.iter_mut().zip(total) {
            *o = if t.is_finite() { *o } else { *t };
        }
    }
}

kernel! {
    /// Sets to −∞ the values at which the total is not finite: they have no exponential.
    pub fn hide_non_finite(total: &[f64], values: &mut [f64]) {
        for (v, t) in values.iter_mut().zip(total) {
            *v = if t.is_finite() { *v } else { f64::NEG_INFINITY };
        }
    }
}

kernel! {
    /// Takes over each value whose magnitude is at least that of the best so far (MagMax). Magnitudes are compared as
    /// bits, so NaN counts as largest.
    pub fn take_larger(values: &[f64], best: &mut [f64]) {
        for (b, v) in best.iter_mut().zip(values) {
            *b = if v.to_bits() & MAGNITUDE >= b.to_bits() & MAGNITUDE { *v } else { *b };
        }
    }
}

/// One element of NearSwap: the expert where it lies within `t` of the base, otherwise a step of `t` towards it.
/// Nearer than `blunt`, where that is more than `t`, mergekit goes the share `t / blunt` of the way.
#[inline(always)]
fn near(expert: f64, base: f64, delta: f64, t: f64, blunt: f64) -> f64 {
    let size = delta.abs();
    let step = if size < blunt && t < blunt { delta * (t / blunt) } else { t.copysign(delta) };
    let there = if size <= t && t >= blunt { expert } else { base + step };
    let finite = if size <= f64::MAX { there } else { base + delta };
    if delta == 0.0 { base } else { finite }
}

macro_rules! per_width {
    ($near_swap:ident, $choose:ident, $sizes:ident, $ty:ty) => {
        kernel! {
            /// `out = |expert − base| · factor`, zero where that difference is not finite.
            pub fn $sizes(expert: &[$ty], base: &[$ty], factor: f64, out: &mut [f64]) {
                for ((o, x), b) in out.iter_mut().zip(expert).zip(base) {
                    let delta = x - b;
                    let size = if delta.is_finite() { f64::from(delta.abs()) } else { 0.0 };
                    *o = size * factor;
                }
            }
        }
        kernel! {
            /// NearSwap: `base + clip(expert − base, ±t)`; the squares of the deltas join the lanes.
            pub fn $near_swap(expert: &[$ty], base: &[$ty], t: f64, blunt: f64, out: &mut [f64], lanes: &mut Lanes) {
                let mut sums = *lanes;
                let ((xs, x_tail), (bs, b_tail)) = (expert.as_chunks::<LANES>(), base.as_chunks::<LANES>());
                let (os, o_tail) = out.as_chunks_mut::<LANES>();
                for ((x, b), o) in xs.iter().zip(bs).zip(os) {
                    for i in 0..LANES {
                        let delta = f64::from(x[i] - b[i]);
                        sums[i] += delta * delta;
                        o[i] = near(f64::from(x[i]), f64::from(b[i]), delta, t, blunt);
                    }
                }
                for (i, ((x, b), o)) in x_tail.iter().zip(b_tail).zip(o_tail).enumerate() {
                    let delta = f64::from(x - b);
                    sums[i] += delta * delta;
                    *o = near(f64::from(*x), f64::from(*b), delta, t, blunt);
                }
                *lanes = sums;
            }
        }
        kernel! {
            /// The expert where the score is at least the threshold, otherwise the base, untouched; the sum where the
            /// delta is not finite. `out` holds the scores before.
            pub fn $choose(expert: &[$ty], base: &[$ty], threshold: f64, out: &mut [f64]) {
                for ((o, x), b) in out.iter_mut().zip(expert).zip(base) {
                    let delta = x - b;
                    let chosen = if *o >= threshold && delta != 0.0 { f64::from(*x) } else { f64::from(*b) };
                    *o = if delta.is_finite() { chosen } else { f64::from(*b) + f64::from(delta) };
                }
            }
        }
    };
}

per_width!(near_swap_narrow, choose_narrow, sizes_narrow, f32);
per_width!(near_swap_wide, choose_wide, sizes_wide, f64);

kernel! {
    /// `sum += values − origin`.
    pub fn add_distance(values: &[f64], origin: &[f64], sum: &mut [f64]) {
        for ((s, v), o) in sum.iter_mut().zip(values).zip(origin) {
            *s += v - o;
        }
    }
}

kernel! {
    /// `spread += (values − origin − mean)²`.
    pub fn add_spread(values: &[f64], origin: &[f64], mean: &[f64], spread: &mut [f64]) {
        for (((s, v), o), m) in spread.iter_mut().zip(values).zip(origin).zip(mean) {
            let distance = v - o - m;
            *s += distance * distance;
        }
    }
}

kernel! {
    /// Sets to zero the values whose score is not above the threshold, or at it where `at_it` counts.
    pub fn keep_scored(scores: &[f64], threshold: f64, at_it: bool, values: &mut [f64]) {
        for (v, s) in values.iter_mut().zip(scores) {
            let kept = *s > threshold || (at_it && *s == threshold);
            *v = if kept { *v } else { 0.0 };
        }
    }
}

kernel! {
    /// Adds the squares of the values with scores above the threshold to `above`, those with scores at it to `at`.
    pub fn add_scored_squares(scores: &[f64], threshold: f64, values: &[f64], above: &mut Lanes, at: &mut Lanes) {
        let (mut sums, mut ties) = (*above, *at);
        let ((ss, s_tail), (vs, v_tail)) = (scores.as_chunks::<LANES>(), values.as_chunks::<LANES>());
        for (s, v) in ss.iter().zip(vs) {
            for i in 0..LANES {
                let square = v[i] * v[i];
                sums[i] += only(s[i] > threshold, square);
                ties[i] += only(s[i] == threshold, square);
            }
        }
        for (i, (s, v)) in s_tail.iter().zip(v_tail).enumerate() {
            let square = v * v;
            sums[i] += only(*s > threshold, square);
            ties[i] += only(*s == threshold, square);
        }
        (*above, *at) = (sums, ties);
    }
}

kernel! {
    /// Number of scores exactly at the threshold.
    pub fn count_scores_at(scores: &[f64], threshold: f64) -> u64 {
        let mut n: u64 = 0;
        for s in scores {
            n += u64::from(*s == threshold);
        }
        n
    }
}

kernel! {
    /// Number of scores that are not zero.
    pub fn count_non_zero(scores: &[f64]) -> u64 {
        let mut n: u64 = 0;
        for s in scores {
            n += u64::from(*s != 0.0);
        }
        n
    }
}

kernel! {
    /// Adds to `mix` the weighted values whose sign is that of the total (zero counts as plus), and to `share` their
    /// weights.
    pub fn add_agreeing(values: &[f64], total: &[f64], weight: f64, mix: &mut [f64], share: &mut [f64]) {
        for (((v, t), m), s) in values.iter().zip(total).zip(mix).zip(share) {
            let agrees = if *t < 0.0 { *v < 0.0 } else { *v > 0.0 };
            *m += if agrees { weight * *v } else { 0.0 };
            *s += if agrees { weight } else { 0.0 };
        }
    }
}

kernel! {
    /// `mix /= share`, the share being at least `least`; zero where there is no share.
    pub fn divide_by_share(mix: &mut [f64], share: &[f64], least: f64) {
        for (m, s) in mix.iter_mut().zip(share) {
            let by = if *s > least { *s } else { least };
            *m = if by > 0.0 { *m / by } else { 0.0 };
        }
    }
}

kernel! {
    /// The largest of the values, −∞ of none.
    pub fn greatest(values: &[f64]) -> f64 {
        let mut best = [f64::NEG_INFINITY; LANES];
        let (rows, tail) = values.as_chunks::<LANES>();
        for row in rows {
            for (b, v) in best.iter_mut().zip(row) {
                *b = if *v > *b { *v } else { *b };
            }
        }
        let mut greatest = f64::NEG_INFINITY;
        for v in best.iter().chain(tail) {
            greatest = if *v > greatest { *v } else { greatest };
        }
        greatest
    }
}

kernel! {
    /// `values = exp(values − greatest)`; their sum joins the lanes.
    pub fn exponentials(values: &mut [f64], greatest: f64, lanes: &mut Lanes) {
        let mut sums = *lanes;
        let (rows, tail) = values.as_chunks_mut::<LANES>();
        for row in rows {
            for (v, s) in row.iter_mut().zip(&mut sums) {
                *v = exp(*v - greatest);
                *s += *v;
            }
        }
        for (v, s) in tail.iter_mut().zip(&mut sums) {
            *v = exp(*v - greatest);
            *s += *v;
        }
        *lanes = sums;
    }
}

/// What mergekit adds to each probability.
const FLOOR: f64 = 1e-8;

/// One term of `Σ p ln(p / q)`, of exponentials and the reciprocals of their sums.
#[inline(always)]
fn surprise(p: f64, p_by: f64, q: f64, q_by: f64) -> f64 {
    let (p, q) = (p * p_by + FLOOR, q * q_by + FLOOR);
    p * ln(p / q)
}

kernel! {
    /// Adds the terms of the Kullback–Leibler divergence between two rows of exponentials with these sums.
    pub fn add_divergence(p: &[f64], p_sum: f64, q: &[f64], q_sum: f64, lanes: &mut Lanes) {
        let mut sums = *lanes;
        let (p_by, q_by) = (1.0 / p_sum, 1.0 / q_sum);
        let ((ps, p_tail), (qs, q_tail)) = (p.as_chunks::<LANES>(), q.as_chunks::<LANES>());
        for (p, q) in ps.iter().zip(qs) {
            for i in 0..LANES {
                sums[i] += surprise(p[i], p_by, q[i], q_by);
            }
        }
        for (i, (p, q)) in p_tail.iter().zip(q_tail).enumerate() {
            sums[i] += surprise(*p, p_by, *q, q_by);
        }
        *lanes = sums;
    }
}

kernel! {
    /// `out = |values| · factor`.
    pub fn magnitudes(values: &[f64], factor: f64, out: &mut [f64]) {
        for (o, v) in out.iter_mut().zip(values) {
            *o = v.abs() * factor;
        }
    }
}

/// The numbers of one expert in PCB.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rival {
    /// Magnitudes are clipped to this from below …
    pub low: f64,
    /// … and to this from above.
    pub high: f64,
    /// Number of experts.
    pub count: f64,
    /// The score from which on elements are kept.
    pub cut: f64,
    /// The largest score.
    pub peak: f64,
}

impl Rival {
    #[inline(always)]
    pub(super) fn clipped(&self, size: f64) -> f64 {
        let size = if size > self.high { self.high } else { size };
        if size < self.low { self.low } else { size }
    }

    /// `exp(n (m² − 1)) · tanh(δ Σδ)`, m being the clipped magnitude between 0 and 1. The published score lacks the −1,
    /// which divides all scores of an expert by the same number; only their ratios count, and they cannot overflow.
    #[inline(always)]
    #[must_use]
    pub fn score(&self, delta: f64, total: f64) -> f64 {
        let width = self.high - self.low;
        let above = self.clipped(delta.abs()) - self.low;
        let m = if width > 0.0 { above / width } else { 1.0 };
        // Where nothing changes the sum may be anything.
        let product = if delta == 0.0 { 0.0 } else { delta * total };
        exp(self.count * (m * m - 1.0)) * tanh(product)
    }

    /// The element's part in the mean: its score between the cut (0) and the peak (1). If all kept scores are the
    /// same, one for each, unless that score is zero or below it: then nothing speaks for the elements.
    #[inline(always)]
    pub(super) fn scale(&self, score: f64) -> f64 {
        let width = self.peak - self.cut;
        let above = if score > self.cut { score - self.cut } else { 0.0 };
        let alike = if score >= self.cut && score > 0.0 { 1.0 } else { 0.0 };
        if width > 0.0 { above / width } else { alike }
    }
}

kernel! {
    /// The scores of an expert's deltas.
    pub fn compete(values: &[f64], total: &[f64], rival: Rival, out: &mut [f64]) {
        for ((o, v), t) in out.iter_mut().zip(values).zip(total) {
            *o = rival.score(*v, *t);
        }
    }
}

kernel! {
    /// Adds an expert's scaled clipped deltas to `mix`, and the scales to `share`.
    pub fn add_scaled(values: &[f64], total: &[f64], rival: Rival, mix: &mut [f64], share: &mut [f64]) {
        for (((v, t), m), s) in values.iter().zip(total).zip(mix).zip(share) {
            let scale = rival.scale(rival.score(*v, *t));
            let clipped = rival.clipped(v.abs()).copysign(*v);
            *m += if *v == 0.0 { 0.0 } else { clipped * scale };
            *s += scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Level;

    /// Numbers of both signs, zeros, ties and one of each kind that is not finite.
    fn numbers(n: usize, seed: u64) -> Vec<f64> {
        let mut state = seed;
        let mut values: Vec<f64> = (0..n)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let u = (state >> 40) as i32 % 2000 - 1000;
                if u % 5 == 0 { 0.0 } else { f64::from(u) * 1e-4 }
            })
            .collect();
        for (at, odd) in [(3, f64::NAN), (11, f64::INFINITY), (17, f64::NEG_INFINITY), (20, -0.0)] {
            if at < n {
                values[at] = odd;
            }
        }
        values
    }

    /// Every kernel that gives a vector, at every level and length, against one element at a time.
    #[test]
    fn every_level_and_length_gives_the_same_bits() {
        // Which of two NaNs an addition hands on is the processor's choice.
        let canonical = |x: &f64| if x.is_nan() { f64::NAN.to_bits() } else { x.to_bits() };
        let bits = |v: &[f64]| v.iter().map(canonical).collect::<Vec<_>>();
        let rival = Rival { low: 1e-3, high: 0.09, count: 3.0, cut: 1e-4, peak: 0.01 };
        for n in (0..70).chain([1000, 1024]) {
            let (a, b, c) = (numbers(n, 1), numbers(n, 2), numbers(n, 3));
            let run = |level: Level| {
                let mut all = Vec::new();
                let mut out = a.clone();
                take_larger(level, &b, &mut out);
                all.extend(bits(&out));
                clean(level, &mut out, &c);
                all.extend(bits(&out));
                show_non_finite(level, &a, &mut out);
                all.extend(bits(&out));
                let (mut mix, mut share) = (vec![0.0; n], vec![0.0; n]);
                add_agreeing(level, &a, &b, 0.3, &mut mix, &mut share);
                divide_by_share(level, &mut mix, &share, 1e-6);
                add_scaled(level, &b, &c, rival, &mut mix, &mut share);
                add_distance(level, &a, &b, &mut mix);
                add_spread(level, &a, &b, &c, &mut share);
                all.extend(bits(&mix));
                all.extend(bits(&share));
                compete(level, &a, &b, rival, &mut out);
                keep_scored(level, &a, 0.05, true, &mut out);
                all.extend(bits(&out));
                let mut lanes = [0.0; LANES];
                near_swap_wide(level, &a, &b, 0.01, 1e-6, &mut out, &mut lanes);
                all.extend(bits(&out));
                choose_wide(level, &a, &b, 0.02, &mut out);
                all.extend(bits(&out));
                exponentials(level, &mut out, 0.1, &mut lanes);
                add_divergence(level, &out, 2.0, &out, 3.0, &mut lanes);
                let mut other = [0.0; LANES];
                add_scored_squares(level, &a, 0.0, &b, &mut lanes, &mut other);
                all.extend(bits(&out));
                all.extend(bits(&lanes));
                all.extend(bits(&other));
                all.push(greatest(level, &a).to_bits());
                all.push(count_scores_at(level, &a, 0.0) + count_non_zero(level, &b));
                all
            };
            let expected = run(Level::BASELINE);
            for level in Level::available() {
                assert!(run(level) == expected, "{n} elements at {}", level.name());
            }
        }
    }

    #[test]
    fn near_swap_takes_what_is_near_and_steps_towards_what_is_far() {
        assert_eq!(near(1.25, 1.0, 0.25, 0.5, 0.0), 1.25);
        assert_eq!(near(3.0, 1.0, 2.0, 0.5, 0.0), 1.5);
        assert_eq!(near(-1.0, 1.0, -2.0, 0.5, 0.0), 0.5);
        assert_eq!(near(0.0, -0.0, 0.0, 0.5, 0.0).to_bits(), (-0.0f64).to_bits());
        assert!(near(f64::NAN, 1.0, f64::NAN, 0.5, 0.0).is_nan());
        assert_eq!(near(f64::INFINITY, 1.0, f64::INFINITY, 0.5, 0.0), f64::INFINITY);
        // A threshold below mergekit's 1e-6: a share of the way.
        assert_eq!(near(1e-7, 0.0, 1e-7, 5e-7, 1e-6), 5e-8);
        assert_eq!(near(1e-5, 0.0, 1e-5, 5e-7, 1e-6), 5e-7);
    }

    #[test]
    fn the_largest_is_the_later_one_of_equals_and_nan_above_all() {
        let mut best = [1.0, -2.0, 3.0, f64::NAN];
        take_larger(Level::BASELINE, &[-1.0, 1.0, -4.0, f64::INFINITY], &mut best);
        assert_eq!(best[..3], [-1.0, -2.0, -4.0]);
        assert!(best[3].is_nan());
    }

    #[test]
    fn an_expert_without_changes_takes_no_part_in_pcb() {
        let rival = Rival { low: 0.0, high: 0.0, count: 2.0, cut: 0.0, peak: 0.0 };
        let (mut mix, mut share) = ([0.0; 2], [0.0; 2]);
        add_scaled(Level::BASELINE, &[0.0, 0.0], &[1.0, 0.0], rival, &mut mix, &mut share);
        assert_eq!((mix, share), ([0.0; 2], [0.0; 2]));
    }
}
