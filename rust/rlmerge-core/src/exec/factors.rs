//! The change that an adapter makes to a tensor, formed where a worker needs it: a few rows at a time, from factors
//! that it read for the tensor (the right one) and the tile (the left one).

use std::ops::Range;

use crate::dtype::DType;
use crate::error::Result;
use crate::kernel::lanes::{self, Lanes};
use crate::kernel::lowrank::{BLOCK, Band, BlockColumn, PANEL, PanelRow, multiply, pack_left, pack_right};
use crate::kernel::values::Values;
use crate::kernel::{CHUNK, Level, convert};
use crate::plan::CHANGE_BAND;
use crate::shard::{Change, Shard, Stored};

/// The change of one tensor in the hands of one worker.
#[derive(Default)]
pub struct Product {
    /// Model and tensor of what is at hand.
    of: Option<(usize, usize)>,
    right: Vec<PanelRow>,
    left: Vec<BlockColumn>,
    /// Lengths that rows shall have, for DoRA.
    lengths: Vec<f32>,
    /// Rows of `left` and `lengths`.
    rows: Range<u64>,
    /// The elements that were prepared for.
    wanted: Range<u64>,
    /// The elements in the band of the values: whole rows, or a part of one.
    made: Range<u64>,
    /// What the rows of the band are multiplied by, for DoRA.
    factors: Vec<f64>,
    read: Reader,
}

/// Buffers for reading factors.
#[derive(Default)]
struct Reader {
    bytes: Vec<u8>,
    numbers: Vec<f32>,
    wide: Vec<f64>,
}

/// The stored rows of a tensor whose rows are brought to new lengths.
pub struct Rows<'a> {
    /// Bytes of whole rows.
    pub bytes: &'a [u8],
    /// The first of them.
    pub first: u64,
    /// Their dtype.
    pub dtype: DType,
}

impl Product {
    /// Reads what the elements `first..end` of a tensor need.
    pub fn prepare(
        &mut self,
        level: Level,
        shards: &[Shard],
        change: &Change,
        of: (usize, usize),
        elements: Range<u64>,
    ) -> Result<()> {
        if elements.is_empty() {
            return Ok(());
        }
        let rows = elements.start / change.columns..elements.end.div_ceil(change.columns);
        if self.of != Some(of) {
            self.of = None;
            self.rows = 0..0;
            self.load_right(level, shards, change)?;
            self.of = Some(of);
        }
        // A row that is wanted by itself is made by itself, and must come first.
        let at_hand = self.rows.start <= rows.start && rows.end <= self.rows.end;
        if !at_hand || self.rows.is_empty() || (rows.end - rows.start == 1 && self.rows != rows) {
            self.rows = 0..0;
            self.made = 0..0;
            self.load_left(level, shards, change, &rows)?;
            self.rows = rows;
        }
        self.wanted = elements;
        Ok(())
    }

    fn load_right(&mut self, level: Level, shards: &[Shard], change: &Change) -> Result<()> {
        let (rank, columns) = (change.rank as usize, change.columns as usize);
        let Some(stored) = &change.right.stored else {
            // Without steps every element is the same one.
            let ones = [1.0f32];
            pack_right(&ones, rank, columns, (0, 0), &mut self.right);
            return Ok(());
        };
        self.read.numbers.clear();
        self.read.add(level, shards, stored, 0..stored.elements)?;
        let steps = if change.right.transposed { (1, rank) } else { (columns, 1) };
        pack_right(&self.read.numbers, rank, columns, steps, &mut self.right);
        Ok(())
    }

    fn load_left(
        &mut self,
        level: Level,
        shards: &[Shard],
        change: &Change,
        rows: &Range<u64>,
    ) -> Result<()> {
        if let Some(stored) = &change.magnitude {
            self.read.numbers.clear();
            self.read.add(level, shards, stored, rows.clone())?;
            self.lengths.clone_from(&self.read.numbers);
        }
        let (rank, count) = (change.rank as usize, (rows.end - rows.start) as usize);
        let Some(stored) = &change.left.stored else {
            pack_left(&[1.0], count, rank, (0, 0), &mut self.left);
            return Ok(());
        };
        self.read.numbers.clear();
        if change.left.transposed {
            for k in 0..change.rank {
                let begin = k * change.rows;
                self.read.add(level, shards, stored, begin + rows.start..begin + rows.end)?;
            }
            pack_left(&self.read.numbers, count, rank, (1, count), &mut self.left);
        } else {
            self.read.add(level, shards, stored, rows.start * change.rank..rows.end * change.rank)?;
            pack_left(&self.read.numbers, count, rank, (rank, 1), &mut self.left);
        }
        Ok(())
    }

    /// Where in the band of the values the change of these elements is, of those that were prepared. `band` is the same
    /// one every time.
    pub fn delta(
        &mut self,
        level: Level,
        change: &Change,
        elements: &Range<u64>,
        band: &mut Band,
    ) -> Range<usize> {
        self.make(level, change, elements, band);
        self.part(elements)
    }

