//! All numbers of PCB between two experts by one scan: what a sample makes of it, and what is learnt from what it finds.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crate::kernel::candidates::{self, BLOCK, Candidates, Finder, Guess, Line};
use crate::kernel::element::{self, Rival};
use crate::kernel::elementary::{exp, ln, tanh};
use crate::kernel::select::{Selection, deviation};
use crate::kernel::{CHUNK, Level};

/// How far the largest magnitude of a sample may lie below the end of the range, as a factor.
const BEYOND: f64 = 1.25;
/// Where the lower end is a larger share of the upper one, the parabola that ignores it tells too little.
const MOST_BOTTOM: f64 = 1.0 / 1024.0;
/// Octaves by which the rounding of a logarithm may move it.
const LAST_BITS: f64 = 1e-6;

/// What is looked for in a scope.
#[derive(Debug, Clone, Copy)]
pub struct Aim {
    /// SIMD level.
    pub level: Level,
    /// Number of elements.
    pub elements: u64,
    /// Number of elements that are clipped at either end.
    pub clipped: u64,
    /// Rank of the score from which on elements are kept.
    pub rank: u64,
    /// Most candidates of an expert.
    pub room: usize,
}

/// What a scan learnt of an expert, as far as the sample was right.
pub struct Settled {
    /// Least and largest magnitude.
    pub range: Option<(f64, f64)>,
    /// Threshold and largest of the scores.
    pub scores: Option<(f64, f64)>,
}

/// The guesses for two experts, unless there would be too many candidates.
pub fn guess(aim: &Aim, deltas: [&[f64]; 2], totals: &[f64], cuts: [&Selection; 2]) -> Option<[Guess; 2]> {
    let [first, second] = [0, 1].map(|at| guess_one(aim, deltas[at], totals, cuts[at]));
    let guesses = [first?, second?];
    let narrow = deltas.map(|deltas| deltas.iter().map(|delta| *delta as f32).collect::<Vec<f32>>());
    let zeros = [0.0; CHUNK];
    let mut found = [0, 1].map(|_| Candidates::new(&Arc::new(AtomicUsize::new(0)), usize::MAX));
    let mut finder = Finder::default();
    for (x, y) in narrow[0].chunks(CHUNK).zip(narrow[1].chunks(CHUNK)) {
        let none = &zeros[..x.len()];
        finder.find(aim.level, [x, none, y, none], &guesses, &mut found);
    }
    let of_all = 1.5 * aim.elements as f64 / totals.len() as f64;
    found.iter().all(|found| found.count() as f64 * of_all < aim.room as f64).then_some(guesses)
}

fn guess_one(aim: &Aim, deltas: &[f64], totals: &[f64], cut: &Selection) -> Option<Guess> {
    let (bottom, top, end) = ends(aim, deltas)?;
    let [gentle, steep] = [(0.0, end), (f64::from(bottom), f64::from(top))].map(|(low, high)| Rival {
        low,
        high,
        count: 2.0,
        cut: 0.0,
        peak: 0.0,
    });
    let mut scores = vec![0.0; deltas.len()];
    let mut line = |rival: &Rival| {
        element::compete(aim.level, deltas, totals, *rival, &mut scores);
        let mut cut = cut.clone();
        cut.propose(&scores, aim.elements);
        let (least, enough) = cut.window();
        let enough = if enough < f64::INFINITY { rival.height(enough) } else { f64::INFINITY };
        rival.is_told_by_bits(least).then(|| Line {
            slope: rival.slope(),
            least: rival.height(least),
            enough,
        })
    };
    let lines = [line(&gentle)?, line(&steep)?];
    let (highest, _) = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1))?;
    let above = deltas[highest].abs().min(f64::from(top)) - f64::from(bottom);
    let product = ln(tanh(deltas[highest] * totals[highest])) / std::f64::consts::LN_2;
    let peak = gentle.slope() * above * above + product - LAST_BITS;
    Some(Guess { lines, bottom, top, peak })
}

/// A magnitude that the least one will not exceed, one that the largest will reach, and one that it will not exceed.
fn ends(aim: &Aim, deltas: &[f64]) -> Option<(f32, f32, f64)> {
    let bits = |delta: &f64| (*delta as f32).abs().to_bits();
    let mut sizes: Vec<u32> = deltas.iter().map(bits).collect();
    let expected = (aim.clipped + 1) as f64 / aim.elements as f64 * sizes.len() as f64;
    let reach = |value: u32, sure: f64| {
        let runs = deviation(deltas, |delta| bits(&delta) > value);
        (expected + sure * expected.max(1.0).sqrt().max(runs) + 1.0).ceil() as usize
    };
    let last = sizes.len() - 1;
    let usual = |at: usize| (expected + 3.0 * expected.max(1.0).sqrt()) as usize + at;
    let (_, near, _) = sizes.select_nth_unstable(last.checked_sub(usual(1))?);
    let near = *near;
    let (_, top, above) = sizes.select_nth_unstable(last.checked_sub(reach(near, 3.0))?);
    let top = *top;
    let spare = (expected - 2.0 * expected.max(1.0).sqrt()).floor();
    above.sort_unstable();
    let of = |bits: u32| f64::from(f32::from_bits(bits));
    let end = if spare >= 1.0 && (spare as usize) < above.len() {
        of(above[above.len() - spare as usize])
    } else {
        of(*above.last()?) * BEYOND
    };
    let zeros = sizes.iter().filter(|size| **size == 0).count();
    let bottom =
        if zeros > usual(8) { 0.0 } else { f32::from_bits(*sizes.select_nth_unstable(usual(2).min(last)).1) };
    let top = f32::from_bits(top);
    (f64::from(bottom) <= MOST_BOTTOM * f64::from(top)).then_some((bottom, top, end))
}

