//! Candidates for PCB's thresholds between two experts, brought together while it is known only roughly where magnitudes
//! are clipped, so that one scan finds where they are and which scores count.
//!
//! A score's logarithm is `a δ²` plus that of a product, and the slope `a` is all in it that depends on where magnitudes
//! are clipped. It is linear in `a`: a score that is above one bound under the gentlest slope, and above another under the
//! steepest, is above what lies between these bounds under any slope between. What is above or below for certain is
//! counted or left out; magnitudes near the ends and scores near the largest are written down with the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::duel::{BENT, ROUNDINGS, slope_steps, steps};
use super::level::{Level, by_level, kernel};
use super::select::{BITS, ROW};

/// Products up to which the tangent of one is the product itself, but for less than [`ROUNDINGS`].
const REACH: f32 = 0.03;
/// Pairs of deltas that are written down together, so that lists grow without being copied.
pub const BLOCK: usize = 1 << 14;

/// Bounds of scores under one slope, in octaves above the foot of the parabola.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    /// The parabola's rise over the square of a magnitude.
    pub slope: f64,
    /// Scores below this are left out …
    pub least: f64,
    /// … and those from here on only counted.
    pub enough: f64,
}

/// What is assumed of one expert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guess {
    /// Under the gentlest slope, and under the steepest.
    pub lines: [Line; 2],
    /// Magnitudes up to this are written down, or counted if it is zero.
    pub bottom: f32,
    /// Magnitudes from here on are written down.
    pub top: f32,
    /// And so are scores that may be higher than this.
    pub peak: f64,
}

impl Guess {
    /// By how much a score may be below the parabola that ignores the lower end, in octaves.
    fn sag(&self) -> f64 {
        2.0 * self.lines[1].slope * f64::from(self.top) * f64::from(self.bottom)
    }

    /// The bounds under a slope, if it lies between the two.
    #[must_use]
    pub fn line(&self, slope: f64) -> Option<Line> {
        let [gentle, steep] = self.lines;
        let width = steep.slope - gentle.slope;
        let share = if width > 0.0 { (slope - gentle.slope) / width } else { 0.0 };
        let between = |from: f64, to: f64| if from == to { from } else { from + share * (to - from) };
        (gentle.slope..=steep.slope).contains(&slope).then(|| Line {
            slope,
            least: between(gentle.least, steep.least),
            enough: between(gentle.enough, steep.enough),
        })
    }
}

/// A [`Guess`] in steps of bits, with room for what these are wrong by.
#[derive(Debug, Clone, Copy)]
struct Rough {
    slopes: [f32; 2],
    least: [f32; 2],
    enough: [f32; 2],
    bottom: f32,
    top: f32,
    peak: f32,
}

impl Rough {
    fn new(guess: &Guess) -> Self {
        let (below, above) = (BENT + ROUNDINGS, guess.sag() + ROUNDINGS);
        Self {
            slopes: guess.lines.map(|line| slope_steps(line.slope)),
            least: guess.lines.map(|line| steps(line.least - below)),
            enough: guess.lines.map(|line| steps(line.enough + above)),
            bottom: guess.bottom,
            top: guess.top,
            peak: steps(guess.peak - below),
        }
    }
}

/// What a scan found of one expert.
#[derive(Debug, Default)]
pub struct Candidates {
    /// Number of scores that are above the bounds and not written down.
    pub above: u64,
    /// Number of zeros that are not written down.
    pub zeros: u64,
    /// The deltas of both experts at what is.
    blocks: Vec<[Vec<f32>; 2]>,
    /// How many all workers have written down, …
    written: Arc<AtomicUsize>,
    /// … of how many there may be; if there are more, none is of use.
    room: usize,
}

impl Candidates {
    /// None yet, with room for so many.
    #[must_use]
    pub fn new(written: &Arc<AtomicUsize>, room: usize) -> Self {
        Self { written: Arc::clone(written), room, ..Self::default() }
    }

    /// Whether there were more than may be.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.written.load(Ordering::Relaxed) > self.room
    }

    /// How many were written down.
    #[must_use]
    pub fn count(&self) -> usize {
        self.blocks.iter().map(|[first, _]| first.len()).sum()
    }

    /// The deltas of both experts, in blocks of at most [`BLOCK`].
    #[must_use]
    pub fn blocks(&self) -> &[[Vec<f32>; 2]] {
        &self.blocks
    }

    /// The same, for who gives them back one by one.
    #[must_use]
    pub fn into_blocks(self) -> Vec<[Vec<f32>; 2]> {
        self.blocks
    }

    /// Adds what another worker found.
    pub fn merge(&mut self, other: Self) {
        self.above += other.above;
        self.zeros += other.zeros;
        self.blocks.extend(other.blocks);
    }

    fn write_down(&mut self, first: &[f32], second: &[f32]) {
        if self.written.fetch_add(first.len(), Ordering::Relaxed) + first.len() > self.room {
            self.blocks = Vec::new();
            return;
        }
        let mut done = 0;
        while done < first.len() {
            if self.blocks.last().is_none_or(|[block, _]| block.len() == BLOCK) {
                self.blocks.push([Vec::with_capacity(BLOCK), Vec::with_capacity(BLOCK)]);
            }
            let Some([firsts, seconds]) = self.blocks.last_mut() else { return };
            let end = first.len().min(done + BLOCK - firsts.len());
            firsts.extend_from_slice(&first[done..end]);
            seconds.extend_from_slice(&second[done..end]);
            done = end;
        }
    }
}

