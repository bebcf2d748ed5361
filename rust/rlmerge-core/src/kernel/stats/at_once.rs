//! Kernels that do at once what others do step by step, for the levels that have them.

use super::super::lanes::Lanes;
use super::super::level::by_level;
#[cfg(target_arch = "x86_64")]
use super::x86;
use super::{Changes, Found, Thresholds};

by_level! {
    pub fn find_changes(
        expert: &[f32], base: &[f32], exact: bool, thresholds: Thresholds<f32>, out: &mut [f32], lanes: &mut [Lanes],
    ) -> Option<Changes> = no_changes, no_changes, x86::find_changes;
}

by_level! {
    pub fn add_pair(a: &[f32], b: &[f32], epsilon: f32, lanes: &mut [Lanes]) -> Option<(u64, u64)> =
        no_pair, no_pair, x86::add_pair;
}

by_level! {
    pub fn find_beyond(deltas: [&[f32]; 2], least: [[f32; 3]; 2], lanes: &mut [Lanes]) -> Option<Found> =
        no_beyond, no_beyond, x86::find_beyond;
}

fn no_changes(
    _expert: &[f32],
    _base: &[f32],
    _exact: bool,
    _thresholds: Thresholds<f32>,
    _out: &mut [f32],
    _lanes: &mut [Lanes],
) -> Option<Changes> {
    None
}

fn no_pair(_a: &[f32], _b: &[f32], _epsilon: f32, _lanes: &mut [Lanes]) -> Option<(u64, u64)> {
    None
}

fn no_beyond(_deltas: [&[f32]; 2], _least: [[f32; 3]; 2], _lanes: &mut [Lanes]) -> Option<Found> {
    None
}
