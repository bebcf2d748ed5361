//! BLAKE3 of a tensor from its tiles, hashed in any order by any worker.
//!
//! BLAKE3 is a binary tree over 1 KiB chunks; a tile whose size is a power of two and which starts at a
//! multiple of its size is a subtree, so its chaining value can be computed alone.

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

/// Chaining value of one tile of a tensor of several tiles. `offset` is its byte offset in the tensor.
pub fn tile(bytes: &[u8], offset: u64) -> ChainingValue {
    blake3::Hasher::new().set_input_offset(offset).update(bytes).finalize_non_root()
}

/// What a tile adds to the BLAKE3 of its tensor.
#[derive(Debug, Clone)]
pub enum Part {
    /// It is the whole tensor, whose BLAKE3 this is.
    Whole(String),
    /// It is one of several.
    Tile(ChainingValue),
}

/// What these bytes at this offset add to the BLAKE3 of a tensor, of which they are all when `alone`.
pub fn part(bytes: &[u8], offset: u64, alone: bool) -> Part {
    if alone {
        Part::Whole(blake3::hash(bytes).to_hex().to_string())
    } else {
        Part::Tile(tile(bytes, offset))
    }
}

/// BLAKE3 of the tensor with these parts, as hex.
pub fn whole<'p>(parts: impl Iterator<Item = &'p Part>) -> String {
    let mut tiles = Vec::new();
    for part in parts {
        match part {
            Part::Whole(hash) => return hash.clone(),
            Part::Tile(value) => tiles.push(*value),
        }
    }
    combine(&tiles)
}

/// BLAKE3 of the tensor whose tiles have these chaining values, as hex.
pub fn combine(tiles: &[ChainingValue]) -> String {
    let (left, right) = tiles.split_at(left_len(tiles.len()));
    merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash).to_hex().to_string()
}

fn subtree(tiles: &[ChainingValue]) -> ChainingValue {
    match tiles {
        [one] => *one,
        _ => {
            let (left, right) = tiles.split_at(left_len(tiles.len()));
            merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
        }
    }
}

/// The left subtree holds the largest power of two of tiles that leaves something for the right one.
fn left_len(tiles: usize) -> usize {
    (tiles / 2 + tiles % 2).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_combine_into_the_hash_of_the_whole() {
        let tile_bytes = 4096;
        for len in [4097, 8192, 8193, 12_288, 20_000, 32_768, 65_537, 100_000] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
            let tiles: Vec<_> =
                bytes.chunks(tile_bytes).enumerate().map(|(i, t)| tile(t, (i * tile_bytes) as u64)).collect();
            assert_eq!(combine(&tiles), blake3::hash(&bytes).to_hex().to_string(), "{len}");
        }
    }
}
