//! Products of two thin matrices, the changes that LoRA adapters make, in f32.
//!
//! Each element is its own chain of fused multiply-adds over the rank, from the first column of the left factor to
//! the last, and one multiplication by the scale. How many elements go through it together depends on the level, the
//! chain does not, so that all levels give the same bits. The processor without a fused multiply-add calls the
//! mathematical library for each, which is slow and right.
//!
//! The vector forms are spelled out with intrinsics, row by row: left to itself the compiler keeps the sums in memory.

use std::ops::Range;

use super::level::by_level;

/// Columns of a panel of the right factor.
pub const PANEL: usize = 16;
/// Rows of a block of the left factor.
pub const BLOCK: usize = 8;

/// A row of the right factor in one panel. A line of the cache, so that no load touches two.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(64))]
pub struct PanelRow(pub [f32; PANEL]);
/// A column of the left factor in one block.
pub type BlockColumn = [f32; BLOCK];

/// How far apart the numbers of a stored factor lie: from row to row, and from column to column.
pub type Steps = (usize, usize);

/// Rows of a product as they are made: a band of a matrix at a time.
#[derive(Debug, Default)]
pub struct Band {
    numbers: Vec<f32>,
    /// Where among the numbers a line of the cache begins, and the product does.
    begin: usize,
}

impl Band {
    /// Room for so many numbers, which begins with a line of the cache. What was there is lost.
    pub fn room(&mut self, count: usize) -> &mut [f32] {
        self.numbers.resize((count + PANEL).max(self.numbers.len()), 0.0);
        self.begin = self.numbers.as_ptr().align_offset(align_of::<PanelRow>()).min(PANEL);
        &mut self.numbers[self.begin..self.begin + count]
    }

    /// A part of the product.
    #[must_use]
    pub fn part(&self, part: &Range<usize>) -> &[f32] {
        &self.numbers[self.begin + part.start..self.begin + part.end]
    }
}

/// Puts numbers of the right factor (`rank` × `columns`) into panels: the first [`PANEL`] columns of all rows, then
/// the next; the last panel is filled up with zeros.
pub fn pack_right(
    numbers: &[f32],
    rank: usize,
    columns: usize,
    (down, across): Steps,
    panels: &mut Vec<PanelRow>,
) {
    panels.clear();
    for first in (0..columns).step_by(PANEL) {
        let width = PANEL.min(columns - first);
        for k in 0..rank {
            let mut row = PanelRow::default();
            let begin = k * down + first * across;
            if across == 1 {
                row.0[..width].copy_from_slice(&numbers[begin..begin + width]);
            } else {
                for (lane, place) in row.0.iter_mut().enumerate().take(width) {
                    *place = numbers[begin + lane * across];
                }
            }
            panels.push(row);
        }
    }
}

/// Puts numbers of the left factor (`rows` × `rank`) into blocks: the first [`BLOCK`] rows column by column, then the
/// next; the last block is filled up with zeros.
pub fn pack_left(
    numbers: &[f32],
    rows: usize,
    rank: usize,
    (down, across): Steps,
    blocks: &mut Vec<BlockColumn>,
) {
    blocks.clear();
    for first in (0..rows).step_by(BLOCK) {
        let height = BLOCK.min(rows - first);
        for k in 0..rank {
            let mut column = BlockColumn::default();
            for (row, place) in column.iter_mut().enumerate().take(height) {
                *place = numbers[(first + row) * down + k * across];
            }
            blocks.push(column);
        }
    }
}

by_level! {
    /// `out = scale · left · right`, row by row; `out` holds whole rows, at most as many as the blocks do.
    pub fn multiply(blocks: &[BlockColumn], panels: &[PanelRow], rank: usize, columns: usize, scale: f32, out: &mut [f32]) = plain, x86::avx2, x86::avx512;
}

