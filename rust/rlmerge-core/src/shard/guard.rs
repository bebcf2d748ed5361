//! Reading a mapped file that somebody truncates: zeros and a flag instead of death by SIGBUS.
//!
//! The kernel raises SIGBUS in the thread that touches a page behind the end of a file. The handler here looks the
//! address up in a table of guarded mappings, puts one page of zeros in its place and marks the mapping; the reader
//! goes on, finds the mark before it uses what it computed, and refuses the file. Any other SIGBUS belongs to
//! somebody else and goes to the handler that was there before (Python's faulthandler, Rust's own).
#![allow(
    unsafe_code,
    reason = "a signal handler and the page that it maps are unsafe by nature; nothing else here is"
)]

use std::ffi::{c_int, c_void};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Mappings that can be guarded at once. A handler must not allocate, so the table has a fixed length; whoever finds
/// it full reads the file by other means.
const SLOTS: usize = 4096;

/// One guarded mapping; free while `start` is 0.
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    lost: AtomicBool,
}

static TABLE: [Slot; SLOTS] =
    [const { Slot { start: AtomicUsize::new(0), end: AtomicUsize::new(0), lost: AtomicBool::new(false) } };
        SLOTS];
/// Held by whoever takes a slot or installs the handler; the handler itself only reads atomics.
static CHANGES: Mutex<()> = Mutex::new(());
/// Size of a page, learnt outside of the handler.
static PAGE: AtomicUsize = AtomicUsize::new(0);
/// The action that ours replaced. Never freed: a handler on another thread may be reading it.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(null_mut());
/// How many calls of the previous handler are under way. It may raise the signal once more, or call us back.
static CHAINED: AtomicUsize = AtomicUsize::new(0);
/// Calls within calls that only two handlers which take each other for the previous one make.
const CIRCLE: usize = 64;

/// A place in the table, for as long as the mapping lives.
#[derive(Debug)]
pub(super) struct Guard {
    slot: usize,
}

impl Guard {
    /// Guards the mapping of `len` bytes at `start`; it must outlive the guard. `None` when the table is full or the
    /// system refuses the handler.
    pub(super) fn new(start: NonNull<u8>, len: usize) -> Option<Self> {
        let _changing = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
        install()?;
        let slot = TABLE.iter().position(|slot| slot.start.load(Ordering::Relaxed) == 0)?;
        let page = PAGE.load(Ordering::Relaxed);
        let start = start.as_ptr().addr();
        // The kernel maps whole pages; the rest of the last one reads as zeros and is no loss.
        let end = start.checked_add(len)?.checked_next_multiple_of(page)?;
        let row = &TABLE[slot];
        row.lost.store(false, Ordering::Relaxed);
        row.end.store(end, Ordering::Relaxed);
        // Last: from here on the handler sees the row, and the row whole.
        row.start.store(start, Ordering::Release);
        Some(Self { slot })
    }

    /// Whether a page of the mapping was not there when it was read.
    pub(super) fn lost(&self) -> bool {
        TABLE[self.slot].lost.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        TABLE[self.slot].start.store(0, Ordering::Release);
    }
}

/// Makes ours the handler of SIGBUS, unless it is. Asked at every mapping, since others may have come between.
fn install() -> Option<()> {
    // SAFETY: asks for a constant of the system.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    PAGE.store(usize::try_from(page).ok().filter(|page| page.is_power_of_two())?, Ordering::Relaxed);
    // SAFETY: all zeros are a valid `sigaction`: no flags, an empty mask, the default action.
    let (mut ours, mut theirs): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
    // SAFETY: with a null pointer for the new action it only writes the present one into `theirs`.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut theirs) } != 0 {
        return None;
    }
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_sigbus;
    if theirs.sa_sigaction == handler as usize {
        return Some(());
    }
    PREVIOUS.store(Box::into_raw(Box::new(theirs)), Ordering::Release);
    ours.sa_sigaction = handler as usize;
    // Not deferred: a handler before ours that raises the signal again must be answered at once (see `chain`).
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    // SAFETY: `ours` is whole, and its handler does only what is allowed in one: atomics, mmap, sigaction, raise.
    let done = unsafe { libc::sigaction(libc::SIGBUS, &raw const ours, null_mut()) };
    (done == 0).then_some(())
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel calls with a valid `siginfo_t`, and errno is this thread's own. What is interrupted may be
    // about to read errno, so it is put back.
    let (errno, sent, address) = unsafe {
        let at = libc::__errno_location();
        // A signal that a process sent has no address; those of the kernel have a code above 0.
        let sent = (*info).si_code <= 0;
        (at, sent, if sent { 0 } else { (*info).si_addr().addr() })
    };
    // SAFETY: as above.
    let before = unsafe { *errno };
    if !(address != 0 && replaced(address)) {
        chain(signal, info, context, sent);
    }
    // SAFETY: as above.
    unsafe { *errno = before };
}

/// Puts a page of zeros where `address` is, if a guarded mapping is there, and marks the mapping.
fn replaced(address: usize) -> bool {
    let inside = |slot: &&Slot| {
        let start = slot.start.load(Ordering::Acquire);
        start != 0 && start <= address && address < slot.end.load(Ordering::Relaxed)
    };
    let Some(slot) = TABLE.iter().find(inside) else { return false };
    let page = PAGE.load(Ordering::Relaxed);
    let begin = std::ptr::without_provenance_mut(address & !(page - 1));
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: the page lies in a read-only mapping of ours that cannot go away now: the thread that was interrupted
    // is reading it. What is replaced is a page that holds nothing any more.
    let mapped = unsafe { libc::mmap(begin, page, libc::PROT_READ, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return false;
    }
    slot.lost.store(true, Ordering::Release);
    true
}

/// Hands a signal that is not ours to whoever handled it before.
fn chain(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void, sent: bool) {
    // SAFETY: null, or leaked by `install`.
    let previous = unsafe { PREVIOUS.load(Ordering::Acquire).as_ref() };
    let handler = previous.map_or(libc::SIG_DFL, |p| p.sa_sigaction);
    // A handler that raises the signal again, as faulthandler does, has done its part the first time.
    let depth = CHAINED.load(Ordering::Acquire);
    let again = sent && depth > 0 || depth >= CIRCLE;
    if handler == libc::SIG_IGN && sent {
        return;
    }
    if again || handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        // SAFETY: plain calls; the default action ends the process as it would have without us. A fault comes again
        // when its instruction is repeated; a signal that was sent has to be sent again.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            if sent {
                libc::raise(signal);
            }
        }
        return;
    }
    CHAINED.fetch_add(1, Ordering::AcqRel);
    let with_info = previous.is_some_and(|p| p.sa_flags & libc::SA_SIGINFO != 0);
    // SAFETY: `handler` is neither of the two special values, so it is the address of a function, of the form that
    // the flag says.
    unsafe {
        if with_info {
            let call: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = std::mem::transmute(handler);
            call(signal, info, context);
        } else {
            let call: extern "C" fn(c_int) = std::mem::transmute(handler);
            call(signal);
        }
    }
    CHAINED.fetch_sub(1, Ordering::AcqRel);
}
