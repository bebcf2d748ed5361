//! Where the thresholds of two experts lie, by a sample: then one scan finds what two would. What lies too near to a
//! threshold is written down until the threshold is known. A wrong guess is noticed, and costs the scan.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::SurveySettings;
use super::cuts::{Cut, Keys};
use crate::exec::job::Chunk;
use crate::kernel::Level;
use crate::kernel::lanes::{self, Lanes};
use crate::kernel::select::{RUN, deviation};
use crate::kernel::stats::{self, Above, BINS, Found, KEYS, KeyCounts, Limits, NearCounts, Open};
use crate::plan::PlannedTensor;
use crate::report::conflicts::TOP;

/// Elements that a sample takes together.
pub const TAKEN: u64 = 2 * RUN as u64;
/// How often it does so, at least: in each tile and in all.
const OF_TILE: u64 = 2;
const OF_ALL: u64 = 128;
/// Standard deviations by which a sample may be wrong.
const SURE: f64 = 4.0;
/// Most numbers that are written down.
const ROOM: usize = 3 << 22;

/// Whether a sample of a tensor would spare a scan: tensors of one tile have all scans while they are in the cache.
pub fn helps(experts: usize, tensor: &PlannedTensor) -> bool {
    experts == 2 && tensor.tiles() > 1 && !tensor.wide && tensor.sources.iter().all(|s| s.change.is_none())
}

/// Most bytes of what is written down of a tensor of so many elements, with what lists that grow have to spare.
pub fn bytes(elements: u64) -> u64 {
    2 * (ROOM as u64).min(2 * elements) * size_of::<f32>() as u64
}

/// Where a sample takes elements of a tile, one of so many.
pub fn places(tile: &Range<u64>, tiles: u64) -> impl Iterator<Item = u64> {
    let (first, len) = (tile.start, tile.end - tile.start);
    let places = OF_TILE.max(OF_ALL.div_ceil(tiles)).min(len / TAKEN);
    (0..places).map(move |place| first + place * (len / places))
}

/// Keys of some elements: of both experts' deltas, and of the base.
#[derive(Default)]
pub struct Sample {
    level: Option<Level>,
    /// By the first element of each place.
    places: Vec<(u64, [Vec<u32>; 3])>,
}

impl Sample {
    /// Takes neighbours.
    pub fn take(&mut self, chunk: &mut Chunk<'_>) {
        let (base, len) = (&chunk.values[0], chunk.len);
        let mut keys = [(); 3].map(|()| Vec::with_capacity(len));
        let narrow = &mut chunk.scratch.narrow;
        narrow.resize(len.max(narrow.len()), 0.0);
        for (at, keys) in keys.iter_mut().enumerate().take(2) {
            let _ = chunk.values[at + 1].deltas(chunk.level, base, &mut narrow[..len]);
            keys.extend(narrow[..len].iter().map(|delta| stats::key(f64::from(*delta)) as u32));
        }
        keys[2].extend(base.to_f64().iter().map(|value| stats::key(*value) as u32));
        self.level = Some(chunk.level);
        self.places.push((chunk.first, keys));
    }

    /// Adds what others took.
    pub fn merge(&mut self, other: Self) {
        self.level = self.level.or(other.level);
        self.places.extend(other.places);
    }

    /// The keys of each, in order.
    fn keys(mut self) -> [Vec<u32>; 3] {
        self.places.sort_unstable_by_key(|(first, _)| *first);
        let mut all = [(); 3].map(|()| Vec::new());
        for (_, keys) in self.places {
            all.iter_mut().zip(keys).for_each(|(all, keys)| all.extend(keys));
        }
        all
    }
}

/// The first and the last key that a threshold may have.
type Span = [usize; 2];

/// What a scan may rely on.
pub struct Guess {
    level: Level,
    /// Of the cuts of each expert.
    cuts: [[Span; 3]; 2],
    /// Of the largest of the base's smallest weights, and one past the last that it may have.
    below: Span,
    limits: Limits,
    /// How many deltas of each expert in the sample have each key.
    sampled: [Vec<u32>; 2],
    /// Numbers that all workers have written down.
    written: Arc<AtomicUsize>,
}

