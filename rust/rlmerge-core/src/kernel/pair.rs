//! Steps over the deltas of two experts in one loop: the most common merge. Each gives the bits of the steps for any
//! number of experts, one after the other, in [`element`](super::element) and [`combine`](super::combine).

use super::lanes::{LANES, Lanes, only};
use super::level::kernel;

macro_rules! load {
    ($name:ident, $ty:ty) => {
        kernel! {
            /// The deltas `x − from_x` and `y − from_y`, with zeros where their sum is not finite, and that sum. The
            /// squares of the whole deltas join the lanes.
            pub fn $name(
                x: &[$ty], from_x: &[$ty], y: &[$ty], from_y: &[$ty],
                first: &mut [f64], second: &mut [f64], total: &mut [f64],
                first_lanes: &mut Lanes, second_lanes: &mut Lanes,
            ) {
                let (mut first_sums, mut second_sums) = (*first_lanes, *second_lanes);
                let ((xs, x_tail), (us, u_tail)) = (x.as_chunks::<LANES>(), from_x.as_chunks::<LANES>());
                let ((ys, y_tail), (vs, v_tail)) = (y.as_chunks::<LANES>(), from_y.as_chunks::<LANES>());
                let (firsts, first_tail) = first.as_chunks_mut::<LANES>();
                let (seconds, second_tail) = second.as_chunks_mut::<LANES>();
                let (totals, total_tail) = total.as_chunks_mut::<LANES>();
                let inputs = xs.iter().zip(us).zip(ys.iter().zip(vs));
                for (((x, u), (y, v)), ((f, s), t)) in inputs.zip(firsts.iter_mut().zip(seconds).zip(totals)) {
                    for i in 0..LANES {
                        let (a, b) = (f64::from(x[i] - u[i]), f64::from(y[i] - v[i]));
                        let sum = a + b;
                        first_sums[i] += a * a;
                        second_sums[i] += b * b;
                        f[i] = if sum.is_finite() { a } else { 0.0 };
                        s[i] = if sum.is_finite() { b } else { 0.0 };
                        t[i] = sum;
                    }
                }
                let inputs = x_tail.iter().zip(u_tail).zip(y_tail.iter().zip(v_tail));
                let outputs = first_tail.iter_mut().zip(second_tail).zip(total_tail);
                for (i, (((x, u), (y, v)), ((f, s), t))) in inputs.zip(outputs).enumerate() {
                    let (a, b) = (f64::from(x - u), f64::from(y - v));
                    let sum = a + b;
                    first_sums[i] += a * a;
                    second_sums[i] += b * b;
                    *f = if sum.is_finite() { a } else { 0.0 };
                    *s = if sum.is_finite() { b } else { 0.0 };
                    *t = sum;
                }
                (*first_lanes, *second_lanes) = (first_sums, second_sums);
            }
        }
    };
}

load!(load_narrow, f32);
load!(load_wide, f64);

/// Variance of two deltas, times two, around the first of them.
#[inline(always)]
fn spread_of(first: f64, second: f64) -> f64 {
    let apart = second - first;
    let mean = apart / 2.0;
    let rest = apart - mean;
    mean * mean + rest * rest
}

kernel! {
    /// `out` is the variance of two deltas, times two.
    pub fn spread(first: &[f64], second: &[f64], out: &mut [f64]) {
        for ((o, a), b) in out.iter_mut().zip(first).zip(second) {
            *o = spread_of(*a, *b);
        }
    }
}

/// One element of the sums below, in lane `i`; whether it is at the score.
#[inline(always)]
fn weigh(i: usize, a: f64, b: f64, score: f64, sums: [&mut Lanes; 4]) -> u32 {
    let finite = (a + b).is_finite();
    let (a, b) = (if finite { a } else { 0.0 }, if finite { b } else { 0.0 });
    let spread = spread_of(a, b);
    let (above, tied) = (spread > score, spread == score);
    let [first, first_tied, second, second_tied] = sums;
    first[i] += only(above, a * a);
    first_tied[i] += only(tied, a * a);
    second[i] += only(above, b * b);
    second_tied[i] += only(tied, b * b);
    u32::from(tied)
}

