//! Every level and width against each other, and against plain loops.

use super::super::Level;
use super::super::lanes::{self, Lanes};
use super::loops::bf16;
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
                    let (mut lanes, mut out) = ([[Lanes::default(); 3]; 2], [vec![0.0; len], vec![0.0; len]]);
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
        let found = lanes::total(lanes);
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
        assert_eq!(f32::subtract(level, &expert[..5], &base[..5], &mut out[..5]), f64::from(1.01f32 - 1.0));
        let wide = |v: [f32; 8]| v.map(f64::from);
        let mut out = [0.0; 8];
        let found = f64::changes(level, &wide(expert), &wide(base), false, thresholds, &mut out, &mut lanes);
        assert_eq!(found, expected, "{}", level.name());
        // Numbers that bf16 holds differ there just where they differ.
        let (base, expert) = (base.map(bf16), expert.map(bf16));
        let mut out = [0.0; 8];
        let rounded = f32::changes(level, &expert, &base, false, thresholds, &mut out, &mut lanes);
        assert_eq!(f32::changes(level, &expert, &base, true, thresholds, &mut out, &mut lanes), rounded);
    }
}