impl Guess {
    /// By a sample of so many elements, unless too much would be open.
    pub fn of(sample: Sample, elements: u64, settings: &SurveySettings) -> Option<Self> {
        let level = sample.level?;
        let keys = sample.keys();
        let counted = keys.each_ref().map(|keys| Counted::of(keys));
        let cuts = [0, 1].map(|e| [TOP[0], TOP[1], settings.density].map(|share| counted[e].range(share)));
        let cuts = cuts.map(|cuts| cuts.map(|range| range.map(|key| key.clamp(1, KEYS - 2))));
        let [first, last] = counted[2].range(1.0 - settings.low);
        let below = [first.max(1), (last + 1).min(KEYS - 1)];
        let inside = |[first, last]: &Span, counted: &Counted| match first == last {
            true => 0.0,
            false => counted.between(*first, *last + 1),
        };
        let of_expert = |e: usize| cuts[e].iter().map(|range| inside(range, &counted[e])).sum::<f64>();
        let open = 2.0 * (of_expert(0) + of_expert(1));
        let limits = Limits::of_keys(cuts, below);
        let fits = 1.25 * open * (elements as f64) < ROOM as f64;
        let sampled = counted.map(|counted| counted.counts);
        let [a, b, _] = sampled;
        fits.then(|| Self { level, cuts, below, limits, sampled: [a, b], written: Arc::default() })
    }

    /// The magnitudes that the scan tells apart.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Room for what a worker writes down.
    pub fn opened(&self) -> Opened {
        let keys = self.cuts.map(|cuts| {
            let [first, last] = cuts.into_iter().fold([KEYS, 0], |a, b| [a[0].min(b[0]), a[1].max(b[1])]);
            KeyCounts::between(first, last + 1)
        });
        let now = Open::between(self.below[0], self.below[1]);
        Opened { level: self.level, now, keys, written: Arc::clone(&self.written), ..Opened::default() }
    }

    /// What the open elements add, if all thresholds are where they were expected. `bins` are how many deltas of each expert
    /// lie in each power of two.
    pub fn settle(&self, known: &Known, opened: Opened, bins: &[&mut [i64]; 2]) -> Option<Settled> {
        if opened.is_full() {
            return None;
        }
        let (smallest, changed) = self.settle_base(&opened.now.near, known.smallest, known.wanted)?;
        let [first, second] = &opened.keys;
        let cuts = [self.cuts_of(0, known, first)?, self.cuts_of(1, known, second)?];
        let tiles = opened.pairs();
        let least = cuts.map(|cuts| cuts.map(|cut| stats::narrow_edge(cut.key)));
        let (mut found, mut sums) = (Found::default(), [Lanes::default(); 8]);
        for [first, second] in &tiles {
            found.add(&stats::settle(self.level, [first, second], least, &mut sums));
        }
        let keys = [0, 1].map(|e| self.spread(e, bins[e])).into();
        Some(Settled { found, changed, smallest, sums: sums.map(|sums| lanes::total(&sums)), cuts, keys })
    }

    /// The cuts of an expert, where they were expected.
    fn cuts_of(&self, expert: usize, known: &Known, open: &KeyCounts) -> Option<[Cut; 3]> {
        let of = |cut: usize| {
            let ([first, last], rank) = (self.cuts[expert][cut], known.ranks[cut]);
            let [all, mut count] = known.above[expert][cut];
            let found = |key, count, reached| Some(Cut { key, count, rank, reached });
            match all < rank {
                // There are only zeros left.
                true if first == 1 => found(1, all, false),
                false if first == last && count < rank => found(first, all, true),
                false if count < rank => (first..=last).rev().find_map(|key| {
                    count += open.of(key);
                    (count >= rank).then_some(Cut { key, count, rank, reached: true })
                }),
                _ => None,
            }
        };
        Some([of(0)?, of(1)?, of(2)?])
    }

    /// How many deltas of an expert have each key: as many as there are in each power of two, spread as in the sample.
    fn spread(&self, expert: usize, bins: &[i64]) -> Keys {
        let mut keys = vec![0; KEYS];
        let spread = keys.chunks_mut(KEYS / BINS).zip(self.sampled[expert].chunks(KEYS / BINS));
        for ((keys, sampled), count) in spread.zip(bins).filter(|(_, count)| **count > 0) {
            let all: i64 = sampled.iter().map(|s| i64::from(*s)).sum();
            let (mut before, mut given) = (0, 0);
            for (key, sampled) in keys.iter_mut().zip(sampled) {
                before += i64::from(*sampled);
                let until = if all > 0 {
                    (i128::from(*count) * i128::from(before) / i128::from(all)) as i64
                } else {
                    *count
                };
                *key = until - given;
                given = until;
            }
        }
        Keys::of(&keys)
    }

