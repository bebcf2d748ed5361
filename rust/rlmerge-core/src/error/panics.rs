//! Panics are bugs of ours: one line of an error tells of them, with the place in the source, and no more.

use std::cell::RefCell;
use std::panic::{set_hook, take_hook};

thread_local! {
    /// Where this thread panicked last.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// How the names of the engine's threads begin.
const THREAD: &str = "rlmerge";

/// From now on a panic in a thread of the engine prints nothing by itself: whoever catches it makes an error of it, which
/// says where it was. With `RLMERGE_DEBUG` set it prints what it always does.
pub fn keep_panics_short() {
    let before = take_hook();
    set_hook(Box::new(move |panic| {
        let place = panic.location().map(ToString::to_string);
        // A thread that is ending has no place to keep it any more.
        let _ = PLACE.try_with(|kept| kept.replace(place));
        let ours = std::thread::current().name().is_some_and(|name| name.starts_with(THREAD));
        if !ours || std::env::var_os("RLMERGE_DEBUG").is_some_and(|v| !v.is_empty() && v != "0") {
            before(panic);
        }
    }));
}

/// Where this thread panicked last, once.
pub(super) fn take_place() -> Option<String> {
    PLACE.try_with(RefCell::take).ok().flatten()
}

#[cfg(test)]
mod tests {
    use crate::error::Error;

    #[test]
    fn a_caught_panic_says_where_it_was() {
        super::keep_panics_short();
        let caught = std::panic::catch_unwind(|| panic!("too bad\u{1b}[31m")).unwrap_err();
        let text = Error::from_panic(&*caught).to_string();
        assert!(text.starts_with("internal error (a bug in rlmerge): too bad\\u{1b}[31m ("), "{text}");
        assert!(text.contains("panics.rs:"), "{text}");
        assert!(!Error::from_panic(&*caught).to_string().contains("panics.rs"), "a place is told once");
    }
}
