//! The dearest kernels of a report, of two experts in f32, for AVX-512: additions under masks, and all sums of a kind in
//! one loop, neither of which the compiler makes of plain loops.
//!
//! Squares and products of two f32 are exact in f64, so that a fused multiply-add rounds what an addition rounds.

use std::arch::x86_64::*;

use crate::kernel::CHUNK;
use crate::kernel::lanes::{LANES, Lanes};
use crate::kernel::level::registers::{load_512, load_512_wide, store_512_wide};

mod beyond;
mod changes;
mod divide;
mod glance;
mod pair;
mod sums;

pub use beyond::find_beyond;
pub use changes::find_changes;
pub use divide::divide;
pub use glance::glance;
pub use pair::add_pair;
pub use sums::add_all;

/// Running sums in registers: the first half of their lanes, and the last.
type Sums = [__m512d; 2];

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
fn begin(lanes: &Lanes) -> Sums {
    let (halves, _) = lanes.as_chunks::<8>();
    [load_512_wide(&halves[0]), load_512_wide(&halves[1])]
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
fn end(sums: Sums, lanes: &mut Lanes) {
    let (halves, _) = lanes.as_chunks_mut::<8>();
    store_512_wide(sums[0], &mut halves[0]);
    store_512_wide(sums[1], &mut halves[1]);
}

/// Sixteen numbers in f64.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
fn widened(v: __m512) -> Sums {
    [_mm512_cvtps_pd(_mm512_castps512_ps256(v)), _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(v))]
}

/// The halves of a mask.
#[inline(always)]
fn halves(mask: __mmask16) -> [__mmask8; 2] {
    [mask as __mmask8, (mask >> 8) as __mmask8]
}

#[inline(always)]
fn ones(mask: __mmask16) -> u64 {
    u64::from(mask.count_ones())
}

/// Counts how often each bit of a mask was set.
#[derive(Clone, Copy)]
struct Counter(__m512i);

impl Counter {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
    #[inline]
    fn new() -> Self {
        Self(_mm512_setzero_si512())
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
    #[inline]
    fn add(&mut self, mask: __mmask16, minus_one: __m512i) {
        self.0 = _mm512_mask_sub_epi32(self.0, mask, self.0, minus_one);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
    #[inline]
    fn total(self) -> u64 {
        u64::from(_mm512_reduce_add_epi32(self.0) as u32)
    }
}

/// What counters subtract: hidden from the compiler, which would make two instructions of one if it knew it.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
fn minus_one() -> __m512i {
    std::hint::black_box(_mm512_set1_epi32(-1))
}

/// Numbers, or bytes, in rows of a register; the last row is filled up with zeros, which no kernel counts.
struct Rows<'a, T = f32, const N: usize = LANES> {
    whole: &'a [[T; N]],
    last: [T; N],
    count: usize,
}

impl<'a, T: Copy + Default, const N: usize> Rows<'a, T, N> {
    #[inline(always)]
    fn of(numbers: &'a [T]) -> Self {
        let (whole, tail) = numbers.as_chunks();
        let mut last = [T::default(); N];
        last[..tail.len()].copy_from_slice(tail);
        Self { whole, last, count: whole.len() + usize::from(!tail.is_empty()) }
    }

    /// A row. There is one way to both kinds, so that loops have one body and sums stay in registers.
    #[inline(always)]
    fn row(&self, row: usize) -> &[T; N] {
        self.whole.get(row).unwrap_or(&self.last)
    }
}

impl Rows<'_> {
    /// A row in a register.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
    #[inline]
    fn at(&self, row: usize) -> __m512 {
        load_512(self.row(row))
    }
}

/// Masks of a chunk's rows.
type Masks = [__mmask16; ROWS];
const ROWS: usize = CHUNK / LANES;

/// How many bits are set in them.
#[target_feature(enable = "popcnt")]
#[inline]
fn count(masks: &Masks) -> u64 {
    let mut ones = 0;
    for [a, b, c, d] in masks.as_chunks().0 {
        // In an order in which four masks are one load.
        let of = u64::from(*a) | u64::from(*b) << 16 | u64::from(*c) << 32 | u64::from(*d) << 48;
        ones += u64::from(of.count_ones());
    }
    ones
}
