//! The passes of a merge: which tensors go through them together, and what each tile meets there.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value};

use super::conflicts::{Survey, SurveyJob};
use super::job::{Job, Look, Partial, Scope};
use super::jobs::job;
use super::memory;
use super::norms::NormsJob;
use super::observer::Observer;
use super::pass::{TileId, TileMap, Workers};
use super::resume;
use super::statistics;
use super::stats::{Statistics, TileStats};
use super::tile;
use super::tile::{Modified, Slice, Span, Work};
use super::turnstile::Turnstile;
use crate::error::{Error, Result};
use crate::kernel::select::RUN;
use crate::kernel::{CHUNK, Level};
use crate::plan::modifiers::{Alpha, MatchNorm, MatchScope, Treatment};
use crate::plan::{Action, KEPT_BYTES, MergePlan, PlannedTensor, SELECTION_BYTES, TILE_ELEMENTS, marks};
use crate::report::{Learnt, TensorReport, Totals};
use crate::shard::Checkpoint;
use crate::writer::{Stage, StagedFile};

/// Blocks in the sample that a selection starts from, at most.
const SAMPLE_BLOCKS: u64 = 128;
/// Elements in each block of the sample.
const SAMPLE_BLOCK: u64 = RUN as u64;
/// Elements up to which the sample is everything.
pub const WHOLE_SAMPLE: u64 = SAMPLE_BLOCKS * SAMPLE_BLOCK;
/// Counters of a selection within one tile.
const SMALL_SELECTION: usize = 1 << 14;
/// Tiles that are read ahead of each worker.
const READ_AHEAD: u64 = 4;

/// A tensor that makes a worker panic, in unit tests.
pub const PANICS: &str = "a tensor that makes a worker panic";

/// Tensors that go through all passes together.
enum Batch {
    /// Each tile needs nothing but itself (and, for tensors of one tile, its own scans).
    Independent(Range<usize>),
    /// One tensor of several tiles whose parameters come from scans of the whole tensor.
    Scanned(usize),
}

/// What the experts' deltas are multiplied by.
#[derive(Clone, Copy)]
enum Factors<'s> {
    /// The same in all tensors; empty when they stay as they are.
    Same(&'s [f64]),
    /// For each tensor of the plan.
    Each(&'s [Vec<f64>]),
}

impl<'s> Factors<'s> {
    const NONE: Self = Self::Same(&[]);

    /// Those of one tensor.
    fn of(self, tensor: usize) -> &'s [f64] {
        match self {
            Self::Same(factors) => factors,
            Self::Each(factors) => &factors[tensor],
        }
    }
}

/// The two sums of each tile that α is made from, by the tile's ordinal.
type Measured = Mutex<Vec<(u64, [f64; 2])>>;

/// A merge at work.
pub struct Run<'a> {
    plan: &'a MergePlan,
    models: &'a [Checkpoint],
    files: &'a [StagedFile],
    observer: &'a Observer,
    workers: Workers,
    map: TileMap,
    statistics: Statistics,
    bins: usize,
    scores: usize,
    /// Factors of the experts' deltas over the whole model; empty when they stay as they are.
    factors: Vec<f64>,
    /// LiNeS's α.
    alpha: f64,
    /// What the method learnt over the whole model.
    whole: Mutex<Map<String, Value>>,
    /// While α is being found: the sums of each tile.
    measured: Option<Measured>,
    level: Level,
    /// Norm of the statistics in each checkpoint.
    statistic_norms: Vec<f64>,
    /// The conflict report that is gathered on the way.
    survey: Option<&'a Survey>,
    /// Whose journal is told of tensors that are finished.
    stage: Option<&'a Stage>,
    /// Tensors of the plan that an earlier run finished; empty when there was none.
    finished: Vec<bool>,
}

