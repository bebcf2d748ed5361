//! The element-wise steps of the linear, task-arithmetic and TIES families.

use super::lanes::{LANES, Lanes, Square as _};
use super::level::{Level, kernel};
use super::rng::Kept;

/// A step from the base; no step leaves it as it is.
#[inline(always)]
fn changed(base: f64, step: f64) -> f64 {
    if step == 0.0 { base } else { base + step }
}

macro_rules! shifts {
    ($($name:ident $ty:ty;)*) => {$(
        kernel! {
            /// `values += change`, in this width; where nothing is added the value as it is, −0.0 included.
            pub fn $name(values: &mut [$ty], change: &[f32]) {
                for (v, c) in values.iter_mut().zip(change) {
                    *v = if *c == 0.0 { *v } else { *v + <$ty>::from(*c) };
                }
            }
        }
    )*};
}

shifts! {
    shift_narrow f32;
    shift_wide f64;
}

macro_rules! per_width {
    ($delta:ident, $cut:ident, $band:ident, $pick:ident, $count:ident, $weigh:ident, $add_weighed:ident, $add_changes:ident, $add_change:ident, $ty:ty, $bits:ty) => {
        kernel! {
            /// `out = factor · (expert − base)` where that delta's magnitude is at least (above, when `strict`) the
            /// threshold, else zero; the squares of all deltas join the lanes. Magnitudes are compared as bits, so
            /// NaN counts as largest.
            pub fn $cut(
                expert: &[$ty], base: &[$ty], threshold: $bits, strict: bool, factor: f64, out: &mut [f64], lanes: &mut Lanes,
            ) {
                const BITS: $bits = <$bits>::MAX >> 1;
                let least = threshold + <$bits>::from(strict);
                let mut sums = *lanes;
                let ((xs, x_tail), (bs, b_tail)) = (expert.as_chunks::<LANES>(), base.as_chunks::<LANES>());
                let (os, o_tail) = out.as_chunks_mut::<LANES>();
                for ((x, b), o) in xs.iter().zip(bs).zip(os) {
                    for i in 0..LANES {
                        let delta = x[i] - b[i];
                        let wide = f64::from(delta);
                        sums[i] = delta.add_square::<FUSED>(sums[i]);
                        o[i] = if delta.to_bits() & BITS >= least { factor * wide } else { 0.0 };
                    }
                }
                for (i, ((x, b), o)) in x_tail.iter().zip(b_tail).zip(o_tail).enumerate() {
                    let delta = x - b;
                    let wide = f64::from(delta);
                    sums[i] = delta.add_square::<FUSED>(sums[i]);
                    *o = if delta.to_bits() & BITS >= least { factor * wide } else { 0.0 };
                }
                *lanes = sums;
            }
        }
        kernel! {
            /// `out = factor · (expert − base)` where that delta's magnitude, as bits, is at least `least` and below `end`,
            /// else zero; the squares of all deltas join the lanes.
            pub fn $band(
                expert: &[$ty], base: &[$ty], least: $bits, end: $bits, factor: f64, out: &mut [f64], lanes: &mut Lanes,
            ) {
                const BITS: $bits = <$bits>::MAX >> 1;
                let mut sums = *lanes;
                let ((xs, x_tail), (bs, b_tail)) = (expert.as_chunks::<LANES>(), base.as_chunks::<LANES>());
                let (os, o_tail) = out.as_chunks_mut::<LANES>();
                for ((x, b), o) in xs.iter().zip(bs).zip(os) {
                    for i in 0..LANES {
                        let delta = x[i] - b[i];
                        let (wide, bits) = (f64::from(delta), delta.to_bits() & BITS);
                        sums[i] = delta.add_square::<FUSED>(sums[i]);
                        o[i] = if (bits >= least) & (bits < end) { factor * wide } else { 0.0 };
                    }
                }
                for (i, ((x, b), o)) in x_tail.iter().zip(b_tail).zip(o_tail).enumerate() {
                    let delta = x - b;
                    let (wide, bits) = (f64::from(delta), delta.to_bits() & BITS);
                    sums[i] = delta.add_square::<FUSED>(sums[i]);
                    *o = if (bits >= least) & (bits < end) { factor * wide } else { 0.0 };
                }
                *lanes = sums;
            }
        }
        kernel! {
            /// `out = factor · (expert − base)` where the element's bit is set, else zero; the squares of all deltas
            /// join the lanes.
            pub fn $pick(
                expert: &[$ty], base: &[$ty], kept: &Kept, factor: f64, out: &mut [f64], lanes: &mut Lanes,
            ) {
                let mut sums = *lanes;
                let ((xs, x_tail), (bs, b_tail)) = (expert.as_chunks::<LANES>(), base.as_chunks::<LANES>());
                let rows = xs.len();
                let bits = |row: usize| kept[row / 4] >> (LANES * (row % 4));
                let (os, o_tail) = out.as_chunks_mut::<LANES>();
                for (row, ((x, b), o)) in xs.iter().zip(bs).zip(os).enumerate() {
                    let bits = bits(row);
                    for i in 0..LANES {
                        let delta = x[i] - b[i];
                        sums[i] = delta.add_square::<FUSED>(sums[i]);
                        o[i] = if bits >> i & 1 == 1 { factor * f64::from(delta) } else { 0.0 };
                    }
                }
                if !o_tail.is_empty() {
                    let bits = bits(rows);
                    for (i, ((x, b), o)) in x_tail.iter().zip(b_tail).zip(o_tail).enumerate() {
                        let delta = x - b;
                        sums[i] = delta.add_square::<FUSED>(sums[i]);
                        *o = if bits >> i & 1 == 1 { factor * f64::from(delta) } else { 0.0 };
                    }
                }
                *lanes = sums;
            }
        }
        kernel! {
            /// Number of deltas whose magnitude is exactly the threshold.
            pub fn $count(expert: &[$ty], base: &[$ty], threshold: $bits) -> u64 {
                const BITS: $bits = <$bits>::MAX >> 1;
                let mut n: u32 = 0;
                for (x, b) in expert.iter().zip(base) {
                    n += u32::from((x - b).to_bits() & BITS == threshold);
                }
                u64::from(n)
            }
        }
        kernel! {
            /// `out = expert − base`, subtracted in this width.
            pub fn $delta(expert: &[$ty], base: &[$ty], out: &mut [f64]) {
                for ((o, x), b) in out.iter_mut().zip(expert).zip(base) {
                    *o = f64::from(*x - *b);
                }
            }
        }
        kernel! {
            /// `out = weight · values`; the squares of the values join the lanes.
            pub fn $weigh(values: &[$ty], weight: f64, out: &mut [f64], lanes: &mut Lanes) {
                let mut sums = *lanes;
                let ((vs, v_tail), (os, o_tail)) = (values.as_chunks::<LANES>(), out.as_chunks_mut::<LANES>());
                for (v, o) in vs.iter().zip(os) {
                    for i in 0..LANES {
                        let wide = f64::from(v[i]);
                        o[i] = weight * wide;
                        sums[i] += wide * wide;
                    }
                }
                for (i, (v, o)) in v_tail.iter().zip(o_tail).enumerate() {
                    let wide = f64::from(*v);
                    *o = weight * wide;
                    sums[i] += wide * wide;
                }
                *lanes = sums;
            }
        }
        kernel! {
            /// `out = (out + weight · values) / divisor`; the squares of the values join the lanes.
            pub fn $add_weighed(values: &[$ty], weight: f64, divisor: f64, out: &mut [f64], lanes: &mut Lanes) {
                let mut sums = *lanes;
                let ((vs, v_tail), (os, o_tail)) = (values.as_chunks::<LANES>(), out.as_chunks_mut::<LANES>());
                let divided = divisor != 1.0;
                for (v, o) in vs.iter().zip(os) {
                    for i in 0..LANES {
                        let wide = f64::from(v[i]);
                        o[i] += weight * wide;
                        sums[i] += wide * wide;
                    }
                    if divided {
                        for o in o {
                            *o /= divisor;
                        }
                    }
                }
                for (i, (v, o)) in v_tail.iter().zip(o_tail).enumerate() {
                    let wide = f64::from(*v);
                    *o = (*o + weight * wide) / divisor;
                    sums[i] += wide * wide;
                }
                *lanes = sums;
            }
        }
        kernel! {
            /// `out = base + factor · (a + b) / divisor`; where nothing is added the base as it is, −0.0 included.
            pub fn $add_changes(base: &[$ty], a: &[f64], b: &[f64], divisor: f64, factor: f64, out: &mut [f64]) {
                let by = |(a, b): (&f64, &f64)| a + b;
                let changes = a.iter().zip(b).map(by);
                if divisor == 1.0 {
                    for ((o, base), change) in out.iter_mut().zip(base).zip(changes) {
                        *o = changed(f64::from(*base), factor * change);
                    }
                } else {
                    for ((o, base), change) in out.iter_mut().zip(base).zip(changes) {
                        *o = changed(f64::from(*base), factor * (change / divisor));
                    }
                }
            }
        }
        kernel! {
            /// `change = base + factor · change`; where nothing is added the base as it is, −0.0 included.
            pub fn $add_change(base: &[$ty], factor: f64, change: &mut [f64]) {
                for (c, b) in change.iter_mut().zip(base) {
                    *c = changed(f64::from(*b), factor * *c);
                }
            }
        }
    };
}

