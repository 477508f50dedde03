//! Renaming: replacing, not replacing, exchanging.

use std::collections::BTreeMap;

use parking_lot::RwLockWriteGuard;

use super::cell::Live;
use super::namespace::check_name;
use super::{CellRef, FsError, FsResult, Volume};
use crate::store::model::{Attrs, Dirent, Edit, FileKind, RequestId};
use crate::types::{Ino, Timestamp};

/// What becomes of something that has the new name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// It is replaced.
    Replace,
    /// The rename fails.
    NoReplace,
    /// It gets the old name.
    Exchange,
}

/// A name in a directory.
type Place<'a> = (Ino, &'a [u8]);

/// Directories deeper than this cannot be made by paths that the kernel accepts; a longer chain of parents
/// is damage.
const DEPTH_MAX: usize = 1 << 20;

impl Volume {
    /// Moves what `from` names to `to`. Returns the inode that lost its last name by that.
    ///
    /// # Errors
    /// As rename(2): [`FsError::NotFound`], [`FsError::Exists`], [`FsError::NotEmpty`], [`FsError::IsDir`],
    /// [`FsError::NotDir`], [`FsError::Invalid`] for moving a directory beneath itself.
    pub fn rename(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        mode: RenameMode,
        request: Option<RequestId>,
    ) -> FsResult<Option<Ino>> {
        self.check_writable()?;
        check_name(from.1)?;
        check_name(to.1)?;
        // Write-temp-and-rename must never show an empty file, so data goes before names.
        for place in [from, to] {
            if let Some(entry) = self.entry(None, place.0, place.1)?
                && entry.kind == FileKind::File
            {
                self.commit_file(entry.ino)?;
            }
        }
        let _gate = self.enter();
        let _names = self.namespace.lock();
        let source = self.entry(None, from.0, from.1)?.ok_or(FsError::NotFound)?;
        let target = self.entry(None, to.0, to.1)?;
        match (mode, &target) {
            (RenameMode::NoReplace, Some(_)) => return Err(FsError::Exists),
            (RenameMode::Exchange, None) => return Err(FsError::NotFound),
            _ => {}
        }
        // Two names of one file: nothing happens, says POSIX.
        if target.as_ref().is_some_and(|t| t.ino == source.ino) {
            return Ok(None);
        }
        self.check_loops(from.0, to.0, &source, target.as_ref(), mode)?;
        let ino = source.ino;
        let change = Change { volume: self, from, to, source, target, mode, now: self.shared.now() };
        let orphan = change.commit(request)?;
        self.completed(ino);
        Ok(orphan)
    }

    /// A directory must not move beneath itself.
    fn check_loops(
        &self,
        from: Ino,
        to: Ino,
        source: &Dirent,
        target: Option<&Dirent>,
        mode: RenameMode,
    ) -> FsResult<()> {
        if from == to {
            return Ok(());
        }
        if source.kind == FileKind::Dir && self.is_within(to, source.ino)? {
            return Err(FsError::Invalid("a directory cannot move beneath itself"));
        }
        if let Some(target) = target.filter(|t| t.kind == FileKind::Dir) {
            let beneath = self.is_within(from, target.ino)?;
            return match mode {
                RenameMode::Exchange if beneath => {
                    Err(FsError::Invalid("a directory cannot move beneath itself"))
                }
                _ if beneath => Err(FsError::NotEmpty),
                _ => Ok(()),
            };
        }
        Ok(())
    }

    /// Whether directory `ino` is `ancestor` or lies beneath it.
    fn is_within(&self, mut ino: Ino, ancestor: Ino) -> FsResult<bool> {
        for _ in 0..DEPTH_MAX {
            if ino == ancestor {
                return Ok(true);
            }
            if ino == Ino::ROOT {
                return Ok(false);
            }
            ino = self.inode(None, ino)?.item.attrs.parent;
        }
        Err(FsError::Invalid("directories form a loop"))
    }
}

/// A rename whose names have been looked up.
struct Change<'a> {
    volume: &'a Volume,
    from: Place<'a>,
    to: Place<'a>,
    source: Dirent,
    target: Option<Dirent>,
    mode: RenameMode,
    now: Timestamp,
}

