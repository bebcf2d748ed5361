//! The sums of a pair of experts.

use std::arch::x86_64::*;

use super::{Rows, begin, end, halves, ones, widened};
use crate::kernel::lanes::Lanes;

/// [`Width::add_pair_at_once`](super::super::Width::add_pair_at_once).
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
