//! Where an output goes, and what it must not touch.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::error::{Error, OPEN_PARENT, Result};
use crate::plan::recipe::Durability;

/// What appears at the output path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKind {
    /// One safetensors file.
    File,
    /// A checkpoint folder.
    Folder,
}

/// An output to be.
#[derive(Debug, Clone)]
pub struct Target {
    /// Path of the file or folder.
    pub path: PathBuf,
    /// Which of the two.
    pub kind: OutputKind,
    /// Whether something of the same kind may be replaced.
    pub force: bool,
    /// What is synced.
    pub durability: Durability,
}

/// A file or folder that the merge reads: every model path and every shard file.
#[derive(Debug, Clone)]
pub struct Input {
    /// Its path.
    pub path: PathBuf,
    /// Device, with symbolic links followed.
    pub dev: u64,
    /// Inode, with symbolic links followed.
    pub ino: u64,
}

/// An output path taken apart, its folder held open: whatever happens to the path later, the work
/// stays in that folder.
#[derive(Debug)]
pub(super) struct Place {
    pub parent: PathBuf,
    pub name: OsString,
    pub dir: OwnedFd,
}

impl Place {
    pub fn open(path: &Path) -> Result<Self> {
        let (parent, name) = split(path)?;
        let dir = openat(CWD, &parent, folder_flags(), Mode::empty())
            .map_err(|e| Error::io(&parent, OPEN_PARENT, e))?;
        Ok(Self { parent, name, dir })
    }
}

fn split(path: &Path) -> Result<(PathBuf, OsString)> {
    let named = |path: &Path| {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        path.file_name().map(|name| (parent.to_path_buf(), OsStr::to_os_string(name)))
    };
    if let Some(parts) = named(path) {
        return Ok(parts);
    }
    // `.`, `..` and their like have a name once resolved; `/` has none.
    let resolved = path.canonicalize().map_err(|e| Error::io(path, "resolving the output path", e))?;
    named(&resolved).ok_or_else(|| {
        let nameless = io::Error::new(io::ErrorKind::InvalidInput, "the path does not end in a name");
        Error::io(path, "naming the output", nameless)
    })
}

pub(super) fn folder_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC
}