/// Learns from the candidates of expert `at`.
pub fn settle(aim: &Aim, at: usize, found: Candidates, guess: &Guess) -> Settled {
    let mut settled = Settled { range: None, scores: None };
    if found.is_full() {
        return settled;
    }
    settled.range = range(aim, at, &found, guess);
    if let Some((low, high)) = settled.range {
        let rival = Rival { low, high, count: 2.0, cut: 0.0, peak: 0.0 };
        settled.scores = scores(aim, at, found, guess, &rival);
    }
    settled
}

/// The magnitudes at which elements are clipped, if both are among the candidates.
fn range(aim: &Aim, at: usize, found: &Candidates, guess: &Guess) -> Option<(f64, f64)> {
    let (mut small, mut large) = (Vec::new(), Vec::new());
    for block in found.blocks() {
        for (own, other) in block[at].iter().zip(&block[1 - at]) {
            let finite = own.is_finite() & other.is_finite();
            let size = if finite { own.abs() } else { 0.0 };
            if size <= guess.bottom {
                small.push(size.to_bits());
            } else if size >= guess.top {
                large.push(size.to_bits());
            }
        }
    }
    let clipped = aim.clipped as usize;
    let of = |bits: u32| f64::from(f32::from_bits(bits));
    let high = large.len().checked_sub(1 + clipped)?;
    let high = of(*large.select_nth_unstable(high).1);
    let low = match clipped.checked_sub(found.zeros as usize) {
        None => 0.0,
        Some(at) if at < small.len() => of(*small.select_nth_unstable(at).1),
        Some(_) => return None,
    };
    Some((low, high))
}

