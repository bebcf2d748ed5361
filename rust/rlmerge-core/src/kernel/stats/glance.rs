//! One scan of two experts that finds what otherwise takes two, where it is known roughly where thresholds lie.
//!
//! What reaches the upper limit of a threshold is beyond it, what is below the lower one is not. What lies between is
//! written down until the threshold is known: few elements, brought together without a branch.

use super::super::aligned::Aligned;
use super::super::lanes::{self, LANES, Lanes};
use super::super::level::{by_level, kernel};
use super::super::select::BITS;
use super::super::{CHUNK, Level, convert};
use super::keys::{NearCounts, count_bins};
use super::loops::{ceil_narrow, filled, floor_narrow};
#[cfg(target_arch = "x86_64")]
use super::x86;
use super::{Changes, Found, Thresholds, Width, edge};
use crate::dtype::DType;

/// The smallest f32 with this key, for keys above 0.
#[must_use]
pub fn narrow_edge(key: usize) -> f32 {
    ceil_narrow(edge(key))
}

/// Elements that are looked at together.
const ROW: usize = LANES;

/// The numbers of the base and of two experts, whose deltas are the differences from it.
#[derive(Debug, Clone, Copy)]
pub enum Trio<'a> {
    /// In f32, and whether bf16 holds all of them.
    Decoded([&'a [f32]; 3], bool),
    /// As bf16 is stored.
    Stored([&'a [u8]; 3]),
}

impl<'a> Trio<'a> {
    /// How many numbers each has.
    fn len(&self) -> usize {
        match self {
            Self::Decoded([base, ..], _) => base.len(),
            Self::Stored([base, ..]) => base.len() / size_of::<u16>(),
        }
    }

    /// Whether bf16 holds all of them.
    pub(super) fn is_exact(&self) -> bool {
        matches!(self, Self::Decoded(_, true) | Self::Stored(_))
    }

    /// The numbers in f32.
    fn decoded<'b>(self, level: Level, buffers: &'b mut [Vec<f32>; 3]) -> [&'b [f32]; 3]
    where
        'a: 'b,
    {
        let (len, stored) = match self {
            Self::Decoded(numbers, _) => return numbers,
            Self::Stored(stored) => (self.len(), stored),
        };
        for (buffer, bytes) in buffers.iter_mut().zip(stored) {
            buffer.resize(len, 0.0);
            convert::decode_narrow(level, DType::BF16, bytes, buffer);
        }
        buffers.each_ref().map(|buffer| &buffer[..])
    }
}

/// Magnitudes that tell where thresholds may lie, of each expert three.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// What is below these is not beyond a threshold …
    pub(super) least: [[f32; 3]; 2],
    /// … and what reaches these is.
    pub(super) end: [[f32; 3]; 2],
    /// Whether what lies between has one key: then it is beyond the threshold too, and none of it is open.
    pub(super) is_known: [[bool; 3]; 2],
    /// Base weights below the first are among the smallest, those that reach the second are not.
    pub(super) below: [f32; 2],
}

impl Limits {
    /// From the first and the last key that each may have, of the smallest beyond it; and from the first that the largest of
    /// the smallest base weights may have, and one past the last.
    #[must_use]
    pub fn of_keys(cuts: [[[usize; 2]; 3]; 2], below: [usize; 2]) -> Self {
        Self {
            least: cuts.map(|cuts| cuts.map(|[first, _]| narrow_edge(first))),
            end: cuts.map(|cuts| cuts.map(|[_, last]| narrow_edge(last + 1))),
            is_known: cuts.map(|cuts| cuts.map(|[first, last]| first == last)),
            below: below.map(narrow_edge),
        }
    }

    /// The magnitudes below which nothing of each expert is beyond a threshold.
    #[inline(always)]
    pub(super) fn reach(&self) -> [f32; 2] {
        self.least.map(|[a, b, c]| a.min(b).min(c))
    }

    /// Those from which on everything is beyond each threshold.
    fn enough(&self) -> [[f32; 3]; 2] {
        let of = |e: usize, cut: usize| (if self.is_known[e][cut] { self.least } else { self.end })[e][cut];
        [0, 1].map(|e| [0, 1, 2].map(|cut| of(e, cut)))
    }
}

/// Of each threshold of each expert: how many deltas reach each of its limits.
pub type Above = [[[u64; 2]; 3]; 2];

/// What may be brought together of a chunk, and room for a register behind it.
pub(super) type List = Aligned<f32, { CHUNK + 2 * ROW }>;

/// Room for what is seen of a chunk.
#[derive(Debug, Default)]
pub struct Seen {
    lists: Box<Lists>,
    /// Its numbers where they are needed in f32.
    decoded: [Vec<f32>; 3],
}

/// What was brought together of a chunk.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// The deltas of both experts, …
    pub(super) deltas: [List; 2],
    /// … their exponents as stored, of a whole chunk.
    pub(super) exponents: [Aligned<u8, CHUNK>; 2],
    /// Those of both where one may be beyond a threshold.
    pub(super) large: [List; 2],
    /// … so many of each.
    pub(super) larges: usize,
    /// Magnitudes of the base between their limits, [marked](NearCounts::marked), …
    pub(super) near: List,
    /// … so many.
    pub(super) nears: usize,
    /// How many base weights are below their limits.
    pub(super) smallest: u64,
}

impl Seen {
    /// The first delta of an expert that is so large.
    #[must_use]
    pub fn find(&self, expert: usize, size: f64) -> Option<(usize, f64)> {
        let delta = &self.lists.deltas[expert];
        let at = delta.iter().position(|delta| f64::from(delta.abs()) == size)?;
        Some((at, delta[at].into()))
    }
}

/// What a glance tells of an expert.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Changed {
    /// What it changes.
    pub changes: Changes,
    /// Elements that it changes where the base is below its limits.
    pub low: u64,
}

