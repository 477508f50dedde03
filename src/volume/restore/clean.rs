//! Removing what nothing leads to any more, in records of bounded size: a tree that was replaced, directory by
//! directory, and what a restore that was cut short had prepared.

use std::collections::BTreeMap;

use parking_lot::RwLockWriteGuard;

use crate::store::model::{Attrs, Dirent, Edit, FileKind};
use crate::types::Ino;
use crate::volume::cell::Live;
use crate::volume::{CellRef, FsError, FsResult, Volume};

/// Entries that one record removes: bounds how many inodes are locked together.
const ENTRIES_PER_RECORD: usize = if cfg!(test) { 3 } else { 256 };
/// Inodes of a stage looked at in one go.
const INODES_PER_RECORD: usize = if cfg!(test) { 3 } else { 64 };

/// What emptying a directory came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Emptied {
    /// What has lost its last name by it, directories with all that is still in them.
    pub orphans: Vec<Ino>,
    /// What has names left, but fewer.
    pub unlinked: Vec<Ino>,
}

impl Volume {
    /// Takes up to a batch of entries out of a directory that has no name itself. None when it has none left;
    /// then [`Volume::remove_orphan`] takes it away.
    ///
    /// # Errors
    /// [`FsError::Invalid`] when it has a name; from the store.
    pub fn empty_orphan(&self, ino: Ino) -> FsResult<Option<Emptied>> {
        let _gate = self.enter();
        let _names = self.namespace.lock();
        let dir = match self.view(None).inode(ino)? {
            Some(found) if found.item.attrs.entries > 0 => found.item.attrs,
            _ => return Ok(None),
        };
        if dir.nlink > 0 {
            return Err(FsError::Invalid("it has a name"));
        }
        let entries = self.some_entries(ino)?;
        let mut inodes: Vec<Ino> = entries.iter().map(|(_, entry)| entry.ino).chain([ino]).collect();
        inodes.sort_unstable();
        inodes.dedup();
        let cells = inodes.iter().map(|ino| self.cell(*ino)).collect::<FsResult<Vec<CellRef<'_>>>>()?;
        // In the order of their numbers.
        let mut states: BTreeMap<Ino, RwLockWriteGuard<'_, Live>> =
            cells.iter().map(|cell| (cell.ino, cell.state.write())).collect();
        let mut attrs: BTreeMap<Ino, Attrs> =
            states.iter().map(|(ino, live)| (*ino, live.recordable())).collect();
        let (edits, emptied) = self.emptying(ino, &entries, &mut attrs);
        self.commit(edits, None)?;
        for (ino, live) in &mut states {
            if let Some(new) = attrs.remove(ino) {
                // Sizes of uncommitted writes stay ahead of the record.
                let size = live.attrs.size;
                live.attrs = Attrs { size, ..new };
            }
        }
        Ok(Some(emptied))
    }

    fn some_entries(&self, dir: Ino) -> FsResult<Vec<([u8; 16], Dirent)>> {
        let mut entries = Vec::new();
        self.view(None).readdir(dir, &[0; 16], |hash, entry| {
            entries.push((hash, entry));
            Ok(entries.len() < ENTRIES_PER_RECORD)
        })?;
        Ok(entries)
    }

    fn emptying(
        &self,
        dir: Ino,
        entries: &[([u8; 16], Dirent)],
        attrs: &mut BTreeMap<Ino, Attrs>,
    ) -> (Vec<Edit>, Emptied) {
        let (vol, now) = (self.vol, self.shared.now());
        let mut edits = Vec::new();
        for (hash, entry) in entries {
            edits.push(Edit::DelDirent { vol, parent: dir, hash: *hash });
            let Some(child) = attrs.get_mut(&entry.ino) else { continue };
            child.nlink = if entry.kind == FileKind::Dir { 0 } else { child.nlink.saturating_sub(1) };
            child.ctime = now;
            child.unname(dir, hash);
        }
        if let Some(own) = attrs.get_mut(&dir) {
            own.entries = own.entries.saturating_sub(entries.len() as u64);
            let excluded = entries.iter().filter(|(_, entry)| entry.excluded);
            excluded.for_each(|(_, entry)| own.count_hidden(-1, entry.kind));
        }
        let mut emptied = Emptied::default();
        for (ino, attrs) in attrs.iter() {
            edits.push(Edit::PutInode { vol, ino: *ino, attrs: attrs.clone() });
            if *ino == dir {
                continue;
            }
            if attrs.nlink == 0 {
                edits.push(Edit::Orphan { vol, ino: *ino, orphan: true });
                emptied.orphans.push(*ino);
            } else {
                emptied.unlinked.push(*ino);
            }
        }
        (edits, emptied)
    }

    /// Removes what restores of earlier servers had prepared and not made visible.
    ///
    /// # Errors
    /// From the store; what is left then goes the next time.
    pub fn remove_stages(&self) -> FsResult<()> {
        for (from, to) in self.shared.store.index().stages(self.vol)? {
            if !self.staging.lock().contains(&from) {
                self.remove_stage(from, to)?;
            }
        }
        Ok(())
    }

    /// Removes the inodes of a stage, whose numbers nothing else has.
    pub(super) fn remove_stage(&self, from: Ino, to: Ino) -> FsResult<()> {
        let vol = self.vol;
        loop {
            let inodes = self.shared.store.index().inodes_between(vol, from, to, INODES_PER_RECORD)?;
            let _gate = self.enter();
            let mut edits = Vec::new();
            for ino in &inodes {
                self.unstage(*ino, &mut edits)?;
            }
            if inodes.is_empty() {
                if from < to {
                    self.commit(vec![Edit::Stage { vol, from, to, staged: false }], None)?;
                }
                return Ok(());
            }
            self.commit(edits, None)?;
        }
    }

    /// The edits that remove an inode of a stage; of a directory with many entries only a part of these.
    fn unstage(&self, ino: Ino, edits: &mut Vec<Edit>) -> FsResult<()> {
        let vol = self.vol;
        let Some(inode) = self.view(None).inode(ino)? else { return Ok(()) };
        match inode.item.attrs.kind {
            FileKind::Dir => {
                let entries = self.some_entries(ino)?;
                for (hash, _) in &entries {
                    edits.push(Edit::DelDirent { vol, parent: ino, hash: *hash });
                }
                if entries.len() >= ENTRIES_PER_RECORD {
                    return Ok(());
                }
            }
            FileKind::File => self.remove_range(ino, 0, u64::MAX, inode.item.attrs.size, edits)?,
            _ => {}
        }
        edits.push(Edit::DelInode { vol, ino });
        Ok(())
    }
}
