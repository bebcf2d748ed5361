//! Sums for each column of a matrix, or of each matrix of a batch. Columns run through all tiles, and their sums must
//! not depend on who scanned which tile: each tile sums for itself, and the tiles are added in their order. What comes
//! too early waits; as tiles are taken in order, little more waits than there are workers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::kernel::Level;
use crate::kernel::gram;
use crate::plan::TILE_ELEMENTS;

/// Where the columns of a tensor lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Number of elements in a column.
    pub rows: u64,
    /// Number of columns of a matrix.
    pub columns: u64,
    /// Number of columns of all matrices of the batch.
    pub total: u64,
}

impl Shape {
    /// Number of the column of an element, counted through the batch.
    pub const fn column(&self, element: u64) -> u64 {
        element / (self.rows * self.columns) * self.columns + element % self.columns
    }

    /// Cuts a run of elements at the ends of rows, and calls `each` with the pieces and the column where each begins.
    pub fn for_pieces(&self, first: u64, len: usize, mut each: impl FnMut(std::ops::Range<usize>, u64)) {
        let mut at = 0;
        while at < len {
            let element = first + at as u64;
            let left = (self.columns - element % self.columns).min((len - at) as u64) as usize;
            each(at..at + left, self.column(element));
            at += left;
        }
    }
}

/// The sums of one tile, for the columns from `first` on.
struct TileSums {
    tile: u64,
    first: u64,
    sums: Vec<f64>,
}

/// The sums of all tiles up to one.
struct Fold {
    next: u64,
    waiting: BTreeMap<u64, TileSums>,
    totals: Vec<f64>,
}

/// The sums of a tensor, `entries` for each column.
pub struct ColumnSums {
    shape: Shape,
    entries: usize,
    fold: Mutex<Fold>,
}

impl ColumnSums {
    /// All zero.
    pub fn new(shape: Shape, entries: usize) -> Self {
        let totals = vec![0.0; shape.total as usize * entries];
        Self { shape, entries, fold: Mutex::new(Fold { next: 0, waiting: BTreeMap::new(), totals }) }
    }

    /// Where the columns lie.
    pub const fn shape(&self) -> Shape {
        self.shape
    }

    /// The sums when all tiles have come: entry `e` of column `c` is number `e · total + c`.
    pub fn totals(&self) -> Vec<f64> {
        std::mem::take(&mut self.fold.lock().unwrap_or_else(PoisonError::into_inner).totals)
    }

    fn add(&self, sums: TileSums) {
        let mut fold = self.fold.lock().unwrap_or_else(PoisonError::into_inner);
        let Fold { next, waiting, totals } = &mut *fold;
        waiting.insert(sums.tile, sums);
        while let Some(tile) = waiting.remove(next) {
            let span = tile.sums.len() / self.entries;
            for (entry, sums) in tile.sums.chunks_exact(span.max(1)).enumerate() {
                let from = entry * self.shape.total as usize + tile.first as usize;
                for (total, sum) in totals[from..from + span].iter_mut().zip(sums) {
                    *total += sum;
                }
            }
            *next += 1;
        }
    }
}

/// What one worker adds to the sums: the tile in work.
pub struct ColumnPartial {
    whole: Arc<ColumnSums>,
    open: Option<TileSums>,
}

impl ColumnPartial {
    /// Nothing yet.
    pub const fn new(whole: Arc<ColumnSums>) -> Self {
        Self { whole, open: None }
    }

    /// Adds the products of all pairs of `count` vectors that lie one `stride` after the other: `len` elements from
    /// `first` on. All of them belong to one tile.
    pub fn add(
        &mut self,
        level: Level,
        vectors: &[f64],
        stride: usize,
        count: usize,
        first: u64,
        len: usize,
    ) {
        let (shape, entries) = (self.whole.shape, self.whole.entries);
        let open = self.open.get_or_insert_with(|| {
            // Columns of the matrices that the tile touches.
            let tile = first / TILE_ELEMENTS;
            let matrix = shape.rows * shape.columns;
            let last = ((tile + 1) * TILE_ELEMENTS).min(shape.rows * shape.total) - 1;
            let before = tile * TILE_ELEMENTS / matrix;
            let span = (last / matrix - before + 1) * shape.columns;
            TileSums { tile, first: before * shape.columns, sums: vec![0.0; span as usize * entries] }
        });
        let span = open.sums.len() / entries;
        let from = open.first;
        shape.for_pieces(first, len, |piece, column| {
            let at = (column - from) as usize;
            let vector = |i: usize| &vectors[i * stride..][piece.clone()];
            let mut entry = 0;
            for i in 0..count {
                for j in i..count {
                    let sums = &mut open.sums[entry * span + at..][..piece.len()];
                    gram::add_products_each(level, vector(i), vector(j), sums);
                    entry += 1;
                }
            }
        });
    }

    /// Ends the tile.
    pub fn close(&mut self) {
        if let Some(sums) = self.open.take() {
            self.whole.add(sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_cut_at_the_ends_of_rows() {
        // Two matrices of two rows and three columns.
        let shape = Shape { rows: 2, columns: 3, total: 6 };
        let mut found = Vec::new();
        shape.for_pieces(2, 8, |piece, column| found.push((piece, column)));
        assert_eq!(found, [(0..1, 2), (1..4, 0), (4..7, 3), (7..8, 3)]);
    }

    #[test]
    fn tiles_are_added_in_their_order() {
        let shape = Shape { rows: 3 * TILE_ELEMENTS / 2, columns: 2, total: 2 };
        let tile = TILE_ELEMENTS as usize;
        // Sums that depend on their order: 1 + 1e16 − 1e16.
        let parts = [1.0, 1e8, 0.0].map(|v| vec![v; tile]);
        let mut results = Vec::new();
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let sums = Arc::new(ColumnSums::new(shape, 1));
            for at in order {
                let mut partial = ColumnPartial::new(sums.clone());
                partial.add(Level::BASELINE, &parts[at], tile, 1, (at * tile) as u64, tile);
                partial.close();
            }
            results.push(sums.totals());
        }
        assert_eq!(results[0], results[1]);
        assert_eq!(results[0], results[2]);
        assert_eq!(
            results[0],
            [(tile / 2) as f64 * (1.0 + 1e16); 2]
                .map(|_| { (tile / 2) as f64 + (0..tile / 2).map(|_| 1e16).sum::<f64>() })
        );
    }
}
