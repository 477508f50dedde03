//! Between the kernel's forms and ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use super::nodeid::Node;
use crate::store::model::FileKind;
use crate::types::Timestamp;
use crate::volume::Attr;

/// Block size that `stat` reports: one of our requests is a multiple of it.
const BLKSIZE: u32 = 4096;

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Dir => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::Char => FileType::CharDevice,
        FileKind::Block => FileType::BlockDevice,
    }
}

/// The kind in the format bits of a mode; a mode without them is a regular file.
pub(super) fn kind_of_mode(mode: u32) -> Option<FileKind> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Some(FileKind::File),
        libc::S_IFIFO => Some(FileKind::Fifo),
        libc::S_IFSOCK => Some(FileKind::Socket),
        libc::S_IFCHR => Some(FileKind::Char),
        libc::S_IFBLK => Some(FileKind::Block),
        _ => None,
    }
}

pub(super) fn to_system(t: Timestamp) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(t.nanos));
    let whole = Duration::from_secs(t.secs.unsigned_abs());
    let base = if t.secs >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
    base.and_then(|b| b.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// A time out of a request. fuser 0.18 takes `secs + nanos` before the epoch for `-(|secs| + nanos)`; since
/// nothing else makes such values in a request, the mistake is undone here.
pub(super) fn from_request(t: SystemTime) -> Timestamp {
    match t.duration_since(UNIX_EPOCH) {
        Ok(d) => Timestamp { secs: i64::try_from(d.as_secs()).unwrap_or(i64::MAX), nanos: d.subsec_nanos() },
        Err(before) => {
            let d = before.duration();
            let secs = i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
            Timestamp { secs: -secs, nanos: d.subsec_nanos() }
        }
    }
}

pub(super) fn time_or_now(t: TimeOrNow, now: Timestamp) -> Timestamp {
    match t {
        TimeOrNow::SpecificTime(t) => from_request(t),
        TimeOrNow::Now => now,
    }
}

/// The attributes of a node as the kernel wants them.
pub(super) fn file_attr(node: Node, attr: &Attr) -> FileAttr {
    let a = &attr.attrs;
    let blocks = match a.kind {
        FileKind::Dir => 8,
        _ => attr.data_bytes.div_ceil(512).next_multiple_of(8),
    };
    FileAttr {
        ino: INodeNo(node.id()),
        size: if a.kind == FileKind::Dir { 4096 } else { a.size },
        blocks,
        atime: to_system(a.atime),
        mtime: to_system(a.mtime),
        ctime: to_system(a.ctime),
        crtime: to_system(a.btime),
        kind: file_type(a.kind),
        perm: a.mode & 0o7777,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: a.rdev,
        blksize: BLKSIZE,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_survive_fusers_decoder() {
        // What fuser makes of -1.5 s, which the kernel sends as -2 s and 500 ms.
        let mistaken = UNIX_EPOCH - Duration::new(2, 500_000_000);
        let t = from_request(mistaken);
        assert_eq!(t, Timestamp { secs: -2, nanos: 500_000_000 });
        assert_eq!(to_system(t), UNIX_EPOCH - Duration::from_millis(1500));
    }
}
