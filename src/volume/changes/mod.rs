//! What changed between two points. Nothing is walked: what was changed or removed is in the dead list, what
//! was made has the newest inode numbers, and an inode knows its directory and name, so that a comparison costs
//! what changed and not what there is (docs/ARCHITECTURE.md, "Diff and log").

mod compare;
mod found;
mod links;
mod tree;

use super::lineage::{NamePath, Place};
use super::user::User;
use super::{FsError, FsResult, Volume};
use crate::store::model::{Dirent, FileKind};
use crate::types::Lsn;
use compare::Comparison;

pub use tree::Scope;
pub(super) use tree::{Tree, joined};

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
    pub fn diff(&self, from: Lsn, to: Lsn, scopes: [Scope; 2], user: Option<&User>) -> FsResult<Vec<Change>> {
        let [before, after] = scopes;
        let before = Tree::new(self, from, before, user);
        let after = Tree::new(self, to, after, user);
        let changes = Comparison::new(self, (from, to), before, after).run();
        // What is forgotten meanwhile may be missing, so this counts for more than any other error.
        if !self.is_readable(from) || !self.is_readable(to) {
            let text = "one of the two moments left the continuous window meanwhile; compare snapshots";
            return Err(FsError::NoSuchPoint(text.to_owned()));
        }
        changes
    }

    /// What of the volume a path means at each of two points; None if it means nothing at either. With `inside`, a
    /// directory is what lies in it, unless the path means something else at the other point. Where it means nothing
    /// at the earlier point, it is what it means later: that may have had another path then.
    ///
    /// # Errors
    /// From the store.
    pub fn scopes(
        &self,
        path: &NamePath,
        inside: bool,
        points: [Lsn; 2],
        user: Option<&User>,
    ) -> FsResult<Option<[Scope; 2]>> {
        let look = |at| -> FsResult<Option<(Place, Dirent)>> {
            let Some(place) = self.place_at(path, at, user)? else { return Ok(None) };
            Ok(self.view(Some(at)).dirent(place.0, &place.1)?.map(|entry| (place, entry)))
        };
        let there = [look(points[0])?, look(points[1])?];
        let is_dir = |(_, entry): &(Place, Dirent)| entry.kind == FileKind::Dir;
        let inside = inside && there.iter().flatten().all(is_dir);
        let scope = |(place, entry): (Place, Dirent)| match inside {
            true => Scope::Dir(entry.ino),
            false => Scope::Name(place),
        };
        let [was, is] = there.map(|there| there.map(scope));
        let scopes = [was.or(is), is].map(|scope| scope.unwrap_or(Scope::Nothing));
        Ok((scopes != [Scope::Nothing; 2]).then_some(scopes))
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
}
