//! The kernels of both widths as plain loops, from which the compiler makes those of each level.

use super::super::Level;
use super::super::lanes::{LANES, Lanes, only};
use super::super::level::kernel;
use super::super::values::Numbers;
use super::{Changes, Found, Thresholds, Waiting, Width, at_once, keys};

/// An f32 rounded to bf16, to nearest even.
#[inline(always)]
pub(super) fn bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits(bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}

/// The largest f32 that is not above a number: no f32 lies between the two.
pub(super) fn floor_narrow(value: f64) -> f32 {
    let near = value as f32;
    if f64::from(near) > value { near.next_down() } else { near }
}

/// The smallest f32 that is not below a number.
pub(super) fn ceil_narrow(value: f64) -> f32 {
    let near = value as f32;
    if f64::from(near) < value { near.next_up() } else { near }
}

/// Calls `each` with the lane of every element of some slices of one length, and with zeros that fill up the last row: no
/// kernel counts them, and rows of fixed length let the compiler keep sums in registers.
macro_rules! rows {
    (|$i:ident| $each:expr, $($name:ident),+) => {{
        $(let $name = $name.as_chunks::<LANES>();)+
        let rows = [$($name.0.len()),+][0];
        for row in 0..rows {
            $(let $name = &$name.0[row];)+
            for $i in 0..LANES {
                $(let $name = $name[$i];)+
                $each;
            }
        }
        if [$($name.1.len()),+][0] > 0 {
            $(let $name = filled($name.1);)+
            for $i in 0..LANES {
                $(let $name = $name[$i];)+
                $each;
            }
        }
    }};
}

/// The last elements, and zeros behind them.
#[inline(always)]
pub(super) fn filled<T: Copy + Default>(tail: &[T]) -> [T; LANES] {
    let mut row = [T::default(); LANES];
    row[..tail.len()].copy_from_slice(tail);
    row
}

/// The sum of the counters of a chunk, each of which a row raises by at most one.
#[inline(always)]
fn count(counts: [u32; LANES]) -> u64 {
    counts.iter().map(|c| u64::from(*c)).sum()
}

/// In how many places two numbers are a hit. Not by rows: counters of lanes alone make the compiler gather the same lane
/// of many rows.
#[inline(always)]
fn hits<T: Copy, U: Copy>(a: &[T], b: &[U], hit: impl Fn(T, U) -> bool) -> u64 {
    // Of one chunk.
    let mut count = 0u32;
    for (a, b) in a.iter().zip(b) {
        count += u32::from(hit(*a, *b));
    }
    u64::from(count)
}