    /// How many base weights are the smallest, and how many of those that had to be counted by keys each expert changed.
    fn settle_base(&self, near: &NearCounts, mut smallest: u64, wanted: u64) -> Option<(u64, [u64; 2])> {
        let keys = near.each()?;
        if smallest >= wanted {
            return (self.below[0] == 1).then_some((smallest, [0; 2]));
        }
        let mut changed = [0; 2];
        for [all, a, b] in keys {
            smallest += all;
            changed = [changed[0] + a, changed[1] + b];
            if smallest >= wanted {
                return Some((smallest, changed));
            }
        }
        None
    }
}

/// What open elements add to what a scan found.
pub struct Settled {
    /// Counts of what is beyond thresholds.
    pub found: Found,
    /// Elements with a small base weight that each expert changed.
    pub changed: [u64; 2],
    /// The base's smallest weights.
    pub smallest: u64,
    /// Sums of what is beyond thresholds.
    pub sums: [f64; 8],
    /// Where thresholds are.
    pub cuts: [[Cut; 3]; 2],
    /// The keys of each expert's deltas: within a power of two as in the sample.
    pub keys: Vec<Keys>,
}

/// What a scan counted.
pub struct Known {
    /// Base weights that are among the smallest for certain, …
    pub smallest: u64,
    /// … of how many that are wanted.
    pub wanted: u64,
    /// Deltas that reach limits.
    pub above: Above,
    /// How many elements each cut is of.
    pub ranks: [u64; 3],
}

/// What is written down by workers.
#[derive(Default)]
pub struct Opened {
    /// Of the tile in work.
    now: Open,
    /// How many numbers of it are in `written`.
    noted: usize,
    /// Of each tile.
    tiles: Vec<(u64, [Vec<f32>; 2])>,
    /// How many deltas of each expert in them have each key.
    keys: [KeyCounts; 2],
    written: Arc<AtomicUsize>,
    level: Level,
}

impl Opened {
    /// For the next chunk.
    pub fn open(&mut self) -> &mut Open {
        &mut self.now
    }

    /// Counts what a chunk has left, and forgets everything if there is too much.
    pub fn note(&mut self) {
        let held = 2 * self.now.count();
        self.written.fetch_add(held - self.noted, Ordering::Relaxed);
        self.noted = held;
        if self.is_full() {
            (self.now, self.tiles, self.noted) = (Open::default(), Vec::new(), 0);
        }
    }

    /// Ends a tile.
    pub fn close_tile(&mut self, ordinal: u64) {
        if self.now.count() > 0 {
            let pairs = self.now.take_pairs();
            self.keys.iter_mut().zip(&pairs).for_each(|(keys, deltas)| keys.add(self.level, deltas));
            self.tiles.push((ordinal, pairs));
        }
        self.noted = 0;
    }

    /// Adds what another worker wrote down.
    pub fn merge(&mut self, other: Self) {
        self.now.near.merge(&other.now.near);
        self.tiles.extend(other.tiles);
        self.keys.iter_mut().zip(&other.keys).for_each(|(keys, others)| keys.merge(others));
    }

    fn is_full(&self) -> bool {
        self.written.load(Ordering::Relaxed) > ROOM
    }

    /// The pairs of each tile in order, so that sums do not depend on who wrote them down.
    fn pairs(mut self) -> Vec<[Vec<f32>; 2]> {
        self.tiles.sort_unstable_by_key(|(ordinal, _)| *ordinal);
        self.tiles.into_iter().map(|(_, pairs)| pairs).collect()
    }
}

/// Keys of a sample, and how many have each.
struct Counted<'a> {
    keys: &'a [u32],
    counts: Vec<u32>,
    /// How many are at least each.
    reach: Vec<u32>,
}

impl<'a> Counted<'a> {
    fn of(keys: &'a [u32]) -> Self {
        let mut counts = vec![0; KEYS];
        keys.iter().for_each(|key| counts[*key as usize] += 1);
        let mut reach = counts.clone();
        for key in (1..KEYS).rev() {
            reach[key - 1] += reach[key];
        }
        Self { keys, counts, reach }
    }

