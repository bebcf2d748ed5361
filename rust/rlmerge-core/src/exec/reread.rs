//! `--verify-inputs`: every tensor is read a second time before the output is published, and has to be what it was.
//!
//! Lengths and times of files tell of most changes, but whoever overwrites bytes in place can put the times back.

use super::digest::{self, Part};
use super::job::Look;
use super::observer::Observer;
use super::pass::{TileMap, Workers};
use super::tile::{Slice, Work};
use crate::error::{Error, Result, escape};
use crate::kernel::Level;
use crate::plan::MergePlan;
use crate::report::TensorReport;
use crate::shard::Checkpoint;

/// Compares what is in the files now with what the output was made of.
///
/// # Errors
/// [`Error::InputChanged`] with file and tensor, and what reading can meet.
pub fn reread(
    plan: &MergePlan,
    models: &[Checkpoint],
    reports: &[TensorReport],
    observer: &Observer,
) -> Result<()> {
    let map = TileMap::new(plan);
    let threads = plan.threads.clamp(1, plan.tiles().max(1) as usize);
    let workers = Workers::start(threads, || Work::new(Level::choose(), plan.models.len(), 1))?;
    let read = workers.run(&map, map.all(), observer, Vec::new, |work, found, id, _| {
        let slice = Slice::tile(plan, models, id);
        slice.fetch(work, Look::Values)?;
        found.push((id.ordinal, slice.source_parts(work)));
        slice.check_intact()?;
        slice.release();
        Ok(())
    })?;
    let mut tiles: Vec<(u64, Vec<Part>)> = read.into_iter().flatten().collect();
    tiles.sort_by_key(|(ordinal, _)| *ordinal);
    let mut tiles = tiles.into_iter().map(|(_, parts)| parts);
    for (tensor, report) in plan.tensors.iter().zip(reports) {
        let parts: Vec<Vec<Part>> = tiles.by_ref().take(tensor.tiles() as usize).collect();
        for (at, (model, before)) in
            plan.read_models(tensor).into_iter().zip(&report.source_blake3).enumerate()
        {
            if digest::whole(parts.iter().map(|tile| &tile[at])) != *before {
                return Err(Error::InputChanged {
                    path: models[model].shards()[tensor.sources[model].shard].path.clone(),
                    message: format!(
                        "tensor `{}` is not what it was when it was merged",
                        escape(&tensor.name)
                    ),
                });
            }
        }
    }
    Ok(())
}
