//! Thresholds out of tables of how many magnitudes have each key.

use crate::kernel::stats;

/// Number of elements that a share of some means, rounded up.
pub fn rank(share: f64, elements: u64) -> u64 {
    (share * elements as f64).ceil() as u64
}

/// How many elements have each key, from the first to the last key that there is: few of them, so that a small tensor
/// does not pay for all keys.
pub struct Keys {
    first: usize,
    counts: Vec<i64>,
}

impl Keys {
    /// Of a table of all keys.
    pub fn of(table: &[i64]) -> Self {
        let first = table.iter().position(|c| *c != 0).unwrap_or(0);
        let end = table.iter().rposition(|c| *c != 0).map_or(first, |last| last + 1);
        Self { first, counts: table[first..end].to_vec() }
    }

    /// Adds the counts to a table of all keys.
    pub fn add_to(&self, table: &mut [i64]) {
        for (all, own) in table[self.first..].iter_mut().zip(&self.counts) {
            *all += own;
        }
    }

    /// Each key with its count, the smallest first.
    pub fn each(&self) -> impl DoubleEndedIterator<Item = (usize, u64)> + '_ {
        self.counts.iter().enumerate().map(|(at, count)| (self.first + at, *count as u64))
    }
}

/// The smallest set of the largest keys that holds at least so many elements.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// The smallest key in it; at least 1, for zeros are never large.
    pub key: usize,
    /// How many it holds.
    pub count: u64,
    /// How many were asked for.
    pub rank: u64,
    /// Whether it holds as many.
    pub reached: bool,
}

impl Cut {
    /// Of so many elements.
    pub fn of(keys: &Keys, rank: u64) -> Self {
        let mut count = 0;
        for (key, more) in keys.each().rev() {
            count += more;
            if count >= rank {
                return Self { key, count, rank, reached: true };
            }
        }
        Self { key: 1, count, rank, reached: false }
    }

    /// The smallest magnitude in it.
    pub fn edge(self) -> f64 {
        stats::edge(self.key)
    }

    /// The energy of exactly so many elements: what the last key holds too many is taken out at its lower edge.
    pub fn trimmed(self, energy: f64) -> f64 {
        let excess = self.count.saturating_sub(self.rank) as f64;
        (energy - excess * self.edge() * self.edge()).max(0.0)
    }
}