    /// The first and the last key that the smallest of a share of the largest may have.
    fn range(&self, share: f64) -> Span {
        let len = self.keys.len() as f64;
        let expected = share * len;
        let middle = self.ranked(expected) as u32;
        let runs = deviation(self.keys, |key| key > middle);
        let margin = SURE * (expected * (1.0 - share)).max(1.0).sqrt().max(runs) + 1.0;
        let last = if expected < margin { KEYS - 1 } else { self.ranked(expected - margin) };
        [self.ranked(expected + margin), last]
    }

    /// The key of this rank from the largest.
    fn ranked(&self, rank: f64) -> usize {
        self.reach.partition_point(|reach| f64::from(*reach) >= rank.max(1.0)).saturating_sub(1)
    }

    /// The share of keys from one up to another.
    fn between(&self, first: usize, end: usize) -> f64 {
        let count: u32 = self.counts[first..end].iter().sum();
        f64::from(count) / self.keys.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::stats::{BINS, Seen, Thresholds, Trio};

    /// A base and two experts: normal deltas, some of them zeros, in steps if `stepped` as those of bf16 are.
    fn drawn(n: usize, stepped: bool) -> [Vec<f32>; 3] {
        let mut state = 7u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f32 / (1u64 << 53) as f32
        };
        let mut normal = |scale: f32| ((0..12).map(|_| uniform()).sum::<f32>() - 6.0) * scale;
        let step = if stepped { 2f32.powi(-12) } else { 2f32.powi(-30) };
        let base: Vec<f32> = (0..n).map(|_| (normal(0.02) / step).round() * step).collect();
        let mut expert = || {
            let mut delta =
                |i: usize| if i.is_multiple_of(5) { 0.0 } else { (normal(1e-3) / step).round() * step };
            base.iter().enumerate().map(|(i, b)| b + delta(i)).collect::<Vec<f32>>()
        };
        let experts = [expert(), expert()];
        let [x, y] = experts;
        [base, x, y]
    }

    fn magnitudes([base, x, y]: &[Vec<f32>; 3]) -> [Vec<f32>; 3] {
        let of = |e: &Vec<f32>| e.iter().zip(base).map(|(e, b)| (e - b).abs()).collect();
        [of(x), of(y), base.iter().map(|b| b.abs()).collect()]
    }

    fn sample(drawn: &[Vec<f32>; 3], every: usize) -> Sample {
        let sizes = magnitudes(drawn);
        let runs = (0..sizes[0].len() / RUN).step_by(every);
        let keys = |sizes: &[f32], at: usize| {
            sizes[at * RUN..][..RUN].iter().map(|size| stats::key(f64::from(*size)) as u32).collect()
        };
        let places = runs.map(|at| (at as u64, sizes.each_ref().map(|sizes| keys(sizes, at)))).collect();
        Sample { level: Some(Level::choose()), places }
    }

    /// What a scan by two workers settles.
    fn settle(drawn: &[Vec<f32>; 3], guess: &Guess, settings: &SurveySettings) -> Option<Settled> {
        let [base, x, y] = drawn;
        let (mut workers, mut seen) = ([guess.opened(), guess.opened()], Seen::default());
        let (mut lanes, mut bins) = ([Lanes::default(); 24], [[0; BINS]; 2]);
        let thresholds = Thresholds { epsilon: settings.epsilon, relative: settings.relative };
        let (mut smallest, mut above) = (0, Above::default());
        for (at, ((x, y), base)) in x.chunks(1024).zip(y.chunks(1024)).zip(base.chunks(1024)).enumerate() {
            let opened = &mut workers[at / 8 % 2];
            let (trio, [first, second]) = (Trio::Decoded([base, x, y], false), &mut bins);
            let (limits, open) = (guess.limits(), opened.open());
            let bins = [&mut first[..], &mut second[..]];
            let found =
                stats::glance(guess.level, trio, thresholds, limits, bins, &mut seen, &mut lanes, open);
            opened.note();
            opened.close_tile(at as u64);
            smallest += found.smallest;
            let counts = above.as_flattened_mut().as_flattened_mut().iter_mut();
            counts.zip(found.above.as_flattened().as_flattened()).for_each(|(all, more)| *all += more);
        }
        let [mut all, other] = workers;
        all.merge(other);
        let n = base.len() as u64;
        let rank = |share: f64| (share * n as f64).ceil() as u64;
        let ranks = [TOP[0], TOP[1], settings.density].map(rank);
        let known = Known { smallest, wanted: rank(settings.low), above, ranks };
        let [first, second] = &mut bins;
        guess.settle(&known, all, &[&mut first[..], &mut second[..]])
    }

