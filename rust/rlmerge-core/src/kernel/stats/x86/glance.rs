//! What one scan with guessed thresholds finds of a chunk.

use std::arch::x86_64::*;

use super::super::glance::{Changed, Limits, Lists, Looked, Trio};
use super::super::keys::{BINS_BELOW, plain_bins};
use super::super::{Changes, Thresholds};
use super::changes::bf16;
use super::{Counter, ROWS, Rows, add_all, begin, end, minus_one, widened};
use crate::kernel::CHUNK;
use crate::kernel::lanes::{LANES, Lanes};
use crate::kernel::level::registers::{load_256_bytes, load_512_bytes, put_512, store_128_bytes, store_512};

/// What is counted of one expert.
#[derive(Clone, Copy)]
struct Counts {
    different: Counter,
    absolute: Counter,
    relative: Counter,
    visible: Counter,
    low: Counter,
    /// The largest bits of a magnitude.
    most: __m512i,
}

impl Counts {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
    #[inline]
    fn new() -> Self {
        let none = Counter::new();
        Self {
            different: none,
            absolute: none,
            relative: none,
            visible: none,
            low: none,
            most: _mm512_setzero_si512(),
        }
    }

    /// The counts, and the largest bits of a magnitude.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
    #[inline]
    fn changed(&self) -> (Changed, u32) {
        let most = _mm512_reduce_max_epu32(self.most);
        let changes = Changes {
            different: self.different.total(),
            absolute: self.absolute.total(),
            relative: self.relative.total(),
            visible: self.visible.total(),
            non_finite: 0,
            peak: f64::from(f32::from_bits(most)),
        };
        (Changed { changes, low: self.low.total() }, most)
    }
}

/// [`look`](super::super::glance::look) in few loops. Where a delta is not finite the peak is not, and nothing else of
/// what is changed holds.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
pub fn glance(
    trio: Trio<'_>,
    thresholds: Thresholds<f32>,
    limits: &Limits,
    bins: &mut [&mut [i64]; 2],
    lists: &mut Lists,
    lanes: &mut [Lanes],
) -> Option<Looked> {
    let (squares, lanes) = lanes.split_first_mut()?;
    // Told apart outside of the loop. Different numbers of bf16 are further apart than a share of 2⁻⁹.
    let same = trio.is_exact() && thresholds.relative <= 1.0 / 512.0;
    let sources = match trio {
        Trio::Stored(stored) => stored.map(Source::stored),
        Trio::Decoded(numbers, _) => numbers.map(Source::decoded),
    };
    let counts = match (trio, same) {
        (Trio::Stored(_), true) => look::<true, true>(&sources, thresholds, limits, lists, squares),
        (Trio::Stored(_), false) => look::<true, false>(&sources, thresholds, limits, lists, squares),
        (Trio::Decoded(..), true) => look::<false, true>(&sources, thresholds, limits, lists, squares),
        (Trio::Decoded(..), false) => look::<false, false>(&sources, thresholds, limits, lists, squares),
    };
    let mut experts = [Changed::default(); 2];
    let len = sources[0].len;
    for e in 0..2 {
        let most;
        (experts[e], most) = counts[e].changed();
        let (delta, changes) = (&lists.deltas[e][..len], &mut experts[e].changes);
        if most >= f32::INFINITY.to_bits() {
            plain_bins(delta, bins[e]);
            continue;
        }
        let normal = count_exponents(&lists.exponents[e], most, bins[e]);
        let mut moved = normal;
        // Deltas too small for normal numbers, or zeros of the other sign.
        if normal != changes.different {
            let tiny = delta.iter().filter(|delta| delta.is_subnormal());
            moved += tiny.map(|delta| plain_bins(&[*delta], bins[e])).count() as u64;
        }
        if same {
            (changes.relative, changes.visible) = (moved, moved);
        }
    }
    let shared = add_all([&lists.deltas[0][..len], &lists.deltas[1][..len]], thresholds.epsilon, lanes)?;
    Some(Looked { experts, shared })
}

