//! One match from core errors to Python exceptions; the classes live in `rlmerge.errors`.

use pyo3::prelude::*;
use rlmerge_core::error::{CODES, Error};

/// The Python exception of a core error.
pub fn to_python(py: Python<'_>, error: &Error) -> PyErr {
    let os_error = match error {
        Error::Io { source, .. } | Error::ReadFailed { source, .. } | Error::NotDurable { source, .. } => {
            source.raw_os_error()
        }
        _ => None,
    };
    let kind = CODES.iter().find(|(code, ..)| *code == error.code()).map_or("bug", |(_, _, kind)| kind);
    let made = py.import("rlmerge.errors").and_then(|module| {
        module.call_method1(
            "from_core",
            (
                error.code(),
                error.exit_code(),
                kind,
                error.to_string(),
                error.path().map(|p| p.to_string_lossy().into_owned()),
                error.tensor(),
                error.hint(),
                os_error,
            ),
        )
    });
    match made {
        Ok(exception) => PyErr::from_value(exception),
        Err(failure) => failure,
    }
}