per_width!(
    delta_narrow,
    cut_narrow,
    band_narrow,
    pick_narrow,
    count_narrow,
    weigh_narrow,
    add_weighed_narrow,
    add_changes_narrow,
    add_change_narrow,
    f32,
    u32
);
per_width!(
    delta_wide,
    cut_wide,
    band_wide,
    pick_wide,
    count_wide,
    weigh_wide,
    add_weighed_wide,
    add_changes_wide,
    add_change_wide,
    f64,
    u64
);

kernel! {
    /// `out = base + factor · (Σ weight · delta)` of two experts, each delta the difference of two runs of numbers; where
    /// nothing is added the base as it is, −0.0 included. The squares of each delta join its lanes. What the steps do
    /// one by one, without the sums on the way going through memory.
    pub fn add_two_deltas(
        base: &[f32], one: (&[f32], &[f32]), two: (&[f32], &[f32]), weights: [f64; 2], factor: f64, out: &mut [f64], lanes: [&mut Lanes; 2],
    ) {
        let [lanes_one, lanes_two] = lanes;
        let (mut sums_one, mut sums_two) = (*lanes_one, *lanes_two);
        let whole = base.len() / LANES * LANES;
        let (vs, v_tail) = base.as_chunks::<LANES>();
        let ((xs, x_tail), (bs, b_tail)) = (one.0.as_chunks::<LANES>(), one.1.as_chunks::<LANES>());
        let ((ys, y_tail), (cs, c_tail)) = (two.0.as_chunks::<LANES>(), two.1.as_chunks::<LANES>());
        let (rows, tail) = out[..base.len()].split_at_mut(whole);
        let rows = rows.as_chunks_mut::<LANES>().0.iter_mut().zip(vs);
        for ((o, v), ((x, b), (y, c))) in rows.zip(xs.iter().zip(bs).zip(ys.iter().zip(cs))) {
            for i in 0..LANES {
                let (first, second) = (x[i] - b[i], y[i] - c[i]);
                sums_one[i] = first.add_square::<FUSED>(sums_one[i]);
                sums_two[i] = second.add_square::<FUSED>(sums_two[i]);
                let (first, second) = (f64::from(first), f64::from(second));
                o[i] = changed(f64::from(v[i]), factor * (weights[0] * first + weights[1] * second));
            }
        }
        let (one, two) = (x_tail.iter().zip(b_tail), y_tail.iter().zip(c_tail));
        for (i, ((o, v), ((x, b), (y, c)))) in tail.iter_mut().zip(v_tail).zip(one.zip(two)).enumerate() {
            let (first, second) = (x - b, y - c);
            sums_one[i] = first.add_square::<FUSED>(sums_one[i]);
            sums_two[i] = second.add_square::<FUSED>(sums_two[i]);
            let (first, second) = (f64::from(first), f64::from(second));
            *o = changed(f64::from(*v), factor * (weights[0] * first + weights[1] * second));
        }
        (*lanes_one, *lanes_two) = (sums_one, sums_two);
    }
}