    /// Adds the change to the values of these elements. `origin` is whose values they are, where the
    /// delta shall be the change itself; `stored` are the whole rows around them, for DoRA.
    pub fn apply(
        &mut self,
        level: Level,
        change: &Change,
        elements: &Range<u64>,
        values: &mut Values,
        origin: usize,
        stored: Option<&Rows<'_>>,
    ) {
        let made = self.make(level, change, elements, values.band());
        let Some(stored) = stored else {
            return values.add_part(level, self.part(elements), Some(origin));
        };
        if made {
            self.find_factors(level, change, stored, values.band());
        }
        values.add_part(level, self.part(elements), None);
        let (columns, first_row) = (change.columns, self.made.start / change.columns);
        for row in elements.start / columns..elements.end.div_ceil(columns) {
            let inside = (row * columns).max(elements.start)..((row + 1) * columns).min(elements.end);
            let factor = self.factors[(row - first_row) as usize];
            let at = |element: u64| (element - elements.start) as usize;
            values.multiply(at(inside.start)..at(inside.end), factor);
        }
    }

    fn part(&self, elements: &Range<u64>) -> Range<usize> {
        (elements.start - self.made.start) as usize..(elements.end - self.made.start) as usize
    }

    /// Makes a band of the product that holds at least these elements, and says so, unless there is one.
    fn make(&mut self, level: Level, change: &Change, elements: &Range<u64>, band: &mut Band) -> bool {
        if self.made.start <= elements.start && elements.end <= self.made.end {
            return false;
        }
        let (rank, columns) = (change.rank, change.columns);
        let (first, last, left, right);
        if change.magnitude.is_none() && self.rows.end - self.rows.start == 1 {
            // A sample looks at a part of a row here and there.
            let begin = self.rows.start * columns;
            let panels = (self.wanted.start - begin) / PANEL as u64;
            (first, last) = (begin + panels * PANEL as u64, self.wanted.end);
            (left, right) = (0, panels * rank);
            self.made = first..last;
        } else {
            // Bands begin where a block of the left factor does.
            let block = BLOCK as u64;
            let start = (elements.start / columns - self.rows.start) / block;
            let row = self.rows.start + start * block;
            let needed = elements.end.div_ceil(columns) - row;
            let rows = (CHANGE_BAND / columns).max(needed).next_multiple_of(block);
            (first, last) = (row * columns, (row + rows).min(self.rows.end) * columns);
            (left, right) = (start * rank, 0);
            self.made = first..last;
        }
        let count = (last - first) as usize;
        let width = (last - first).min(columns) as usize;
        let panels = width.div_ceil(PANEL) * rank as usize;
        let blocks = &self.left[left as usize..];
        let panels = &self.right[right as usize..right as usize + panels];
        multiply(level, blocks, panels, rank as usize, width, change.scale as f32, band.room(count));
        true
    }

    /// What each row of the band is multiplied by: its length to be over the one that it has (Liu et al., DoRA,
    /// ICML 2024, equation 5). Rows are summed from their beginning, so tiles do not show.
    fn find_factors(&mut self, level: Level, change: &Change, stored: &Rows<'_>, band: &Band) {
        let columns = change.columns as usize;
        let size = (stored.dtype.bits() / 8) as usize;
        let wide = stored.dtype == DType::F64;
        let mut values = Values::default();
        let first = self.made.start / change.columns;
        let band = band.part(&self.part(&self.made)).chunks_exact(columns);
        let mut factors = Vec::with_capacity(band.len());
        for (row, delta) in (first..).zip(band) {
            let begin = (row - stored.first) as usize * columns * size;
            let mut squares = Lanes::default();
            let bytes = stored.bytes[begin..begin + columns * size].chunks(CHUNK * size);
            for (bytes, delta) in bytes.zip(delta.chunks(CHUNK)) {
                values.load(level, stored.dtype, bytes, delta.len(), wide);
                values.add(level, delta);
                values.add_squares(level, &mut squares);
            }
            let length = self.lengths[(row - self.rows.start) as usize];
            factors.push(f64::from(length) / lanes::total(&squares).sqrt());
        }
        self.factors = factors;
    }
}

impl Reader {
    /// Reads elements and adds them to `numbers`, in f32.
    fn add(&mut self, level: Level, shards: &[Shard], stored: &Stored, elements: Range<u64>) -> Result<()> {
        let size = stored.dtype.bits() / 8;
        let count = (elements.end - elements.start) as usize;
        self.bytes.resize(count * size as usize, 0);
        shards[stored.shard].read_at(stored.begin + elements.start * size, &mut self.bytes)?;
        let before = self.numbers.len();
        self.numbers.resize(before + count, 0.0);
        let out = &mut self.numbers[before..];
        if stored.dtype == DType::F64 {
            self.wide.resize(count, 0.0);
            convert::decode_wide(level, &self.bytes, &mut self.wide);
            out.iter_mut().zip(&self.wide).for_each(|(o, w)| *o = *w as f32);
        } else {
            convert::decode_narrow(level, stored.dtype, &self.bytes, out);
        }
        Ok(())
    }
}
