//! Two changes that are known by themselves, made sparse, combined and added to their base in one loop: two adapters are
//! the usual merge of adapters. The bits are those of the steps one by one, in [`combine`](super::combine).

use super::lanes::{LANES, Lanes};
use super::level::by_level;
use super::rng::Kept;
use super::select::NARROW_MAGNITUDE;

/// Which elements of a change stay.
#[derive(Debug, Clone)]
pub struct Stay {
    /// Those whose bit is set …
    pub bits: Kept,
    /// … and whose magnitude has at least these bits.
    pub least: u32,
}

/// A change.
#[derive(Debug)]
pub struct Change<'a> {
    /// The change.
    pub numbers: &'a [f32],
    /// What stays of it.
    pub stay: Stay,
    /// What that is multiplied by.
    pub factor: f64,
}

/// How two changes become one.
#[derive(Debug, Clone, Copy)]
pub enum Together {
    /// They are added.
    Sum,
    /// Those are added that have the elected sign, and divided by the sum of their shares if they shall be.
    Elect {
        /// The shares.
        shares: [f64; 2],
        /// The sign of a sum that is zero.
        zero_is_plus: bool,
        /// Whether they shall be divided.
        normalize: bool,
    },
}

/// What a sum of changes is divided by: where the first, the second and both agree.
type Divisors = [f64; 3];

impl Together {
    /// The sign of a zero, and the divisors.
    fn election(self) -> Option<(bool, Divisors)> {
        match self {
            Self::Sum => None,
            Self::Elect { zero_is_plus, normalize: false, .. } => Some((zero_is_plus, [1.0; 3])),
            Self::Elect { shares: [one, two], zero_is_plus, .. } => {
                let by = |share: f64| if share == 0.0 { 1.0 } else { share };
                Some((zero_is_plus, [by(one), by(two), by(one + two)]))
            }
        }
    }
}

/// What to multiply by instead of dividing, where that gives the same bits: for powers of two.
fn reciprocals(divisors: Divisors) -> Option<Divisors> {
    let is_power = |by: f64| by.to_bits() << 12 == 0 && by.is_normal() && (1.0 / by).is_normal();
    divisors.iter().all(|by| is_power(*by)).then(|| divisors.map(|by| 1.0 / by))
}

