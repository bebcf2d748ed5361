//! One tile: its bytes in all models in, its bytes of the output and its statistics out.

use std::ops::Range;

use super::digest::{self, Part};
use super::factors::{Product, Rows};
use super::job::{Chunk, Job, Look, Partial, Scratch, Ties};
use super::pass::TileId;
use super::stats::TileStats;
use super::turnstile::Turnstile;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernel::aligned::AlignedBytes;
use crate::kernel::lanes::{self, Lanes};
use crate::kernel::level::prefetch;
use crate::kernel::sieve::Sieve;
use crate::kernel::values::Values;
use crate::kernel::{CHUNK, Level, combine, convert};
use crate::plan::recipe::{Io, OnOverflow};
use crate::plan::{Action, MergePlan, PlannedTensor, Source, TILE_BYTES, TILE_ELEMENTS, marks};
use crate::shard::{Change, Checkpoint, Mapping, Shard};

/// Elements that are read and scanned together where nothing else is done with them: little enough for the second
/// cache to hold them in all models.
const PIECE: u64 = 32 * CHUNK as u64;
/// Elements between the chunk in work and the one brought into the cache.
const PREFETCH: usize = 2 * CHUNK;

/// Buffers of one worker.
pub struct Work {
    level: Level,
    values: Vec<Values>,
    written: Values,
    scratch: Scratch,
    squares: Vec<Lanes>,
    inputs: Vec<AlignedBytes>,
    products: Vec<Product>,
    bytes: Vec<u8>,
}

impl Work {
    /// Buffers for programs that read `models` models in chunks of at most `longest` elements.
    pub fn new(level: Level, models: usize, longest: usize) -> Self {
        Self {
            level,
            values: (0..models).map(|_| Values::default()).collect(),
            written: Values::default(),
            scratch: Scratch::new(models, longest),
            squares: vec![Lanes::default(); models],
            inputs: Vec::new(),
            products: (0..models).map(|_| Product::default()).collect(),
            bytes: Vec::new(),
        }
    }
}

/// A tensor with arithmetic, or a part of it, in the models that the program reads.
pub struct Slice<'a> {
    /// The plan of the tensor.
    pub tensor: &'a PlannedTensor,
    /// Its index in the plan.
    index: usize,
    models: Vec<(&'a Checkpoint, usize)>,
    /// In which place of the program's order the bytes of each place are read: models may share them.
    shared: Vec<usize>,
    io: Io,
    first: u64,
    len: u64,
    /// Number of elements that are seen together.
    group: u64,
    /// Number of elements in a chunk of whole groups.
    chunk: u64,
    /// Where the first group that reaches into the slice begins.
    from: u64,
    /// Where the last one ends.
    to: u64,
    /// Number of masks that are made of it.
    tasks: usize,
    /// Number of models whose bytes get a checksum.
    hashed: usize,
    /// Where finite values are cut off, if they are.
    limit: Option<f64>,
    modified: Modified<'a>,
    /// What a scan kept of each expert's change, where that is enough.
    kept: &'a [Sieve],
}

/// A survey that is gathered on the way.
pub type Surveying<'s> = (&'s dyn Job, &'s mut Partial);

/// What modifiers do to a slice.
#[derive(Debug, Clone, Copy)]
pub struct Modified<'a> {
    /// Factor of each expert's delta, in the program's order; empty when they stay as they are.
    pub experts: &'a [f64],
    /// Factor of what is added to the base.
    pub change: f64,
}

impl Modified<'_> {
    /// Nothing.
    pub const NOT: Self = Self { experts: &[], change: 1.0 };
}

/// Which elements of a slice are gone through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// Its own, no matter where groups begin.
    Elements,
    /// All groups that reach into it: what its output is computed from.
    Touching,
    /// The groups that begin in it, so that each group of a tensor is met once.
    Beginning,
}

