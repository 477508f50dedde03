//! What belongs to a file: the inodes that its name meant, and the names that these have or had.

use std::collections::{BTreeMap, BTreeSet};

use super::{Purged, PurgedName};
use crate::store::index::keys::{self, Family};
use crate::store::model::Dirent;
use crate::store::{Purge, PurgeData};
use crate::types::limits::PURGE_LISTED_MAX;
use crate::types::{Ino, Lsn};
use crate::volume::changes::joined;
use crate::volume::lineage::{NamePath, Place};
use crate::volume::{FsError, FsResult, Volume};

/// Other files with the same data that are told.
const SHARERS_MAX: usize = 20;

/// A name of an inode, from a record on until before another ([`Lsn::MAX`]: still).
#[derive(Clone, Debug)]
pub(super) struct Name {
    pub place: Place,
    pub name: Vec<u8>,
    pub ino: Ino,
    pub since: Lsn,
    pub end: Lsn,
    /// Whether points show it: it is not excluded from the history.
    pub shown: bool,
}

impl Name {
    pub fn is_live(&self) -> bool {
        self.end == Lsn::MAX
    }
}

/// The life of an inode's version.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    pub since: Lsn,
    pub end: Lsn,
    /// Whether points show it.
    pub shown: bool,
}

/// Everything that a purge is about.
pub(super) struct Found {
    pub purge: Purge,
    pub names: Vec<Name>,
    pub lives: BTreeMap<Ino, Vec<Life>>,
    /// None when it is not all known, since some of it was erased before.
    pub data: Option<PurgeData>,
}

impl Found {
    /// What is left of inodes.
    pub fn of(volume: &Volume, inodes: BTreeSet<Ino>) -> FsResult<Found> {
        let lives = volume.lives_of(&inodes)?;
        let names = volume.names_of(&inodes)?;
        let places = names.iter().map(|name| name.place).collect();
        Ok(Found { purge: Purge { vol: volume.vol, inodes, names: places }, names, lives, data: None })
    }
}

/// What is told of a name whose path is not known.
fn somewhere(name: &Name) -> (Vec<u8>, bool) {
    ([b".../", name.name.as_slice()].concat(), name.is_live())
}

impl Volume {
    /// The inodes that a path means or ever meant, and those that were before them, as [`Volume::versions`] walks.
    pub(in crate::volume) fn files_of(&self, path: &NamePath) -> FsResult<BTreeSet<Ino>> {
        self.last_file(path, None)?;
        let mut inodes = BTreeSet::new();
        let mut lineage = self.lineage(path, None)?;
        while let Some(meaning) = lineage.next()? {
            inodes.insert(meaning.ino);
        }
        Ok(inodes)
    }

