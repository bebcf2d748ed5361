//! Asking for memory before it is needed: an allocation that fails in the middle of a merge would end the process.

use crate::error::{Error, Result};

/// For what nobody counts: stacks that grow, tables of the allocator, the report.
pub const MARGIN: u64 = 16 << 20;
/// Stack of a worker, as Rust makes it.
pub const STACK: u64 = 2 << 20;

/// Asks for `bytes` and gives them back.
///
/// # Errors
/// [`Error::OutOfMemory`] when they are not to be had.
pub fn ensure(bytes: u64) -> Result<()> {
    let mut room: Vec<u8> = Vec::new();
    let refused = match usize::try_from(bytes) {
        Ok(wanted) => room.try_reserve_exact(wanted).is_err(),
        Err(_) => true,
    };
    // Looked at, or the compiler would leave out both the asking and the giving back.
    std::hint::black_box(room.as_ptr());
    if refused { Err(Error::OutOfMemory { tried: bytes }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_machine_has_is_refused() {
        ensure(1 << 20).unwrap();
        for much in [1 << 62, u64::MAX] {
            let error = ensure(much).unwrap_err();
            assert_eq!((error.code(), error.exit_code()), ("out_of_memory", 5));
            assert!(error.to_string().contains(&much.to_string()), "{error}");
        }
    }
}