/// The candidates of a chunk, for each of two experts the deltas of both.
#[derive(Debug, Default)]
pub struct Finder {
    /// Behind these there is room for a whole register.
    pairs: [[Vec<f32>; 2]; 2],
    len: [usize; 2],
    above: [u64; 2],
    zeros: [u64; 2],
}

impl Finder {
    /// Finds the candidates of both experts among the deltas `x − from_x` and `y − from_y`.
    pub fn find(
        &mut self,
        level: Level,
        [x, from_x, y, from_y]: [&[f32]; 4],
        guesses: &[Guess; 2],
        found: &mut [Candidates],
    ) {
        let room = x.len() + ROW;
        if self.pairs[0][0].len() < room {
            self.pairs.iter_mut().flatten().for_each(|deltas| deltas.resize(room, 0.0));
        }
        (self.len, self.above, self.zeros) = ([0; 2], [0; 2], [0; 2]);
        find(level, x, from_x, y, from_y, &guesses.map(|guess| Rough::new(&guess)), self);
        for (at, found) in found.iter_mut().enumerate() {
            found.above += self.above[at];
            found.zeros += self.zeros[at];
            let [first, second] = &self.pairs[at];
            found.write_down(&first[..self.len[at]], &second[..self.len[at]]);
        }
    }

    fn push(&mut self, expert: usize, first: f32, second: f32) {
        let at = self.len[expert];
        (self.pairs[expert][0][at], self.pairs[expert][1][at]) = (first, second);
        self.len[expert] += 1;
    }

    /// All of what is less than a row.
    fn push_tail(&mut self, [x, from_x, y, from_y]: [&[f32]; 4]) {
        for i in 0..x.len() {
            let (a, b) = (x[i] - from_x[i], y[i] - from_y[i]);
            self.push(0, a, b);
            self.push(1, a, b);
        }
    }
}

kernel! {
    /// The first deltas in f64, zero where the sum with the others is not finite, and that sum.
    pub fn clean(own: &[f32], other: &[f32], deltas: &mut [f64], totals: &mut [f64]) {
        for (((x, y), d), t) in own.iter().zip(other).zip(deltas).zip(totals) {
            *t = f64::from(*x) + f64::from(*y);
            *d = if t.is_finite() { f64::from(*x) } else { 0.0 };
        }
    }
}

by_level! {
    /// See [`Finder::find`]. Levels may find other candidates; exact scores decide about all of them.
    fn find(x: &[f32], from_x: &[f32], y: &[f32], from_y: &[f32], rough: &[Rough; 2], finder: &mut Finder) =
        find_rows, x86::find_256, x86::find_512;
}

