//! The hidden folder beside the output, in which the output grows.

use std::collections::hash_map::RandomState;
use std::ffi::{OsStr, OsString};
use std::hash::BuildHasher as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, mkdirat, openat, unlinkat};
use rustix::io::{Errno, read, retry_on_intr};
use rustix::process::getpid;

use super::file::{StagedFile, State};
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
    /// Whether the folder outlives this value: it was published, or its work is worth keeping.
    pub(super) keep: bool,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub name: String,
    pub state: Arc<State>,
}

impl Stage {
    /// Makes an empty stage. Call [`preflight`](super::preflight) first: this looks at nothing.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::NoSpace`] when the folder cannot be made.
    pub fn create(target: &Target) -> Result<Self> {
        let place = Place::open(&target.path)?;
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
        Ok(Self { target: target.clone(), place, name, dir, entries: Mutex::default(), keep: false })
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
        let state = Arc::<State>::default();
        self.lock().push(Entry { name: name.to_owned(), state: Arc::clone(&state) });
        StagedFile::reserve(fd, path, len, self.target.durability, state)
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

    /// Path of the stage folder.
    pub(super) fn path(&self) -> PathBuf {
        self.place.parent.join(&self.name)
    }

    /// Removes the stage, unless it holds anything that was not made through it.
    pub(super) fn remove(&mut self) {
        for entry in self.lock().drain(..) {
            let _ = unlinkat(&self.dir, &entry.name, AtFlags::empty());
        }
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

/// A fresh name; the output's own name is cut where the whole would pass 255 bytes.
fn stage_name(output: &OsStr) -> OsString {
    const LONGEST: usize = 200;
    let bytes = output.as_bytes();
    let mut cut = bytes.len().min(LONGEST);
    // Not within a UTF-8 character: some file systems refuse such names.
    while cut < bytes.len() && cut > 0 && bytes[cut] & 0xc0 == 0x80 {
        cut -= 1;
    }
    // Unique names only need to differ; the keys of a fresh hasher come from the system's randomness.
    let random = RandomState::new().hash_one(0u8);
    let tail = format!(".rlmerge-{}-{random:016x}.partial", getpid().as_raw_nonzero());
    OsString::from_vec([b".", &bytes[..cut], tail.as_bytes()].concat())
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