impl<'a> Run<'a> {
    /// Starts the workers.
    pub fn new(
        plan: &'a MergePlan,
        models: &'a [Checkpoint],
        files: &'a [StagedFile],
        observer: &'a Observer,
    ) -> Result<Self> {
        let level = Level::choose();
        let read = plan.programs.iter().map(|p| p.family().models().len()).max().unwrap_or(0);
        let read = read.max(1);
        let longest = plan.tensors.iter().map(|t| plan.chunk(t)).max().unwrap_or(CHUNK as u64);
        let longest = longest.max(CHUNK as u64) as usize;
        let threads = plan.threads.clamp(1, plan.tiles().max(1) as usize);
        let counters = (read * threads) as u64 * 16;
        memory::ensure(plan.memory_bound() + threads as u64 * memory::STACK + memory::MARGIN)?;
        let workers = Workers::start(threads, || Work::new(level, read, longest))?;
        // Once more now that the allocator has taken what it takes for each thread.
        memory::ensure(plan.memory_bound() + memory::MARGIN)?;
        let run = Self {
            plan,
            models,
            files,
            observer,
            workers,
            map: TileMap::new(plan),
            statistics: Statistics::new(plan),
            factors: Vec::new(),
            alpha: 1.0,
            whole: Mutex::default(),
            measured: None,
            bins: (SELECTION_BYTES / counters).max(1024) as usize,
            scores: SELECTION_BYTES as usize / (read * size_of::<f64>()),
            level,
            statistic_norms: Vec::new(),
            survey: None,
            stage: None,
            finished: Vec::new(),
        };
        observer.begin(run.bytes_to_go_through(), plan.tensors.len() as u64);
        Ok(run)
    }

    /// Gathers the statistics of a conflict report on the way.
    pub fn with_survey(mut self, survey: Option<&'a Survey>) -> Self {
        self.survey = survey;
        if survey.is_some() {
            let scanned = self.plan.tensors.iter().filter(|t| is_scanned_whole(t));
            let more: u64 = scanned.map(|t| self.plan.source_bytes(t)).sum();
            self.observer.begin(self.bytes_to_go_through() + more, self.plan.tensors.len() as u64);
        }
        self
    }

    /// Tells the journal of a stage of every tensor that is finished.
    pub fn with_journal(mut self, stage: &'a Stage) -> Self {
        self.stage = Some(stage);
        self
    }

    /// Leaves out the tensors that these records of a journal tell of, where their bytes are in those files that are
    /// `old` and are what the records say. Gives their number.
    ///
    /// A tensor that is merged with numbers learnt over the whole model is merged again: tensors share ties in order.
    /// A conflict report needs every tensor.
    pub fn resume(&mut self, records: &[String], old: &[bool]) -> Result<u64> {
        if self.survey.is_some() {
            return Ok(0);
        }
        let wanted = |tensor: &PlannedTensor| !self.is_whole_model(tensor);
        let records = resume::read(self.plan, records, old, &wanted);
        let finished = resume::check(self.plan, self.files, records, &self.workers, self.observer)?;
        self.finished = vec![false; self.plan.tensors.len()];
        let count = finished.len() as u64;
        for (at, tensor) in finished {
            let planned = &self.plan.tensors[at];
            self.files[planned.shard].reuse(planned.bytes);
            if let Some(marks) = self.files.get(self.plan.layout.shards.len()) {
                marks.reuse(self.plan.mark_rows(planned) as u64 * marks::row_bytes(planned.elements));
            }
            self.statistics.keep(at, tensor);
            self.finished[at] = true;
        }
        self.observer.begin(self.bytes_to_go_through(), self.plan.tensors.len() as u64);
        (0..count).for_each(|_| self.observer.add_tensor());
        Ok(count)
    }

    /// Whether nothing is left to do for a tensor in this pass: it was finished by an earlier run, and is not measured.
    fn is_finished(&self, tensor: usize) -> bool {
        self.measured.is_none() && self.finished.get(tensor).copied().unwrap_or(false)
    }

