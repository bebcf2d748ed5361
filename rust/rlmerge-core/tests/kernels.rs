//! Every kernel at every SIMD level against the naive oracle, bit for bit, for every dtype and every
//! length from 0 to 515 elements: all tails around the vector widths.

use rlmerge_core::dtype::DType;
use rlmerge_core::kernel::lanes::{self, Lanes};
use rlmerge_core::kernel::rng::{self, Stream};
use rlmerge_core::kernel::values::Values;
use rlmerge_core::kernel::{CHUNK, Level, combine, convert, naive};

const LENGTHS: std::ops::Range<usize> = 0..516;

/// Deterministic bytes in which all kinds of floats occur.
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Small numbers with repetitions, zeros of both signs and some odd ones.
fn numbers(seed: u64, len: usize) -> Vec<f64> {
    bytes(seed, len)
        .iter()
        .enumerate()
        .map(|(i, b)| match b {
            0..=20 => 0.0,
            21..=30 => -0.0,
            31 => f64::NAN,
            32 => f64::INFINITY,
            33 => f64::NEG_INFINITY,
            b if i % 3 == 0 => f64::from(f32::from(*b) / 64.0 - 2.0),
            b => f64::from(f32::from(*b) / 37.0 - 3.0),
        })
        .collect()
}

fn arithmetic() -> impl Iterator<Item = DType> {
    DType::ALL.iter().copied().filter(|d| d.has_arithmetic())
}

/// NaN payloads may differ in sign between instructions; everything else must be the same bits.
fn same(a: f64, b: f64) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

fn assert_same(ours: &[f64], naive: impl Iterator<Item = f64>, what: &str, level: Level) {
    for (i, (a, b)) in ours.iter().zip(naive).enumerate() {
        assert!(same(*a, b), "{what} at {level:?}, length {}, element {i}: {a} is not {b}", ours.len());
    }
}

/// Loads stored bytes and gives back `1 · value`, which is the value.
fn load(level: Level, dtype: DType, stored: &[u8], len: usize, wide: bool) -> (Values, Vec<f64>) {
    let mut values = Values::default();
    values.load(level, dtype, stored, len, wide);
    let mut out = vec![0.0; len];
    values.weigh(level, 1.0, &mut out, &mut Lanes::default());
    (values, out)
}

#[test]
fn decoding_and_encoding() {
    for level in Level::available() {
        for dtype in arithmetic() {
            let size = dtype.whole_bytes().unwrap();
            for len in LENGTHS {
                // One byte further: unaligned for every dtype.
                let raw = bytes(len as u64 + 1, len * size + 1);
                let stored = &raw[1..];
                let wide = dtype == DType::F64;
                let (_, decoded) = load(level, dtype, stored, len, wide);
                assert_same(&decoded, (0..len).map(|i| naive::decode(dtype, stored, i)), dtype.name(), level);

                // At some lengths with values below the smallest normal f32, which are rounded in another way.
                let scale = if len % 5 == 4 { 3e-39 } else { 1.000_000_1 };
                let values: Vec<f64> = numbers(len as u64, len).iter().map(|v| v * scale).collect();
                let mut out = vec![0xAA; len * size];
                let mut squares = Lanes::default();
                convert::encode(level, dtype, &values, &mut out, &mut squares);
                let terms: Vec<f64> = (0..len).map(|i| naive::decode(dtype, &out, i).powi(2)).collect();
                assert!(same(lanes::total(&squares), naive::striped_sum(&terms)), "{dtype} {level:?} {len}");
                for (i, v) in values.iter().enumerate() {
                    let expected = naive::encode(dtype, *v);
                    let got = &out[i * size..(i + 1) * size];
                    if v.is_nan() {
                        assert!(naive::decode(dtype, got, 0).is_nan());
                    } else {
                        assert_eq!(got, expected, "{dtype} of {v} at {level:?}, length {len}");
                    }
                }
            }
        }
    }
}

