//! What changed between two points. Nothing is walked: what was changed or removed is in the dead list, what
//! was made has the newest inode numbers, and an inode knows its directory and name, so that a comparison costs
//! what changed and not what there is (docs/ARCHITECTURE.md, "Diff and log").

mod compare;
mod found;
mod links;
mod tree;

use super::user::{SEARCH, User};
use super::{FsError, FsResult, Volume};
use crate::store::model::FileKind;
use crate::types::{Ino, Lsn};
use compare::Comparison;

pub use tree::Scope;
pub(super) use tree::{Place, Tree};

/// How something differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// It was there only before.
    Removed,
    /// It is there only after.
    Added,
    /// It has the same name, and differs otherwise.
    Modified,
    /// It has another name or directory, and may differ otherwise.
    Renamed,
}

/// In what something that is there before and after differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct What {
    /// The size, the modification time or a block of a file; another file or link that took its name.
    pub content: bool,
    /// The mode.
    pub mode: bool,
    /// The owner.
    pub owner: bool,
    /// The group.
    pub group: bool,
    /// Extended attributes, ACLs among them.
    pub xattrs: bool,
}

impl What {
    /// Whether there is no difference.
    pub fn is_empty(self) -> bool {
        self == What::default()
    }
}

/// One difference between two points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// How it differs.
    pub how: How,
    /// Its path after (of what was removed: before), from the scope on; empty for the scope's own directory.
    pub path: Vec<u8>,
    /// Of something renamed, its path before.
    pub from: Option<Vec<u8>>,
    /// What it is.
    pub kind: FileKind,
    /// Size before, in bytes, of a file or symbolic link that was there and could be seen.
    pub size_before: Option<u64>,
    /// Size after, likewise.
    pub size_after: Option<u64>,
    /// In what it differs, if it was modified or renamed.
    pub what: What,
}

impl Volume {
    /// What differs between two readable points, in the order of the paths; of one path, what was removed comes
    /// first. What lived only in between is not told. A `user` is told only what he could have seen at the point
    /// in question.
    ///
    /// # Errors
    /// [`FsError::TooMany`], [`FsError::NoSuchPoint`] when one of the points stopped being readable, from the
    /// store.
    pub fn diff(&self, from: Lsn, to: Lsn, scope: Scope, user: Option<&User>) -> FsResult<Vec<Change>> {
        let before = Tree::new(self, from, scope, user);
        let after = Tree::new(self, to, scope, user);
        let changes = Comparison::new(self, (from, to), scope, before, after).run();
        // What is forgotten meanwhile may be missing, so this counts for more than any other error.
        if !self.is_readable(from) || !self.is_readable(to) {
            let text = "one of the two moments left the continuous window meanwhile; compare snapshots";
            return Err(FsError::NoSuchPoint(text.to_owned()));
        }
        changes
    }

    /// Makes what was written so far part of the present as [`Volume::latest`] names it.
    ///
    /// # Errors
    /// From the store.
    pub fn commit_all(&self) -> FsResult<()> {
        if self.shared.store.read_only().is_some() { Ok(()) } else { self.shared.flush_all() }
    }

    /// The last record: the present as a point.
    pub fn latest(&self) -> Lsn {
        self.shared.store.last()
    }

    /// The place that a path from a directory on means: now, or when its names last meant something. A `user`
    /// finds nothing in directories below that he may not search.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDir`], [`FsError::Invalid`] for a path without a name.
    pub fn place_of(&self, dir: Ino, names: &[&[u8]], user: Option<&User>) -> FsResult<(Ino, [u8; 16])> {
        let (last, above) = names.split_last().ok_or(FsError::Invalid("a path needs a name"))?;
        let mut dir = dir;
        for name in above {
            let mut found = None;
            self.view(None).entry_spans(dir, &self.name_hash(name), Lsn::MAX, |span| {
                found = Some(span.item);
                Ok(false)
            })?;
            let entry = found.ok_or(FsError::NotFound)?;
            if entry.kind != FileKind::Dir {
                return Err(FsError::NotDir);
            }
            dir = entry.ino;
            if let Some(user) = user
                && !self.could_search(dir, user)?
            {
                return Err(FsError::NotFound);
            }
        }
        Ok((dir, self.name_hash(last)))
    }

    /// Whether a user may search a directory, as it is or last was.
    fn could_search(&self, dir: Ino, user: &User) -> FsResult<bool> {
        let mut newest = None;
        self.view(None).inode_spans(dir, Lsn::MAX, |span| {
            newest = Some(span);
            Ok(false)
        })?;
        let Some(span) = newest else { return Ok(false) };
        let at = (span.end < Lsn::MAX).then_some(Lsn(span.end.0.saturating_sub(1)));
        Ok(self.granted(at, dir, &span.item.attrs, user)? & SEARCH != 0)
    }
}
