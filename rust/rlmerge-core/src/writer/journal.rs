//! Lines that say what of a stage is finished: one record a line, each behind its own checksum.
//!
//! The journal is never waited for. A record only says what to look at: whoever goes on with a stage hashes the bytes
//! that it tells of, so one that came to the disk before its bytes (or without them) costs work and nothing else.

use std::sync::{Mutex, PoisonError};

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, fstat, ftruncate, openat, unlinkat};
use rustix::io::{Errno, read, retry_on_intr, write};

/// Its name in the stage.
pub(super) const JOURNAL: &str = "rlmerge.journal";
/// Longest journal that is read: a kilobyte for each of more tensors than any model has.
const LONGEST: u64 = 1 << 30;
/// What the system says of itself: its name, and a number that is another one after each start.
const SYSTEM: [&str; 2] = ["/proc/sys/kernel/hostname", "/proc/sys/kernel/random/boot_id"];
/// Hexadecimal digits of the checksum before each record.
const DIGITS: usize = 16;

/// A journal that is being written.
#[derive(Debug, Default)]
pub(super) struct Journal(Mutex<Option<OwnedFd>>);

/// What a journal says, up to the first line that is not whole.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Contents {
    /// The first record: where the run was.
    pub machine: Machine,
    /// The second, which says what the stage is for.
    pub header: String,
    /// The others.
    pub records: Vec<String>,
    /// Bytes up to the end of the last whole line.
    len: u64,
}

/// A machine between two starts of its system: where a process has its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Machine {
    pub host: String,
    pub boot: String,
}

impl Machine {
    /// The one that this process runs on; what the system does not tell is empty.
    pub fn this() -> Self {
        let [host, boot] =
            SYSTEM.map(|path| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned());
        Self { host, boot }
    }

    fn record(&self) -> String {
        format!("{} {}", self.boot, self.host)
    }

    fn parse(record: &str) -> Option<Self> {
        let (boot, host) = record.split_once(' ')?;
        Some(Self { host: host.to_owned(), boot: boot.to_owned() })
    }
}

impl Journal {
    /// Starts a journal in a new stage. Where that cannot be done there is none, and nothing to go on with later.
    pub fn start(&self, stage: impl AsFd, header: &str) {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(stage, JOURNAL, flags | OFlags::APPEND, Mode::from_raw_mode(0o666));
        *self.lock() = file.ok();
        self.append(&Machine::this().record());
        self.append(header);
    }

    /// Goes on with a journal behind its last whole line.
    pub fn resume(&self, stage: impl AsFd, contents: &Contents) {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(stage, JOURNAL, flags, Mode::empty());
        *self.lock() = file.and_then(|file| ftruncate(&file, contents.len).map(|()| file)).ok();
    }

    /// Adds a record. After the first that cannot be written there are no more: half a line ends a journal.
    pub fn append(&self, record: &str) {
        let line = format!("{} {record}\n", checksum(record));
        let mut file = self.lock();
        let Some(fd) = file.as_ref() else { return };
        if !matches!(retry_on_intr(|| write(fd, line.as_bytes())), Ok(n) if n == line.len()) {
            *file = None;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the journal of a stage says; `None` without a journal, or when not even its header is whole.
pub(super) fn contents(stage: impl AsFd) -> Option<Contents> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(stage, JOURNAL, flags, Mode::empty()).ok()?;
    let len = u64::try_from(fstat(&file).ok()?.st_size).ok().filter(|len| *len <= LONGEST)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(usize::try_from(len).ok()?).ok()?;
    let mut buffer = vec![0; 1 << 16];
    while (bytes.len() as u64) < len {
        match retry_on_intr(|| read(&file, &mut buffer)).ok()? {
            0 => break,
            n => bytes.extend_from_slice(&buffer[..n]),
        }
    }
    parse(&bytes)
}

/// Removes the journal of a stage.
pub(super) fn remove(stage: impl AsFd) -> Result<(), Errno> {
    match unlinkat(stage, JOURNAL, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

fn parse(bytes: &[u8]) -> Option<Contents> {
    let mut records = Vec::new();
    let mut len = 0;
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        let Some(record) = line.strip_suffix(b"\n").and_then(whole) else { break };
        records.push(record.to_owned());
        len += line.len() as u64;
    }
    let mut records = records.into_iter();
    let machine = Machine::parse(&records.next()?)?;
    let header = records.next()?;
    Some(Contents { machine, header, records: records.collect(), len })
}

/// The record of a line whose checksum holds.
fn whole(line: &[u8]) -> Option<&str> {
    let (sum, record) = std::str::from_utf8(line).ok()?.split_at_checked(DIGITS)?;
    record.strip_prefix(' ').filter(|record| checksum(record) == sum)
}

fn checksum(record: &str) -> String {
    blake3::hash(record.as_bytes()).to_hex()[..DIGITS].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(records: &[&str]) -> Vec<u8> {
        records.iter().flat_map(|r| format!("{} {r}\n", checksum(r)).into_bytes()).collect()
    }

    #[test]
    fn a_torn_tail_is_left_out() {
        let whole = lines(&["boot host", "header", "one", "two"]);
        let all = parse(&whole).unwrap();
        assert_eq!(all.machine, Machine { host: "host".into(), boot: "boot".into() });
        assert_eq!(
            (all.header.as_str(), all.records.as_slice()),
            ("header", &["one".into(), "two".into()][..])
        );
        assert_eq!(all.len, whole.len() as u64);
        for cut in 0..whole.len() {
            let seen = parse(&whole[..cut]);
            let ends =
                [&["boot host", "header"][..], &["boot host", "header", "one"]].map(|l| lines(l).len());
            let expected = ends.iter().filter(|end| **end <= cut).count();
            assert_eq!(seen.as_ref().map_or(0, |c| 1 + c.records.len()), expected, "{cut}");
        }
    }

    #[test]
    fn a_damaged_line_ends_the_journal() {
        let whole = lines(&["boot host", "header", "one", "two"]);
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x20;
            let seen = parse(&bytes);
            let before = whole[..at].iter().filter(|b| **b == b'\n').count();
            assert_eq!(seen.map_or(0, |c| 2 + c.records.len()), if before < 2 { 0 } else { before }, "{at}");
        }
        assert_eq!(parse(b""), None);
        assert_eq!(parse(&[0xff; 100]), None);
    }
}
