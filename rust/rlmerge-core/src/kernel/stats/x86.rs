//! The dearest kernels of a report, of two experts in f32, for AVX-512: additions under masks, and all sums of a kind in
//! one loop, neither of which the compiler makes of plain loops.
//!
//! Squares and products of two f32 are exact in f64, so that a fused multiply-add rounds what an addition rounds.

use std::arch::x86_64::*;

use super::super::lanes::{LANES, Lanes};
use super::super::level::registers::{load_512, load_512_wide, store_512, store_512_wide};
use super::loops::filled;
use super::{Beyond, Changes, Found, Thresholds, Two};
use crate::kernel::CHUNK;

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

/// Numbers in rows of a register; the last row is filled up with zeros, which no kernel counts.
struct Rows<'a> {
    whole: &'a [[f32; LANES]],
    last: [f32; LANES],
    count: usize,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    fn of(numbers: &'a [f32]) -> Self {
        let (whole, tail) = numbers.as_chunks();
        Self { whole, last: filled(tail), count: whole.len() + usize::from(!tail.is_empty()) }
    }

    /// A row. There is one way to both kinds, so that loops have one body and sums stay in registers.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
    #[inline]
    fn at(&self, row: usize) -> __m512 {
        load_512(self.whole.get(row).unwrap_or(&self.last))
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

/// [`Width::add_pair_at_once`](super::Width::add_pair_at_once).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
pub fn add_pair(a: &[f32], b: &[f32], epsilon: f32, lanes: &mut [Lanes]) -> Option<(u64, u64)> {
    let [dot, negative, square, negative_square, overlap_dot, overlap_a, overlap_b, a_on_b, b_on_a] = lanes
    else {
        return None;
    };
    let (least, zero) = (_mm512_set1_ps(epsilon), _mm512_setzero_pd());
    let (mut d, mut n, mut s, mut m) = (begin(dot), begin(negative), begin(square), begin(negative_square));
    let (mut o, mut p, mut q) = (begin(overlap_dot), begin(overlap_a), begin(overlap_b));
    let (mut u, mut v) = (begin(a_on_b), begin(b_on_a));
    let (mut both, mut opposed) = (0, 0);
    let (rows_a, rows_b) = (Rows::of(a), Rows::of(b));
    for row in 0..rows_a.count {
        let (a, b) = (rows_a.at(row), rows_b.at(row));
        let in_a = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(_mm512_abs_ps(a), least);
        let in_b = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(_mm512_abs_ps(b), least);
        let in_both = in_a & in_b;
        let signs = _mm512_movepi32_mask(_mm512_castps_si512(_mm512_xor_ps(a, b)));
        both += ones(in_both);
        opposed += ones(in_both & signs);
        let (in_a, in_b, in_both) = (halves(in_a), halves(in_b), halves(in_both));
        let (a, b) = (widened(a), widened(b));
        for i in 0..2 {
            let (a, b) = (a[i], b[i]);
            let product = _mm512_mul_pd(a, b);
            let below = _mm512_cmp_pd_mask::<_CMP_LT_OQ>(product, zero);
            let squared = _mm512_mul_pd(product, product);
            d[i] = _mm512_add_pd(d[i], product);
            n[i] = _mm512_mask_sub_pd(n[i], below, n[i], product);
            s[i] = _mm512_add_pd(s[i], squared);
            m[i] = _mm512_mask_add_pd(m[i], below, m[i], squared);
            o[i] = _mm512_mask_add_pd(o[i], in_both[i], o[i], product);
            p[i] = _mm512_mask3_fmadd_pd(a, a, p[i], in_both[i]);
            q[i] = _mm512_mask3_fmadd_pd(b, b, q[i], in_both[i]);
            u[i] = _mm512_mask3_fmadd_pd(a, a, u[i], in_b[i]);
            v[i] = _mm512_mask3_fmadd_pd(b, b, v[i], in_a[i]);
        }
    }
    end(d, dot);
    end(n, negative);
    end(s, square);
    end(m, negative_square);
    end(o, overlap_dot);
    end(p, overlap_a);
    end(q, overlap_b);
    end(u, a_on_b);
    end(v, b_on_a);
    Some((both, opposed))
}

/// [`Width::changes_at_once`](super::Width::changes_at_once).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
pub fn find_changes(
    expert: &[f32],
    base: &[f32],
    exact: bool,
    thresholds: Thresholds<f32>,
    out: &mut [f32],
    lanes: &mut [Lanes],
) -> Option<Changes> {
    // Told apart outside of the loop.
    if exact {
        changes_by::<true>(expert, base, thresholds, out, lanes)
    } else {
        changes_by::<false>(expert, base, thresholds, out, lanes)
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
fn changes_by<const EXACT: bool>(
    expert: &[f32],
    base: &[f32],
    thresholds: Thresholds<f32>,
    out: &mut [f32],
    lanes: &mut [Lanes],
) -> Option<Changes> {
    let [squares, fourths, changed] = lanes else { return None };
    let (epsilon, relative) = (_mm512_set1_ps(thresholds.epsilon), _mm512_set1_ps(thresholds.relative));
    let infinity = _mm512_set1_ps(f32::INFINITY);
    let (mut s, mut f, mut c) = (begin(squares), begin(fourths), begin(changed));
    let mut peaks = _mm512_setzero_ps();
    let (mut different, mut absolute, mut relatively) = ([0; ROWS], [0; ROWS], [0; ROWS]);
    let (mut visibly, mut non_finite) = ([0; ROWS], [0; ROWS]);
    let (expert, base) = (Rows::of(expert), Rows::of(base));
    let (out, tail) = out.as_chunks_mut();
    let mut last = [0.0; LANES];
    assert!(base.count <= ROWS, "one chunk");
    for row in 0..base.count {
        let (x, b) = (expert.at(row), base.at(row));
        let delta = _mm512_sub_ps(x, b);
        store_512(delta, out.get_mut(row).unwrap_or(&mut last));
        let size = _mm512_abs_ps(delta);
        let large = _mm512_max_ps(_mm512_abs_ps(x), _mm512_abs_ps(b));
        let changed = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(size, epsilon);
        different[row] = _mm512_cmpneq_epi32_mask(_mm512_castps_si512(x), _mm512_castps_si512(b));
        absolute[row] = changed;
        relatively[row] = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(size, _mm512_mul_ps(relative, large));
        let (x, b) = if EXACT { (x, b) } else { (bf16(x), bf16(b)) };
        visibly[row] = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(x, b);
        non_finite[row] = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(size, infinity);
        // The second operand where there is a NaN.
        peaks = _mm512_max_ps(size, peaks);
        let (delta, changed) = (widened(delta), halves(changed));
        for i in 0..2 {
            let square = _mm512_mul_pd(delta[i], delta[i]);
            s[i] = _mm512_add_pd(s[i], square);
            f[i] = _mm512_add_pd(f[i], _mm512_mul_pd(square, square));
            c[i] = _mm512_mask_add_pd(c[i], changed[i], c[i], square);
        }
    }
    tail.copy_from_slice(&last[..tail.len()]);
    let different = count(&different);
    if different > 0 {
        end(s, squares);
        end(f, fourths);
        end(c, changed);
    }
    Some(Changes {
        different,
        absolute: count(&absolute),
        relative: count(&relatively),
        visible: count(&visibly),
        non_finite: count(&non_finite),
        peak: f64::from(_mm512_reduce_max_ps(peaks)),
    })
}

/// Numbers rounded to bf16, to nearest even.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
fn bf16(v: __m512) -> __m512 {
    let bits = _mm512_castps_si512(v);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    _mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(!0xffff)))
}

/// [`Width::find_beyond`](super::Width::find_beyond).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
pub fn find_beyond(two: Two<'_, f32>, beyond: Beyond<f32>, lanes: &mut [Lanes]) -> Option<Found> {
    let (lanes, _) = lanes.as_chunks_mut::<4>();
    let [lanes_a, lanes_b] = lanes else { return None };
    // Two steps, since one would have more sums than there are registers.
    let mut lost = [[0; ROWS]; 2];
    let found = elect(two, &beyond, &mut lost);
    for (e, lanes) in [lanes_a, lanes_b].into_iter().enumerate() {
        add_largest(two.experts[e], two.from[e], beyond.least[e], &lost[e], lanes);
    }
    Some(found)
}

/// Marks what of two experts is kept and has not the elected sign, and counts everything.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
fn elect(two: Two<'_, f32>, beyond: &Beyond<f32>, losts: &mut [Masks; 2]) -> Found {
    let least = [_mm512_set1_ps(beyond.least[0][2]), _mm512_set1_ps(beyond.least[1][2])];
    let (epsilon, below) = (_mm512_set1_ps(beyond.epsilon), _mm512_set1_ps(beyond.below));
    let sign = _mm512_set1_epi32(i32::MIN);
    let (mut kepts, mut lows, mut boths, mut opposeds) =
        ([[0; ROWS]; 2], [[0; ROWS]; 2], [0; ROWS], [0; ROWS]);
    let [x, y] = [Rows::of(two.experts[0]), Rows::of(two.experts[1])];
    let [u, v] = [Rows::of(two.from[0]), Rows::of(two.from[1])];
    let base = Rows::of(two.base);
    assert!(base.count <= ROWS, "one chunk");
    for row in 0..base.count {
        let is_low = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(base.at(row)), below);
        let delta = [_mm512_sub_ps(x.at(row), u.at(row)), _mm512_sub_ps(y.at(row), v.at(row))];
        let size = [_mm512_abs_ps(delta[0]), _mm512_abs_ps(delta[1])];
        let kept = [
            _mm512_cmp_ps_mask::<_CMP_GE_OQ>(size[0], least[0]),
            _mm512_cmp_ps_mask::<_CMP_GE_OQ>(size[1], least[1]),
        ];
        // What is kept adds up to less than zero where a < −b; the sum of two f32 in f64 has the sign of the exact one.
        let first = _mm512_maskz_mov_ps(kept[0], delta[0]);
        let second = _mm512_maskz_sub_ps(kept[1], _mm512_setzero_ps(), delta[1]);
        let elected = _mm512_maskz_mov_epi32(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(first, second), sign);
        let bits = [_mm512_castps_si512(delta[0]), _mm512_castps_si512(delta[1])];
        let both = kept[0] & kept[1];
        boths[row] = both;
        opposeds[row] = _mm512_mask_test_epi32_mask(both, _mm512_xor_si512(bits[0], bits[1]), sign);
        for e in 0..2 {
            kepts[e][row] = kept[e];
            lows[e][row] = _mm512_mask_cmp_ps_mask::<_CMP_GT_OQ>(is_low, size[e], epsilon);
            losts[e][row] = _mm512_mask_test_epi32_mask(kept[e], _mm512_xor_si512(bits[e], elected), sign);
        }
    }
    Found {
        kept: [count(&kepts[0]), count(&kepts[1])],
        lost: [count(&losts[0]), count(&losts[1])],
        low: [count(&lows[0]), count(&lows[1])],
        both: count(&boths),
        opposed: count(&opposeds),
    }
}