fn plain(
    blocks: &[BlockColumn],
    panels: &[PanelRow],
    rank: usize,
    columns: usize,
    scale: f32,
    out: &mut [f32],
) {
    for (block, out) in blocks.chunks_exact(rank).zip(out.chunks_mut(BLOCK * columns)) {
        rows_of_block::<0, 4>(block, panels, columns, scale, out);
        rows_of_block::<4, 4>(block, panels, columns, scale, out);
    }
}

/// Rows `FIRST..FIRST + ROWS` of a block times all panels.
fn rows_of_block<const FIRST: usize, const ROWS: usize>(
    block: &[BlockColumn],
    panels: &[PanelRow],
    columns: usize,
    scale: f32,
    out: &mut [f32],
) {
    let rows = (out.len() / columns).saturating_sub(FIRST).min(ROWS);
    if rows == 0 {
        return;
    }
    for (panel, first) in panels.chunks_exact(block.len()).zip((0..columns).step_by(PANEL)) {
        let mut sums = [[0.0f32; PANEL]; ROWS];
        for (left, right) in block.iter().zip(panel) {
            for (row, sums) in sums.iter_mut().enumerate() {
                let factor = left[FIRST + row];
                for (sum, value) in sums.iter_mut().zip(&right.0) {
                    *sum = factor.mul_add(*value, *sum);
                }
            }
        }
        for sums in sums.as_flattened_mut() {
            *sums *= scale;
        }
        put(sums.as_flattened(), PANEL, rows, columns, first, out.split_at_mut(FIRST * columns).1);
    }
}

