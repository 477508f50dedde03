//! Listings of directories, the snapshot directory's included.

use std::time::Duration;

use fuser::INodeNo;

use super::inner::{FOREVER, Inner, NEVER, beside};
use super::nodeid::Node;
use super::snapdir;
use crate::store::model::FileKind;
use crate::types::Ino;
use crate::volume::FsResult;

/// An entry of any directory's listing.
pub(super) struct Listed {
    pub(super) node: Node,
    pub(super) kind: FileKind,
    pub(super) name: Vec<u8>,
    pub(super) cookie: u64,
    pub(super) keep: Duration,
}

/// The cookie behind the snapshot directory where it is shown; above all others.
const SNAPDIR_COOKIE: u64 = i64::MAX as u64;

impl Inner {
    /// Visits a directory's entries behind `offset` while `add` has room.
    pub(super) fn list(
        &self,
        node: INodeNo,
        offset: u64,
        mut add: impl FnMut(Listed) -> bool,
    ) -> FsResult<()> {
        let this = Node::from_id(node.0);
        if let Node::Snapshots(dir) = this {
            return self.list_snapshots(dir, offset, add);
        }
        let mut room = true;
        if offset < SNAPDIR_COOKIE {
            self.read(node, |at, dir| {
                self.volume.readdir(at, dir, offset, |entry| {
                    let (kind, cookie) = (entry.kind, entry.cookie);
                    let node = beside(this, entry.ino);
                    room = add(Listed { node, kind, name: entry.name, cookie, keep: FOREVER });
                    Ok(room)
                })
            })?;
        }
        if room && offset < SNAPDIR_COOKIE && self.settings.snapdir_visible && this == Node::Live(Ino::ROOT) {
            add(Listed {
                node: Node::Snapshots(Ino::ROOT),
                kind: FileKind::Dir,
                name: self.settings.snapdir_name.clone().into_bytes(),
                cookie: SNAPDIR_COOKIE,
                keep: NEVER,
            });
        }
        Ok(())
    }

    fn list_snapshots(&self, dir: Ino, offset: u64, mut add: impl FnMut(Listed) -> bool) -> FsResult<()> {
        let dots = [(1, ".", Node::Snapshots(dir)), (2, "..", Node::Live(dir))];
        for (cookie, name, node) in dots {
            let name = name.as_bytes().to_vec();
            if offset < cookie && !add(Listed { node, kind: FileKind::Dir, name, cookie, keep: NEVER }) {
                return Ok(());
            }
        }
        let mut after = offset.saturating_sub(2);
        loop {
            let page = snapdir::list(&self.volume, dir, after)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.cookie;
            for entry in page {
                // Seen now, so that its number needs no search later.
                debug_assert!(entry.at.0 == entry.cookie);
                let node = Node::Past { view: entry.view, ino: dir };
                let name = entry.name.into_bytes();
                if !add(Listed { node, kind: FileKind::Dir, name, cookie: entry.cookie + 2, keep: NEVER }) {
                    return Ok(());
                }
            }
        }
    }
}
