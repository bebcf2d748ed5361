//! Which elements of an expert's delta are kept.

use super::job::{Chunk, Scope, Ties};
use crate::kernel::blocks::Pattern;
use crate::kernel::changes::Stay;
use crate::kernel::lanes::{self, Lanes};
use crate::kernel::ranks::{Rows, Slope};
use crate::kernel::rng::{self, Kept, Stream};
use crate::kernel::select::{Cut, Selection, Tally};
use crate::kernel::sieve::Sieve;
use crate::kernel::values::{Values, narrow_threshold};
use crate::kernel::{CHUNK, Level, combine};
use crate::plan::family::deltas::{DeltaExpert, Deltas, Rescale, Sparsify};

/// How one expert's delta is made sparse.
pub enum Mask {
    /// Everything is kept.
    Everything,
    /// Nothing is kept.
    Nothing,
    /// Magnitudes between two cuts are kept.
    Cut(Box<Trim>),
    /// Elements whose random number is below the threshold are kept.
    Random(Stream, u64),
    /// Elements are kept with a probability that grows with their rank in a row.
    Ranked {
        /// Their random numbers.
        stream: Stream,
        /// The rows.
        rows: Rows,
        /// The probabilities.
        slope: Slope,
        /// Whether the kept ones are divided by their probabilities.
        inverse: bool,
        /// Whether the arithmetic is f64.
        wide: bool,
    },
    /// The largest of each block are kept, apart from those of the experts before.
    Blocks {
        /// How many of how many.
        pattern: Pattern,
        /// Whether the arithmetic is f64.
        wide: bool,
    },
}

/// A band of magnitudes, by ranks: those of the `high` largest go, the others of the `low` largest stay.
pub struct Trim {
    /// The cut below which elements are dropped; nothing is when there is none.
    low: Option<Selection>,
    /// The cut above which elements are dropped as outliers.
    high: Option<Selection>,
    /// Keep all elements at the lower cut.
    keep_all_ties: bool,
}

/// Ties of an expert in a tile: those kept at the lower cut, and those dropped at the upper one.
pub const CUTS: usize = 2;

impl Mask {
    /// The mask of the expert at position `at` among those that take part.
    pub fn new(plan: &Deltas, at: usize, expert: &DeltaExpert, scope: Scope<'_>) -> Self {
        if expert.density >= 1.0 || scope.elements == 0 {
            return Self::Everything;
        }
        let stream = || Stream::new(plan.seed, at as u32, scope.name());
        match plan.sparsify {
            Sparsify::Nothing => Self::Everything,
            Sparsify::Random => Self::Random(stream(), rng::threshold(expert.density)),
            Sparsify::Magnitude | Sparsify::Band => Self::by_magnitude(plan, expert, scope),
            Sparsify::Ranked => {
                let Some(tensor) = scope.tensor else { return Self::Everything };
                let shape = plan.rows(tensor);
                let rows = Rows { len: shape.len as usize, stride: shape.stride as usize };
                Self::Ranked {
                    stream: stream(),
                    rows,
                    slope: Slope::new(expert.density, expert.epsilon, rows.len),
                    inverse: plan.rescale == Rescale::InverseDensity,
                    wide: scope.wide,
                }
            }
            Sparsify::Blocks { keep, of } => {
                Self::Blocks { pattern: Pattern { keep: keep as usize, of: of as usize }, wide: scope.wide }
            }
        }
    }

    fn by_magnitude(plan: &Deltas, expert: &DeltaExpert, scope: Scope<'_>) -> Self {
        let n = scope.elements;
        let share = expert.density * n as f64;
        let kept = if plan.mergekit { share.floor() } else { (share + 0.5).floor() } as u64;
        // mergekit keeps one element at least when it trims small ones, but not when it trims outliers too.
        let least = u64::from(!(plan.mergekit && plan.sparsify == Sparsify::Band));
        let kept = kept.clamp(least.min(n), n);
        if kept == 0 {
            return Self::Nothing;
        }
        // Where outliers and the share together are more than everything, fewer outliers are dropped.
        let dropped = ((expert.gamma * n as f64).floor() as u64).min(n - kept);
        let cuts = if dropped > 0 { CUTS } else { 1 };
        let search = |rank: u64| Selection::new(rank, scope.bins / cuts, scope.wide);
        Self::Cut(Box::new(Trim {
            low: (dropped + kept < n || dropped == 0).then(|| search(dropped + kept)),
            high: (dropped > 0).then(|| search(dropped)),
            keep_all_ties: plan.keep_all_ties,
        }))
    }

    /// What an inverse-density rescaling multiplies by; ranked elements are divided one by one.
    pub fn inverse_density(&self, density: f64) -> f64 {
        match self {
            Self::Everything | Self::Ranked { .. } => 1.0,
            _ => 1.0 / density,
        }
    }

