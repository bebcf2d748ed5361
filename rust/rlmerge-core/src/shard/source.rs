//! Opening files of a model, and noticing when they change.

use std::collections::BTreeMap;
use std::fs::{File, Metadata, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::Serialize;

use super::file_system::is_local;
use super::header::{HeaderTensor, read_header};
use super::links;
use super::mapping::Mapping;
use crate::error::{Error, Result, escape};

/// What tells whether a file is still the same, from `fstat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FileIdentity {
    /// Device.
    #[serde(skip)]
    pub dev: u64,
    /// Inode; with the device it says which file this is, whatever its path.
    #[serde(rename = "inode")]
    pub ino: u64,
    /// Length in bytes.
    #[serde(rename = "bytes")]
    pub size: u64,
    /// Time of the last change of contents, in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Time of the last change of contents or attributes, in nanoseconds since 1970.
    #[serde(skip)]
    pub ctime_ns: i64,
    /// Number of names that the file has.
    #[serde(skip)]
    pub links: u64,
}

impl FileIdentity {
    fn of(metadata: &Metadata) -> Self {
        let ns = |seconds: i64, ns: i64| seconds.saturating_mul(1_000_000_000).saturating_add(ns);
        Self {
            dev: metadata.dev(),
            ino: metadata.ino(),
            size: metadata.len(),
            mtime_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            ctime_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
            links: metadata.nlink(),
        }
    }

    /// What `now` says that has changed, in words.
    fn difference(&self, now: &Self) -> Option<String> {
        if now.size != self.size {
            let verb = if now.size < self.size { "shrank" } else { "grew" };
            return Some(format!("{verb} from {} to {} bytes", self.size, now.size));
        }
        if now.mtime_ns != self.mtime_ns {
            return Some("modification time".into());
        }
        // Deleting the file or renaming another one over it changes the time too, but takes a name
        // away; the bytes that we hold open stay what they were.
        if now.ctime_ns != self.ctime_ns && now.links == self.links {
            return Some("status change time".into());
        }
        None
    }
}

/// One file of a checkpoint, held open.
#[derive(Debug)]
pub struct Shard {
    /// Path by which it was opened.
    pub path: PathBuf,
    /// Where that leads, if it is a symbolic link.
    pub real_path: Option<PathBuf>,
    /// File name.
    pub name: String,
    /// The file as it was when it was opened.
    pub identity: FileIdentity,
    /// Offset of the first tensor byte.
    pub data_start: u64,
    /// BLAKE3 of prefix and header, in hex.
    pub header_blake3: String,
    /// `__metadata__` of the header.
    pub metadata: Option<BTreeMap<String, String>>,
    file: File,
    /// Made when it is first asked for; `None` where the file must not or cannot be mapped.
    mapping: OnceLock<Option<Mapping>>,
}

impl Shard {
    /// Opens a file and parses its header. Gives the shard, its tensors and its warnings.
    pub(super) fn open(path: &Path) -> Result<(Self, Vec<HeaderTensor>, Vec<String>)> {
        let (file, identity) = open_regular(path)?;
        let header = read_header(&file, path, identity.size)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let shard = Self {
            path: path.to_path_buf(),
            real_path: links::target(path),
            name,
            identity,
            data_start: header.data_start,
            header_blake3: header.blake3,
            metadata: header.metadata,
            file,
            mapping: OnceLock::new(),
        };
        Ok((shard, header.tensors, header.warnings))
    }

    /// The whole file in memory, mapped on first use. `None` on a file system of another machine, where a lost page
    /// or connection would be a signal instead of an error, and where the system refuses: read such a file with
    /// [`read_at`](Self::read_at).
    #[must_use]
    pub fn mapping(&self) -> Option<&Mapping> {
        let map = || {
            let mapping = is_local(&self.file).then(|| Mapping::new(&self.file).ok()).flatten()?;
            // A file that changed its length since it was opened is told of by whoever reads it.
            (mapping.len() == self.identity.size).then_some(mapping)
        };
        self.mapping.get_or_init(map).as_ref()
    }

    /// Reads the bytes from offset `begin` on into `out`, by positional reads.
    ///
    /// # Errors
    /// [`Error::InputShrank`] when the file has become too short, else [`Error::ReadFailed`].
    pub fn read_at(&self, begin: u64, out: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(out, begin).map_err(|source| {
            if source.kind() == std::io::ErrorKind::UnexpectedEof
                && let Some(shrank) = self.shrank(begin)
            {
                return shrank;
            }
            Error::ReadFailed { path: self.path.clone(), tensor: None, offset: begin, source }
        })
    }

    /// Refuses a mapping that has shown zeros instead of the file. `begin` is where the reading began.
    ///
    /// # Errors
    /// [`Error::InputShrank`].
    pub fn check_intact(&self, begin: u64) -> Result<()> {
        if self.mapping.get().and_then(Option::as_ref).is_none_or(Mapping::is_intact) {
            return Ok(());
        }
        let grown_again = || Error::InputChanged {
            path: self.path.clone(),
            message: format!("pages behind byte {begin} were gone for a time"),
        };
        Err(self.shrank(begin).unwrap_or_else(grown_again))
    }

    /// Refuses a file that is not what it was; `begin` is where it could not be read.
    ///
    /// # Errors
    /// [`Error::InputShrank`] when it is too short now, else as [`verify_unchanged`](Self::verify_unchanged).
    pub fn check_length(&self, begin: u64) -> Result<()> {
        self.shrank(begin).map_or_else(|| self.verify_unchanged(), Err)
    }

