//! Whether something is what it was.

use crate::store::index::{Version, View};
use crate::store::model::{FileKind, Inode, Xattr};
use crate::types::Ino;
use crate::volume::FsResult;

/// Numbers of blocks compared at a time.
const BLOCKS_PAGE: usize = if cfg!(test) { 3 } else { 512 };

/// Whether a directory (`now`) has the attributes that one had at the point (`then`); its
/// modification time counts with `times`.
pub(super) fn has_attributes(
    (past, point, then): (&View, Ino, &Version<Inode>),
    (live, ino, now): (&View, Ino, &Version<Inode>),
    times: bool,
) -> FsResult<bool> {
    if point == ino && then.since == now.since {
        return Ok(true);
    }
    let (a, b) = (&then.item.attrs, &now.item.attrs);
    let same = (a.mode, a.uid, a.gid) == (b.mode, b.uid, b.gid) && (!times || a.mtime == b.mtime);
    Ok(same && sorted(past.xattrs(point)?) == sorted(live.xattrs(ino)?))
}

/// Whether what is no directory is what it was: the same inode, or another one that differs in nothing but the
/// times of its making, its last change and its last access.
pub(super) fn is_same(
    (past, point, then): (&View, Ino, &Version<Inode>),
    (live, ino, now): (&View, Ino, &Version<Inode>),
) -> FsResult<bool> {
    if point == ino && then.since == now.since {
        return Ok(true);
    }
    let (a, b) = (&then.item.attrs, &now.item.attrs);
    let same = (a.kind, a.mode, a.uid, a.gid) == (b.kind, b.mode, b.uid, b.gid)
        && (a.size, a.mtime, a.rdev, &a.target) == (b.size, b.mtime, b.rdev, &b.target)
        && a.xattrs == b.xattrs;
    Ok(same
        && (a.xattrs == 0 || sorted(past.xattrs(point)?) == sorted(live.xattrs(ino)?))
        && (a.kind != FileKind::File || has_blocks((past, point, &then.item), (live, ino, &now.item))?))
}

fn blocks(view: &View, inode: &Inode, ino: Ino, from: u64) -> FsResult<Vec<u64>> {
    let mut page = Vec::new();
    view.blocks(inode, ino, from, |block, _| {
        page.push(block);
        Ok(page.len() < BLOCKS_PAGE)
    })?;
    Ok(page)
}

/// Whether files consist of the same recipes: then they have the same data, as far as their sizes go.
pub(super) fn has_blocks(
    (past, point, then): (&View, Ino, &Inode),
    (live, ino, now): (&View, Ino, &Inode),
) -> FsResult<bool> {
    let mut from = 0;
    loop {
        let page = blocks(past, then, point, from)?;
        if page != blocks(live, now, ino, from)? {
            return Ok(false);
        }
        let Some(last) = page.last() else { return Ok(true) };
        from = last + 1;
        for block in page {
            if past.block(then, point, block)? != live.block(now, ino, block)? {
                return Ok(false);
            }
        }
    }
}

fn sorted(mut xattrs: Vec<Xattr>) -> Vec<Xattr> {
    xattrs.sort_by(|a, b| a.name.cmp(&b.name));
    xattrs
}
