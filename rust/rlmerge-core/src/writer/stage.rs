//! The hidden folder beside the output, in which the output grows.

use std::collections::hash_map::RandomState;
use std::ffi::{OsStr, OsString};
use std::hash::BuildHasher as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, fstat, mkdirat, openat, renameat_with, unlinkat,
};
use rustix::io::{Errno, read, retry_on_intr};
use rustix::process::getpid;

use super::file::{StagedFile, State};
use super::journal::{self, JOURNAL, Journal};
use super::leftover::{self, MARK, SUFFIX};
use super::lock::{self, Turn};
use super::replace;
use super::space;
use super::target::{OutputKind, Place, Target, folder_flags};
use crate::error::{Error, Result, escape};

/// A stage: `.OUT.rlmerge-<pid>-<16 hex digits>.partial` in the folder of the output. Dropping it
/// without a [`commit`](Self::commit) removes the files made through it, and nothing else.
#[derive(Debug)]
pub struct Stage {
    pub(super) target: Target,
    pub(super) place: Place,
    pub(super) name: OsString,
    pub(super) dir: OwnedFd,
    pub(super) entries: Mutex<Vec<Entry>>,
    journal: Journal,
    /// Bytes of tensors that a run that goes on with this stage need not compute.
    saved: AtomicU64,
    /// Whether the folder outlives this value: it was published, or its work is worth keeping.
    pub(super) keep: bool,
    /// Whether a finished stage outlives a commit that found the name of the output taken.
    pub(super) keep_refused: bool,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub name: String,
    pub state: Arc<State>,
}

impl Stage {
    /// Makes an empty stage, locked by this process. Call [`preflight`](super::preflight) first: this looks at nothing
    /// but other stages of the same output.
    ///
    /// # Errors
    /// [`Error::OutputLocked`] when another run is at work on the same output; [`Error::Io`] or [`Error::NoSpace`] when
    /// the folder cannot be made.
    pub fn create(target: &Target) -> Result<Self> {
        let place = Place::open(&target.path)?;
        let _turn = wait_for_others(target, &place)?;
        Self::make(target, place)
    }

    /// Makes an empty stage in a turn of its own.
    fn make(target: &Target, place: Place) -> Result<Self> {
        let refused = |e| space::refused(&target.path, "creating the stage folder", 0, &place.dir, e);
        let name = loop {
            let name = stage_name(&place.name);
            match mkdirat(&place.dir, &name, Mode::from_raw_mode(0o777)) {
                Ok(()) => break name,
                Err(Errno::EXIST | Errno::INTR) => {}
                Err(e) => return Err(refused(e)),
            }
        };
        let dir =
            openat(&place.dir, &name, folder_flags() | OFlags::NOFOLLOW, Mode::empty()).map_err(|e| {
                let _ = unlinkat(&place.dir, &name, AtFlags::REMOVEDIR);
                refused(e)
            })?;
        // Nobody else knows of it yet; without locks the name says which process it belongs to.
        let _ = lock::take(&dir);
        Ok(Self {
            target: target.clone(),
            place,
            name,
            dir,
            entries: Mutex::default(),
            journal: Journal::default(),
            saved: AtomicU64::new(0),
            keep: false,
            keep_refused: false,
        })
    }

