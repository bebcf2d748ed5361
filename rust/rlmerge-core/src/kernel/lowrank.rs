//! Products of two thin matrices, the changes that LoRA adapters make, in f32.
//!
//! Each element is its own chain of fused multiply-adds over the rank, from the first column of the left factor to
//! the last, and one multiplication by the scale. How many elements go through it together depends on the level, the
//! chain does not, so that all levels give the same bits. The processor without a fused multiply-add calls the
//! mathematical library for each, which is slow and right.

use super::level::by_level;

/// Columns of a panel of the right factor.
pub const PANEL: usize = 16;
/// Rows of a block of the left factor.
pub const BLOCK: usize = 8;

/// A row of the right factor in one panel.
pub type PanelRow = [f32; PANEL];
/// A column of the left factor in one block.
pub type BlockColumn = [f32; BLOCK];

/// Puts numbers of the right factor (`rank` × `columns`) into panels: the first [`PANEL`] columns of all rows, then
/// the next; the last panel is filled up with zeros. Element (k, j) of the factor is at `at(k, j)` of `numbers`.
pub fn pack_right(
    numbers: &[f32],
    rank: usize,
    columns: usize,
    at: impl Fn(usize, usize) -> usize,
    panels: &mut Vec<PanelRow>,
) {
    panels.clear();
    for first in (0..columns).step_by(PANEL) {
        let width = PANEL.min(columns - first);
        for k in 0..rank {
            let mut row = PanelRow::default();
            for (lane, place) in row.iter_mut().enumerate().take(width) {
                *place = numbers[at(k, first + lane)];
            }
            panels.push(row);
        }
    }
}

/// Puts numbers of the left factor (`rows` × `rank`) into blocks: the first [`BLOCK`] rows column by column, then the
/// next; the last block is filled up with zeros. Element (i, k) of the factor is at `at(i, k)` of `numbers`.
pub fn pack_left(
    numbers: &[f32],
    rows: usize,
    rank: usize,
    at: impl Fn(usize, usize) -> usize,
    blocks: &mut Vec<BlockColumn>,
) {
    blocks.clear();
    for first in (0..rows).step_by(BLOCK) {
        let height = BLOCK.min(rows - first);
        for k in 0..rank {
            let mut column = BlockColumn::default();
            for (row, place) in column.iter_mut().enumerate().take(height) {
                *place = numbers[at(first + row, k)];
            }
            blocks.push(column);
        }
    }
}

/// Rows `FIRST..FIRST + ROWS` of a block times all panels.
#[inline(always)]
fn rows_of_block<const FIRST: usize, const ROWS: usize>(
    block: &[BlockColumn],
    panels: &[PanelRow],
    columns: usize,
    scale: f32,
    out: &mut [f32],
) {
    let rows = (out.len() / columns).saturating_sub(FIRST).min(ROWS);
    for (panel, first) in panels.chunks_exact(block.len()).zip((0..columns).step_by(PANEL)) {
        let mut sums = [PanelRow::default(); ROWS];
        for (left, right) in block.iter().zip(panel) {
            for (row, sums) in sums.iter_mut().enumerate() {
                let factor = left[FIRST + row];
                for (sum, value) in sums.iter_mut().zip(right) {
                    *sum = factor.mul_add(*value, *sum);
                }
            }
        }
        let width = PANEL.min(columns - first);
        for (row, sums) in sums.iter().enumerate().take(rows) {
            let begin = (FIRST + row) * columns + first;
            for (o, sum) in out[begin..begin + width].iter_mut().zip(sums) {
                *o = sum * scale;
            }
        }
    }
}

/// All blocks times all panels; `STEP` rows at a time fill the registers of a level.
macro_rules! product {
    ($blocks:ident, $panels:ident, $rank:ident, $columns:ident, $scale:ident, $out:ident, $($first:literal $rows:literal),*) => {
        for (block, out) in $blocks.chunks_exact($rank).zip($out.chunks_mut(BLOCK * $columns)) {
            $(rows_of_block::<$first, $rows>(block, $panels, $columns, $scale, out);)*
        }
    };
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
    product!(blocks, panels, rank, columns, scale, out, 0 4, 4 4);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{BLOCK, BlockColumn, PanelRow, rows_of_block};

    /// Four rows of two vectors: eight sums hide the latency of one.
    #[target_feature(enable = "avx2,fma")]
    pub fn avx2(
        blocks: &[BlockColumn],
        panels: &[PanelRow],
        rank: usize,
        columns: usize,
        scale: f32,
        out: &mut [f32],
    ) {
        product!(blocks, panels, rank, columns, scale, out, 0 4, 4 4);
    }

    /// Eight rows of one vector.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
    pub fn avx512(
        blocks: &[BlockColumn],
        panels: &[PanelRow],
        rank: usize,
        columns: usize,
        scale: f32,
        out: &mut [f32],
    ) {
        product!(blocks, panels, rank, columns, scale, out, 0 8);
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
        for (rows, rank, columns) in
            [(1, 1, 1), (3, 2, 15), (8, 16, 16), (9, 5, 17), (17, 3, 100), (2, 64, 33)]
        {
            let left: Vec<f32> = (0..rows * rank).map(|_| number()).collect();
            let right: Vec<f32> = (0..rank * columns).map(|_| number()).collect();
            let (mut blocks, mut panels) = (Vec::new(), Vec::new());
            pack_left(&left, rows, rank, |i, k| i * rank + k, &mut blocks);
            pack_right(&right, rank, columns, |k, j| k * columns + j, &mut panels);
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
}
