//! The one door for long calls: the job runs on a thread of its own without the GIL, while the calling
//! thread delivers progress and looks for signals ten times a second.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use rlmerge_core::error::{Error, Result, keep_panics_short};
use rlmerge_core::exec::Observer;
use rlmerge_core::kernel::PlainFloats;

use crate::descriptors;
use crate::error::to_python;

/// What the first call does for the process.
static FIRST: Once = Once::new();
/// How long the calling thread sleeps between looks.
const TICK: Duration = Duration::from_millis(100);

/// Runs `job`; on a signal or when the callback raises, cancels it, waits for it, and raises that.
///
/// # Errors
/// The job's error, the callback's exception, or what the signal handler raised.
pub fn enter<T: Send>(
    py: Python<'_>,
    observer: &Observer,
    progress: Option<&Bound<'_, PyAny>>,
    job: impl FnOnce() -> Result<T> + Send,
) -> PyResult<T> {
    FIRST.call_once(|| {
        descriptors::fill();
        keep_panics_short();
    });
    let (sender, receiver) = channel();
    let guarded =
        move || catch_unwind(AssertUnwindSafe(job)).unwrap_or_else(|panic| Err(Error::from_panic(&*panic)));
    let (result, raised) = std::thread::scope(|scope| {
        let work = move || {
            // What the interpreter or another library has asked of floats is theirs.
            let _plain = PlainFloats::ask();
            // The receiver lives until this scope ends.
            let _ = sender.send(guarded());
        };
        let thread = match std::thread::Builder::new().name("rlmerge".into()).spawn_scoped(scope, work) {
            Ok(thread) => thread,
            Err(e) => return (Err(Error::Threads { threads: 1, message: e.to_string() }), None),
        };
        let receiver = std::sync::Mutex::new(receiver);
        let mut raised = None;
        loop {
            let waited = py.detach(|| {
                receiver.lock().map_or(Err(RecvTimeoutError::Disconnected), |r| r.recv_timeout(TICK))
            });
            let finished = match waited {
                Ok(result) => Some(result),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => {
                    Some(Err(Error::Internal { message: "the worker thread vanished".into() }))
                }
            };
            if raised.is_some() {
                // It is being stopped already; but a second signal may have a handler that ends the process at once.
                let _ = py.check_signals();
            } else {
                let looked = py.check_signals().and_then(|()| deliver(py, observer, progress));
                if let Err(exception) = looked {
                    observer.cancel();
                    raised = Some(exception);
                }
            }
            if let Some(result) = finished {
                // A scope waits for the job and not for its thread, which whoever forks should not find.
                let _ = py.detach(|| thread.join());
                return (result, raised);
            }
        }
    });
    let exception = match (result, raised) {
        // The job had finished before the signal could stop it, or was stopped by it: either way it is raised.
        (_, Some(exception)) => exception,
        (Ok(value), None) => return Ok(value),
        (Err(error), None) => to_python(py, &error),
    };
    if let Some(stage) = observer.kept() {
        let path = stage.to_string_lossy().into_owned();
        py.import("rlmerge.errors")?.call_method1("keep_partial", (exception.value(py), path))?;
    }
    Err(exception)
}

fn deliver(py: Python<'_>, observer: &Observer, progress: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
    let Some(callback) = progress else { return Ok(()) };
    let now = observer.progress();
    let event = PyDict::new(py);
    event.set_item("bytes_done", now.bytes_done)?;
    event.set_item("bytes_total", now.bytes_total)?;
    event.set_item("tensors_done", now.tensors_done)?;
    event.set_item("tensors_total", now.tensors_total)?;
    callback.call1((event,)).map(|_| ())
}
