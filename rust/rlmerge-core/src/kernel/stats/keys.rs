//! Magnitudes as small numbers that order like them, and tables of how many have each.

use super::super::level::kernel;
use super::super::{CHUNK, Level};

/// Number of magnitude keys: 128 for each power of two from 2^-150 on, which covers every f32.
pub const KEYS: usize = 280 << FRACTION;
/// Counters that an index of 16 bits can tell apart, and so need no check of their bounds.
const ROOM: usize = 1 << 16;
/// Counters of f32 that are not normal numbers, by their keys.
const TINY: usize = ((f32::MIN_EXP - 1 - LOWEST) as usize) << FRACTION;
/// Counters in a table of magnitudes; [`by_key`] reads it.
pub const TABLE: usize = ROOM + TINY;
/// Counters that each magnitude of an f32 has in turn: adding to one again waits for the addition before.
const TURNS: usize = 2;
/// Counters over which zeros are spread, of which there may be many in a row.
const ZEROS: usize = 64;
/// Counters that are raised together.
const MANY: usize = 16 * CHUNK;
/// Powers of two for which there are keys, or bins.
pub const BINS: usize = KEYS >> FRACTION;
/// Bins below that of an f32 whose exponent is stored as zero.
pub(super) const BINS_BELOW: usize = (-LOWEST - 127) as usize;
/// Bits of the fraction that a key holds.
pub const FRACTION: u32 = 7;
/// Power of two at which keys begin.
const LOWEST: i32 = -150;
const SHIFT: u32 = f64::MANTISSA_DIGITS - 1 - FRACTION;
const SHIFT_NARROW: u32 = f32::MANTISSA_DIGITS - 1 - FRACTION;
const OFFSET: u64 = ((1023 + LOWEST) as u64) << FRACTION;
const MAGNITUDE: u64 = u64::MAX >> 1;
const MAGNITUDE_NARROW: u32 = u32::MAX >> 1;

/// A magnitude to eight significant bits, as a small number that orders like it. Zero has key 0.
#[inline(always)]
#[must_use]
pub fn key(value: f64) -> usize {
    let bits = (value.to_bits() & MAGNITUDE) >> SHIFT;
    bits.saturating_sub(OFFSET).min(KEYS as u64 - 1) as usize
}

/// The smallest magnitude with this key, for keys above 0.
#[must_use]
pub fn edge(key: usize) -> f64 {
    f64::from_bits((key as u64 + OFFSET) << SHIFT)
}

/// How many magnitudes have each key, out of a table and, where there is one, what was counted before it was cleared.
/// Zeros are left out.
#[must_use]
pub fn by_key(table: &[u32], before: &[u64], wide: bool) -> Vec<i64> {
    let mut keys = vec![0; KEYS];
    for (block, counts) in table.chunks(ZEROS).enumerate() {
        // Most counters of most tables were never used.
        if before.is_empty() && counts.iter().fold(0, |any, c| any | c) == 0 {
            continue;
        }
        for (i, count) in counts.iter().enumerate() {
            let place = block * ZEROS + i;
            let count = i64::from(*count) + before.get(place).map_or(0, |c| *c as i64);
            if let Some(key) = key_at(place, wide) {
                keys[key] += count;
            }
        }
    }
    keys
}

/// What a counter of a table counts, unless that is zeros.
fn key_at(place: usize, wide: bool) -> Option<usize> {
    if wide {
        return (place < KEYS).then_some(place);
    }
    // The upper half of an f32 without its sign is a key from another beginning.
    let (normal, infinite) = (1 << FRACTION, 255 << FRACTION);
    match place / TURNS {
        _ if place >= ROOM => Some(place - ROOM),
        upper if upper < normal => None,
        upper if upper < infinite => Some(upper - normal + TINY),
        _ => Some(KEYS - 1),
    }
}

/// Magnitudes whose counters are found and not yet raised.
#[derive(Debug, Default)]
pub struct Waiting {
    places: Vec<u16>,
    len: usize,
}

