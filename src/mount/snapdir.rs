//! The snapshot directory that every live directory has: names of snapshots and moments, each showing that
//! same directory as it was.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::nodeid::Node;
use super::views::Views;
use crate::store::model::{FileKind, RequestId};
use crate::types::{Ino, Lsn};
use crate::volume::{Attr, FsError, FsResult, SnapshotCreate, Volume, Volumes};

/// Snapshots that one `readdir` round fetches.
const PAGE: usize = 256;

/// An entry of a snapshot directory's listing.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) view: u32,
    pub(super) at: Lsn,
    pub(super) cookie: u64,
}

/// The snapshot directory within `dir`: it looks like that directory, but only the root's can be written.
pub(super) fn attr(volume: &Volume, dir: Ino) -> FsResult<Attr> {
    let mut attr = volume.getattr(None, dir)?;
    if attr.attrs.kind != FileKind::Dir {
        return Err(FsError::NotDir);
    }
    if dir != Ino::ROOT {
        attr.attrs.mode &= !0o222;
    }
    attr.attrs.mode &= 0o777;
    attr.attrs.nlink = 2;
    Ok(attr)
}

/// The directory `dir` as `name` shows it.
pub(super) fn lookup(volume: &Volume, views: &Views, dir: Ino, name: &[u8]) -> FsResult<(Node, Attr)> {
    let (view, at) = views.named(name)?;
    let attr = volume.getattr(Some(at), dir)?;
    views.check(at)?;
    Ok((Node::Past { view, ino: dir }, attr))
}

/// The snapshots behind `cookie` (an LSN) in which `dir` existed.
pub(super) fn list(volume: &Volume, dir: Ino, cookie: u64) -> FsResult<Vec<Entry>> {
    let mut after = Lsn(cookie);
    loop {
        let rows = volume.snapshots(after, PAGE)?;
        let Some(last) = rows.last() else { return Ok(Vec::new()) };
        after = last.lsn;
        let shown: Vec<Entry> = rows
            .into_iter()
            .filter(|row| dir == Ino::ROOT || volume.getattr(Some(row.lsn), dir).is_ok())
            .map(|row| Entry { name: row.spec.name, view: row.spec.view, at: row.lsn, cookie: row.lsn.0 })
            .collect();
        if !shown.is_empty() {
            return Ok(shown);
        }
    }
}

/// `mkdir .snapshots/NAME` at the root takes a snapshot.
pub(super) fn create(
    volumes: &Volumes,
    volume: &Volume,
    dir: Ino,
    name: &OsStr,
    request: Option<RequestId>,
) -> FsResult<()> {
    if dir != Ino::ROOT {
        return Err(FsError::ReadOnly);
    }
    let text =
        std::str::from_utf8(name.as_bytes()).map_err(|_| FsError::Invalid("a snapshot's name is UTF-8"))?;
    if text.starts_with('@') {
        return Err(FsError::Exists);
    }
    let create = SnapshotCreate { name: Some(text.to_owned()), request, ..SnapshotCreate::default() };
    volumes.snapshot(&[volume.id()], &create).map(drop)
}

/// `rmdir .snapshots/NAME` at the root deletes one, for root and the store's owner.
pub(super) fn delete(
    volume: &Volume,
    dir: Ino,
    name: &OsStr,
    (uid, owner): (u32, u32),
    request: Option<RequestId>,
) -> FsResult<()> {
    if dir != Ino::ROOT {
        return Err(FsError::ReadOnly);
    }
    if uid != 0 && uid != owner {
        return Err(FsError::NotPermitted("only root and the store's owner delete snapshots"));
    }
    let text = std::str::from_utf8(name.as_bytes()).map_err(|_| FsError::NotFound)?;
    if text.starts_with('@') {
        return Err(FsError::NotPermitted("a moment is not a snapshot that could be deleted"));
    }
    volume.delete_snapshots(&[text], request)
}