    /// The least magnitude that is kept, and the one above which elements are dropped as outliers.
    pub fn thresholds(&self) -> [Option<f64>; CUTS] {
        let of =
            |search: Option<&Selection>| search.and_then(Selection::cut).map(|c| f64::from_bits(c.threshold));
        self.trim().map_or([None; CUTS], |trim| [of(trim.low.as_ref()), of(trim.high.as_ref())])
    }

    /// Whether a cut is still to be found.
    pub fn is_selecting(&self) -> bool {
        self.trim().is_some_and(|t| t.searches().any(|s| s.cut().is_none()))
    }

    fn trim(&self) -> Option<&Trim> {
        match self {
            Self::Cut(trim) => Some(trim),
            _ => None,
        }
    }

    /// Narrows the searches by a sample.
    pub fn propose(&mut self, sample: &[f64], population: u64) {
        if let Self::Cut(trim) = self {
            for search in trim.searches_mut() {
                search.propose(sample, population);
            }
        }
    }

    /// Empty counters of the searches that are not over.
    pub fn tallies(&self) -> [Tally; CUTS] {
        self.each_search(|search| search.map_or_else(Tally::default, Selection::tally))
    }

    /// Whether what may be kept can be sieved out of changes that are known by themselves while they are counted.
    pub fn sieves(&self) -> bool {
        let sieves = |search: &Selection| search.sieves_from().is_some();
        self.trim().is_some_and(|t| t.high.is_none() && t.low.as_ref().is_some_and(sieves))
    }

    /// Counts a chunk of the deltas, and puts them through the sieve where there is one.
    pub fn count(
        &self,
        level: Level,
        expert: &Values,
        base: &Values,
        tallies: &mut [Tally],
        sieve: Option<&mut Sieve>,
    ) {
        let Some(trim) = self.trim() else { return };
        if let (Some(sieve), Some(search), Some(deltas)) = (sieve, &trim.low, expert.known_change(base))
            && search.count_sieved(level, deltas, sieve, &mut tallies[0])
        {
            return;
        }
        for (search, tally) in [&trim.low, &trim.high].into_iter().zip(tallies) {
            if let Some(search) = search.as_ref().filter(|s| s.cut().is_none()) {
                search.count(level, expert, base, tally);
            }
        }
    }

    /// Learns from the counts of a whole scan.
    pub fn learn(&mut self, tallies: &mut [Tally]) {
        let Self::Cut(trim) = self else { return };
        for (search, tally) in [&mut trim.low, &mut trim.high].into_iter().zip(tallies) {
            if let Some(search) = search.as_mut().filter(|s| s.cut().is_none()) {
                search.learn(tally);
            }
        }
    }

    fn each_search<T>(&self, of: impl Fn(Option<&Selection>) -> T) -> [T; CUTS] {
        let open = |search: &Option<Selection>| of(search.as_ref().filter(|s| s.cut().is_none()));
        match self.trim() {
            Some(trim) => [open(&trim.low), open(&trim.high)],
            None => [of(None), of(None)],
        }
    }

    /// Sum of the magnitudes (of their squares) of what is kept at the cuts themselves.
    pub fn kept_at_cuts(&self, squares: bool) -> f64 {
        let Some(trim) = self.trim() else { return 0.0 };
        let size = |cut: Cut| {
            let magnitude = f64::from_bits(cut.threshold);
            if squares { magnitude * magnitude } else { magnitude }
        };
        match (trim.low_cut(), trim.high_cut()) {
            (Some(low), Some(high)) if low.threshold == high.threshold => {
                (low.kept_ties - high.kept_ties) as f64 * size(low)
            }
            (low, high) => {
                let kept = |cut: Cut| if trim.keep_all_ties { cut.ties } else { cut.kept_ties };
                low.map_or(0.0, |cut| kept(cut) as f64 * size(cut))
                    + high.map_or(0.0, |cut| (cut.ties - cut.kept_ties) as f64 * size(cut))
            }
        }
    }

    /// The cuts of which only some ties are kept, or dropped.
    pub fn split_ties(&self) -> [Option<Cut>; CUTS] {
        let split = |cut: Option<Cut>| cut.filter(|c| c.threshold != 0 && c.kept_ties < c.ties);
        match self.trim() {
            Some(trim) => [split(trim.low_cut()).filter(|_| !trim.keep_all_ties), split(trim.high_cut())],
            None => [None, None],
        }
    }

    /// Which of `len` elements of an f32 change from `first` on stay, where that is a matter of bits and one magnitude.
    pub fn stay(&self, level: Level, first: u64, len: usize, ties: &[Ties; CUTS]) -> Option<Stay> {
        const EVERYTHING: Kept = [u64::MAX; _];
        match self {
            _ if len > CHUNK => None,
            Self::Everything => Some(Stay { bits: EVERYTHING, least: 0 }),
            Self::Random(stream, threshold) => {
                let bits = rng::kept(level, *stream, first, len, *threshold);
                Some(Stay { bits, least: 0 })
            }
            Self::Cut(trim) if trim.high.is_none() && !trim.is_split(ties) => {
                let (least, strict) = trim.least(ties);
                let (least, exact) = narrow_threshold(least);
                Some(Stay { bits: EVERYTHING, least: least + u32::from(strict && exact) })
            }
            _ => None,
        }
    }

