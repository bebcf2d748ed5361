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

fn bits(lanes: &[Lanes]) -> Vec<u64> {
    lanes.iter().flatten().map(|v| v.to_bits()).collect()
}

/// A base and two experts: in the second round with opposite deltas, in the third with numbers without sense too.
fn drawn(len: usize, round: usize) -> [Vec<f32>; 3] {
    let (base, mut x, mut y) = (noise(len, 1), noise(len, 2), noise(len, 3));
    for (i, ((x, y), b)) in x.iter_mut().zip(&mut y).zip(&base).enumerate() {
        match (round, i % 7) {
            (1 | 2, 3) => (*x, *y) = (*b + 3e-5, *b - 3e-5),
            (2, 1) => (*x, *y) = (f32::INFINITY, f32::NEG_INFINITY),
            (2, 2) => *x = f32::NAN,
            (2, 4) => *y = *b + f32::MIN_POSITIVE / 4.0,
            _ => {}
        }
    }
    [base, x, y]
}

const LENGTHS: [usize; 8] = [0, 1, 15, 16, 17, 100, 1000, 1024];

#[test]
fn kernels_that_do_all_at_once_find_what_steps_find() {
    for (len, round) in LENGTHS.into_iter().flat_map(|len| [0, 1, 2].map(|round| (len, round))) {
        let [base, x, y] = drawn(len, round);
        let mut deltas = [vec![0.0; len], vec![0.0; len]];
        f32::subtract(Level::BASELINE, &x, &base, &mut deltas[0]);
        f32::subtract(Level::BASELINE, &y, &base, &mut deltas[1]);
        let deltas = [&deltas[0][..], &deltas[1][..]];
        let least = [[5e-5, 2e-5, 1e-5], [6e-5, 3e-5, f64::from(f32::from_bits(1))]];
        let thresholds = Thresholds { epsilon: 1e-5, relative: 1e-3 };
        let beyond = |level: Level| {
            let mut lanes = [Lanes::default(); 8];
            (f32::find_beyond(level, deltas, least, &mut Vec::new(), &mut lanes), bits(&lanes))
        };
        let changes = |level: Level, exact: bool| {
            let (mut lanes, mut out) = ([Lanes::default(); 3], vec![0.0; len]);
            let found = f32::changes(level, &x, &base, exact, thresholds, &mut out, &mut lanes);
            (found, bits(&lanes), out.iter().map(|v| v.to_bits()).collect::<Vec<_>>())
        };
        for level in Level::available() {
            let name = level.name();
            assert_eq!(beyond(level), beyond(Level::BASELINE), "{len}, {round}, {name}");
            for exact in [false, true] {
                let expected = changes(Level::BASELINE, exact);
                assert_eq!(changes(level, exact), expected, "{len}, {round}, {name}");
            }
        }
    }
}

/// What a glance finds: counts, bins, lanes, and what is open.
fn glanced(level: Level, trio: Trio<'_>, limits: &Limits) -> (Glance, Vec<u64>) {
    let (mut lanes, mut bins) = ([Lanes::default(); 24], [[0; BINS]; 2]);
    let (mut seen, mut open) = (Seen::default(), Open::between(1, KEYS));
    let thresholds = Thresholds { epsilon: 1e-5, relative: 1e-3 };
    let [first, second] = &mut bins;
    let glance = glance(level, trio, thresholds, limits, [first, second], &mut seen, &mut lanes, &mut open);
    let mut all = bits(&lanes);
    all.extend(bins.as_flattened().iter().map(|count| *count as u64));
    all.extend(open.near.each().into_iter().flatten().flatten());
    let [first, second] = open.take_pairs();
    assert_eq!(open.count(), 0);
    all.extend(first.iter().chain(&second).map(|v| u64::from(v.to_bits())));
    (glance, all)
}

/// Numbers of bf16 as they are stored.
fn stored(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect()
}