    /// Goes on with what a killed run of the same plan left, or begins anew when none did. `differs` is given the first
    /// record of a journal and says what is different, if that run was another one; `files` are those that may stay.
    ///
    /// # Errors
    /// [`Error::StageDiffers`] when only other runs left something; else as [`create`](Self::create).
    pub fn resume(
        target: &Target,
        files: &[&str],
        differs: impl Fn(&str) -> Option<String>,
    ) -> Result<Resumed> {
        let place = Place::open(&target.path)?;
        let _turn = wait_for_others(target, &place)?;
        let found = leftover::find(&place.dir, Some(&place.name))
            .map_err(|e| Error::io(&place.parent, "listing the folder of the output", e))?;
        let mut best = None::<(leftover::Leftover, journal::Contents)>;
        let mut other = None;
        for stage in found.into_iter().filter(|stage| stage.own) {
            let Some(contents) = journal::contents(&stage.dir) else { continue };
            if let Some(message) = differs(&contents.header) {
                other = Some(Error::StageDiffers { path: place.parent.join(&stage.name), message });
            } else if best.as_ref().is_none_or(|(_, b)| b.records.len() < contents.records.len()) {
                best = Some((stage, contents));
            }
        }
        let Some((found, contents)) = best else {
            return match other {
                Some(error) => Err(error),
                None => Ok(Resumed { stage: Self::make(target, place)?, records: None }),
            };
        };
        if !found.take() {
            return Err(Error::OutputLocked { path: target.path.clone(), pid: found.pid });
        }
        let name = stage_name(&place.name);
        let path = place.parent.join(&found.name);
        let failed = |e| Error::io(&path, "going on with the stage", e);
        for entry in replace::entries_of(&found.dir).map_err(failed)? {
            let known = entry.name.to_str().is_ok_and(|n| n == JOURNAL || files.contains(&n));
            if !known {
                // Small files that are written again, after everything else.
                unlinkat(&found.dir, &*entry.name, AtFlags::empty()).map_err(failed)?;
            }
        }
        // From now on its name says whose it is; a file system that cannot do this safely keeps the old one.
        let renamed =
            renameat_with(&place.dir, &found.name, &place.dir, &name, RenameFlags::NOREPLACE).is_ok();
        let stage = Self {
            target: target.clone(),
            place,
            name: if renamed { name } else { found.name },
            dir: found.dir,
            entries: Mutex::default(),
            journal: Journal::default(),
            saved: AtomicU64::new(0),
            keep: false,
            keep_refused: false,
        };
        stage.journal.resume(&stage.dir, &contents);
        Ok(Resumed { stage, records: Some(contents.records) })
    }

    /// Begins the journal of a new stage with a record that says what the stage is for.
    pub fn start_journal(&self, header: &str) {
        self.journal.start(&self.dir, header);
    }

    /// Adds a record to the journal, which saves a later run so many bytes. It must be one line.
    pub fn record(&self, record: &str, saved: u64) {
        self.journal.append(record);
        self.count(saved);
    }

    /// Counts bytes of an earlier run that are still good.
    pub fn count(&self, saved: u64) {
        self.saved.fetch_add(saved, Ordering::Relaxed);
    }

    /// Bytes of tensors that are finished, and need not be computed by a run that goes on with this stage.
    #[must_use]
    pub fn saved(&self) -> u64 {
        self.saved.load(Ordering::Relaxed)
    }

    /// Leaves the stage where it is when this value goes without a commit: a later run goes on with it.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Leaves the stage where it is when all is finished and the output came to be meanwhile, by another hand.
    pub fn keep_if_refused(&mut self) {
        self.keep_refused = true;
    }