    /// The sparse delta of the expert at position `at`, times `factor`, into its buffer; the squares of the whole delta of
    /// the tile's elements into `squares`. Masks in blocks must be made in the order of the experts.
    pub fn apply(
        &self,
        chunk: &mut Chunk<'_>,
        at: usize,
        factor: f64,
        ties: &mut [Ties; CUTS],
        squares: &mut Lanes,
    ) {
        let (base, expert) = (&chunk.values[0], &chunk.values[at + 1]);
        let (level, len) = (chunk.level, chunk.len);
        let scratch = &mut *chunk.scratch;
        let out = &mut scratch.deltas[at * scratch.stride..at * scratch.stride + len];
        match self {
            Self::Everything => expert.cut_delta(level, base, 0, false, factor, out, squares),
            Self::Nothing => {
                expert.cut_delta(level, base, 0, false, factor, out, squares);
                out.fill(0.0);
            }
            Self::Random(stream, threshold) => {
                let kept = rng::kept(level, *stream, chunk.first, len, *threshold);
                expert.pick_delta(level, base, &kept, factor, out, squares);
            }
            Self::Cut(trim) => trim.apply(level, expert, base, factor, ties, out, squares),
            Self::Ranked { stream, rows, slope, inverse, wide } => {
                expert.delta(level, base, out);
                lanes::add_squares_wide(level, &out[chunk.inner.clone()], squares);
                let ranks = &mut scratch.ranks;
                ranks.thin(level, out, chunk.first, *rows, *wide, *stream, *slope, factor, *inverse);
            }
            Self::Blocks { pattern, wide } => {
                expert.delta(level, base, out);
                lanes::add_squares_wide(level, &out[chunk.inner.clone()], squares);
                if at == 0 {
                    scratch.blocks.begin(len);
                }
                scratch.blocks.thin(level, out, *pattern, *wide);
                combine::scale(level, out, factor);
            }
        }
    }
}

impl Trim {
    fn searches(&self) -> impl Iterator<Item = &Selection> {
        self.low.iter().chain(&self.high)
    }

    fn searches_mut(&mut self) -> impl Iterator<Item = &mut Selection> {
        self.low.iter_mut().chain(&mut self.high)
    }

    fn low_cut(&self) -> Option<Cut> {
        self.low.as_ref().and_then(Selection::cut)
    }

    fn high_cut(&self) -> Option<Cut> {
        self.high.as_ref().and_then(Selection::cut)
    }

    /// Whether a tie group ends among these.
    fn is_split(&self, ties: &[Ties; CUTS]) -> bool {
        let is_split = |cut: Option<Cut>, ties: &Ties| {
            cut.is_some_and(|c| c.threshold != 0) && matches!(ties, Ties::First(n) if *n > 0)
        };
        is_split(self.low_cut(), &ties[0]) || is_split(self.high_cut(), &ties[1])
    }

    /// Bits of the least magnitude that is kept, and whether those at it are not. Zeros stay zeros either way.
    fn least(&self, ties: &[Ties; CUTS]) -> (u64, bool) {
        let strict = |cut: Cut| cut.threshold != 0 && ties[0] != Ties::All;
        self.low_cut().map_or((0, false), |cut| (cut.threshold, strict(cut)))
    }

    #[allow(clippy::too_many_arguments, reason = "one pass over the chunk does it all")]
    fn apply(
        &self,
        level: Level,
        expert: &Values,
        base: &Values,
        factor: f64,
        ties: &mut [Ties; CUTS],
        out: &mut [f64],
        squares: &mut Lanes,
    ) {
        let (low, high) = (self.low_cut(), self.high_cut());
        if self.is_split(ties) {
            // The one tile in which a tie group ends goes element by element.
            expert.cut_delta(level, base, 0, false, factor, out, squares);
            let [kept, dropped] = ties.each_mut();
            let (mut left_to_keep, mut left_to_drop) = (kept.limit(), dropped.limit());
            let threshold = |cut: Option<Cut>, none: u64| cut.map_or(none, |c| c.threshold);
            expert.keep_between(
                base,
                (threshold(low, 0), &mut left_to_keep),
                (threshold(high, u64::MAX), &mut left_to_drop),
                out,
            );
            kept.set_limit(left_to_keep);
            return dropped.set_limit(left_to_drop);
        }
        let (least, strict) = self.least(ties);
        match high {
            None => expert.cut_delta(level, base, least, strict, factor, out, squares),
            Some(cut) => {
                let closed = !matches!(ties[1], Ties::All);
                expert.band_delta(
                    level,
                    base,
                    (least, strict),
                    (cut.threshold, closed),
                    factor,
                    out,
                    squares,
                );
            }
        }
    }
}