impl<'a> Slice<'a> {
    /// Elements `first..first + len` of a tensor.
    pub fn new(plan: &'a MergePlan, models: &'a [Checkpoint], index: usize, first: u64, len: u64) -> Self {
        let tensor = &plan.tensors[index];
        let read = plan.read_models(tensor);
        let origin = |model: &usize| tensor.sources[*model].origin;
        let shared =
            read.iter().map(|m| read.iter().position(|o| origin(o) == origin(m)).unwrap_or(0)).collect();
        let models = read.into_iter().map(|m| (&models[m], m)).collect();
        let group = plan.group(tensor);
        let (from, to) = match tensor.action {
            Action::Compare => (first, first + len),
            Action::Compute | Action::Copy => {
                (first / group * group, ((first + len).div_ceil(group) * group).min(tensor.elements))
            }
        };
        let (tasks, hashed) = (plan.mark_rows(tensor), plan.hashed_models());
        let (chunk, modified) = (plan.chunk(tensor), Modified::NOT);
        let clamps = plan.recipe.on_overflow == OnOverflow::Clamp;
        let limit = tensor.dtype.largest().filter(|_| clamps);
        Self {
            tensor,
            index,
            models,
            shared,
            io: plan.recipe.io,
            first,
            len,
            group,
            chunk,
            from,
            to,
            tasks,
            hashed,
            limit,
            modified,
            kept: &[],
        }
    }

    /// The elements of a tile; for tensors that are compared, its bytes.
    pub fn tile(plan: &'a MergePlan, models: &'a [Checkpoint], tile: TileId) -> Self {
        let tensor = &plan.tensors[tile.tensor];
        let (unit, total) = match tensor.action {
            Action::Compare => (TILE_BYTES, tensor.bytes),
            Action::Compute | Action::Copy => (TILE_ELEMENTS, tensor.elements),
        };
        let first = tile.index * unit;
        Self::new(plan, models, tile.tensor, first, unit.min(total - first))
    }

    /// The same under modifiers.
    pub fn modified(self, modified: Modified<'a>) -> Self {
        Self { modified, ..self }
    }

    /// The same with what a scan kept of each expert's change; nothing where it was not asked to.
    pub fn sieved(self, kept: &'a [Sieve]) -> Self {
        Self { kept, ..self }
    }

    /// Bytes of an element in model `at` (in the program's order).
    fn size(&self, at: usize) -> u64 {
        match self.tensor.action {
            Action::Compare => 1,
            Action::Compute | Action::Copy => self.tensor.sources[self.models[at].1].dtype.bits() / 8,
        }
    }

