//! Output that appears whole or not at all.
//!
//! [`preflight`] → [`Stage::create`] → [`StagedFile`]s → [`Stage::commit`]: everything is written into
//! a hidden folder beside the output, made durable there, and becomes visible by one rename that
//! never replaces anything unasked (durable as far as [`Durability`](crate::plan::recipe::Durability) asks for). Until that rename the output path is untouched; a stage that is
//! dropped takes its files with it, and after a kill only the stage is left behind.
//!
//! Assumed of the system: a rename within one folder is atomic, fsync is honest, and nobody else
//! writes into the stage.

mod commit;
mod file;
mod preflight;
mod replace;
mod space;
mod stage;
mod sync;
mod target;
mod writeback;

pub use file::StagedFile;
pub use preflight::preflight;
pub use stage::Stage;
pub use target::{Input, OutputKind, Target};
