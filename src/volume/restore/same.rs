//! Whether something is what it was.

use crate::store::index::{Version, View};
use crate::store::model::{Attrs, FileKind, Inode, Xattr};
use crate::types::Ino;
use crate::volume::{FsError, FsResult};

/// Numbers of blocks compared at a time.
const BLOCKS_PAGE: usize = if cfg!(test) { 3 } else { 512 };

/// Whether a directory (`now`) has the attributes that one had at the point (`then`); its access time is of no
/// interest, its other times only with `times`.
pub(super) fn has_attributes(
    (past, point, then): (&View, Ino, &Version<Inode>),
    (live, ino, now): (&View, Ino, &Version<Inode>),
    times: bool,
) -> FsResult<bool> {
    if point == ino && then.since == now.since {
        return Ok(true);
    }
    let (a, b) = (&then.item.attrs, &now.item.attrs);
    let same = (a.mode, a.uid, a.gid) == (b.mode, b.uid, b.gid)
        && (!times || (a.mtime, a.btime) == (b.mtime, b.btime));
    Ok(same && sorted(past.xattrs(point)?) == sorted(live.xattrs(ino)?))
}

/// Whether a file or link is what it was. Reading it makes a new version, which differs in the access time alone.
pub(super) fn is_same(past: &View, point: Ino, live: &View, ino: Ino) -> FsResult<bool> {
    if point != ino {
        return Ok(false);
    }
    let then = past.inode(ino)?.ok_or(FsError::Stale)?;
    let now = live.inode(ino)?.ok_or(FsError::Stale)?;
    if then.since == now.since {
        return Ok(true);
    }
    let (a, b) = (&then.item.attrs, &now.item.attrs);
    Ok(*a == Attrs { atime: a.atime, ..b.clone() }
        && (a.xattrs == 0 || sorted(past.xattrs(ino)?) == sorted(live.xattrs(ino)?))
        && (a.kind != FileKind::File || has_blocks((past, &then.item), (live, &now.item), ino)?))
}

fn blocks(view: &View, inode: &Inode, ino: Ino, from: u64) -> FsResult<Vec<u64>> {
    let mut page = Vec::new();
    view.blocks(inode, ino, from, |block, _| {
        page.push(block);
        Ok(page.len() < BLOCKS_PAGE)
    })?;
    Ok(page)
}

/// Whether a file consists of the same recipes.
fn has_blocks((past, then): (&View, &Inode), (live, now): (&View, &Inode), ino: Ino) -> FsResult<bool> {
    let mut from = 0;
    loop {
        let page = blocks(past, then, ino, from)?;
        if page != blocks(live, now, ino, from)? {
            return Ok(false);
        }
        let Some(last) = page.last() else { return Ok(true) };
        from = last + 1;
        for block in page {
            if past.block(then, ino, block)? != live.block(now, ino, block)? {
                return Ok(false);
            }
        }
    }
}

fn sorted(mut xattrs: Vec<Xattr>) -> Vec<Xattr> {
    xattrs.sort_by(|a, b| a.name.cmp(&b.name));
    xattrs
}