/// Adds how many of a chunk's exponents there are of each, up to that of the most bits; zeros are not counted. Gives how
/// many.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
fn count_exponents(exponents: &[u8; CHUNK], most: u32, bins: &mut [i64]) -> u64 {
    let minus_one = std::hint::black_box(_mm512_set1_epi8(-1));
    let (rows, _) = exponents.as_chunks();
    let last = (most >> (f32::MANTISSA_DIGITS - 1)) as usize;
    // Zeros have the largest when one is taken off.
    let mut fewest = minus_one;
    for row in rows {
        fewest = _mm512_min_epu8(fewest, _mm512_add_epi8(load_512_bytes(row), minus_one));
    }
    let fewest = _mm512_min_epu8(fewest, _mm512_srli_epi32::<16>(fewest));
    let fewest = _mm512_min_epu8(fewest, _mm512_srli_epi32::<8>(fewest));
    let first = 1 + _mm512_reduce_min_epu32(_mm512_and_si512(fewest, _mm512_set1_epi32(0xff))) as usize;
    let mut all = 0;
    for exponent in first..=last {
        let wanted = _mm512_set1_epi8(exponent as u8 as i8);
        // A row raises a byte by at most one.
        let mut counts = _mm512_setzero_si512();
        for row in rows {
            let is_it = _mm512_cmpeq_epi8_mask(load_512_bytes(row), wanted);
            counts = _mm512_mask_sub_epi8(counts, is_it, counts, minus_one);
        }
        let count = _mm512_reduce_add_epi64(_mm512_sad_epu8(counts, _mm512_setzero_si512()));
        bins[exponent + BINS_BELOW] += count;
        all += count;
    }
    all as u64
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
fn look<const STORED: bool, const SAME: bool>(
    [base, first, second]: &[Source<'_>; 3],
    thresholds: Thresholds<f32>,
    limits: &Limits,
    lists: &mut Lists,
    squares: &mut Lanes,
) -> [Counts; 2] {
    let (epsilon, relative) = (_mm512_set1_ps(thresholds.epsilon), _mm512_set1_ps(thresholds.relative));
    let [least_a, least_b] = limits.reach();
    let (least_a, least_b) = (_mm512_set1_ps(least_a), _mm512_set1_ps(least_b));
    let [below, end_of_near] = [_mm512_set1_ps(limits.below[0]), _mm512_set1_ps(limits.below[1])];
    let minus_one = minus_one();
    let (mut counts_a, mut counts_b, mut smallest) = (Counts::new(), Counts::new(), Counter::new());
    let mut sums = begin(squares);
    let (mut larges, mut nears) = (0, 0);
    let Lists {
        deltas: [deltas_a, deltas_b], large: [large_a, large_b], near, exponents: exponents_of, ..
    } = lists;
    let [exponents_a, exponents_b] = exponents_of.each_mut().map(|of| of.as_chunks_mut().0);
    let count_of_rows = base.len.div_ceil(LANES);
    assert!(count_of_rows <= ROWS, "one chunk");
    let (deltas_a, deltas_b) = (deltas_a.as_chunks_mut().0, deltas_b.as_chunks_mut().0);
    let (deltas_a, deltas_b) = (&mut deltas_a[..count_of_rows], &mut deltas_b[..count_of_rows]);
    let (large_a, large_b, near) = (&mut large_a[..], &mut large_b[..], &mut near[..]);
    for row in 0..count_of_rows {
        let (x, y, b) = (first.at::<STORED>(row), second.at::<STORED>(row), base.at::<STORED>(row));
        let (a, size) = (_mm512_sub_ps(x, b), _mm512_abs_ps(b));
        let delta_b = _mm512_sub_ps(y, b);
        store_512(a, &mut deltas_a[row]);
        store_512(delta_b, &mut deltas_b[row]);
        let wide = widened(b);
        sums = [_mm512_fmadd_pd(wide[0], wide[0], sums[0]), _mm512_fmadd_pd(wide[1], wide[1], sums[1])];
        let (size_a, size_b) = (_mm512_abs_ps(a), _mm512_abs_ps(delta_b));
        let in_a = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(size_a, epsilon);
        let in_b = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(size_b, epsilon);
        let is_low = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(size, below);
        smallest.add(is_low, minus_one);
        count::<SAME>(&mut counts_a, x, b, size_a, in_a, is_low, relative, minus_one);
        count::<SAME>(&mut counts_b, y, b, size_b, in_b, is_low, relative, minus_one);
        store_128_bytes(exponents(size_a), &mut exponents_a[row]);
        store_128_bytes(exponents(size_b), &mut exponents_b[row]);
        let is_large = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(size_a, least_a)
            | _mm512_cmp_ps_mask::<_CMP_GE_OQ>(size_b, least_b);
        put_512(_mm512_maskz_compress_ps(is_large, a), large_a, larges);
        put_512(_mm512_maskz_compress_ps(is_large, delta_b), large_b, larges);
        larges += is_large.count_ones() as usize;
        let is_near = _mm512_mask_cmp_ps_mask::<_CMP_LT_OQ>(!is_low, size, end_of_near);
        put_512(_mm512_maskz_compress_ps(is_near, marked(size, in_a, in_b)), near, nears);
        nears += is_near.count_ones() as usize;
    }
    for last in count_of_rows..ROWS {
        (exponents_a[last], exponents_b[last]) = ([0; LANES], [0; LANES]);
    }
    end(sums, squares);
    (lists.larges, lists.nears) = (larges, nears);
    // Zeros that fill up the last row are small.
    lists.smallest = smallest.total() - (LANES * count_of_rows - base.len) as u64;
    [counts_a, counts_b]
}

/// The numbers of one model: those of the two kinds that is not theirs are empty.
struct Source<'a> {
    numbers: Rows<'a, f32, LANES>,
    stored: Rows<'a, u8, STORED_BYTES>,
    len: usize,
}

/// Bytes of a row as bf16 is stored.
const STORED_BYTES: usize = LANES * size_of::<u16>();

impl<'a> Source<'a> {
    fn decoded(numbers: &'a [f32]) -> Self {
        Self { numbers: Rows::of(numbers), stored: Rows::of(&[]), len: numbers.len() }
    }

    fn stored(bytes: &'a [u8]) -> Self {
        Self { numbers: Rows::of(&[]), stored: Rows::of(bytes), len: bytes.len() / size_of::<u16>() }
    }

    /// A row in a register.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
    #[inline]
    fn at<const STORED: bool>(&self, row: usize) -> __m512 {
        if STORED {
            let upper = _mm512_cvtepu16_epi32(load_256_bytes(self.stored.row(row)));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(upper))
        } else {
            self.numbers.at(row)
        }
    }
}

