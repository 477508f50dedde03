//! The versions of one file: all that its path meant, and what the files were before that.

use super::changes::{Scope, Tree};
use super::lineage::{Meaning, NamePath, Place};
use super::user::{READ, User};
use super::{FsError, FsResult, Volume};
use crate::store::index::rows;
use crate::store::model::{FileKind, Inode};
use crate::types::limits::{LOG_SNAPSHOTS_MAX, PATH_DEPTH_MAX};
use crate::types::{Ino, Lsn, Timestamp};

/// A state of a file's content, under one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileVersion {
    /// The path that it had at `lsn`, from the volume's root on.
    pub path: Vec<u8>,
    /// The path that it had in the newest of the snapshots, if it is another one that may be seen: a directory above
    /// may have had another name then.
    pub snapshot_path: Option<Vec<u8>>,
    /// What it is.
    pub kind: FileKind,
    /// The inode.
    pub ino: Ino,
    /// Its size in bytes.
    pub size: u64,
    /// Its modification time.
    pub time: Timestamp,
    /// Who wrote it: a user id.
    pub author: u32,
    /// The newest point at which it can be read.
    pub lsn: Lsn,
    /// The snapshots that show it, newest first; at most [`LOG_SNAPSHOTS_MAX`].
    pub snapshots: Vec<String>,
    /// How many snapshots show it.
    pub snapshots_total: u64,
}

impl FileVersion {
    /// Whether `other` is the same content.
    fn is(&self, other: &FileVersion) -> bool {
        let key = |v: &FileVersion| (v.ino, v.size, v.time, v.author);
        key(self) == key(other)
    }
}

/// A walk back through the versions of a file.
struct Walk<'a> {
    volume: &'a Volume,
    user: Option<&'a User>,
    visit: &'a mut dyn FnMut(FileVersion) -> FsResult<bool>,
    /// Found under that name, and perhaps still to be found at earlier points.
    pending: Option<(Place, FileVersion)>,
    /// Whether more is wanted.
    open: bool,
}

impl Volume {
    /// Visits the versions of the file that has or last had a path, newest first, while `visit` says true: each
    /// state of its content (size, modification time, author) that some point still shows. All that the path ever
    /// meant is told, whatever became of the directories on it; and where it began to mean a file out of nothing,
    /// what that was under the name that it had before. A `user` is told only what he could read.
    ///
    /// # Errors
    /// [`FsError::NotFound`] when the path never meant anything that is still known, [`FsError::IsDir`],
    /// [`FsError::Refused`] for what has no history, from the store.
    pub fn versions(
        &self,
        path: &NamePath,
        user: Option<&User>,
        visit: &mut dyn FnMut(FileVersion) -> FsResult<bool>,
    ) -> FsResult<()> {
        let newest = self.last_file(path, user)?;
        self.commit_file(newest.ino)?;
        let mut told = false;
        let mut visit = |version| {
            told = true;
            visit(version)
        };
        let mut walk = Walk { volume: self, user, visit: &mut visit, pending: None, open: true };
        let mut lineage = self.lineage(path, user)?;
        while let Some(meaning) = if walk.open { lineage.next()? } else { None } {
            walk.follow(meaning)?;
        }
        walk.tell()?;
        if newest.excluded && !told {
            return Err(FsError::Refused(
                "it is excluded from the history, so no version of it is kept".into(),
            ));
        }
        Ok(())
    }

    /// The path of a name at a point, if it may be seen there.
    pub(super) fn path_at(&self, place: Place, at: Lsn, user: Option<&User>) -> FsResult<Option<Vec<u8>>> {
        let mut tree = Tree::new(self, at, Scope::Dir(Ino::ROOT), user).of_known_names();
        Ok(tree.spot(place)?.filter(|spot| spot.open).map(|spot| spot.path))
    }
}

/// The newest point in `since..end` at which everything can be read; records end at `last`.
fn newest_readable(volume: &rows::Volume, since: Lsn, end: Lsn, last: Lsn) -> Option<Lsn> {
    let newest = Lsn(end.0.saturating_sub(1)).min(last);
    if newest < since {
        return None;
    }
    if newest >= volume.floor {
        return Some(newest);
    }
    volume.points.range(since..end).rev().find(|(_, point)| !point.deleting).map(|(at, _)| *at)
}

/// A directory need not be part of the tree for as long as it holds a name: a restore fills directories before it
/// names the topmost one, and one that it removes is emptied later.
impl Volume {
    /// The newest readable point in `since..end` at which a path leads to a directory.
    pub(super) fn newest_reaching(&self, dir: Ino, since: Lsn, mut end: Lsn) -> FsResult<Option<Lsn>> {
        let last = self.latest();
        loop {
            let Some(at) = self.with_state(|v| newest_readable(v, since, end, last))? else {
                return Ok(None);
            };
            let Some(from) = self.unreached_since(dir, at)? else { return Ok(Some(at)) };
            end = from;
        }
    }

