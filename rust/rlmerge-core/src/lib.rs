//! Streaming merges of safetensors checkpoints, in memory that does not grow with the model.
//!
//! ```text
//! files ─► shard ─► plan ─► exec ─► writer ─► files
//!                    │       └─► kernel
//!      recipe (JSON) ┘       └─► report ─► JSON
//! ```
//!
//! [`shard`] opens checkpoints, [`plan`] aligns their tensors and lays out the output, [`exec`] runs the
//! plan tile by tile through [`kernel`]'s arithmetic, [`writer`] makes the output durable and visible at
//! once, and [`report`] says what was done.
#![deny(unsafe_code)]

pub mod dtype;
pub mod error;
pub mod exec;
pub mod kernel;
pub mod plan;
pub mod report;
pub mod shard;
pub mod writer;