#[test]
fn deltas_and_weighted_sums() {
    for level in Level::available() {
        for dtype in arithmetic() {
            let size = dtype.whole_bytes().unwrap();
            let wide = dtype == DType::F64;
            for len in LENGTHS {
                let (a, b) = (bytes(3, len * size), bytes(5, len * size));
                let at = |raw: &[u8], i| naive::decode(dtype, raw, i);
                let (x, _) = load(level, dtype, &a, len, wide);
                let (base, _) = load(level, dtype, &b, len, wide);

                let mut delta = vec![0.0; len];
                x.delta(level, &base, &mut delta);
                assert_same(
                    &delta,
                    (0..len).map(|i| naive::delta(at(&a, i), at(&b, i), wide)),
                    "delta",
                    level,
                );

                let mut sum = vec![0.0; len];
                for divisor in [1.0, 3.0] {
                    let mut squares = [Lanes::default(); 2];
                    x.weigh(level, 0.3, &mut sum, &mut squares[0]);
                    base.add_weighed(level, 0.7, divisor, &mut sum, &mut squares[1]);
                    let expected = (0..len).map(|i| (0.3 * at(&a, i) + 0.7 * at(&b, i)) / divisor);
                    assert_same(&sum, expected, "weighted sum", level);
                    for (squares, raw) in squares.iter().zip([&a, &b]) {
                        let terms: Vec<f64> = (0..len).map(|i| at(raw, i).powi(2)).collect();
                        assert!(same(lanes::total(squares), naive::striped_sum(&terms)));
                    }
                }

                let change = numbers(7, len);
                let mut out = change.clone();
                base.add_change(level, 0.4, &mut out);
                let expected = (0..len).map(|i| naive::add_change(at(&b, i), 0.4, change[i]));
                assert_same(&out, expected, "base plus change", level);

                let other = numbers(9, len);
                for divisor in [1.0, 3.0] {
                    base.add_changes(level, &change, &other, divisor, 0.4, &mut out);
                    let expected =
                        (0..len).map(|i| naive::add_change(at(&b, i), 0.4, (change[i] + other[i]) / divisor));
                    assert_same(&out, expected, "base plus changes", level);
                }
            }
        }
    }
}

#[test]
fn sums_have_the_same_bits_at_every_level() {
    for level in Level::available() {
        for dtype in [DType::F32, DType::F64] {
            for len in LENGTHS {
                let raw: Vec<u8> = numbers(11, len)
                    .iter()
                    .map(|v| if v.is_finite() { *v } else { 1.5 })
                    .flat_map(|v| naive::encode(dtype, v / 3.0))
                    .collect();
                let (values, plain) = load(level, dtype, &raw, len, dtype == DType::F64);
                let mut squares = Lanes::default();
                values.add_squares(level, &mut squares);
                let terms: Vec<f64> = plain.iter().map(|v| v * v).collect();
                assert_eq!(lanes::total(&squares).to_bits(), naive::striped_sum(&terms).to_bits(), "{len}");
                let mut products = Lanes::default();
                values.add_products(level, &values, &mut products);
                assert_eq!(products, squares);
                let mut magnitudes = Lanes::default();
                lanes::add_magnitudes(level, &plain, &mut magnitudes);
                let terms: Vec<f64> = plain.iter().map(|v| v.abs()).collect();
                assert_eq!(lanes::total(&magnitudes).to_bits(), naive::striped_sum(&terms).to_bits());
            }
        }
    }
}

#[test]
fn bounds_keep_and_drop_their_first_ties() {
    let level = Level::choose();
    for len in LENGTHS {
        let raw: Vec<u8> = numbers(13, len).iter().flat_map(|v| naive::encode(DType::F64, *v)).collect();
        let (x, values) = load(level, DType::F64, &raw, len, true);
        let (base, _) = load(level, DType::F64, &vec![0; raw.len()], len, true);
        for (low, high) in [(0.0f64, f64::NAN), (0.5, 2.0), (0.5, 0.5), (0.5, f64::INFINITY)] {
            let (low, high) = (low.to_bits(), high.to_bits());
            for (keep, drop) in [(0, 0), (1, 0), (3, 1), (u64::MAX, 2), (2, u64::MAX)] {
                let (mut kept, mut to_keep, mut to_drop) = (values.clone(), keep, drop);
                x.keep_between(&base, (low, &mut to_keep), (high, &mut to_drop), &mut kept);
                let (mut lows, mut highs) = (0, 0);
                for (k, v) in kept.iter().zip(&values) {
                    let magnitude = v.abs().to_bits();
                    lows += u64::from(magnitude == low);
                    highs += u64::from(magnitude == high);
                    let stays = magnitude > low || (magnitude == low && lows <= keep);
                    let goes = magnitude > high || (magnitude == high && highs <= drop);
                    assert!(same(*k, if stays && !goes { *v } else { 0.0 }));
                }
                assert_eq!((to_keep, to_drop), (keep - keep.min(lows), drop - drop.min(highs)));
            }
        }
    }
}

