//! Exact selection of the k largest magnitudes by counting, without sorting or copying a tensor.
//!
//! A key is the bit pattern of `|δ|` in the arithmetic of the tensor (f32, or f64), which orders like the
//! magnitude; methods that rank elements by something else give f64 scores of any sign instead
//! ([`Selection::of_scores`]). A scan counts how many keys lie above a window and how they spread inside it; the window then shrinks to the bin
//! that holds the k-th largest, until a bin is one key wide. A sample proposes the first window, so
//! that one scan is normally enough; a bad sample costs a further scan and never a wrong answer. Where a sample
//! says that few keys lie inside, but more of them than bins could tell apart, the scan writes these down instead.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::CHUNK;
use super::collect::{collect_narrow, collect_scores};
use super::combine::MAGNITUDE;
use super::level::{Level, kernel};
use super::sieve::Sieve;
use super::values::{Numbers, Values};

#[cfg(test)]
mod tests;

/// All bits of an f32 but the sign.
pub(super) const NARROW_MAGNITUDE: u32 = u32::MAX >> 1;
/// The sign of an f64.
const SIGN: u64 = !MAGNITUDE;

/// The k-th largest magnitude, or score, and its ties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Bits of the threshold magnitude, or score, as f64.
    pub threshold: u64,
    /// Number of elements at the threshold.
    pub ties: u64,
    /// How many of them belong to the k largest.
    pub kept_ties: u64,
}

/// Counts of one scan.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    above: u64,
    bins: Vec<Bin>,
    /// The keys in the window, where they are written down: those of f32 as offsets there, …
    keys: Vec<u32>,
    /// … those of scores as such.
    score_keys: Vec<u64>,
    /// How many all workers have written down.
    written: Arc<AtomicUsize>,
    /// Whether there were more than may be.
    is_full: bool,
}

/// Keys that share their upper bits.
#[derive(Debug, Clone, Copy, Default)]
struct Bin {
    count: u64,
    /// Their offsets in the window, or-ed: where the low bits are zero, they are all the same key.
    union: u64,
}

impl Tally {
    /// Adds scores that are known to lie above the window.
    pub fn add_above(&mut self, scores: u64) {
        self.above += scores;
    }

    /// Makes room for some more keys, of `room` that there is for all workers; if it is used up, those that are
    /// there are of no use.
    fn write_down(&mut self, more: usize, room: usize) {
        if more > 0 && self.written.fetch_add(more, Ordering::Relaxed) + more > room {
            (self.keys, self.score_keys, self.is_full) = (Vec::new(), Vec::new(), true);
        }
    }

    /// Adds the counts of another worker.
    pub fn merge(&mut self, other: &Self) {
        self.above += other.above;
        self.keys.extend_from_slice(&other.keys);
        self.score_keys.extend_from_slice(&other.score_keys);
        self.is_full |= other.is_full;
        for (a, b) in self.bins.iter_mut().zip(&other.bins) {
            a.count += b.count;
            a.union |= b.union;
        }
    }
}

/// What is ranked, and how its keys are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keys {
    /// Magnitudes of f32.
    Narrow,
    /// Magnitudes of f64.
    Wide,
    /// Scores in f64 with their sign, none of them NaN.
    Scores,
}

/// Key of a score: orders like the score, and both zeros have the same.
#[inline(always)]
pub(super) fn score_key(score: f64) -> u64 {
    let bits = (score + 0.0).to_bits();
    bits ^ (((bits as i64) >> 63) as u64 | SIGN)
}

/// The search for one cut.
#[derive(Debug, Clone)]
pub struct Selection {
    rank: u64,
    max_bins: usize,
    /// Most keys that are written down at a time.
    room: usize,
    keys: Keys,
    low: u64,
    shift: u32,
    bins: usize,
    /// The key that the sample has most of in the window, as its offset there: in bf16 many deltas are the same, and
    /// those are counted without looking up their bin.
    favourite: Option<u64>,
    /// Whether the keys in the window are written down.
    collects: bool,
    /// Whether what reaches the window is little of everything, so that it is worth keeping.
    is_sparse: bool,
    /// How many the workers have written down.
    written: Arc<AtomicUsize>,
    cut: Option<Cut>,
}

