//! One pass over a run of tiles: workers of a private pool take tiles in order and stop together at
//! the first error or when asked to.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::observer::Observer;
use super::tile::Work;
use crate::error::{Error, Result};
use crate::plan::MergePlan;

/// The pool and the workers' buffers.
pub struct Workers {
    /// Goes first: it tells its threads to end, and the next field waits for them.
    pool: rayon::ThreadPool,
    _threads: Threads,
    works: Vec<Mutex<Work>>,
    wanted: usize,
}

/// The threads of a pool. A pool does not wait for their end; whoever forks after a merge, or counts threads, should
/// find none of them.
#[derive(Default)]
struct Threads(Mutex<Vec<std::thread::JoinHandle<()>>>);

impl Threads {
    fn start(&self, thread: rayon::ThreadBuilder) -> std::io::Result<()> {
        let name = format!("rlmerge-{}", thread.index());
        let started = std::thread::Builder::new().name(name).spawn(|| thread.run())?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(started);
        Ok(())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for thread in self.0.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // What they panicked of has been reported as an error.
            let _ = thread.join();
        }
    }
}

/// A tile: its ordinal in the whole output, its tensor, and its index in the tensor.
#[derive(Debug, Clone, Copy)]
pub struct TileId {
    /// Ordinal in the whole output.
    pub ordinal: u64,
    /// Index of the tensor.
    pub tensor: usize,
    /// Index in the tensor.
    pub index: u64,
}

/// Ordinals of the first tile of each tensor, and one past the last tile.
pub struct TileMap {
    starts: Vec<u64>,
}

impl TileMap {
    /// Things of so many tiles each.
    pub fn of(tiles: impl Iterator<Item = u64>) -> Self {
        let ends = tiles.scan(0, |end, n| {
            *end += n;
            Some(*end)
        });
        Self { starts: std::iter::once(0).chain(ends).collect() }
    }

    /// Ordinals of all tiles.
    pub fn all(&self) -> Range<u64> {
        0..self.starts[self.starts.len() - 1]
    }

    /// The tiles of a plan.
    pub fn new(plan: &MergePlan) -> Self {
        Self::of(plan.tensors.iter().map(crate::plan::PlannedTensor::tiles))
    }

    /// Ordinals of the tiles of a run of tensors.
    pub fn tiles(&self, tensors: Range<usize>) -> Range<u64> {
        self.starts[tensors.start]..self.starts[tensors.end]
    }

    /// The tile with this ordinal.
    pub fn find(&self, ordinal: u64) -> TileId {
        let tensor = self.starts.partition_point(|s| *s <= ordinal) - 1;
        TileId { ordinal, tensor, index: ordinal - self.starts[tensor] }
    }
}

impl Workers {
    /// Starts `threads` workers, each with its buffers; fewer where there may not be as many, since these do the same.
    pub fn start(threads: usize, work: impl Fn() -> Work) -> Result<Self> {
        let mut count = threads;
        let (pool, started) = loop {
            let started = Threads::default();
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(count)
                .spawn_handler(|thread| started.start(thread))
                .build();
            match pool {
                Ok(pool) => break (pool, started),
                Err(_) if count > 1 => count /= 2,
                Err(e) => return Err(Error::Threads { threads, message: e.to_string() }),
            }
        };
        // The allocator sets something aside for every thread that asks it for anything.
        pool.broadcast(|_| drop(std::hint::black_box(Box::new(0u64))));
        let works = (0..count).map(|_| Mutex::new(work())).collect();
        Ok(Self { works, pool, _threads: started, wanted: threads })
    }

    /// What is to be said where fewer workers were started than wanted.
    pub fn shortage(&self) -> Option<String> {
        let (count, wanted) = (self.works.len(), self.wanted);
        (count < wanted).then(|| {
            format!("only {count} of {wanted} worker threads could be started; the result is the same")
        })
    }

    /// Number of workers.
    pub fn count(&self) -> u64 {
        self.works.len() as u64
    }

    /// Does something with the buffers of one worker, on the calling thread.
    pub fn alone<R>(&self, action: impl FnOnce(&mut Work) -> R) -> R {
        action(&mut self.works[0].lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Calls `each` for every tile of the range, and gives what `begin` and `each` made of every worker.
    pub fn run<A: Send>(
        &self,
        map: &TileMap,
        tiles: Range<u64>,
        observer: &Observer,
        begin: impl Fn() -> A + Sync,
        each: impl Fn(&mut Work, &mut A, TileId, &dyn Fn() -> bool) -> Result<()> + Sync,
    ) -> Result<Vec<A>> {
        let next = AtomicU64::new(tiles.start);
        let failed = AtomicBool::new(false);
        let given_up = || observer.is_cancelled() || failed.load(Ordering::Relaxed);
        let results = self.pool.broadcast(|context| {
            let mut work = self.works[context.index()].lock().unwrap_or_else(PoisonError::into_inner);
            let mut gathered = begin();
            loop {
                if given_up() {
                    return Err(Error::Cancelled);
                }
                let ordinal = next.fetch_add(1, Ordering::Relaxed);
                if ordinal >= tiles.end {
                    return Ok(gathered);
                }
                // A panic must stop the other workers like any error: they may wait for this one's tile.
                let tile = AssertUnwindSafe(|| each(&mut work, &mut gathered, map.find(ordinal), &given_up));
                let result = catch_unwind(tile).unwrap_or_else(|panic| Err(Error::from_panic(&*panic)));
                if let Err(error) = result {
                    failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        });
        let mut gathered = Vec::with_capacity(results.len());
        let mut first_error = None;
        for result in results {
            match result {
                Ok(a) => gathered.push(a),
                // A worker that stopped because another failed reports `Cancelled`: the cause counts.
                Err(error) if first_error.is_none() || matches!(first_error, Some(Error::Cancelled)) => {
                    first_error = Some(error);
                }
                Err(_) => {}
            }
        }
        first_error.map_or(Ok(gathered), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{CHUNK, Level};

    /// Workers wait for earlier tiles of others, so a panic that stopped only its own would leave them waiting.
    #[test]
    fn a_panic_is_a_bug_and_stops_the_other_workers() {
        let workers = Workers::start(4, || Work::new(Level::choose(), 1, CHUNK)).unwrap();
        let map = TileMap::of([1000].into_iter());
        let tile = |_: &mut Work, seen: &mut u64, id: TileId, given_up: &dyn Fn() -> bool| {
            assert!(id.ordinal != 7, "oh");
            while id.ordinal > 7 && !given_up() {
                std::thread::yield_now();
            }
            *seen += 1;
            Ok(())
        };
        let error = workers.run(&map, map.all(), &Observer::default(), || 0, tile).unwrap_err();
        assert_eq!((error.code(), error.exit_code()), ("internal", 1));
        assert!(
            error.to_string().contains("a bug in rlmerge") && error.to_string().contains("oh"),
            "{error}"
        );
        let seen = workers.run(&map, 0..7, &Observer::default(), || 0, tile).unwrap();
        assert_eq!(seen.iter().sum::<u64>(), 7, "the buffers that the panic held are good for the next run");
    }
}