    fn source(&self, at: usize) -> &'a Source {
        &self.tensor.sources[self.models[at].1]
    }

    /// The elements that are read of model `at`: all groups that reach into the slice, and whole rows where their
    /// lengths are needed.
    fn reach(&self, at: usize) -> (u64, u64) {
        match &self.source(at).change {
            Some(Change { columns, magnitude: Some(_), .. }) if self.from < self.to => {
                (self.from / columns * columns, self.to.div_ceil(*columns) * columns)
            }
            _ => (self.from, self.to),
        }
    }

    /// Their range of bytes in the shard of model `at`.
    fn range(&self, at: usize) -> (u64, u64) {
        let begin = self.source(at).begin;
        let (from, to) = self.reach(at);
        (begin + from * self.size(at), begin + to * self.size(at))
    }

    /// The places whose bytes are read, each of them once.
    fn places(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.models.len()).filter(|at| self.shared[*at] == *at)
    }

    fn shard(&self, at: usize) -> &'a Shard {
        let (checkpoint, model) = self.models[at];
        &checkpoint.shards()[self.tensor.sources[model].shard]
    }

    /// The memory map that model `at` is read through, if it is.
    fn mapping(&self, at: usize) -> Option<&'a Mapping> {
        match self.io {
            Io::Pread => None,
            Io::Mmap => self.shard(at).mapping(),
        }
    }

    /// Whether the delta of model `at` from the first is a change that is known by itself, and all that is looked at.
    fn is_known(&self, at: usize, look: Look) -> bool {
        let source = self.source(at);
        look != Look::Values
            && self.modified.experts.is_empty()
            && source.change.as_ref().is_some_and(|c| c.magnitude.is_none())
            && source.origin == self.source(0).origin
            && !self.source(0).is_changed()
    }

    /// Whether the stored numbers of the models are not looked at.
    pub fn needs_no_bytes(&self, look: Look) -> bool {
        look == Look::Deltas && (1..self.models.len()).all(|at| self.is_known(at, look))
    }

    /// Brings the bytes that are looked at to hand: into the worker's buffers, or into the memory map.
    ///
    /// # Errors
    /// [`Error::InputShrank`], [`Error::InputChanged`] or [`Error::ReadFailed`] with file and tensor.
    pub fn fetch(&self, work: &mut Work, look: Look) -> Result<()> {
        if work.inputs.len() < self.models.len() {
            work.inputs.resize(self.models.len(), AlignedBytes::default());
        }
        let places = self.places().take(if self.needs_no_bytes(look) { 0 } else { self.models.len() });
        for at in places {
            let (begin, end) = self.range(at);
            match self.mapping(at) {
                None => {
                    let buffer = work.inputs[at].of_length((end - begin) as usize);
                    self.shard(at).read_at(begin, buffer).map_err(|e| e.in_tensor(&self.tensor.name))?;
                }
                // Without the call (Linux before 5.14) pages come by faults; the guard of the mapping tells of those
                // that were not there.
                Some(mapping) => {
                    if !mapping.populate(begin, end) {
                        self.shard(at).check_length(begin).map_err(|e| e.in_tensor(&self.tensor.name))?;
                    }
                }
            }
        }
        for (at, (checkpoint, model)) in self.models.iter().enumerate() {
            if let Some(change) = &self.source(at).change {
                let (of, elements) = ((*model, self.index), self.from..self.to);
                work.products[at].prepare(work.level, checkpoint.shards(), change, of, elements)?;
            }
        }
        Ok(())
    }

    /// The bytes of model `at`, after [`fetch`](Self::fetch).
    fn bytes<'w>(&self, inputs: &'w [AlignedBytes], at: usize) -> &'w [u8]
    where
        'a: 'w,
    {
        let at = self.shared[at];
        match self.mapping(at) {
            None => &inputs[at],
            Some(mapping) => {
                let (begin, end) = self.range(at);
                mapping.bytes(begin, end)
            }
        }
    }

    /// Refuses what was read through a map whose file shrank meanwhile: it has shown zeros there.
    ///
    /// # Errors
    /// [`Error::InputShrank`] with file and tensor.
    pub fn check_intact(&self) -> Result<()> {
        if self.io == Io::Mmap {
            for at in self.places() {
                let begin = self.range(at).0;
                self.shard(at).check_intact(begin).map_err(|e| e.in_tensor(&self.tensor.name))?;
            }
        }
        Ok(())
    }

    /// Refuses files that are not what they were, after the last byte of the tensor: hours before the end, perhaps.
    ///
    /// # Errors
    /// [`Error::InputShrank`] or [`Error::InputChanged`].
    pub fn check_unchanged(&self) -> Result<()> {
        self.places().try_for_each(|at| {
            self.shard(at).check_length(self.range(at).0).map_err(|e| e.in_tensor(&self.tensor.name))
        })
    }

    /// Number of elements.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Where the last group that reaches into the slice ends.
    pub fn end(&self) -> u64 {
        self.to
    }

    /// Source bytes of all models.
    pub fn source_bytes(&self) -> u64 {
        self.places().map(|at| self.len * self.size(at)).sum()
    }

    /// Gives mapped pages back to the kernel.
    pub fn release(&self) {
        for at in self.places() {
            if let Some(mapping) = self.mapping(at) {
                let (begin, end) = self.range(at);
                mapping.release(begin, end);
            }
        }
    }

    /// Asks the kernel to read the bytes ahead.
    pub fn prefetch(&self) {
        for at in self.places() {
            let (begin, end) = self.range(at);
            self.shard(at).prefetch(begin, end);
        }
    }

    /// First element, end, and length of the chunks of a span.
    fn extent(&self, span: Span) -> (u64, u64, u64) {
        let up = |at: u64| (at.div_ceil(self.group) * self.group).min(self.tensor.elements);
        match span {
            Span::Elements => (self.first, self.first + self.len, CHUNK as u64),
            Span::Touching => (self.from, self.to, self.chunk),
            Span::Beginning => (up(self.first), up(self.first + self.len), self.chunk),
        }
    }

    /// Calls `each` with every chunk, decoded unless bytes alone are looked at.
    pub fn for_chunks(
        &self,
        work: &mut Work,
        span: Span,
        look: Look,
        mut each: impl FnMut(&mut Chunk<'_>, &mut [Lanes]),
    ) {
        let (mut at, end, step) = self.extent(span);
        while at < end {
            let len = step.min(end - at) as usize;
            let stored = match look {
                Look::Stored => Some([0, 1, 2].map(|model| self.stored(&work.inputs, model, at, len).0)),
                Look::Values | Look::Changes | Look::Deltas => {
                    self.load(work, at, len, look);
                    None
                }
            };
            let inside = |element: u64| (element.clamp(at, at + len as u64) - at) as usize;
            let mut chunk = Chunk {
                level: work.level,
                first: at,
                len,
                inner: inside(self.first)..inside(self.first + self.len),
                values: &work.values[..self.models.len()],
                stored,
                scratch: &mut work.scratch,
            };
            each(&mut chunk, &mut work.squares);
            at += len as u64;
        }
    }

    /// Decodes the elements from `first` on.
    fn load(&self, work: &mut Work, first: u64, len: usize, look: Look) {
        let (wide, no_bytes) = (self.tensor.wide, self.needs_no_bytes(look));
        for (at, values) in work.values.iter_mut().enumerate().take(self.models.len()) {
            let source = self.source(at);
            let elements = first..first + len as u64;
            if let Some(change) = source.change.as_ref().filter(|_| self.is_known(at, look)) {
                if let Some(kept) = self.kept.get(at - 1) {
                    let first = (first - self.first) as usize;
                    values.take_kept(work.level, kept, first, len, source.origin);
                    continue;
                }
                let part = work.products[at].delta(work.level, change, &elements, values.band());
                values.take_change(work.level, part, source.origin, wide);
                continue;
            }
            if no_bytes {
                values.stand_for(source.origin, len, wide);
                continue;
            }
            let dtype = source.dtype;
            let (stored, bytes) = self.stored(&work.inputs, at, first, len);
            values.load(work.level, dtype, stored, len, wide);
            match &source.change {
                None => values.mark(source.origin),
                Some(change) => {
                    let rows = || Rows { bytes, first: self.reach(at).0 / change.columns, dtype };
                    let rows = change.magnitude.is_some().then(rows);
                    let product = &mut work.products[at];
                    product.apply(work.level, change, &elements, values, source.origin, rows.as_ref());
                }
            }
        }
        if let [base, experts @ ..] = &mut work.values[..] {
            for (expert, factor) in experts.iter_mut().zip(self.modified.experts) {
                expert.scale_delta(work.level, base, *factor);
            }
        }
    }

    /// The bytes of the elements from `first` on in model `at`, and all that were read of it.
    fn stored<'w>(
        &self,
        inputs: &'w [AlignedBytes],
        at: usize,
        first: u64,
        len: usize,
    ) -> (&'w [u8], &'w [u8])
    where
        'a: 'w,
    {
        let (bytes, size) = (self.bytes(inputs, at), self.size(at) as usize);
        let begin = (first - self.reach(at).0) as usize * size;
        if self.mapping(at).is_some() {
            let soon = (begin + PREFETCH * size).min(bytes.len());
            prefetch(&bytes[soon..(soon + len * size).min(bytes.len())]);
        }
        (&bytes[begin..begin + len * size], bytes)
    }

    /// Whether all groups that reach into the tile have the same bytes in all models, in the dtype of the output.
    fn is_common(&self, inputs: &[AlignedBytes]) -> bool {
        let first = self.bytes(inputs, 0);
        (0..self.models.len()).all(|at| {
            let source = self.source(at);
            source.dtype == self.tensor.dtype
                && !source.is_changed()
                && (self.shared[at] == 0 || self.bytes(inputs, at) == first)
        })
    }

    /// Scans the tile into `partial`, and the experts' changes into sieves that hold nothing yet. Gives them back.
    pub fn sift(
        &self,
        work: &mut Work,
        job: &dyn Job,
        ordinal: u64,
        partial: &mut Partial,
        sieves: Vec<Sieve>,
    ) -> Vec<Sieve> {
        work.scratch.sieves = sieves;
        self.scan(work, job, ordinal, partial);
        std::mem::take(&mut work.scratch.sieves)
    }

    /// Scans the tile into `partial`.
    pub fn scan(&self, work: &mut Work, job: &dyn Job, ordinal: u64, partial: &mut Partial) {
        self.for_chunks(work, Span::Beginning, Look::of_scan(job), |chunk, _| job.scan(chunk, partial));
        partial.close_tile(ordinal);
    }

    /// Scans the elements into `partial`, wherever groups begin: sums over them do not depend on a method.
    pub fn survey(&self, work: &mut Work, job: &dyn Job, partial: &mut Partial) {
        self.for_chunks(work, Span::Elements, Look::of_survey(job), |chunk, _| job.scan(chunk, partial));
    }

    /// Whether a survey sees the chunks that a method sees under modifiers: no groups, nothing changed.
    pub fn is_plain(&self, modified: Modified<'_>) -> bool {
        let is_changed = |at| self.source(at).is_changed();
        self.group == 1 && modified.experts.is_empty() && !(0..self.models.len()).any(is_changed)
    }

    /// Scans the tile under modifiers and for a survey, which knows of none.
    pub fn scan_and_survey(
        self,
        work: &mut Work,
        (survey, surveyed): Surveying<'_>,
        modified: Modified<'a>,
        (job, partial): (&dyn Job, &mut Partial),
        ordinal: u64,
    ) -> Self {
        if !self.is_plain(modified) {
            self.survey(work, survey, surveyed);
            surveyed.close_tile(ordinal);
            let slice = self.modified(modified);
            slice.scan(work, job, ordinal, partial);
            return slice;
        }
        self.for_chunks(work, Span::Elements, Look::Values, |chunk, _| {
            survey.scan(chunk, surveyed);
            job.scan(chunk, partial);
        });
        surveyed.close_tile(ordinal);
        partial.close_tile(ordinal);
        self
    }

    /// Its elements.
    pub fn elements(&self) -> Range<u64> {
        self.first..self.first + self.len
    }

    /// The parts of the tile that are best read one by one. Changes of adapters are made for whole tiles, and groups are
    /// read whole.
    pub fn pieces(&self, plan: &'a MergePlan, models: &'a [Checkpoint]) -> impl Iterator<Item = Self> {
        let (first, end, index) = (self.first, self.first + self.len, self.index);
        let whole = self.group > 1 || (0..self.models.len()).any(|at| self.source(at).is_changed());
        let step = if whole { self.len.max(1) } else { PIECE };
        (first..end)
            .step_by(step as usize)
            .map(move |at| Slice::new(plan, models, index, at, step.min(end - at)))
    }

    /// Which of the other models hold the same bytes as the first.
    pub fn equal(&self, work: &Work) -> Vec<bool> {
        let bytes = self.bytes(&work.inputs, 0);
        (1..self.models.len()).map(|at| self.bytes(&work.inputs, at) == bytes).collect()
    }

    /// The bytes of the output tile and its statistics. `order` shares the ties of a selection between tiles. A survey sees
    /// a plain tile on the way.
    pub fn merge<'w>(
        &self,
        work: &'w mut Work,
        job: &dyn Job,
        order: &mut dyn FnMut(&[u64]) -> Result<Vec<u64>>,
        survey: Option<Surveying<'_>>,
    ) -> Result<(&'w [u8], TileStats)>
    where
        'a: 'w,
    {
        // Ties are counted for copied tiles too: later tiles must know of them.
        let ties = self.share_ties(work, job, order)?;
        work.scratch.begin_marks(self.tasks);
        let sources = self.source_parts(work);
        let (bytes, mut stats) = if self.tensor.action == Action::Copy
            || (job.keeps_common_values() && self.is_common(&work.inputs))
        {
            if let Some((survey, surveyed)) = survey {
                self.survey(work, survey, surveyed);
            }
            self.copy(work)
        } else {
            self.compute(work, job, ties, survey)
        };
        stats.source_parts = sources;
        Ok((bytes, stats))
    }

    /// What the tile adds to the checksums of the first models.
    pub fn source_parts(&self, work: &Work) -> Vec<Part> {
        let of = |(at, _): (usize, &(&Checkpoint, usize))| {
            let size = self.size(at);
            let begin = ((self.first - self.reach(at).0) * size) as usize;
            let bytes = &self.bytes(&work.inputs, at)[begin..begin + (self.len * size) as usize];
            digest::part(bytes, self.first * size, self.tensor.tiles() == 1)
        };
        let wanted = self.models.iter().enumerate().filter(|(_, (_, model))| *model < self.hashed);
        wanted.map(of).collect()
    }

    /// The tile's part of the ties of a selection.
    fn share_ties(
        &self,
        work: &mut Work,
        job: &dyn Job,
        order: &mut dyn FnMut(&[u64]) -> Result<Vec<u64>>,
    ) -> Result<Vec<Ties>> {
        let width = job.ordered_ties();
        if width == 0 {
            return Ok(Vec::new());
        }
        let mut counts = vec![0; width];
        let look = Look::of_scan(job);
        self.for_chunks(work, Span::Elements, look, |chunk, _| job.count_ties(chunk, &mut counts));
        Ok(job.share_ties(&order(&counts)?, &counts))
    }

    fn copy<'w>(&self, work: &'w mut Work) -> (&'w [u8], TileStats)
    where
        'a: 'w,
    {
        let (level, models) = (work.level, self.models.len());
        let mut square = Lanes::default();
        self.for_chunks(work, Span::Elements, Look::Values, |chunk, _| {
            chunk.values[0].add_squares(level, &mut square);
        });
        let square = lanes::total(&square);
        let mut stats = TileStats::copied(Some(square));
        // Without a base the norm of each model is that of the common values; with one, deltas are zero.
        let has_base = self.tensor.action == Action::Compute && models > 1;
        stats.squares = vec![if has_base { 0.0 } else { square }; models];
        stats.non_finite_inputs = vec![(0, None); models];
        if !square.is_finite() {
            let found = self.count_non_finite(work, 0);
            (stats.non_finite, stats.first_non_finite) = found;
            stats.non_finite_inputs = vec![found; models];
        }
        (stats.marks, stats.sums) = work.scratch.end_marks(self.len);
        let size = self.size(0) as usize;
        let begin = (self.first - self.from) as usize * size;
        (&self.bytes(&work.inputs, 0)[begin..begin + self.len as usize * size], stats)
    }

    fn compute<'w>(
        &self,
        work: &'w mut Work,
        job: &dyn Job,
        mut ties: Vec<Ties>,
        mut survey: Option<Surveying<'_>>,
    ) -> (&'w [u8], TileStats) {
        let (level, dtype) = (work.level, self.tensor.dtype);
        let size = (dtype.bits() / 8) as usize;
        let mut bytes = std::mem::take(&mut work.bytes);
        let mut written = std::mem::take(&mut work.written);
        bytes.resize(self.len as usize * size, 0);
        work.squares.fill(Lanes::default());
        let mut square = Lanes::default();
        let (mut done, mut clamped) = (0, 0);
        self.for_chunks(work, Span::Touching, Look::of_apply(job), |chunk, squares| {
            if let Some((survey, surveyed)) = &mut survey {
                survey.scan(chunk, surveyed);
            }
            job.apply(chunk, &mut ties, squares);
            self.scale_change(chunk);
            let len = chunk.inner.len();
            let out = &mut bytes[done * size..(done + len) * size];
            if let Some(limit) = self.limit {
                clamped += clamp(&mut chunk.scratch.out[chunk.inner.clone()], limit);
            }
            // Statistics are of what is stored, after rounding.
            convert::encode(level, dtype, &chunk.scratch.out[chunk.inner.clone()], out, &mut square);
            done += len;
        });
        let square = lanes::total(&square);
        let mut stats = TileStats::copied(Some(square));
        stats.copied = false;
        stats.clamped = clamped;
        stats.squares = work.squares[..self.models.len()].iter().map(lanes::total).collect();
        for (square, kept) in stats.squares.iter_mut().skip(1).zip(self.kept) {
            *square = kept.square();
        }
        stats.non_finite_inputs = vec![(0, None); self.models.len()];
        if !square.is_finite() {
            let mut at = 0;
            for part in bytes.chunks(CHUNK * size) {
                written.load(level, dtype, part, part.len() / size, dtype == DType::F64);
                if let (None, Some(i)) = (stats.first_non_finite, written.first_non_finite()) {
                    stats.first_non_finite = Some(self.first + at + i as u64);
                }
                stats.non_finite += written.non_finite();
                at += (part.len() / size) as u64;
            }
        }
        // Finite squares of deltas mean finite inputs, so inputs are counted only when something is odd.
        if !square.is_finite() || stats.squares.iter().any(|s| !s.is_finite()) {
            for at in 0..self.models.len() {
                stats.non_finite_inputs[at] = self.count_non_finite(work, at);
            }
        }
        if stats.non_finite > 0 {
            stats.made_here = self.count_made_here(work, &bytes);
        }
        (work.bytes, work.written) = (bytes, written);
        (stats.marks, stats.sums) = work.scratch.end_marks(self.len);
        (&work.bytes, stats)
    }

    /// Scales by depth what the method added to the base.
    fn scale_change(&self, chunk: &mut Chunk<'_>) {
        if self.modified.change != 1.0 {
            chunk.values[0].scale_change(
                chunk.level,
                self.modified.change,
                &mut chunk.scratch.out[..chunk.len],
            );
        }
    }

    /// Sums over the slice of the magnitudes of what the method adds to the base, and of the sum of the deltas:
    /// the two norms that LiNeS makes its α from.
    pub fn measure(
        &self,
        work: &mut Work,
        job: &dyn Job,
        order: &mut dyn FnMut(&[u64]) -> Result<Vec<u64>>,
    ) -> Result<[f64; 2]> {
        let mut ties = self.share_ties(work, job, order)?;
        work.scratch.begin_marks(self.tasks);
        let mut sums = [Lanes::default(); 2];
        let experts = self.models.len() - 1;
        self.for_chunks(work, Span::Touching, Look::of_apply(job), |chunk, squares| {
            job.apply(chunk, &mut ties, squares);
            let (level, len, inner) = (chunk.level, chunk.len, chunk.inner.clone());
            let (base, scratch) = (&chunk.values[0], &mut *chunk.scratch);
            base.subtract_from(level, &mut scratch.out[..len]);
            lanes::add_magnitudes(level, &scratch.out[inner.clone()], &mut sums[0]);
            scratch.total[..len].fill(0.0);
            for expert in &chunk.values[1..=experts] {
                expert.delta(level, base, &mut scratch.out[..len]);
                combine::add(level, &scratch.out[..len], &mut scratch.total[..len]);
            }
            lanes::add_magnitudes(level, &scratch.total[inner], &mut sums[1]);
        });
        Ok(sums.map(|lanes| lanes::total(&lanes)))
    }

    /// Number of non-finite values of model `at` and the tensor's index of the first.
    fn count_non_finite(&self, work: &mut Work, at: usize) -> (u64, Option<u64>) {
        let (mut count, mut first) = (0, None);
        self.for_chunks(work, Span::Elements, Look::Values, |chunk, _| {
            count += chunk.values[at].non_finite();
            if let (None, Some(i)) = (first, chunk.values[at].first_non_finite()) {
                first = Some(chunk.first + i as u64);
            }
        });
        (count, first)
    }

    /// Number of non-finite values of the output whose sources are all finite, and the tensor's index of the first:
    /// overflows of the output's dtype or of a method's arithmetic.
    fn count_made_here(&self, work: &mut Work, bytes: &[u8]) -> (u64, Option<u64>) {
        let dtype = self.tensor.dtype;
        let size = (dtype.bits() / 8) as usize;
        let (level, mut written, mut done) = (work.level, Values::default(), 0);
        let (mut count, mut first) = (0, None);
        self.for_chunks(work, Span::Elements, Look::Values, |chunk, _| {
            let part = &bytes[done * size..(done + chunk.len) * size];
            written.load(level, dtype, part, chunk.len, dtype == DType::F64);
            done += chunk.len;
            if written.first_non_finite().is_some() {
                let output = written.to_f64();
                let sources: Vec<Vec<f64>> = chunk.values.iter().map(Values::to_f64).collect();
                let made = |i: &usize| !output[*i].is_finite() && sources.iter().all(|s| s[*i].is_finite());
                count += (0..chunk.len).filter(made).count() as u64;
                first = first.or_else(|| (0..chunk.len).find(made).map(|i| chunk.first + i as u64));
            }
        });
        (count, first)
    }

    /// The bytes of a tile without arithmetic, which must be the same in all models.
    pub fn compare<'w>(&self, work: &'w Work) -> Result<(&'w [u8], TileStats)>
    where
        'a: 'w,
    {
        let bytes = self.bytes(&work.inputs, 0);
        for at in 1..self.models.len() {
            let other = self.bytes(&work.inputs, at);
            if other != bytes {
                let differs = bytes.iter().zip(other).position(|(a, b)| a != b).unwrap_or(0);
                return Err(Error::OpaqueTensorsDiffer {
                    path: self.models[at].0.path().to_path_buf(),
                    other: self.models[0].0.path().to_path_buf(),
                    tensor: self.tensor.name.clone(),
                    dtype: self.tensor.dtype.name(),
                    byte: self.first + differs as u64,
                });
            }
        }
        let mut stats = TileStats::copied(None);
        if self.tensor.dtype == DType::Bool {
            stats.odd_bools = bytes.iter().filter(|byte| **byte > 1).count() as u64;
        }
        stats.source_parts = self.source_parts(work);
        Ok((bytes, stats))
    }

    /// Fills in the tile's part of the tensor's BLAKE3.
    pub fn hash(&self, bytes: &[u8], stats: &mut TileStats) {
        if self.tensor.tiles() == 1 {
            stats.whole = Some(blake3::hash(bytes).to_hex().to_string());
        } else {
            stats.chaining = digest::tile(bytes, self.output_offset());
        }
    }

    /// The bits of all tasks, one after the other, and the bytes of one; fills in their checksums.
    pub fn take_marks(&self, stats: &mut TileStats) -> (Vec<u8>, usize) {
        let marks = std::mem::take(&mut stats.marks);
        let row = marks::row_bytes(self.len) as usize;
        let alone = self.tensor.tiles() == 1;
        let part = |task: usize| digest::part(&marks[task * row..(task + 1) * row], self.first / 8, alone);
        stats.mark_parts = (0..self.tasks).map(part).collect();
        (marks, row)
    }

    /// Offset of the tile in the output tensor.
    pub fn output_offset(&self) -> u64 {
        match self.tensor.action {
            Action::Compare => self.first,
            Action::Compute | Action::Copy => self.first * (self.tensor.dtype.bits() / 8),
        }
    }
}