impl Selection {
    /// Looks for the `rank`-th largest key (1 = the largest) with at most `max_bins` counters.
    /// `wide` says that values carry full f64 precision.
    #[must_use]
    pub fn new(rank: u64, max_bins: usize, wide: bool) -> Self {
        // Keys that take no more memory than the counters of one worker may.
        let room = max_bins * (size_of::<Bin>() / size_of::<u32>());
        Self::of(rank, max_bins, room, if wide { Keys::Wide } else { Keys::Narrow })
    }

    /// Looks for the `rank`-th largest of f64 scores, none of which is NaN, with at most `max_bins` counters or `room`
    /// keys of all workers.
    #[must_use]
    pub fn of_scores(rank: u64, max_bins: usize, room: usize) -> Self {
        Self::of(rank, max_bins, room, Keys::Scores)
    }

    /// Looks for it among the scores from one up to another, each of which is written down; nowhere else.
    #[must_use]
    pub fn of_scores_between(rank: u64, low: f64, end: f64) -> Self {
        let mut s = Self::of(rank, FEWEST_BINS as usize, usize::MAX, Keys::Scores);
        (s.low, s.shift) = (score_key(low), 0);
        (s.bins, s.collects) = (score_key(end).saturating_sub(s.low) as usize, true);
        s
    }

    fn of(rank: u64, max_bins: usize, room: usize, keys: Keys) -> Self {
        let mut s = Self {
            rank,
            max_bins,
            room,
            keys,
            low: 0,
            shift: 0,
            bins: 0,
            favourite: None,
            collects: false,
            is_sparse: false,
            written: Arc::default(),
            cut: None,
        };
        s.set_window(0, s.end_of_keys());
        s
    }

    /// Changes the rank that is looked for: where it depends on what a scan counts, before learning from that scan.
    pub fn set_rank(&mut self, rank: u64) {
        self.rank = rank;
    }

    /// One past the largest key.
    fn end_of_keys(&self) -> u64 {
        match self.keys {
            Keys::Narrow => u64::from(NARROW_MAGNITUDE) + 1,
            Keys::Wide => MAGNITUDE + 1,
            Keys::Scores => score_key(f64::INFINITY) + 1,
        }
    }

    /// Key of a delta; in f32 arithmetic an f64 that holds one has an f32's value.
    fn key(&self, value: f64) -> u64 {
        match self.keys {
            Keys::Narrow => u64::from((value as f32).to_bits() & NARROW_MAGNITUDE),
            Keys::Wide => value.to_bits() & MAGNITUDE,
            Keys::Scores => score_key(value),
        }
    }

    /// Bits, as f64, of the magnitude or score with this key.
    fn magnitude(&self, key: u64) -> u64 {
        match self.keys {
            Keys::Narrow => f64::from(f32::from_bits(key as u32)).to_bits(),
            Keys::Wide => key,
            Keys::Scores if key & SIGN != 0 => key & MAGNITUDE,
            Keys::Scores => !key,
        }
    }

    /// The answer, once found.
    #[must_use]
    pub fn cut(&self) -> Option<Cut> {
        self.cut
    }

