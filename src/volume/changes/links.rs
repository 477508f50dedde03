//! The names of files that have several: an inode remembers only the one given last.

use std::collections::{HashMap, HashSet};

use super::found::{Found, TOO_MANY};
use super::tree::Tree;
use crate::store::index::Named;
use crate::store::model::Inode;
use crate::types::limits::DIFF_INODES_MAX;
use crate::types::{Ino, Lsn};
use crate::volume::FsResult;
use crate::volume::lineage::Place;

/// The names of one file, as far as they matter.
#[derive(Debug, Default)]
pub struct Links {
    /// It had them before; after, they mean something else, nothing, or it again.
    pub gone: Vec<Place>,
    /// It had them all the time.
    pub kept: Vec<Place>,
    /// It got them.
    pub new: Vec<Place>,
    /// How many it had before.
    before: usize,
    /// How many it has after.
    after: usize,
    /// Whether those that it kept must be known, too.
    all: bool,
}

impl Links {
    /// Notes the names that the inode remembers; `all` if those that it kept matter.
    pub fn new(before: Option<&Inode>, after: Option<&Inode>, all: bool) -> Links {
        let count = |inode: Option<&Inode>| inode.map_or(0, |i| i.attrs.nlink as usize);
        Links { before: count(before), after: count(after), all, ..Links::default() }
    }

    /// Whether the place is among them.
    pub fn has(&self, place: &Place) -> bool {
        [&self.gone, &self.kept, &self.new].into_iter().any(|some| some.binary_search(place).is_ok())
    }

    fn note(&mut self, place: Place, since: Lsn, from: Lsn) {
        if since <= from { self.kept.push(place) } else { self.new.push(place) }
    }

    fn settle(&mut self) {
        for some in [&mut self.gone, &mut self.kept, &mut self.new] {
            some.sort_unstable();
            some.dedup();
        }
    }

    /// What it kept is what it had and did not lose; what it has beyond that is new.
    fn is_missing_some(&self) -> bool {
        let kept = self.before.saturating_sub(self.gone.len());
        self.new.len() < self.after.saturating_sub(kept) || (self.all && self.kept.len() < kept)
    }
}

/// Finds the names of `files`: those lost are in the dead list, those got are in directories that changed, and
/// only those kept may need a look at every entry of the volume, once for all files.
pub fn find(
    files: &mut HashMap<Ino, Links>,
    from: Lsn,
    found: &Found,
    dirs: &[Ino],
    trees: (&Tree<'_>, &Tree<'_>),
) -> FsResult<()> {
    if files.is_empty() {
        return Ok(());
    }
    let (before, after) = trees;
    for (parent, hash) in &found.entries {
        let links = before.view.dirent(*parent, hash)?.and_then(|entry| files.get_mut(&entry.ino));
        if let Some(links) = links {
            links.gone.push((*parent, *hash));
        }
    }
    for (ino, links) in files.iter_mut() {
        for inode in [before.inode(*ino)?, after.inode(*ino)?].into_iter().flatten() {
            let place = (inode.attrs.parent, inode.attrs.name);
            let entry = after.view.entry(place.0, &place.1)?;
            if let Some(entry) = entry.filter(|entry| entry.item.ino == *ino) {
                links.note(place, entry.since, from);
            }
        }
        links.settle();
    }
    for dirs in [Some(dirs), None] {
        let missing: HashSet<Ino> =
            files.iter().filter(|(_, l)| l.is_missing_some()).map(|(ino, _)| *ino).collect();
        if missing.is_empty() {
            break;
        }
        let places: Vec<Option<Ino>> =
            dirs.map_or(vec![None], |dirs| dirs.iter().copied().map(Some).collect());
        let mut count = 0;
        for place in places {
            after.view.entries_naming(
                place,
                |ino| missing.contains(&ino),
                |Named { since, ino, parent, hash }| {
                    if let Some(links) = files.get_mut(&ino) {
                        links.note((parent, hash), since, from);
                    }
                    count += 1;
                    Ok(count <= DIFF_INODES_MAX)
                },
            )?;
        }
        if count > DIFF_INODES_MAX {
            return Err(TOO_MANY);
        }
        files.values_mut().for_each(Links::settle);
    }
    Ok(())
}
