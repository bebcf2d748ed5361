//! Tiles that are computed, and put into their files.

use std::ops::Range;
use std::sync::PoisonError;

use super::matching::Factors;
use super::{PANICS, Run, is_merged};
use crate::error::Result;
use crate::exec::conflicts::SurveyJob;
use crate::exec::job::{Job, Look, Partial};
use crate::exec::pass::TileId;
use crate::exec::resume;
use crate::exec::stats::TileStats;
use crate::exec::tile::{self, Slice, Surveying, Work};
use crate::exec::turnstile::Turnstile;
use crate::plan::{PlannedTensor, TILE_ELEMENTS, marks};

impl Run<'_> {
    /// Computes the tiles of those tensors of a range that are `mine`, and gathers on the way for a survey that has a
    /// scan left.
    pub(super) fn apply(
        &self,
        job: &dyn Job,
        tensors: Range<usize>,
        mine: &(dyn Fn(&PlannedTensor) -> bool + Sync),
        read_ahead: bool,
        factors: Factors<'_>,
        survey: Option<&SurveyJob>,
    ) -> Result<Vec<Option<Partial>>> {
        let tiles = self.map.tiles(tensors);
        let ordered = job.ordered_ties();
        let turnstile = Turnstile::new(tiles.start, ordered);
        self.workers.run(
            &self.map,
            tiles.clone(),
            self.observer,
            || survey.map(Job::partial),
            |work, partial, id, given_up| {
                let mut order = tile::in_order(&turnstile, id.ordinal, given_up);
                if !mine(&self.plan.tensors[id.tensor]) {
                    // Not this job's; where ties are shared in order it lets the next tile through.
                    return if ordered > 0 { order(&vec![0; ordered]).map(|_| ()) } else { Ok(()) };
                }
                if read_ahead {
                    self.read_ahead(id, &tiles);
                }
                let slice = Slice::tile(self.plan, self.models, id);
                slice.fetch(work, Look::Values)?;
                let modified = self.modified(&self.plan.tensors[id.tensor], factors.of(id.tensor));
                let on_the_way = slice.is_plain(modified) && self.measured.is_none();
                let mut surveying = survey.zip(partial.as_mut());
                if let (Some((survey, partial)), false) = (&mut surveying, on_the_way) {
                    slice.survey(work, *survey, partial);
                }
                // Norms are measured of whole deltas.
                let kept = if self.measured.is_none() { self.sieved.take(id.ordinal) } else { Vec::new() };
                let slice = slice.modified(modified).sieved(&kept);
                let seeing = surveying.as_mut().filter(|_| on_the_way);
                let seeing = seeing.map(|(survey, partial)| (*survey as &dyn Job, &mut **partial));
                self.complete(work, &slice, id, job, &mut order, seeing)?;
                self.sieved.give_back(kept);
                if let Some((_, partial)) = surveying {
                    partial.close_tile(id.ordinal);
                }
                Ok(())
            },
        )
    }

    /// Computes a tile and puts it into its file; while α is being found, only measures it, and a survey sees nothing.
    pub(super) fn complete(
        &self,
        work: &mut Work,
        slice: &Slice<'_>,
        id: TileId,
        job: &dyn Job,
        order: &mut dyn FnMut(&[u64]) -> Result<Vec<u64>>,
        survey: Option<Surveying<'_>>,
    ) -> Result<()> {
        let Some(measured) = &self.measured else {
            let (bytes, stats) = slice.merge(work, job, order, survey)?;
            return self.put(slice, id, bytes, stats);
        };
        if is_merged(slice.tensor) {
            let sums = slice.measure(work, job, order)?;
            measured.lock().unwrap_or_else(PoisonError::into_inner).push((id.ordinal, sums));
        }
        slice.check_intact()?;
        slice.release();
        self.observer.add_bytes(slice.source_bytes());
        Ok(())
    }

    /// Hashes and writes a tile, starts its way to the disk, and gives its sources back to the kernel.
    pub(super) fn put(
        &self,
        slice: &Slice<'_>,
        id: TileId,
        bytes: &[u8],
        mut stats: TileStats,
    ) -> Result<()> {
        assert!(!cfg!(test) || slice.tensor.name != PANICS, "asked to");
        slice.hash(bytes, &mut stats);
        slice.check_intact()?;
        let file = &self.files[slice.tensor.shard];
        let offset = slice.tensor.offset + slice.output_offset();
        file.write_all_at(bytes, offset)?;
        file.start_writeback(offset, bytes.len() as u64);
        self.put_marks(slice, id, &mut stats)?;
        slice.release();
        self.observer.add_bytes(slice.source_bytes());
        if let Some(finished) = self.statistics.add(self.plan, id.tensor, id.index, stats) {
            slice.check_unchanged()?;
            if let Some(stage) = self.stage {
                let tensor = &self.plan.tensors[id.tensor];
                let saved = if self.is_whole_model(tensor) { 0 } else { tensor.bytes };
                stage.record(&resume::record(id.tensor, &finished), saved);
            }
            self.statistics.keep(id.tensor, finished);
            self.observer.add_tensor();
        }
        Ok(())
    }

    /// Writes the bits that go with a tile; their file comes after those of the model.
    pub(super) fn put_marks(&self, slice: &Slice<'_>, id: TileId, stats: &mut TileStats) -> Result<()> {
        let (bits, len) = slice.take_marks(stats);
        let Some(begin) = self.plan.marks.as_ref().and_then(|m| m.rows[id.tensor]) else { return Ok(()) };
        let file = &self.files[self.plan.layout.shards.len()];
        let (row, first) = (marks::row_bytes(slice.tensor.elements), id.index * TILE_ELEMENTS / 8);
        for (task, bits) in bits.chunks(len.max(1)).enumerate() {
            file.write_all_at(bits, begin + task as u64 * row + first)?;
        }
        Ok(())
    }
}
