//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), and comparisons of its
//! output 16 bits at a time.
//!
//! The vector forms are spelled out with intrinsics: left to itself the compiler makes them two to three times slower.

use super::level::by_level;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;
/// Blocks that are made together.
pub const BLOCKS: u64 = 8;
/// Pieces of 16 bits in them.
pub const PIECES: usize = 64;

/// Key and upper half of the counter; the lower half is the number of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The key.
    pub key: [u32; 2],
    /// Words 2 and 3 of the counter.
    pub high: [u32; 2],
}

impl Origin {
    fn block(self, number: u64) -> [u32; 4] {
        philox4x32([number as u32, (number >> 32) as u32, self.high[0], self.high[1]], self.key)
    }

    /// Piece `at` of the stream: blocks count in groups of eight, and a group of 64 pieces begins with four pieces
    /// of each of its blocks and ends with their other four. The pieces of a block are the lower and the upper half of
    /// its first word, and so on.
    #[must_use]
    pub fn piece(self, at: u64) -> u16 {
        let words = self.block(at / 64 * 8 + at % 32 / 4);
        let piece = at % 64 / 32 * 4 + at % 4;
        (words[piece as usize / 2] >> (16 * (piece % 2))) as u16
    }
}

/// One block of Philox4x32-10.
#[must_use]
#[inline]
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

/// A group of pieces compared with a bound: bit `i` stands for piece `i`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compared {
    /// Pieces that are not above the bound.
    pub within: u64,
    /// Pieces that are equal to it.
    pub equal: u64,
}

by_level! {
    /// Compares consecutive groups of pieces with a bound. `first` is the number of a block, a multiple of eight.
    pub fn compare(first: u64, origin: Origin, bound: u16, groups: &mut [Compared]) = one_by_one, x86::avx2, x86::avx512;
}

by_level! {
    /// Consecutive groups of pieces. `first` is the number of a block, a multiple of eight.
    pub fn pieces(first: u64, origin: Origin, groups: &mut [[u16; PIECES]]) = pieces_one_by_one, x86::avx2_pieces, x86::avx512_pieces;
}

fn pieces_one_by_one(first: u64, origin: Origin, groups: &mut [[u16; PIECES]]) {
    for (group, first) in groups.iter_mut().zip((first..).step_by(BLOCKS as usize)) {
        for block in 0..BLOCKS {
            for (at, word) in origin.block(first + block).into_iter().enumerate() {
                let place = 4 * block as usize + at / 2 * 32 + at % 2 * 2;
                group[place] = word as u16;
                group[place + 1] = (word >> 16) as u16;
            }
        }
    }
}

fn one_by_one(first: u64, origin: Origin, bound: u16, groups: &mut [Compared]) {
    for (group, first) in groups.iter_mut().zip((first..).step_by(BLOCKS as usize)) {
        *group = Compared::default();
        for block in 0..BLOCKS {
            for (at, word) in origin.block(first + block).into_iter().enumerate() {
                for (half, piece) in [word as u16, (word >> 16) as u16].into_iter().enumerate() {
                    let bit = 4 * block as usize + at / 2 * 32 + at % 2 * 2 + half;
                    group.within |= u64::from(piece <= bound) << bit;
                    group.equal |= u64::from(piece == bound) << bit;
                }
            }
        }
    }
}