macro_rules! differences {
    ($scale:ident, $subtract:ident, $ty:ty) => {
        kernel! {
            /// `values = base + factor · (values − base)`; where they are equal nothing changes.
            pub fn $scale(base: &[$ty], factor: f64, values: &mut [f64]) {
                for (v, b) in values.iter_mut().zip(base) {
                    let b = f64::from(*b);
                    let step = *v - b;
                    *v = if step == 0.0 { *v } else { b + factor * step };
                }
            }
        }
        kernel! {
            /// `values −= base`.
            pub fn $subtract(base: &[$ty], values: &mut [f64]) {
                for (v, b) in values.iter_mut().zip(base) {
                    *v -= f64::from(*b);
                }
            }
        }
    };
}

differences!(scale_difference_narrow, subtract_narrow, f32);
differences!(scale_difference, subtract_wide, f64);

kernel! {
    /// Drops every value whose magnitude is below the threshold: magnitudes are compared as the bits of `|v|`, so NaN
    /// counts as largest.
    pub fn keep_large(values: &mut [f64], threshold: u64) {
        for v in values {
            let magnitude = v.to_bits() & (u64::MAX >> 1);
            *v = if magnitude >= threshold { *v } else { 0.0 };
        }
    }
}

kernel! {
    /// `values *= factor`.
    pub fn scale(values: &mut [f64], factor: f64) {
        for v in values {
            *v *= factor;
        }
    }
}

