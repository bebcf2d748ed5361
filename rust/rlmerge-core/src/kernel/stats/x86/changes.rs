//! What an expert changes, and the moments of its deltas.

use std::arch::x86_64::*;

use super::super::{Changes, Thresholds};
use super::{ROWS, Rows, begin, count, end, halves, widened};
use crate::kernel::lanes::{LANES, Lanes};
use crate::kernel::level::registers::store_512;

/// [`Width::changes_at_once`](super::super::Width::changes_at_once).
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
pub(super) fn bf16(v: __m512) -> __m512 {
    let bits = _mm512_castps_si512(v);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    _mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(!0xffff)))
}
