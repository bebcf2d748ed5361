//! Random masks by counter: element `i` of a tensor has its own random number, whatever the tile,
//! thread, shard or order in which it is made.
//!
//! `BLAKE3("rlmerge.mask.v2\0" ‖ seed u64 LE ‖ expert u32 LE ‖ tensor name)` gives two streams of Philox4x32-10, each
//! four u32 LE: a key, and words 2 and 3 of the counter; words 0 and 1 are the number of a block, the lower half first.
//! Each block gives eight pieces of 16 bits: the lower and the upper half of its first word, of its second, and so on.
//! Element `i` takes piece `4·⌊(i mod 64)/32⌋ + i mod 4` of block `8·⌊i/64⌋ + ⌊(i mod 32)/4⌋`, so that 64 elements side
//! by side are eight blocks and nothing has to be shuffled.
//!
//! The element's number is `u = 2¹⁶·a + b`, with `a` from the first stream and `b` from the second, and it is kept when
//! `u < round(p·2³²)`. That is settled by `a` alone but for one element in 65536, so that the second stream costs
//! nothing and the probability still has 32 bits.

use super::CHUNK;
use super::level::{Level, kernel};
use super::philox::{self, Compared, Origin, PIECES};

/// Which elements of a chunk are kept: bit `i mod 64` of word `⌊i/64⌋` stands for element `i`.
pub type Kept = [u64; CHUNK / PIECES];

/// The random numbers of one tensor of one expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    upper: Origin,
    lower: Origin,
}

impl Stream {
    /// The stream of a tensor of the expert with this position among those that take part.
    #[must_use]
    pub fn new(seed: u64, expert: u32, tensor: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"rlmerge.mask.v2\0");
        hasher.update(&seed.to_le_bytes());
        hasher.update(&expert.to_le_bytes());
        hasher.update(tensor.as_bytes());
        let digest = hasher.finalize();
        let word = |i: usize| {
            let b = digest.as_bytes();
            u32::from_le_bytes([b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]])
        };
        let origin = |i: usize| Origin { key: [word(i), word(i + 1)], high: [word(i + 2), word(i + 3)] };
        Self { upper: origin(0), lower: origin(4) }
    }
}

/// Acceptance threshold of a probability: a number `u` is accepted when `u < threshold`, which
/// happens with probability `round(p·2³²) / 2³²`.
#[must_use]
pub fn threshold(probability: f64) -> u64 {
    (probability * 4_294_967_296.0 + 0.5).floor() as u64
}

/// Which of the `len <= CHUNK` elements from `first` on, a multiple of 64, have a random number below `threshold`.
#[must_use]
pub fn kept(level: Level, stream: Stream, first: u64, len: usize, threshold: u64) -> Kept {
    let mut kept = Kept::default();
    if threshold == 0 {
        return kept;
    }
    // The largest number that is kept: what has its upper half is settled by the lower one.
    let most = u32::try_from(threshold - 1).unwrap_or(u32::MAX);
    let (upper, lower) = ((most >> 16) as u16, most as u16);
    let mut groups = [Compared::default(); CHUNK / PIECES];
    let groups = &mut groups[..len.div_ceil(PIECES)];
    philox::compare(level, first / 8, stream.upper, upper, groups);
    for ((kept, group), first) in kept.iter_mut().zip(groups).zip((first..).step_by(PIECES)) {
        if lower < u16::MAX {
            settle(group, stream.lower, lower, first);
        }
        *kept = group.within;
    }
    kept
}

/// The upper halves of the random numbers of the `len` elements from `first` on into `out`, and how many it holds
/// before them: numbers are made for 64 elements at once.
pub fn upper_halves(level: Level, stream: Stream, first: u64, len: usize, out: &mut Vec<u16>) -> usize {
    let skipped = (first % PIECES as u64) as usize;
    out.resize((skipped + len).next_multiple_of(PIECES), 0);
    let (groups, _) = out.as_chunks_mut::<PIECES>();
    philox::pieces(level, (first - skipped as u64) / 8, stream.upper, groups);
    skipped
}

/// The lower half of the random number of one element.
#[must_use]
pub fn lower_half(stream: Stream, at: u64) -> u16 {
    stream.lower.piece(at)
}

