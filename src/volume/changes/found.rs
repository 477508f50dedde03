//! What may have changed, out of the index.

use std::collections::HashSet;

use super::tree::Tree;
use crate::store::index::Ended;
use crate::types::limits::{DIFF_CHANGES_MAX, DIFF_INODES_MAX};
use crate::types::{Ino, Lsn};
use crate::volume::lineage::Place;
use crate::volume::{FsError, FsResult, Volume};

/// More than can be compared at once.
pub const TOO_MANY: FsError = FsError::TooMany(
    "too much changed between these points; compare a directory further down, or nearer points",
);

/// What differs in the index between two points.
pub struct Found {
    /// Inodes with another version, or at only one of the points; ascending.
    pub inodes: Vec<Ino>,
    /// Files with blocks that the earlier point shows and the later does not.
    pub rewritten: HashSet<Ino>,
    /// Names that the earlier point shows and the later does not, or that mean something else there.
    pub entries: Vec<Place>,
}

impl Found {
    /// Whether the inode may have changed.
    pub fn has(&self, ino: Ino) -> bool {
        self.inodes.binary_search(&ino).is_ok()
    }
}

/// Finds what differs between two points.
pub fn between(volume: &Volume, points: (Lsn, Lsn), before: &Tree<'_>, after: &Tree<'_>) -> FsResult<Found> {
    let mut found = Found { inodes: Vec::new(), rewritten: HashSet::new(), entries: Vec::new() };
    let mut full = false;
    before.view.ended_by(points.1, |ended| {
        match ended {
            Ended::Inode(ino) => found.inodes.push(ino),
            Ended::Entry(parent, hash) => found.entries.push((parent, hash)),
            Ended::Block(ino) => drop(found.rewritten.insert(ino)),
        }
        full = found.inodes.len() > DIFF_INODES_MAX || found.entries.len() > DIFF_CHANGES_MAX;
        Ok(!full)
    })?;
    after.view.inodes_since(volume.made_after(points.0)?, points.0, |ino| {
        found.inodes.push(ino);
        full |= found.inodes.len() > DIFF_INODES_MAX;
        Ok(!full)
    })?;
    if full {
        return Err(TOO_MANY);
    }
    found.inodes.sort_unstable();
    found.inodes.dedup();
    Ok(found)
}