#[test]
fn cut_deltas_are_the_deltas_cut() {
    for level in Level::available() {
        for dtype in arithmetic() {
            let size = dtype.whole_bytes().unwrap();
            let wide = dtype == DType::F64;
            for len in LENGTHS {
                let (a, b) = (bytes(3, len * size), bytes(5, len * size));
                let at = |raw: &[u8], i| naive::decode(dtype, raw, i);
                let deltas: Vec<f64> = (0..len).map(|i| naive::delta(at(&a, i), at(&b, i), wide)).collect();
                let (x, _) = load(level, dtype, &a, len, wide);
                let (base, _) = load(level, dtype, &b, len, wide);
                // A delta that occurs, one between two f32, none, and everything.
                let some = deltas.get(len / 2).filter(|d| !d.is_nan()).map_or(0.25, |d| d.abs());
                for threshold in [some, 0.1, 0.0, f64::INFINITY].map(f64::to_bits) {
                    for strict in [false, true] {
                        let (mut out, mut squares) = (vec![7.0; len], Lanes::default());
                        x.cut_delta(level, &base, threshold, strict, 0.3, &mut out, &mut squares);
                        let keep = |d: f64| naive::is_large(d, threshold, strict);
                        assert_same(
                            &out,
                            deltas.iter().map(|d| if keep(*d) { 0.3 * d } else { 0.0 }),
                            "cut",
                            level,
                        );
                        let end = 1.5f64.to_bits();
                        for closed in [false, true] {
                            let (mut band, mut sums) = (vec![7.0; len], Lanes::default());
                            x.band_delta(
                                level,
                                &base,
                                (threshold, strict),
                                (end, closed),
                                0.3,
                                &mut band,
                                &mut sums,
                            );
                            let inside = |d: f64| keep(d) && !naive::is_large(d, end, closed);
                            let expected = deltas.iter().map(|d| if inside(*d) { 0.3 * d } else { 0.0 });
                            assert_same(&band, expected, "band", level);
                            assert_same(&sums, squares.into_iter(), "squares", level);
                        }
                        let terms: Vec<f64> = deltas.iter().map(|d| d * d).collect();
                        assert!(same(lanes::total(&squares), naive::striped_sum(&terms)));
                    }
                    let expected = deltas.iter().filter(|d| d.abs().to_bits() == threshold).count() as u64;
                    assert_eq!(
                        x.count_deltas_at(level, &base, threshold),
                        expected,
                        "{dtype} {level:?} {len}"
                    );
                }
            }
        }
    }
}

#[test]
fn picked_deltas_are_the_deltas_that_a_mask_keeps() {
    let limit = rng::threshold(0.4);
    for level in Level::available() {
        for dtype in arithmetic() {
            let size = dtype.whole_bytes().unwrap();
            let wide = dtype == DType::F64;
            for len in LENGTHS {
                let stream = Stream::new(len as u64, 1, dtype.name());
                let (a, b) = (bytes(3, len * size), bytes(5, len * size));
                let at = |raw: &[u8], i| naive::decode(dtype, raw, i);
                let deltas: Vec<f64> = (0..len).map(|i| naive::delta(at(&a, i), at(&b, i), wide)).collect();
                let (x, _) = load(level, dtype, &a, len, wide);
                let (base, _) = load(level, dtype, &b, len, wide);
                let (mut out, mut squares) = (vec![7.0; len], Lanes::default());
                let kept = rng::kept(level, stream, 192, len, limit);
                x.pick_delta(level, &base, &kept, 0.3, &mut out, &mut squares);
                let mut expected: Vec<f64> = deltas.iter().map(|d| 0.3 * d).collect();
                rng::keep_random(level, &mut expected, stream, 192, limit);
                assert_same(&out, expected.into_iter(), "pick", level);
                let terms: Vec<f64> = deltas.iter().map(|d| d * d).collect();
                assert!(same(lanes::total(&squares), naive::striped_sum(&terms)));
            }
        }
    }
}

#[test]
fn elections_agree_with_the_oracle() {
    let all: Vec<f64> = (0..20).map(|e| [1.0, 0.5, 2.0][e % 3]).collect();
    for level in Level::available() {
        for len in LENGTHS {
            // Up to three experts at every length, every other number at some.
            let most = if len % 43 == 0 { 20 } else { 3 };
            for experts in 1..=most {
                let mut values = vec![0.0; experts * CHUNK];
                for e in 0..experts {
                    values[e * CHUNK..e * CHUNK + len].copy_from_slice(&numbers(17 + e as u64, len));
                }
                for (zero_is_plus, normalize) in [(true, true), (false, true), (true, false)] {
                    let mut out = vec![0.0; len];
                    let shares = &all[..experts];
                    combine::merge_disjoint(
                        level,
                        (&values, CHUNK),
                        shares,
                        zero_is_plus,
                        normalize,
                        &mut out,
                    );
                    let expected = (0..len).map(|i| {
                        let column: Vec<f64> = (0..experts).map(|e| values[e * CHUNK + i]).collect();
                        let (mix, divisor) = naive::disjoint(&column, shares, zero_is_plus);
                        if normalize && divisor != 0.0 { mix / divisor } else { mix }
                    });
                    assert_same(&out, expected, "election", level);
                }
            }
            let total = numbers(17, len);
            let signs: i64 = total.iter().map(|v| i64::from(*v > 0.0) - i64::from(*v < 0.0)).sum();
            assert_eq!(combine::sum_of_signs(level, &total), signs);
        }
    }
}
