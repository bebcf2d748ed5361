//! What the fuzz targets share: a generator of numbers, and rounds until there were enough.
//!
//! A run of the tests tries the same inputs every time; `RLMERGE_FUZZ_SECONDS=60` lets each target run that long from a
//! fresh seed, which it prints.

use std::io::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// xorshift64*: small, and the same everywhere.
pub struct Random(u64);

impl Random {
    /// Sixty-four bits.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    /// A number below `n`, or 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.next() >> 33) as usize % n }
    }
    /// One of several.
    pub fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }
}

/// Runs rounds of a target, `enough` of them unless there is a time to fill, and says how many there were. `round` is
/// given the generator, the number of the round and the seed, and says whether the input was accepted; both must happen.
pub fn rounds(target: &str, enough: u64, mut round: impl FnMut(&mut Random, u64, u64) -> bool) {
    let seconds: Option<u64> = std::env::var("RLMERGE_FUZZ_SECONDS").ok().map(|s| s.parse().unwrap());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let start = if seconds.is_some() { now | 1 } else { 0x9e37_79b9_7f4a_7c15 };
    let mut random = Random(start);
    let (began, mut count, mut accepted) = (Instant::now(), 0, 0);
    while seconds.map_or(count < enough, |seconds| began.elapsed() < Duration::from_secs(seconds)) {
        accepted += u64::from(round(&mut random, count, start));
        count += 1;
    }
    let line = format!("fuzz {target}: {count} inputs, {accepted} accepted, seed {start}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
    assert!(accepted > 0 && accepted < count, "{line} reaches one side only");
}