    /// Narrows the first window by a sample of the values, out of `population`; the answer, if the sample
    /// is the whole population.
    pub fn propose(&mut self, sample: &[f64], population: u64) {
        let mut keys: Vec<u64> = sample.iter().map(|v| self.key(*v)).collect();
        let len = keys.len();
        if len as u64 == population && self.rank >= 1 && self.rank <= population {
            let at = len - self.rank as usize;
            let threshold = *keys.select_nth_unstable(at).1;
            let above = keys.iter().filter(|k| **k > threshold).count() as u64;
            let ties = keys.iter().filter(|k| **k == threshold).count() as u64;
            let threshold = self.magnitude(threshold);
            self.cut = Some(Cut { threshold, ties, kept_ties: self.rank - above });
            return;
        }
        if len < 256 {
            return;
        }
        let share = self.rank as f64 / population as f64;
        let expected = share * len as f64;
        let from_top = |rank: f64| -> Option<usize> {
            let rank = rank.round();
            (rank >= 0.0 && rank < len as f64).then(|| len - 1 - rank as usize)
        };
        // Three standard deviations, and some slack: of a binomial count, or of the runs of neighbours if they differ more.
        let middle = *keys.select_nth_unstable(from_top(expected).unwrap_or(0)).1;
        let deviation =
            (expected * (1.0 - share)).max(1.0).sqrt().max(deviation(sample, |v| self.key(v) > middle));
        let margin = 3.0 * deviation + len as f64 * 0.003;
        let low = from_top(expected + margin).map_or(0, |at| *keys.select_nth_unstable(at).1);
        let high = match from_top(expected - margin) {
            Some(at) => *keys.select_nth_unstable(at).1,
            None => self.beyond(keys.iter().copied().max().unwrap_or(0)),
        };
        // Most deltas of bf16 weights share a wide step, so that fewer and wider bins still hold a single
        // key each, but for the odd one that a further scan sorts out.
        let mut steps: Vec<u32> =
            keys.iter().filter(|k| (low..=high).contains(k)).map(|k| k.trailing_zeros()).collect();
        let few = steps.len() / 16;
        let step = *steps.select_nth_unstable(few).1;
        self.set_window(low, high + 1);
        self.favourite = most_frequent(&mut keys, low, high).map(|key| key - low);
        while self.shift < step && self.bins > STEPPED_BINS {
            self.shift += 1;
            self.bins = self.bins.div_ceil(2);
        }
        // The search for the most frequent key left those in the window.
        let inside = keys.len() as f64 / len as f64 * population as f64;
        let by_bins = match self.keys {
            Keys::Narrow => self.shift <= step && self.bins <= STEPPED_BINS,
            Keys::Wide => true,
            // Hardly any number of bins tells them apart, unless most are the same.
            Keys::Scores => false,
        };
        self.collects = !by_bins && 1.5 * inside < self.room as f64;
        self.is_sparse = share < SPARSE_SHARE;
    }

    /// A key that hardly any of a population reaches whose sample's largest is `key`: four times as large. A window up
    /// to infinity would have wide bins.
    fn beyond(&self, key: u64) -> u64 {
        let octave = match self.keys {
            Keys::Narrow => 1 << (f32::MANTISSA_DIGITS - 1),
            Keys::Wide | Keys::Scores => 1 << (f64::MANTISSA_DIGITS - 1),
        };
        let last = self.end_of_keys() - 1;
        if key & MAGNITUDE < octave { last } else { key.saturating_add(2 * octave).min(last) }
    }

    fn set_window(&mut self, low: u64, end: u64) {
        self.low = low;
        (self.favourite, self.collects, self.is_sparse) = (None, false, false);
        self.written = Arc::default();
        let width = end - low;
        let mut shift = 0;
        while (width - 1) >> shift >= self.max_bins as u64 {
            shift += 1;
        }
        self.shift = shift;
        self.bins = ((width - 1) >> shift) as usize + 1;
    }

    /// Makes bins wider until there are no more than so many.
    fn limit_bins(&mut self, most: u64) {
        while self.bins as u64 > most {
            self.shift += 1;
            self.bins = self.bins.div_ceil(2);
        }
    }

    /// The scores from which, and below which, the next scan needs to know scores one by one; it only counts those that
    /// are at least the second, which may be NaN.
    #[must_use]
    pub fn window(&self) -> (f64, f64) {
        (f64::from_bits(self.magnitude(self.low)), f64::from_bits(self.magnitude(self.end())))
    }

    /// Empty counters for the next scan.
    #[must_use]
    pub fn tally(&self) -> Tally {
        if self.collects {
            return Tally { written: Arc::clone(&self.written), ..Tally::default() };
        }
        Tally { bins: vec![Bin::default(); self.bins], ..Tally::default() }
    }

    /// Number of keys in the window; one that reaches beyond the last key ends there.
    fn width(&self) -> u64 {
        let bins = (self.bins as u128) << self.shift;
        bins.min(u128::from(self.end_of_keys() - self.low)) as u64
    }

    fn end(&self) -> u64 {
        self.low + self.width()
    }

    /// Counts a chunk of scores.
    pub fn count_scores(&self, level: Level, scores: &[f64], tally: &mut Tally) {
        if !self.collects {
            let (low, width) = (self.low, self.width());
            tally.above +=
                count_scores(level, scores, low, width, self.shift, self.favourite, &mut tally.bins);
        } else if !tally.is_full {
            let before = tally.score_keys.len();
            let score = |key: u64| f64::from_bits(self.magnitude(key));
            // Keys below that of −∞ are those of NaN, with which nothing compares.
            let low = score(self.low.max(score_key(f64::NEG_INFINITY)));
            let last = score(self.end() - 1);
            tally.above += collect_scores(level, scores, low, last, &mut tally.score_keys);
            tally.write_down(tally.score_keys.len() - before, self.room);
        }
    }

