//! Methods made of one mask an expert: Reinforced Agent Merging, TALL masks, EMR.

use super::lanes::{LANES, Lanes, only};
use super::level::kernel;
use super::{CHUNK, Level};

kernel! {
    /// Adds one to the count of each element whose value is not zero (NaN is not).
    pub fn count_changed(values: &[f64], counts: &mut [f64]) {
        for (c, v) in counts.iter_mut().zip(values) {
            *c += if *v == 0.0 { 0.0 } else { 1.0 };
        }
    }
}

kernel! {
    /// Number of elements that are not zero and have a count above one, and of those with a count of one.
    pub fn count_shared(values: &[f64], counts: &[f64]) -> (i64, i64) {
        let (mut shared, mut unique) = (0u32, 0u32);
        for (v, c) in values.iter().zip(counts) {
            let changed = u32::from(*v != 0.0 || v.is_nan());
            shared += changed & u32::from(*c > 1.0);
            unique += changed & u32::from(*c <= 1.0);
        }
        (i64::from(shared), i64::from(unique))
    }
}

/// The merge of `N` experts' changes. `N` is known to the compiler, which then makes one vector loop of all.
#[inline(always)]
fn unique_or_mean_of<const N: usize>(values: [&[f64]; N], scales: [f64; N], out: &mut [f64]) {
    let len = out.len();
    let values = values.map(|v| &v[..len]);
    for (i, o) in out.iter_mut().enumerate() {
        let (mut count, mut sum, mut scaled) = (0.0, 0.0, 0.0);
        for (v, scale) in values.iter().zip(scales) {
            count += if v[i] == 0.0 { 0.0 } else { 1.0 };
            sum += v[i];
            scaled += scale * v[i];
        }
        // One division for all, so that nothing branches.
        let (shared, by) = if count > 1.0 { (sum, count) } else { (scaled, 1.0) };
        *o = shared / by;
    }
}

/// No more experts than this are merged by one loop; nothing limits how many there may be.
const MOST_IN_REGISTERS: usize = 16;
const NOTHING: [f64; CHUNK] = [0.0; CHUNK];

macro_rules! unique_or_mean_of {
    ($($name:ident $n:literal),*) => {$(
        kernel! {
            fn $name(values: &[f64], stride: usize, scales: &[f64], out: &mut [f64]) {
                // Experts that are not there changed nothing.
                let mut all = [&NOTHING[..]; $n];
                let mut all_scales = [1.0; $n];
                for (slot, v) in all.iter_mut().zip(values.chunks(stride)).take(scales.len()) {
                    *slot = v;
                }
                all_scales[..scales.len()].copy_from_slice(scales);
                unique_or_mean_of::<$n>(all, all_scales, out);
            }
        }
    )*};
}

unique_or_mean_of!(of_2 2, of_3 3, of_4 4, of_8 8, of_16 16);

/// Where one expert alone has a change (a value that is not zero), that change times the expert's scale; where
/// several have one, the mean over those; elsewhere zero. `values` holds a buffer for each expert, each as long as
/// the stride that comes with it.
///
/// # Panics
/// If `out` is longer than [`CHUNK`].
pub fn unique_or_mean(level: Level, (values, stride): (&[f64], usize), scales: &[f64], out: &mut [f64]) {
    assert!(out.len() <= CHUNK, "elements stand alone here, so a chunk is never longer");
    let merge = match scales.len() {
        0..=2 => of_2,
        3 => of_3,
        4 => of_4,
        5..=8 => of_8,
        9..=MOST_IN_REGISTERS => of_16,
        _ => {
            for (i, o) in out.iter_mut().enumerate() {
                let column = || values.chunks(stride).map(|v| v[i]).zip(scales);
                *o = super::naive::unique_or_mean(column());
            }
            return;
        }
    };
    merge(level, values, stride, scales, out);
}