    /// Finds what a purge of `path` is about, with all that was written of it.
    pub(super) fn find_purge(&self, path: &NamePath) -> FsResult<Found> {
        let inodes = self.files_of(path)?;
        if self.shared.store.read_only().is_none() {
            for ino in &inodes {
                match self.commit_file(*ino) {
                    Ok(()) | Err(FsError::NotFound) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        let mut found = Found::of(self, inodes)?;
        found.data = Some(self.shared.store.purge_data(&found.purge)?);
        Ok(found)
    }

    /// The versions of inodes.
    fn lives_of(&self, inodes: &BTreeSet<Ino>) -> FsResult<BTreeMap<Ino, Vec<Life>>> {
        let mut lives: BTreeMap<Ino, Vec<Life>> = BTreeMap::new();
        for ino in inodes {
            self.view(None).inode_spans(*ino, Lsn::MAX, |span| {
                let attrs = &span.item.attrs;
                let (since, end, shown) = (span.since, span.end, !attrs.excluded && attrs.nlink > 0);
                lives.entry(*ino).or_default().push(Life { since, end, shown });
                Ok(true)
            })?;
        }
        Ok(lives)
    }

    /// All names that inodes have or had. An inode knows the only name that it had; where one had several at a time,
    /// all entries of the volume are looked at.
    pub(super) fn names_of(&self, inodes: &BTreeSet<Ino>) -> FsResult<Vec<Name>> {
        let (mut places, mut all) = (BTreeSet::new(), false);
        for ino in inodes {
            self.view(None).inode_spans(*ino, Lsn::MAX, |span| {
                let attrs = &span.item.attrs;
                match attrs.nlink {
                    0 => {}
                    1 if attrs.parent != Ino(0) => drop(places.insert((attrs.parent, attrs.name))),
                    _ => all = true,
                }
                Ok(true)
            })?;
        }
        let prefixes: Vec<Vec<u8>> = if all {
            vec![keys::family(self.vol, Family::Dirent)]
        } else {
            places.iter().map(|(dir, hash)| keys::dirent(self.vol, *dir, hash)).collect()
        };
        let mut names = Vec::new();
        for prefix in prefixes {
            self.shared.store.index().visit_names(&prefix, inodes, |key, end, since, entry| {
                if let Some(place) = keys::ino_of(key).zip(keys::hash_of(key)) {
                    let end = end.unwrap_or(Lsn::MAX);
                    let Dirent { ino, name, excluded, .. } = entry;
                    names.push(Name { place, name, ino, since, end, shown: !excluded });
                }
                Ok(())
            })?;
        }
        Ok(names)
    }

    /// Says what there is.
    pub(super) fn describe_purge(&self, found: &Found) -> FsResult<Purged> {
        let store = &self.shared.store;
        let mut report = Purged {
            files: found.purge.inodes.len() as u64,
            versions: found.lives.values().map(|lives| lives.len() as u64).sum(),
            ..Purged::default()
        };
        let mut paths: BTreeMap<Vec<u8>, PurgedName> = BTreeMap::new();
        for name in &found.names {
            let lives = found.lives.get(&name.ino).into_iter().flatten();
            let versions = lives.filter(|l| l.since < name.end && name.since < l.end).count() as u64;
            let seen = match self.paths_of(name) {
                // No program can name it by its path either.
                Err(FsError::TooMany(_)) => vec![somewhere(name)],
                seen => seen?,
            };
            for (path, live) in seen {
                let known = paths.entry(path.clone());
                let known = known.or_insert_with(|| PurgedName { path, live: false, versions: 0 });
                known.live |= live;
                known.versions += versions;
            }
        }
        report.names_total = paths.len() as u64;
        report.names = paths.into_values().take(PURGE_LISTED_MAX).collect();
        let points = self.points_showing(found)?;
        self.with_state(|volume| {
            let shown = points.iter().filter_map(|at| volume.points.get(at)).filter(|p| !p.is_mark());
            for point in shown {
                report.snapshots_total += 1;
                if report.snapshots.len() < PURGE_LISTED_MAX {
                    report.snapshots.push(point.spec.name.clone());
                }
            }
        })?;
        if let Some(data) = &found.data {
            report.bytes = data.bytes;
            let (shared, bytes) = store.purge_shared(data)?;
            report.shared_bytes = bytes;
            let sharers = store.purge_sharers(&found.purge, &shared)?;
            report.shared_with = sharers.map(|files| files.into_iter().take(SHARERS_MAX).collect());
        }
        Ok(report)
    }

    /// The path that a name was last seen under, and whether it is now; and the one that it had in the newest
    /// snapshot, if that is another one: a directory above may have been renamed.
    fn paths_of(&self, name: &Name) -> FsResult<Vec<(Vec<u8>, bool)>> {
        let (dir, _) = name.place;
        let mut paths = Vec::new();
        if name.is_live() {
            // Also what no point shows.
            let dir = self.view(None).path(dir)?;
            paths.extend(dir.map(|dir| joined(&dir, &name.name)).transpose()?.map(|path| (path, true)));
        }
        if let Some(at) = self.newest_reaching(dir, name.since, name.end)? {
            if paths.is_empty() {
                paths.extend(self.path_at(name.place, at, None)?.map(|path| (path, false)));
            }
            let shown = self.snapshots_in(name.since, at)?;
            if let Some(newest) = self.reaching(dir, shown)?.last()
                && let Some(path) = self.path_at(name.place, *newest, None)?
                && paths.iter().all(|(known, _)| *known != path)
            {
                paths.push((path, false));
            }
        }
        if paths.is_empty() {
            paths.push(somewhere(name));
        }
        Ok(paths)
    }

    /// The points, not being deleted, that show a version of it, oldest first.
    pub(super) fn points_showing(&self, found: &Found) -> FsResult<BTreeSet<Lsn>> {
        self.with_state(|volume| {
            let names = found.names.iter().filter(|name| name.shown).map(|name| (name.since, name.end));
            let lives = found.lives.values().flatten().filter(|life| life.shown);
            let lives = lives.map(|life| (life.since, life.end));
            let mut points = BTreeSet::new();
            for (since, end) in names.chain(lives).filter(|(since, end)| since < end) {
                let shown = volume.points.range(since..end).filter(|(_, point)| !point.deleting);
                points.extend(shown.map(|(at, _)| *at));
            }
            points
        })
    }
}