impl Waiting {
    /// Room for the counters of so many magnitudes more, to be filled.
    pub fn room_for(&mut self, more: usize) -> &mut [u16] {
        let begin = self.len;
        self.len += more;
        self.places.resize(self.len.max(self.places.len()), 0);
        &mut self.places[begin..self.len]
    }

    /// Raises the counters once there are many: while others work on a table of their own, this one leaves the first cache.
    pub fn raise_many(&mut self, table: &mut [u32]) {
        if self.len >= MANY {
            self.raise(table);
        }
    }

    /// Raises the counters.
    pub fn raise(&mut self, table: &mut [u32]) {
        if let Some(counts) = table.first_chunk_mut::<ROOM>() {
            for place in &self.places[..self.len] {
                counts[usize::from(*place)] += 1;
            }
        }
        self.len = 0;
    }
}

kernel! {
    /// Finds the places of f32 among so many keys from the first one on, behind them that of what is elsewhere or no normal
    /// number. Gives whether there are numbers too small for normal ones.
    fn find_among(values: &[f32], first: u32, others: u32, places: &mut [u32; CHUNK]) -> bool {
        let (mut any_tiny, below) = (0, (BINS_BELOW << FRACTION) as u32);
        for (i, (place, v)) in places.iter_mut().zip(values).enumerate() {
            let bits = v.to_bits() & MAGNITUDE_NARROW;
            any_tiny |= u32::from(bits.wrapping_sub(1) < f32::MIN_POSITIVE.to_bits() - 1);
            // The key of a normal number is in its bits.
            let is_normal = bits.wrapping_sub(f32::MIN_POSITIVE.to_bits())
                < f32::INFINITY.to_bits() - f32::MIN_POSITIVE.to_bits();
            let at = ((bits >> SHIFT_NARROW) + below).wrapping_sub(first);
            let elsewhere = others + (i / 4 % KeyCounts::OTHERS) as u32;
            *place = if is_normal & (at < others) { at } else { elsewhere };
        }
        any_tiny != 0
    }
}

kernel! {
    /// Finds the counters of f32 by their upper halves, each in turns; counts those that are not normal by their keys.
    pub fn find_narrow(values: &[f32], places: &mut [u16], table: &mut [u32]) {
        let mut any_tiny = 0;
        for (i, (place, v)) in places.iter_mut().zip(values).enumerate() {
            let bits = v.to_bits() & MAGNITUDE_NARROW;
            any_tiny |= u32::from(bits.wrapping_sub(1) < f32::MIN_POSITIVE.to_bits() - 1);
            let upper = bits >> SHIFT_NARROW;
            let upper = if upper == 0 { (i % ZEROS) as u32 } else { upper };
            *place = (upper * TURNS as u32 + (i % TURNS) as u32) as u16;
        }
        if any_tiny != 0 {
            for v in values.iter().filter(|v| v.is_subnormal()) {
                table[ROOM + key(f64::from(*v))] += 1;
            }
        }
    }
}

/// How often keys of some range were met.
#[derive(Debug, Default)]
pub struct KeyCounts {
    first: usize,
    /// Counters that each key has in turn: adding to one again waits for the addition before. Those behind are of all
    /// other keys.
    counts: Vec<[u32; 4]>,
}

impl KeyCounts {
    /// Counters of all other keys, again in turn: a power of two.
    const OTHERS: usize = 16;

    /// For keys from one up to another.
    #[must_use]
    pub fn between(first: usize, end: usize) -> Self {
        Self { first, counts: vec![[0; 4]; end.saturating_sub(first) + Self::OTHERS] }
    }

    /// Counts the keys of magnitudes; those elsewhere are left out.
    pub fn add(&mut self, level: Level, values: &[f32]) {
        let Some(others) = self.counts.len().checked_sub(Self::OTHERS) else { return };
        let mut places = [0; CHUNK];
        for values in values.chunks(CHUNK) {
            let any_tiny = find_among(level, values, self.first as u32, others as u32, &mut places);
            for (turn, place) in places.iter().enumerate().take(values.len()) {
                self.counts[*place as usize][turn % 4] += 1;
            }
            for value in values.iter().filter(|v| any_tiny && v.is_subnormal()) {
                let place = key(f64::from(*value)).wrapping_sub(self.first);
                if place < others {
                    self.counts[place][0] += 1;
                }
            }
        }
    }