#[test]
fn a_glance_is_the_same_at_every_level() {
    let key = |size: f64| key(size);
    let of = |low: f64, high: f64| [key(low), key(high)];
    let limits = [
        Limits::of_keys([[of(4e-5, 4.2e-5), of(2e-5, 3e-5), of(1e-5, 1e-5)]; 2], of(1e-5, 2e-5)),
        Limits::of_keys([[of(4e-5, 4.2e-5), of(2e-5, 2e-5), [1, 1]], [[1, 5]; 3]], [1, key(1e-6)]),
    ];
    for (len, round) in LENGTHS.into_iter().flat_map(|len| [0, 1, 2].map(|round| (len, round))) {
        for limits in &limits {
            for exact in [false, true] {
                let mut drawn = drawn(len, round);
                if exact {
                    drawn.iter_mut().flatten().for_each(|v| *v = bf16(*v));
                }
                let trio = Trio::Decoded(drawn.each_ref().map(|numbers| &numbers[..]), exact);
                let stored = drawn.each_ref().map(|numbers| stored(numbers));
                let stored = Trio::Stored(stored.each_ref().map(|bytes| &bytes[..]));
                let expected = glanced(Level::BASELINE, trio, limits);
                for level in Level::available() {
                    for trio in [Some(trio), exact.then_some(stored)].into_iter().flatten() {
                        let found = glanced(level, trio, limits);
                        assert_eq!(found, expected, "{len}, {round}, {trio:?}, {}", level.name());
                    }
                }
            }
        }
    }
}

#[test]
fn a_glance_and_what_it_leaves_open_are_all() {
    let drawn = drawn(1000, 1);
    let [base, x, y] = &drawn;
    let deltas = [x, y].map(|e| e.iter().zip(base).map(|(e, b)| e - b).collect::<Vec<f32>>());
    let of = |low: f64, high: f64| [key(low), key(high)];
    let cuts = [of(4e-5, 4.2e-5), of(2e-5, 3e-5), of(1e-5, 1e-5)];
    let limits = Limits::of_keys([cuts; 2], of(1e-5, 2e-5));
    // Any thresholds within the limits.
    let keys = [[cuts[0][1], cuts[1][0], cuts[2][0]], [cuts[0][0], cuts[1][0] + 9, cuts[2][0]]];
    let least = keys.map(|keys| keys.map(narrow_edge));
    let mut all = [Lanes::default(); 8];
    let expected = settle(Level::BASELINE, [&deltas[0], &deltas[1]], least, &mut all);
    let (mut lanes, mut bins) = ([Lanes::default(); 24], [[0; BINS]; 2]);
    let (mut seen, mut open) = (Seen::default(), Open::between(1, KEYS));
    let [first, second] = &mut bins;
    let trio = Trio::Decoded([base, x, y], false);
    let thresholds = Thresholds { epsilon: 1e-5, relative: 1e-3 };
    let level = Level::choose();
    let glance = glance(level, trio, thresholds, &limits, [first, second], &mut seen, &mut lanes, &mut open);
    let (mut found, mut rest) = (glance.found, [Lanes::default(); 8]);
    let pairs = open.take_pairs();
    assert!((10..500).contains(&pairs[0].len()), "{}", pairs[0].len());
    found.add(&settle(level, [&pairs[0], &pairs[1]], least, &mut rest));
    assert_eq!(found, expected);
    for (at, expected) in all.iter().map(lanes::total).enumerate() {
        let sum = lanes::total(&lanes[16 + at]) + lanes::total(&rest[at]);
        assert!((sum - expected).abs() <= 1e-12 * expected, "{at}: {sum} {expected}");
    }
    for (e, deltas) in deltas.iter().enumerate() {
        for (cut, [low, high]) in cuts.into_iter().enumerate() {
            let reach = |key: usize| deltas.iter().filter(|d| f64::from(d.abs()) >= edge(key)).count() as u64;
            assert_eq!(glance.above[e][cut], [reach(low), reach(high + 1)]);
        }
        let mut counts = [0; BINS];
        deltas.iter().filter(|d| **d != 0.0).for_each(|d| counts[key(f64::from(*d)) >> FRACTION] += 1);
        assert_eq!(bins[e], counts);
        let small = |b: &f32| f64::from(b.abs()) < edge(key(1e-5));
        let low = deltas.iter().zip(base).filter(|(d, b)| d.abs() > 1e-5 && small(b)).count() as u64;
        assert_eq!(
            (glance.experts[e].low, glance.smallest),
            (low, base.iter().filter(|b| small(b)).count() as u64)
        );
    }
    let between = |b: &f32| (edge(key(1e-5))..edge(key(2e-5))).contains(&f64::from(b.abs()));
    let mut expected = vec![[0; 3]; KEYS - 1];
    for (i, b) in base.iter().enumerate().filter(|(_, b)| between(b)) {
        let changed = deltas.each_ref().map(|delta| u64::from(delta[i].abs() > 1e-5));
        let counts = expected[key(f64::from(b.abs())) - 1].iter_mut();
        counts.zip([1, changed[0], changed[1]]).for_each(|(count, more)| *count += more);
    }
    assert!(open.near.each().expect("normal numbers").eq(expected));
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
