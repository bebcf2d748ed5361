//! PCB's scores where few of them matter: a rough score tells at a fraction of the cost that an element is clearly
//! below the bound, and exact ones are computed for the others, brought together.

use super::element::{Rival, add_scaled, compete};
use super::elementary::rough_exp;
use super::level::{Level, kernel};
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

/// The elements of a chunk whose scores matter.
#[derive(Debug, Default)]
pub struct Picked {
    at: Vec<u32>,
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
        let most = values.len();
        if self.at.len() < most {
            self.at.resize(most, 0);
            for buffer in [&mut self.values, &mut self.totals, &mut self.scores, &mut self.shares] {
                buffer.resize(most, 0.0);
            }
        }
        let (len, above) =
            pick(level, values, total, rival, bounds, &mut self.at, &mut self.values, &mut self.totals);
        self.len = len;
        above
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
        for ((at, scaled), own) in self.at.iter().zip(scaled).zip(shares) {
            mix[*at as usize] += *scaled;
            share[*at as usize] += *own;
        }
    }
}

kernel! {
    /// Puts the elements whose scores are, or may be, within the bounds into `at`, `picked` and `picked_totals`. Returns
    /// how many these are, and how many others are above.
    fn pick(
        values: &[f64], total: &[f64], rival: Rival, bounds: Bounds,
        at: &mut [u32], picked: &mut [f64], picked_totals: &mut [f64],
    ) -> (usize, u64) {
        // In f32: these are twice as many at a time.
        let [low, high, count] = [rival.low, rival.high, rival.count].map(|v| v as f32);
        let [least_score, enough, peak] = [bounds.low, bounds.high, bounds.peak].map(|v| v as f32);
        let width = (rival.high - rival.low) as f32;
        let (by, plus) = if width > 0.0 { (1.0 / width, 0.0) } else { (0.0, 1.0) };
        let (mut len, mut above) = (0, 0);
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
                let rough = rough_exp(count * (m * m - 1.0)) * product;
                let (most, least) = (rough * (1.0 + DOUBT), rough * (1.0 - DOUBT));
                let known = product <= REACH;
                let below = known & (most < least_score);
                let over = known & (least >= enough) & (most <= peak);
                marks[i] = if below | over { 0 } else { BITS[i] };
                sure += u32::from(over);
            }
            let mut inside = 0;
            for mark in marks {
                inside |= mark;
            }
            above += u64::from(sure);
            while inside != 0 {
                let i = inside.trailing_zeros() as usize;
                (at[len], picked[len], picked_totals[len]) = ((row * ROW + i) as u32, v[i], t[i]);
                len += 1;
                inside &= inside - 1;
            }
        }
        for (i, (v, t)) in v_tail.iter().zip(t_tail).enumerate() {
            (at[len], picked[len], picked_totals[len]) = ((vs.len() * ROW + i) as u32, *v, *t);
            len += 1;
        }
        (len, above)
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