/// Threshold and largest of the scores, if all that matters for them is among the candidates.
fn scores(aim: &Aim, at: usize, found: Candidates, guess: &Guess, rival: &Rival) -> Option<(f64, f64)> {
    let line = guess.line(rival.slope())?;
    let of = |height: f64| exp((height - rival.rise()) * std::f64::consts::LN_2);
    let mut cut = Selection::of_scores_between(aim.rank, of(line.least), of(line.enough));
    let (mut tally, mut peak) = (cut.tally(), f64::NEG_INFINITY);
    tally.add_above(found.above);
    let [mut deltas, mut totals, mut scores] = [(); 3].map(|()| vec![0.0; BLOCK]);
    for block in found.into_blocks() {
        let len = block[at].len();
        candidates::clean(aim.level, &block[at], &block[1 - at], &mut deltas, &mut totals);
        let scores = &mut scores[..len];
        element::compete(aim.level, &deltas[..len], &totals[..len], *rival, scores);
        cut.count_scores(aim.level, scores, &mut tally);
        peak = peak.max(element::greatest(aim.level, scores));
    }
    // Where the rank lies elsewhere, another window is all that is learnt.
    cut.learn(&mut tally);
    let cut = f64::from_bits(cut.cut()?.threshold);
    (rival.height(peak) >= guess.peak).then_some((cut, peak))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Deltas of one of two experts: heavy tails, some zeros where `zeros`.
    fn deltas(n: usize, seed: u64, zeros: bool) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let u = (state >> 11) as f32 / (1u64 << 53) as f32 * 2.0 - 1.0;
                if zeros && state >> 40 & 7 == 0 { 0.0 } else { 1e-3 * u / (1.02 - u * u) }
            })
            .collect()
    }

    struct Case {
        experts: [Vec<f32>; 2],
        aim: Aim,
    }

    impl Case {
        fn new(level: Level, n: usize, zeros: bool, clip: f64, ratio: f64) -> Self {
            let mut experts = [deltas(n, 1, zeros), deltas(n, 2, zeros)];
            (experts[0][5], experts[1][7], experts[0][9]) = (f32::NAN, f32::INFINITY, 0.0);
            experts[1][9] = f32::NAN;
            if clip > 0.0 {
                (experts[0][11], experts[1][11]) = (f32::MAX, f32::MAX);
            }
            let (elements, clipped) = (n as u64, (clip * n as f64) as u64);
            let rank = (ratio * n as f64) as u64;
            Self { experts, aim: Aim { level, elements, clipped, rank, room: n / 8 } }
        }

        /// The deltas at some elements, and their sums.
        fn cleaned(&self, elements: impl Iterator<Item = usize>) -> ([Vec<f64>; 2], Vec<f64>) {
            let elements: Vec<usize> = elements.collect();
            let narrow = [0, 1].map(|at| elements.iter().map(|i| self.experts[at][*i]).collect::<Vec<_>>());
            let (mut deltas, mut totals) =
                ([0, 1].map(|_| vec![0.0; elements.len()]), vec![0.0; elements.len()]);
            for (at, deltas) in deltas.iter_mut().enumerate() {
                candidates::clean(self.aim.level, &narrow[at], &narrow[1 - at], deltas, &mut totals);
            }
            (deltas, totals)
        }

        fn guess(&self, elements: impl Iterator<Item = usize>) -> Option<[Guess; 2]> {
            let ([first, second], totals) = self.cleaned(elements);
            let cut = Selection::of_scores(self.aim.rank, 1024, 0);
            guess(&self.aim, [&first, &second], &totals, [&cut, &cut])
        }

        /// What a scan by two workers learns.
        fn learn(&self, guesses: &[Guess; 2]) -> [Settled; 2] {
            let written = [0, 1].map(|_| Arc::new(AtomicUsize::new(0)));
            let found = || written.each_ref().map(|w| Candidates::new(w, self.aim.room));
            let (mut finder, zeros, mut workers) = (Finder::default(), [0.0; CHUNK], [found(), found()]);
            for (at, (x, y)) in self.experts[0].chunks(CHUNK).zip(self.experts[1].chunks(CHUNK)).enumerate() {
                let none = &zeros[..x.len()];
                finder.find(self.aim.level, [x, none, y, none], guesses, &mut workers[at % 2]);
            }
            let [mut all, others] = workers;
            all.iter_mut().zip(others).for_each(|(all, other)| all.merge(other));
            let mut at = 0;
            all.map(|found| {
                at += 1;
                settle(&self.aim, at - 1, found, &guesses[at - 1])
            })
        }

        /// The same by sorting.
        fn sorted(&self, at: usize) -> [(f64, f64); 2] {
            let (deltas, totals) = self.cleaned(0..self.experts[0].len());
            let mut sizes: Vec<f64> = deltas[at].iter().map(|d| d.abs()).collect();
            sizes.sort_unstable_by(f64::total_cmp);
            let clipped = self.aim.clipped as usize;
            let (low, high) = (sizes[clipped], sizes[sizes.len() - 1 - clipped]);
            let rival = Rival { low, high, count: 2.0, cut: 0.0, peak: 0.0 };
            let mut scores: Vec<f64> =
                deltas[at].iter().zip(&totals).map(|(d, t)| rival.score(*d, *t)).collect();
            scores.sort_unstable_by(f64::total_cmp);
            [(low, high), (scores[scores.len() - self.aim.rank as usize], scores[scores.len() - 1])]
        }
    }

    #[test]
    fn one_scan_learns_what_sorting_finds() {
        for level in Level::available() {
            for (zeros, clip, ratio) in
                [(true, 1e-4, 0.1), (false, 1e-4, 0.1), (true, 0.01, 0.02), (true, 0.0, 0.2)]
            {
                let case = Case::new(level, 300_007, zeros, clip, ratio);
                let guesses = case.guess((0..300_007).step_by(9)).expect("few candidates");
                for (at, settled) in case.learn(&guesses).into_iter().enumerate() {
                    let [range, scores] = case.sorted(at);
                    assert_eq!(settled.range, Some(range), "{zeros} {clip} {ratio}");
                    assert_eq!(settled.scores, Some(scores), "{zeros} {clip} {ratio}");
                }
            }
        }
    }

    #[test]
    fn a_wrong_guess_is_never_believed() {
        let case = Case::new(Level::choose(), 300_007, true, 1e-4, 0.1);
        let right = case.guess((0..300_007).step_by(9)).expect("few candidates");
        let changes: [fn(&mut Guess); 7] = [
            |guess| {
                guess.lines.iter_mut().for_each(|l| (l.least, l.enough) = (l.least + 0.5, l.enough + 0.5))
            },
            |guess| {
                guess.lines.iter_mut().for_each(|l| (l.least, l.enough) = (l.least - 0.5, l.enough - 0.5))
            },
            |guess| guess.lines.iter_mut().for_each(|l| l.slope *= 2.0),
            |guess| guess.lines.iter_mut().for_each(|l| l.slope *= 0.25),
            |guess| guess.top *= 2.0,
            |guess| guess.peak += 40.0,
            |guess| guess.lines.swap(0, 1),
        ];
        for (which, change) in changes.into_iter().enumerate() {
            let mut guesses = right;
            guesses.iter_mut().for_each(change);
            for (at, settled) in case.learn(&guesses).into_iter().enumerate() {
                let [range, scores] = case.sorted(at);
                assert!(settled.range.is_none_or(|got| got == range), "change {which}");
                assert!(settled.scores.is_none_or(|got| got == scores), "change {which}");
                assert!(settled.scores.is_none(), "change {which} went unnoticed");
            }
        }
        let crowded = Case { aim: Aim { room: 500, ..case.aim }, ..case };
        assert!(crowded.guess((0..300_007).step_by(9)).is_none(), "more than there is room for");
        assert!(crowded.learn(&right).iter().all(|settled| settled.range.is_none()));
    }
}