/// Counts a row of an expert with deltas of these sizes. What bf16 tells apart is told by the deltas if it is all that
/// there is.
#[allow(clippy::too_many_arguments, reason = "a row with all that is known of it")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
fn count<const SAME: bool>(
    counts: &mut Counts,
    x: __m512,
    b: __m512,
    size: __m512,
    changed: __mmask16,
    is_low: __mmask16,
    relative: __m512,
    minus_one: __m512i,
) {
    counts.different.add(_mm512_cmpneq_epi32_mask(_mm512_castps_si512(x), _mm512_castps_si512(b)), minus_one);
    counts.absolute.add(changed, minus_one);
    counts.low.add(changed & is_low, minus_one);
    if !SAME {
        let large = _mm512_max_ps(_mm512_abs_ps(x), _mm512_abs_ps(b));
        counts
            .relative
            .add(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(size, _mm512_mul_ps(relative, large)), minus_one);
        counts.visible.add(_mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(bf16(x), bf16(b)), minus_one);
    }
    counts.most = _mm512_max_epu32(counts.most, _mm512_castps_si512(size));
}

/// The exponents of magnitudes as they are stored.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
fn exponents(size: __m512) -> __m128i {
    _mm512_cvtepi32_epi8(_mm512_srli_epi32::<23>(_mm512_castps_si512(size)))
}

/// [`NearCounts::marked`](super::super::NearCounts::marked).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
fn marked(size: __m512, in_a: __mmask16, in_b: __mmask16) -> __m512 {
    let bits = _mm512_and_si512(_mm512_castps_si512(size), _mm512_set1_epi32(!1));
    let bits = _mm512_mask_or_epi32(bits, in_a, bits, _mm512_set1_epi32(i32::MIN));
    _mm512_castsi512_ps(_mm512_mask_or_epi32(bits, in_b, bits, _mm512_set1_epi32(1)))
}
