//! Renaming: replacing, not replacing, exchanging.

use std::collections::BTreeMap;

use parking_lot::RwLockWriteGuard;

use super::cell::Live;
use super::namespace::check_name;
use super::revealing::Revealing;
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
        let mut dirs = false;
        for place in [from, to] {
            match self.entry(None, place.0, place.1)? {
                Some(entry) if entry.kind == FileKind::File => self.commit_file(entry.ino)?,
                entry => dirs |= entry.is_some_and(|entry| entry.kind == FileKind::Dir),
            }
        }
        if dirs {
            self.reveal_moved(from, to, mode)?;
        }
        self.shared.wait_for_room_for_names();
        let _gate = self.enter();
        let _names = self.namespace.lock();
        let Some((source, target)) = self.look_up(from, to, mode)? else { return Ok(None) };
        let moved = self.moved(from, to, mode, &source, target.as_ref())?;
        // What came in since `reveal_moved`.
        let mut revealing = Revealing::new(&moved);
        while revealing.step(self)? {}
        for ((entry, path), (dir, _)) in moved.iter().zip([to, from]) {
            let excluded = entry.excluded && path.is_none();
            let hides =
                entry.kind == FileKind::Dir && self.inode(None, entry.ino)?.item.attrs.hidden.is_some();
            self.admit(dir, !excluded, excluded || hides)?;
        }
        let stay = moved.iter().map(|(entry, path)| entry.excluded && path.is_none());
        let stay: Vec<bool> = stay.collect();
        let dirs = moved.iter().any(|(entry, _)| entry.kind == FileKind::Dir);
        let ino = source.ino;
        let change = Change { volume: self, from, to, source, target, stay, mode, now: self.shared.now() };
        let orphan = change.commit(request)?;
        if dirs {
            self.forget_paths();
        }
        self.completed(ino);
        Ok(orphan)
    }

    /// What both names mean; nothing if they are two names of one file: then nothing happens, says POSIX.
    fn look_up(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        mode: RenameMode,
    ) -> FsResult<Option<(Dirent, Option<Dirent>)>> {
        let source = self.entry(None, from.0, from.1)?.ok_or(FsError::NotFound)?;
        let target = self.entry(None, to.0, to.1)?;
        match (mode, &target) {
            (RenameMode::NoReplace, Some(_)) => return Err(FsError::Exists),
            (RenameMode::Exchange, None) => return Err(FsError::NotFound),
            _ => {}
        }
        if target.as_ref().is_some_and(|t| t.ino == source.ino) {
            return Ok(None);
        }
        self.check_loops(from.0, to.0, &source, target.as_ref(), mode)?;
        // What will fail must not reveal anything before.
        for dir in [from.0, to.0] {
            Self::check_parent(&self.inode(None, dir)?.item.attrs)?;
        }
        if let Some(replaced) = target.as_ref().filter(|_| mode == RenameMode::Replace) {
            match (source.kind == FileKind::Dir, replaced.kind == FileKind::Dir) {
                (true, false) => return Err(FsError::NotDir),
                (false, true) => return Err(FsError::IsDir),
                (true, true) if self.inode(None, replaced.ino)?.item.attrs.entries > 0 => {
                    return Err(FsError::NotEmpty);
                }
                _ => {}
            }
        }
        Ok(Some((source, target)))
    }

    /// What gets another name, first what `to` will mean, and its path then if that is not excluded.
    fn moved(
        &self,
        from: Place<'_>,
        to: Place<'_>,
        mode: RenameMode,
        source: &Dirent,
        target: Option<&Dirent>,
    ) -> FsResult<Vec<(Dirent, Option<Vec<u8>>)>> {
        let mut moved = vec![(source.clone(), self.placed(to.0, to.1)?)];
        if let Some(target) = target.filter(|_| mode == RenameMode::Exchange) {
            moved.push((target.clone(), self.placed(from.0, from.1)?));
        }
        Ok(moved)
    }

    /// Makes most of what a directory holds ordinary that is about to leave an excluded place, while programs go
    /// on.
    fn reveal_moved(&self, from: Place<'_>, to: Place<'_>, mode: RenameMode) -> FsResult<()> {
        let mut revealing: Option<Revealing> = None;
        loop {
            let _gate = self.enter();
            let _names = self.namespace.lock();
            let Some((source, target)) = self.look_up(from, to, mode)? else { return Ok(()) };
            let moved = self.moved(from, to, mode, &source, target.as_ref())?;
            if !revealing.get_or_insert_with(|| Revealing::new(&moved)).step(self)? {
                return Ok(());
            }
        }
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
    /// Whether what `to` means then, and in an exchange what `from` means, is excluded.
    stay: Vec<bool>,
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
        let put = |place: Place<'_>, entry: &Dirent, excluded: bool| Edit::PutDirent {
            vol,
            parent: place.0,
            hash: volume.name_hash(place.1),
            dirent: Dirent { ino: entry.ino, kind: entry.kind, name: place.1.to_vec(), excluded },
        };
        let [source_stays, target_stays] = self.stays();
        match (&self.target, self.mode) {
            (Some(target), RenameMode::Exchange) => edits.push(put(self.from, target, target_stays)),
            _ => {
                edits.push(Edit::DelDirent { vol, parent: self.from.0, hash: volume.name_hash(self.from.1) });
            }
        }
        edits.push(put(self.to, &self.source, source_stays));
        if let Some(ino) = orphan {
            edits.push(Edit::Orphan { vol, ino, orphan: true });
        }
        let replaced = orphan.and_then(|ino| states.get(&ino).map(|live| (ino, live)));
        let replaced = replaced.filter(|(_, live)| live.attrs.kind != FileKind::Dir);
        let held = replaced.map(|(ino, live)| volume.held_bytes(ino, live)).transpose()?;
        volume.commit(edits, request)?;
        if let Some(held) = held {
            volume.shared.keeping.alarms.removed(vol, held);
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
        let [source_stays, target_stays] = self.stays();
        let (source, now) = (&self.source, self.now);
        if let Some(attrs) = attrs.get_mut(&source.ino) {
            (attrs.ctime, attrs.excluded) = (now, attrs.excluded && source_stays);
            (attrs.parent, attrs.name) = (self.to.0, self.volume.name_hash(self.to.1));
        }
        let Some(target) = &self.target else {
            add(attrs, self.from.0, -1, source.kind, source.excluded);
            add(attrs, self.to.0, 1, source.kind, source_stays);
            return Ok(None);
        };
        let target_dir = target.kind == FileKind::Dir;
        let replaced = attrs.get_mut(&target.ino).ok_or(FsError::NotFound)?;
        replaced.ctime = self.now;
        if self.mode == RenameMode::Exchange {
            (replaced.parent, replaced.name) = (self.from.0, self.volume.name_hash(self.from.1));
            replaced.excluded &= target_stays;
            add(attrs, self.from.0, -1, source.kind, source.excluded);
            add(attrs, self.to.0, 1, source.kind, source_stays);
            add(attrs, self.to.0, -1, target.kind, target.excluded);
            add(attrs, self.from.0, 1, target.kind, target_stays);
            return Ok(None);
        }
        replaced.nlink = if target_dir { 0 } else { replaced.nlink.saturating_sub(1) };
        replaced.unname(self.to.0, &self.volume.name_hash(self.to.1));
        let orphan = (replaced.nlink == 0).then_some(target.ino);
        add(attrs, self.from.0, -1, source.kind, source.excluded);
        add(attrs, self.to.0, 1, source.kind, source_stays);
        add(attrs, self.to.0, -1, target.kind, target.excluded);
        Ok(orphan)
    }

    /// Whether the source, and in an exchange the target, is excluded under its new name.
    fn stays(&self) -> [bool; 2] {
        [0, 1].map(|which| self.stay.get(which).copied().unwrap_or(false))
    }
}

/// Counts an entry that a directory gains or loses.
fn add(attrs: &mut BTreeMap<Ino, Attrs>, dir: Ino, sign: i32, kind: FileKind, excluded: bool) {
    if let Some(dir) = attrs.get_mut(&dir) {
        dir.entries = dir.entries.saturating_add_signed(i64::from(sign));
        if kind == FileKind::Dir {
            dir.nlink = dir.nlink.saturating_add_signed(sign);
        }
        if excluded {
            dir.count_hidden(sign, kind);
        }
    }
}