#[inline(always)]
fn find_rows(x: &[f32], from_x: &[f32], y: &[f32], from_y: &[f32], rough: &[Rough; 2], finder: &mut Finder) {
    let ((xs, x_tail), (us, u_tail)) = (x.as_chunks::<ROW>(), from_x.as_chunks::<ROW>());
    let ((ys, y_tail), (vs, v_tail)) = (y.as_chunks::<ROW>(), from_y.as_chunks::<ROW>());
    for ((x, u), (y, v)) in xs.iter().zip(us).zip(ys.iter().zip(vs)) {
        let (mut a, mut b) = ([0.0; ROW], [0.0; ROW]);
        for i in 0..ROW {
            (a[i], b[i]) = (x[i] - u[i], y[i] - v[i]);
        }
        for (expert, rough) in rough.iter().enumerate() {
            let own = if expert == 0 { &a } else { &b };
            let (mut marks, mut sure, mut none) = ([0; ROW], 0u32, 0u32);
            for i in 0..ROW {
                let (sum, size) = (a[i] + b[i], own[i].abs());
                let (square, product) = (size * size, own[i] * sum);
                let bits = product.to_bits() as i32 as f32;
                let heights = rough.slopes.map(|slope| square * slope + bits);
                let below = (heights[0] < rough.least[0]) & (heights[1] < rough.least[1]);
                let above =
                    (heights[0] >= rough.enough[0]) & (heights[1] >= rough.enough[1]) & (product <= REACH);
                let small = size <= rough.bottom;
                let near = (heights[1] >= rough.peak) | (size >= rough.top) | !sum.is_finite();
                let is_found = near | (small & (rough.bottom > 0.0)) | !(below | above);
                marks[i] = if is_found { BITS[i] } else { 0 };
                sure += u32::from(above & !is_found);
                none += u32::from(small & !is_found);
            }
            finder.above[expert] += u64::from(sure);
            finder.zeros[expert] += u64::from(none);
            let mut left = marks.iter().fold(0, |all, mark| all | mark);
            while left != 0 {
                let i = left.trailing_zeros() as usize;
                finder.push(expert, a[i], b[i]);
                left &= left - 1;
            }
        }
    }
    finder.push_tail([x_tail, u_tail, y_tail, v_tail]);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::level::registers::{load_512, put_512};
    use super::{Finder, REACH, ROW, Rough, find_rows};

    #[target_feature(enable = "avx2,popcnt,bmi1,fma")]
    pub fn find_256(
        x: &[f32],
        from_x: &[f32],
        y: &[f32],
        from_y: &[f32],
        rough: &[Rough; 2],
        finder: &mut Finder,
    ) {
        find_rows(x, from_x, y, from_y, rough, finder);
    }

    /// As [`find_rows`], with an instruction that brings marked elements together.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1,fma")]
    pub fn find_512(
        x: &[f32],
        from_x: &[f32],
        y: &[f32],
        from_y: &[f32],
        rough: &[Rough; 2],
        finder: &mut Finder,
    ) {
        let ((xs, x_tail), (us, u_tail)) = (x.as_chunks::<ROW>(), from_x.as_chunks::<ROW>());
        let ((ys, y_tail), (vs, v_tail)) = (y.as_chunks::<ROW>(), from_y.as_chunks::<ROW>());
        let limits = _mm512_set1_ps(f32::MAX);
        for ((x, u), (y, v)) in xs.iter().zip(us).zip(ys.iter().zip(vs)) {
            let a = _mm512_sub_ps(load_512(x), load_512(u));
            let b = _mm512_sub_ps(load_512(y), load_512(v));
            let sum = _mm512_add_ps(a, b);
            let odd = !_mm512_cmp_ps_mask::<_CMP_LE_OQ>(_mm512_abs_ps(sum), limits);
            let first = sort(&rough[0], a, sum, odd);
            take(finder, 0, first, a, b);
            let second = sort(&rough[1], b, sum, odd);
            take(finder, 1, second, a, b);
        }
        finder.push_tail([x_tail, u_tail, y_tail, v_tail]);
    }

    /// Takes over what [`sort`] says of a row.
    #[target_feature(enable = "avx512f,popcnt")]
    #[inline]
    fn take(finder: &mut Finder, expert: usize, [found, sure, none]: [u16; 3], a: __m512, b: __m512) {
        let at = finder.len[expert];
        put_512(_mm512_maskz_compress_ps(found, a), &mut finder.pairs[expert][0], at);
        put_512(_mm512_maskz_compress_ps(found, b), &mut finder.pairs[expert][1], at);
        finder.len[expert] += found.count_ones() as usize;
        finder.above[expert] += u64::from(sure.count_ones());
        finder.zeros[expert] += u64::from(none.count_ones());
    }

    /// Which elements of a row are candidates, which of the others are above the bounds, and which of them zeros.
    #[target_feature(enable = "avx512f,avx512dq")]
    #[inline]
    fn sort(rough: &Rough, own: __m512, sum: __m512, odd: u16) -> [u16; 3] {
        let size = _mm512_abs_ps(own);
        let (square, product) = (_mm512_mul_ps(own, own), _mm512_mul_ps(own, sum));
        let bits = _mm512_cvtepi32_ps(_mm512_castps_si512(product));
        let gentle = _mm512_fmadd_ps(square, _mm512_set1_ps(rough.slopes[0]), bits);
        let steep = _mm512_fmadd_ps(square, _mm512_set1_ps(rough.slopes[1]), bits);
        let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(gentle, _mm512_set1_ps(rough.least[0]));
        let below = _mm512_mask_cmp_ps_mask::<_CMP_LT_OQ>(below, steep, _mm512_set1_ps(rough.least[1]));
        let above = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(product, _mm512_set1_ps(REACH));
        let above = _mm512_mask_cmp_ps_mask::<_CMP_GE_OQ>(above, gentle, _mm512_set1_ps(rough.enough[0]));
        let above = _mm512_mask_cmp_ps_mask::<_CMP_GE_OQ>(above, steep, _mm512_set1_ps(rough.enough[1]));
        let small = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(size, _mm512_set1_ps(rough.bottom));
        let large = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(size, _mm512_set1_ps(rough.top));
        let high = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(steep, _mm512_set1_ps(rough.peak));
        let small_too = if rough.bottom > 0.0 { small } else { 0 };
        let found = large | high | odd | small_too | !(below | above);
        [found, above & !found, small & !found]
    }
}
