//! All sums that need no threshold of two experts, their moments and those of the pair, in one loop.

use std::arch::x86_64::*;

use super::Rows;
use crate::kernel::lanes::Lanes;
use crate::kernel::level::registers::{load_256, load_512_wide, store_512_wide};

/// [`Width::add_moments`](super::super::Width::add_moments) of both, and [`Width::add_pair`](super::super::Width::add_pair),
/// with lanes in that order. One half of the lanes after the other, since the sums of both would not fit in registers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
pub fn add_all([a, b]: [&[f32]; 2], epsilon: f32, lanes: &mut [Lanes]) -> Option<(u64, u64)> {
    let lanes: &mut [Lanes; 15] = lanes.try_into().ok()?;
    let (a, b) = (Rows::of(a), Rows::of(b));
    let (mut both, mut opposed) = (0, 0);
    for half in 0..2 {
        let found = add_half(&a, &b, epsilon, half, lanes);
        both += found[0];
        opposed += found[1];
    }
    Some((both, opposed))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
fn add_half(a: &Rows<'_>, b: &Rows<'_>, epsilon: f32, half: usize, lanes: &mut [Lanes; 15]) -> [u64; 2] {
    let begin = |lanes: &Lanes| lanes.as_chunks::<8>().0[half];
    let (least, sign, zero) = (_mm256_set1_ps(epsilon), _mm256_set1_ps(-0.0), _mm512_setzero_pd());
    let [mut square_a, mut fourth_a, mut changed_a] = [
        load_512_wide(&begin(&lanes[0])),
        load_512_wide(&begin(&lanes[1])),
        load_512_wide(&begin(&lanes[2])),
    ];
    let [mut square_b, mut fourth_b, mut changed_b] = [
        load_512_wide(&begin(&lanes[3])),
        load_512_wide(&begin(&lanes[4])),
        load_512_wide(&begin(&lanes[5])),
    ];
    let [mut dot, mut negative] = [load_512_wide(&begin(&lanes[6])), load_512_wide(&begin(&lanes[7]))];
    let [mut square, mut negative_square] =
        [load_512_wide(&begin(&lanes[8])), load_512_wide(&begin(&lanes[9]))];
    let [mut overlap_dot, mut overlap_a, mut overlap_b] = [
        load_512_wide(&begin(&lanes[10])),
        load_512_wide(&begin(&lanes[11])),
        load_512_wide(&begin(&lanes[12])),
    ];
    let [mut a_on_b, mut b_on_a] = [load_512_wide(&begin(&lanes[13])), load_512_wide(&begin(&lanes[14]))];
    let minus_one = std::hint::black_box(_mm256_set1_epi32(-1));
    let [mut both, mut opposed] = [_mm256_setzero_si256(); 2];
    for row in 0..a.count {
        let x = load_256(&a.row(row).as_chunks::<8>().0[half]);
        let y = load_256(&b.row(row).as_chunks::<8>().0[half]);
        let in_a = _mm256_cmp_ps_mask::<_CMP_GT_OQ>(_mm256_andnot_ps(sign, x), least);
        let in_b = _mm256_cmp_ps_mask::<_CMP_GT_OQ>(_mm256_andnot_ps(sign, y), least);
        let in_both = in_a & in_b;
        let (x, y) = (_mm512_cvtps_pd(x), _mm512_cvtps_pd(y));
        let (xx, yy, xy) = (_mm512_mul_pd(x, x), _mm512_mul_pd(y, y), _mm512_mul_pd(x, y));
        let below = _mm512_cmp_pd_mask::<_CMP_LT_OQ>(xy, zero);
        let squared = _mm512_mul_pd(xy, xy);
        both = _mm256_mask_sub_epi32(both, in_both, both, minus_one);
        opposed = _mm256_mask_sub_epi32(opposed, in_both & below, opposed, minus_one);
        square_a = _mm512_add_pd(square_a, xx);
        square_b = _mm512_add_pd(square_b, yy);
        fourth_a = _mm512_add_pd(fourth_a, _mm512_mul_pd(xx, xx));
        fourth_b = _mm512_add_pd(fourth_b, _mm512_mul_pd(yy, yy));
        changed_a = _mm512_mask_add_pd(changed_a, in_a, changed_a, xx);
        changed_b = _mm512_mask3_fmadd_pd(y, y, changed_b, in_b);
        dot = _mm512_add_pd(dot, xy);
        negative = _mm512_mask_sub_pd(negative, below, negative, xy);
        square = _mm512_add_pd(square, squared);
        negative_square = _mm512_mask_add_pd(negative_square, below, negative_square, squared);
        overlap_dot = _mm512_mask_add_pd(overlap_dot, in_both, overlap_dot, xy);
        // Exact products, so that these round as sums do; the other half of the processor has less to do.
        overlap_a = _mm512_mask3_fmadd_pd(x, x, overlap_a, in_both);
        overlap_b = _mm512_mask3_fmadd_pd(y, y, overlap_b, in_both);
        a_on_b = _mm512_mask3_fmadd_pd(x, x, a_on_b, in_b);
        b_on_a = _mm512_mask3_fmadd_pd(y, y, b_on_a, in_a);
    }
    let sums = [
        square_a,
        fourth_a,
        changed_a,
        square_b,
        fourth_b,
        changed_b,
        dot,
        negative,
        square,
        negative_square,
        overlap_dot,
        overlap_a,
        overlap_b,
        a_on_b,
        b_on_a,
    ];
    for (sum, lanes) in sums.into_iter().zip(lanes) {
        store_512_wide(sum, &mut lanes.as_chunks_mut::<8>().0[half]);
    }
    [total(both), total(opposed)]
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
fn total(counts: __m256i) -> u64 {
    u64::from(_mm512_reduce_add_epi32(_mm512_zextsi256_si512(counts)) as u32)
}