/// Adds δ² where the magnitude is at least each of three thresholds, and where the rows' masks are set.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
fn add_largest(expert: &[f32], from: &[f32], least: [f32; 3], lost: &Masks, lanes: &mut [Lanes; 4]) {
    let least = [_mm512_set1_ps(least[0]), _mm512_set1_ps(least[1]), _mm512_set1_ps(least[2])];
    let [mut x, mut y, mut z, mut w] =
        [begin(&lanes[0]), begin(&lanes[1]), begin(&lanes[2]), begin(&lanes[3])];
    let (expert, from) = (Rows::of(expert), Rows::of(from));
    for (row, lost) in lost.iter().enumerate().take(expert.count) {
        let delta = _mm512_sub_ps(expert.at(row), from.at(row));
        let size = _mm512_abs_ps(delta);
        let first = halves(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(size, least[0]));
        let second = halves(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(size, least[1]));
        let third = halves(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(size, least[2]));
        let (delta, lost) = (widened(delta), halves(*lost));
        for i in 0..2 {
            let square = _mm512_mul_pd(delta[i], delta[i]);
            x[i] = _mm512_mask_add_pd(x[i], first[i], x[i], square);
            y[i] = _mm512_mask_add_pd(y[i], second[i], y[i], square);
            z[i] = _mm512_mask_add_pd(z[i], third[i], z[i], square);
            w[i] = _mm512_mask3_fmadd_pd(delta[i], delta[i], w[i], lost[i]);
        }
    }
    for (sums, lanes) in [x, y, z, w].into_iter().zip(lanes) {
        end(sums, lanes);
    }
}
