//! Removing the stages of killed runs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, openat, unlinkat};
use rustix::io::Errno;

use super::leftover::{self, Leftover};
use super::lock::Turn;
use super::replace;
use super::target::{Place, folder_flags};
use crate::error::{Error, Result};

/// A stage that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// Its path.
    pub path: PathBuf,
    /// Bytes of its files on the disk.
    pub bytes: u64,
    /// Process that made it.
    pub pid: u32,
    /// Why it was left alone; `None` when it was removed (or would be).
    pub kept: Option<&'static str>,
}

/// Removes the stages of killed runs in the folder at `path`, and those of an output at `path`. With `dry_run` it only
/// says which.
///
/// Left alone are stages in which a run is at work, those of other users, and those with folders in them, which no run
/// makes.
///
/// # Errors
/// [`Error::ModelNotFound`] when there is neither such a folder nor one around it, else [`Error::Io`].
pub fn clean(path: &Path, dry_run: bool) -> Result<Vec<Stray>> {
    let mut strays = Vec::new();
    let inside = match openat(CWD, path, folder_flags(), Mode::empty()) {
        Ok(dir) => {
            clean_folder(&dir, path, None, dry_run, &mut strays)?;
            true
        }
        Err(Errno::NOENT | Errno::NOTDIR) => false,
        Err(e) => return Err(Error::io(path, "opening the folder", e)),
    };
    match Place::open(path) {
        Ok(place) => {
            clean_folder(&place.dir, &place.parent, Some(&place.name), dry_run, &mut strays)?;
        }
        Err(_) if inside => {}
        Err(_) => return Err(Error::ModelNotFound { path: path.to_path_buf() }),
    }
    Ok(strays)
}

fn clean_folder(
    dir: &rustix::fd::OwnedFd,
    path: &Path,
    output: Option<&OsStr>,
    dry_run: bool,
    strays: &mut Vec<Stray>,
) -> Result<()> {
    let failed = |e| Error::io(path, "listing the folder", e);
    // Nobody takes up a stage while it is being removed.
    let _turn = Turn::take(dir);
    for found in leftover::find(dir, output).map_err(failed)? {
        let place = path.join(&found.name);
        let (bytes, kept) = judge(&found, dry_run);
        if kept.is_none() && !dry_run {
            remove(dir, &found).map_err(|e| Error::io(&place, "removing the stage", e))?;
        }
        strays.push(Stray { path: place, bytes, pid: found.pid, kept });
    }
    Ok(())
}

/// The bytes of a stage, and why it must stay.
fn judge(found: &Leftover, dry_run: bool) -> (u64, Option<&'static str>) {
    let Ok(entries) = replace::entries_of(&found.dir) else { return (0, Some("it cannot be read")) };
    let folder = entries.iter().any(|e| FileType::from_raw_mode(e.stat.st_mode) == FileType::Directory);
    let held = if dry_run { found.is_held() } else { !found.take() };
    let kept = match () {
        () if !found.own => Some("another user made it"),
        () if held => Some("a run is at work in it"),
        () if folder => Some("it holds a folder, which no run makes"),
        () => None,
    };
    (found.bytes(), kept)
}

fn remove(parent: &rustix::fd::OwnedFd, found: &Leftover) -> rustix::io::Result<()> {
    for entry in replace::entries_of(&found.dir)? {
        unlinkat(&found.dir, &*entry.name, AtFlags::empty())?;
    }
    unlinkat(parent, &found.name, AtFlags::REMOVEDIR)
}
