//! Selections against sorting.

use super::*;
use crate::dtype::DType;

fn search(values: &[f64], rank: u64, bins: usize, wide: bool, sample: Option<&[f64]>) -> (Cut, usize) {
    let mut s = Selection::new(rank, bins, wide);
    if let Some(sample) = sample {
        s.propose(sample, values.len() as u64);
    }
    let mut scans = 0;
    while s.cut().is_none() {
        let mut tally = s.tally();
        for chunk in values.chunks(CHUNK) {
            let stored = |v: &f64| {
                if wide { v.to_le_bytes().to_vec() } else { (*v as f32).to_le_bytes().to_vec() }
            };
            let bytes: Vec<u8> = chunk.iter().flat_map(stored).collect();
            let dtype = if wide { DType::F64 } else { DType::F32 };
            let (mut expert, mut base) = (Values::default(), Values::default());
            expert.load(Level::choose(), dtype, &bytes, chunk.len(), wide);
            base.load(Level::choose(), dtype, &vec![0; bytes.len()], chunk.len(), wide);
            s.count(Level::choose(), &expert, &base, &mut tally);
        }
        s.learn(&mut tally);
        scans += 1;
        assert!(scans < 40, "no end");
    }
    (s.cut().unwrap(), scans)
}

fn by_sorting(values: &[f64], rank: u64) -> Cut {
    let mut keys: Vec<u64> = values.iter().map(|v| v.abs().to_bits()).collect();
    keys.sort_unstable_by(|a, b| b.cmp(a));
    let threshold = keys[rank as usize - 1];
    let above = keys.iter().filter(|k| **k > threshold).count() as u64;
    let ties = keys.iter().filter(|k| **k == threshold).count() as u64;
    Cut { threshold, ties, kept_ties: rank - above }
}

fn noise(n: usize, wide: bool) -> Vec<f64> {
    let mut state = 0x1234_5678_9abc_def0u64;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let u = (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5;
            if wide { u * u * u } else { f64::from((u * u * u) as f32) }
        })
        .collect()
}

#[test]
fn finds_what_sorting_finds() {
    for wide in [false, true] {
        let mut values = noise(20_000, wide);
        values[77] = 0.0;
        values[78] = f64::from(f32::MIN_POSITIVE) / 2.0;
        values.extend([0.25; 900]);
        values.extend([-0.25; 100]);
        for rank in [1, 2, 500, 4_000, 4_800, 12_345, 20_999, 21_000] {
            let expected = by_sorting(&values, rank);
            for bins in [16, 1024, 1 << 18] {
                assert_eq!(search(&values, rank, bins, wide, None).0, expected, "{wide} {rank} {bins}");
                let sample: Vec<f64> = values.iter().step_by(7).copied().collect();
                assert_eq!(search(&values, rank, bins, wide, Some(&sample)).0, expected);
                // A sample that misleads, and one that is everything.
                assert_eq!(search(&values, rank, bins, wide, Some(&[1e-30; 300])).0, expected);
                assert_eq!(search(&values, rank, bins, wide, Some(&[7.0; 300])).0, expected);
                assert_eq!(search(&values, rank, bins, wide, Some(&values)).0, expected);
            }
        }
    }
}

#[test]
fn a_fair_sample_saves_all_but_one_scan() {
    let values = noise(400_000, false);
    let sample: Vec<f64> = values.iter().step_by(13).copied().collect();
    assert_eq!(search(&values, 80_000, 1 << 20, false, Some(&sample)).1, 1);
}

#[test]
fn rows_of_different_sizes_still_take_one_scan() {
    let sizes = noise(400, false);
    let values: Vec<f64> = noise(400 * 1024, false)
        .iter()
        .enumerate()
        .map(|(i, v)| f64::from((v * (1.0 + sizes[i / 1024])) as f32))
        .collect();
    let sample: Vec<f64> = values.chunks(3 * 1024).flat_map(|rows| &rows[..RUN]).copied().collect();
    assert_eq!(search(&values, 80_000, 1 << 17, false, Some(&sample)), (by_sorting(&values, 80_000), 1));
}

