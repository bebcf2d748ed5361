//! What a method does with a tensor, in the three steps of every method: scan (chunks into an
//! accumulator), learn (accumulator into the parameters of the next step), apply (chunks into chunks).

use std::ops::Range;

use serde_json::{Map, Value};

use super::columns::ColumnPartial;
use super::conflicts::guess::Opened;
use super::counters::Counters;
use crate::error::Result;
use crate::kernel::Level;
use crate::kernel::blocks::Blocks;
use crate::kernel::candidates::{Candidates, Finder};
use crate::kernel::duel::Duel;
use crate::kernel::lanes::{self, Lanes};
use crate::kernel::ranks::Ranks;
use crate::kernel::rivals::Picked;
use crate::kernel::select::Tally;
use crate::kernel::sieve::Sieve;
use crate::kernel::stats::Seen;
use crate::kernel::values::Values;
use crate::plan::{PlannedTensor, marks};

/// What a job is for: a tensor, or all tensors of a whole-model program.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// SIMD level.
    pub level: Level,
    /// The tensor; `None` for the whole model.
    pub tensor: Option<&'a PlannedTensor>,
    /// Number of elements.
    pub elements: u64,
    /// Whether the arithmetic is f64.
    pub wide: bool,
    /// Most counters of one selection in each worker.
    pub bins: usize,
    /// Most scores that are written down at a time, by all workers, for one model.
    pub scores: usize,
    /// Norm of the statistics in each checkpoint, where the user brought some.
    pub statistic_norms: &'a [f64],
}

impl Scope<'_> {
    /// Its name in errors and random streams.
    pub fn name(&self) -> &str {
        self.tensor.map_or("the whole model", |t| &t.name)
    }
}

/// One chunk of a tensor in all models that the program reads, in the program's order. For methods that see groups
/// of elements together, a chunk is a run of whole groups.
pub struct Chunk<'a> {
    /// SIMD level.
    pub level: Level,
    /// Index in the tensor of the first element.
    pub first: u64,
    /// Number of elements.
    pub len: usize,
    /// Those that belong to the tile; groups may reach beyond it.
    pub inner: Range<usize>,
    /// The decoded models.
    pub values: &'a [Values],
    /// The bytes of the first three, where nothing is decoded.
    pub stored: Option<[&'a [u8]; 3]>,
    /// Scratch space.
    pub scratch: &'a mut Scratch,
}

/// Buffers of one worker, each as long as the longest chunk.
pub struct Scratch {
    /// Length of each buffer.
    pub stride: usize,
    /// A buffer for each expert, one after the other.
    pub deltas: Vec<f64>,
    /// The same in f32, for those who ask for it.
    pub narrow: Vec<f32>,
    /// Sum over experts.
    pub total: Vec<f64>,
    /// The result.
    pub out: Vec<f64>,
    /// Bits that go with the tile, for methods that make masks: [`marks::TILE_BYTES`] for each task.
    pub marks: Vec<u8>,
    /// Two running sums of the tile for each task.
    pub sums: Vec<[Lanes; 2]>,
    /// What a scan keeps of the experts' deltas in the tile, where it shall.
    pub sieves: Vec<Sieve>,
    /// For ranking within rows.
    pub ranks: Ranks,
    /// For masks in blocks.
    pub blocks: Blocks,
    /// For scores of which few matter.
    pub picked: Picked,
    /// The same between two experts.
    pub duel: Duel,
    /// For candidates between two experts.
    pub finder: Finder,
    /// For a report's scan by a guess.
    pub seen: Seen,
}

impl Scratch {
    /// Buffers for programs that read `models` models in chunks of at most `stride` elements.
    pub fn new(models: usize, stride: usize) -> Self {
        let buffer = || vec![0.0; stride];
        Self {
            stride,
            deltas: vec![0.0; models * stride],
            narrow: Vec::new(),
            total: buffer(),
            out: buffer(),
            marks: Vec::new(),
            sums: Vec::new(),
            sieves: Vec::new(),
            ranks: Ranks::default(),
            blocks: Blocks::default(),
            picked: Picked::default(),
            duel: Duel::default(),
            finder: Finder::default(),
            seen: Seen::default(),
        }
    }

    /// Clears bits and sums for a tile of so many tasks.
    pub fn begin_marks(&mut self, tasks: usize) {
        self.marks.clear();
        self.marks.resize(tasks * marks::TILE_BYTES, 0);
        self.sums.clear();
        self.sums.resize(tasks, [Lanes::default(); 2]);
    }

    /// The bits of a tile of so many elements, one task after the other, and its sums.
    pub fn end_marks(&self, elements: u64) -> (Vec<u8>, Vec<f64>) {
        let row = marks::row_bytes(elements) as usize;
        let mut rows = Vec::with_capacity(self.sums.len() * row);
        for task in self.marks.chunks(marks::TILE_BYTES) {
            rows.extend_from_slice(&task[..row]);
        }
        (rows, self.sums.iter().flatten().map(lanes::total).collect())
    }

    /// The first `len` deltas of expert `at`.
    pub fn delta(&mut self, at: usize, len: usize) -> &mut [f64] {
        &mut self.deltas[at * self.stride..at * self.stride + len]
    }
}

