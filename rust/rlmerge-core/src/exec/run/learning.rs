//! What a job learns from a tensor, or from all of them, before it is applied: a sample, then scans.

use std::ops::Range;

use super::Run;
use super::matching::Factors;
use crate::error::{Error, Result};
use crate::exec::conflicts::SurveyJob;
use crate::exec::job::{Job, Look, Partial};
use crate::exec::pass::TileId;
use crate::exec::statistics;
use crate::exec::tile::{Slice, Span, Surveying, Work};
use crate::exec::turnstile::Turnstile;
use crate::kernel::CHUNK;
use crate::kernel::select::RUN;
use crate::plan::{Action, PlannedTensor, TILE_ELEMENTS};

/// Blocks in the sample that a selection starts from, at most.
const SAMPLE_BLOCKS: u64 = 128;
/// Elements in each block of the sample.
const SAMPLE_BLOCK: u64 = RUN as u64;
/// Elements up to which the sample is everything.
pub const WHOLE_SAMPLE: u64 = SAMPLE_BLOCKS * SAMPLE_BLOCK;

/// What a job learns from.
pub(super) struct Material<'m> {
    /// Among these tensors …
    pub tensors: Range<usize>,
    /// … those of which this is true.
    pub mine: &'m (dyn Fn(&PlannedTensor) -> bool + Sync),
    /// Their name in errors.
    pub scope: &'m str,
    /// Whether mapped pages are kept for the next scan.
    pub keep_pages: bool,
    /// Factors of the experts' deltas.
    pub factors: Factors<'m>,
}

/// What all workers gathered.
pub(super) fn merged(job: &dyn Job, gathered: impl IntoIterator<Item = Partial>) -> Partial {
    let mut merged = job.partial();
    for partial in gathered {
        merged.merge(partial);
    }
    merged
}