    /// Adds what another counted of the same keys.
    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().flatten().zip(other.counts.iter().flatten()).for_each(|(a, b)| *a += b);
    }

    /// How often a key of the range was met.
    #[must_use]
    pub fn of(&self, key: usize) -> u64 {
        self.counts[key - self.first].iter().map(|count| u64::from(*count)).sum()
    }
}

/// How often base weights with keys of some range were met, and how often each of two experts changed them.
#[derive(Debug, Default)]
pub struct NearCounts {
    first: usize,
    /// Of each key: those that no expert changed, that the second did, the first, both.
    counts: Vec<[u64; 4]>,
    /// Whether there are any that are elsewhere, or too small for a normal number: the bit that marks take from those
    /// tells keys apart.
    is_odd: bool,
}

impl NearCounts {
    /// For keys from one up to another.
    #[must_use]
    pub fn between(first: usize, end: usize) -> Self {
        Self { first, counts: vec![[0; 4]; end.saturating_sub(first)], is_odd: false }
    }

    /// A magnitude with the marks that [`add`](Self::add) reads: a minus where the first expert changed it, and the lowest
    /// bit where the second did.
    #[inline(always)]
    pub(super) fn marked(size: f32, changed: [bool; 2]) -> f32 {
        f32::from_bits(size.to_bits() & !1 | u32::from(changed[0]) << 31 | u32::from(changed[1]))
    }

    /// Counts marked magnitudes.
    pub fn add(&mut self, marked: &[f32]) {
        for bits in marked.iter().map(|v| v.to_bits()) {
            let size = bits & MAGNITUDE_NARROW;
            // The key of a normal number is in its bits.
            let key = (size >> SHIFT_NARROW) as usize + (BINS_BELOW << FRACTION);
            match self.counts.get_mut(key.wrapping_sub(self.first)) {
                Some(counts) if size >= f32::MIN_POSITIVE.to_bits() => {
                    counts[(bits >> 31 << 1 | bits & 1) as usize] += 1;
                }
                _ => self.is_odd = true,
            }
        }
    }

    /// Adds what another counted of the same keys.
    pub fn merge(&mut self, other: &Self) {
        self.is_odd |= other.is_odd;
        self.counts.iter_mut().flatten().zip(other.counts.iter().flatten()).for_each(|(a, b)| *a += b);
    }

    /// Of each key, the smallest first: all, and those that each expert changed. Nothing if some could not be counted.
    pub fn each(&self) -> Option<impl Iterator<Item = [u64; 3]> + '_> {
        let of = |[none, b, a, both]: &[u64; 4]| [none + b + a + both, a + both, b + both];
        (!self.is_odd).then(|| self.counts.iter().map(of))
    }
}

/// Adds how many magnitudes of a chunk lie in each power of two, as keys without their fraction; zeros are in none.
pub(super) fn count_bins(level: Level, values: &[f32], bins: &mut [i64]) {
    let mut exponents = [0; CHUNK];
    if find_exponents(level, values, &mut exponents) {
        return plain_bins(values, bins);
    }
    // Counters that each exponent has in turn: adding to one again waits for the addition before.
    let mut counts = [[0u32; 256]; 4];
    for (turn, exponent) in exponents.iter().enumerate().take(values.len()) {
        counts[turn % 4][usize::from(*exponent)] += 1;
    }
    let [a, b, c, d] = &counts;
    for (exponent, bin) in bins[BINS_BELOW..][..255].iter_mut().enumerate().skip(1) {
        *bin += i64::from(a[exponent] + b[exponent] + c[exponent] + d[exponent]);
    }
}

/// The same by their keys, where there are numbers other than zeros and normal ones.
pub(super) fn plain_bins(values: &[f32], bins: &mut [i64]) {
    for value in values {
        let key = key(f64::from(*value));
        bins[key >> FRACTION] += i64::from(key > 0);
    }
}