/// What a glance tells of a chunk.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Glance {
    /// Of each expert.
    pub experts: [Changed; 2],
    /// Elements that both changed, and of these the ones with different signs.
    pub shared: (u64, u64),
    /// Base weights below their limits.
    pub smallest: u64,
    /// What is beyond thresholds for certain.
    pub found: Found,
    /// How many deltas are large.
    pub above: Above,
}

/// The part of it that needs no threshold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Looked {
    pub(super) experts: [Changed; 2],
    pub(super) shared: (u64, u64),
}

/// What is written down of a tile.
#[derive(Debug, Default)]
pub struct Open {
    /// The deltas of both experts where it is open whether one is beyond a threshold, …
    pub(super) pairs: [Vec<f32>; 2],
    /// … so many of them.
    pub(super) len: usize,
    /// Base weights that may be among the smallest.
    pub near: NearCounts,
}

impl Open {
    /// For base weights with keys from one up to another.
    #[must_use]
    pub fn between(first: usize, end: usize) -> Self {
        Self { near: NearCounts::between(first, end), ..Self::default() }
    }

    /// Number of pairs.
    #[must_use]
    pub fn count(&self) -> usize {
        self.len
    }

    /// The pairs, which are then forgotten.
    pub fn take_pairs(&mut self) -> [Vec<f32>; 2] {
        let pairs = self.pairs.each_ref().map(|deltas| deltas[..self.len].to_vec());
        self.len = 0;
        pairs
    }

    /// Room for so many pairs more, and for a register behind them.
    pub(super) fn make_room(&mut self, more: usize) {
        let room = self.len + more + ROW;
        if self.pairs[0].len() < room {
            self.pairs.iter_mut().for_each(|deltas| deltas.resize(2 * room, 0.0));
        }
    }

    fn push(&mut self, a: f32, b: f32) {
        (self.pairs[0][self.len], self.pairs[1][self.len]) = (a, b);
        self.len += 1;
    }
}

/// Adds to `lanes` the squares of the base, the moments of each expert, the sums of the pair, and for each expert those of
/// what is beyond its thresholds for certain: 1, 3, 3, 9, 4 and 4. Counts deltas by powers of two in [`BINS`](super::BINS)
/// bins of each expert, and writes down what is open.
#[allow(clippy::too_many_arguments, reason = "one pass over the chunk does it all")]
pub fn glance(
    level: Level,
    trio: Trio<'_>,
    thresholds: Thresholds<f64>,
    limits: &Limits,
    mut bins: [&mut [i64]; 2],
    seen: &mut Seen,
    lanes: &mut [Lanes],
    open: &mut Open,
) -> Glance {
    assert!(trio.len() <= CHUNK, "one chunk");
    let (sums, beyond) = lanes.split_at_mut(16);
    let Thresholds { epsilon, relative } = thresholds;
    let narrow = Thresholds { epsilon: floor_narrow(epsilon), relative: relative as f32 };
    let looked = at_once(level, trio, narrow, limits, &mut bins, &mut seen.lists, sums);
    let Looked { mut experts, shared } =
        looked.unwrap_or_else(|| look(level, trio, thresholds, limits, bins, seen, sums));
    for (e, expert) in experts.iter_mut().enumerate() {
        if !expert.changes.peak.is_finite() {
            expert.changes = look_again(level, trio, e, thresholds, seen);
        }
    }
    let Lists { large, larges, near, nears, smallest, .. } = &mut *seen.lists;
    open.near.add(&near[..*nears]);
    // The last row is one of large deltas and of zeros.
    large.iter_mut().for_each(|list| list[*larges..][..ROW].fill(0.0));
    let mut above = Above::default();
    divide(level, limits, large, *larges, open, &mut above);
    let found = find(level, [&large[0][..*larges], &large[1][..*larges]], limits.enough(), beyond);
    Glance { experts, shared, smallest: *smallest, found, above }
}

