//! Random masks by counter: element `i` of a tensor has its own random word, whatever the tile,
//! thread, shard or order in which it is made.
//!
//! The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011). Its key and the upper half of its counter come from
//! `BLAKE3("rlmerge.mask.v1\0" ‖ seed u64 LE ‖ expert u32 LE ‖ tensor name)`, the lower half is the number of
//! a block. Eight blocks serve 32 elements: element `i` takes word `⌊i/8⌋ mod 4` of block
//! `8·⌊i/32⌋ + i mod 8`, so that eight elements side by side need no shuffling of words.

use super::level::kernel;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;
/// Blocks that serve 32 elements together; part of the definition above.
const WIDTH: usize = 8;
/// Blocks made together in one go.
const BATCH: usize = 8 * WIDTH;
const LOW: u64 = 0xffff_ffff;

/// The stream of random words of one tensor of one expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
    high: [u32; 2],
}

impl Stream {
    /// The stream of a tensor of the expert with this position among those that take part.
    #[must_use]
    pub fn new(seed: u64, expert: u32, tensor: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"rlmerge.mask.v1\0");
        hasher.update(&seed.to_le_bytes());
        hasher.update(&expert.to_le_bytes());
        hasher.update(tensor.as_bytes());
        let digest = hasher.finalize();
        let word = |i: usize| {
            let b = digest.as_bytes();
            u32::from_le_bytes([b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]])
        };
        Self { key: [word(0), word(1)], high: [word(2), word(3)] }
    }
}

/// One block of Philox4x32-10.
#[must_use]
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
    }
    counter
}

/// Acceptance threshold of a probability: a word `u` is accepted when `u < threshold`, which
/// happens with probability `round(p·2³²) / 2³²`.
#[must_use]
pub fn threshold(probability: f64) -> u64 {
    (probability * 4_294_967_296.0 + 0.5).floor() as u64
}

/// The words of `BATCH` consecutive blocks, as four columns of 64-bit lanes whose upper halves are garbage:
/// the multiplication ignores them. A batch is long enough for the compiler to make vector loops of it.
#[inline(always)]
fn philox_columns(first_block: u64, stream: Stream) -> [[u64; BATCH]; 4] {
    let mut c0 = [0u64; BATCH];
    let mut c1 = [0u64; BATCH];
    let mut c2 = [u64::from(stream.high[0]); BATCH];
    let mut c3 = [u64::from(stream.high[1]); BATCH];
    for i in 0..BATCH {
        let block = first_block + i as u64;
        c0[i] = block;
        c1[i] = block >> 32;
    }
    let mut key = stream.key;
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        for i in 0..BATCH {
            let a = u64::from(MULTIPLIERS[0]) * (c0[i] & LOW);
            let b = u64::from(MULTIPLIERS[1]) * (c2[i] & LOW);
            c0[i] = (b >> 32) ^ c1[i] ^ u64::from(key[0]);
            c2[i] = (a >> 32) ^ c3[i] ^ u64::from(key[1]);
            c1[i] = b;
            c3[i] = a;
        }
    }
    [c0, c1, c2, c3]
}

kernel! {
    /// Drops every value whose random word is not below `threshold`. `first` is the tensor's element
    /// index of `values[0]`, a multiple of 32.
    pub fn keep_random(values: &mut [f64], stream: Stream, first: u64, threshold: u64) {
        let mut block = first / 4;
        for batch in values.chunks_mut(4 * BATCH) {
            let columns = philox_columns(block, stream);
            for (i, eight) in batch.chunks_mut(WIDTH).enumerate() {
                let words = &columns[i % 4][i / 4 * WIDTH..][..WIDTH];
                for (v, word) in eight.iter_mut().zip(words) {
                    *v = if word & LOW < threshold { *v } else { 0.0 };
                }
            }
            block += BATCH as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Level;

    /// Known answers published with Random123 (kat_vectors, philox4x32 10).
    #[test]
    fn philox_gives_the_published_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32(counter, key), expected);
        }
    }

    #[test]
    fn masks_are_the_words_of_single_blocks_at_every_level_and_length() {
        let stream = Stream::new(7, 1, "model.layers.0.mlp.up_proj.weight");
        let limit = threshold(0.3);
        for level in Level::available() {
            for len in (0..515).chain([1024]) {
                for first in [0u64, 64, 4 * 0xffff_fff0] {
                    let mut ours: Vec<f64> = (0..len).map(|i| i as f64 + 1.0).collect();
                    keep_random(level, &mut ours, stream, first, limit);
                    for (i, v) in ours.iter().enumerate() {
                        let at = first + i as u64;
                        let block = at / 32 * 8 + at % 8;
                        let counter = [block as u32, (block >> 32) as u32, stream.high[0], stream.high[1]];
                        let kept = u64::from(philox4x32(counter, stream.key)[(at / 8 % 4) as usize]) < limit;
                        assert_eq!(*v, if kept { i as f64 + 1.0 } else { 0.0 }, "{level:?} {len} {i}");
                    }
                }
            }
        }
    }

    #[test]
    fn density_one_keeps_everything() {
        let mut values = [1.0; 200];
        keep_random(Level::choose(), &mut values, Stream::new(0, 0, ""), 0, threshold(1.0));
        assert!(values.iter().all(|v| *v == 1.0));
    }
}
