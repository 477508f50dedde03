//! The step that makes a restore visible: behind a barrier, a snapshot of what is replaced and one record.

use std::collections::BTreeMap;

use parking_lot::RwLockWriteGuard;

use super::plan::Plan;
use super::stage::Stage;
use super::{Restore, Restored, Touched};
use crate::store::index::View;
use crate::store::model::{Attrs, Dirent, Edit, FileKind, SnapshotKind};
use crate::types::{Ino, Timestamp};
use crate::volume::cell::Live;
use crate::volume::{CellRef, FsError, FsResult, SnapshotCreate, Volume, Volumes};

/// Names that an inode loses: directory and hash.
type Lost = BTreeMap<Ino, Vec<(Ino, [u8; 16])>>;

/// The change of one record.
struct Change<'a> {
    volume: &'a Volume,
    restore: &'a Restore,
    plan: &'a Plan,
    stage: &'a Stage<'a>,
    now: Timestamp,
    edits: Vec<Edit>,
    touched: Touched,
}

impl Volumes {
    /// Makes the plan's change visible. None when programs have changed meanwhile what it is about.
    pub(super) fn switch(
        &self,
        volume: &Volume,
        restore: &Restore,
        plan: &Plan,
        stage: Stage<'_>,
    ) -> FsResult<Option<Restored>> {
        let _admin = self.shared.admin.lock();
        let store = &self.shared.store;
        let done = self.shared.barrier(|| {
            let lost = plan.lost(volume);
            let changed: Vec<Ino> = plan.dirs.keys().chain(lost.keys()).copied().collect();
            let cells = cells(volume, changed)?;
            let Some(cells) = cells else { return Ok(None) };
            // In the order of their numbers.
            let mut states: BTreeMap<Ino, RwLockWriteGuard<'_, Live>> =
                cells.iter().map(|(ino, cell)| (*ino, cell.state.write())).collect();
            if !plan.holds(volume, &lost)? {
                return Ok(None);
            }
            let mut attrs: BTreeMap<Ino, Attrs> =
                states.iter().map(|(ino, live)| (*ino, live.recordable())).collect();
            // What it promises to keep.
            let before = SnapshotCreate { kind: SnapshotKind::BeforeRestore, ..SnapshotCreate::default() };
            let snapshot = match restore.to {
                None => Some(self.shared.commit_snapshot(&[volume.vol], &before)?),
                Some(_) => None,
            };
            let (now, touched) = (self.shared.now(), Touched::default());
            let edits = Vec::new();
            let mut change = Change { volume, restore, plan, stage: &stage, now, edits, touched };
            change.entries(&mut attrs);
            change.lose(&lost, &mut attrs);
            change.directories(&mut attrs)?;
            let (vol, from, to) = (volume.vol, stage.from, stage.to);
            let Change { mut edits, mut touched, .. } = change;
            edits.push(Edit::Stage { vol, from, to, staged: false });
            let put = |(ino, attrs): (&Ino, &Attrs)| Edit::PutInode { vol, ino: *ino, attrs: attrs.clone() };
            edits.extend(attrs.iter().map(put));
            let lsn = volume.commit(edits, None)?;
            touched.inodes = attrs.keys().copied().collect();
            for (ino, live) in &mut states {
                if let Some(new) = attrs.remove(ino) {
                    self.shared.accesses.take(volume.vol, *ino);
                    live.attrs = new;
                }
            }
            Ok(Some((lsn, Restored { snapshot, counts: plan.counts, touched })))
        })?;
        let Some((lsn, restored)) = done else { return Ok(None) };
        stage.publish();
        store.sync(lsn)?;
        Ok(Some(restored))
    }
}

/// The cells of inodes; none when one is gone.
fn cells(volume: &Volume, mut inodes: Vec<Ino>) -> FsResult<Option<Vec<(Ino, CellRef<'_>)>>> {
    inodes.sort_unstable();
    inodes.dedup();
    let mut cells = Vec::with_capacity(inodes.len());
    for ino in inodes {
        match volume.cell(ino) {
            Ok(cell) => cells.push((ino, cell)),
            Err(FsError::NotFound) => return Ok(None),
            Err(e) => return Err(e),
        }
    }
    Ok(Some(cells))
}

impl Plan {
    /// The names that live inodes lose.
    fn lost(&self, volume: &Volume) -> Lost {
        let mut lost = Lost::new();
        let replaced = self.puts.iter().filter_map(|put| Some((put.dir, put.replaces.as_ref()?)));
        for (dir, entry) in replaced.chain(self.removes.iter().map(|(dir, entry)| (*dir, entry))) {
            lost.entry(entry.ino).or_default().push((dir, volume.name_hash(&entry.name)));
        }
        lost
    }