impl Change<'_> {
    fn commit(&self, request: Option<RequestId>) -> FsResult<Option<Ino>> {
        let mut inodes = vec![self.from.0, self.to.0, self.source.ino];
        inodes.extend(self.target.as_ref().map(|t| t.ino));
        inodes.sort_unstable();
        inodes.dedup();
        let cells =
            inodes.iter().map(|ino| self.volume.cell(*ino)).collect::<FsResult<Vec<CellRef<'_>>>>()?;
        // In the order of their numbers.
        let mut states: BTreeMap<Ino, RwLockWriteGuard<'_, Live>> =
            cells.iter().map(|cell| (cell.ino, cell.state.write())).collect();
        let mut attrs: BTreeMap<Ino, Attrs> =
            states.iter().map(|(i, live)| (*i, live.recordable())).collect();
        let orphan = self.change(&mut attrs)?;
        let (vol, volume) = (self.volume.vol, self.volume);
        let mut edits: Vec<Edit> = attrs
            .iter()
            .map(|(ino, attrs)| Edit::PutInode { vol, ino: *ino, attrs: attrs.clone() })
            .collect();
        let put = |place: Place<'_>, entry: &Dirent| Edit::PutDirent {
            vol,
            parent: place.0,
            hash: volume.name_hash(place.1),
            dirent: Dirent { ino: entry.ino, kind: entry.kind, name: place.1.to_vec() },
        };
        match (&self.target, self.mode) {
            (Some(target), RenameMode::Exchange) => edits.push(put(self.from, target)),
            _ => {
                edits.push(Edit::DelDirent { vol, parent: self.from.0, hash: volume.name_hash(self.from.1) });
            }
        }
        edits.push(put(self.to, &self.source));
        if let Some(ino) = orphan {
            edits.push(Edit::Orphan { vol, ino, orphan: true });
        }
        volume.commit(edits, request)?;
        if let Some(replaced) =
            orphan.and_then(|ino| states.get(&ino)).filter(|l| l.attrs.kind != FileKind::Dir)
        {
            volume.shared.keeping.alarms.removed(vol, replaced.attrs.size);
        }
        for (ino, live) in &mut states {
            if let Some(mut new) = attrs.remove(ino) {
                // Sizes and times of uncommitted writes stay ahead of the record.
                new.size = live.attrs.size;
                live.attrs = new;
            }
        }
        Ok(orphan)
    }

    /// Works out the new attributes. Returns the inode that loses its last name.
    fn change(&self, attrs: &mut BTreeMap<Ino, Attrs>) -> FsResult<Option<Ino>> {
        for ino in [self.from.0, self.to.0] {
            let dir = attrs.get_mut(&ino).ok_or(FsError::NotFound)?;
            Volume::check_parent(dir)?;
            (dir.mtime, dir.ctime) = (self.now, self.now);
        }
        let source_dir = self.source.kind == FileKind::Dir;
        if let Some(source) = attrs.get_mut(&self.source.ino) {
            source.ctime = self.now;
            (source.parent, source.name) = (self.to.0, self.volume.name_hash(self.to.1));
        }
        let Some(target) = &self.target else {
            self.add(attrs, self.from.0, -1, source_dir);
            self.add(attrs, self.to.0, 1, source_dir);
            return Ok(None);
        };
        let target_dir = target.kind == FileKind::Dir;
        let replaced = attrs.get_mut(&target.ino).ok_or(FsError::NotFound)?;
        replaced.ctime = self.now;
        if self.mode == RenameMode::Exchange {
            (replaced.parent, replaced.name) = (self.from.0, self.volume.name_hash(self.from.1));
            self.add(attrs, self.from.0, -1, source_dir);
            self.add(attrs, self.to.0, 1, source_dir);
            self.add(attrs, self.to.0, -1, target_dir);
            self.add(attrs, self.from.0, 1, target_dir);
            return Ok(None);
        }
        match (source_dir, target_dir) {
            (true, false) => return Err(FsError::NotDir),
            (false, true) => return Err(FsError::IsDir),
            (true, true) if replaced.entries > 0 => return Err(FsError::NotEmpty),
            _ => {}
        }
        replaced.nlink = if target_dir { 0 } else { replaced.nlink.saturating_sub(1) };
        replaced.unname(self.to.0, &self.volume.name_hash(self.to.1));
        let orphan = (replaced.nlink == 0).then_some(target.ino);
        self.add(attrs, self.from.0, -1, source_dir);
        self.add(attrs, self.to.0, 1, source_dir);
        self.add(attrs, self.to.0, -1, target_dir);
        Ok(orphan)
    }

    /// Counts an entry that a directory gains or loses.
    fn add(&self, attrs: &mut BTreeMap<Ino, Attrs>, dir: Ino, sign: i32, is_dir: bool) {
        if let Some(dir) = attrs.get_mut(&dir) {
            dir.entries = dir.entries.saturating_add_signed(i64::from(sign));
            if is_dir {
                dir.nlink = dir.nlink.saturating_add_signed(sign);
            }
        }
    }
}
