//! One tile: its bytes in all models in, its bytes of the output and its statistics out.

use super::digest;
use super::job::{Chunk, Job, Partial, Scratch, Ties};
use super::pass::TileId;
use super::stats::TileStats;
use super::turnstile::Turnstile;
use crate::error::{Error, Result};
use crate::kernel::lanes::{self, Lanes};
use crate::kernel::level::prefetch;
use crate::kernel::values::Values;
use crate::kernel::{CHUNK, Level, combine, convert};
use crate::plan::recipe::Io;
use crate::plan::{Action, MergePlan, PlannedTensor, TILE_BYTES, TILE_ELEMENTS};
use crate::shard::{Checkpoint, Shard};

/// Elements between the chunk in work and the one brought into the cache.
const PREFETCH: usize = 2 * CHUNK;

/// Buffers of one worker.
pub struct Work {
    level: Level,
    values: Vec<Values>,
    written: Values,
    scratch: Scratch,
    squares: Vec<Lanes>,
    inputs: Vec<Vec<u8>>,
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
            bytes: Vec::new(),
        }
    }
}

/// A tensor with arithmetic, or a part of it, in the models that the program reads.
pub struct Slice<'a> {
    /// The plan of the tensor.
    pub tensor: &'a PlannedTensor,
    models: Vec<(&'a Checkpoint, usize)>,
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
    modified: Modified<'a>,
}

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
    pub fn new(plan: &'a MergePlan, models: &'a [Checkpoint], tensor: usize, first: u64, len: u64) -> Self {
        let tensor = &plan.tensors[tensor];
        let read = plan.read_models(tensor);
        let models = read.into_iter().map(|m| (&models[m], m)).collect();
        let group = plan.group(tensor);
        let (from, to) = match tensor.action {
            Action::Compare => (first, first + len),
            Action::Compute | Action::Copy => {
                (first / group * group, ((first + len).div_ceil(group) * group).min(tensor.elements))
            }
        };
        let chunk = plan.chunk(tensor);
        let modified = Modified::NOT;
        Self { tensor, models, io: plan.recipe.io, first, len, group, chunk, from, to, modified }
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

    /// Bytes of an element in model `at` (in the program's order).
    fn size(&self, at: usize) -> u64 {
        match self.tensor.action {
            Action::Compare => 1,
            Action::Compute | Action::Copy => self.tensor.sources[self.models[at].1].dtype.bits() / 8,
        }
    }

    /// Range of bytes in the shard of model `at`, of all groups that reach into the slice.
    fn range(&self, at: usize) -> (u64, u64) {
        let begin = self.tensor.sources[self.models[at].1].begin;
        (begin + self.from * self.size(at), begin + self.to * self.size(at))
    }

    fn shard(&self, at: usize) -> &'a Shard {
        let (checkpoint, model) = self.models[at];
        &checkpoint.shards()[self.tensor.sources[model].shard]
    }

    /// Brings the bytes of all models to hand: into the worker's buffers, or into the memory map.
    ///
    /// # Errors
    /// [`Error::InputChanged`] or [`Error::Io`] with the file.
    pub fn fetch(&self, work: &mut Work) -> Result<()> {
        if work.inputs.len() < self.models.len() {
            work.inputs.resize(self.models.len(), Vec::new());
        }
        for (at, buffer) in work.inputs.iter_mut().enumerate().take(self.models.len()) {
            let (begin, end) = self.range(at);
            match self.io {
                Io::Pread => {
                    buffer.resize((end - begin) as usize, 0);
                    self.shard(at).read_at(begin, buffer)?;
                }
                // Without the call (Linux before 5.14) pages come by faults.
                Io::Mmap if !self.shard(at).populate(begin, end) => self.shard(at).verify_unchanged()?,
                Io::Mmap => {}
            }
        }
        Ok(())
    }

    /// The bytes of model `at`, after [`fetch`](Self::fetch).
    fn bytes<'w>(&self, inputs: &'w [Vec<u8>], at: usize) -> &'w [u8]
    where
        'a: 'w,
    {
        match self.io {
            Io::Pread => &inputs[at],
            Io::Mmap => {
                let (begin, end) = self.range(at);
                self.shard(at).bytes(begin, end)
            }
        }
    }

    /// Source bytes of all models.
    pub fn source_bytes(&self) -> u64 {
        (0..self.models.len()).map(|at| self.len * self.size(at)).sum()
    }

    /// Gives mapped pages back to the kernel.
    pub fn release(&self) {
        if self.io == Io::Mmap {
            for at in 0..self.models.len() {
                let (begin, end) = self.range(at);
                self.shard(at).release(begin, end);
            }
        }
    }

    /// Asks the kernel to read the bytes ahead.
    pub fn prefetch(&self) {
        for at in 0..self.models.len() {
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

    /// Calls `each` with every chunk decoded.
    pub fn for_chunks(
        &self,
        work: &mut Work,
        span: Span,
        mut each: impl FnMut(&mut Chunk<'_>, &mut [Lanes]),
    ) {
        let (mut at, end, step) = self.extent(span);
        while at < end {
            let len = step.min(end - at) as usize;
            self.load(work, at, len);
            let inside = |element: u64| (element.clamp(at, at + len as u64) - at) as usize;
            let mut chunk = Chunk {
                level: work.level,
                first: at,
                len,
                inner: inside(self.first)..inside(self.first + self.len),
                values: &work.values[..self.models.len()],
                scratch: &mut work.scratch,
            };
            each(&mut chunk, &mut work.squares);
            at += len as u64;
        }
    }

    /// Decodes the elements from `first` on.
    fn load(&self, work: &mut Work, first: u64, len: usize) {
        for (at, values) in work.values.iter_mut().enumerate().take(self.models.len()) {
            let dtype = self.tensor.sources[self.models[at].1].dtype;
            let size = self.size(at) as usize;
            let bytes = self.bytes(&work.inputs, at);
            let begin = (first - self.from) as usize * size;
            if self.io == Io::Mmap {
                let soon = (begin + PREFETCH * size).min(bytes.len());
                prefetch(&bytes[soon..(soon + len * size).min(bytes.len())]);
            }
            values.load(work.level, dtype, &bytes[begin..begin + len * size], len, self.tensor.wide);
        }
        if let [base, experts @ ..] = &mut work.values[..] {
            for (expert, factor) in experts.iter_mut().zip(self.modified.experts) {
                expert.scale_delta(work.level, base, *factor);
            }
        }
    }

    /// Whether all groups that reach into the tile have the same bytes in all models, in the dtype of the output.
    fn is_common(&self, inputs: &[Vec<u8>]) -> bool {
        let first = self.bytes(inputs, 0);
        self.models.iter().enumerate().all(|(at, (_, model))| {
            self.tensor.sources[*model].dtype == self.tensor.dtype
                && (at == 0 || self.bytes(inputs, at) == first)
        })
    }

    /// Scans the tile into `partial`.
    pub fn scan(&self, work: &mut Work, job: &dyn Job, ordinal: u64, partial: &mut Partial) {
        self.for_chunks(work, Span::Beginning, |chunk, _| job.scan(chunk, partial));
        partial.close_tile(ordinal);
    }

    /// The bytes of the output tile and its statistics. `order` shares the ties of a selection between tiles.
    pub fn merge<'w>(
        &self,
        work: &'w mut Work,
        job: &dyn Job,
        order: &mut dyn FnMut(&[u64]) -> Result<Vec<u64>>,
    ) -> Result<(&'w [u8], TileStats)>
    where
        'a: 'w,
    {
        // Ties are counted for copied tiles too: later tiles must know of them.
        let ties = self.share_ties(work, job, order)?;
        if self.tensor.action == Action::Copy || (job.keeps_common_values() && self.is_common(&work.inputs)) {
            return Ok(self.copy(work));
        }
        Ok(self.compute(work, job, ties))
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
        self.for_chunks(work, Span::Elements, |chunk, _| job.count_ties(chunk, &mut counts));
        Ok(job.share_ties(&order(&counts)?, &counts))
    }

    fn copy<'w>(&self, work: &'w mut Work) -> (&'w [u8], TileStats)
    where
        'a: 'w,
    {
        let (level, models) = (work.level, self.models.len());
        let mut square = Lanes::default();
        self.for_chunks(work, Span::Elements, |chunk, _| chunk.values[0].add_squares(level, &mut square));
        let square = lanes::total(&square);
        let mut stats = TileStats::copied(Some(square));
        // Without a base the norm of each model is that of the common values; with one, deltas are zero.
        let has_base = self.tensor.action == Action::Compute && models > 1;
        stats.squares = vec![if has_base { 0.0 } else { square }; models];
        stats.non_finite_inputs = vec![0; models];
        if !square.is_finite() {
            let (count, first) = self.count_non_finite(work, 0);
            (stats.non_finite, stats.first_non_finite) = (count, first);
            stats.non_finite_inputs = vec![count; models];
        }
        let size = self.size(0) as usize;
        let begin = (self.first - self.from) as usize * size;
        (&self.bytes(&work.inputs, 0)[begin..begin + self.len as usize * size], stats)
    }

    fn compute<'w>(&self, work: &'w mut Work, job: &dyn Job, mut ties: Vec<Ties>) -> (&'w [u8], TileStats) {
        let (level, dtype) = (work.level, self.tensor.dtype);
        let size = (dtype.bits() / 8) as usize;
        let mut bytes = std::mem::take(&mut work.bytes);
        let mut written = std::mem::take(&mut work.written);
        bytes.resize(self.len as usize * size, 0);
        work.squares.fill(Lanes::default());
        let mut square = Lanes::default();
        let mut done = 0;
        self.for_chunks(work, Span::Touching, |chunk, squares| {
            job.apply(chunk, &mut ties, squares);
            self.scale_change(chunk);
            let len = chunk.inner.len();
            let out = &mut bytes[done * size..(done + len) * size];
            // Statistics are of what is stored, after rounding.
            convert::encode(level, dtype, &chunk.scratch.out[chunk.inner.clone()], out, &mut square);
            done += len;
        });
        let square = lanes::total(&square);
        let mut stats = TileStats::copied(Some(square));
        stats.copied = false;
        stats.squares = work.squares[..self.models.len()].iter().map(lanes::total).collect();
        stats.non_finite_inputs = vec![0; self.models.len()];
        if !square.is_finite() {
            let mut at = 0;
            for part in bytes.chunks(CHUNK * size) {
                written.load(level, dtype, part, part.len() / size, dtype == crate::dtype::DType::F64);
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
                stats.non_finite_inputs[at] = self.count_non_finite(work, at).0;
            }
        }
        (work.bytes, work.written) = (bytes, written);
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
        let mut sums = [Lanes::default(); 2];
        let experts = self.models.len() - 1;
        self.for_chunks(work, Span::Touching, |chunk, squares| {
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
        self.for_chunks(work, Span::Elements, |chunk, _| {
            count += chunk.values[at].non_finite();
            if let (None, Some(i)) = (first, chunk.values[at].first_non_finite()) {
                first = Some(chunk.first + i as u64);
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
        Ok((bytes, TileStats::copied(None)))
    }

    /// Fills in the tile's part of the tensor's BLAKE3.
    pub fn hash(&self, bytes: &[u8], stats: &mut TileStats) {
        if self.tensor.tiles() == 1 {
            stats.whole = Some(blake3::hash(bytes).to_hex().to_string());
        } else {
            stats.chaining = digest::tile(bytes, self.output_offset());
        }
    }

    /// Offset of the tile in the output tensor.
    pub fn output_offset(&self) -> u64 {
        match self.tensor.action {
            Action::Compare => self.first,
            Action::Compute | Action::Copy => self.first * (self.tensor.dtype.bits() / 8),
        }
    }
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
            copied: true,
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