    /// Counts a chunk of deltas, which hold f32 values unless the arithmetic is f64.
    pub fn count_deltas(&self, level: Level, deltas: &[f64], tally: &mut Tally) {
        static ZEROS: [f64; CHUNK] = [0.0; CHUNK];
        static NARROW_ZEROS: [f32; CHUNK] = [0.0; CHUNK];
        let mut narrow = NARROW_ZEROS;
        for deltas in deltas.chunks(CHUNK) {
            let len = deltas.len();
            if self.keys == Keys::Wide {
                self.count_wide(level, deltas, &ZEROS[..len], tally);
            } else {
                narrow_down(level, deltas, &mut narrow[..len]);
                self.count_narrow(level, &narrow[..len], &NARROW_ZEROS[..len], tally);
            }
        }
    }

    /// The bits of the magnitude below which no delta can be one of the largest, unless the next scan finds that the
    /// sample was wrong; where few deltas are larger, and they are different enough to be written down.
    #[must_use]
    pub fn sieves_from(&self) -> Option<u32> {
        let sieves = self.collects && self.is_sparse && self.keys == Keys::Narrow && self.cut.is_none();
        (sieves && self.low > 0).then_some(self.low as u32)
    }

    /// Counts a chunk of deltas and puts them through a sieve, of which what is larger than the window's low end comes out.
    /// Gives whether it did: not where the sieve has no room.
    pub fn count_sieved(&self, level: Level, deltas: &[f32], sieve: &mut Sieve, tally: &mut Tally) -> bool {
        static ZEROS: [f32; CHUNK] = [0.0; CHUNK];
        let Some(kept) = self.sieves_from().and_then(|low| sieve.sift(level, deltas, low)) else {
            return false;
        };
        self.count_narrow(level, kept, &ZEROS[..kept.len()], tally);
        true
    }

    /// Counts a chunk of the deltas of `expert`.
    pub fn count(&self, level: Level, expert: &Values, base: &Values, tally: &mut Tally) {
        match expert.against(base) {
            (Numbers::Narrow(x), Numbers::Narrow(b)) if self.keys == Keys::Wide => {
                let (low, width, favourite) = (self.low, self.width(), self.favourite);
                tally.above += count_widened(level, x, b, low, width, self.shift, favourite, &mut tally.bins);
            }
            (Numbers::Narrow(x), Numbers::Narrow(b)) => self.count_narrow(level, x, b, tally),
            (Numbers::Wide(x), Numbers::Wide(b)) => self.count_wide(level, x, b, tally),
            _ => unreachable!("the models of a tensor share one width"),
        }
    }

    fn count_narrow(&self, level: Level, x: &[f32], b: &[f32], tally: &mut Tally) {
        let (low, width) = (self.low as u32, self.width() as u32);
        if self.collects && !tally.is_full {
            let before = tally.keys.len();
            tally.above += collect_narrow(level, x, b, (low, width), &mut tally.keys);
            tally.write_down(tally.keys.len() - before, self.room);
        } else if !self.collects {
            let favourite = self.favourite.map(|f| f as u32);
            tally.above += count_narrow(level, x, b, low, width, self.shift, favourite, &mut tally.bins);
        }
    }

    fn count_wide(&self, level: Level, x: &[f64], b: &[f64], tally: &mut Tally) {
        let (low, width) = (self.low, self.width());
        tally.above += count_wide(level, x, b, low, width, self.shift, self.favourite, &mut tally.bins);
    }