/// Words stay in 64-bit lanes whose upper halves are garbage: the multiplication ignores them.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{BLOCKS, Compared, MULTIPLIERS, Origin, PIECES, ROUNDS, WEYL};

    fn lanes(word: u32) -> i64 {
        i64::from(word)
    }

    #[target_feature(enable = "avx2,popcnt,bmi1")]
    pub fn avx2(first: u64, origin: Origin, bound: u16, groups: &mut [Compared]) {
        let bounds = _mm256_set1_epi16(bound as i16);
        for (group, first) in groups.iter_mut().zip((first..).step_by(BLOCKS as usize)) {
            let (low, high) = (avx2_blocks(first, origin), avx2_blocks(first + 4, origin));
            let mut out = Compared::default();
            for half in 0..2 {
                let (a, b) = (low[half], high[half]);
                let within = |x| _mm256_cmpeq_epi16(_mm256_min_epu16(x, bounds), x);
                let equal = |x| _mm256_cmpeq_epi16(x, bounds);
                out.within |= u64::from(avx2_bits(within(a), within(b))) << (32 * half);
                out.equal |= u64::from(avx2_bits(equal(a), equal(b))) << (32 * half);
            }
            *group = out;
        }
    }

    #[target_feature(enable = "avx2")]
    pub fn avx2_pieces(first: u64, origin: Origin, groups: &mut [[u16; PIECES]]) {
        for (group, first) in groups.iter_mut().zip((first..).step_by(BLOCKS as usize)) {
            let (low, high) = (avx2_blocks(first, origin), avx2_blocks(first + 4, origin));
            let (quarters, _) = group.as_chunks_mut::<16>();
            for (quarter, of) in quarters.iter_mut().zip([low[0], high[0], low[1], high[1]]) {
                *quarter = unpacked(of);
            }
        }
    }

    /// The pieces in a register. Storing them would need a raw pointer; taking them out costs little beside the rounds.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn unpacked(of: __m256i) -> [u16; 16] {
        let words = [
            _mm256_extract_epi64::<0>(of),
            _mm256_extract_epi64::<1>(of),
            _mm256_extract_epi64::<2>(of),
            _mm256_extract_epi64::<3>(of),
        ];
        std::array::from_fn(|i| (words[i / 4] >> (16 * (i % 4))) as u16)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
    pub fn avx512_pieces(first: u64, origin: Origin, groups: &mut [[u16; PIECES]]) {
        for (group, first) in groups.iter_mut().zip((first..).step_by(BLOCKS as usize)) {
            let [low, high] = avx512_blocks(first, origin);
            let (quarters, _) = group.as_chunks_mut::<16>();
            let of = [
                _mm512_extracti64x4_epi64::<0>(low),
                _mm512_extracti64x4_epi64::<1>(low),
                _mm512_extracti64x4_epi64::<0>(high),
                _mm512_extracti64x4_epi64::<1>(high),
            ];
            for (quarter, of) in quarters.iter_mut().zip(of) {
                *quarter = unpacked(of);
            }
        }
    }

    /// Four blocks: the first four pieces of each, and the others.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn avx2_blocks(first: u64, origin: Origin) -> [__m256i; 2] {
        let by = MULTIPLIERS.map(|m| _mm256_set1_epi64x(lanes(m)));
        let mut c0 = _mm256_add_epi64(_mm256_set1_epi64x(first as i64), _mm256_set_epi64x(3, 2, 1, 0));
        let mut c1 = _mm256_srli_epi64::<32>(c0);
        let [mut c2, mut c3] = origin.high.map(|h| _mm256_set1_epi64x(lanes(h)));
        let mut key = origin.key;
        for round in 0..ROUNDS {
            if round > 0 {
                key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
            }
            let [k0, k1] = key.map(|k| _mm256_set1_epi64x(lanes(k)));
            let (a, b) = (_mm256_mul_epu32(by[0], c0), _mm256_mul_epu32(by[1], c2));
            c0 = _mm256_xor_si256(_mm256_srli_epi64::<32>(b), _mm256_xor_si256(c1, k0));
            c2 = _mm256_xor_si256(_mm256_srli_epi64::<32>(a), _mm256_xor_si256(c3, k1));
            (c1, c3) = (b, a);
        }
        [
            _mm256_blend_epi32::<0b1010_1010>(c0, _mm256_slli_epi64::<32>(c1)),
            _mm256_blend_epi32::<0b1010_1010>(c2, _mm256_slli_epi64::<32>(c3)),
        ]
    }

    /// One bit for each 16-bit lane of two results of a comparison.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn avx2_bits(a: __m256i, b: __m256i) -> u32 {
        let bytes = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi16(a, b));
        _mm256_movemask_epi8(bytes) as u32
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt,bmi1")]
    pub fn avx512(first: u64, origin: Origin, bound: u16, groups: &mut [Compared]) {
        let bounds = _mm512_set1_epi16(bound as i16);
        for (group, first) in groups.iter_mut().zip((first..).step_by(BLOCKS as usize)) {
            let [low, high] = avx512_blocks(first, origin);
            let join = |a: __mmask32, b: __mmask32| u64::from(a) | u64::from(b) << 32;
            *group = Compared {
                within: join(_mm512_cmple_epu16_mask(low, bounds), _mm512_cmple_epu16_mask(high, bounds)),
                equal: join(_mm512_cmpeq_epu16_mask(low, bounds), _mm512_cmpeq_epu16_mask(high, bounds)),
            };
        }
    }

    /// Eight blocks: the first four pieces of each, and the others.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    #[inline]
    fn avx512_blocks(first: u64, origin: Origin) -> [__m512i; 2] {
        let by = MULTIPLIERS.map(|m| _mm512_set1_epi64(lanes(m)));
        let eight = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
        let mut c0 = _mm512_add_epi64(_mm512_set1_epi64(first as i64), eight);
        let mut c1 = _mm512_srli_epi64::<32>(c0);
        let [mut c2, mut c3] = origin.high.map(|h| _mm512_set1_epi64(lanes(h)));
        let mut key = origin.key;
        for round in 0..ROUNDS {
            if round > 0 {
                key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
            }
            let [k0, k1] = key.map(|k| _mm512_set1_epi64(lanes(k)));
            let (a, b) = (_mm512_mul_epu32(by[0], c0), _mm512_mul_epu32(by[1], c2));
            c0 = _mm512_ternarylogic_epi64::<XOR>(_mm512_srli_epi64::<32>(b), c1, k0);
            c2 = _mm512_ternarylogic_epi64::<XOR>(_mm512_srli_epi64::<32>(a), c3, k1);
            (c1, c3) = (b, a);
        }
        [
            _mm512_mask_blend_epi32(0xaaaa, c0, _mm512_slli_epi64::<32>(c1)),
            _mm512_mask_blend_epi32(0xaaaa, c2, _mm512_slli_epi64::<32>(c3)),
        ]
    }

    /// The truth table of `a ^ b ^ c`.
    const XOR: i32 = 0x96;
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
    fn groups_are_made_of_single_pieces_at_every_level() {
        let origin = Origin { key: [1, u32::MAX], high: [7, 0x8000_0001] };
        for level in Level::available() {
            for first in [0, 8, 0xffff_fff8, 0xffff_ffff_ff00] {
                let mut groups = [[0; PIECES]; 3];
                pieces(level, first, origin, &mut groups);
                let expected: Vec<u16> = (8 * first..8 * first + 192).map(|at| origin.piece(at)).collect();
                assert_eq!(groups.as_flattened(), expected, "{level:?} {first}");
            }
        }
    }

    #[test]
    fn comparisons_are_those_of_single_pieces_at_every_level() {
        let origin = Origin { key: [1, u32::MAX], high: [7, 0x8000_0001] };
        for level in Level::available() {
            for first in [0, 8, 0xffff_fff8, 0xffff_ffff_ff00] {
                let pieces: Vec<u16> = (8 * first..8 * first + 320).map(|at| origin.piece(at)).collect();
                for bound in [0, 1, 0x7fff, 0x8000, u16::MAX, pieces[3], pieces[63], pieces[100]] {
                    let mut groups = [Compared { within: 7, equal: 7 }; 5];
                    compare(level, first, origin, bound, &mut groups);
                    for (i, piece) in pieces.iter().enumerate() {
                        let (group, bit) = (groups[i / 64], i % 64);
                        assert_eq!(group.within >> bit & 1 == 1, *piece <= bound, "{level:?} {i} {bound}");
                        assert_eq!(group.equal >> bit & 1 == 1, *piece == bound, "{level:?} {i} {bound}");
                    }
                }
            }
        }
    }
}
