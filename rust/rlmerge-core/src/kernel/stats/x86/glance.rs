//! What one scan with guessed thresholds finds of a chunk.

use std::arch::x86_64::*;

use super::super::glance::{Changed, Limits, Looked, Seen, Trio};
use super::super::keys::{BINS_BELOW, plain_bins};
use super::super::{Changes, Thresholds};
use super::changes::{bf16, find_changes};
use super::{Counter, ROWS, Rows, add_all, minus_one};
use crate::kernel::CHUNK;
use crate::kernel::lanes::{LANES, Lanes};
use crate::kernel::level::registers::{load_512_bytes, put_512, store_128_bytes, store_512};

/// What is counted of one expert.
#[derive(Clone, Copy)]
struct Counts {
    different: Counter,
    absolute: Counter,
    relative: Counter,
    visible: Counter,
    low: Counter,
    /// The largest bits of a magnitude, and the smallest less one: zeros have the largest then.
    most: __m512i,
    fewest: __m512i,
}

impl Counts {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
    #[inline]
    fn new() -> Self {
        let none = Counter::new();
        let fewest = _mm512_set1_epi32(-1);
        Self {
            different: none,
            absolute: none,
            relative: none,
            visible: none,
            low: none,
            most: _mm512_setzero_si512(),
            fewest,
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
    #[inline]
    fn changed(&self, same: bool) -> Changed {
        let visible = self.visible.total();
        Changed {
            changes: Changes {
                different: self.different.total(),
                absolute: self.absolute.total(),
                relative: if same { visible } else { self.relative.total() },
                visible,
                non_finite: 0,
                peak: f64::from(f32::from_bits(_mm512_reduce_max_epu32(self.most))),
            },
            low: self.low.total(),
        }
    }

    /// The least bits of a magnitude above zero, and the most.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
    #[inline]
    fn ends(&self) -> [u32; 2] {
        [_mm512_reduce_min_epu32(self.fewest).wrapping_add(1), _mm512_reduce_max_epu32(self.most)]
    }
}

/// [`look`](super::super::glance::look) in few loops.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
pub fn glance(
    trio: Trio<'_>,
    thresholds: Thresholds<f32>,
    limits: &Limits,
    bins: &mut [&mut [i64]; 2],
    seen: &mut Seen,
    lanes: &mut [Lanes],
) -> Option<Looked> {
    let len = trio.base.len();
    // Told apart outside of the loop. Different numbers of bf16 are further apart than a share of 2⁻⁹.
    let same = trio.exact && thresholds.relative <= 1.0 / 512.0;
    let counts = if same {
        look::<true>(trio, thresholds, limits, seen)
    } else {
        look::<false>(trio, thresholds, limits, seen)
    };
    let mut experts = [counts[0].changed(same), counts[1].changed(same)];
    for e in 0..2 {
        let delta = &mut seen.deltas[e][..len];
        let [fewest, most] = counts[e].ends();
        if most == 0 {
            continue;
        }
        if fewest < f32::MIN_POSITIVE.to_bits() || most >= f32::INFINITY.to_bits() {
            plain_bins(delta, bins[e]);
        } else {
            count_exponents(&seen.exponents[e], [fewest, most], bins[e]);
        }
        if most >= f32::INFINITY.to_bits() {
            let unused = &mut [Lanes::default(); 3];
            let (expert, base) = (trio.experts[e], trio.base);
            experts[e].changes = find_changes(expert, base, trio.exact, thresholds, delta, unused)?;
        }
    }
    let shared = add_all([&seen.deltas[0][..len], &seen.deltas[1][..len]], thresholds.epsilon, lanes)?;
    Some(Looked { experts, shared })
}

/// Adds how many of a chunk's exponents there are of each, from that of the least bits to that of the most.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
fn count_exponents(exponents: &[u8; CHUNK], [fewest, most]: [u32; 2], bins: &mut [i64]) {
    let minus_one = std::hint::black_box(_mm512_set1_epi8(-1));
    let (rows, _) = exponents.as_chunks();
    let shift = f32::MANTISSA_DIGITS - 1;
    for exponent in fewest >> shift..=most >> shift {
        let wanted = _mm512_set1_epi8(exponent as i8);
        // A row raises a byte by at most one.
        let mut counts = _mm512_setzero_si512();
        for row in rows {
            let is_it = _mm512_cmpeq_epi8_mask(load_512_bytes(row), wanted);
            counts = _mm512_mask_sub_epi8(counts, is_it, counts, minus_one);
        }
        let sums = _mm512_sad_epu8(counts, _mm512_setzero_si512());
        bins[exponent as usize + BINS_BELOW] += _mm512_reduce_add_epi64(sums);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
fn look<const SAME: bool>(
    trio: Trio<'_>,
    thresholds: Thresholds<f32>,
    limits: &Limits,
    seen: &mut Seen,
) -> [Counts; 2] {
    let (epsilon, relative) = (_mm512_set1_ps(thresholds.epsilon), _mm512_set1_ps(thresholds.relative));
    let [least_a, least_b] = limits.reach();
    let (least_a, least_b) = (_mm512_set1_ps(least_a), _mm512_set1_ps(least_b));
    let [below, end] = [_mm512_set1_ps(limits.below[0]), _mm512_set1_ps(limits.below[1])];
    let minus_one = minus_one();
    let (mut counts_a, mut counts_b, mut smallest) = (Counts::new(), Counts::new(), Counter::new());
    let (x, y, base) = (Rows::of(trio.experts[0]), Rows::of(trio.experts[1]), Rows::of(trio.base));
    let (mut larges, mut nears) = (0, 0);
    let Seen {
        deltas: [deltas_a, deltas_b], large: [large_a, large_b], near, exponents: exponents_of, ..
    } = seen;
    let [exponents_a, exponents_b] = exponents_of.each_mut().map(|of| of.as_chunks_mut().0);
    assert!(base.count <= ROWS, "one chunk");
    let (deltas_a, deltas_b) = (deltas_a.as_chunks_mut().0, deltas_b.as_chunks_mut().0);
    let (deltas_a, deltas_b) = (&mut deltas_a[..base.count], &mut deltas_b[..base.count]);
    let (large_a, large_b, near) = (&mut large_a[..], &mut large_b[..], &mut near[..]);
    for row in 0..base.count {
        let (x, y, b) = (x.at(row), y.at(row), base.at(row));
        let (a, size) = (_mm512_sub_ps(x, b), _mm512_abs_ps(b));
        let delta_b = _mm512_sub_ps(y, b);
        store_512(a, &mut deltas_a[row]);
        store_512(delta_b, &mut deltas_b[row]);
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
        let is_near = _mm512_mask_cmp_ps_mask::<_CMP_LT_OQ>(!is_low, size, end);
        put_512(_mm512_maskz_compress_ps(is_near, marked(size, in_a, in_b)), near, nears);
        nears += is_near.count_ones() as usize;
    }
    for last in base.count..ROWS {
        (exponents_a[last], exponents_b[last]) = ([0; LANES], [0; LANES]);
    }
    (seen.larges, seen.nears) = (larges, nears);
    // Zeros that fill up the last row are small.
    seen.smallest = smallest.total() - (LANES * base.count - trio.base.len()) as u64;
    [counts_a, counts_b]
}

/// Counts a row of an expert with deltas of these sizes.
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
    if SAME {
        counts.visible.add(_mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(x, b), minus_one);
    } else {
        let large = _mm512_max_ps(_mm512_abs_ps(x), _mm512_abs_ps(b));
        counts
            .relative
            .add(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(size, _mm512_mul_ps(relative, large)), minus_one);
        counts.visible.add(_mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(bf16(x), bf16(b)), minus_one);
    }
    let bits = _mm512_castps_si512(size);
    counts.most = _mm512_max_epu32(counts.most, bits);
    counts.fewest = _mm512_min_epu32(counts.fewest, _mm512_add_epi32(bits, _mm512_set1_epi32(-1)));
}

/// The exponents of magnitudes as they are stored.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
fn exponents(size: __m512) -> __m128i {
    _mm512_cvtepi32_epi8(_mm512_srli_epi32::<23>(_mm512_castps_si512(size)))
}

/// Magnitudes with a minus where the first expert changed them and with the lowest bit where the second did.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
fn marked(size: __m512, in_a: __mmask16, in_b: __mmask16) -> __m512 {
    let bits = _mm512_and_si512(_mm512_castps_si512(size), _mm512_set1_epi32(!1));
    let bits = _mm512_mask_or_epi32(bits, in_a, bits, _mm512_set1_epi32(i32::MIN));
    _mm512_castsi512_ps(_mm512_mask_or_epi32(bits, in_b, bits, _mm512_set1_epi32(1)))
}
