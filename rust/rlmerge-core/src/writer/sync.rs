//! Everything that waits for the disk to be safe goes through here, so that tests can count it.

use rustix::fd::AsFd;
use rustix::io::Result;

/// Waits until a file's bytes and length are on the disk.
pub(super) fn file(fd: impl AsFd) -> Result<()> {
    #[cfg(test)]
    count::FILES.with(|n| n.set(n.get() + 1));
    rustix::fs::fsync(fd)
}

/// Waits until the names in a folder are on the disk.
pub(super) fn folder(fd: impl AsFd) -> Result<()> {
    #[cfg(test)]
    count::FOLDERS.with(|n| n.set(n.get() + 1));
    rustix::fs::fsync(fd)
}

#[cfg(test)]
mod count {
    use std::cell::Cell;

    thread_local! {
        pub static FILES: Cell<u32> = const { Cell::new(0) };
        pub static FOLDERS: Cell<u32> = const { Cell::new(0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::recipe::Durability;
    use crate::writer::{OutputKind, Stage, Target};

    /// Publishes an output of two files, twice: where nothing is, and over itself. Gives the numbers of synced
    /// files and folders of each.
    fn syncs(durability: Durability) -> [(u32, u32); 2] {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("out");
        [false, true].map(|force| {
            count::FILES.set(0);
            count::FOLDERS.set(0);
            let target = Target { path: path.clone(), kind: OutputKind::Folder, force, durability };
            let stage = Stage::create(&target).unwrap();
            let shard = stage.file("model.safetensors", 3).unwrap();
            shard.write_all_at(b"abc", 0).unwrap();
            shard.start_writeback(0, 3);
            shard.settle(|| true).unwrap();
            shard.finish().unwrap();
            stage.write_file("rlmerge.json", if force { b"new" } else { b"old" }).unwrap();
            stage.commit().unwrap();
            assert_eq!(std::fs::read(path.join("model.safetensors")).unwrap(), b"abc");
            let report = std::fs::read(path.join("rlmerge.json")).unwrap();
            assert_eq!(report, if force { b"new" } else { b"old" });
            assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 1);
            (count::FILES.get(), count::FOLDERS.get())
        })
    }

    #[test]
    fn full_syncs_files_stage_and_parent() {
        assert_eq!(syncs(Durability::Full), [(2, 2), (2, 2)]);
    }

    #[test]
    fn file_leaves_out_the_parent_unless_something_old_goes() {
        assert_eq!(syncs(Durability::File), [(2, 1), (2, 2)]);
    }

    #[test]
    fn none_syncs_nothing() {
        assert_eq!(syncs(Durability::None), [(0, 0), (0, 0)]);
    }
}