#[test]
fn keys_that_bins_cannot_tell_apart_are_written_down() {
    let values = noise(400_000, false);
    let sample: Vec<f64> = values.iter().step_by(13).copied().collect();
    for (bins, scans) in [(1 << 16, 1), (1 << 14, 1), (1 << 8, 2)] {
        let found = search(&values, 80_000, bins, false, Some(&sample));
        assert_eq!(found.0, by_sorting(&values, 80_000), "{bins}");
        assert!(if scans == 1 { found.1 == 1 } else { found.1 >= scans }, "{bins}: {} scans", found.1);
    }
    // A sample that promises few keys where there are too many to be written down.
    let mut crowded = values.clone();
    let threshold = f64::from_bits(by_sorting(&values, 80_000).threshold) as f32;
    for (i, value) in crowded.iter_mut().enumerate().filter(|(i, _)| i % 13 != 0) {
        *value = f64::from(f32::from_bits(threshold.to_bits() + (i % 97) as u32));
    }
    assert_eq!(search(&crowded, 80_000, 1 << 14, false, Some(&sample)).0, by_sorting(&crowded, 80_000));
}

#[test]
fn a_common_step_makes_wide_bins_exact_and_a_finer_one_is_found_out() {
    let mut values: Vec<f64> = noise(100_000, false).iter().map(|v| (v * 4096.0).round() / 4096.0).collect();
    let sample: Vec<f64> = values.iter().step_by(13).copied().collect();
    assert_eq!(search(&values, 20_000, 1 << 10, false, Some(&sample)), (by_sorting(&values, 20_000), 1));
    let threshold = f64::from_bits(by_sorting(&values, 20_000).threshold);
    for odd in &mut values[99_900..] {
        *odd = f64::from(f32::from_bits((threshold as f32).to_bits() + 1));
    }
    let (cut, scans) = search(&values, 20_000, 1 << 10, false, Some(&sample));
    assert_eq!(cut, by_sorting(&values, 20_000));
    assert!(scans > 1);
}

#[test]
fn scores_of_both_signs_are_ranked_like_sorting() {
    let mut values = noise(20_011, true);
    values[5..905].fill(0.0);
    values[905..1000].fill(-0.0);
    values[1000..1900].fill(-1e-9);
    values[1900] = f64::INFINITY;
    values[1901] = f64::NEG_INFINITY;
    let mut sorted = values.clone();
    sorted.sort_unstable_by(|a, b| b.partial_cmp(a).unwrap());
    let sample: Vec<f64> = values.iter().step_by(7).copied().collect();
    for rank in [1, 2, 700, 9_000, 9_800, 10_400, 11_000, 20_010, 20_011] {
        // With counters alone, with room for hardly all that lie in the window, and for more than enough.
        for (bins, room) in [(1024, 0), (1 << 16, 0), (1024, 1500), (1024, 1 << 20)] {
            for sample in [None, Some(&sample), Some(&values)] {
                let mut s = Selection::of_scores(7, bins, room);
                s.set_rank(rank);
                if let Some(sample) = sample {
                    s.propose(sample, values.len() as u64);
                }
                let mut scans = 0;
                while s.cut().is_none() {
                    let mut tally = s.tally();
                    for chunk in values.chunks(1000) {
                        s.count_scores(Level::choose(), chunk, &mut tally);
                    }
                    assert!(tally.score_keys.len() <= room, "more than there is room for");
                    s.learn(&mut tally);
                    scans += 1;
                    assert!(scans < 40, "no end");
                }
                let cut = s.cut().unwrap();
                let threshold = f64::from_bits(cut.threshold);
                assert_eq!(threshold, sorted[rank as usize - 1], "rank {rank}");
                let above = sorted.iter().filter(|v| **v > threshold).count() as u64;
                let ties = sorted.iter().filter(|v| **v == threshold).count() as u64;
                assert_eq!((cut.ties, cut.kept_ties), (ties, rank - above), "rank {rank}");
            }
        }
    }
}

#[test]
fn nan_counts_as_largest() {
    let mut values = noise(1000, false);
    values[500] = f64::NAN;
    assert!(f64::from_bits(search(&values, 1, 1024, false, None).0.threshold).is_nan());
}
