//! Output that appears whole or not at all.
//!
//! [`preflight`] → [`Stage::create`] → [`StagedFile`]s → [`Stage::commit`]: everything is written into
//! a hidden folder beside the output, made durable there, and becomes visible by one rename that
//! never replaces anything unasked (durable as far as [`Durability`](crate::plan::recipe::Durability) asks for). Until that rename the output path is untouched; a stage that is
//! dropped takes its files with it (unless it is [kept](Stage::keep)), and after a kill only the stage is left behind.
//!
//! A stage is locked by the run that fills it, and its journal says what is finished: [`Stage::resume`] goes on with the
//! stage of a killed run, [`clean`] removes it.
//!
//! Assumed of the system: a rename within one folder is atomic, fsync is honest, and nobody else
//! writes into the stage.

mod clean;
mod commit;
mod file;
mod journal;
mod leftover;
mod lock;
mod preflight;
mod replace;
mod space;
mod stage;
mod sync;
mod target;
mod writeback;

pub use clean::{Stray, clean};
pub use file::StagedFile;
pub use leftover::left_over;
pub use preflight::preflight;
pub use stage::{Resumed, Stage};
pub use target::{Input, OutputKind, Target};
