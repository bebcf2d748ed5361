//! Inner products between the models' vectors: the Gram matrix, which is all that the methods of
//! [`super::sphere`] need to know of a tensor, and the sums that a linear combination is made of.
//!
//! A Gram matrix is kept as its upper triangle, row by row: ⟨0,0⟩, ⟨0,1⟩, …, ⟨1,1⟩, ⟨1,2⟩, ….

use super::lanes::{LANES, Lanes};
use super::level::{Level, kernel};
use super::values::{Numbers, Values};
use super::{combine, convert, lanes};

/// Number of entries of the triangle for so many vectors.
#[must_use]
pub const fn entries(vectors: usize) -> usize {
    vectors * (vectors + 1) / 2
}

/// Index of the entry ⟨i,j⟩ among those of `vectors` vectors.
#[must_use]
pub const fn entry(vectors: usize, i: usize, j: usize) -> usize {
    let (i, j) = if i <= j { (i, j) } else { (j, i) };
    i * vectors - i * (i + 1) / 2 + j
}

macro_rules! pairs {
    ($values:ident, $deltas:ident, $ty:ty) => {
        kernel! {
            /// ⟨a,a⟩, ⟨a,b⟩ and ⟨b,b⟩ join the lanes: two models are what is merged most often.
            fn $values(a: &[$ty], b: &[$ty], sums: &mut [Lanes; 3]) {
                let ((rows_a, tail_a), (rows_b, tail_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
                let [mut aa, mut ab, mut bb] = *sums;
                for (row_a, row_b) in rows_a.iter().zip(rows_b) {
                    for i in 0..LANES {
                        let (x, y) = (f64::from(row_a[i]), f64::from(row_b[i]));
                        aa[i] += x * x;
                        ab[i] += x * y;
                        bb[i] += y * y;
                    }
                }
                for (i, (x, y)) in tail_a.iter().zip(tail_b).enumerate() {
                    let (x, y) = (f64::from(*x), f64::from(*y));
                    aa[i] += x * x;
                    ab[i] += x * y;
                    bb[i] += y * y;
                }
                *sums = [aa, ab, bb];
            }
        }
        kernel! {
            /// The same of the deltas `a − base` and `b − base`, subtracted in this width.
            fn $deltas(a: &[$ty], b: &[$ty], base: &[$ty], sums: &mut [Lanes; 3]) {
                let ((rows_a, tail_a), (rows_b, tail_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
                let (rows, tail) = base.as_chunks::<LANES>();
                let [mut aa, mut ab, mut bb] = *sums;
                for ((row_a, row_b), row) in rows_a.iter().zip(rows_b).zip(rows) {
                    for i in 0..LANES {
                        let (x, y) = (f64::from(row_a[i] - row[i]), f64::from(row_b[i] - row[i]));
                        aa[i] += x * x;
                        ab[i] += x * y;
                        bb[i] += y * y;
                    }
                }
                for (i, ((x, y), start)) in tail_a.iter().zip(tail_b).zip(tail).enumerate() {
                    let (x, y) = (f64::from(x - start), f64::from(y - start));
                    aa[i] += x * x;
                    ab[i] += x * y;
                    bb[i] += y * y;
                }
                *sums = [aa, ab, bb];
            }
        }
    };
}

pairs!(pair_narrow, delta_pair_narrow, f32);
pairs!(pair_wide, delta_pair_wide, f64);

/// The Gram matrix of two models, or of their deltas from a base, joins the lanes.
pub fn add_pair(level: Level, a: &Values, b: &Values, base: Option<&Values>, sums: &mut [Lanes; 3]) {
    let numbers = match base {
        None => (a.numbers(), b.numbers(), None),
        // Two changes that are known by themselves stand before zeros; one beside another delta is taken as that is.
        Some(base) if a.is_known_change_of(base) == b.is_known_change_of(base) => {
            let ((a, from), (b, _)) = (a.against(base), b.against(base));
            (a, b, Some(from))
        }
        Some(base) => (a.numbers(), b.numbers(), Some(base.numbers())),
    };
    match numbers {
        (Numbers::Narrow(a), Numbers::Narrow(b), None) => pair_narrow(level, a, b, sums),
        (Numbers::Wide(a), Numbers::Wide(b), None) => pair_wide(level, a, b, sums),
        (Numbers::Narrow(a), Numbers::Narrow(b), Some(Numbers::Narrow(base))) => {
            delta_pair_narrow(level, a, b, base, sums);
        }
        (Numbers::Wide(a), Numbers::Wide(b), Some(Numbers::Wide(base))) => {
            delta_pair_wide(level, a, b, base, sums);
        }
        _ => unreachable!("the models of a tensor share one width"),
    }
}

/// The vector of a model in f64: its values, or its delta from a base, subtracted in the arithmetic of the tensor.
pub fn vector(level: Level, model: &Values, base: Option<&Values>, out: &mut [f64]) {
    match (base, model.numbers()) {
        (Some(base), _) => model.delta(level, base, out),
        (None, Numbers::Narrow(values)) => convert::widen(level, values, out),
        (None, Numbers::Wide(values)) => out.copy_from_slice(values),
    }
}

/// Products of one vector with `N` others. Three sums of 16 lanes fill the registers of AVX2; more would spill.
#[inline(always)]
fn products<const N: usize>(a: &[f64], others: [&[f64]; N], sums: &mut [Lanes]) {
    let (rows, tail) = a.as_chunks::<LANES>();
    let others = others.map(|o| o[..a.len()].as_chunks::<LANES>());
    let mut all: [Lanes; N] = std::array::from_fn(|n| sums[n]);
    for (at, row) in rows.iter().enumerate() {
        for (sums, (rows, _)) in all.iter_mut().zip(&others) {
            for i in 0..LANES {
                sums[i] += row[i] * rows[at][i];
            }
        }
    }
    for (sums, (_, other)) in all.iter_mut().zip(&others) {
        for ((sum, x), y) in sums.iter_mut().zip(tail).zip(*other) {
            *sum += x * y;
        }
    }
    sums[..N].copy_from_slice(&all);
}

kernel! {
    fn products_of_1(a: &[f64], b: &[f64], sums: &mut [Lanes]) {
        products::<1>(a, [b], sums);
    }
}

kernel! {
    fn products_of_2(a: &[f64], b: &[f64], c: &[f64], sums: &mut [Lanes]) {
        products::<2>(a, [b, c], sums);
    }
}

kernel! {
    fn products_of_3(a: &[f64], b: &[f64], c: &[f64], d: &[f64], sums: &mut [Lanes]) {
        products::<3>(a, [b, c, d], sums);
    }
}

/// The Gram matrix of `count` vectors joins the lanes, one for each entry. Vector `i` is the run of `len` elements
/// at `i · stride`.
pub fn add_gram(level: Level, vectors: &[f64], stride: usize, len: usize, count: usize, sums: &mut [Lanes]) {
    let vector = |i: usize| &vectors[i * stride..i * stride + len];
    let mut at = 0;
    for i in 0..count {
        let mut j = i;
        while j < count {
            let sums = &mut sums[at..];
            let done = match count - j {
                1 => {
                    products_of_1(level, vector(i), vector(j), sums);
                    1
                }
                2 => {
                    products_of_2(level, vector(i), vector(j), vector(j + 1), sums);
                    2
                }
                _ => {
                    products_of_3(level, vector(i), vector(j), vector(j + 1), vector(j + 2), sums);
                    3
                }
            };
            (j, at) = (j + done, at + done);
        }
    }
}

/// The totals of the lanes.
pub fn totals(sums: &[Lanes], gram: &mut [f64]) {
    for (entry, lanes) in gram.iter_mut().zip(sums) {
        *entry = lanes::total(lanes);
    }
}

kernel! {
    /// `sums += a · b`, element by element: the products of a piece of a row, each for its own column.
    pub fn add_products_each(a: &[f64], b: &[f64], sums: &mut [f64]) {
        for ((sum, x), y) in sums.iter_mut().zip(a).zip(b) {
            *sum += x * y;
        }
    }
}

kernel! {
    /// `values *= factors`, element by element.
    pub fn multiply_each(values: &mut [f64], factors: &[f64]) {
        for (v, f) in values.iter_mut().zip(factors) {
            *v *= f;
        }
    }
}

/// `out = base + Σ vectors`, or `Σ vectors` without a base; elements to which nothing is added keep the base's
/// value, its sign of zero included. The vectors lie one `stride` after the other; the first is overwritten.
pub fn add_up(
    level: Level,
    base: Option<&Values>,
    vectors: &mut [f64],
    stride: usize,
    count: usize,
    out: &mut [f64],
) {
    let len = out.len();
    let (sum, others) = vectors.split_at_mut(stride.min(vectors.len()));
    let sum = &mut sum[..len];
    let others = others.chunks(stride).take(count - 1).map(|v| &v[..len]);
    match (base, count) {
        (Some(base), 2..) => {
            let mut others = others;
            let Some(last) = others.next_back() else { return };
            for vector in others {
                combine::add(level, vector, sum);
            }
            base.add_changes(level, sum, last, 1.0, 1.0, out);
        }
        (base, _) => {
            out.copy_from_slice(sum);
            for vector in others {
                combine::add(level, vector, out);
            }
            if let Some(base) = base {
                base.add_change(level, 1.0, out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::naive;

    fn numbers(seed: usize, len: usize) -> Vec<f64> {
        (0..len).map(|i| f64::from(((i * 37 + seed * 101) % 53) as f32 / 7.0 - 3.3)).collect()
    }

    /// Bytes of f32 numbers.
    fn stored(values: &[f64]) -> Vec<u8> {
        values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect()
    }

    #[test]
    fn entries_count_up_along_the_triangle() {
        for count in 1..9 {
            let pairs = (0..count).flat_map(|i| (i..count).map(move |j| (i, j)));
            for (at, (i, j)) in pairs.enumerate() {
                assert_eq!((entry(count, i, j), entry(count, j, i)), (at, at));
            }
            assert_eq!(entry(count, count - 1, count - 1) + 1, entries(count));
        }
    }

    #[test]
    fn sums_are_the_striped_ones_at_every_level() {
        for level in Level::available() {
            for count in 1..8 {
                for len in [0, 1, 15, 16, 17, 333] {
                    let stride = len + 5;
                    let mut vectors = vec![0.0; count * stride];
                    for i in 0..count {
                        vectors[i * stride..i * stride + len].copy_from_slice(&numbers(i, len));
                    }
                    let mut sums = vec![Lanes::default(); entries(count)];
                    add_gram(level, &vectors, stride, len, count, &mut sums);
                    for i in 0..count {
                        for j in i..count {
                            let (a, b) = (numbers(i, len), numbers(j, len));
                            let terms: Vec<f64> = a.iter().zip(&b).map(|(x, y)| x * y).collect();
                            let got = lanes::total(&sums[entry(count, i, j)]);
                            assert_eq!(
                                got.to_bits(),
                                naive::striped_sum(&terms).to_bits(),
                                "{level:?} {count} {len}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_pair_is_the_matrix_of_two() {
        use crate::dtype::DType;
        for level in Level::available() {
            for len in [0, 1, 16, 45, 1024] {
                for (dtype, wide) in [(DType::F32, false), (DType::F32, true)] {
                    let load = |seed| {
                        let mut values = Values::default();
                        values.load(level, dtype, &stored(&numbers(seed, len)), len, wide);
                        values
                    };
                    let (a, b, start) = (load(1), load(2), load(3));
                    for base in [None, Some(&start)] {
                        let mut vectors = vec![0.0; 2 * len];
                        vector(level, &a, base, &mut vectors[..len]);
                        vector(level, &b, base, &mut vectors[len..]);
                        let mut want = vec![Lanes::default(); 3];
                        add_gram(level, &vectors, len, len, 2, &mut want);
                        let mut got = [Lanes::default(); 3];
                        add_pair(level, &a, &b, base, &mut got);
                        assert_eq!(got[..], want[..], "{level:?} {len} {wide}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_sum_of_vectors_keeps_the_base_where_nothing_is_added() {
        let level = Level::BASELINE;
        let mut base = Values::default();
        base.load(level, crate::dtype::DType::F32, &stored(&[-0.0, 1.0]), 2, false);
        for count in 1..4 {
            let mut vectors: Vec<f64> = (0..count).flat_map(|_| [0.0, 0.5]).collect();
            let mut out = [9.0; 2];
            add_up(level, Some(&base), &mut vectors, 2, count, &mut out);
            assert_eq!(out.map(f64::to_bits), [-0.0, 1.0 + 0.5 * count as f64].map(f64::to_bits));
        }
        let mut out = [9.0; 2];
        add_up(level, None, &mut [1.0, 2.0, 0.5, 0.25], 2, 2, &mut out);
        assert_eq!(out, [1.5, 2.25]);
    }
}
