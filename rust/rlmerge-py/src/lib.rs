//! Python bindings of `rlmerge-core`: parse, call, hand back JSON. No arithmetic and no file access here.

mod api;
mod descriptors;
mod enter;
mod error;

use pyo3::prelude::*;

/// The compiled core of rlmerge. Use the functions of the package `rlmerge` instead.
#[pymodule]
mod _core {
    #[pymodule_export]
    use crate::api::{
        Plan, build_info, clean, conflicts, diagnostics, errors, inspect, methods, prepare, prepare_expand,
        verify, version,
    };
}