    /// Learns from the counts of a whole scan: the answer, or a smaller window for the next one.
    pub fn learn(&mut self, tally: &mut Tally) {
        if tally.is_full {
            return self.set_window(self.low, self.end());
        }
        let written = (tally.keys.len() + tally.score_keys.len()) as u64;
        let inside = tally.bins.iter().map(|b| b.count).sum::<u64>() + written;
        if tally.above >= self.rank {
            return self.set_window(self.end(), self.end_of_keys());
        }
        if tally.above + inside < self.rank {
            return self.set_window(0, self.low);
        }
        let mut above = tally.above;
        if self.collects {
            let rank = (self.rank - above) as usize;
            let (key, kept_ties, ties) = if self.keys == Keys::Scores {
                largest(&mut tally.score_keys, rank)
            } else {
                let (offset, kept_ties, ties) = largest(&mut tally.keys, rank);
                (self.low + u64::from(offset), kept_ties, ties)
            };
            self.cut = Some(Cut { threshold: self.magnitude(key), ties, kept_ties });
            return;
        }
        for (at, Bin { count, union }) in tally.bins.iter().enumerate().rev() {
            if above + count >= self.rank {
                let threshold = self.low + ((at as u64) << self.shift);
                if union.trailing_zeros() >= self.shift {
                    let threshold = self.magnitude(threshold);
                    self.cut = Some(Cut { threshold, ties: *count, kept_ties: self.rank - above });
                } else {
                    let end = threshold.saturating_add(1 << self.shift);
                    self.set_window(threshold, end.min(self.end_of_keys()));
                    self.limit_bins((SPARSE * count).max(FEWEST_BINS));
                }
                return;
            }
            above += count;
        }
    }
}

/// Standard deviation of the number of values in a sample that are above something, by how much its runs of neighbours
/// differ: those of a row are alike where rows have sizes of their own, as in the products that adapters make.
pub fn deviation<T: Copy>(sample: &[T], is_above: impl Fn(T) -> bool) -> f64 {
    let above = |run: &[T]| run.iter().filter(|v| is_above(**v)).count() as f64;
    let counts: Vec<f64> = sample.chunks_exact(RUN).map(above).collect();
    let runs = counts.len() as f64;
    let mean = counts.iter().sum::<f64>() / runs;
    let squares: f64 = counts.iter().map(|c| (c - mean) * (c - mean)).sum();
    if counts.len() < 8 { 0.0 } else { (squares * runs / (runs - 1.0)).sqrt() }
}

/// The `rank`-th largest key (1 = the largest), how many of its kind belong to the `rank` largest, and how many there are.
fn largest<K: Ord + Copy>(keys: &mut [K], rank: usize) -> (K, u64, u64) {
    let at = keys.len() - rank;
    let key = *keys.select_nth_unstable(at).1;
    let kept = keys[at..].iter().filter(|k| **k == key).count() as u64;
    (key, kept, keys.iter().filter(|k| **k == key).count() as u64)
}

/// The key from `low` to `high` of which there are most, if there are several of it.
fn most_frequent(keys: &mut Vec<u64>, low: u64, high: u64) -> Option<u64> {
    keys.retain(|k| (low..=high).contains(k));
    keys.sort_unstable();
    let longest = keys.chunk_by(|a, b| a == b).max_by_key(|run| run.len())?;
    (longest.len() > 1).then_some(longest[0])
}

/// Values of a sample that are neighbours in their tensor.
pub const RUN: usize = 256;
/// A bin in which several keys were found becomes a window with so many bins a key, so that hardly two share one.
const SPARSE: u64 = 64;
/// Share of the elements that is sparse enough for what is kept of a tile to fit into a sieve.
const SPARSE_SHARE: f64 = 0.3;
/// Bins that cost nothing.
const FEWEST_BINS: u64 = 1024;
/// Bins of a window in which most keys share a step.
const STEPPED_BINS: usize = 1 << 15;
/// Elements looked at together.
pub(super) const ROW: usize = 16;
/// One bit for each element of a row.
pub(super) const BITS: [u32; ROW] = {
    let mut bits = [0; ROW];
    let mut i = 0;
    while i < ROW {
        bits[i] = 1 << i;
        i += 1;
    }
    bits
};

