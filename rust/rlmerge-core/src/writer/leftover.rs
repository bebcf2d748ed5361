//! Stages that are in a folder already: of living runs, of killed ones, and of others.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Dir, Mode, OFlags, fstat, openat};
use rustix::io;
use rustix::process::{Pid, geteuid, test_kill_process};

use super::journal::{self, Machine};
use super::lock::{self, Lock};
use super::replace;
use super::target::{Place, folder_flags};

/// What every stage's name has in its middle.
pub(super) const MARK: &str = ".rlmerge-";
/// What every stage's name ends with.
pub(super) const SUFFIX: &str = ".partial";
/// Longest part of an output's name in the name of its stage.
const LONGEST: usize = 200;

/// A stage that somebody made.
#[derive(Debug)]
pub(super) struct Leftover {
    pub name: OsString,
    pub dir: OwnedFd,
    /// Process that made it.
    pub pid: u32,
    /// Whether this user made it.
    pub own: bool,
}

/// Stages in a folder: those of one output, or all.
pub(super) fn find(parent: impl AsFd, output: Option<&OsStr>) -> io::Result<Vec<Leftover>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(&parent)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        let Some((front, pid)) = parse(name.as_bytes()) else { continue };
        if output.is_some_and(|output| cut(output.as_bytes()) != front) {
            continue;
        }
        // It may have gone since it was listed, or be no folder at all.
        let Ok(dir) = openat(&parent, name, folder_flags() | OFlags::NOFOLLOW, Mode::empty()) else {
            continue;
        };
        let own = fstat(&dir).is_ok_and(|stat| stat.st_uid == geteuid().as_raw());
        found.push(Leftover { name: name.to_owned(), dir, pid, own });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Bytes on the disk of what killed runs left of an output: what going on with it need not find room for.
#[must_use]
pub fn left_over(output: &Path) -> u64 {
    let Ok(place) = Place::open(output) else { return 0 };
    let stages = find(&place.dir, Some(&place.name)).unwrap_or_default();
    // One without a journal is never gone on with: it may be an old output that `--force` had replaced.
    let goes_on = |stage: &&Leftover| stage.own && journal::contents(&stage.dir).is_some();
    stages.iter().filter(goes_on).map(Leftover::bytes).sum()
}

impl Leftover {
    /// Bytes of its files on the disk.
    pub fn bytes(&self) -> u64 {
        let entries = replace::entries_of(&self.dir).unwrap_or_default();
        entries.iter().map(|e| u64::try_from(e.stat.st_blocks).unwrap_or(0) * 512).sum()
    }

    /// Whether a living run works in it. Where nothing can be locked the process is asked for.
    pub fn is_held(&self) -> bool {
        self.held_after(lock::look(&self.dir))
    }

    /// The same, and from now on nobody else does.
    pub fn take(&self) -> bool {
        !self.held_after(lock::take(&self.dir))
    }

    fn held_after(&self, lock: Lock) -> bool {
        match lock {
            Lock::Taken => false,
            Lock::Held => true,
            Lock::Unsupported => {
                let journal = journal::contents(&self.dir);
                may_live(self.pid, journal.map(|j| j.machine).as_ref(), &Machine::this())
            }
        }
    }
}

/// Whether the process that made a stage may be living. Nobody knows that of one on another machine.
fn may_live(pid: u32, machine: Option<&Machine>, here: &Machine) -> bool {
    match machine {
        Some(machine) if machine.host != here.host => true,
        Some(machine) if machine.boot != here.boot => false,
        _ => is_alive(pid),
    }
}

fn is_alive(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    // A living process of somebody else refuses.
    pid.is_some_and(|pid| matches!(test_kill_process(pid), Ok(()) | Err(io::Errno::PERM)))
}

/// The output's name and the process in the name of a stage.
fn parse(name: &[u8]) -> Option<(&[u8], u32)> {
    let middle = name.strip_prefix(b".")?.strip_suffix(SUFFIX.as_bytes())?;
    let at = middle.windows(MARK.len()).rposition(|w| w == MARK.as_bytes())?;
    let (pid, random) = std::str::from_utf8(&middle[at + MARK.len()..]).ok()?.split_once('-')?;
    let hex = random.len() == 16 && random.bytes().all(|b| b.is_ascii_hexdigit());
    let pid = pid.parse().ok()?;
    hex.then_some((&middle[..at], pid))
}

/// As much of an output's name as goes into that of its stage: the whole must not pass 255 bytes.
pub(super) fn cut(output: &[u8]) -> &[u8] {
    let mut len = output.len().min(LONGEST);
    // Not within a UTF-8 character: some file systems refuse such names.
    while len < output.len() && len > 0 && output[len] & 0xc0 == 0x80 {
        len -= 1;
    }
    &output[..len]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_locks_the_machine_and_the_process_decide() {
        let machine = |host: &str, boot: &str| Machine { host: host.into(), boot: boot.into() };
        let (here, own, none) = (machine("a", "1"), std::process::id(), u32::MAX);
        assert!(may_live(own, Some(&here), &here));
        assert!(!may_live(none, Some(&here), &here));
        assert!(!may_live(own, Some(&machine("a", "0")), &here), "the system has started anew since");
        assert!(may_live(none, Some(&machine("b", "1")), &here));
        assert!(may_live(own, None, &here) && !may_live(none, None, &here));
    }

    #[test]
    fn names_of_stages_are_told_from_others() {
        assert_eq!(parse(b".out.rlmerge-12-0123456789abcdef.partial"), Some((&b"out"[..], 12)));
        assert_eq!(
            parse(b".a.rlmerge-1-x.rlmerge-12-0123456789abcdef.partial"),
            Some((&b"a.rlmerge-1-x"[..], 12))
        );
        for other in [
            "out.rlmerge-12-0123456789abcdef.partial",
            ".out.rlmerge-12-0123456789abcdef.partial.old",
            ".out.rlmerge-12-0123456789abcde.partial",
            ".out.rlmerge-x-0123456789abcdef.partial",
            ".out.rlmerge-12.partial",
            ".partial",
            ".",
        ] {
            assert_eq!(parse(other.as_bytes()), None, "{other}");
        }
    }
}