    /// The file of `len` bytes that an earlier run made, if it is there, and whether it is; else a new one.
    ///
    /// # Errors
    /// As [`file`](Self::file).
    pub fn reopen(&self, name: &str, len: u64) -> Result<(StagedFile, bool)> {
        let path = self.final_path(name);
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if let Ok(fd) = retry_on_intr(|| openat(&self.dir, name, flags, Mode::empty()))
            && let Ok(stat) = fstat(&fd)
            && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && stat.st_nlink == 1
            && u64::try_from(stat.st_size) == Ok(len)
        {
            let state = self.enter(name);
            return Ok((StagedFile::reserve(fd, path, len, self.target.durability, state)?, true));
        }
        match unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok((self.file(name, len)?, false)),
            Err(e) => Err(Error::io(&path, "replacing what a killed run left", e)),
        }
    }

    /// Makes a file of `len` bytes, all reserved.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`]; [`Error::Internal`] for a name that is not one plain
    /// component.
    pub fn file(&self, name: &str, len: u64) -> Result<StagedFile> {
        if name.is_empty() || matches!(name, "." | "..") || name.contains(['/', '\0']) || name.len() > 255 {
            return Err(Error::Internal { message: format!("`{}` is no plain file name", escape(name)) });
        }
        let path = self.final_path(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = retry_on_intr(|| openat(&self.dir, name, flags, Mode::from_raw_mode(0o666)))
            .map_err(|e| space::refused(&path, "creating the file", len, &self.dir, e))?;
        let state = self.enter(name);
        StagedFile::reserve(fd, path, len, self.target.durability, state)
    }

    /// Adds a file to the list of those that belong to the stage.
    fn enter(&self, name: &str) -> Arc<State> {
        let state = Arc::<State>::default();
        self.lock().push(Entry { name: name.to_owned(), state: Arc::clone(&state) });
        state
    }

    /// Writes a whole file and finishes it.
    ///
    /// # Errors
    /// As [`file`](Self::file).
    pub fn write_file(&self, name: &str, contents: &[u8]) -> Result<()> {
        let file = self.file(name, contents.len() as u64)?;
        file.write_all_at(contents, 0)?;
        file.finish()
    }

    /// Copies a regular file, and finishes the copy; its mode comes from the umask.
    ///
    /// # Errors
    /// [`Error::BadConfig`] when `from` is a pipe, a folder or the like, which are never waited
    /// for; [`Error::InputChanged`] when its length changed meanwhile; else as [`file`](Self::file).
    pub fn copy_file(&self, name: &str, from: &Path) -> Result<()> {
        const CHUNK: usize = 1 << 20;
        let irregular =
            || Error::BadConfig { path: from.to_path_buf(), message: "is not a regular file".into() };
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let source = retry_on_intr(|| openat(CWD, from, flags, Mode::empty())).map_err(|e| match e {
            Errno::NXIO | Errno::NODEV => irregular(),
            e => Error::io(from, "opening", e),
        })?;
        let stat = fstat(&source).map_err(|e| Error::io(from, "opening", e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(irregular());
        }
        let len = u64::try_from(stat.st_size).unwrap_or(0);
        let file = self.file(name, len)?;
        let changed = |got: String| Error::InputChanged {
            path: from.to_path_buf(),
            message: format!("{got} bytes, {len} before"),
        };
        let (mut buffer, mut at) = (vec![0; CHUNK], 0);
        loop {
            match retry_on_intr(|| read(&source, &mut buffer)).map_err(|e| Error::io(from, "reading", e))? {
                0 if at == len => return file.finish(),
                0 => return Err(changed(at.to_string())),
                n if at + n as u64 > len => return Err(changed(format!("more than {len}"))),
                n => {
                    file.write_all_at(&buffer[..n], at)?;
                    at += n as u64;
                }
            }
        }
    }

    /// Path of the stage folder, for who reads back what is in it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.place.parent.join(&self.name)
    }

    /// Removes the stage, unless it holds anything that was not made through it.
    pub(super) fn remove(&mut self) {
        for entry in self.lock().drain(..) {
            let _ = unlinkat(&self.dir, &entry.name, AtFlags::empty());
        }
        let _ = journal::remove(&self.dir);
        let _ = unlinkat(&self.place.dir, &self.name, AtFlags::REMOVEDIR);
        self.keep = true;
    }

    /// The files made so far.
    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Entry>> {
        // A list of names is whole after any panic.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn final_path(&self, name: &str) -> PathBuf {
        match self.target.kind {
            OutputKind::File => self.target.path.clone(),
            OutputKind::Folder => self.target.path.join(name),
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.keep {
            self.remove();
        }
    }
}

/// A stage to go on with.
#[derive(Debug)]
pub struct Resumed {
    /// The stage.
    pub stage: Stage,
    /// The records of its journal; `None` for a new stage, whose journal is to be started.
    pub records: Option<Vec<String>>,
}

/// Waits a moment for other runs on the same output, which may be about to end.
fn wait_for_others(target: &Target, place: &Place) -> Result<Turn> {
    const LOOKS: u32 = 5;
    const PAUSE: Duration = Duration::from_millis(100);
    let mut looks = 0;
    loop {
        let turn = Turn::take(&place.dir);
        let found = leftover::find(&place.dir, Some(&place.name))
            .map_err(|e| Error::io(&place.parent, "listing the folder of the output", e))?;
        let Some(held) = found.iter().find(|stage| stage.is_held()) else { return Ok(turn) };
        looks += 1;
        if looks == LOOKS {
            return Err(Error::OutputLocked { path: target.path.clone(), pid: held.pid });
        }
        drop(turn);
        std::thread::sleep(PAUSE);
    }
}

/// A fresh name; the output's own name is cut where the whole would pass 255 bytes.
fn stage_name(output: &OsStr) -> OsString {
    // Unique names only need to differ; the keys of a fresh hasher come from the system's randomness.
    let random = RandomState::new().hash_one(0u8);
    let tail = format!("{MARK}{}-{random:016x}{SUFFIX}", getpid().as_raw_nonzero());
    OsString::from_vec([b".", leftover::cut(output.as_bytes()), tail.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stage_names_fit_and_differ() {
        for name in ["out", &"x".repeat(255), &"é".repeat(127), ""] {
            let (a, b) = (stage_name(OsStr::new(name)), stage_name(OsStr::new(name)));
            assert!(a.len() <= 255, "{a:?}");
            assert!(a.to_str().is_some_and(|s| s.starts_with('.') && s.ends_with(".partial")), "{a:?}");
            assert_ne!(a, b);
        }
    }
}
