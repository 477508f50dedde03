//! Snapshots of completed files: written then closed, or renamed into place, under a name that a rule watches.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Globs;
use crate::store::model::{Attrs, FileKind, SnapshotKind};
use crate::types::limits::{TAG_BYTES_MAX, TAGS_MAX};
use crate::types::{Ino, Lsn, VolumeId};
use crate::volume::snapshot::SnapshotCreate;
use crate::volume::{FsResult, Shared, Volume};

/// Files that may wait for their snapshot, and entries of directories that are looked at for them.
const WAITING_MAX: usize = 65_536;
/// How long the parts of one checkpoint are waited for after the last of them.
const SETTLES: Duration = Duration::from_secs(1);
/// How long at most.
const SETTLES_MAX: Duration = Duration::from_secs(10);
/// How long it is said that some were missed, after the last of them.
const MISSED_TOLD: Duration = Duration::from_secs(3600);
/// The tag with the path of the file, or of the directory that the files lie in.
const PATH_TAG: &str = "path";

type Tags = Vec<(String, String)>;

/// Files that were completed and have no snapshot yet.
#[derive(Default)]
pub(in crate::volume) struct Completed {
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    files: HashMap<VolumeId, BTreeSet<Ino>>,
    count: usize,
    missed: Option<(u64, Instant)>,
    first: Option<Instant>,
    last: Option<Instant>,
    /// Each volume's rules, as its policy has them and made ready.
    compiled: HashMap<VolumeId, (Vec<String>, Globs)>,
}

impl Waiting {
    fn is_due(&self) -> bool {
        let (Some(first), Some(last)) = (self.first, self.last) else { return false };
        last.elapsed() >= SETTLES || first.elapsed() >= SETTLES_MAX
    }
}

impl Volume {
    /// Notes that a file was closed by a writer, or has come to its name complete.
    pub fn completed(&self, ino: Ino) {
        let watches = {
            let state = self.shared.store.index().state();
            state.volumes.get(&self.vol).is_some_and(|v| !v.policy.on_close.is_empty())
        };
        if !watches {
            return;
        }
        let mut waiting = self.shared.keeping.completed.waiting.lock();
        if waiting.count >= WAITING_MAX {
            let missed = waiting.missed.map_or(0, |(count, _)| count);
            waiting.missed = Some((missed + 1, Instant::now()));
            return;
        }
        let new = waiting.files.entry(self.vol).or_default().insert(ino);
        waiting.count += usize::from(new);
        let now = Instant::now();
        waiting.first.get_or_insert(now);
        waiting.last = Some(now);
    }
}

impl Shared {
    /// Takes the snapshots of files that were completed, once no more are.
    pub(super) fn snapshot_completed(&self, problems: &mut Vec<String>) -> FsResult<()> {
        let files = {
            let mut waiting = self.keeping.completed.waiting.lock();
            waiting.missed = waiting.missed.filter(|(_, last)| last.elapsed() < MISSED_TOLD);
            if let Some((missed, _)) = waiting.missed {
                problems
                    .push(format!("{missed} completed files got no snapshot of their own: too many at once"));
            }
            if !waiting.is_due() {
                return Ok(());
            }
            (waiting.first, waiting.last, waiting.count) = (None, None, 0);
            std::mem::take(&mut waiting.files)
        };
        for (vol, inos) in files {
            let Some(globs) = self.globs(vol) else { continue };
            let mut groups: BTreeMap<Tags, Lsn> = BTreeMap::new();
            for ino in self.files_among(vol, inos.into_iter().collect())? {
                if let Some((tags, since)) = self.tags_of(vol, ino, &globs)? {
                    let newest = groups.entry(tags).or_default();
                    *newest = since.max(*newest);
                }
            }
            for (tags, since) in Self::by_directory(groups) {
                self.snapshot_of_completed(vol, tags, since)?;
            }
        }
        Ok(())
    }

    /// The files among them, and those in the directories among them (which were renamed into place).
    fn files_among(&self, vol: VolumeId, mut inos: Vec<Ino>) -> FsResult<BTreeSet<Ino>> {
        let view = self.store.view(vol, None);
        let mut files = BTreeSet::new();
        let mut looked_at = 0;
        while let Some(ino) = inos.pop() {
            match view.inode(ino)?.map(|i| i.item.attrs.kind) {
                Some(FileKind::File) => drop(files.insert(ino)),
                Some(FileKind::Dir) => view.readdir(ino, &[0; 16], |_, entry| {
                    inos.push(entry.ino);
                    looked_at += 1;
                    Ok(looked_at < WAITING_MAX)
                })?,
                _ => {}
            }
        }
        Ok(files)
    }