/// Sums that belong to matrices, or to their columns, of which a tile touches a few.
#[derive(Default)]
pub struct Folding {
    /// The first matrix that the tile touches.
    pub first: usize,
    /// So many sums for each matrix from there on.
    pub sums: Vec<f64>,
}

impl Folding {
    /// The sums of a matrix, `width` for each.
    pub fn of(&mut self, matrix: usize, width: usize) -> &mut [f64] {
        if self.sums.is_empty() {
            self.first = matrix;
        }
        let at = (matrix - self.first) * width;
        if self.sums.len() < at + width {
            self.sums.resize(at + width, 0.0);
        }
        &mut self.sums[at..at + width]
    }

    /// Adds the sums to those of all matrices and starts anew.
    pub fn add_to(&mut self, all: &mut [f64], width: usize) {
        for (a, s) in all[self.first * width..].iter_mut().zip(&self.sums) {
            *a += s;
        }
        self.sums.clear();
    }
}

/// What one worker gathers during a scan. A job uses the parts it needs.
#[derive(Default)]
pub struct Partial {
    /// Counters of selections.
    pub tallies: Vec<Tally>,
    /// Running sums of the tile in work.
    pub lanes: Vec<Lanes>,
    /// Whole numbers, added in any order.
    pub counts: Vec<i64>,
    /// Sums for each column.
    pub columns: Option<ColumnPartial>,
    /// Largest numbers, compared in any order.
    pub maxima: Vec<f64>,
    /// Sums of the tile in work that are too many to be kept for every tile: see [`Job::fold`].
    pub folding: Folding,
    /// Tables of magnitudes.
    pub keys: Counters,
    /// Of each expert, the value of largest magnitude and its index in the tensor.
    pub peaks: Vec<Option<(f64, u64)>>,
    /// What may be at a threshold, of each expert.
    pub candidates: Vec<Candidates>,
    /// What may be beyond a threshold of a report.
    pub opened: Opened,
    sums: Vec<(u64, Vec<f64>)>,
}

impl Partial {
    /// An accumulator of counters, one for each selection.
    pub fn with_tallies(tallies: Vec<Tally>) -> Self {
        Self { tallies, ..Self::default() }
    }

    /// An accumulator of so many sums.
    pub fn with_lanes(count: usize) -> Self {
        Self { lanes: vec![Lanes::default(); count], ..Self::default() }
    }

    /// An accumulator of so many whole numbers.
    pub fn with_counts(count: usize) -> Self {
        Self { counts: vec![0; count], ..Self::default() }
    }

    /// An accumulator of sums for each column.
    pub fn with_columns(columns: ColumnPartial) -> Self {
        Self { columns: Some(columns), ..Self::default() }
    }

    /// Ends a tile: its sums are kept under its ordinal.
    pub fn close_tile(&mut self, ordinal: u64) {
        if !self.lanes.is_empty() {
            self.sums.push((ordinal, self.lanes.iter().map(lanes::total).collect()));
            self.lanes.fill(Lanes::default());
        }
        if let Some(columns) = &mut self.columns {
            columns.close();
        }
        self.opened.close_tile(ordinal);
    }

    /// Adds what another worker gathered.
    pub fn merge(&mut self, other: Self) {
        for (a, b) in self.tallies.iter_mut().zip(&other.tallies) {
            a.merge(b);
        }
        for (a, b) in self.counts.iter_mut().zip(&other.counts) {
            *a += b;
        }
        for (a, b) in self.maxima.iter_mut().zip(&other.maxima) {
            *a = a.max(*b);
        }
        self.keys.merge(other.keys);
        for (a, b) in self.peaks.iter_mut().zip(other.peaks) {
            *a = higher(*a, b);
        }
        for (a, b) in self.candidates.iter_mut().zip(other.candidates) {
            a.merge(b);
        }
        self.opened.merge(other.opened);
        self.sums.extend(other.sums);
    }

    /// The sums of each tile, in tile order.
    pub fn sums_by_tile(mut self) -> Vec<Vec<f64>> {
        self.sums.sort_unstable_by_key(|(ordinal, _)| *ordinal);
        self.sums.into_iter().map(|(_, sums)| sums).collect()
    }

    /// The sums over all tiles, added in tile order so that they do not depend on who scanned what.
    pub fn sums(mut self) -> Vec<f64> {
        self.sums.sort_unstable_by_key(|(ordinal, _)| *ordinal);
        let mut totals = vec![0.0; self.lanes.len()];
        for (_, sums) in &self.sums {
            for (t, s) in totals.iter_mut().zip(sums) {
                *t += s;
            }
        }
        totals
    }
}

/// The higher of two peaks; the earlier of equal ones.
fn higher(a: Option<(f64, u64)>, b: Option<(f64, u64)>) -> Option<(f64, u64)> {
    match (a, b) {
        (Some((x, i)), Some((y, j))) => {
            let first = x.abs() > y.abs() || (x.abs() == y.abs() && i < j);
            if first { a } else { b }
        }
        (found, None) | (None, found) => found,
    }
}

