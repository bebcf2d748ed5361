//! The scans of a conflict report, alone or before tensors are merged.

use std::ops::Range;

use super::learning::merged;
use super::{Run, is_scanned_whole};
use crate::error::Result;
use crate::exec::conflicts::guess::{self, Sample};
use crate::exec::conflicts::{Survey, SurveyJob};
use crate::exec::job::{Job, Look};
use crate::exec::memory;
use crate::exec::pass::TileId;
use crate::exec::tile::{Slice, Span, Work};
use crate::plan::{Action, PlannedTensor};

impl<'a> Run<'a> {
    /// Gathers the statistics of a conflict report, and merges nothing. `more` bytes are to be gone through after it.
    pub fn survey(mut self, survey: &'a Survey, more: u64) -> Result<()> {
        self.ensure_room(survey)?;
        self.survey = Some(survey);
        let tensors = &self.plan.tensors;
        let scans = |t: &PlannedTensor| if is_scanned_whole(t) { survey.scans(t) } else { 1 };
        let bytes: u64 = tensors.iter().map(|t| self.plan.source_bytes(t) * scans(t)).sum();
        self.observer.begin(bytes + more, tensors.len() as u64);
        let mut start = 0;
        for (at, tensor) in tensors.iter().enumerate() {
            if is_scanned_whole(tensor) {
                self.survey_tiles(survey, start..at)?;
                self.survey_tensor(survey, at)?;
                self.observer.add_tensor();
                start = at + 1;
            }
        }
        self.survey_tiles(survey, start..tensors.len())
    }

    /// Asks for the memory that a survey takes.
    pub(super) fn ensure_room(&self, survey: &Survey) -> Result<()> {
        memory::ensure(self.plan.memory_bound() + survey.bytes(self.workers.count()) + memory::MARGIN)
    }

    /// Gathers the statistics of tensors that are one tile each, or compared tile by tile.
    pub(super) fn survey_tiles(&self, survey: &Survey, tensors: Range<usize>) -> Result<()> {
        let tiles = self.map.tiles(tensors);
        self.workers.run(
            &self.map,
            tiles.clone(),
            self.observer,
            || (),
            |work, (), id, _| {
                self.read_ahead(id, &tiles);
                let slice = Slice::tile(self.plan, self.models, id);
                slice.fetch(work, Look::Values)?;
                let tensor = &self.plan.tensors[id.tensor];
                if tensor.action == Action::Compare {
                    survey.put_equal(id.tensor, tensor, &slice.equal(work));
                } else {
                    survey_alone(work, survey, &slice, id);
                }
                slice.check_intact()?;
                slice.release();
                self.observer.add_bytes(slice.source_bytes());
                if id.index + 1 == tensor.tiles() {
                    self.observer.add_tensor();
                }
                Ok(())
            },
        )?;
        Ok(())
    }

    /// Gathers the statistics of a tensor of several tiles, by all workers.
    pub(super) fn survey_tensor(&self, survey: &Survey, at: usize) -> Result<()> {
        let tensor = &self.plan.tensors[at];
        let mut job = survey.job(tensor);
        self.survey_sample(&mut job, at)?;
        while job.needs_scan() {
            self.survey_once(&mut job, at)?;
        }
        survey.put(at, tensor, job);
        Ok(())
    }

    /// Shows a survey a sample of a tensor, if that spares it a scan.
    pub(super) fn survey_sample(&self, job: &mut SurveyJob, at: usize) -> Result<()> {
        if !job.wants_sample() {
            return Ok(());
        }
        let tiles = self.map.tiles(at..at + 1);
        let gathered = self.workers.run(
            &self.map,
            tiles.clone(),
            self.observer,
            Sample::default,
            |work, sample, id, _| {
                self.read_ahead(id, &tiles);
                let tile = Slice::tile(self.plan, self.models, id);
                for first in guess::places(&tile.elements(), tiles.end - tiles.start) {
                    let slice = Slice::new(self.plan, self.models, at, first, guess::TAKEN);
                    slice.fetch(work, Look::Values)?;
                    slice.for_chunks(work, Span::Elements, Look::Values, |chunk, _| sample.take(chunk));
                }
                tile.check_intact()
            },
        )?;
        let mut sample = Sample::default();
        gathered.into_iter().for_each(|other| sample.merge(other));
        job.take_sample(sample);
        Ok(())
    }

    /// The next scan of a survey over a tensor.
    pub(super) fn survey_once(&self, job: &mut SurveyJob, at: usize) -> Result<()> {
        let tiles = self.map.tiles(at..at + 1);
        let (scanning, sampled) = (&*job, job.is_by_sample());
        let gathered = self.workers.run(
            &self.map,
            tiles.clone(),
            self.observer,
            || scanning.partial(),
            |work, partial, id, _| {
                // A sample has brought this tensor into the page cache: what comes after it is read meanwhile.
                let ahead = if sampled { tiles.end - tiles.start } else { 0 };
                self.read_ahead(TileId { ordinal: id.ordinal + ahead, ..id }, &self.map.all());
                let slice = Slice::tile(self.plan, self.models, id);
                for piece in slice.pieces(self.plan, self.models) {
                    piece.fetch(work, Look::Values)?;
                    piece.survey(work, scanning, partial);
                }
                partial.close_tile(id.ordinal);
                slice.check_intact()?;
                slice.release();
                self.observer.add_bytes(slice.source_bytes());
                Ok(())
            },
        )?;
        let all = merged(job, gathered);
        job.learn(all, &self.plan.tensors[at].name)
    }
}

/// All scans of a conflict report over a tensor of one tile, by one worker.
pub(super) fn survey_alone(work: &mut Work, survey: &Survey, slice: &Slice<'_>, id: TileId) {
    if survey.is_done(id.tensor) {
        return;
    }
    let mut job = survey.job(slice.tensor);
    while job.needs_scan() {
        let mut partial = job.partial();
        slice.survey(work, &job, &mut partial);
        partial.close_tile(id.ordinal);
        // Learning from a survey cannot fail.
        let _ = job.learn(partial, &slice.tensor.name);
    }
    survey.put(id.tensor, slice.tensor, job);
}
