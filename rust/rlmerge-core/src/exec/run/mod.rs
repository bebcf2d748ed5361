//! The passes of a merge: which tensors go through them together, and what each tile meets there.

pub(super) mod learning;
mod matching;
mod output;
mod survey;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value};

use learning::{Material, merged};
use matching::Factors;
use survey::survey_alone;

use super::conflicts::Survey;
use super::job::{Job, Look, Scope};
use super::jobs::job;
use super::memory;
use super::observer::Observer;
use super::pass::{TileId, TileMap, Workers};
use super::resume;
use super::sieved::Sieved;
use super::statistics;
use super::stats::Statistics;
use super::tile;
use super::tile::{Slice, Work};
use crate::error::Result;
use crate::kernel::{CHUNK, Level};
use crate::plan::modifiers::{Alpha, MatchScope, Treatment};
use crate::plan::{Action, KEPT_BYTES, MergePlan, PlannedTensor, SELECTION_BYTES, TILE_ELEMENTS, marks};
use crate::report::{Learnt, TensorReport, Totals};
use crate::shard::Checkpoint;
use crate::writer::{Stage, StagedFile};

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
    /// What scans keep of changes.
    sieved: Sieved,
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
            sieved: Sieved::default(),
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

    /// What is to be said where fewer workers were started than wanted.
    pub fn shortage(&self) -> Option<String> {
        self.workers.shortage()
    }

    /// Gathers the statistics of a conflict report on the way.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::error::Error::OutOfMemory) where there is no room for its counters.
    pub fn with_survey(mut self, survey: Option<&'a Survey>) -> Result<Self> {
        self.survey = survey;
        if let Some(survey) = survey {
            self.ensure_room(survey)?;
            // The first scan of a merge is one of the report too.
            let shared = |t: &PlannedTensor| self.plan.passes(t).scans > 0 && !self.is_whole_model(t);
            let more = |t: &PlannedTensor| match self.is_whole_model(t) {
                true => survey.scans(t),
                false => survey.scans(t) - 1,
            };
            let scanned = self.plan.tensors.iter().filter(|t| is_scanned_whole(t) && !shared(t));
            let more: u64 = scanned.map(|t| more(t) * self.plan.source_bytes(t)).sum();
            self.observer.begin(self.bytes_to_go_through() + more, self.plan.tensors.len() as u64);
        }
        Ok(self)
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
            if let Some(stage) = self.stage {
                stage.count(planned.bytes);
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
                self.complete(work, &slice, id, job.as_ref(), &mut tile::alone, None)
            },
        )?;
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
            self.survey_sample(job, at)?;
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
        let material =
            Material { tensors: at..at + 1, mine: &|_| true, scope: &tensor.name, keep_pages, factors };
        self.learn(job.as_mut(), material, surveying.as_mut().map(|(_, job)| job))?;
        if let Some((_, job)) = surveying.as_mut().filter(|(_, job)| !job.is_one_scan()) {
            self.survey_once(job, at)?;
        }
        let left = surveying.as_ref().map(|(_, job)| job).filter(|job| job.needs_scan());
        let gathered = self.apply(job.as_ref(), at..at + 1, &|_| true, false, factors, left)?;
        if let Some((survey, mut job)) = surveying {
            if job.needs_scan() {
                let all = merged(&job, gathered.into_iter().flatten());
                job.learn(all, &tensor.name)?;
            }
            // Where a guess was wrong.
            while job.needs_scan() {
                self.survey_once(&mut job, at)?;
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
            level: self.level,
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
        let material =
            Material { tensors: all.clone(), mine: &mine, scope: scope.name(), keep_pages: false, factors };
        self.learn(job.as_mut(), material, None)?;
        *self.whole.lock().unwrap_or_else(PoisonError::into_inner) = job.learnt();
        self.apply(job.as_ref(), all, &mine, true, factors, None)?;
        Ok(())
    }

    fn read_ahead(&self, id: TileId, tiles: &Range<u64>) {
        let ahead = id.ordinal + READ_AHEAD * self.workers.count();
        if ahead < tiles.end {
            Slice::tile(self.plan, self.models, self.map.find(ahead)).prefetch();
        }
    }

    /// The method at work on a tensor.
    fn job(&self, tensor: &PlannedTensor) -> Box<dyn Job + 'a> {
        // What fits in a tile is scanned twice sooner than millions of counters are cleared once.
        let small = tensor.elements <= TILE_ELEMENTS;
        let scope = Scope {
            level: self.level,
            tensor: Some(tensor),
            elements: tensor.elements,
            wide: tensor.wide,
            bins: if small { self.bins.min(SMALL_SELECTION) } else { self.bins },
            scores: self.scores,
            statistic_norms: &self.statistic_norms,
        };
        job(self.plan.program(tensor), scope)
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