/// What is looked at of a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// The values of all models.
    Values,
    /// The values of the first model, and the deltas of the others from it.
    Changes,
    /// Those deltas alone.
    Deltas,
    /// The bytes of three models.
    Stored,
}

impl Look {
    /// What samples and scans of a job look at.
    pub fn of_scan(job: &dyn Job) -> Self {
        if job.looks_at_deltas() { Self::Deltas } else { Self::Values }
    }

    /// What a survey looks at.
    pub fn of_survey(job: &dyn Job) -> Self {
        if job.looks_at_stored() { Self::Stored } else { Self::Values }
    }

    /// What [`Job::apply`] looks at.
    pub fn of_apply(job: &dyn Job) -> Self {
        if job.looks_at_deltas() { Self::Changes } else { Self::Values }
    }
}

/// Which of the elements at a threshold a tile keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ties {
    /// All.
    All,
    /// None.
    None,
    /// The first so many.
    First(u64),
}

impl Ties {
    /// How many there may still be.
    pub const fn limit(self) -> u64 {
        match self {
            Self::All => u64::MAX,
            Self::None => 0,
            Self::First(n) => n,
        }
    }

    /// Notes how many there may still be.
    pub const fn set_limit(&mut self, left: u64) {
        if let Self::First(n) = self {
            *n = left;
        }
    }
}

/// A method at work on one tensor, or on the whole model.
pub trait Job: Send + Sync {
    /// Whether a sample of values would help the scans.
    fn wants_sample(&self) -> bool {
        false
    }

    /// Takes a chunk of the sample.
    fn sample(&mut self, _chunk: &mut Chunk<'_>) {}

    /// Ends the sample, out of `population` elements.
    fn end_sample(&mut self, _population: u64) {}

    /// Takes the statistics of the tensor that the user brought as a whole, one list of numbers for each model that takes
    /// part. Called first.
    ///
    /// # Errors
    /// Whose they are, and what is wrong with them.
    fn take_statistics(
        &mut self,
        _level: Level,
        _statistics: Vec<Vec<f64>>,
    ) -> std::result::Result<(), (usize, String)> {
        Ok(())
    }

    /// Whether something has still to be learnt.
    fn needs_scan(&self) -> bool {
        false
    }

    /// An empty accumulator for the next scan.
    fn partial(&self) -> Partial {
        Partial::default()
    }

    /// Whether the next scan has anything to gather from the tile that begins at this element of its tensor.
    fn scans_tile(&self, _first: u64) -> bool {
        true
    }

    /// Whether samples and scans look at nothing but the experts' deltas from the first model, and [`apply`](Self::apply)
    /// at nothing but them and the first model's values. Where deltas are known by themselves the rest is left out.
    fn looks_at_deltas(&self) -> bool {
        false
    }

    /// Whether the next scan takes the bytes of its three models, where they come as they are stored, and needs no decoded
    /// values then.
    fn looks_at_stored(&self) -> bool {
        false
    }

    /// How many experts' deltas the next scan can sieve, if they are known by themselves: [`apply`](Self::apply) and
    /// [`count_ties`](Self::count_ties) then look at nothing else of them if nothing has to be learnt after it, and the
    /// sums of their squares are the sieves'.
    fn sieves(&self) -> usize {
        0
    }

    /// Gathers from a chunk.
    fn scan(&self, _chunk: &mut Chunk<'_>, _partial: &mut Partial) {}

    /// Whether tiles are to be folded.
    fn folds(&self) -> bool {
        false
    }

    /// Adds the sums of a tile to those of all tiles before it. Called in tile order, so that the result does not depend
    /// on who scanned what, and one tile's sums are all that a worker holds.
    fn fold(&self, _folding: &mut Folding) {}

    /// Learns from a whole scan. `tensor` names the scope in errors.
    ///
    /// # Errors
    /// When what was gathered has no value.
    fn learn(&mut self, _partial: Partial, _tensor: &str) -> Result<()> {
        Ok(())
    }

    /// What was learnt, for the report of a merge whose numbers hold for the whole model: lists with one entry for each
    /// expert that takes part, by name.
    fn learnt(&self) -> Map<String, Value> {
        Map::new()
    }

    /// Number of selections whose ties are kept in order, over the whole scope.
    fn ordered_ties(&self) -> usize {
        0
    }

    /// Adds the ties of a chunk to the counts of its tile.
    fn count_ties(&self, _chunk: &mut Chunk<'_>, _counts: &mut [u64]) {}

    /// What a tile with these ties, after so many in earlier tiles, keeps.
    fn share_ties(&self, _before: &[u64], _counts: &[u64]) -> Vec<Ties> {
        Vec::new()
    }

    /// Whether values that are the same in all models stay as they are, so that a tile that is byte-identical in
    /// all of them is copied. Asked when everything is learnt.
    fn keeps_common_values(&self) -> bool {
        true
    }

    /// Computes `scratch.out`, and adds the squares that the report wants to `squares`: of each model's
    /// delta, or of its values where there is no base, over the elements that belong to the tile.
    fn apply(&self, chunk: &mut Chunk<'_>, ties: &mut [Ties], squares: &mut [Lanes]);
}
