//! What is at the output path already, whether it may be replaced, and how it goes.

use std::path::Path;

use rustix::fd::{AsFd, OwnedFd};
use rustix::ffi::{CStr, CString};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat, unlinkat};
use rustix::io::{self, Errno};

use super::target::{OutputKind, Place, Target, folder_flags};
use crate::error::{Error, Result, escape};

/// What the output takes the place of.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing.
    Nothing,
    /// A regular file that may go.
    File,
    /// A checkpoint folder that may go.
    Folder(OwnedFd),
}

/// Looks at the output path; an error unless it is free, or holds what `--force` may replace.
///
/// A folder is replaceable when it is empty, or is a checkpoint (it holds a safetensors file or
/// `rlmerge.json`) without sub-folders. So a mistyped `-o ~ --force` can never delete a tree.
pub(super) fn find(target: &Target, place: &Place) -> Result<Found> {
    let path = &target.path;
    let stat = match statat(&place.dir, &place.name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        Err(e) => return Err(Error::io(path, "looking at the output path", e)),
    };
    if !target.force {
        return Err(Error::OutputExists { path: path.clone() });
    }
    let refuse = |message: String| Err(Error::OutputNotReplaceable { path: path.clone(), message });
    match (target.kind, FileType::from_raw_mode(stat.st_mode)) {
        (OutputKind::File, FileType::RegularFile) => Ok(Found::File),
        (OutputKind::Folder, FileType::Directory) => {
            let dir = openat(&place.dir, &place.name, folder_flags() | OFlags::NOFOLLOW, Mode::empty())
                .map_err(|e| Error::io(path, "opening the folder to replace", e))?;
            let entries =
                entries_of(&dir).map_err(|e| Error::io(path, "listing the folder to replace", e))?;
            if let Some(sub) = entries.iter().find(|e| e.is_folder()) {
                let sub = escape(&sub.name.to_string_lossy());
                return refuse(format!(
                    "the folder has a sub-folder `{sub}`, and only its own files would be replaced"
                ));
            }
            if !entries.is_empty() && !entries.iter().any(Entry::marks_checkpoint) {
                return refuse("the folder is not empty and not a checkpoint".into());
            }
            Ok(Found::Folder(dir))
        }
        (kind, found) => {
            let found = match found {
                FileType::Directory => "a folder",
                FileType::RegularFile => "a file",
                FileType::Symlink => "a symbolic link",
                _ => "neither a file nor a folder",
            };
            let kind = if kind == OutputKind::File { "file" } else { "folder" };
            refuse(format!("it is {found}, the output is a {kind}"))
        }
    }
}

/// Deletes a replaced folder, which now has the name of the stage.
pub(super) fn delete(place: &Place, name: &std::ffi::OsStr, old: &OwnedFd) -> io::Result<()> {
    let (held, named) = (fstat(old)?, statat(&place.dir, name, AtFlags::SYMLINK_NOFOLLOW)?);
    if (held.st_dev, held.st_ino) != (named.st_dev, named.st_ino) {
        // Somebody put another folder at the output path between our look and our rename.
        return Err(Errno::BUSY);
    }
    for entry in entries_of(old)? {
        unlinkat(old, &*entry.name, AtFlags::empty())?;
    }
    unlinkat(&place.dir, name, AtFlags::REMOVEDIR)
}

/// One name in a folder.
pub(super) struct Entry {
    pub name: CString,
    /// Of the entry itself, not of what a symbolic link leads to.
    pub stat: Stat,
}

impl Entry {
    fn is_folder(&self) -> bool {
        FileType::from_raw_mode(self.stat.st_mode) == FileType::Directory
    }

    fn marks_checkpoint(&self) -> bool {
        let name = self.name.to_bytes();
        name == b"rlmerge.json" || name.ends_with(b".safetensors")
    }
}

/// What is in the folder at `folder`.
pub(super) fn entries(output: &Path, folder: &Path) -> Result<Vec<Entry>> {
    openat(CWD, folder, folder_flags(), Mode::empty())
        .and_then(entries_of)
        .map_err(|e| Error::io(output, "listing the folder at the output path", e))
}

pub(super) fn entries_of(dir: impl AsFd) -> io::Result<Vec<Entry>> {
    let mut out = Vec::new();
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            out.push(Entry { name: name.to_owned(), stat });
        }
    }
    Ok(out)
}
