//! The change that an adapter makes to a tensor, formed where a worker needs it: a few rows at a time, from factors
//! that it read for the tensor (the right one) and the tile (the left one).

use std::ops::Range;

use crate::dtype::DType;
use crate::error::Result;
use crate::kernel::lanes::{self, Lanes};
use crate::kernel::lowrank::{BLOCK, BlockColumn, PanelRow, multiply, pack_left, pack_right};
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
    band: Vec<f32>,
    /// Rows of `band`.
    made: Range<u64>,
    /// What the rows of `band` are multiplied by, for DoRA.
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
        if rows.start < self.rows.start || self.rows.end < rows.end || self.rows.is_empty() {
            self.rows = 0..0;
            self.made = 0..0;
            self.load_left(level, shards, change, &rows)?;
            self.rows = rows;
        }
        Ok(())
    }

    fn load_right(&mut self, level: Level, shards: &[Shard], change: &Change) -> Result<()> {
        let (rank, columns) = (change.rank as usize, change.columns as usize);
        let Some(stored) = &change.right.stored else {
            let ones = [1.0f32];
            pack_right(&ones, rank, columns, |_, _| 0, &mut self.right);
            return Ok(());
        };
        self.read.numbers.clear();
        self.read.add(level, shards, stored, 0..stored.elements)?;
        let turned = change.right.transposed;
        let at = |k, j| if turned { j * rank + k } else { k * columns + j };
        pack_right(&self.read.numbers, rank, columns, at, &mut self.right);
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
            pack_left(&[1.0], count, rank, |_, _| 0, &mut self.left);
            return Ok(());
        };
        self.read.numbers.clear();
        if change.left.transposed {
            for k in 0..change.rank {
                let begin = k * change.rows;
                self.read.add(level, shards, stored, begin + rows.start..begin + rows.end)?;
            }
            pack_left(&self.read.numbers, count, rank, |i, k| k * count + i, &mut self.left);
        } else {
            self.read.add(level, shards, stored, rows.start * change.rank..rows.end * change.rank)?;
            pack_left(&self.read.numbers, count, rank, |i, k| i * rank + k, &mut self.left);
        }
        Ok(())
    }

    /// Adds the change to the values of these elements. `origin` is whose values they are, where the
    /// delta shall be the change itself; `stored` are the whole rows around them, for DoRA.
    pub fn apply(
        &mut self,
        level: Level,
        change: &Change,
        elements: Range<u64>,
        values: &mut Values,
        origin: usize,
        stored: Option<&Rows<'_>>,
    ) {
        let columns = change.columns;
        let Range { start: first, end } = elements;
        let rows = first / columns..end.div_ceil(columns);
        if rows.start < self.made.start || self.made.end < rows.end || self.made.is_empty() {
            self.make(level, change, &rows);
            if let Some(stored) = stored {
                self.find_factors(level, change, stored);
            }
        }
        let begin = (first - self.made.start * columns) as usize;
        let delta = &self.band[begin..begin + (end - first) as usize];
        if stored.is_none() {
            return values.add(level, delta, Some(origin));
        }
        values.add(level, delta, None);
        for row in rows {
            let inside = (row * columns).max(first)..((row + 1) * columns).min(end);
            let factor = self.factors[(row - self.made.start) as usize];
            values.multiply((inside.start - first) as usize..(inside.end - first) as usize, factor);
        }
    }

    /// Makes a band of the product that holds at least these rows.
    fn make(&mut self, level: Level, change: &Change, rows: &Range<u64>) {
        let block = BLOCK as u64;
        // Bands begin where a block of the left factor does.
        let first = self.rows.start + (rows.start - self.rows.start) / block * block;
        let wanted = (CHANGE_BAND / change.columns).max(rows.end - first).next_multiple_of(block);
        let last = (first + wanted).min(self.rows.end);
        self.made = first..last;
        let (rank, columns) = (change.rank as usize, change.columns as usize);
        self.band.resize((last - first) as usize * columns, 0.0);
        let blocks = (first - self.rows.start) as usize / BLOCK * rank;
        let blocks = &self.left[blocks..blocks + ((last - first).div_ceil(block) as usize) * rank];
        multiply(level, blocks, &self.right, rank, columns, change.scale as f32, &mut self.band);
    }

    /// What each row of the band is multiplied by: its length to be over the one that it has (Liu et al., DoRA,
    /// ICML 2024, equation 5). Rows are summed from their beginning, so tiles do not show.
    fn find_factors(&mut self, level: Level, change: &Change, stored: &Rows<'_>) {
        let columns = change.columns as usize;
        let size = (stored.dtype.bits() / 8) as usize;
        let wide = stored.dtype == DType::F64;
        let mut values = Values::default();
        self.factors.clear();
        for (row, delta) in self.made.clone().zip(self.band.chunks_exact(columns)) {
            let begin = (row - stored.first) as usize * columns * size;
            let mut squares = Lanes::default();
            let bytes = stored.bytes[begin..begin + columns * size].chunks(CHUNK * size);
            for (bytes, delta) in bytes.zip(delta.chunks(CHUNK)) {
                values.load(level, stored.dtype, bytes, delta.len(), wide);
                values.add(level, delta, None);
                values.add_squares(level, &mut squares);
            }
            let length = self.lengths[(row - self.rows.start) as usize];
            self.factors.push(f64::from(length) / lanes::total(&squares).sqrt());
        }
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