    /// Whether the directories are as they were when they were looked at, and so their entries. Reading makes a
    /// new version, too, which is of no interest. Nothing that goes holds anything that is excluded.
    fn holds(&self, volume: &Volume, lost: &Lost) -> FsResult<bool> {
        let view = volume.view(None);
        for ino in lost.keys() {
            if volume.holds_excluded(*ino)? {
                return Ok(false);
            }
        }
        for (ino, dir) in &self.dirs {
            let Some(now) = view.inode(*ino)? else { return Ok(false) };
            let (a, b) = (&now.item.attrs, &dir.seen.item.attrs);
            if now.since != dir.seen.since && *b != (Attrs { atime: b.atime, ..a.clone() }) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Counts an entry that a directory gains or loses.
fn count(attrs: &mut BTreeMap<Ino, Attrs>, dir: Ino, sign: i32, kind: FileKind) {
    if let Some(dir) = attrs.get_mut(&dir) {
        dir.entries = dir.entries.saturating_add_signed(i64::from(sign));
        if kind == FileKind::Dir {
            dir.nlink = dir.nlink.saturating_add_signed(sign);
        }
    }
}

impl Change<'_> {
    /// The names.
    fn entries(&mut self, attrs: &mut BTreeMap<Ino, Attrs>) {
        let vol = self.volume.vol;
        for (put, (root, _)) in self.plan.puts.iter().zip(&self.stage.roots) {
            let kind = put.entry_kind();
            if let Some(old) = &put.replaces {
                count(attrs, put.dir, -1, old.kind);
            }
            count(attrs, put.dir, 1, kind);
            let dirent = Dirent { ino: *root, kind, name: put.name.clone(), excluded: false };
            let hash = self.volume.name_hash(&put.name);
            self.edits.push(Edit::PutDirent { vol, parent: put.dir, hash, dirent });
            self.touched.entries.push((put.dir, put.name.clone()));
        }
        // Each gets a new version with its name, by which a comparison finds it.
        let roots: BTreeMap<Ino, &Attrs> =
            self.stage.roots.iter().map(|(ino, attrs)| (*ino, attrs)).collect();
        let put = |(ino, attrs): (Ino, &Attrs)| Edit::PutInode { vol, ino, attrs: attrs.clone() };
        self.edits.extend(roots.into_iter().map(put));
        for (dir, entry) in &self.plan.removes {
            count(attrs, *dir, -1, entry.kind);
            let hash = self.volume.name_hash(&entry.name);
            self.edits.push(Edit::DelDirent { vol, parent: *dir, hash });
            self.touched.entries.push((*dir, entry.name.clone()));
        }
    }

    /// What loses names. A directory goes with all that is in it, which is emptied later: it is an orphan with
    /// entries until then.
    fn lose(&mut self, lost: &Lost, attrs: &mut BTreeMap<Ino, Attrs>) {
        let vol = self.volume.vol;
        for (ino, names) in lost {
            let Some(attrs) = attrs.get_mut(ino) else { continue };
            let left = u32::try_from(names.len()).unwrap_or(u32::MAX);
            attrs.nlink = if attrs.kind == FileKind::Dir { 0 } else { attrs.nlink.saturating_sub(left) };
            attrs.ctime = self.now;
            for (dir, hash) in names {
                attrs.unname(*dir, hash);
            }
            if attrs.nlink == 0 {
                self.edits.push(Edit::Orphan { vol, ino: *ino, orphan: true });
                self.touched.orphans.push(*ino);
            }
        }
    }

    /// The attributes of directories that stay.
    fn directories(&mut self, attrs: &mut BTreeMap<Ino, Attrs>) -> FsResult<()> {
        let past = self.volume.view(Some(self.restore.at));
        for (ino, dir) in &self.plan.dirs {
            let Some(new) = attrs.get_mut(ino) else { continue };
            (new.mtime, new.ctime) = (self.now, self.now);
            let Some(point) = dir.point else { continue };
            let then = past.inode(point)?.ok_or(FsError::Stale)?.item.attrs;
            (new.mode, new.uid, new.gid) = (then.mode, then.uid, then.gid);
            (new.atime, new.mtime, new.btime) = (then.atime, then.mtime, then.btime);
            new.author = then.author;
            self.xattrs(&past, point, *ino, new)?;
        }
        Ok(())
    }

    /// The extended attributes of a directory that stays.
    fn xattrs(&mut self, past: &View, point: Ino, ino: Ino, new: &mut Attrs) -> FsResult<()> {
        let vol = self.volume.vol;
        let then = past.xattrs(point)?;
        let now = self.volume.view(None).xattrs(ino)?;
        new.xattrs = u32::try_from(then.len()).unwrap_or(u32::MAX);
        for xattr in now.iter().filter(|n| !then.iter().any(|t| t.name == n.name)) {
            let hash = self.volume.xattr_hash(&xattr.name);
            self.edits.push(Edit::DelXattr { vol, ino, hash });
        }
        for xattr in then.into_iter().filter(|t| !now.contains(t)) {
            let hash = self.volume.xattr_hash(&xattr.name);
            self.edits.push(Edit::PutXattr { vol, ino, hash, xattr });
        }
        Ok(())
    }
}
