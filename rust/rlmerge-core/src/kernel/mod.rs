//! Arithmetic on tiles: decoding, the element-wise families of merge methods, exact selection by
//! magnitude, random masks, and reductions.
//!
//! Everything works on chunks of [`CHUNK`] elements that stay in the first-level cache, one simple
//! loop an operation, each compiled for every SIMD [`Level`]. [`naive`] holds the same operations
//! one element at a time, as the oracle of the tests.

pub mod aligned;
pub mod blocks;
pub mod candidates;
pub mod changes;
pub mod cholesky;
mod collect;
pub mod combine;
pub mod convert;
pub mod duel;
pub mod eigen;
pub mod element;
pub mod elementary;
pub mod fisher;
pub mod gram;
pub mod heads;
pub mod lanes;
pub mod level;
pub mod lowrank;
pub mod masks;
pub mod naive;
pub mod neurons;
pub mod pair;
pub mod philox;
pub mod plain_floats;
pub mod products;
pub mod ranks;
pub mod resmerge;
pub mod rivals;
pub mod rng;
pub mod rows;
pub mod select;
pub mod sieve;
pub mod spectrum;
pub mod sphere;
pub mod stats;
pub mod tridiagonal;
pub mod values;

pub use level::Level;
pub use plain_floats::PlainFloats;

/// Elements worked on at a time. A multiple of the 16 lanes of reductions and of the 64 elements
/// that the random masks make at once.
pub const CHUNK: usize = 1024;