kernel! {
    /// The exponents as they are stored. Gives whether there are numbers other than zeros and normal ones.
    fn find_exponents(values: &[f32], exponents: &mut [u8; CHUNK]) -> bool {
        let mut any_odd = 0;
        for (exponent, value) in exponents.iter_mut().zip(values) {
            let bits = value.to_bits() & MAGNITUDE_NARROW;
            let normal = f32::INFINITY.to_bits() - f32::MIN_POSITIVE.to_bits();
            any_odd |= u32::from(bits != 0) & u32::from(bits.wrapping_sub(f32::MIN_POSITIVE.to_bits()) >= normal);
            *exponent = (bits >> (f32::MANTISSA_DIGITS - 1)) as u8;
        }
        any_odd != 0
    }
}

kernel! {
    /// Finds the counters of f64 by their keys.
    pub fn find_wide(values: &[f64], places: &mut [u16], _table: &mut [u32]) {
        for (i, (place, v)) in places.iter_mut().zip(values).enumerate() {
            let bits = (v.to_bits() & MAGNITUDE) >> SHIFT;
            let above = bits.saturating_sub(OFFSET);
            let key = if above < KEYS as u64 { above } else { KEYS as u64 - 1 };
            // Counters that no key uses.
            *place = if key == 0 { (KEYS + i % ZEROS) as u16 } else { key as u16 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Width;
    use super::*;
    use crate::kernel::Level;

    #[test]
    fn keys_order_magnitudes_and_edges_are_their_smallest() {
        assert_eq!(key(0.0), 0);
        assert_eq!(key(-0.0), 0);
        assert!(key(f64::from(f32::from_bits(1))) > 0, "the smallest f32 is not zero");
        assert_eq!(key(f64::INFINITY), KEYS - 1);
        for value in [1.0, 1.5, 0.1, 3e-5, 1e30, 1e-44] {
            let k = key(value);
            assert_eq!(k, key(-value));
            assert!(edge(k) <= value && value < edge(k + 1), "{value}");
            assert!(edge(k + 1) / edge(k) <= 1.0 + 1.0 / 128.0);
            assert_eq!(key(edge(k)), k);
        }
    }

    #[test]
    fn both_widths_count_by_the_same_keys() {
        let mut values =
            vec![0.0f32, -0.0, f32::NAN, f32::INFINITY, f32::MAX, f32::MIN_POSITIVE, -1.0, 1.0, 1.004];
        values.extend((0..2000u32).map(|i| f32::from_bits(i.wrapping_mul(2_147_483_659) % 0x7f80_0000)));
        values.extend((0..200).map(|i| f32::from_bits(i * 40_000)));
        let wide: Vec<f64> = values.iter().map(|v| f64::from(*v)).collect();
        let mut expected = vec![0; KEYS];
        wide.iter().filter(|v| **v != 0.0).for_each(|v| expected[key(*v)] += 1);
        for level in Level::available() {
            let (mut a, mut b) = (vec![0; TABLE], vec![0; TABLE]);
            let mut waiting = Waiting::default();
            f32::count_keys(level, &values, &mut waiting, &mut a);
            waiting.raise(&mut a);
            f64::count_keys(level, &wide, &mut waiting, &mut b);
            waiting.raise(&mut b);
            assert_eq!(by_key(&a, &[], false), expected, "{}", level.name());
            assert_eq!(by_key(&b, &[], true), expected, "{}", level.name());
            let before: Vec<u64> = a.iter().map(|c| u64::from(*c)).collect();
            assert_eq!(by_key(&vec![0; TABLE], &before, false), expected, "{}", level.name());
            for (first, end) in [(1, KEYS), (1, 3000), (18_000, 18_100), (20_000, 20_001)] {
                let mut counts = KeyCounts::between(first, end);
                counts.add(level, &values);
                let of = |key: usize| counts.of(key) as i64;
                // What is not finite is elsewhere.
                let all = (first..end.min(KEYS - 1)).all(|key| of(key) == expected[key]);
                assert!(all, "{first}, {}", level.name());
            }
        }
    }
}
