//! n:m sparsity: of each block of m neighbours the n largest magnitudes, with masks that keep out of each other's way
//! (CABS).

use super::level::{Level, kernel};

/// Keys looked at together.
const ROW: usize = 16;

/// Buffers for one chunk, kept from chunk to chunk.
#[derive(Debug, Default)]
pub struct Blocks {
    keys: Vec<u32>,
    wide_keys: Vec<u64>,
    /// Elements that an earlier expert changes.
    taken: Vec<bool>,
}

/// How many of a block's elements are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    /// Elements kept.
    pub keep: usize,
    /// Out of so many.
    pub of: usize,
}

impl Pattern {
    /// Elements kept of a block of `len`: the same share, half up, where the tensor's last block is shorter.
    #[must_use]
    pub fn kept(self, len: usize) -> usize {
        ((2 * self.keep * len + self.of) / (2 * self.of)).clamp(1, len.max(1))
    }
}

impl Blocks {
    /// Forgets what was taken: the next expert is the first of its chunk.
    pub fn begin(&mut self, len: usize) {
        self.taken.clear();
        self.taken.resize(len, false);
    }

    /// Keeps the largest magnitudes of each block among the elements that no earlier expert took; only if these are too
    /// few, the largest of the others too. Equal magnitudes are kept first come. An unchanged element is never taken.
    /// `wide` says that values carry full f64 precision.
    pub fn thin(&mut self, level: Level, values: &mut [f64], pattern: Pattern, wide: bool) {
        for (values, taken) in values.chunks_mut(pattern.of).zip(self.taken.chunks_mut(pattern.of)) {
            let keep = pattern.kept(values.len());
            let free = taken.iter().filter(|t| !**t).count();
            // What is chosen from, and what is kept without a choice.
            let (from_taken, choose) = if free >= keep { (false, keep) } else { (true, keep - free) };
            if wide {
                wide_keys_of(level, values, taken, from_taken, &mut self.wide_keys);
                let (least, ties) = least_wide(level, &self.wide_keys, choose as u64);
                take_wide(level, values, taken, &self.wide_keys, from_taken, least, ties);
            } else {
                keys_of(level, values, taken, from_taken, &mut self.keys);
                let (least, ties) = least_narrow(level, &self.keys, choose as u64);
                take_narrow(level, values, taken, &self.keys, from_taken, least, ties);
            }
        }
    }
}

macro_rules! search {
    ($keys_of:ident, $fill:ident, $least:ident, $count:ident, $take:ident, $keep:ident, $bits:ty, $key:expr) => {
        fn $keys_of(level: Level, values: &[f64], taken: &[bool], from_taken: bool, keys: &mut Vec<$bits>) {
            keys.resize(values.len(), 0);
            $fill(level, values, taken, from_taken, keys);
        }

        kernel! {
            /// Magnitudes of the elements that are chosen from, zero for the others.
            fn $fill(values: &[f64], taken: &[bool], from_taken: bool, keys: &mut [$bits]) {
                for ((key, v), taken) in keys.iter_mut().zip(values).zip(taken) {
                    *key = if *taken == from_taken { $key(*v) } else { 0 };
                }
            }
        }

        /// Number of keys from `least` on.
        #[inline(always)]
        fn $count(keys: &[$bits], least: $bits) -> u64 {
            let mut n: $bits = 0;
            for key in keys {
                n += <$bits>::from(*key >= least);
            }
            u64::from(n)
        }

        kernel! {
            /// The smallest key that is chosen, and how many of those equal to it: bit by bit, each a count over the
            /// block.
            fn $least(keys: &[$bits], choose: u64) -> ($bits, u64) {
                let (mut any, mut most): ($bits, $bits) = (0, 0);
                for key in keys {
                    any |= *key;
                    most = most.max(*key);
                }
                let mut least: $bits = 0;
                for bit in (any.trailing_zeros()..<$bits>::BITS - any.leading_zeros()).rev() {
                    let next = least | 1 << bit;
                    if next > most {
                        continue;
                    }
                    let count = $count(keys, next);
                    if count == choose {
                        return (next, choose);
                    }
                    if count > choose {
                        least = next;
                    }
                }
                // As many as are left after the larger ones; zeros are chosen or not, which is the same.
                let above = if least == 0 { 0 } else { $count(keys, least + 1) };
                (least, choose.saturating_sub(above))
            }
        }

        /// Drops what is not chosen and marks what is: keys from `least` on, of those equal to it the first `ties`.
        /// Elements that are not chosen from are kept when the choice was from the taken ones.
        fn $take(
            level: Level,
            values: &mut [f64],
            taken: &mut [bool],
            keys: &[$bits],
            from_taken: bool,
            least: $bits,
            ties: u64,
        ) {
            // Zeros are dropped or not, which is the same.
            let end = if least == 0 { 0 } else { end_of_ties(keys, least, ties) };
            let ((values, later), (taken, later_taken)) = (values.split_at_mut(end), taken.split_at_mut(end));
            let (keys, later_keys) = keys.split_at(end);
            $keep(level, values, taken, keys, from_taken, least);
            $keep(level, later, later_taken, later_keys, from_taken, least + 1);
        }

        kernel! {
            /// Keeps the keys from `least` on.
            fn $keep(values: &mut [f64], taken: &mut [bool], keys: &[$bits], from_taken: bool, least: $bits) {
                for ((v, taken), key) in values.iter_mut().zip(taken).zip(keys) {
                    let chosen = (*key >= least) | (from_taken & !*taken);
                    *v = if chosen { *v } else { 0.0 };
                    *taken |= chosen & (*v != 0.0);
                }
            }
        }
    };
}