    /// The cuts' keys and counts, and the number of the base's smallest, by sorting.
    fn sorted(drawn: &[Vec<f32>; 3], settings: &SurveySettings) -> ([[(usize, u64); 3]; 2], u64) {
        let keys = magnitudes(drawn).map(|sizes| {
            let mut keys: Vec<usize> = sizes.iter().map(|size| stats::key(f64::from(*size))).collect();
            keys.sort_unstable();
            keys
        });
        let n = keys[0].len();
        let rank = |share: f64| (share * n as f64).ceil() as usize;
        let cut = |keys: &[usize], share: f64| {
            let key = keys[n - rank(share)].max(1);
            (key, keys.iter().filter(|k| **k >= key).count() as u64)
        };
        let cuts = [0, 1].map(|e| [TOP[0], TOP[1], settings.density].map(|share| cut(&keys[e], share)));
        let last = keys[2][rank(settings.low) - 1];
        (cuts, keys[2].iter().filter(|k| **k <= last).count() as u64)
    }

    #[test]
    fn one_scan_finds_what_sorting_finds() {
        for (stepped, density, low) in
            [(false, 0.2, 0.3), (true, 0.2, 0.3), (true, 0.9, 0.01), (false, 1.0, 1.0)]
        {
            let settings = SurveySettings { density, low, ..SurveySettings::default() };
            let drawn = drawn(300_007, stepped);
            let guess = Guess::of(sample(&drawn, 9), 300_007, &settings).expect("little is open");
            let settled = settle(&drawn, &guess, &settings).expect("a right guess");
            let (cuts, smallest) = sorted(&drawn, &settings);
            assert_eq!(settled.cuts.map(|cuts| cuts.map(|cut| (cut.key, cut.count))), cuts, "{stepped}");
            assert_eq!(settled.smallest, smallest, "{stepped}");
        }
    }

    #[test]
    fn a_wrong_guess_is_never_believed() {
        let (settings, drawn) = (SurveySettings::default(), drawn(300_007, true));
        let right = || Guess::of(sample(&drawn, 9), 300_007, &settings).expect("little is open");
        assert!(settle(&drawn, &right(), &settings).is_some());
        for wrong in 0..16 {
            let mut guess = right();
            let shift = |span: Span| {
                if wrong % 2 == 0 { [span[1] + 9, span[1] + 40] } else { [span[0] - 40, span[0] - 9] }
            };
            match wrong / 2 {
                7 => guess.below = shift(guess.below),
                at @ 0..=5 => guess.cuts[at / 3][at % 3] = shift(guess.cuts[at / 3][at % 3]),
                _ => guess.cuts = guess.cuts.map(|cuts| cuts.map(shift)),
            }
            guess.limits = Limits::of_keys(guess.cuts, guess.below);
            assert!(settle(&drawn, &guess, &settings).is_none(), "{wrong}");
        }
    }

    #[test]
    fn what_would_be_written_down_has_bounds() {
        let drawn = drawn(300_007, false);
        let settings = SurveySettings::default();
        assert!(Guess::of(sample(&drawn, 9), 1 << 40, &settings).is_none());
        let guess = Guess::of(sample(&drawn, 9), 300_007, &settings).expect("little is open");
        guess.written.fetch_add(ROOM + 1, Ordering::Relaxed);
        assert!(settle(&drawn, &guess, &settings).is_none());
    }

    #[test]
    fn keys_are_spread_as_in_the_sample() {
        let (settings, drawn) = (SurveySettings::default(), drawn(300_007, false));
        let guess = Guess::of(sample(&drawn, 9), 300_007, &settings).expect("little is open");
        let keys = settle(&drawn, &guess, &settings).expect("a right guess").keys;
        for (e, sizes) in magnitudes(&drawn).iter().take(2).enumerate() {
            let mut counts = vec![0; KEYS];
            sizes.iter().filter(|s| **s > 0.0).for_each(|s| counts[stats::key(f64::from(*s))] += 1);
            let [mut own, mut all] = [0u64; 2];
            let mut found = vec![0; KEYS];
            keys[e].add_to(&mut found);
            for (at, (a, b)) in counts.iter().zip(&found).enumerate() {
                (all, own) = (all + a, own + *b as u64);
                if at % 128 == 127 {
                    assert_eq!(own, all, "powers of two are exact");
                }
                assert!(own.abs_diff(all) < 3000, "{at}: {own} {all}");
            }
        }
    }
}