    /// If no path leads to a directory at a point: the record since which that is so, at most the point.
    fn unreached_since(&self, mut dir: Ino, at: Lsn) -> FsResult<Option<Lsn>> {
        let view = self.view(Some(at));
        for _ in 0..PATH_DEPTH_MAX {
            if dir == Ino::ROOT {
                return Ok(None);
            }
            // Excluded, or forgotten meanwhile.
            let Some(inode) = view.inode(dir)? else { return Ok(Some(Lsn::ZERO)) };
            if inode.item.attrs.nlink == 0 {
                let mut since = inode.since;
                view.inode_spans(dir, inode.since, |span| {
                    let follows = span.end == since && span.item.attrs.nlink == 0;
                    since = if follows { span.since } else { since };
                    Ok(follows)
                })?;
                return Ok(Some(since));
            }
            dir = inode.item.attrs.parent;
        }
        Ok(None)
    }

    /// The snapshots from one moment to another, oldest first.
    pub(super) fn snapshots_in(&self, since: Lsn, until: Lsn) -> FsResult<Vec<Lsn>> {
        self.with_state(|v| {
            let shown = v.points.range(since..=until).filter(|(_, p)| !p.deleting && !p.is_mark());
            shown.map(|(at, _)| *at).collect()
        })
    }

    /// Of points at which a directory holds a name, in their order, those at which a path leads to it. It is part of
    /// the tree for one time, so a few looks are enough.
    pub(super) fn reaching(&self, dir: Ino, mut points: Vec<Lsn>) -> FsResult<Vec<Lsn>> {
        let (mut low, mut high) = (0, points.len());
        let mut middle = 0;
        while low < high {
            let Some(at) = points.get(middle) else { break };
            if self.unreached_since(dir, *at)?.is_none() {
                high = middle;
            } else {
                low = middle + 1;
            }
            middle = low + (high - low) / 2;
        }
        Ok(points.split_off(low))
    }
}

impl Walk<'_> {
    /// Tells the versions that a file had while the name meant it.
    fn follow(&mut self, meaning: Meaning) -> FsResult<()> {
        let mut failed = None;
        self.volume.view(None).inode_spans(meaning.ino, meaning.end, |span| {
            let (since, end) = (span.since.max(meaning.since), span.end.min(meaning.end));
            if since >= end {
                return Ok(false);
            }
            if let Err(e) = self.meet(meaning, &span.item, since, end) {
                failed = Some(e);
            }
            Ok(self.open && failed.is_none())
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// A version of the inode, as the name showed it from `since` until before `end`.
    fn meet(&mut self, meaning: Meaning, inode: &Inode, since: Lsn, end: Lsn) -> FsResult<()> {
        let (dir, _) = meaning.place;
        let Some(lsn) = self.volume.newest_reaching(dir, since, end)? else { return Ok(()) };
        let Some(path) = self.volume.path_at(meaning.place, lsn, self.user)? else { return Ok(()) };
        if let Some(user) = self.user
            && self.volume.granted(Some(lsn), meaning.ino, &inode.attrs, user)? & READ == 0
        {
            return Ok(());
        }
        let version = FileVersion {
            path,
            snapshot_path: None,
            kind: inode.attrs.kind,
            ino: meaning.ino,
            size: inode.attrs.size,
            time: inode.attrs.mtime,
            author: inode.attrs.author,
            lsn,
            snapshots: Vec::new(),
            snapshots_total: 0,
        };
        if !self.pending.as_ref().is_some_and(|(place, v)| *place == meaning.place && v.is(&version)) {
            self.tell()?;
            self.pending = Some((meaning.place, version));
        }
        let Some((_, pending)) = &mut self.pending else { return Ok(()) };
        let mut shown = self.volume.reaching(dir, self.volume.snapshots_in(since, lsn)?)?;
        if self.user.is_some() {
            let mut open = Vec::with_capacity(shown.len());
            for at in shown {
                open.extend(self.volume.path_at(meaning.place, at, self.user)?.map(|_| at));
            }
            shown = open;
        }
        if let Some(newest) = shown.last().filter(|_| pending.snapshots_total == 0) {
            let path = self.volume.path_at(meaning.place, *newest, self.user)?;
            pending.snapshot_path = path.filter(|path| *path != pending.path);
        }
        self.volume.with_state(|v| {
            for snapshot in shown.iter().rev().filter_map(|at| v.points.get(at)) {
                pending.snapshots_total += 1;
                if pending.snapshots.len() < LOG_SNAPSHOTS_MAX {
                    pending.snapshots.push(snapshot.spec.name.clone());
                }
            }
        })
    }

    /// Tells the version that is complete.
    fn tell(&mut self) -> FsResult<()> {
        if let Some((_, version)) = self.pending.take().filter(|_| self.open) {
            self.open = (self.visit)(version)?;
        }
        Ok(())
    }
}
