//! A look at all statistics that the user brought, before anything is merged: every number must be one that such
//! statistics can have. Their norms come with it.

use super::observer::Observer;
use super::pass::{TileMap, Workers};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernel::lanes::{self, Lanes};
use crate::kernel::values::Values;
use crate::kernel::{CHUNK, Level};
use crate::plan::{MergePlan, Source, StatisticToCheck, TILE_ELEMENTS};
use crate::shard::Checkpoint;

/// What one worker saw.
#[derive(Default)]
struct Seen {
    buffer: Vec<u8>,
    values: Values,
    /// Ordinal and file of each tile, and the sum of its squares.
    squares: Vec<(u64, usize, f64)>,
}

/// Checks the statistics of a plan and gives the norm of each file's, in the order of checkpoints (0 for models).
///
/// # Errors
/// [`Error::BadStatistics`] with the first element that is wrong.
pub fn check(
    plan: &MergePlan,
    checkpoints: &[Checkpoint],
    workers: &Workers,
    level: Level,
    observer: &Observer,
) -> Result<Vec<f64>> {
    let mut sums = vec![0.0; checkpoints.len()];
    let list = plan.statistics_to_check();
    if list.is_empty() {
        return Ok(sums);
    }
    let elements = |s: &StatisticToCheck<'_>| (s.source.end - s.source.begin) * 8 / s.source.dtype.bits();
    let map = TileMap::of(list.iter().map(|s| elements(s).div_ceil(TILE_ELEMENTS)));
    let gathered = workers.run(&map, map.all(), observer, Seen::default, |_, seen, id, _| {
        let statistic = &list[id.tensor];
        let first = id.index * TILE_ELEMENTS;
        let count = TILE_ELEMENTS.min(elements(statistic) - first) as usize;
        let size = (statistic.source.dtype.bits() / 8) as usize;
        seen.buffer.resize(count * size, 0);
        let shard = &checkpoints[statistic.file].shards()[statistic.source.shard];
        shard.read_at(statistic.source.begin + first * size as u64, &mut seen.buffer)?;
        let mut squares = Lanes::default();
        for (at, bytes) in seen.buffer.chunks(CHUNK * size).enumerate() {
            let wide = statistic.source.dtype == DType::F64;
            seen.values.load(level, statistic.source.dtype, bytes, bytes.len() / size, wide);
            let begin = first + (at * CHUNK) as u64;
            if let Some((element, message)) = first_wrong(plan, statistic, &seen.values, begin) {
                return Err(Error::BadStatistics {
                    path: checkpoints[statistic.file].path().to_path_buf(),
                    tensor: statistic.tensor.name.clone(),
                    message: format!("{message} at element {element}"),
                });
            }
            seen.values.add_squares(level, &mut squares);
        }
        seen.squares.push((id.ordinal, statistic.file, lanes::total(&squares)));
        observer.add_bytes(seen.buffer.len() as u64);
        Ok(())
    })?;
    let mut squares: Vec<_> = gathered.into_iter().flat_map(|seen| seen.squares).collect();
    squares.sort_unstable_by_key(|(ordinal, ..)| *ordinal);
    for (_, file, square) in squares {
        sums[file] += square;
    }
    Ok(sums.into_iter().map(f64::sqrt).collect())
}

/// All numbers of one tensor's statistics.
pub fn read_whole(source: &Source, file: &Checkpoint, level: Level) -> Result<Vec<f64>> {
    let mut bytes = vec![0; (source.end - source.begin) as usize];
    file.shards()[source.shard].read_at(source.begin, &mut bytes)?;
    let size = (source.dtype.bits() / 8) as usize;
    let mut values = Values::default();
    let mut out = Vec::with_capacity(bytes.len() / size);
    for part in bytes.chunks(CHUNK * size) {
        values.load(level, source.dtype, part, part.len() / size, source.dtype == DType::F64);
        out.extend(values.to_f64());
    }
    Ok(out)
}

/// The first number that such statistics cannot have. A Fisher diagonal has no negative number, the Gram matrix of
/// inputs none on its diagonal.
fn first_wrong(
    plan: &MergePlan,
    statistic: &StatisticToCheck<'_>,
    values: &Values,
    begin: u64,
) -> Option<(u64, &'static str)> {
    if let Some(at) = values.first_non_finite() {
        return Some((begin + at as u64, "a value that is not finite"));
    }
    let side = plan.gram_side(statistic.tensor);
    let on_diagonal = |at: u64| side.is_none_or(|side| (at % (side * side)).is_multiple_of(side + 1));
    let at = values.find(|v| v < 0.0, |at| on_diagonal(begin + at as u64))?;
    Some((begin + at as u64, "a negative value"))
}