/// Copies rows of so many `width` products to their columns; what lies beyond the last column is left out.
fn put(products: &[f32], width: usize, rows: usize, columns: usize, first: usize, out: &mut [f32]) {
    let end = columns.min(first + width);
    for (row, out) in products.chunks_exact(width).zip(out.chunks_exact_mut(columns)).take(rows) {
        out[first..end].copy_from_slice(&row[..end - first]);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{BLOCK, BlockColumn, PANEL, PanelRow, put};
    use crate::kernel::level::registers::{load_256, load_512, store_256, store_512};

    /// Writes a body once for each number, so that every index in it is a constant: an array that is indexed by
    /// constants alone lives in registers.
    macro_rules! for_each {
        ($row:ident in $($number:literal)* $body:block) => {
            $({
                const $row: usize = $number;
                $body
            })*
        };
    }

    /// Each two panels times all blocks, so that panels come from the cache once.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
    pub fn avx512(
        blocks: &[BlockColumn],
        panels: &[PanelRow],
        rank: usize,
        columns: usize,
        scale: f32,
        out: &mut [f32],
    ) {
        let alone = out.len() == columns;
        for (pair, first) in panels.chunks(2 * rank).zip((0..columns).step_by(2 * PANEL)) {
            // Beside a last panel without a second one the same is computed twice, and kept once.
            let (one, two) = (&pair[..rank], &pair[pair.len() - rank..]);
            // An iterator would count its steps by divisions, which take as long as some rows do.
            let (mut blocks, mut out) = (blocks, &mut *out);
            while !out.is_empty() {
                let (block, next) = blocks.split_at(rank);
                let (rows, below) = out.split_at_mut((BLOCK * columns).min(out.len()));
                if alone {
                    avx512_row(block, [one, two], scale, columns, first, rows);
                } else {
                    avx512_rows(block, [one, two], scale, columns, first, rows);
                }
                (blocks, out) = (next, below);
            }
        }
    }

    /// Eight rows of two vectors: sixteen sums hide the latency of one, and each load serves two or eight of them.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
    #[inline]
    fn avx512_rows(
        block: &[BlockColumn],
        panels: [&[PanelRow]; 2],
        scale: f32,
        columns: usize,
        first: usize,
        out: &mut [f32],
    ) {
        let mut a = [_mm512_setzero_ps(); BLOCK];
        let mut b = [_mm512_setzero_ps(); BLOCK];
        for ((left, one), two) in block.iter().zip(panels[0]).zip(panels[1]) {
            let (one, two) = (load_512(&one.0), load_512(&two.0));
            for_each!(ROW in 0 1 2 3 4 5 6 7 {
                let factor = _mm512_set1_ps(left[ROW]);
                a[ROW] = _mm512_fmadd_ps(factor, one, a[ROW]);
                b[ROW] = _mm512_fmadd_ps(factor, two, b[ROW]);
            });
        }
        let scale = _mm512_set1_ps(scale);
        if out.len() == BLOCK * columns && columns - first >= 2 * PANEL {
            // Row by row through what is left: eight places found beforehand would be kept in memory.
            let mut left = &mut out[first..];
            for_each!(ROW in 0 1 2 3 4 5 6 7 {
                if let Some([one, two]) = left.as_chunks_mut().0.first_chunk_mut() {
                    store_512(_mm512_mul_ps(a[ROW], scale), one);
                    store_512(_mm512_mul_ps(b[ROW], scale), two);
                }
                left = left.split_at_mut(columns.min(left.len())).1;
            });
        } else {
            let mut products = [[[0.0; PANEL]; 2]; BLOCK];
            for_each!(ROW in 0 1 2 3 4 5 6 7 {
                store_512(_mm512_mul_ps(a[ROW], scale), &mut products[ROW][0]);
                store_512(_mm512_mul_ps(b[ROW], scale), &mut products[ROW][1]);
            });
            let rows = out.len() / columns;
            put(products.as_flattened().as_flattened(), 2 * PANEL, rows, columns, first, out);
        }
    }

    /// The first row alone, for samples.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
    #[inline]
    fn avx512_row(
        block: &[BlockColumn],
        panels: [&[PanelRow]; 2],
        scale: f32,
        columns: usize,
        first: usize,
        out: &mut [f32],
    ) {
        let (mut a, mut b) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        for ((left, one), two) in block.iter().zip(panels[0]).zip(panels[1]) {
            let factor = _mm512_set1_ps(left[0]);
            a = _mm512_fmadd_ps(factor, load_512(&one.0), a);
            b = _mm512_fmadd_ps(factor, load_512(&two.0), b);
        }
        let scale = _mm512_set1_ps(scale);
        let mut products = [[0.0; PANEL]; 2];
        store_512(_mm512_mul_ps(a, scale), &mut products[0]);
        store_512(_mm512_mul_ps(b, scale), &mut products[1]);
        put(products.as_flattened(), 2 * PANEL, 1, columns, first, out);
    }

    /// Each panel times all blocks.
    #[target_feature(enable = "avx2,fma")]
    pub fn avx2(
        blocks: &[BlockColumn],
        panels: &[PanelRow],
        rank: usize,
        columns: usize,
        scale: f32,
        out: &mut [f32],
    ) {
        for (panel, first) in panels.chunks_exact(rank).zip((0..columns).step_by(PANEL)) {
            for (block, out) in blocks.chunks_exact(rank).zip(out.chunks_mut(BLOCK * columns)) {
                avx2_rows::<0>(block, panel, scale, columns, first, out);
                if out.len() > 4 * columns {
                    avx2_rows::<4>(block, panel, scale, columns, first, out);
                }
            }
        }
    }

    /// Four rows of two vectors from row `FIRST` on: eight sums hide the latency of one.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn avx2_rows<const FIRST: usize>(
        block: &[BlockColumn],
        panel: &[PanelRow],
        scale: f32,
        columns: usize,
        first: usize,
        out: &mut [f32],
    ) {
        let mut a = [_mm256_setzero_ps(); 4];
        let mut b = [_mm256_setzero_ps(); 4];
        for (left, right) in block.iter().zip(panel) {
            let [one, two] = right.0.as_chunks().0 else { return };
            let (one, two) = (load_256(one), load_256(two));
            for_each!(ROW in 0 1 2 3 {
                let factor = _mm256_set1_ps(left[FIRST + ROW]);
                a[ROW] = _mm256_fmadd_ps(factor, one, a[ROW]);
                b[ROW] = _mm256_fmadd_ps(factor, two, b[ROW]);
            });
        }
        let scale = _mm256_set1_ps(scale);
        let out = &mut out[FIRST * columns..];
        let rows = out.len() / columns;
        if rows >= 4 && columns - first >= PANEL {
            for_each!(ROW in 0 1 2 3 {
                let begin = ROW * columns + first;
                if let [one, two] = out[begin..begin + PANEL].as_chunks_mut().0 {
                    store_256(_mm256_mul_ps(a[ROW], scale), one);
                    store_256(_mm256_mul_ps(b[ROW], scale), two);
                }
            });
        } else {
            let mut products = [[[0.0; PANEL / 2]; 2]; 4];
            for_each!(ROW in 0 1 2 3 {
                store_256(_mm256_mul_ps(a[ROW], scale), &mut products[ROW][0]);
                store_256(_mm256_mul_ps(b[ROW], scale), &mut products[ROW][1]);
            });
            put(products.as_flattened().as_flattened(), PANEL, rows, columns, first, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Level, naive};

    #[test]
    fn every_level_gives_the_bits_of_the_oracle() {
        let mut state = 1u64;
        let mut number = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / 8_388_608.0 - 1.0) * [1.0, 1e-3, 1e20][(state >> 33) as usize % 3]
        };
        // Every rank, and rows and columns that fill blocks and panels in all ways.
        let shapes =
            [(1, 1), (1, 100), (3, 15), (4, 16), (5, 31), (8, 32), (8, 33), (9, 17), (17, 65), (24, 96)];
        let cases = (1..=64).flat_map(|rank| shapes.map(|(rows, columns)| (rows, rank, columns)));
        for (rows, rank, columns) in cases {
            let left: Vec<f32> = (0..rows * rank).map(|_| number()).collect();
            let right: Vec<f32> = (0..rank * columns).map(|_| number()).collect();
            let (mut blocks, mut panels) = (Vec::new(), Vec::new());
            pack_left(&left, rows, rank, (rank, 1), &mut blocks);
            pack_right(&right, rank, columns, (columns, 1), &mut panels);
            for level in Level::available() {
                let mut out = vec![f32::NAN; rows * columns];
                multiply(level, &blocks, &panels, rank, columns, 0.3, &mut out);
                for (at, ours) in out.iter().enumerate() {
                    let (i, j) = (at / columns, at % columns);
                    let row = &left[i * rank..(i + 1) * rank];
                    let theirs = naive::low_rank(row, |k| right[k * columns + j], 0.3);
                    assert_eq!(
                        ours.to_bits(),
                        theirs.to_bits(),
                        "{rows}x{rank}x{columns} at {level:?}, {i}, {j}"
                    );
                }
            }
        }
    }

    #[test]
    fn transposed_factors_are_packed_alike() {
        let (rank, columns) = (3, 21);
        let numbers: Vec<f32> = (0u8..63).map(f32::from).collect();
        let turned: Vec<f32> = (0..63).map(|at| numbers[at % rank * columns + at / rank]).collect();
        let (mut one, mut other) = (Vec::new(), Vec::new());
        pack_right(&numbers, rank, columns, (columns, 1), &mut one);
        pack_right(&turned, rank, columns, (1, rank), &mut other);
        assert!(one.iter().zip(&other).all(|(a, b)| a.0 == b.0));
        let (mut one, mut other) = (Vec::new(), Vec::new());
        pack_left(&numbers, columns, rank, (1, columns), &mut one);
        pack_left(&turned, columns, rank, (rank, 1), &mut other);
        assert_eq!(one, other);
    }
}