search!(keys_of, fill_narrow, least_narrow, count_narrow, take_narrow, keep_narrow, u32, |v: f64| (v as f32)
    .to_bits()
    & (u32::MAX >> 1));
search!(wide_keys_of, fill_wide, least_wide, count_wide, take_wide, keep_wide, u64, |v: f64| v.to_bits()
    & (u64::MAX >> 1));

/// Where the first so many keys that equal `least` end: behind all keys if there are no more of them.
fn end_of_ties<K: Copy + Eq>(keys: &[K], least: K, ties: u64) -> usize {
    let mut left = ties as usize;
    for (row, keys) in keys.chunks(ROW).enumerate() {
        let here = keys.iter().filter(|k| **k == least).count();
        if here > left {
            let mut equal = (0..keys.len()).filter(|i| keys[*i] == least);
            return row * ROW + equal.nth(left).unwrap_or(0);
        }
        left -= here;
    }
    keys.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thin(experts: &[Vec<f64>], keep: usize, of: usize, wide: bool, level: Level) -> Vec<Vec<f64>> {
        let mut blocks = Blocks::default();
        blocks.begin(experts[0].len());
        let mut experts = experts.to_vec();
        for values in &mut experts {
            blocks.thin(level, values, Pattern { keep, of }, wide);
        }
        experts
    }

    /// The same by sorting, block by block.
    fn by_sorting(experts: &[Vec<f64>], keep: usize, of: usize) -> Vec<Vec<f64>> {
        let mut taken = vec![false; experts[0].len()];
        let mut out = Vec::new();
        for values in experts {
            let mut kept = vec![0.0; values.len()];
            for begin in (0..values.len()).step_by(of) {
                let mut block: Vec<usize> = (begin..(begin + of).min(values.len())).collect();
                let keep = Pattern { keep, of }.kept(block.len());
                block.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()));
                block.sort_by_key(|i| taken[*i]);
                for i in &block[..keep] {
                    kept[*i] = values[*i];
                }
                for i in &block[..keep] {
                    taken[*i] |= values[*i] != 0.0;
                }
            }
            out.push(kept);
        }
        out
    }

    #[test]
    fn masks_are_those_of_sorting_at_every_level() {
        let mut state = 7u64;
        let mut noise = |n: usize, grid: f64| -> Vec<f64> {
            (0..n)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let u = (state >> 40) as f64 / (1u64 << 24) as f64 - 0.5;
                    f64::from(((u / grid).round() * grid) as f32)
                })
                .collect()
        };
        for (n, keep, of) in
            [(100, 2, 4), (1024, 64, 256), (1000, 96, 128), (37, 1, 8), (5, 3, 8), (300, 7, 7)]
        {
            for grid in [1e-7, 0.05, 0.3] {
                let experts: Vec<Vec<f64>> = (0..3).map(|_| noise(n, grid)).collect();
                let expected = by_sorting(&experts, keep, of);
                for level in Level::available() {
                    for wide in [false, true] {
                        let got = thin(&experts, keep, of, wide, level);
                        assert_eq!(got, expected, "{n} {keep}:{of} {grid} {wide} {level:?}");
                    }
                }
            }
        }
    }
}
