//! Which file systems can be trusted with a memory map.

use std::fs::File;

/// File systems whose files are on another machine or in another process, by the magic number that `statfs` gives.
/// There a page that is touched may take for ever, or fail with SIGBUS when a server goes away or a lease ends; a
/// `pread` gives an error that can be told.
const REMOTE: &[(u32, &str)] = &[
    (0x0000_517b, "SMB"),
    (0x0000_564c, "NCP"),
    (0x0000_6969, "NFS"),
    (0x00c3_6400, "Ceph"),
    (0x0102_1997, "9p"),
    (0x0116_1970, "GFS2"),
    (0x0bd0_0bd0, "Lustre"),
    (0x1983_0326, "BeeGFS"),
    (0x2003_0528, "OrangeFS"),
    (0x4750_4653, "GPFS"),
    (0x5346_414f, "AFS"),
    (0x6573_5546, "FUSE"),
    (0x7375_7245, "Coda"),
    (0x7461_636f, "OCFS2"),
    (0x786f_4256, "VirtualBox"),
    (0xaad7_aaea, "PanFS"),
    (0xbacb_acbc, "VMware"),
    (0xfe53_4d42, "SMB 2"),
    (0xff53_4d42, "CIFS"),
];

/// Whether a file can be mapped: it is on a file system of this machine. One that cannot say what it is cannot.
pub(super) fn is_local(file: &File) -> bool {
    // The field's type and sign differ between architectures; all magic numbers have 32 bits.
    rustix::fs::fstatfs(file).is_ok_and(|fs| remote(fs.f_type as u32).is_none())
}

/// The name of a remote file system.
fn remote(magic: u32) -> Option<&'static str> {
    REMOTE.iter().find(|(known, _)| *known == magic).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::{REMOTE, is_local, remote};

    #[test]
    fn remote_file_systems_by_their_numbers() {
        assert_eq!(
            (remote(0x6969), remote(0x6573_5546), remote(0x0bd0_0bd0)),
            (Some("NFS"), Some("FUSE"), Some("Lustre"))
        );
        // ext4, xfs, btrfs, tmpfs, overlay
        for local in [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630] {
            assert_eq!(remote(local), None, "{local:#x}");
        }
        assert!(REMOTE.is_sorted_by(|a, b| a.0 < b.0), "sorted, so that none is there twice");
    }

    #[test]
    fn a_temporary_file_is_local_or_says_why() {
        let file = tempfile::tempfile().unwrap();
        let magic = rustix::fs::fstatfs(&file).unwrap().f_type as u32;
        assert_eq!(is_local(&file), remote(magic).is_none());
    }
}
