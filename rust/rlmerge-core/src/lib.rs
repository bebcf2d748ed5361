//! Streaming merges of safetensors checkpoints, in memory that does not grow with the model.
#![deny(unsafe_code)]
pub mod dtype;
pub mod error;
pub mod shard;
pub mod writer;
