//! What lies beyond the thresholds of two experts.

use std::arch::x86_64::*;

use super::super::Found;
use super::{Counter, Rows, Sums, begin, end, halves, minus_one, widened};
use crate::kernel::lanes::Lanes;

/// [`Width::find_beyond`](super::super::Width::find_beyond).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
pub fn find_beyond(deltas: [&[f32]; 2], least: [[f32; 3]; 2], lanes: &mut [Lanes]) -> Option<Found> {
    let (lanes, _) = lanes.as_chunks_mut::<4>();
    let [lanes_a, lanes_b] = lanes else { return None };
    let [mut sums_a, mut sums_b] = [start(lanes_a), start(lanes_b)];
    let (none, minus_one) = (Counter::new(), minus_one());
    let [mut kept_a, mut kept_b, mut lost_a, mut lost_b, mut boths, mut opposed] = [none; 6];
    let sign = _mm512_set1_epi32(i32::MIN);
    let [a, b] = [Rows::of(deltas[0]), Rows::of(deltas[1])];
    for row in 0..a.count {
        let (a, b) = (a.at(row), b.at(row));
        let beyond_a = reached(_mm512_abs_ps(a), least[0]);
        let beyond_b = reached(_mm512_abs_ps(b), least[1]);
        let (in_a, in_b) = (beyond_a[2], beyond_b[2]);
        // What is kept adds up to less than zero where a < −b; the sum of two f32 in f64 has the sign of the exact one.
        let first = _mm512_maskz_mov_ps(in_a, a);
        let second = _mm512_maskz_sub_ps(in_b, _mm512_setzero_ps(), b);
        let elected = _mm512_maskz_mov_epi32(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(first, second), sign);
        let (bits_a, bits_b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
        let goes_a = _mm512_mask_test_epi32_mask(in_a, _mm512_xor_si512(bits_a, elected), sign);
        let goes_b = _mm512_mask_test_epi32_mask(in_b, _mm512_xor_si512(bits_b, elected), sign);
        kept_a.add(in_a, minus_one);
        kept_b.add(in_b, minus_one);
        lost_a.add(goes_a, minus_one);
        lost_b.add(goes_b, minus_one);
        boths.add(in_a & in_b, minus_one);
        opposed
            .add(_mm512_mask_test_epi32_mask(in_a & in_b, _mm512_xor_si512(bits_a, bits_b), sign), minus_one);
        add(&mut sums_a, a, beyond_a, goes_a);
        add(&mut sums_b, b, beyond_b, goes_b);
    }
    finish(sums_a, lanes_a);
    finish(sums_b, lanes_b);
    Some(Found {
        kept: [kept_a.total(), kept_b.total()],
        lost: [lost_a.total(), lost_b.total()],
        both: boths.total(),
        opposed: opposed.total(),
    })
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
fn start(lanes: &[Lanes; 4]) -> [Sums; 4] {
    [begin(&lanes[0]), begin(&lanes[1]), begin(&lanes[2]), begin(&lanes[3])]
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
fn finish(sums: [Sums; 4], lanes: &mut [Lanes; 4]) {
    for (sums, lanes) in sums.into_iter().zip(lanes) {
        end(sums, lanes);
    }
}

/// Which magnitudes are at least each of three.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
pub(super) fn reached(size: __m512, least: [f32; 3]) -> [__mmask16; 3] {
    [
        _mm512_cmp_ps_mask::<_CMP_GE_OQ>(size, _mm512_set1_ps(least[0])),
        _mm512_cmp_ps_mask::<_CMP_GE_OQ>(size, _mm512_set1_ps(least[1])),
        _mm512_cmp_ps_mask::<_CMP_GE_OQ>(size, _mm512_set1_ps(least[2])),
    ]
}

/// Adds the squares of a row under each of four masks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
fn add(sums: &mut [Sums; 4], delta: __m512, beyond: [__mmask16; 3], goes: __mmask16) {
    let delta = widened(delta);
    let [first, second, third] = [halves(beyond[0]), halves(beyond[1]), halves(beyond[2])];
    let goes = halves(goes);
    for i in 0..2 {
        let square = _mm512_mul_pd(delta[i], delta[i]);
        sums[0][i] = _mm512_mask_add_pd(sums[0][i], first[i], sums[0][i], square);
        sums[1][i] = _mm512_mask_add_pd(sums[1][i], second[i], sums[1][i], square);
        sums[2][i] = _mm512_mask_add_pd(sums[2][i], third[i], sums[2][i], square);
        sums[3][i] = _mm512_mask3_fmadd_pd(delta[i], delta[i], sums[3][i], goes[i]);
    }
}
