//! Symbolic links: followed, since the cache of the Hugging Face hub is made of them, and told; refused on request.

use std::path::{Path, PathBuf};

use super::checkpoint::Checkpoint;
use crate::error::{Error, Result, escape};

/// Where a path leads if it is a symbolic link.
pub(super) fn target(path: &Path) -> Option<PathBuf> {
    is_link(path).then(|| path.canonicalize().ok()).flatten()
}

/// Whether a path is a link itself; a separator at its end would follow it.
fn is_link(path: &Path) -> bool {
    let itself: PathBuf = path.components().collect();
    itself.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink())
}

/// Refuses a model that is a symbolic link, or whose folder holds one.
///
/// # Errors
/// [`Error::NotACheckpoint`] with the link, [`Error::Io`] when a folder cannot be listed.
pub fn refuse_links(model: &Checkpoint) -> Result<()> {
    let parts = model.parts().map_or_else(|| vec![model.path()], |p| vec![&p.base, &p.adapter]);
    for path in parts {
        refuse(path)?;
        if path.is_dir() {
            let failed = |e| Error::io(path, "listing", e);
            let mut names = Vec::new();
            for entry in path.read_dir().map_err(failed)? {
                names.push(entry.map_err(failed)?.path());
            }
            names.sort();
            names.iter().try_for_each(|path| refuse(path))?;
        }
    }
    Ok(())
}

fn refuse(path: &Path) -> Result<()> {
    if !is_link(path) {
        return Ok(());
    }
    let target = path.read_link().unwrap_or_default();
    let message =
        format!("a symbolic link to `{}`, which `--no-symlinks` forbids", escape(&target.to_string_lossy()));
    Err(Error::NotACheckpoint { path: path.to_path_buf(), message })
}