/// One bit for each flag that is set, the first the lowest.
#[inline(always)]
fn pack(flags: u128) -> u32 {
    // The product brings flag k of eight, at bit 8k, to bit 56 + k; no two flags meet below, so nothing carries.
    let eight = |flags: u64| (flags.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u32;
    eight(flags as u64) | eight((flags >> 64) as u64) << 8
}

kernel! {
    /// Values of f32 as such.
    fn narrow_down(values: &[f64], out: &mut [f32]) {
        for (o, v) in out.iter_mut().zip(values) {
            *o = *v as f32;
        }
    }
}

/// A counter of the keys that `$key` makes of one element of each slice. `$rows` and `$tail` go through whole rows
/// and what is left of them.
macro_rules! counters {
    (
        $name:ident($($slice:ident: $ty:ty),+) by $bits:ty,
        $rows:expr, |$row:pat_param, $i:ident| $key:expr,
        $tail:expr, |$one:pat_param| $last:expr $(,)?
    ) => {
        kernel! {
            /// Counts elements by their bins in the window of `width` keys from `low`, and returns how many lie above.
            fn $name($($slice: &[$ty],)+ low: $bits, width: $bits, shift: u32, favourite: Option<$bits>, bins: &mut [Bin]) -> u64 {
                // Summed at the end: across the elements of a row sums are dear.
                let (mut beyond, mut same) = ([0; ROW], [0; ROW]);
                // No offset in the window is as large as this.
                let alike = favourite.unwrap_or(<$bits>::MAX);
                let end = low + width;
                for $row in $rows {
                    // Step by step through small arrays, which the compiler turns into vectors and their
                    // comparisons into masks.
                    let mut offsets = [0; ROW];
                    let mut flags = [0; ROW];
                    for $i in 0..ROW {
                        let key = $key;
                        offsets[$i] = key.wrapping_sub(low);
                        flags[$i] = u8::from((offsets[$i] < width) & (offsets[$i] != alike));
                        same[$i] += <$bits>::from(offsets[$i] == alike);
                        beyond[$i] += <$bits>::from(key >= end);
                    }
                    // Few keys fall into the window, so most rows have nothing to count.
                    let flags = u128::from_le_bytes(flags);
                    if flags == 0 {
                        continue;
                    }
                    let mut inside = pack(flags);
                    while inside != 0 {
                        let i = inside.trailing_zeros() as usize % ROW;
                        let bin = &mut bins[(offsets[i] >> shift) as usize];
                        bin.count += 1;
                        bin.union |= u64::from(offsets[i]);
                        inside &= inside - 1;
                    }
                }
                let sum = |counts: [$bits; ROW]| counts.iter().map(|n| u64::from(*n)).sum::<u64>();
                let (mut above, favourites) = (sum(beyond), sum(same));
                if let Some(offset) = favourite {
                    let bin = &mut bins[(offset >> shift) as usize];
                    bin.count += favourites;
                    bin.union |= if favourites > 0 { u64::from(offset) } else { 0 };
                }
                for $one in $tail {
                    let key = $last;
                    let offset = key.wrapping_sub(low);
                    if key >= end {
                        above += 1;
                    } else if offset < width {
                        let bin = &mut bins[(offset >> shift) as usize];
                        bin.count += 1;
                        bin.union |= u64::from(offset);
                    }
                }
                above
            }
        }
    };
}

counters!(
    count_narrow(expert: f32, base: f32) by u32,
    expert.as_chunks::<ROW>().0.iter().zip(base.as_chunks::<ROW>().0),
    |(x, b), i| (x[i] - b[i]).to_bits() & NARROW_MAGNITUDE,
    expert.as_chunks::<ROW>().1.iter().zip(base.as_chunks::<ROW>().1),
    |(x, b)| (x - b).to_bits() & NARROW_MAGNITUDE,
);
counters!(
    count_wide(expert: f64, base: f64) by u64,
    expert.as_chunks::<ROW>().0.iter().zip(base.as_chunks::<ROW>().0),
    |(x, b), i| (x[i] - b[i]).to_bits() & MAGNITUDE,
    expert.as_chunks::<ROW>().1.iter().zip(base.as_chunks::<ROW>().1),
    |(x, b)| (x - b).to_bits() & MAGNITUDE,
);
// Over a whole model f32 deltas rank among f64 ones, by the same keys.
counters!(
    count_widened(expert: f32, base: f32) by u64,
    expert.as_chunks::<ROW>().0.iter().zip(base.as_chunks::<ROW>().0),
    |(x, b), i| f64::from(x[i] - b[i]).to_bits() & MAGNITUDE,
    expert.as_chunks::<ROW>().1.iter().zip(base.as_chunks::<ROW>().1),
    |(x, b)| f64::from(x - b).to_bits() & MAGNITUDE,
);
counters!(
    count_scores(scores: f64) by u64,
    scores.as_chunks::<ROW>().0,
    |row, i| score_key(row[i]),
    scores.as_chunks::<ROW>().1,
    |one| score_key(*one),
);