/// Adds what of two experts is beyond thresholds, some chunks of deltas, to the lanes of each.
pub fn settle(level: Level, deltas: [&[f32]; 2], least: [[f32; 3]; 2], lanes: &mut [Lanes]) -> Found {
    let mut all = Found::default();
    for (a, b) in deltas[0].chunks(CHUNK).zip(deltas[1].chunks(CHUNK)) {
        all.add(&find(level, [a, b], least, lanes));
    }
    all
}

fn find(level: Level, deltas: [&[f32]; 2], least: [[f32; 3]; 2], lanes: &mut [Lanes]) -> Found {
    let least = least.map(|least| least.map(f64::from));
    f32::find_beyond(level, deltas, least, &mut Vec::new(), lanes)
}

/// All but what is beyond thresholds, step by step.
fn look(
    level: Level,
    trio: Trio<'_>,
    thresholds: Thresholds<f64>,
    limits: &Limits,
    bins: [&mut [i64]; 2],
    seen: &mut Seen,
    lanes: &mut [Lanes],
) -> Looked {
    let (mut experts, epsilon, len) = ([Changed::default(); 2], thresholds.epsilon, trio.len());
    let [base, numbers @ ..] = trio.decoded(level, &mut seen.decoded);
    lanes::add_squares_narrow(level, base, &mut lanes[0]);
    for (e, bins) in bins.into_iter().enumerate() {
        let delta = &mut seen.lists.deltas[e][..len];
        let lanes = &mut lanes[1 + 3 * e..][..3];
        experts[e].changes = f32::changes(level, numbers[e], base, trio.is_exact(), thresholds, delta, lanes);
        count_bins(level, delta, bins);
    }
    let [a, b] = seen.lists.deltas.each_ref().map(|deltas| &deltas[..len]);
    let shared = f32::add_pair(level, a, b, epsilon, &mut lanes[7..]);
    [experts[0].low, experts[1].low] = pick(level, base, floor_narrow(epsilon), limits, &mut seen.lists);
    Looked { experts, shared }
}

/// What an expert changes where a delta is not finite, which [`at_once`] does not count.
fn look_again(
    level: Level,
    trio: Trio<'_>,
    expert: usize,
    thresholds: Thresholds<f64>,
    seen: &mut Seen,
) -> Changes {
    let numbers = trio.decoded(level, &mut seen.decoded);
    let (delta, unused) = (&mut seen.lists.deltas[expert][..trio.len()], &mut [Lanes::default(); 3]);
    f32::changes(level, numbers[1 + expert], numbers[0], trio.is_exact(), thresholds, delta, unused)
}

/// Brings together what may be beyond a threshold, and gives how many small base weights each expert changed.
fn pick(level: Level, base: &[f32], epsilon: f32, limits: &Limits, lists: &mut Lists) -> [u64; 2] {
    let Lists { deltas: [a, b], large: [x, y], near, .. } = lists;
    let (a, b) = (&a[..base.len()], &b[..base.len()]);
    let [least_a, least_b] = limits.reach();
    let mut bits = Bits::NONE;
    mark_large(level, a, b, least_a, least_b, &mut bits);
    let (mut larges, mut nears) = (0, 0);
    bits.each(|at| {
        (x[larges], y[larges]) = (a[at], b[at]);
        larges += 1;
    });
    let [below, end] = limits.below;
    mark_between(level, base, below, end, &mut bits);
    bits.each(|at| {
        let (in_a, in_b) = (a[at].abs() > epsilon, b[at].abs() > epsilon);
        near[nears] = NearCounts::marked(base[at].abs(), [in_a, in_b]);
        nears += 1;
    });
    (lists.larges, lists.nears) = (larges, nears);
    lists.smallest = count_below(level, base, below);
    let (epsilon, below) = (f64::from(epsilon), f64::from(below));
    [f32::count_low(level, a, base, epsilon, below), f32::count_low(level, b, base, epsilon, below)]
}

/// One bit for each element of a chunk: those of its rows, and how many there are.
struct Bits([u32; CHUNK / ROW], usize);

impl Bits {
    const NONE: Self = Self([0; CHUNK / ROW], 0);

    /// Calls `each` with the elements whose bit is set.
    #[inline(always)]
    fn each(&self, mut each: impl FnMut(usize)) {
        for (row, bits) in self.0[..self.1].iter().enumerate() {
            let mut left = *bits;
            while left != 0 {
                each(ROW * row + left.trailing_zeros() as usize);
                left &= left - 1;
            }
        }
    }
}