    /// The error for a file that is shorter than it was.
    fn shrank(&self, offset: u64) -> Option<Error> {
        let now = self.file.metadata().ok()?.len();
        let (path, from) = (self.path.clone(), self.identity.size);
        (now < from).then_some(Error::InputShrank { path, tensor: None, offset, from, now })
    }

    /// Asks the system to read `begin..end` ahead of use, however it is read then.
    pub fn prefetch(&self, begin: u64, end: u64) {
        let length = std::num::NonZeroU64::new(end.saturating_sub(begin));
        // Advice only: a file system that cannot read ahead reads when it is asked.
        let _ = rustix::fs::fadvise(&self.file, begin, length, rustix::fs::Advice::WillNeed);
    }

    /// Whether the file is still what it was when it was opened. Replacing it by a rename or deleting
    /// it is no change: the open file lives on.
    ///
    /// # Errors
    /// [`Error::InputChanged`] with what changed.
    pub fn verify_unchanged(&self) -> Result<()> {
        self.check_intact(self.data_start)?;
        let now = self.file.metadata().map_err(|e| Error::io(&self.path, "looking at the file", e))?;
        match self.identity.difference(&FileIdentity::of(&now)) {
            Some(message) => Err(Error::InputChanged { path: self.path.clone(), message }),
            None => Ok(()),
        }
    }
}

/// Opens a regular file, and nothing else: looks first, never blocks, and looks again at what it got.
pub(super) fn open_regular(path: &Path) -> Result<(File, FileIdentity)> {
    regular(path, &look(path)?)?;
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(|e| Error::io(path, "opening", e))?;
    let metadata = file.metadata().map_err(|e| Error::io(path, "looking at the file", e))?;
    regular(path, &metadata)?;
    Ok((file, FileIdentity::of(&metadata)))
}

/// `stat` with an answer for the ways in which there can be nothing to look at.
pub(super) fn look(path: &Path) -> Result<Metadata> {
    std::fs::metadata(path).map_err(|e| {
        let odd = |message: String| Error::NotACheckpoint { path: path.to_path_buf(), message };
        if e.raw_os_error() == Some(libc::ELOOP) {
            return odd("a symbolic link that leads back to itself".into());
        }
        match e.kind() {
            std::io::ErrorKind::NotFound => match std::fs::read_link(path) {
                Ok(target) => odd(format!(
                    "a symbolic link to `{}`, where nothing is",
                    escape(&target.to_string_lossy())
                )),
                Err(_) => Error::ModelNotFound { path: path.to_path_buf() },
            },
            std::io::ErrorKind::NotADirectory | std::io::ErrorKind::InvalidInput => {
                Error::ModelNotFound { path: path.to_path_buf() }
            }
            _ => Error::io(path, "looking at the path", e),
        }
    })
}

fn regular(path: &Path, metadata: &Metadata) -> Result<()> {
    let kind = metadata.file_type();
    let what = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a named pipe (FIFO)",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    Err(Error::NotACheckpoint { path: path.to_path_buf(), message: format!("{what}, not a file") })
}

/// Name of the report in a merged folder.
const REPORT: &str = "rlmerge.json";
/// Longest report: a kilobyte for each of more tensors than any model has.
const MAX_REPORT_BYTES: u64 = 256 << 20;

/// The report in a merged folder.
///
/// # Errors
/// [`Error::NotACheckpoint`] when the folder has none, [`Error::BadConfig`] when it is not JSON.
pub fn read_report(folder: &Path) -> Result<serde_json::Value> {
    look(folder)?;
    read_report_file(&folder.join(REPORT)).map_err(|e| match e {
        Error::ModelNotFound { .. } => {
            let message = format!("holds no `{REPORT}`: not a folder that rlmerge merged");
            Error::NotACheckpoint { path: folder.to_path_buf(), message }
        }
        other => other,
    })
}

/// A report in a file of any name.
///
/// # Errors
/// [`Error::ModelNotFound`] when there is none, [`Error::BadConfig`] when it is not JSON.
pub fn read_report_file(path: &Path) -> Result<serde_json::Value> {
    let bad = |message: String| Error::BadConfig { path: path.to_path_buf(), message };
    let text = read_bounded(path, MAX_REPORT_BYTES, bad)?;
    serde_json::from_slice(&text).map_err(|e| bad(format!("not JSON: {e}")))
}

/// The contents of a small file of at most `limit` bytes. `bad` makes the error for what is not a
/// regular file or too long.
pub(super) fn read_bounded(path: &Path, limit: u64, bad: impl Fn(String) -> Error) -> Result<Vec<u8>> {
    let (file, identity) = open_regular(path).map_err(|e| match e {
        Error::NotACheckpoint { message, .. } => bad(message),
        other => other,
    })?;
    let over = |size: String| bad(format!("{size}, over the limit of {limit} bytes"));
    if identity.size > limit {
        return Err(over(format!("{} bytes long", identity.size)));
    }
    let mut contents = Vec::new();
    file.take(limit + 1).read_to_end(&mut contents).map_err(|e| Error::io(path, "reading", e))?;
    if contents.len() as u64 > limit {
        return Err(over("growing".into()));
    }
    Ok(contents)
}