macro_rules! width {
    ($ty:ty, $numbers:ident, |$narrow:ident, $wide:ident| $buffer:ident, $floor:path, $ceil:path, $find_keys:path, { $($at_once:tt)* }) => {
        const _: () = {
            kernel! {
                fn changes(
                    expert: &[$ty], base: &[$ty], exact: bool, epsilon: $ty, relative: $ty, out: &mut [$ty],
                ) -> Changes {
                    // Told apart outside of the loops.
                    if exact {
                        changes_by(expert, base, epsilon, relative, out, |x, b| x != b)
                    } else {
                        changes_by(expert, base, epsilon, relative, out, |x, b| bf16(x as f32) != bf16(b as f32))
                    }
                }
            }

            #[inline(always)]
            fn changes_by(
                expert: &[$ty],
                base: &[$ty],
                epsilon: $ty,
                relative: $ty,
                out: &mut [$ty],
                visible: impl Fn($ty, $ty) -> bool,
            ) -> Changes {
                // Counters of one chunk; a row adds at most one to each.
                let (mut different, mut absolute, mut relatively) = ([0u32; LANES], [0u32; LANES], [0u32; LANES]);
                let (mut visibly, mut non_finite) = ([0u32; LANES], [0u32; LANES]);
                let mut peaks = [0.0; LANES];
                let mut one = |x: $ty, b: $ty, out: &mut $ty, i: usize| {
                    let delta = x - b;
                    *out = delta;
                    let size = delta.abs();
                    let (large, small) = (x.abs(), b.abs());
                    let large = if small > large { small } else { large };
                    different[i] += u32::from(x.to_bits() != b.to_bits());
                    absolute[i] += u32::from(size > epsilon);
                    relatively[i] += u32::from(size > relative * large);
                    visibly[i] += u32::from(visible(x, b));
                    non_finite[i] += u32::from(!size.is_finite());
                    peaks[i] = if size > peaks[i] { size } else { peaks[i] };
                };
                let ((rows_x, tail_x), (rows_b, tail_b)) = (expert.as_chunks::<LANES>(), base.as_chunks::<LANES>());
                let (rows_o, tail_o) = out.as_chunks_mut::<LANES>();
                for ((x, b), o) in rows_x.iter().zip(rows_b).zip(rows_o) {
                    for i in 0..LANES {
                        one(x[i], b[i], &mut o[i], i);
                    }
                }
                if !tail_x.is_empty() {
                    let (x, b, mut o) = (filled(tail_x), filled(tail_b), [0.0; LANES]);
                    for i in 0..LANES {
                        one(x[i], b[i], &mut o[i], i);
                    }
                    tail_o.copy_from_slice(&o[..tail_x.len()]);
                }
                let [different, absolute, relative, visible, non_finite] =
                    [different, absolute, relatively, visibly, non_finite].map(|of| of.iter().map(|c| u64::from(*c)).sum());
                let peak = f64::from(peaks.into_iter().fold(0.0, <$ty>::max));
                Changes { different, absolute, relative, visible, non_finite, peak }
            }

            kernel! {
                fn subtract(expert: &[$ty], base: &[$ty], out: &mut [$ty]) -> f64 {
                    let mut peaks = [0.0; LANES];
                    let ((rows_x, tail_x), (rows_b, tail_b)) = (expert.as_chunks::<LANES>(), base.as_chunks::<LANES>());
                    let (rows_o, tail_o) = out.as_chunks_mut::<LANES>();
                    let mut one = |x: $ty, b: $ty, out: &mut $ty, i: usize| {
                        let delta = x - b;
                        *out = delta;
                        peaks[i] = if delta.abs() > peaks[i] { delta.abs() } else { peaks[i] };
                    };
                    for ((x, b), o) in rows_x.iter().zip(rows_b).zip(rows_o) {
                        for i in 0..LANES {
                            one(x[i], b[i], &mut o[i], i);
                        }
                    }
                    if !tail_x.is_empty() {
                        let (x, b, mut o) = (filled(tail_x), filled(tail_b), [0.0; LANES]);
                        for i in 0..LANES {
                            one(x[i], b[i], &mut o[i], i);
                        }
                        tail_o.copy_from_slice(&o[..tail_x.len()]);
                    }
                    f64::from(peaks.into_iter().fold(0.0, <$ty>::max))
                }
            }

            kernel! {
                fn add_moments(delta: &[$ty], epsilon: f64, lanes: &mut [Lanes]) {
                    let [squares, fourths, changed] = lanes else { return };
                    let (mut s, mut f, mut c) = (*squares, *fourths, *changed);
                    rows!(|i| {
                        let delta = f64::from(delta);
                        let square = delta * delta;
                        s[i] += square;
                        f[i] += square * square;
                        c[i] += only(delta.abs() > epsilon, square);
                    }, delta);
                    (*squares, *fourths, *changed) = (s, f, c);
                }
            }

            kernel! {
                fn add_products(a: &[$ty], b: &[$ty], lanes: &mut [Lanes]) {
                    let [dots, negatives, squares, negative_squares] = lanes else { return };
                    let (mut d, mut n, mut s, mut m) = (*dots, *negatives, *squares, *negative_squares);
                    rows!(|i| {
                        let product = f64::from(a) * f64::from(b);
                        let negative = only(product < 0.0, product);
                        d[i] += product;
                        n[i] -= negative;
                        s[i] += product * product;
                        m[i] += negative * negative;
                    }, a, b);
                    (*dots, *negatives, *squares, *negative_squares) = (d, n, s, m);
                }
            }

            kernel! {
                fn add_overlap(a: &[$ty], b: &[$ty], epsilon: f64, lanes: &mut [Lanes]) -> (u64, u64) {
                    let [dots, squares_a, squares_b, a_on_b, b_on_a] = lanes else { return (0, 0) };
                    let (mut d, mut s, mut t, mut u, mut v) = (*dots, *squares_a, *squares_b, *a_on_b, *b_on_a);
                    let (mut both, mut opposed) = ([0u32; LANES], [0u32; LANES]);
                    rows!(|i| {
                        let (a, b) = (f64::from(a), f64::from(b));
                        let (in_a, in_b) = (a.abs() > epsilon, b.abs() > epsilon);
                        let product = a * b;
                        let a_there = only(in_b, a * a);
                        let b_there = only(in_a, b * b);
                        u[i] += a_there;
                        v[i] += b_there;
                        d[i] += only(in_a & in_b, product);
                        s[i] += only(in_a, a_there);
                        t[i] += only(in_b, b_there);
                        both[i] += u32::from(in_a & in_b);
                        opposed[i] += u32::from(in_a & in_b & (product < 0.0));
                    }, a, b);
                    (*dots, *squares_a, *squares_b, *a_on_b, *b_on_a) = (d, s, t, u, v);
                    (count(both), count(opposed))
                }
            }

            kernel! {
                fn add_owners(delta: &[$ty], epsilon: f64, owners: &mut [f64]) {
                    for (o, d) in owners.iter_mut().zip(delta) {
                        *o += only(f64::from(*d).abs() > epsilon, 1.0);
                    }
                }
            }

            kernel! {
                fn count_shared(delta: &[$ty], epsilon: f64, owners: &[f64]) -> u64 {
                    hits(delta, owners, |d, owners| (f64::from(d).abs() > epsilon) & (owners > 1.0))
                }
            }

            kernel! {
                fn add_largest(delta: &[$ty], least: [f64; 3], lanes: &mut [Lanes], total: &mut [f64]) {
                    let [first, second, third] = lanes else { return };
                    let (mut x, mut y, mut z) = (*first, *second, *third);
                    let mut one = |delta: $ty, total: &mut f64, i: usize| {
                        let delta = f64::from(delta);
                        let (size, square) = (delta.abs(), delta * delta);
                        let is_kept = size >= least[2];
                        x[i] += only(size >= least[0], square);
                        y[i] += only(size >= least[1], square);
                        z[i] += only(is_kept, square);
                        *total += only(is_kept, delta);
                    };
                    let ((rows, tail), (rows_t, tail_t)) = (delta.as_chunks::<LANES>(), total.as_chunks_mut::<LANES>());
                    for (d, t) in rows.iter().zip(rows_t) {
                        for i in 0..LANES {
                            one(d[i], &mut t[i], i);
                        }
                    }
                    if !tail.is_empty() {
                        let (d, mut t) = (filled(tail), filled(tail_t));
                        for i in 0..LANES {
                            one(d[i], &mut t[i], i);
                        }
                        tail_t.copy_from_slice(&t[..tail.len()]);
                    }
                    (*first, *second, *third) = (x, y, z);
                }
            }

            kernel! {
                fn count_lost(delta: &[$ty], least: f64, total: &[f64], lanes: &mut Lanes) -> (u64, u64) {
                    let mut sums = *lanes;
                    let (mut kept, mut lost) = ([0u32; LANES], [0u32; LANES]);
                    rows!(|i| {
                        let delta = f64::from(delta);
                        let stays = delta.abs() >= least;
                        let goes = stays & ((delta < 0.0) != (total < 0.0));
                        kept[i] += u32::from(stays);
                        lost[i] += u32::from(goes);
                        sums[i] += only(goes, delta * delta);
                    }, delta, total);
                    *lanes = sums;
                    (count(kept), count(lost))
                }
            }

            kernel! {
                fn count_opposed(a: &[$ty], b: &[$ty], least: [$ty; 2]) -> (u64, u64) {
                    let (mut both, mut opposed) = ([0u32; LANES], [0u32; LANES]);
                    rows!(|i| {
                        let large = (a.abs() >= least[0]) & (b.abs() >= least[1]);
                        both[i] += u32::from(large);
                        // A product could be too small for its sign.
                        opposed[i] += u32::from(large & (a.is_sign_negative() != b.is_sign_negative()));
                    }, a, b);
                    (count(both), count(opposed))
                }
            }

            kernel! {
                fn count_low(delta: &[$ty], base: &[$ty], epsilon: $ty, below: $ty) -> u64 {
                    hits(delta, base, |d, b| (d.abs() > epsilon) & (b.abs() < below))
                }
            }

            impl Width for $ty {
                fn of(numbers: Numbers<'_>) -> &[Self] {
                    match numbers {
                        Numbers::$numbers(values) => values,
                        _ => unreachable!("the models of a tensor share one width"),
                    }
                }
                fn buffer<'a>($narrow: &'a mut Vec<f32>, $wide: &'a mut Vec<f64>) -> &'a mut Vec<Self> {
                    $buffer
                }
                fn size(self) -> Self {
                    self.abs()
                }
                fn changes(
                    level: Level,
                    expert: &[Self],
                    base: &[Self],
                    exact: bool,
                    thresholds: Thresholds<f64>,
                    out: &mut [Self],
                    lanes: &mut [Lanes],
                ) -> Changes {
                    if let Some(found) = Self::changes_at_once(level, expert, base, exact, thresholds, out, lanes) {
                        return found;
                    }
                    let Thresholds { epsilon, relative } = thresholds;
                    let found = changes(level, expert, base, exact, $floor(epsilon), relative as $ty, out);
                    if found.different > 0 {
                        add_moments(level, out, epsilon, lanes);
                    }
                    found
                }
                fn subtract(level: Level, expert: &[Self], base: &[Self], out: &mut [Self]) -> f64 {
                    subtract(level, expert, base, out)
                }
                fn count_keys(level: Level, values: &[Self], waiting: &mut Waiting, table: &mut [u32]) {
                    $find_keys(level, values, waiting.room_for(values.len()), table);
                    waiting.raise_many(table);
                }
                fn add_moments(level: Level, delta: &[Self], epsilon: f64, lanes: &mut [Lanes]) {
                    add_moments(level, delta, epsilon, lanes);
                }
                fn add_pair(level: Level, a: &[Self], b: &[Self], epsilon: f64, lanes: &mut [Lanes]) -> (u64, u64) {
                    if let Some(counts) = Self::add_pair_at_once(level, a, b, epsilon, lanes) {
                        return counts;
                    }
                    // Two loops, since one would have more sums than there are registers.
                    let (products, overlap) = lanes.split_at_mut(4);
                    add_products(level, a, b, products);
                    add_overlap(level, a, b, epsilon, overlap)
                }
                fn add_owners(level: Level, delta: &[Self], epsilon: f64, owners: &mut [f64]) {
                    add_owners(level, delta, epsilon, owners);
                }
                fn count_shared(level: Level, delta: &[Self], epsilon: f64, owners: &[f64]) -> u64 {
                    count_shared(level, delta, epsilon, owners)
                }
                fn add_largest(
                    level: Level,
                    delta: &[Self],
                    least: [f64; 3],
                    lanes: &mut [Lanes],
                    total: &mut [f64],
                ) {
                    add_largest(level, delta, least, lanes, total);
                }
                fn count_lost(
                    level: Level,
                    delta: &[Self],
                    least: f64,
                    total: &[f64],
                    lanes: &mut Lanes,
                ) -> (u64, u64) {
                    count_lost(level, delta, least, total, lanes)
                }
                fn count_opposed(level: Level, a: &[Self], b: &[Self], least: [f64; 2]) -> (u64, u64) {
                    count_opposed(level, a, b, least.map($ceil))
                }
                fn count_low(level: Level, delta: &[Self], base: &[Self], epsilon: f64, below: f64) -> u64 {
                    count_low(level, delta, base, $floor(epsilon), $ceil(below))
                }
                $($at_once)*
            }
        };
    };
}

