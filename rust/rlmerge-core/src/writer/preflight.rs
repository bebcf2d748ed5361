//! Everything about an output that can be known before hours of work; writes nothing.

use std::io::ErrorKind;
use std::path::Path;

use rustix::fs::{Access, AtFlags, FileType, Stat, accessat, stat, statat};

use super::replace;
use super::space;
use super::target::{Input, Place, Target};
use crate::error::{Error, OPEN_PARENT, Result};

/// Checks that `target` can be written: it is no input, nor inside or around one; nothing is there
/// that must not be replaced; its folder exists and takes new entries; `needed_bytes` and one per
/// cent fit on the file system, and `biggest_file` under the process's file size limit.
///
/// # Errors
/// [`Error::OutputIsInput`], [`Error::OutputExists`], [`Error::OutputNotReplaceable`],
/// [`Error::NoSpace`], or [`Error::Io`] with the system's answer.
pub fn preflight(target: &Target, inputs: &[Input], needed_bytes: u64, biggest_file: u64) -> Result<()> {
    let place = Place::open(&target.path)?;
    refuse_inputs(target, &place, inputs)?;
    replace::find(target, &place)?;
    accessat(&place.dir, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(|e| Error::io(&place.parent, "writing into the folder of the output", e))?;
    space::require(&target.path, &place.dir, needed_bytes)?;
    space::require_file_size(&target.path, biggest_file)
}

/// Device and inode: what a file is, whatever its path says.
type Identity = (u64, u64);

fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

fn refuse_inputs(target: &Target, place: &Place, inputs: &[Input]) -> Result<()> {
    let refuse = |input: &Input, relation| {
        Err(Error::OutputIsInput { path: target.path.clone(), input: input.path.clone(), relation })
    };
    let find = |id: Identity| inputs.iter().find(|i| (i.dev, i.ino) == id);

    // What is there already, through symbolic links: nothing, when the link dangles.
    let there = statat(&place.dir, &place.name, AtFlags::empty()).ok();
    if let Some(input) = there.as_ref().and_then(|s| find(identity(s))) {
        return refuse(input, "is");
    }
    let parent = place.parent.canonicalize().map_err(|e| Error::io(&place.parent, OPEN_PARENT, e))?;
    for id in chain(&parent)? {
        if let Some(input) = find(id) {
            return refuse(input, "is inside");
        }
    }
    let Some(there) = there.filter(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory) else {
        return Ok(());
    };
    for input in inputs {
        let path = match input.path.canonicalize() {
            Ok(path) => path,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(Error::ModelNotFound { path: input.path.clone() });
            }
            Err(e) => return Err(Error::io(&input.path, "resolving the path", e)),
        };
        if chain(&path)?.contains(&identity(&there)) {
            return refuse(input, "is around");
        }
    }
    if !target.force {
        return Ok(());
    }
    // Hard links and bind mounts bring an input into a folder that its path does not lead through.
    for entry in replace::entries(&target.path, &target.path)? {
        if let Some(input) = find(identity(&entry.stat)) {
            return refuse(input, "is around");
        }
    }
    Ok(())
}

/// Identities of a resolved path and of everything above it.
fn chain(resolved: &Path) -> Result<Vec<Identity>> {
    resolved
        .ancestors()
        .map(|p| stat(p).map(|s| identity(&s)).map_err(|e| Error::io(p, "reading the folder's identity", e)))
        .collect()
}