macro_rules! scores {
    ($spread:ident, $weigh:ident, $ty:ty) => {
        kernel! {
            /// `out` is the variance of the deltas `x − from_x` and `y − from_y`, times two; zero where their sum is not
            /// finite.
            pub fn $spread(x: &[$ty], from_x: &[$ty], y: &[$ty], from_y: &[$ty], out: &mut [f64]) {
                let deltas = x.iter().zip(from_x).zip(y.iter().zip(from_y));
                for (o, ((x, u), (y, v))) in out.iter_mut().zip(deltas) {
                    let (a, b) = (f64::from(x - u), f64::from(y - v));
                    *o = if (a + b).is_finite() { spread_of(a, b) } else { 0.0 };
                }
            }
        }
        kernel! {
            /// Adds the squares of both deltas where that variance is above the score to the first and third lanes,
            /// where it is at the score to the second and fourth. Returns how many are at it.
            pub fn $weigh(
                x: &[$ty], from_x: &[$ty], y: &[$ty], from_y: &[$ty], score: f64, lanes: &mut [Lanes],
            ) -> u64 {
                let mut sums = [Lanes::default(); 4];
                sums.copy_from_slice(&lanes[..4]);
                let [mut first, mut first_tied, mut second, mut second_tied] = sums;
                let mut ties = 0;
                let ((xs, x_tail), (us, u_tail)) = (x.as_chunks::<LANES>(), from_x.as_chunks::<LANES>());
                let ((ys, y_tail), (vs, v_tail)) = (y.as_chunks::<LANES>(), from_y.as_chunks::<LANES>());
                for ((x, u), (y, v)) in xs.iter().zip(us).zip(ys.iter().zip(vs)) {
                    let mut here = 0;
                    for i in 0..LANES {
                        let sums = [&mut first, &mut first_tied, &mut second, &mut second_tied];
                        here += weigh(i, f64::from(x[i] - u[i]), f64::from(y[i] - v[i]), score, sums);
                    }
                    ties += u64::from(here);
                }
                let tails = x_tail.iter().zip(u_tail).zip(y_tail.iter().zip(v_tail));
                for (i, ((x, u), (y, v))) in tails.enumerate() {
                    let sums = [&mut first, &mut first_tied, &mut second, &mut second_tied];
                    ties += u64::from(weigh(i, f64::from(x - u), f64::from(y - v), score, sums));
                }
                lanes[..4].copy_from_slice(&[first, first_tied, second, second_tied]);
                ties
            }
        }
    };
}

scores!(spread_narrow, weigh_narrow, f32);
scores!(spread_wide, weigh_wide, f64);

/// How two deltas are mixed by [`elect`].
#[derive(Debug, Clone, Copy)]
pub struct Election {
    /// Elements with a larger score than this take part …
    pub score: f64,
    /// … and those at it, if so.
    pub at_it: bool,
    /// Of the experts.
    pub weights: [f64; 2],
    /// The least share.
    pub least: f64,
}

