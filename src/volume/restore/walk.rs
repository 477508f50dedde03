//! Walking trees of a view with bounded memory: a page of each directory on the way down.

use std::collections::VecDeque;

use crate::store::index::View;
use crate::store::model::{Dirent, FileKind, Inode};
use crate::types::Ino;
use crate::volume::{FsError, FsResult};

/// Entries read at a time.
const PAGE: usize = if cfg!(test) { 3 } else { 256 };
/// Directories within each other; a deeper tree is refused, or is a loop that damage made.
const DEPTH_MAX: usize = 16 * 1024;

/// A hash of a name.
pub(super) type Hash = [u8; 16];

/// The entries of one directory, in the order of their hashes.
pub(super) struct Entries {
    dir: Ino,
    page: VecDeque<(Hash, Dirent)>,
    /// Where the next page begins; none when there is no more.
    next: Option<Hash>,
}

impl Entries {
    pub(super) fn of(dir: Ino) -> Entries {
        Entries { dir, page: VecDeque::new(), next: Some([0; 16]) }
    }

    pub(super) fn next(&mut self, view: &View) -> FsResult<Option<(Hash, Dirent)>> {
        if self.page.is_empty()
            && let Some(from) = self.next.take()
        {
            let page = &mut self.page;
            view.readdir(self.dir, &from, |hash, entry| {
                page.push_back((hash, entry));
                Ok(page.len() < PAGE)
            })?;
            if let Some((last, _)) = page.back().filter(|_| page.len() >= PAGE) {
                self.next = u128::from_be_bytes(*last).checked_add(1).map(u128::to_be_bytes);
            }
        }
        Ok(self.page.pop_front())
    }
}

/// Fails where a tree is too deep.
pub(super) fn check_depth(depth: usize) -> FsResult<()> {
    if depth < DEPTH_MAX {
        return Ok(());
    }
    Err(FsError::Refused(format!("directories lie more than {DEPTH_MAX} deep; restore a part of them")))
}

/// Visits an inode and everything beneath it, each name once; directories before what is in them.
pub(super) fn walk(
    view: &View,
    root: Ino,
    visit: &mut dyn FnMut(Ino, &Inode) -> FsResult<()>,
) -> FsResult<()> {
    let mut stack: Vec<Entries> = Vec::new();
    let mut look = |ino: Ino, stack: &mut Vec<Entries>| {
        // Unnamed meanwhile, in a view that moves.
        let Some(found) = view.inode(ino)? else { return Ok(()) };
        visit(ino, &found.item)?;
        if found.item.attrs.kind == FileKind::Dir {
            check_depth(stack.len())?;
            stack.push(Entries::of(ino));
        }
        FsResult::Ok(())
    };
    look(root, &mut stack)?;
    while let Some(top) = stack.last_mut() {
        match top.next(view)? {
            Some((_, entry)) => look(entry.ino, &mut stack)?,
            None => drop(stack.pop()),
        }
    }
    Ok(())
}
