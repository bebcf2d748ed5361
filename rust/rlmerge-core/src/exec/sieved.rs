//! What scans keep of changes of adapters for the tiles that are computed after them: making a change takes longer than
//! reading what matters of it, and there is not room for all of it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::kernel::sieve::Sieve;
use crate::plan::{SIEVED_BYTES, TILE_ELEMENTS};

/// The sieves of a run.
#[derive(Default)]
pub struct Sieved(Mutex<Tiles>);

#[derive(Default)]
struct Tiles {
    /// Those that hold what was kept of a tile, by its ordinal: one for each expert.
    full: HashMap<u64, Vec<Sieve>>,
    /// Those to be used again.
    free: Vec<Sieve>,
    /// How many there are, those included that workers have.
    count: usize,
}

impl Sieved {
    /// Sieves for a tile, one for each of so many experts; none where there are too many already.
    pub fn open(&self, experts: usize) -> Vec<Sieve> {
        const BYTES: usize = Sieve::bytes(TILE_ELEMENTS as usize);
        let mut tiles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = experts.saturating_sub(tiles.free.len());
        if (tiles.count + missing) * BYTES > SIEVED_BYTES as usize {
            return Vec::new();
        }
        tiles.count += missing;
        let left = tiles.free.len() - (experts - missing);
        let mut sieves = tiles.free.split_off(left);
        sieves.resize_with(experts, || Sieve::new(TILE_ELEMENTS as usize));
        sieves.iter_mut().for_each(Sieve::clear);
        sieves
    }

    /// Keeps what the sieves hold of a tile of so many elements, if they all do.
    pub fn put(&self, ordinal: u64, elements: u64, sieves: Vec<Sieve>) {
        let mut tiles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !sieves.is_empty() && sieves.iter().all(|sieve| sieve.holds(elements as usize)) {
            tiles.full.insert(ordinal, sieves);
        } else {
            tiles.free.extend(sieves);
        }
    }

    /// What was kept of a tile; nothing if it was not.
    pub fn take(&self, ordinal: u64) -> Vec<Sieve> {
        let mut tiles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tiles.full.remove(&ordinal).unwrap_or_default()
    }

    /// Takes sieves back.
    pub fn give_back(&self, sieves: Vec<Sieve>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).free.extend(sieves);
    }

    /// Forgets what was kept.
    pub fn clear(&self) {
        let mut tiles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = std::mem::take(&mut tiles.full);
        tiles.free.extend(full.into_values().flatten());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{CHUNK, Level};

    #[test]
    fn what_was_kept_of_a_tile_is_handed_out_once() {
        let sieved = Sieved::default();
        let sift = |sieves: &mut [Sieve], chunks: usize| {
            for sieve in sieves {
                for _ in 0..chunks {
                    assert!(sieve.sift(Level::choose(), &[1.0; CHUNK], 1).is_some());
                }
            }
        };
        let mut sieves = sieved.open(2);
        assert_eq!(sieves.len(), 2);
        sift(&mut sieves, 2);
        sieved.put(7, 2 * CHUNK as u64, sieves);
        assert!(sieved.take(6).is_empty());
        let sieves = sieved.take(7);
        assert!(sieves.len() == 2 && sieves.iter().all(|s| s.holds(2 * CHUNK)));
        assert!(sieved.take(7).is_empty());
        sieved.give_back(sieves);
        // Where one of them does not hold the whole tile, nothing was kept.
        let mut sieves = sieved.open(2);
        sift(&mut sieves[..1], 2);
        sieved.put(8, 2 * CHUNK as u64, sieves);
        assert!(sieved.take(8).is_empty());
        let mut sieves = sieved.open(1);
        sift(&mut sieves, 1);
        sieved.put(9, CHUNK as u64, sieves);
        sieved.clear();
        assert!(sieved.take(9).is_empty());
        assert!(sieved.open(0).is_empty());
        assert_eq!(sieved.0.lock().unwrap().count, 2, "they are used again");
    }

    #[test]
    fn there_is_an_end_to_what_is_kept() {
        let sieved = Sieved::default();
        let tiles: Vec<_> =
            (0..1000).map(|_| sieved.open(3)).take_while(|sieves| !sieves.is_empty()).collect();
        let bytes = 3 * tiles.len() * Sieve::bytes(TILE_ELEMENTS as usize);
        assert!(bytes <= SIEVED_BYTES as usize && bytes > SIEVED_BYTES as usize * 9 / 10, "{bytes}");
    }
}