kernel! {
    /// The mean, weighted, of those deltas whose sign is that of their sum, where scores are large enough; the sum where
    /// it is not finite.
    pub fn elect(
        first: &[f64], second: &[f64], total: &[f64], scores: &[f64], election: Election, out: &mut [f64],
    ) {
        let Election { score, at_it, weights: [weigh_first, weigh_second], least } = election;
        let deltas = first.iter().zip(second).zip(total.iter().zip(scores));
        for (o, ((a, b), (t, s))) in out.iter_mut().zip(deltas) {
            let kept = (*s > score) | (at_it & (*s == score));
            let (a, b) = (if kept { *a } else { 0.0 }, if kept { *b } else { 0.0 });
            let agrees_first = if *t < 0.0 { a < 0.0 } else { a > 0.0 };
            let agrees_second = if *t < 0.0 { b < 0.0 } else { b > 0.0 };
            let mix = 0.0 + if agrees_first { weigh_first * a } else { 0.0 };
            let mix = mix + if agrees_second { weigh_second * b } else { 0.0 };
            let share = 0.0 + if agrees_first { weigh_first } else { 0.0 };
            let share = share + if agrees_second { weigh_second } else { 0.0 };
            let by = if share > least { share } else { least };
            let mean = mix / by;
            let mean = if by > 0.0 { mean } else { 0.0 };
            *o = if t.is_finite() { mean } else { *t };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Level, combine, element};

    /// Small numbers of both signs with repetitions, zeros, and some that are not finite.
    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0];
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let u = (state >> 40) as usize % 500;
                if u < 4 { odd[u] } else { (u as f32 - 250.0) / 64.0 }
            })
            .collect()
    }

    fn bits(values: &[f64]) -> Vec<u64> {
        // Which of two NaNs an addition hands on is the processor's choice.
        values.iter().map(|v| if v.is_nan() { f64::NAN.to_bits() } else { v.to_bits() }).collect()
    }

    #[test]
    fn two_experts_at_once_are_two_experts_one_by_one() {
        for level in Level::available() {
            for n in (0..70).chain([1000, 1024]) {
                let (base, x, y) = (numbers(n, 1), numbers(n, 2), numbers(n, 3));
                let zeros = || vec![0.0; n];
                let mut want = [zeros(), zeros()];
                let mut squares = [[0.5; LANES], [0.25; LANES]];
                for ((expert, out), squares) in [&x, &y].into_iter().zip(&mut want).zip(&mut squares) {
                    combine::cut_narrow(level, expert, &base, 0, false, 1.0, out, squares);
                }
                let mut sum = want[0].clone();
                combine::add(level, &want[1], &mut sum);
                want.iter_mut().for_each(|w| element::clean(level, w, &sum));

                let (mut a, mut b, mut total) = (zeros(), zeros(), zeros());
                let mut lanes = [[0.5; LANES], [0.25; LANES]];
                let [of_x, of_y] = &mut lanes;
                load_narrow(level, &x, &base, &y, &base, &mut a, &mut b, &mut total, of_x, of_y);
                assert_eq!((bits(&a), bits(&b), bits(&total)), (bits(&want[0]), bits(&want[1]), bits(&sum)));
                assert_eq!((bits(&lanes[0]), bits(&lanes[1])), (bits(&squares[0]), bits(&squares[1])));

                let narrow = [x.clone(), y.clone(), base.clone()];
                let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
                let (x, y, base) = (wide(&x), wide(&y), wide(&base));
                lanes = [[0.5; LANES], [0.25; LANES]];
                let [of_x, of_y] = &mut lanes;
                load_wide(level, &x, &base, &y, &base, &mut a, &mut b, &mut total, of_x, of_y);
                // These numbers are exact in both widths.
                assert_eq!((bits(&a), bits(&b), bits(&total)), (bits(&want[0]), bits(&want[1]), bits(&sum)));
                assert_eq!((bits(&lanes[0]), bits(&lanes[1])), (bits(&squares[0]), bits(&squares[1])));

                let (mut mean, mut by_steps, mut scores) = (zeros(), zeros(), zeros());
                element::add_distance(level, &b, &a, &mut mean);
                combine::divide_by(level, &mut mean, 2.0);
                element::add_spread(level, &a, &a, &mean, &mut by_steps);
                element::add_spread(level, &b, &a, &mean, &mut by_steps);
                spread(level, &a, &b, &mut scores);
                assert_eq!(bits(&scores), bits(&by_steps));

                let (x32, y32, base32) = (&narrow[0], &narrow[1], &narrow[2]);
                let score = scores.get(n / 2).copied().unwrap_or(0.0);
                let mut want = [[0.5; LANES]; 4];
                for (values, sums) in [&a, &b].into_iter().zip(want.as_chunks_mut::<2>().0) {
                    let [above, tied] = sums;
                    element::add_scored_squares(level, &scores, score, values, above, tied);
                }
                let mut got = [[0.5; LANES]; 4];
                let ties = weigh_narrow(level, x32, base32, y32, base32, score, &mut got);
                assert_eq!(ties, element::count_scores_at(level, &scores, score));
                assert_eq!(got.map(|l| bits(&l)), want.map(|l| bits(&l)));
                got = [[0.5; LANES]; 4];
                assert_eq!(weigh_wide(level, &x, &base, &y, &base, score, &mut got), ties);
                assert_eq!(got.map(|l| bits(&l)), want.map(|l| bits(&l)));
                let mut direct = zeros();
                spread_narrow(level, x32, base32, y32, base32, &mut direct);
                assert_eq!(bits(&direct), bits(&scores));
                spread_wide(level, &x, &base, &y, &base, &mut direct);
                assert_eq!(bits(&direct), bits(&scores));

                for (at_it, least) in [(false, 0.0), (true, 1e-6)] {
                    let election = Election { score, at_it, weights: [0.25, 0.75], least };
                    let mut out = vec![9.0; n];
                    elect(level, &a, &b, &total, &scores, election, &mut out);
                    let (mut mix, mut share) = (zeros(), zeros());
                    for (values, weight) in [(&a, 0.25), (&b, 0.75)] {
                        let mut values = values.clone();
                        element::keep_scored(level, &scores, score, at_it, &mut values);
                        element::add_agreeing(level, &values, &total, weight, &mut mix, &mut share);
                    }
                    element::divide_by_share(level, &mut mix, &share, least);
                    element::show_non_finite(level, &total, &mut mix);
                    assert_eq!(bits(&out), bits(&mix));
                }
            }
        }
    }
}
