//! Moving directories to names that are not excluded: all in them that is not excluded there gets its history
//! before the move is seen, or a tree built in a scratch directory and moved out would silently have none.
//!
//! It becomes ordinary by records of bounded size, first while programs go on, then, what is left, under the
//! namespace lock that the move itself holds. A crash in between leaves some of it ordinary where it was, which
//! no point shows before the directory around it is; nothing depends on that.

use super::exclusion::{Entry, below};
use super::{FsResult, Volume};
use crate::store::model::{Dirent, FileKind};
use crate::types::Ino;

/// Entries that one record makes ordinary: bounds how many inodes are locked together.
pub(super) const ENTRIES_PER_RECORD: usize = if cfg!(test) { 3 } else { 256 };

/// A directory on the way down.
struct Level {
    dir: Ino,
    /// The path that it will have.
    path: Vec<u8>,
    /// Where to go on.
    next: [u8; 16],
}

/// A way through a directory that is about to move, along what is marked.
pub(super) struct Revealing {
    levels: Vec<Level>,
}

impl Revealing {
    /// Of what moves, and the path that it will have, if it is not excluded there.
    pub(super) fn new(moved: &[(Dirent, Option<Vec<u8>>)]) -> Revealing {
        let dirs = moved.iter().filter(|(entry, _)| entry.kind == FileKind::Dir);
        let level = |(entry, path): &(Dirent, Option<Vec<u8>>)| {
            Some(Level { dir: entry.ino, path: path.clone()?, next: [0; 16] })
        };
        Revealing { levels: dirs.filter_map(level).collect() }
    }

    /// Makes some of what it comes to ordinary. False at the end. The caller holds the namespace lock.
    pub(super) fn step(&mut self, volume: &Volume) -> FsResult<bool> {
        let view = volume.view(None);
        let Some(mut level) = self.levels.pop() else { return Ok(false) };
        let hides = view.inode(level.dir)?.is_some_and(|inode| inode.item.attrs.hidden.is_some());
        if !hides {
            return Ok(true);
        }
        let mut page: Vec<([u8; 16], Dirent)> = Vec::new();
        view.readdir_marked(level.dir, &level.next, |hash, entry| {
            page.push((hash, entry));
            Ok(page.len() < ENTRIES_PER_RECORD)
        })?;
        let behind = page.last().filter(|_| page.len() >= ENTRIES_PER_RECORD);
        let next = behind.and_then(|(last, _)| u128::from_be_bytes(*last).checked_add(1));
        let (dir, path) = (level.dir, level.path.clone());
        if let Some(next) = next {
            level.next = next.to_be_bytes();
            self.levels.push(level);
        }
        let mut found: Vec<Entry> = Vec::new();
        for (hash, entry) in page {
            let path = below(&path, &entry.name);
            if volume.excludes_path(&path) {
                continue;
            }
            if entry.kind == FileKind::Dir {
                self.levels.push(Level { dir: entry.ino, path, next: [0; 16] });
            }
            if entry.excluded {
                found.push((dir, hash, entry));
            }
        }
        volume.reveal(&found)?;
        Ok(true)
    }
}