/// Cuts finite values off at a largest magnitude. Gives how many.
fn clamp(values: &mut [f64], limit: f64) -> u64 {
    let mut count = 0;
    for value in values {
        if value.is_finite() && value.abs() > limit {
            *value = limit.copysign(*value);
            count += 1;
        }
    }
    count
}

impl TileStats {
    fn copied(square: Option<f64>) -> Self {
        Self {
            chaining: [0; 32],
            whole: None,
            square,
            squares: Vec::new(),
            non_finite_inputs: Vec::new(),
            non_finite: 0,
            first_non_finite: None,
            made_here: (0, None),
            clamped: 0,
            odd_bools: 0,
            copied: true,
            marks: Vec::new(),
            mark_parts: Vec::new(),
            source_parts: Vec::new(),
            sums: Vec::new(),
        }
    }
}

/// Ties of a tensor of one tile: nothing comes before it.
pub fn alone(counts: &[u64]) -> Result<Vec<u64>> {
    Ok(vec![0; counts.len()])
}

/// Ties in the order of a turnstile.
pub fn in_order<'t>(
    turnstile: &'t Turnstile,
    ordinal: u64,
    given_up: &'t dyn Fn() -> bool,
) -> impl FnMut(&[u64]) -> Result<Vec<u64>> + 't {
    move |counts| turnstile.pass(ordinal, counts, given_up)
}