impl Run<'_> {
    /// All scans of a tensor of one tile, by one worker.
    pub(super) fn learn_alone(
        &self,
        work: &mut Work,
        slice: &Slice<'_>,
        id: TileId,
        job: &mut dyn Job,
        factors: &[f64],
    ) -> Result<()> {
        let tensor = &self.plan.tensors[id.tensor];
        if job.wants_sample() {
            self.sample(work, job, &[id.tensor], Factors::Same(factors))?;
            slice.fetch(work, Look::Values)?;
        }
        while job.needs_scan() {
            let mut partial = job.partial();
            slice.scan(work, job, id.ordinal, &mut partial);
            if job.folds() {
                job.fold(&mut partial.folding);
            }
            job.learn(partial, &tensor.name)?;
        }
        Ok(())
    }

    /// Scans tensors until the job has learnt everything. The first scan is one of the survey too, if there is one left.
    pub(super) fn learn(
        &self,
        job: &mut dyn Job,
        material: Material<'_>,
        mut survey: Option<&mut SurveyJob>,
    ) -> Result<()> {
        let Material { tensors, mine, scope, keep_pages, factors } = material;
        if job.wants_sample() {
            let sampled: Vec<usize> = tensors.clone().filter(|t| mine(&self.plan.tensors[*t])).collect();
            self.workers.alone(|work| self.sample(work, job, &sampled, factors))?;
        }
        let tiles = self.map.tiles(tensors);
        while job.needs_scan() {
            // What an earlier scan kept was kept for nothing.
            self.sieved.clear();
            let scanning: &dyn Job = job;
            let survey = survey.take().filter(|job| job.needs_scan());
            let surveying = survey.as_deref();
            let look = if surveying.is_some() { Look::Values } else { Look::of_scan(scanning) };
            let turnstile = Turnstile::new(tiles.start, 0);
            let folds = scanning.folds();
            let gathered = self.workers.run(
                &self.map,
                tiles.clone(),
                self.observer,
                || (scanning.partial(), surveying.map(Job::partial)),
                |work, (partial, surveyed), id, given_up| {
                    let skipped = surveying.is_none() && !scanning.scans_tile(id.index * TILE_ELEMENTS);
                    if skipped || !mine(&self.plan.tensors[id.tensor]) {
                        return if folds { turnstile.in_turn(id.ordinal, given_up, || ()) } else { Ok(()) };
                    }
                    self.read_ahead(id, &tiles);
                    let slice = Slice::tile(self.plan, self.models, id);
                    slice.fetch(work, look)?;
                    let modified = self.modified(&self.plan.tensors[id.tensor], factors.of(id.tensor));
                    let slice = if let Some((surveying, surveyed)) = surveying.zip(surveyed.as_mut()) {
                        let survey: Surveying<'_> = (surveying, surveyed);
                        slice.scan_and_survey(work, survey, modified, (scanning, partial), id.ordinal)
                    } else {
                        let slice = slice.modified(modified);
                        let wanted = if slice.needs_no_bytes(look) { scanning.sieves() } else { 0 };
                        let sieves = self.sieved.open(wanted);
                        let sieves = slice.sift(work, scanning, id.ordinal, partial, sieves);
                        self.sieved.put(id.ordinal, slice.len(), sieves);
                        slice
                    };
                    if folds {
                        turnstile.in_turn(id.ordinal, given_up, || scanning.fold(&mut partial.folding))?;
                    }
                    slice.check_intact()?;
                    if !keep_pages {
                        slice.release();
                    }
                    self.observer.add_bytes(slice.source_bytes());
                    Ok(())
                },
            )?;
            let (gathered, surveyed): (Vec<_>, Vec<_>) = gathered.into_iter().unzip();
            let all = merged(job, gathered);
            job.learn(all, scope)?;
            if let Some(survey) = survey {
                let all = merged(survey, surveyed.into_iter().flatten());
                survey.learn(all, scope)?;
            }
        }
        Ok(())
    }

    /// Hands a job the statistics that it takes as a whole.
    pub(super) fn give_statistics(&self, tensor: &PlannedTensor, job: &mut dyn Job) -> Result<()> {
        let family = self.plan.program(tensor).family();
        let Some(statistic) = family.statistic().filter(|s| s.gram && tensor.action == Action::Compute)
        else {
            return Ok(());
        };
        let read =
            |file: &usize| statistics::read_whole(&tensor.sources[*file], &self.models[*file], self.level);
        let numbers = statistic.files.iter().map(read).collect::<Result<_>>()?;
        job.take_statistics(self.level, numbers).map_err(|(at, message)| Error::BadStatistics {
            path: self.models[statistic.files[at]].path().to_path_buf(),
            tensor: tensor.name.clone(),
            message,
        })
    }

    /// A part of a tensor, as modifiers change it.
    pub(super) fn sampled<'s>(
        &'s self,
        tensor: usize,
        first: u64,
        len: u64,
        factors: &'s [f64],
    ) -> Slice<'s> {
        let modified = self.modified(&self.plan.tensors[tensor], factors);
        Slice::new(self.plan, self.models, tensor, first, len).modified(modified)
    }

    /// Shows the job evenly spaced blocks of some tensors, of whole groups, or all of them if they are small.
    pub(super) fn sample(
        &self,
        work: &mut Work,
        job: &mut dyn Job,
        tensors: &[usize],
        factors: Factors<'_>,
    ) -> Result<()> {
        let sizes: Vec<(usize, u64)> = tensors.iter().map(|t| (*t, self.plan.tensors[*t].elements)).collect();
        let population: u64 = sizes.iter().map(|(_, n)| n).sum();
        let look = Look::of_scan(job);
        let everything = population <= WHOLE_SAMPLE;
        let stride = if everything { 1 } else { population / SAMPLE_BLOCKS };
        let (mut before, mut next) = (0, 0);
        for (tensor, elements) in sizes {
            if everything {
                let slice = self.sampled(tensor, 0, elements, factors.of(tensor));
                slice.fetch(work, look)?;
                slice.for_chunks(work, Span::Touching, look, |chunk, _| job.sample(chunk));
                continue;
            }
            while next < before + elements && next < stride * SAMPLE_BLOCKS {
                let first = (next - before) / CHUNK as u64 * CHUNK as u64;
                let slice =
                    self.sampled(tensor, first, SAMPLE_BLOCK.min(elements - first), factors.of(tensor));
                slice.fetch(work, look)?;
                slice.for_chunks(work, Span::Touching, look, |chunk, _| job.sample(chunk));
                // A group longer than the stride is met once.
                next += stride.max((before + slice.end()).saturating_sub(next));
            }
            before += elements;
        }
        job.end_sample(population);
        Ok(())
    }
}