kernel! {
    /// Adds one to the count of each element at which the delta is larger than `lambda` times its distance to the
    /// merged delta: the TALL mask (Wang et al., ICML 2024, eq. 4).
    pub fn count_tall(delta: &[f64], merged: &[f64], lambda: f64, counts: &mut [f64]) {
        for ((c, d), m) in counts.iter_mut().zip(delta).zip(merged) {
            *c += if d.abs() > lambda * (m - d).abs() { 1.0 } else { 0.0 };
        }
    }
}

kernel! {
    /// Zeroes the merged delta where fewer than `least` experts count. What is not finite has no mask and stays, so
    /// that it comes out.
    pub fn keep_agreed(counts: &[f64], least: f64, merged: &mut [f64]) {
        for (m, c) in merged.iter_mut().zip(counts) {
            *m = if *c >= least || !m.is_finite() { *m } else { 0.0 };
        }
    }
}

/// Packs flags of zero or one, the first into the lowest bit of the first byte.
#[inline(always)]
fn pack(flags: &[u8; CHUNK], bits: &mut [u8]) {
    for (byte, eight) in bits.iter_mut().zip(flags.as_chunks::<8>().0) {
        // The product brings flag k, at bit 8k, to bit 56 + k; no two flags meet below, so nothing carries.
        *byte = (u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
    }
}

kernel! {
    /// The TALL mask of [`count_tall`] as bits, the first element in the lowest bit of the first byte; set where the
    /// merged delta is not finite. At most [`CHUNK`] elements.
    pub fn mark_tall(delta: &[f64], merged: &[f64], lambda: f64, bits: &mut [u8]) {
        let mut flags = [0; CHUNK];
        for ((f, d), m) in flags.iter_mut().zip(delta).zip(merged) {
            *f = u8::from(d.abs() > lambda * (m - d).abs()) | u8::from(!m.is_finite());
        }
        pack(&flags, bits);
    }
}

kernel! {
    /// Raises the unified delta to this one where it is larger and has the elected sign: plus where the sum is above
    /// zero, otherwise minus (Huang et al., EMR-Merging, NeurIPS 2024, section 3.2). A sum that is NaN has no sign; the
    /// NaN must come out.
    pub fn raise_agreeing(delta: &[f64], sum: &[f64], unified: &mut [f64]) {
        for ((u, d), s) in unified.iter_mut().zip(delta).zip(sum) {
            let agrees = if *s > 0.0 { *d > 0.0 } else { *d < 0.0 };
            let raised = if agrees && d.abs() > u.abs() { *d } else { *u };
            *u = if s.is_nan() { *s } else { raised };
        }
    }
}

kernel! {
    /// EMR's mask as bits: whether the delta has the sign of the unified vector, or that vector no value. Adds the
    /// magnitudes of the delta and of the masked unified vector to the sums, leaving out what is not finite: one NaN
    /// must not take a whole task with it. At most [`CHUNK`] elements.
    pub fn mark_agreeing(delta: &[f64], unified: &[f64], bits: &mut [u8], whole: &mut Lanes, masked: &mut Lanes) {
        let agrees = |d: f64, u: f64| ((d > 0.0) & (u > 0.0)) | ((d < 0.0) & (u < 0.0));
        let finite = |v: f64| if v.abs() < f64::INFINITY { v.abs() } else { 0.0 };
        let mut flags = [0; CHUNK];
        for ((f, d), u) in flags.iter_mut().zip(delta).zip(unified) {
            *f = u8::from(agrees(*d, *u)) | u8::from(u.is_nan());
        }
        pack(&flags, bits);
        let ((ds, d_tail), (us, u_tail)) = (delta.as_chunks::<LANES>(), unified.as_chunks::<LANES>());
        let (mut all, mut some) = (*whole, *masked);
        for (d, u) in ds.iter().zip(us) {
            for i in 0..LANES {
                all[i] += finite(d[i]);
                some[i] += only(agrees(d[i], u[i]), finite(u[i]));
            }
        }
        for (i, (d, u)) in d_tail.iter().zip(u_tail).enumerate() {
            all[i] += finite(*d);
            some[i] += only(agrees(*d, *u), finite(*u));
        }
        (*whole, *masked) = (all, some);
    }
}

macro_rules! take {
    ($take:ident, $expand:ident, $ty:ty) => {
        kernel! {
            /// `out = value` where the delta is the unified one and not zero: the model that it came from, without
            /// another rounding.
            pub fn $take(values: &[$ty], delta: &[f64], unified: &[f64], out: &mut [f64]) {
                for (((o, v), d), u) in out.iter_mut().zip(values).zip(delta).zip(unified) {
                    *o = if *d == *u && *u != 0.0 { f64::from(*v) } else { *o };
                }
            }
        }
        kernel! {
            /// The base where the element's bit is clear. Where it is set, the merged value when the scale is 1,
            /// otherwise the base plus `scale` times their difference.
            pub fn $expand(base: &[$ty], merged: &[$ty], bits: &[u8], scale: f64, out: &mut [f64]) {
                let (outs, pairs) = (out.chunks_mut(8), base.chunks(8).zip(merged.chunks(8)));
                for ((outs, (bases, mergeds)), byte) in outs.zip(pairs).zip(bits) {
                    for (i, (o, (b, m))) in outs.iter_mut().zip(bases.iter().zip(mergeds)).enumerate() {
                        let (own, step) = (f64::from(*b), scale * f64::from(*m - *b));
                        let scaled = if step == 0.0 { own } else { own + step };
                        let moved = if scale == 1.0 { f64::from(*m) } else { scaled };
                        *o = if byte >> i & 1 == 1 { moved } else { own };
                    }
                }
            }
        }
    };
}

take!(take_narrow, expand_narrow, f32);
take!(take_wide, expand_wide, f64);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::naive;

    /// Small numbers with repetitions, zeros of both signs, and some that are not finite.
    fn numbers(seed: u64, len: usize) -> Vec<f64> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) % 97
        };
        let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0];
        (0..len)
            .map(|_| match next() {
                n if n < 4 => odd[n as usize],
                n if n < 40 => 0.0,
                n => (n as f64 - 68.0) / 8.0,
            })
            .collect()
    }

    fn same(a: f64, b: f64) -> bool {
        a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
    }

    #[test]
    fn unique_or_mean_at_every_level_and_length() {
        for level in Level::available() {
            for experts in [1, 2, 3, 4, 5, 8, 9, 16, 17, 20] {
                for len in [0, 1, 7, 15, 16, 33, 515, CHUNK] {
                    let values = numbers(experts as u64 * 1000 + len as u64, experts * CHUNK);
                    let scales: Vec<f64> = (0..experts).map(|i| 1.0 + i as f64 / 16.0).collect();
                    let mut out = vec![9.0; len];
                    unique_or_mean(level, (&values, CHUNK), &scales, &mut out);
                    for (i, o) in out.iter().enumerate() {
                        let column = values.chunks(CHUNK).map(|v| v[i]).zip(&scales);
                        let want = naive::unique_or_mean(column);
                        assert!(same(*o, want), "{experts} experts, element {i} of {len}: {o} is not {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn counts_of_shared_and_unique_elements() {
        for level in Level::available() {
            let columns = [[0.0, 1.0, -2.0, 0.0, f64::NAN], [0.0, 0.0, 3.0, -0.0, f64::NAN]];
            let mut counts = [0.0; 5];
            columns.iter().for_each(|c| count_changed(level, c, &mut counts));
            assert_eq!(counts, [0.0, 1.0, 2.0, 0.0, 2.0]);
            assert_eq!(count_shared(level, &columns[0], &counts), (2, 1));
            assert_eq!(count_shared(level, &columns[1], &counts), (2, 0));
        }
    }

    #[test]
    fn tall_masks_as_counts_and_as_bits() {
        for level in Level::available() {
            for len in [0, 1, 7, 8, 9, 100, CHUNK] {
                let (delta, merged) = (numbers(3, len), numbers(4, len));
                let mut counts = vec![1.0; len];
                let mut bits = vec![0xff; len.div_ceil(8)];
                count_tall(level, &delta, &merged, 0.4, &mut counts);
                mark_tall(level, &delta, &merged, 0.4, &mut bits);
                for i in 0..bits.len() * 8 {
                    let want = i < len && delta[i].abs() > 0.4 * (merged[i] - delta[i]).abs();
                    let open = i < len && !merged[i].is_finite();
                    assert_eq!(bits[i / 8] >> (i % 8) & 1 == 1, want || open);
                    assert!(i >= len || counts[i] == 1.0 + f64::from(u8::from(want)));
                }
            }
        }
    }

    #[test]
    fn what_too_few_agree_on_is_dropped_and_nan_comes_out() {
        let mut merged = [1.0, 2.0, f64::NAN, f64::INFINITY];
        keep_agreed(Level::BASELINE, &[2.0, 1.0, 0.0, 0.0], 2.0, &mut merged);
        assert_eq!(merged[..2], [1.0, 0.0]);
        assert!(merged[2].is_nan() && merged[3].is_infinite());
    }

    #[test]
    fn the_largest_agreeing_delta_is_unified() {
        for level in Level::available() {
            let deltas = [[1.0, -1.0, 2.0, 0.0], [3.0, 1.0, -3.0, 0.0]];
            let mut sum = [0.0; 4];
            deltas.iter().for_each(|d| crate::kernel::combine::add(level, d, &mut sum));
            let mut unified = [0.0; 4];
            deltas.iter().for_each(|d| raise_agreeing(level, d, &sum, &mut unified));
            // A sum of zero elects minus.
            assert_eq!(unified, [3.0, -1.0, -3.0, 0.0]);
            let (mut whole, mut masked, mut bits) = ([0.0; LANES], [0.0; LANES], [0xff]);
            mark_agreeing(level, &deltas[0], &unified, &mut bits, &mut whole, &mut masked);
            assert_eq!(bits, [0b0011]);
            assert_eq!(whole[..4], [1.0, 1.0, 2.0, 0.0]);
            assert_eq!(masked[..4], [3.0, 1.0, 0.0, 0.0]);
        }
    }

    #[test]
    fn emr_marks_and_sums_at_every_length() {
        for level in Level::available() {
            for len in [0, 1, 7, 8, 15, 16, 17, 100, CHUNK] {
                let (delta, unified) = (numbers(5, len), numbers(6, len));
                let mut bits = vec![0xff; len.div_ceil(8)];
                let (mut whole, mut masked) = ([1.0; LANES], [2.0; LANES]);
                mark_agreeing(level, &delta, &unified, &mut bits, &mut whole, &mut masked);
                let (mut want_whole, mut want_masked) = ([1.0; LANES], [2.0; LANES]);
                for i in 0..bits.len() * 8 {
                    let set = bits[i / 8] >> (i % 8) & 1 == 1;
                    if i >= len {
                        assert!(!set);
                        continue;
                    }
                    let (d, u) = (delta[i], unified[i]);
                    let agrees = d * u > 0.0;
                    assert_eq!(set, agrees || u.is_nan());
                    want_whole[i % LANES] += if d.is_finite() { d.abs() } else { 0.0 };
                    want_masked[i % LANES] += if agrees && u.is_finite() { u.abs() } else { 0.0 };
                }
                assert_eq!((whole, masked), (want_whole, want_masked));
            }
        }
    }

    #[test]
    fn expanding_chooses_or_scales() {
        for level in Level::available() {
            let (base, merged) = ([1.0f32, -0.0, 2.0, 1.0], [3.0f32, 5.0, 2.0, f32::NAN]);
            let mut out = [9.0; 4];
            expand_narrow(level, &base, &merged, &[0b1101], 1.0, &mut out);
            assert_eq!(out[..3], [3.0, 0.0, 2.0]);
            assert!(out[1].is_sign_negative() && out[3].is_nan());
            expand_narrow(level, &base, &merged, &[0b0001], 0.25, &mut out);
            assert_eq!(out, [1.5, 0.0, 2.0, 1.0]);
        }
    }
}
