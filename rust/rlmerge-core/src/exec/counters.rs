//! Counters in narrow numbers, of which the cache holds more, that count as far as wide ones.

/// So many tables of counters, one after the other.
#[derive(Default)]
pub struct Counters {
    now: Vec<u32>,
    /// No counter of `now` is above this.
    most: u64,
    /// What was counted before `now` was cleared; empty when it never was.
    before: Vec<u64>,
}

impl Counters {
    /// So many counters.
    pub fn new(count: usize) -> Self {
        Self { now: vec![0; count], ..Self::default() }
    }

    /// The counters, none of which may be raised by more than `more`.
    pub fn room_for(&mut self, more: u64) -> &mut [u32] {
        if self.most + more > u64::from(u32::MAX) {
            self.put_aside();
        }
        self.most += more;
        &mut self.now
    }

    fn put_aside(&mut self) {
        self.before.resize(self.now.len(), 0);
        for (before, now) in self.before.iter_mut().zip(&mut self.now) {
            *before += u64::from(std::mem::take(now));
        }
        self.most = 0;
    }

    /// Adds what others counted.
    pub fn merge(&mut self, mut other: Self) {
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

    /// Tables of so many counters: each with what was counted before it was cleared, if it ever was.
    pub fn tables(&self, len: usize) -> impl Iterator<Item = (&[u32], &[u64])> {
        let mut before = self.before.chunks(len);
        self.now.chunks(len).map(move |now| (now, before.next().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(counters: &Counters) -> Vec<u64> {
        let (now, before) = counters.tables(2).next().unwrap();
        now.iter().enumerate().map(|(i, n)| u64::from(*n) + before.get(i).unwrap_or(&0)).collect()
    }

    #[test]
    fn counts_beyond_narrow_numbers() {
        let half = u64::from(u32::MAX) / 2;
        let counted = || {
            let mut counters = Counters::new(2);
            for _ in 0..3 {
                counters.room_for(half)[1] += half as u32;
            }
            counters
        };
        assert_eq!(totals(&counted()), [0, 3 * half]);
        let mut all = Counters::new(2);
        for _ in 0..3 {
            all.merge(counted());
        }
        assert_eq!(totals(&all), [0, 9 * half]);
    }
}