/// Drops every value whose random number is not below `threshold`. `first` is the tensor's element
/// index of `values[0]`, a multiple of 64.
pub fn keep_random(level: Level, values: &mut [f64], stream: Stream, first: u64, threshold: u64) {
    for (values, first) in values.chunks_mut(CHUNK).zip((first..).step_by(CHUNK)) {
        keep(level, values, &kept(level, stream, first, values.len(), threshold));
    }
}

/// Takes out the elements whose upper halves are equal to the bound and whose lower ones are above theirs.
fn settle(group: &mut Compared, origin: Origin, bound: u16, first: u64) {
    let mut open = group.equal;
    while open != 0 {
        let bit = open & open.wrapping_neg();
        if origin.piece(first + u64::from(bit.trailing_zeros())) > bound {
            group.within &= !bit;
        }
        open &= !bit;
    }
}

kernel! {
    /// Drops the values whose bits are not set.
    fn keep(values: &mut [f64], kept: &Kept) {
        for (values, bits) in values.chunks_mut(PIECES).zip(kept) {
            for (i, v) in values.iter_mut().enumerate() {
                *v = if bits >> i & 1 == 1 { *v } else { 0.0 };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of element `at`, spelled out.
    fn number(stream: Stream, at: u64) -> u64 {
        let half = |origin: Origin| {
            let block = at / 64 * 8 + at % 32 / 4;
            let counter = [block as u32, (block >> 32) as u32, origin.high[0], origin.high[1]];
            let words = philox::philox4x32(counter, origin.key);
            let pieces: Vec<u32> = words.iter().flat_map(|w| [w & 0xffff, w >> 16]).collect();
            u64::from(pieces[(if at % 64 < 32 { 0 } else { 4 } + at % 4) as usize])
        };
        half(stream.upper) << 16 | half(stream.lower)
    }

    fn kept(level: Level, stream: Stream, first: u64, len: usize, limit: u64) -> Vec<bool> {
        let mut values = vec![1.0; len];
        keep_random(level, &mut values, stream, first, limit);
        values.iter().map(|v| *v == 1.0).collect()
    }

    #[test]
    fn masks_are_the_numbers_of_single_elements_at_every_level_and_length() {
        let stream = Stream::new(7, 1, "model.layers.0.mlp.up_proj.weight");
        let limit = threshold(0.3);
        for level in Level::available() {
            for first in [0u64, 64, 8 * 0xffff_fff8] {
                let expected: Vec<bool> =
                    (first..first + 1024).map(|at| number(stream, at) < limit).collect();
                for len in (0..515).chain([1024]) {
                    assert_eq!(kept(level, stream, first, len, limit), expected[..len], "{level:?} {len}");
                }
            }
        }
    }

    /// Thresholds at and around the numbers of elements, which tie with them in their upper halves.
    #[test]
    fn the_lower_half_settles_ties_of_the_upper_half() {
        let stream = Stream::new(3, 0, "w");
        for level in Level::available() {
            for at in [0u64, 8, 37, 63, 100] {
                let number = number(stream, at);
                let upper = number & !0xffff;
                for limit in [upper, upper + 1, number, number + 1, upper + 0xffff, upper + 0x1_0000] {
                    let kept = kept(level, stream, 0, 128, limit);
                    let expected: Vec<bool> =
                        (0..128).map(|i| super::tests::number(stream, i) < limit).collect();
                    assert_eq!(kept, expected, "{level:?} {at} {limit:x}");
                }
            }
        }
    }

    #[test]
    fn a_probability_has_more_than_16_bits() {
        // One element in 2^18 or so: with 16 bits there would be none, or one in 2^16.
        let kept = kept(Level::choose(), Stream::new(1, 0, "w"), 0, 1 << 22, threshold(2f64.powi(-18)));
        let count = kept.iter().filter(|k| **k).count();
        assert!((4..=40).contains(&count), "{count}");
    }

    #[test]
    fn density_one_keeps_everything() {
        let mut values = [1.0; 200];
        keep_random(Level::choose(), &mut values, Stream::new(0, 0, ""), 0, threshold(1.0));
        assert!(values.iter().all(|v| *v == 1.0));
    }
}