width!(f32, Narrow, |narrow, _wide| narrow, floor_narrow, ceil_narrow, keys::find_narrow, {
    fn changes_at_once(
        level: Level,
        expert: &[f32],
        base: &[f32],
        exact: bool,
        thresholds: Thresholds<f64>,
        out: &mut [f32],
        lanes: &mut [Lanes],
    ) -> Option<Changes> {
        let Thresholds { epsilon, relative } = thresholds;
        let thresholds = Thresholds { epsilon: floor_narrow(epsilon), relative: relative as f32 };
        at_once::find_changes(level, expert, base, exact, thresholds, out, lanes)
    }
    fn add_pair_at_once(
        level: Level,
        a: &[f32],
        b: &[f32],
        epsilon: f64,
        lanes: &mut [Lanes],
    ) -> Option<(u64, u64)> {
        at_once::add_pair(level, a, b, floor_narrow(epsilon), lanes)
    }
    fn find_beyond_at_once(
        level: Level,
        deltas: [&[f32]; 2],
        least: [[f64; 3]; 2],
        lanes: &mut [Lanes],
    ) -> Option<Found> {
        at_once::find_beyond(level, deltas, least.map(|least| least.map(ceil_narrow)), lanes)
    }
});
width!(f64, Wide, |_narrow, wide| wide, std::convert::identity, std::convert::identity, keys::find_wide, {});
