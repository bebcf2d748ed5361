//! Tables of counters in narrow numbers, of which the cache holds more, that count as far as wide ones.

use crate::kernel::stats::Waiting;

/// So many tables of counters.
#[derive(Default)]
pub struct Counters {
    /// All tables, one after the other.
    now: Vec<u32>,
    /// Of each table, the counters that are still to be raised.
    waiting: Vec<Waiting>,
    /// Counters in a table.
    len: usize,
    /// No counter of `now` is above this.
    most: u64,
    /// What was counted before `now` was cleared; empty when it never was.
    before: Vec<u64>,
}

impl Counters {
    /// So many tables of so many counters.
    pub fn new(tables: usize, len: usize) -> Self {
        let waiting = (0..tables).map(|_| Waiting::default()).collect();
        Self { now: vec![0; tables * len], waiting, len, ..Self::default() }
    }

    /// The tables, no counter of which may be raised by more than `more`.
    pub fn room_for(&mut self, more: u64) -> impl Iterator<Item = (&mut Waiting, &mut [u32])> {
        if self.most + more > u64::from(u32::MAX) {
            self.put_aside();
        }
        self.most += more;
        self.waiting.iter_mut().zip(self.now.chunks_mut(self.len.max(1)))
    }

    /// Raises what waits.
    pub fn settle(&mut self) {
        for (waiting, table) in self.waiting.iter_mut().zip(self.now.chunks_mut(self.len.max(1))) {
            waiting.raise(table);
        }
    }

    fn put_aside(&mut self) {
        self.settle();
        self.before.resize(self.now.len(), 0);
        for (before, now) in self.before.iter_mut().zip(&mut self.now) {
            *before += u64::from(std::mem::take(now));
        }
        self.most = 0;
    }

    /// Adds what others counted.
    pub fn merge(&mut self, mut other: Self) {
        other.settle();
        if self.most + other.most > u64::from(u32::MAX) {
            self.put_aside();
            other.put_aside();
        }
        self.most += other.most;
        for (a, b) in self.now.iter_mut().zip(&other.now) {
            *a += b;
        }
        if !other.before.is_empty() {
            self.before.resize(self.now.len(), 0);
        }
        for (a, b) in self.before.iter_mut().zip(&other.before) {
            *a += b;
        }
    }

    /// The tables: each with what was counted before it was cleared, if it ever was.
    pub fn tables(&mut self) -> impl Iterator<Item = (&[u32], &[u64])> {
        self.settle();
        let len = self.len.max(1);
        let mut before = self.before.chunks(len);
        self.now.chunks(len).map(move |now| (now, before.next().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(counters: &mut Counters) -> Vec<u64> {
        let (now, before) = counters.tables().next().unwrap();
        now.iter().enumerate().map(|(i, n)| u64::from(*n) + before.get(i).unwrap_or(&0)).collect()
    }

    #[test]
    fn counts_beyond_narrow_numbers() {
        let half = u64::from(u32::MAX) / 2;
        let counted = || {
            let mut counters = Counters::new(1, 2);
            for _ in 0..3 {
                let (_, table) = counters.room_for(half).next().unwrap();
                table[1] += half as u32;
            }
            counters
        };
        assert_eq!(totals(&mut counted()), [0, 3 * half]);
        let mut all = Counters::new(1, 2);
        for _ in 0..3 {
            all.merge(counted());
        }
        assert_eq!(totals(&mut all), [0, 9 * half]);
    }
}