    fn globs(&self, vol: VolumeId) -> Option<Globs> {
        let sources = self.store.index().state().volumes.get(&vol).map(|v| v.policy.on_close.clone())?;
        let mut waiting = self.keeping.completed.waiting.lock();
        if let Some((_, globs)) = waiting.compiled.get(&vol).filter(|(of, _)| *of == sources) {
            return Some(globs.clone());
        }
        let globs = Globs::new(&sources).ok()?;
        waiting.compiled.insert(vol, (sources, globs.clone()));
        Some(globs)
    }

    /// The tags of a completed file that a rule watches, and since when it is as it is.
    fn tags_of(&self, vol: VolumeId, ino: Ino, globs: &Globs) -> FsResult<Option<(Tags, Lsn)>> {
        if let Some(cell) = self.cells.get(vol, ino) {
            let flushed = self.flush_below(vol, &cell, u64::MAX);
            self.cells.give_back(vol, cell);
            flushed?;
        }
        let view = self.store.view(vol, None);
        // A snapshot would not show what is excluded.
        let watched = |attrs: &Attrs| attrs.kind == FileKind::File && !attrs.excluded;
        let Some(inode) = view.inode(ino)?.filter(|i| watched(&i.item.attrs)) else {
            return Ok(None);
        };
        let Some(path) = view.path(ino)? else { return Ok(None) };
        let Some(mut tags) = globs.matches(&path) else { return Ok(None) };
        tags.retain(|(k, v)| k != PATH_TAG && k.len() + v.len() <= TAG_BYTES_MAX);
        tags.truncate(TAGS_MAX - 1);
        tags.push((PATH_TAG.to_owned(), clipped(&String::from_utf8_lossy(&path))));
        Ok(Some((tags, inode.since)))
    }

    /// Files of one directory and with the same other tags are parts of one thing.
    fn by_directory(files: BTreeMap<Tags, Lsn>) -> BTreeMap<Tags, Lsn> {
        let directory = |tags: &Tags| -> Tags {
            let dir = |path: &str| path.rsplit_once('/').map_or(String::new(), |(dir, _)| dir.to_owned());
            tags.iter().map(|(k, v)| (k.clone(), if k == PATH_TAG { dir(v) } else { v.clone() })).collect()
        };
        let mut groups: BTreeMap<Tags, Vec<(Tags, Lsn)>> = BTreeMap::new();
        for (tags, since) in files {
            groups.entry(directory(&tags)).or_default().push((tags, since));
        }
        groups
            .into_iter()
            .map(|(dir, mut files)| {
                let newest = files.iter().map(|(_, since)| *since).max().unwrap_or_default();
                let alone = if files.len() == 1 { files.pop().map(|(tags, _)| tags) } else { None };
                (alone.unwrap_or(dir), newest)
            })
            .collect()
    }

    fn snapshot_of_completed(&self, vol: VolumeId, tags: Tags, since: Lsn) -> FsResult<()> {
        let known = {
            let state = self.store.index().state();
            let newest = state.volumes.get(&vol).and_then(|v| {
                let mut of_rules = v.snapshots().rev().filter(|(_, s)| s.spec.kind == SnapshotKind::OnClose);
                of_rules.find(|(_, s)| s.spec.tags == tags).map(|(at, _)| at)
            });
            newest.is_some_and(|at| at >= since)
        };
        if known {
            return Ok(());
        }
        let create = SnapshotCreate { tags, kind: SnapshotKind::OnClose, ..SnapshotCreate::default() };
        self.snapshot(&[vol], &create).map(drop)
    }
}

/// What a tag can hold of a path: its end says most.
fn clipped(path: &str) -> String {
    let room = TAG_BYTES_MAX - PATH_TAG.len();
    let mut from = path.len().saturating_sub(room);
    while !path.is_char_boundary(from) {
        from += 1;
    }
    path.get(from..).unwrap_or_default().to_owned()
}