by_level! {
    /// `out = base + factor · (what the changes become)` where that adds something, else the base, signed zeros included.
    /// The squares of the whole changes join their lanes. A chunk at most.
    pub fn add_two(base: &[f32], changes: &[Change<'_>; 2], together: Together, factor: f64, out: &mut [f64], squares: &mut [Lanes; 2]) = plain, x86::avx2, x86::avx512;
}

#[inline(always)]
fn plain(
    base: &[f32],
    changes: &[Change<'_>; 2],
    together: Together,
    factor: f64,
    out: &mut [f64],
    squares: &mut [Lanes; 2],
) {
    let from = base.len() / LANES * LANES;
    for first in (0..from).step_by(LANES) {
        row(first..first + LANES, base, changes, together, factor, out, squares);
    }
    row(from..base.len(), base, changes, together, factor, out, squares);
}

/// At most a row, element by element.
#[inline(always)]
fn row(
    elements: std::ops::Range<usize>,
    base: &[f32],
    [one, two]: &[Change<'_>; 2],
    together: Together,
    factor: f64,
    out: &mut [f64],
    [first, second]: &mut [Lanes; 2],
) {
    let election = together.election();
    for at in elements {
        let sparse = |change: &Change<'_>, squares: &mut Lanes| {
            let number = change.numbers[at];
            let wide = f64::from(number);
            squares[at % LANES] += wide * wide;
            let stays = change.stay.bits[at / 64] >> (at % 64) & 1 == 1
                && number.to_bits() & NARROW_MAGNITUDE >= change.stay.least;
            if stays { change.factor * wide } else { 0.0 }
        };
        let (a, b) = (sparse(one, first), sparse(two, second));
        let total = a + b;
        let change = match election {
            None => total,
            Some(_) if total.is_nan() => f64::NAN,
            Some((zero_is_plus, divisors)) => {
                let plus = if total == 0.0 { zero_is_plus } else { total > 0.0 };
                let agrees = |v: f64| if plus { v > 0.0 } else { v < 0.0 };
                let only = |v: f64| if agrees(v) { v } else { 0.0 };
                let by = match (agrees(a), agrees(b)) {
                    (true, true) => divisors[2],
                    (false, true) => divisors[1],
                    _ => divisors[0],
                };
                (only(a) + only(b)) / by
            }
        };
        let (from, step) = (f64::from(base[at]), factor * change);
        out[at] = if step == 0.0 { from } else { from + step };
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Change, Divisors, LANES, Lanes, NARROW_MAGNITUDE, Together, plain, reciprocals, row};
    use crate::kernel::level::registers::{load_512, load_512_wide, store_512_wide};

    #[target_feature(enable = "avx2,popcnt,bmi1")]
    pub fn avx2(
        base: &[f32],
        changes: &[Change<'_>; 2],
        together: Together,
        factor: f64,
        out: &mut [f64],
        squares: &mut [Lanes; 2],
    ) {
        plain(base, changes, together, factor, out, squares);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1")]
    pub fn avx512(
        base: &[f32],
        changes: &[Change<'_>; 2],
        together: Together,
        factor: f64,
        out: &mut [f64],
        squares: &mut [Lanes; 2],
    ) {
        let rows = base.as_chunks::<LANES>().0;
        match together.election() {
            None => by_rows::<SUM, true>(rows, changes, [1.0; 3], factor, out, squares),
            Some((is_plus, by)) => match (reciprocals(by), is_plus) {
                (Some(by), true) => by_rows::<MULTIPLY, true>(rows, changes, by, factor, out, squares),
                (Some(by), false) => by_rows::<MULTIPLY, false>(rows, changes, by, factor, out, squares),
                (None, true) => by_rows::<DIVIDE, true>(rows, changes, by, factor, out, squares),
                (None, false) => by_rows::<DIVIDE, false>(rows, changes, by, factor, out, squares),
            },
        }
        row(rows.len() * LANES..base.len(), base, changes, together, factor, out, squares);
    }

    /// Adds the changes.
    const SUM: u8 = 0;
    /// Elects, and divides.
    const DIVIDE: u8 = 1;
    /// Elects, and multiplies instead.
    const MULTIPLY: u8 = 2;

    /// Whole rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1")]
    #[inline]
    fn by_rows<const HOW: u8, const ZERO_IS_PLUS: bool>(
        base: &[[f32; LANES]],
        [one, two]: &[Change<'_>; 2],
        by: Divisors,
        factor: f64,
        out: &mut [f64],
        squares: &mut [Lanes; 2],
    ) {
        let magnitude = _mm512_set1_epi32(NARROW_MAGNITUDE.cast_signed());
        let least = [
            _mm512_set1_epi32(one.stay.least.cast_signed()),
            _mm512_set1_epi32(two.stay.least.cast_signed()),
        ];
        let weights = [_mm512_set1_pd(one.factor), _mm512_set1_pd(two.factor)];
        let factor = _mm512_set1_pd(factor);
        let zero = _mm512_setzero_pd();
        let (sign, nan) = (_mm512_set1_pd(-0.0), _mm512_set1_pd(f64::NAN));
        let (first, second) = (_mm512_set1_pd(by[0]), _mm512_set1_pd(by[1]));
        let both = _mm512_set1_pd(by[2]);
        let [of_one, of_two] = squares;
        let [one_low, one_high] = of_one.as_chunks_mut().0 else { unreachable!("two registers of lanes") };
        let [two_low, two_high] = of_two.as_chunks_mut().0 else { unreachable!("two registers of lanes") };
        let mut sums_one = [load_512_wide(one_low), load_512_wide(one_high)];
        let mut sums_two = [load_512_wide(two_low), load_512_wide(two_high)];
        let inputs = one.numbers.as_chunks::<LANES>().0.iter().zip(two.numbers.as_chunks::<LANES>().0);
        let outputs = out.as_chunks_mut::<LANES>().0.iter_mut();
        for (at, (((x, y), base), out)) in inputs.zip(base).zip(outputs).enumerate() {
            let (x, y, base) = (load_512(x), load_512(y), load_512(base));
            let shift = LANES * (at % 4);
            let stay_x = (one.stay.bits[at / 4] >> shift) as u16
                & _mm512_cmpge_epu32_mask(_mm512_and_si512(_mm512_castps_si512(x), magnitude), least[0]);
            let stay_y = (two.stay.bits[at / 4] >> shift) as u16
                & _mm512_cmpge_epu32_mask(_mm512_and_si512(_mm512_castps_si512(y), magnitude), least[1]);
            let [low, high] = out.as_chunks_mut().0 else { unreachable!("two registers of numbers") };
            macro_rules! half {
                ($half:literal, $out:expr) => {
                    let wide_x = _mm512_cvtps_pd(_mm512_extractf32x8_ps::<$half>(x));
                    let wide_y = _mm512_cvtps_pd(_mm512_extractf32x8_ps::<$half>(y));
                    let from = _mm512_cvtps_pd(_mm512_extractf32x8_ps::<$half>(base));
                    // Squares of f32 are exact, so that the sum alone rounds.
                    sums_one[$half] = _mm512_fmadd_pd(wide_x, wide_x, sums_one[$half]);
                    sums_two[$half] = _mm512_fmadd_pd(wide_y, wide_y, sums_two[$half]);
                    let a = _mm512_maskz_mul_pd((stay_x >> (8 * $half)) as u8, weights[0], wide_x);
                    let b = _mm512_maskz_mul_pd((stay_y >> (8 * $half)) as u8, weights[1], wide_y);
                    let total = _mm512_add_pd(a, b);
                    let change = if HOW == SUM {
                        total
                    } else {
                        // A sum that is zero is +0 unless nothing is added, and then nobody has a sign.
                        let signed = if ZERO_IS_PLUS {
                            total
                        } else {
                            let is_zero = _mm512_cmp_pd_mask::<_CMP_EQ_OQ>(total, zero);
                            _mm512_mask_mov_pd(total, is_zero, sign)
                        };
                        // Turned so that plus is the elected sign: what disagrees, and what is NaN, becomes zero.
                        let elected = _mm512_and_pd(signed, sign);
                        let a = _mm512_max_pd(_mm512_xor_pd(a, elected), zero);
                        let b = _mm512_max_pd(_mm512_xor_pd(b, elected), zero);
                        let agrees_b = _mm512_cmp_pd_mask::<_CMP_GT_OQ>(b, zero);
                        let agree = _mm512_mask_cmp_pd_mask::<_CMP_GT_OQ>(agrees_b, a, zero);
                        let mix = _mm512_add_pd(a, b);
                        let by = _mm512_mask_mov_pd(_mm512_mask_mov_pd(first, agrees_b, second), agree, both);
                        let mean = if HOW == DIVIDE { _mm512_div_pd(mix, by) } else { _mm512_mul_pd(mix, by) };
                        let is_nan = _mm512_cmp_pd_mask::<_CMP_UNORD_Q>(total, total);
                        _mm512_mask_mov_pd(_mm512_xor_pd(mean, elected), is_nan, nan)
                    };
                    let step = _mm512_mul_pd(factor, change);
                    let moves = _mm512_cmp_pd_mask::<_CMP_NEQ_UQ>(step, zero);
                    store_512_wide(_mm512_mask_add_pd(from, moves, from, step), $out);
                };
            }
            half!(0, low);
            half!(1, high);
        }
        store_512_wide(sums_one[0], one_low);
        store_512_wide(sums_one[1], one_high);
        store_512_wide(sums_two[0], two_low);
        store_512_wide(sums_two[1], two_high);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{CHUNK, Level, combine};

    fn numbers(n: usize, state: &mut u64) -> Vec<f32> {
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, f32::MIN_POSITIVE / 4.0, 0.5, -0.5];
        (0..n)
            .map(|_| {
                *state =
                    state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let u = (*state >> 40) as f32 / 8_388_608.0 - 1.0;
                odd.get((*state >> 33) as usize % 64).copied().unwrap_or(u)
            })
            .collect()
    }

    /// The steps one by one.
    fn by_steps(
        base: &[f32],
        changes: &[Change<'_>; 2],
        together: Together,
        factor: f64,
        squares: &mut [Lanes; 2],
    ) -> Vec<f64> {
        let (level, n) = (Level::BASELINE, base.len());
        let zeros = vec![0.0; n];
        let mut sparse = vec![0.0; 2 * n];
        for ((change, out), squares) in changes.iter().zip(sparse.chunks_mut(n)).zip(squares) {
            let mut cut = vec![0.0; n];
            let (numbers, stay) = (change.numbers, &change.stay);
            combine::pick_narrow(level, numbers, &zeros, &stay.bits, change.factor, out, squares);
            let ignored = &mut Lanes::default();
            combine::cut_narrow(level, numbers, &zeros, stay.least, false, change.factor, &mut cut, ignored);
            for (o, c) in out.iter_mut().zip(cut) {
                *o = if c == 0.0 { 0.0 } else { *o };
            }
        }
        let (a, b) = sparse.split_at(n);
        let mut out = vec![0.0; n];
        match together {
            Together::Sum => combine::add_changes_narrow(level, base, a, b, 1.0, factor, &mut out),
            Together::Elect { shares, zero_is_plus, normalize } => {
                combine::merge_disjoint(level, (&sparse, n), &shares, zero_is_plus, normalize, &mut out);
                combine::add_change_narrow(level, base, factor, &mut out);
            }
        }
        out
    }

    #[test]
    fn one_loop_gives_the_bits_of_the_steps() {
        let mut state = 1u64;
        let elect = |shares, zero_is_plus, normalize| Together::Elect { shares, zero_is_plus, normalize };
        let ways = [
            Together::Sum,
            elect([1.0, 1.0], true, true),
            elect([0.3, 0.6], false, true),
            elect([0.5, 2.0], true, false),
            elect([1.0, -1.0], false, true),
        ];
        let bits = |v: &f64| if v.is_nan() { f64::NAN.to_bits() } else { v.to_bits() };
        for n in (1..40).chain([1000, CHUNK]) {
            let [base, x, y] = [(); 3].map(|()| numbers(n, &mut state));
            for together in ways {
                for (least, masked, factor) in
                    [(0, false, 1.0), (0.4f32.to_bits(), false, 0.7), (0, true, 1.0)]
                {
                    let stay = |word: u64| {
                        let bits = if masked { Kept::default().map(|_| word) } else { [u64::MAX; _] };
                        Stay { bits, least }
                    };
                    let changes = [
                        Change { numbers: &x, stay: stay(0x9234_5678_dead_beef), factor: 0.3 },
                        Change { numbers: &y, stay: stay(0x1357_9bdf_0246_8ace), factor: -1.7 },
                    ];
                    let mut want_squares = [Lanes::default(); 2];
                    let want = by_steps(&base, &changes, together, factor, &mut want_squares);
                    for level in Level::available() {
                        let (mut out, mut squares) = (vec![1.0; n], [Lanes::default(); 2]);
                        add_two(level, &base, &changes, together, factor, &mut out, &mut squares);
                        let of = |v: &[f64]| v.iter().map(bits).collect::<Vec<_>>();
                        assert_eq!(of(&out), of(&want), "{level:?} {n} {together:?} {least} {masked}");
                        assert_eq!(of(squares.as_flattened()), of(want_squares.as_flattened()));
                    }
                }
            }
        }
    }
}