kernel! {
    /// `sum += values`.
    pub fn add(values: &[f64], sum: &mut [f64]) {
        for (s, v) in sum.iter_mut().zip(values) {
            *s += *v;
        }
    }
}

kernel! {
    /// `values /= divisor`.
    pub fn divide_by(values: &mut [f64], divisor: f64) {
        for v in values {
            *v /= divisor;
        }
    }
}

/// All bits of an f64 but the sign.
pub const MAGNITUDE: u64 = u64::MAX >> 1;

/// The disjoint merge of `N` experts. `N` is known to the compiler, which then makes one vector loop of all.
#[inline(always)]
fn disjoint<const N: usize>(
    values: [&[f64]; N],
    shares: [f64; N],
    zero_is_plus: bool,
    normalize: bool,
    out: &mut [f64],
) {
    let len = out.len();
    let values = values.map(|v| &v[..len]);
    let at_zero = if zero_is_plus { 1.0 } else { -1.0 };
    for (i, o) in out.iter_mut().enumerate() {
        let mut total = values[0][i];
        for v in &values[1..] {
            total += v[i];
        }
        let sign = if total == 0.0 { at_zero } else { 1.0f64.copysign(total) };
        let (mut mix, mut divisor) = (0.0, 0.0);
        for (v, share) in values.iter().zip(shares) {
            let agrees = v[i] * sign > 0.0;
            mix += if agrees { v[i] } else { 0.0 };
            divisor += if agrees { share } else { 0.0 };
        }
        let by = if normalize && divisor != 0.0 { divisor } else { 1.0 };
        // A sum that is NaN has no sign to elect; the NaN must come out.
        *o = if total.is_nan() { f64::NAN } else { mix / by };
    }
}