    /// Gathers the statistics of a conflict report, and merges nothing. `more` bytes are to be gone through after it.
    pub fn survey(mut self, survey: &'a Survey, more: u64) -> Result<()> {
        self.survey = Some(survey);
        let tensors = &self.plan.tensors;
        let scans = |t: &PlannedTensor| if is_scanned_whole(t) { 2 } else { 1 };
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

    /// Gathers the statistics of tensors that are one tile each, or compared tile by tile.
    fn survey_tiles(&self, survey: &Survey, tensors: Range<usize>) -> Result<()> {
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
    fn survey_tensor(&self, survey: &Survey, at: usize) -> Result<()> {
        let tensor = &self.plan.tensors[at];
        let mut job = survey.job(tensor);
        while job.needs_scan() {
            self.survey_once(&mut job, at)?;
        }
        survey.put(at, tensor, job);
        Ok(())
    }

    /// The next scan of a survey over a tensor.
    fn survey_once(&self, job: &mut SurveyJob, at: usize) -> Result<()> {
        let tiles = self.map.tiles(at..at + 1);
        let scanning = &*job;
        let gathered = self.workers.run(
            &self.map,
            tiles.clone(),
            self.observer,
            || scanning.partial(),
            |work, partial, id, _| {
                self.read_ahead(id, &tiles);
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

    /// Source bytes of all passes, for progress.
    fn bytes_to_go_through(&self) -> u64 {
        let of = |(at, t): (usize, &PlannedTensor)| {
            let passes = self.plan.passes(t);
            let scanned = passes.whole_model || t.tiles() > 1;
            let once = if scanned { 1 + u64::from(passes.scans) } else { 1 };
            let modifiers = &self.plan.recipe.modifiers;
            let measured = modifiers.lines.is_some_and(|l| matches!(l.alpha, Alpha::Auto(_)));
            let norms = match modifiers.match_norm_scope {
                _ if modifiers.match_norm.is_none() || !is_merged(t) => 0,
                MatchScope::Model => 1,
                MatchScope::Tensor => u64::from(t.tiles() > 1 || passes.whole_model),
            };
            let merging = if self.is_finished(at) { 0 } else { once };
            self.plan.source_bytes(t) * (merging + once * u64::from(measured) + norms)
        };
        let checked =
            self.plan.statistics_to_check().iter().map(|s| s.source.end - s.source.begin).sum::<u64>();
        checked + self.plan.tensors.iter().enumerate().map(of).sum::<u64>()
    }

    /// Merges all tensors into the files.
    pub fn merge(mut self) -> Result<(Vec<TensorReport>, Totals, Learnt)> {
        self.statistic_norms =
            statistics::check(self.plan, self.models, &self.workers, self.level, self.observer)?;
        // Tensors without arithmetic come first: they may turn out to differ, and that should be said soon.
        self.compare_tensors()?;
        let modifiers = &self.plan.recipe.modifiers;
        if let (Some(norm), MatchScope::Model) = (modifiers.match_norm, modifiers.match_norm_scope) {
            let all = 0..self.plan.tensors.len();
            self.factors = self.factors(norm, &self.norms(all, &is_merged, "the whole model", false)?);
        }
        match modifiers.lines.map(|lines| lines.alpha) {
            None => {}
            Some(Alpha::Given(alpha)) => self.alpha = alpha,
            Some(Alpha::Auto(_)) => {
                self.measured = Some(Mutex::default());
                self.all_tensors()?;
                self.alpha = self.find_alpha()?;
            }
        }
        self.all_tensors()?;
        let learnt = Learnt {
            norm_factors: (!self.factors.is_empty()).then(|| self.factors_by_expert()),
            lines_alpha: modifiers.lines.map(|_| self.alpha),
            whole_model: self.whole.into_inner().unwrap_or_else(PoisonError::into_inner),
        };
        let (tensors, totals) = self.statistics.finish();
        Ok((tensors, totals, learnt))
    }

    /// All tensors with arithmetic, and those that are copied.
    fn all_tensors(&self) -> Result<()> {
        for program in 0..self.plan.programs.len() {
            if self.plan.tensors.iter().any(|t| t.program == program && self.is_whole_model(t)) {
                self.merge_whole_model(program)?;
            }
        }
        for batch in self.batches() {
            match batch {
                Batch::Independent(tensors) => self.merge_tiles(tensors)?,
                Batch::Scanned(tensor) => self.merge_scanned(tensor)?,
            }
        }
        Ok(())
    }

    /// LiNeS's α out of what was measured: `‖Σ δᵢ‖₁ / (T · ‖δ‖₁)`.
    fn find_alpha(&mut self) -> Result<f64> {
        let measured = self.measured.take().map(|m| m.into_inner().unwrap_or_else(PoisonError::into_inner));
        let mut tiles = measured.unwrap_or_default();
        tiles.sort_unstable_by_key(|(ordinal, _)| *ordinal);
        let sum = |at: usize| tiles.iter().map(|(_, sums)| sums[at]).sum::<f64>();
        let (merged, added) = (sum(0), sum(1));
        let alpha = added / merged / self.experts().len() as f64;
        if alpha.is_finite() {
            return Ok(alpha);
        }
        if merged == 0.0 && added == 0.0 {
            // Nothing is added to the base, so that no factor changes anything.
            return Ok(1.0);
        }
        Err(Error::NonFinite {
            tensor: "the whole model".into(),
            message:
                "the α of `lines` has no value, because the merged delta is zero or not finite; give a number"
                    .into(),
        })
    }

    /// The experts that the method reads, as indices among the models: those without weight take no part.
    fn experts(&self) -> Vec<usize> {
        self.plan.programs[Treatment::Merge as usize].family().models().split_off(1)
    }

    /// The factors that bring these norms to one, in the order of the experts that are read.
    fn factors(&self, norm: MatchNorm, norms: &[f64]) -> Vec<f64> {
        norm.factors(norms, |number| self.experts().iter().position(|model| *model == number))
    }

    /// The factors of all experts of the recipe; none for those that take no part.
    fn factors_by_expert(&self) -> Vec<Option<f64>> {
        let experts = self.experts();
        let factor = |number| experts.iter().position(|model| *model == number).map(|at| self.factors[at]);
        (1..=self.plan.recipe.models.len()).map(factor).collect()
    }

    /// Norms of the experts' deltas over those tensors of a range that are `mine`.
    fn norms(
        &self,
        tensors: Range<usize>,
        mine: &(dyn Fn(&PlannedTensor) -> bool + Sync),
        scope: &str,
        keep_pages: bool,
    ) -> Result<Vec<f64>> {
        let mut job = NormsJob::new(self.experts().len());
        self.learn(&mut job, tensors, mine, scope, keep_pages, Factors::NONE)?;
        Ok(job.into_norms())
    }

    /// Whether the norms of the experts are matched in this tensor alone.
    fn matches_alone(&self, tensor: &PlannedTensor) -> Option<MatchNorm> {
        let modifiers = &self.plan.recipe.modifiers;
        let here = modifiers.match_norm_scope == MatchScope::Tensor && is_merged(tensor);
        modifiers.match_norm.filter(|_| here)
    }

    /// What modifiers do to a tile, given the factors of the experts that hold for its tensor.
    fn modified<'s>(&self, tensor: &PlannedTensor, factors: &'s [f64]) -> Modified<'s> {
        if !is_merged(tensor) {
            return Modified::NOT;
        }
        let change = match self.plan.recipe.modifiers.lines {
            Some(lines) if self.measured.is_none() => self.alpha + lines.beta * tensor.depth,
            _ => 1.0,
        };
        Modified { experts: factors, change }
    }

    /// Whether a tensor is merged with numbers that are learnt over the whole model.
    fn is_whole_model(&self, tensor: &PlannedTensor) -> bool {
        let passes = self.plan.passes(tensor);
        passes.whole_model && passes.scans > 0
    }

    fn batches(&self) -> Vec<Batch> {
        let mut batches = Vec::new();
        let mut start = 0;
        for (at, tensor) in self.plan.tensors.iter().enumerate() {
            let learns = self.plan.passes(tensor).scans > 0 || self.matches_alone(tensor).is_some();
            let surveyed = self.survey.is_some() && is_scanned_whole(tensor);
            let scanned = surveyed || (learns && tensor.tiles() > 1);
            let scanned = scanned && !self.is_whole_model(tensor);
            if scanned {
                if start < at {
                    batches.push(Batch::Independent(start..at));
                }
                batches.push(Batch::Scanned(at));
                start = at + 1;
            }
        }
        if start < self.plan.tensors.len() {
            batches.push(Batch::Independent(start..self.plan.tensors.len()));
        }
        batches
    }

    fn compare_tensors(&self) -> Result<()> {
        let all = self.map.tiles(0..self.plan.tensors.len());
        if self.plan.tensors.iter().all(|t| t.action != Action::Compare) {
            return Ok(());
        }
        self.workers.run(
            &self.map,
            all,
            self.observer,
            || (),
            |work, (), id, _| {
                if self.plan.tensors[id.tensor].action != Action::Compare || self.is_finished(id.tensor) {
                    return Ok(());
                }
                let slice = Slice::tile(self.plan, self.models, id);
                slice.fetch(work, Look::Values)?;
                if let Some(survey) = self.survey {
                    survey.put_equal(id.tensor, &self.plan.tensors[id.tensor], &slice.equal(work));
                }
                let (bytes, stats) = slice.compare(work)?;
                self.put(&slice, id, bytes, stats)
            },
        )?;
        Ok(())
    }

    /// One pass that computes tiles on their own.
    fn merge_tiles(&self, tensors: Range<usize>) -> Result<()> {
        let tiles = self.map.tiles(tensors);
        self.workers.run(
            &self.map,
            tiles.clone(),
            self.observer,
            || (),
            |work, (), id, _| {
                let tensor = &self.plan.tensors[id.tensor];
                // Those were dealt with before.
                if tensor.action == Action::Compare
                    || self.is_whole_model(tensor)
                    || self.is_finished(id.tensor)
                {
                    return Ok(());
                }
                self.read_ahead(id, &tiles);
                let slice = Slice::tile(self.plan, self.models, id);
                slice.fetch(work, Look::Values)?;
                if let Some(survey) = self.survey {
                    survey_alone(work, survey, &slice, id);
                }
                let own = self.matches_alone(tensor).map(|norm| self.match_alone(work, &slice, id, norm));
                let own = own.transpose()?;
                let factors = own.as_deref().unwrap_or(&self.factors);
                let slice = slice.modified(self.modified(tensor, factors));
                let mut job = self.job(tensor);
                self.give_statistics(tensor, job.as_mut())?;
                if tensor.action == Action::Compute && tensor.tiles() == 1 {
                    self.learn_alone(work, &slice, id, job.as_mut(), factors)?;
                }
                self.complete(work, &slice, id, job.as_ref(), &mut tile::alone)
            },
        )?;
        Ok(())
    }

    /// The factors of the experts in a tensor of one tile.
    fn match_alone(
        &self,
        work: &mut Work,
        slice: &Slice<'_>,
        id: TileId,
        norm: MatchNorm,
    ) -> Result<Vec<f64>> {
        let mut job = NormsJob::new(self.experts().len());
        self.learn_alone(work, slice, id, &mut job, &[])?;
        Ok(self.factors(norm, &job.into_norms()))
    }

    /// All scans of a tensor of one tile, by one worker.
    fn learn_alone(
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

    /// A tensor of several tiles: scans by all workers until everything is learnt, then its tiles.
    fn merge_scanned(&self, at: usize) -> Result<()> {
        if self.is_finished(at) {
            return Ok(());
        }
        let tensor = &self.plan.tensors[at];
        let mut surveying = self.survey.filter(|s| !s.is_done(at)).map(|survey| (survey, survey.job(tensor)));
        if let Some((_, job)) = &mut surveying {
            self.survey_once(job, at)?;
        }
        let mut job = self.job(tensor);
        self.give_statistics(tensor, job.as_mut())?;
        let keep_pages = self.plan.source_bytes(tensor) <= KEPT_BYTES;
        let own = match self.matches_alone(tensor) {
            Some(norm) => {
                Some(self.factors(norm, &self.norms(at..at + 1, &|_| true, &tensor.name, keep_pages)?))
            }
            None => None,
        };
        let factors = Factors::Same(own.as_deref().unwrap_or(&self.factors));
        self.learn(job.as_mut(), at..at + 1, &|_| true, &tensor.name, keep_pages, factors)?;
        let left = surveying.as_ref().map(|(_, job)| job).filter(|job| job.needs_scan());
        let gathered = self.apply(job.as_ref(), at..at + 1, &|_| true, false, factors, left)?;
        if let Some((survey, mut job)) = surveying {
            if job.needs_scan() {
                let all = merged(&job, gathered.into_iter().flatten());
                job.learn(all, &tensor.name)?;
            }
            survey.put(at, tensor, job);
        }
        Ok(())
    }

    /// All tensors of a program whose numbers are learnt over the whole model.
    fn merge_whole_model(&self, program: usize) -> Result<()> {
        let mine = |t: &PlannedTensor| t.program == program && t.action == Action::Compute;
        let computed = || self.plan.tensors.iter().filter(|t| mine(t));
        let all = 0..self.plan.tensors.len();
        let scope = Scope {
            tensor: None,
            elements: computed().map(|t| t.elements).sum(),
            wide: computed().any(|t| t.wide),
            bins: self.bins,
            scores: self.scores,
            statistic_norms: &self.statistic_norms,
        };
        if let Some(survey) = self.survey {
            for (at, _) in self.plan.tensors.iter().enumerate().filter(|(_, t)| mine(t)) {
                self.survey_tensor(survey, at)?;
            }
        }
        let mut job = job(&self.plan.programs[program], scope);
        let own = self.factors_of_each(&mine)?;
        let factors = own.as_deref().map_or(Factors::Same(&self.factors), Factors::Each);
        self.learn(job.as_mut(), all.clone(), &mine, scope.name(), false, factors)?;
        *self.whole.lock().unwrap_or_else(PoisonError::into_inner) = job.learnt();
        self.apply(job.as_ref(), all, &mine, true, factors, None)?;
        Ok(())
    }

    /// The factors in each tensor that is `mine`, where they differ between tensors.
    fn factors_of_each(
        &self,
        mine: &(dyn Fn(&PlannedTensor) -> bool + Sync),
    ) -> Result<Option<Vec<Vec<f64>>>> {
        let tensors = || self.plan.tensors.iter().enumerate();
        if !tensors().any(|(_, t)| mine(t) && self.matches_alone(t).is_some()) {
            return Ok(None);
        }
        let of = |(at, tensor): (usize, &PlannedTensor)| match self.matches_alone(tensor) {
            Some(norm) if mine(tensor) => {
                Ok(self.factors(norm, &self.norms(at..at + 1, &|_| true, &tensor.name, false)?))
            }
            _ => Ok(Vec::new()),
        };
        tensors().map(of).collect::<Result<_>>().map(Some)
    }

    /// Scans those tensors of a range that are `mine` until the job has learnt everything.
    fn learn(
        &self,
        job: &mut dyn Job,
        tensors: Range<usize>,
        mine: &(dyn Fn(&PlannedTensor) -> bool + Sync),
        scope: &str,
        keep_pages: bool,
        factors: Factors<'_>,
    ) -> Result<()> {
        if job.wants_sample() {
            let sampled: Vec<usize> = tensors.clone().filter(|t| mine(&self.plan.tensors[*t])).collect();
            self.workers.alone(|work| self.sample(work, job, &sampled, factors))?;
        }
        let tiles = self.map.tiles(tensors);
        while job.needs_scan() {
            let scanning: &dyn Job = job;
            let turnstile = Turnstile::new(tiles.start, 0);
            let folds = scanning.folds();
            let gathered = self.workers.run(
                &self.map,
                tiles.clone(),
                self.observer,
                || scanning.partial(),
                |work, partial, id, given_up| {
                    if !mine(&self.plan.tensors[id.tensor]) || !scanning.scans_tile(id.index * TILE_ELEMENTS)
                    {
                        return if folds { turnstile.in_turn(id.ordinal, given_up, || ()) } else { Ok(()) };
                    }
                    self.read_ahead(id, &tiles);
                    let slice = Slice::tile(self.plan, self.models, id);
                    let slice =
                        slice.modified(self.modified(&self.plan.tensors[id.tensor], factors.of(id.tensor)));
                    slice.fetch(work, Look::of_scan(scanning))?;
                    slice.scan(work, scanning, id.ordinal, partial);
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
            let all = merged(job, gathered);
            job.learn(all, scope)?;
        }
        Ok(())
    }

    /// Computes the tiles of those tensors of a range that are `mine`, and gathers on the way for a survey that has a
    /// scan left.
    fn apply(
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
                if let (Some(survey), Some(partial)) = (survey, partial) {
                    slice.survey(work, survey, partial);
                    partial.close_tile(id.ordinal);
                }
                let slice =
                    slice.modified(self.modified(&self.plan.tensors[id.tensor], factors.of(id.tensor)));
                self.complete(work, &slice, id, job, &mut order)
            },
        )
    }

    /// Computes a tile and puts it into its file; while α is being found, only measures it.
    fn complete(
        &self,
        work: &mut Work,
        slice: &Slice<'_>,
        id: TileId,
        job: &dyn Job,
        order: &mut dyn FnMut(&[u64]) -> Result<Vec<u64>>,
    ) -> Result<()> {
        let Some(measured) = &self.measured else {
            let (bytes, stats) = slice.merge(work, job, order)?;
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
    fn put(&self, slice: &Slice<'_>, id: TileId, bytes: &[u8], mut stats: TileStats) -> Result<()> {
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
                stage.record(&resume::record(id.tensor, &finished));
            }
            self.statistics.keep(id.tensor, finished);
            self.observer.add_tensor();
        }
        Ok(())
    }

    /// Writes the bits that go with a tile; their file comes after those of the model.
    fn put_marks(&self, slice: &Slice<'_>, id: TileId, stats: &mut TileStats) -> Result<()> {
        let (bits, len) = slice.take_marks(stats);
        let Some(begin) = self.plan.marks.as_ref().and_then(|m| m.rows[id.tensor]) else { return Ok(()) };
        let file = &self.files[self.plan.layout.shards.len()];
        let (row, first) = (marks::row_bytes(slice.tensor.elements), id.index * TILE_ELEMENTS / 8);
        for (task, bits) in bits.chunks(len.max(1)).enumerate() {
            file.write_all_at(bits, begin + task as u64 * row + first)?;
        }
        Ok(())
    }

    fn read_ahead(&self, id: TileId, tiles: &Range<u64>) {
        let ahead = id.ordinal + READ_AHEAD * self.workers.count();
        if ahead < tiles.end {
            Slice::tile(self.plan, self.models, self.map.find(ahead)).prefetch();
        }
    }

    /// Hands a job the statistics that it takes as a whole.
    fn give_statistics(&self, tensor: &PlannedTensor, job: &mut dyn Job) -> Result<()> {
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

    /// The method at work on a tensor.
    fn job(&self, tensor: &PlannedTensor) -> Box<dyn Job + 'a> {
        // What fits in a tile is scanned twice sooner than millions of counters are cleared once.
        let small = tensor.elements <= TILE_ELEMENTS;
        let scope = Scope {
            tensor: Some(tensor),
            elements: tensor.elements,
            wide: tensor.wide,
            bins: if small { self.bins.min(SMALL_SELECTION) } else { self.bins },
            scores: self.scores,
            statistic_norms: &self.statistic_norms,
        };
        job(self.plan.program(tensor), scope)
    }

    /// A part of a tensor, as modifiers change it.
    fn sampled<'s>(&'s self, tensor: usize, first: u64, len: u64, factors: &'s [f64]) -> Slice<'s> {
        let modified = self.modified(&self.plan.tensors[tensor], factors);
        Slice::new(self.plan, self.models, tensor, first, len).modified(modified)
    }

    /// Shows the job evenly spaced blocks of some tensors, of whole groups, or all of them if they are small.
    fn sample(
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

/// Whether a tensor is merged by the recipe's method, and not left out of it.
fn is_merged(tensor: &PlannedTensor) -> bool {
    tensor.action == Action::Compute && tensor.program == Treatment::Merge as usize
}

/// Whether the statistics of a tensor take scans by all workers.
fn is_scanned_whole(tensor: &PlannedTensor) -> bool {
    tensor.action != Action::Compare && tensor.tiles() > 1
}

/// What all workers gathered.
fn merged(job: &dyn Job, gathered: impl IntoIterator<Item = Partial>) -> Partial {
    let mut merged = job.partial();
    for partial in gathered {
        merged.merge(partial);
    }
    merged
}

/// All scans of a conflict report over a tensor of one tile, by one worker.
fn survey_alone(work: &mut Work, survey: &Survey, slice: &Slice<'_>, id: TileId) {
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
