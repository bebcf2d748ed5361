//! The one moment at which an output appears.

use std::ffi::{OsStr, OsString};
use std::io;

use rustix::fd::AsFd;
use rustix::fs::{AtFlags, RenameFlags, renameat, renameat_with, statat};
use rustix::io::Errno;

use super::journal;
use super::replace::{self, Found};
use super::stage::Stage;
use super::sync;
use super::target::{OutputKind, Place};
use crate::error::{Error, Result};
use crate::plan::recipe::Durability;

impl Stage {
    /// Publishes the staged files: the folder, or the one file, takes the output's name by a rename.
    ///
    /// Up to the rename an error leaves the output path as it was. Where the rename itself is
    /// refused for another reason than an output that came to be meanwhile, the finished stage is
    /// kept, and the error's path names it.
    ///
    /// # Errors
    /// [`Error::OutputExists`], [`Error::OutputNotReplaceable`], [`Error::Io`];
    /// [`Error::NotDurable`] when the output is in place but the folder around it could not be
    /// synced; [`Error::Internal`] when a file was not finished.
    pub fn commit(mut self) -> Result<()> {
        let result = self.publish();
        if self.keep_refused && matches!(result, Err(Error::OutputExists { .. })) {
            self.keep = true;
        }
        result
    }

    fn publish(&mut self) -> Result<()> {
        let single = self.check_finished()?;
        journal::remove(&self.dir)
            .map_err(|e| Error::io(&self.target.path, "removing the journal of the stage", e))?;
        if self.target.durability != Durability::None {
            match sync::folder(&self.dir) {
                // Some file systems sync no folders; the sync of the parent then says so.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(e) => return Err(Error::io(&self.target.path, "fsync of the stage folder", e)),
            }
        }
        let old = replace::find(&self.target, &self.place)?;
        let renamed = match (&old, &single) {
            (Found::Nothing, Some(file)) => rename_new(&self.dir, file, &self.place),
            (Found::Nothing, None) => rename_new(&self.place.dir, &self.name, &self.place),
            // A file takes the place of another one atomically; for folders that is an exchange.
            (Found::File | Found::Folder(_), Some(file)) => {
                renameat(&self.dir, file, &self.place.dir, &self.place.name)
            }
            (Found::File | Found::Folder(_), None) => exchange(&self.name, &self.place),
        };
        match renamed {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(Error::OutputExists { path: self.target.path.clone() }),
            Err(e) => {
                self.keep = true;
                let kept = single.map_or_else(|| self.path(), |file| self.path().join(file));
                return Err(Error::io(&kept, "giving the finished output (kept here) its name", e));
            }
        }
        // From here on the output is in place: nothing may take it away again.
        self.lock().clear();
        self.keep = true;
        if single.is_some() {
            self.remove();
        }
        match (self.target.durability, &old) {
            // What was replaced is deleted below, so that the output must be here to stay.
            (Durability::Full, _) | (Durability::File, Found::Folder(_)) => self.sync_parent(&old)?,
            (Durability::File | Durability::None, _) => {}
        }
        if let Found::Folder(old) = old {
            // Only now: where durability counts, no power cut can bring the old name back without its files.
            replace::delete(&self.place, &self.name, &old).map_err(|e| {
                Error::io(&self.path(), "the output is in place; deleting what it replaced", e)
            })?;
        }
        Ok(())
    }

    /// The name of the only file of a file output; an error when anything is not finished yet.
    fn check_finished(&self) -> Result<Option<String>> {
        let entries = self.lock();
        if let Some(open) = entries.iter().find(|e| !e.state.is_finished()) {
            return Err(Error::Internal { message: format!("commit before `{}` was finished", open.name) });
        }
        match (self.target.kind, entries.as_slice()) {
            (OutputKind::Folder, _) => Ok(None),
            (OutputKind::File, [only]) => Ok(Some(only.name.clone())),
            (OutputKind::File, all) => {
                Err(Error::Internal { message: format!("a file output of {} files", all.len()) })
            }
        }
    }

    fn sync_parent(&self, old: &Found) -> Result<()> {
        sync::folder(&self.place.dir).map_err(|e| {
            let source = io::Error::from(e);
            let source = match old {
                Found::Folder(_) => {
                    let kept = self.path();
                    io::Error::new(
                        source.kind(),
                        format!("{source}; what it replaced is kept at {}", kept.display()),
                    )
                }
                _ => source,
            };
            Error::NotDurable { path: self.target.path.clone(), source }
        })
    }
}

/// Renames to the output's name if that name is free.
fn rename_new(from: impl AsFd, name: impl AsRef<OsStr>, place: &Place) -> rustix::io::Result<()> {
    match renameat_with(&from, name.as_ref(), &place.dir, &place.name, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => rename_if_absent(from, name.as_ref(), place),
        other => other,
    }
}

/// The same where the kernel or the file system cannot refuse to replace: a look, then the rename.
/// What appears between the two is safe if it is a folder with anything in it.
fn rename_if_absent(from: impl AsFd, name: &OsStr, place: &Place) -> rustix::io::Result<()> {
    match statat(&place.dir, &place.name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Err(Errno::EXIST),
        Err(Errno::NOENT) => match renameat(from, name, &place.dir, &place.name) {
            Err(Errno::NOTEMPTY | Errno::NOTDIR | Errno::ISDIR) => Err(Errno::EXIST),
            other => other,
        },
        Err(e) => Err(e),
    }
}

/// Swaps the stage folder and the folder at the output path.
fn exchange(stage: &OsStr, place: &Place) -> rustix::io::Result<()> {
    match renameat_with(&place.dir, stage, &place.dir, &place.name, RenameFlags::EXCHANGE) {
        Err(Errno::INVAL | Errno::NOSYS) => exchange_by_three(stage, place),
        other => other,
    }
}

/// The same where nothing swaps: for a moment there is no output, and the old one is beside it.
fn exchange_by_three(stage: &OsStr, place: &Place) -> rustix::io::Result<()> {
    let mut aside = OsString::from(stage);
    aside.push(".old");
    renameat(&place.dir, &place.name, &place.dir, &aside)?;
    if let Err(e) = rename_if_absent(&place.dir, stage, place) {
        let _ = rename_if_absent(&place.dir, &aside, place);
        return Err(e);
    }
    renameat(&place.dir, &aside, &place.dir, stage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// What file systems without `renameat2` flags get.
    #[test]
    fn without_renameat2_nothing_is_replaced_unasked() {
        let tmp = tempfile::tempdir().unwrap();
        let place = Place::open(&tmp.path().join("out")).unwrap();
        let stage = |text: &str| {
            fs::create_dir(tmp.path().join("stage")).unwrap();
            fs::write(tmp.path().join("stage/file"), text).unwrap();
        };
        let read = |path: &str| fs::read_to_string(tmp.path().join(path)).unwrap();
        stage("first");
        rename_if_absent(&place.dir, OsStr::new("stage"), &place).unwrap();
        stage("second");
        assert_eq!(rename_if_absent(&place.dir, OsStr::new("stage"), &place), Err(Errno::EXIST));
        assert_eq!((read("out/file"), read("stage/file")), ("first".into(), "second".into()));
        exchange_by_three(OsStr::new("stage"), &place).unwrap();
        assert_eq!((read("out/file"), read("stage/file")), ("second".into(), "first".into()));
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 2);
    }
}