/// No more experts than this are merged by one loop; nothing limits how many there may be.
const MOST_IN_REGISTERS: usize = 16;
const NOTHING: [f64; super::CHUNK] = [0.0; super::CHUNK];

macro_rules! disjoint_of {
    ($($name:ident $n:literal),*) => {$(
        kernel! {
            fn $name(values: &[f64], stride: usize, shares: &[f64], zero_is_plus: bool, normalize: bool, out: &mut [f64]) {
                // Experts that are not there have zeros, which agree with nobody.
                let mut all = [&NOTHING[..]; $n];
                let mut all_shares = [0.0; $n];
                for (slot, v) in all.iter_mut().zip(values.chunks(stride)).take(shares.len()) {
                    *slot = v;
                }
                all_shares[..shares.len()].copy_from_slice(shares);
                disjoint::<$n>(all, all_shares, zero_is_plus, normalize, out);
            }
        }
    )*};
}

disjoint_of!(disjoint_of_2 2, disjoint_of_3 3, disjoint_of_4 4, disjoint_of_8 8, disjoint_of_16 16);

/// The disjoint merge (TIES, section 3): for each element the sign of the sum over experts is elected
/// (`zero_is_plus` decides where that is zero), the values of that sign are added, and the sum is divided by the
/// shares of their experts when `normalize`. `values` holds a buffer for each expert, each as long as the
/// stride that comes with it.
pub fn merge_disjoint(
    level: Level,
    (values, stride): (&[f64], usize),
    shares: &[f64],
    zero_is_plus: bool,
    normalize: bool,
    out: &mut [f64],
) {
    let merge = match shares.len() {
        0..=2 => disjoint_of_2,
        3 => disjoint_of_3,
        4 => disjoint_of_4,
        5..=8 => disjoint_of_8,
        9..=MOST_IN_REGISTERS => disjoint_of_16,
        _ => return disjoint_of_many(values, stride, shares, zero_is_plus, normalize, out),
    };
    for (at, part) in out.chunks_mut(super::CHUNK).enumerate() {
        merge(level, &values[at * super::CHUNK..], stride, shares, zero_is_plus, normalize, part);
    }
}

/// The same, element by element.
fn disjoint_of_many(
    values: &[f64],
    stride: usize,
    shares: &[f64],
    zero_is_plus: bool,
    normalize: bool,
    out: &mut [f64],
) {
    let mut column = vec![0.0; shares.len()];
    for (i, o) in out.iter_mut().enumerate() {
        for (slot, v) in column.iter_mut().zip(values.chunks(stride)) {
            *slot = v[i];
        }
        let (mix, divisor) = super::naive::disjoint(&column, shares, zero_is_plus);
        *o = if normalize && divisor != 0.0 { mix / divisor } else { mix };
    }
}

kernel! {
    /// Adds `values` to `out` and the share of their expert to `divisor` where they are not zero.
    pub fn add_covering(values: &[f64], share: f64, out: &mut [f64], divisor: &mut [f64]) {
        for ((v, o), d) in values.iter().zip(out).zip(divisor) {
            *o += *v;
            *d += if *v == 0.0 { 0.0 } else { share };
        }
    }
}

kernel! {
    /// `values /= divisor` where that is not zero.
    pub fn divide_covered(values: &mut [f64], divisor: &[f64]) {
        for (v, d) in values.iter_mut().zip(divisor) {
            *v = if *d == 0.0 { *v } else { *v / *d };
        }
    }
}

kernel! {
    /// Sum of the signs of the values (NaN has none).
    pub fn sum_of_signs(values: &[f64]) -> i64 {
        let mut n = 0;
        for v in values {
            n += i64::from(*v > 0.0) - i64::from(*v < 0.0);
        }
        n
    }
}