/// Marks the elements of rows, the last filled up with zeros, for which something holds.
macro_rules! mark {
    ($bits:ident, |$($name:ident),+| $holds:expr) => {{
        $(let $name = ($name.as_chunks::<ROW>(), filled($name.as_chunks::<ROW>().1));)+
        let (whole, tail) = [$(($name.0.0.len(), $name.0.1.len())),+][0];
        $bits.1 = whole + usize::from(tail > 0);
        for row in 0..$bits.1 {
            $(let $name = $name.0.0.get(row).unwrap_or(&$name.1);)+
            let mut flags = [0; ROW];
            for i in 0..ROW {
                $(let $name = $name[i];)+
                flags[i] = if $holds { BITS[i] } else { 0 };
            }
            $bits.0[row] = flags.iter().fold(0, |all, flag| all | flag);
        }
    }};
}

kernel! {
    /// Marks what may be beyond a threshold of one of two experts.
    fn mark_large(a: &[f32], b: &[f32], least_a: f32, least_b: f32, bits: &mut Bits) {
        mark!(bits, |a, b| (a.abs() >= least_a) | (b.abs() >= least_b));
    }
}

kernel! {
    /// Marks magnitudes from one up to another.
    fn mark_between(values: &[f32], least: f32, end: f32, bits: &mut Bits) {
        mark!(bits, |values| (values.abs() >= least) & (values.abs() < end));
    }
}

kernel! {
    /// Counts magnitudes below one.
    fn count_below(values: &[f32], end: f32) -> u64 {
        let mut count = 0u32;
        for value in values {
            count += u32::from(value.abs() < end);
        }
        u64::from(count)
    }
}

/// Writes down what is open among the first large deltas, and makes zeros of it. Counts what is beyond limits.
fn divide(
    level: Level,
    limits: &Limits,
    large: &mut [List; 2],
    larges: usize,
    open: &mut Open,
    above: &mut Above,
) {
    if divide_at_once(level, limits, large, larges, open, above).is_some() {
        return;
    }
    open.make_room(larges);
    let [first, second] = large.each_mut().map(|deltas| &mut deltas[..larges]);
    for (e, deltas) in [&*first, &*second].into_iter().enumerate() {
        for (cut, counts) in above[e].iter_mut().enumerate() {
            counts[0] += count_from(level, deltas, limits.least[e][cut]);
            counts[1] += count_from(level, deltas, limits.end[e][cut]);
        }
    }
    // Where a threshold is known nothing lies between.
    let ends = limits.enough();
    let mut bits = Bits::NONE;
    mark_open(level, first, second, limits.least, ends, &mut bits);
    bits.each(|at| {
        open.push(first[at], second[at]);
        (first[at], second[at]) = (0.0, 0.0);
    });
}

kernel! {
    /// Marks what lies between the ends of one of three ranges of one of two experts.
    fn mark_open(a: &[f32], b: &[f32], least: [[f32; 3]; 2], end: [[f32; 3]; 2], bits: &mut Bits) {
        let between = |e: usize, size: f32| {
            ((size >= least[e][0]) & (size < end[e][0]))
                | ((size >= least[e][1]) & (size < end[e][1]))
                | ((size >= least[e][2]) & (size < end[e][2]))
        };
        mark!(bits, |a, b| between(0, a.abs()) | between(1, b.abs()));
    }
}

kernel! {
    /// Counts magnitudes that reach one.
    fn count_from(values: &[f32], least: f32) -> u64 {
        let mut count = 0u32;
        for value in values {
            count += u32::from(value.abs() >= least);
        }
        u64::from(count)
    }
}

by_level! {
    /// [`divide`] in one loop, where there is a kernel for it.
    fn divide_at_once(limits: &Limits, large: &mut [List; 2], larges: usize, open: &mut Open, above: &mut Above) -> Option<()> =
        by_marks, by_marks, x86::divide;
}

fn by_marks(
    _limits: &Limits,
    _large: &mut [List; 2],
    _larges: usize,
    _open: &mut Open,
    _above: &mut Above,
) -> Option<()> {
    None
}

by_level! {
    /// [`look`] in few loops, where there are kernels for it.
    fn at_once(
        trio: Trio<'_>, thresholds: Thresholds<f32>, limits: &Limits, bins: &mut [&mut [i64]; 2], lists: &mut Lists,
        lanes: &mut [Lanes],
    ) -> Option<Looked> = by_steps, by_steps, x86::glance;
}

fn by_steps(
    _trio: Trio<'_>,
    _thresholds: Thresholds<f32>,
    _limits: &Limits,
    _bins: &mut [&mut [i64]; 2],
    _lists: &mut Lists,
    _lanes: &mut [Lanes],
) -> Option<Looked> {
    None
}
