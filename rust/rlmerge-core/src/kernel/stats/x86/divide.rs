//! What of two experts may be beyond a threshold, told from what is.

use std::arch::x86_64::*;

use super::super::glance::{Above, Limits, List, Open};
use super::beyond::reached;
use super::{Counter, minus_one};
use crate::kernel::lanes::LANES;
use crate::kernel::level::registers::{load_512, put_512, store_512};

/// [`divide`](super::super::glance::divide).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
pub fn divide(
    limits: &Limits,
    large: &mut [List; 2],
    larges: usize,
    open: &mut Open,
    above: &mut Above,
) -> Option<()> {
    open.make_room(larges);
    let (mut counts, minus_one) = ([[[Counter::new(); 3]; 2]; 2], minus_one());
    let [first, second] = large;
    let rows = first.as_chunks_mut::<LANES>().0.iter_mut().zip(second.as_chunks_mut::<LANES>().0);
    let (mut len, [open_a, open_b]) = (open.len, &mut open.pairs);
    for (first, second) in rows.take(larges.div_ceil(LANES)) {
        let (a, b) = (load_512(first), load_512(second));
        let open =
            sort(a, limits, 0, &mut counts[0], minus_one) | sort(b, limits, 1, &mut counts[1], minus_one);
        put_512(_mm512_maskz_compress_ps(open, a), open_a, len);
        put_512(_mm512_maskz_compress_ps(open, b), open_b, len);
        len += open.count_ones() as usize;
        store_512(_mm512_maskz_mov_ps(!open, a), first);
        store_512(_mm512_maskz_mov_ps(!open, b), second);
    }
    open.len = len;
    for (above, counts) in above.iter_mut().zip(counts) {
        for cut in 0..3 {
            above[cut][0] += counts[0][cut].total();
            above[cut][1] += counts[1][cut].total();
        }
    }
    Some(())
}

/// Which deltas of an expert may be beyond a threshold and are not for certain; counts those that reach each limit.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
#[inline]
fn sort(
    delta: __m512,
    limits: &Limits,
    expert: usize,
    counts: &mut [[Counter; 3]; 2],
    minus_one: __m512i,
) -> __mmask16 {
    let size = _mm512_abs_ps(delta);
    let (least, end) = (reached(size, limits.least[expert]), reached(size, limits.end[expert]));
    let mut open = 0;
    for cut in 0..3 {
        counts[0][cut].add(least[cut], minus_one);
        counts[1][cut].add(end[cut], minus_one);
        let may_be_open = if limits.is_known[expert][cut] { 0 } else { __mmask16::MAX };
        open |= least[cut] & !end[cut] & may_be_open;
    }
    open
}
