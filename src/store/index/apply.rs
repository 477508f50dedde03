//! `apply`: the only writer of the index. Live, in recovery, when rebuilding and on a standby the same
//! function runs over the same records and gives the same index (locations and counts of chunks apart).

use super::keys::{self, Family, meta};
use super::rows::{Snapshot, Stored, Volume};
use super::txn::{Locate, Txn};
use super::{HEADS, HISTORY, Index, damaged};
use crate::store::model::{Attrs, Edit, Inode, Policy, Record, SnapshotSpec};
use crate::types::limits::SWEEP_ITEMS_MAX;
use crate::types::{Error, Ino, Lsn, PackId, Result, Term, Timestamp, VolumeId};

/// Steps that are remembered; of older ones it is not known any more that there was any.
const STEPS_MAX: usize = 64;

/// A record's place in the journal.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its LSN: the one after the last applied.
    pub lsn: Lsn,
    /// Its term.
    pub term: Term,
    /// The chain hash up to and with it.
    pub chain: [u8; 32],
    /// How far the packs are written.
    pub packed: (PackId, u64),
}

impl Index {
    /// Applies one record in one batch.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the record does not follow the last one applied or names what cannot be;
    /// [`Error::Index`] and [`Error::NoSpace`] from RocksDB. After an error nothing was applied, but the state
    /// in memory is not to be trusted: the caller has it read anew ([`Index::reload`]).
    pub fn apply(&self, place: Place, record: &Record, locate: &dyn Locate) -> Result<()> {
        let mut state = self.state.write();
        if place.lsn != state.applied.next() {
            let detail = format!("the index is at {}", state.applied);
            return Err(Error::corrupt("record order", format!("lsn {}", place.lsn), detail));
        }
        let mut txn = Txn::new(self, &mut state, place.lsn, locate);
        // What patches one file goes together.
        for run in
            record.edits.chunk_by(|a, b| a.patched_file().is_some_and(|file| b.patched_file() == Some(file)))
        {
            txn.edit(run, record)?;
        }
        let time = txn.time(record.time)?;
        txn.put_row(
            meta::time(time.as_nanos_saturating().div_euclid(10_000_000)),
            place.lsn.0.to_le_bytes(),
        )?;
        txn.state.applied = place.lsn;
        txn.state.term = place.term;
        txn.state.chain = place.chain;
        txn.state.time = time;
        txn.state.packed = place.packed;
        txn.finish()
    }
}

impl Txn<'_> {
    /// The time of this record that never runs backwards. A step back of the clock is noted.
    pub(super) fn time(&mut self, clock: Timestamp) -> Result<Timestamp> {
        if let Some(step) = self.state.step_at(clock) {
            self.put_row(meta::step(step.lsn), step.encode())?;
            self.state.steps.push(step);
            if self.state.steps.len() > STEPS_MAX {
                let oldest = self.state.steps.remove(0);
                self.delete_row(&meta::step(oldest.lsn));
            }
        }
        Ok(self.state.time_of(self.lsn, clock).max(self.state.time))
    }

    /// One edit, or several that patch the same file.
    fn edit(&mut self, run: &[Edit], record: &Record) -> Result<()> {
        let Some(edit) = run.first() else { return Ok(()) };
        // Who still has a deleted volume open may go on changing it; nothing of that must outlive the sweep.
        let gone = |vol| self.state.volumes.get(&vol).is_none_or(|v| v.deleted);
        if edit.volume_of_item().is_some_and(gone) {
            return Ok(());
        }
        if let Some(volume) = edit.volume_of_content().and_then(|vol| self.state.volumes.get_mut(&vol)) {
            volume.changed = self.lsn;
        }
        match edit {
            Edit::PutInode { vol, ino, attrs } => self.put_inode(*vol, *ino, attrs),
            Edit::DelInode { vol, ino } => self.del_inode(*vol, *ino),
            Edit::PutDirent { vol, parent, hash, dirent } => {
                self.put(&keys::dirent(*vol, *parent, hash), dirent, self.lsn)
            }
            Edit::DelDirent { vol, parent, hash } => {
                self.delete(&keys::dirent(*vol, *parent, hash), self.lsn).map(drop)
            }
            Edit::PatchBlock { vol, ino, .. } => self.patch_blocks(*vol, *ino, run),
            Edit::DropBlocks { vol, ino, from, to } => self.drop_blocks(*vol, *ino, *from, *to),
            Edit::Cut { vol, ino, from, to } => self.cut(*vol, *ino, *from, *to),
            Edit::Reap { vol, ino, cut, items } => self.reap(*vol, *ino, *cut, *items as usize),
            Edit::PutXattr { vol, ino, hash, xattr } => {
                self.put(&keys::xattr(*vol, *ino, hash), xattr, self.lsn)
            }
            Edit::DelXattr { vol, ino, hash } => {
                self.delete(&keys::xattr(*vol, *ino, hash), self.lsn).map(drop)
            }
            Edit::Orphan { vol, ino, orphan: true } => self.put_row(meta::orphan(*vol, *ino), []),
            Edit::Orphan { vol, ino, orphan: false } => {
                self.delete_row(&meta::orphan(*vol, *ino));
                Ok(())
            }
            Edit::Stage { vol, from, to, staged } => self.stage(*vol, *from, *to, *staged),
            Edit::Rebind { vol, ino, block, since, recipe } => {
                self.rebind(&keys::block(*vol, *ino, *block), *since, recipe)
            }
            Edit::SnapshotCreate { vol, spec } => self.snapshot_create(*vol, spec, record),
            Edit::SnapshotDelete { vol, at } => self.change_snapshot(*vol, *at, |s| s.deleting = true),
            Edit::SnapshotHold { vol, at, hold } => self.change_snapshot(*vol, *at, |s| s.spec.hold = *hold),
            Edit::Window { vol, floor, since } => {
                if let Some(volume) = self.state.volume_mut(*vol).filter(|v| v.floor < *floor) {
                    (volume.floor, volume.floor_time) = (*floor, Some(*since));
                }
                self.trim_times()
            }
            Edit::Forget { vol, items, from } => self.forget(*vol, *items as usize, *from),
            Edit::VolumeCreate { vol, name } => {
                self.state.volumes.insert(*vol, Volume::new(name.clone(), self.lsn));
                self.state.next_volume = self.state.next_volume.max(vol.0.saturating_add(1));
                self.state.volume_mut(*vol);
                Ok(())
            }
            Edit::VolumeDelete { vol } => {
                if let Some(volume) = self.state.volume_mut(*vol) {
                    volume.deleted = true;
                }
                Ok(())
            }
            Edit::VolumeSweep { vol } => self.sweep_volume(*vol),
            Edit::PolicySet { vol, policy } => self.policy_set(*vol, policy),
            Edit::Purge { vol, ino, pending: true } => self.put_row(meta::purge(*vol, *ino), []),
            Edit::Purge { vol, ino, pending: false } => {
                self.delete_row(&meta::purge(*vol, *ino));
                Ok(())
            }
            Edit::Erase { vol, version } => self.erase(*vol, version),
            Edit::Term => Ok(()),
        }
    }

    /// The record's attributes with what `apply` itself keeps.
    fn put_inode(&mut self, vol: VolumeId, ino: Ino, attrs: &Attrs) -> Result<()> {
        let key = keys::inode(vol, ino);
        let old = self.head_item::<Inode>(&key)?;
        if old.is_none() {
            self.use_ino(vol, ino);
            if let Some(volume) = self.state.volume_mut(vol) {
                volume.inodes += 1;
            }
        }
        let stays = attrs.excluded && old.as_ref().is_some_and(|(_, i)| i.attrs.excluded);
        let (data_bytes, cuts) = old.map_or((0, Vec::new()), |(_, i)| (i.data_bytes, i.cuts));
        let inode = Inode { attrs: attrs.clone(), data_bytes, cuts };
        // An excluded inode has one version, as long as it is excluded.
        if stays { self.amend(&key, &inode) } else { self.put(&key, &inode, self.lsn) }
    }

    fn del_inode(&mut self, vol: VolumeId, ino: Ino) -> Result<()> {
        let key = keys::inode(vol, ino);
        let Some((_, inode)) = self.head_item::<Inode>(&key)? else { return Ok(()) };
        // Before the inode, which says whether they are excluded.
        if inode.attrs.xattrs > 0 {
            let prefix = keys::prefix(vol, Family::Xattr, ino);
            for key in self.index.keys_with(HEADS, &prefix, usize::MAX)? {
                self.delete(&key, self.lsn)?;
            }
        }
        self.delete(&key, self.lsn)?;
        if let Some(volume) = self.state.volume_mut(vol) {
            volume.inodes = volume.inodes.saturating_sub(1);
        }
        Ok(())
    }

    /// All numbers of a stage count as used from the start, so that none of them is given to anything that its
    /// removal would take along.
    fn stage(&mut self, vol: VolumeId, from: Ino, to: Ino, staged: bool) -> Result<()> {
        let row = meta::stage(vol, from);
        if staged && from < to {
            self.use_ino(vol, Ino(to.0 - 1));
            return self.put_row(row, to.0.to_le_bytes());
        }
        self.delete_row(&row);
        Ok(())
    }

    fn snapshot_create(&mut self, vol: VolumeId, spec: &SnapshotSpec, record: &Record) -> Result<()> {
        let next_ino = self.state.volumes.get(&vol).map_or(0, |v| v.next_ino);
        let snapshot = Snapshot { spec: spec.clone(), time: record.time, deleting: false, next_ino };
        self.put_sealed_row(meta::snapshot(vol, self.lsn), &snapshot.encode())?;
        let lsn = self.lsn;
        if let Some(volume) = self.state.volume_mut(vol) {
            volume.next_view = volume.next_view.max(spec.view.saturating_add(1));
            volume.points.insert(lsn, snapshot);
        }
        Ok(())
    }

    fn policy_set(&mut self, vol: VolumeId, policy: &Policy) -> Result<()> {
        let mut e = crate::types::wire::Encoder::new();
        policy.encode(&mut e);
        self.put_sealed_row(meta::policy(vol), &e.finish())?;
        if let Some(volume) = self.state.volume_mut(vol) {
            volume.policy = policy.clone();
        }
        Ok(())
    }

    fn change_snapshot(&mut self, vol: VolumeId, at: Lsn, change: impl FnOnce(&mut Snapshot)) -> Result<()> {
        let Some(snapshot) = self.state.volumes.get_mut(&vol).and_then(|v| v.points.get_mut(&at)) else {
            return Ok(());
        };
        change(snapshot);
        let row = snapshot.encode();
        self.put_sealed_row(meta::snapshot(vol, at), &row)
    }

    /// Drops time marks of moments that no volume's window reaches any more; snapshots are found by name.
    fn trim_times(&mut self) -> Result<()> {
        let floor = self.state.volumes.values().filter(|v| !v.deleted).map(|v| v.floor).min();
        for key in self.index.times_before(floor.unwrap_or(Lsn::ZERO), SWEEP_ITEMS_MAX)? {
            self.delete_row(&key);
        }
        Ok(())
    }

    /// Removes up to a batch of what a deleted volume left: history, then heads, then its rows.
    fn sweep_volume(&mut self, vol: VolumeId) -> Result<()> {
        if !self.state.volumes.get(&vol).is_some_and(|v| v.deleted) {
            return Ok(());
        }
        let prefix = keys::volume(vol);
        let mut left = SWEEP_ITEMS_MAX;
        for key in self.index.keys_with(HISTORY, &prefix, left)? {
            left -= 1;
            match keys::split_ended(&key) {
                Some((first, end, head)) => self.delete_ended(vol, first, end, &head)?,
                None => {
                    let (head, end) = keys::split_history(&key).ok_or_else(|| damaged(&key, "bad key"))?;
                    self.free_history(head, end)?;
                }
            }
        }
        // No point of a deleted volume needs what is ended now, so it is freed at once.
        if let Some(volume) = self.state.volume_mut(vol) {
            volume.floor = Lsn::MAX;
            volume.points.values_mut().for_each(|s| s.deleting = true);
        }
        for key in self.index.keys_with(HEADS, &prefix, left)? {
            left -= 1;
            self.delete(&key, self.lsn)?;
        }
        if left > 0 {
            use meta::{ORPHAN, PENDING, POLICY, PURGE, REAP, SNAPSHOT, STAGE};
            for kind in [SNAPSHOT, POLICY, ORPHAN, STAGE, REAP, PENDING, PURGE] {
                for key in self.index.keys_with("default", &meta::of_volume(kind, vol), usize::MAX)? {
                    self.delete_row(&key);
                }
            }
            self.state.volume_mut(vol);
            self.state.volumes.remove(&vol);
        }
        Ok(())
    }
}

impl Index {
    /// The first history entry of `head` that ended after `point`, with its end.
    pub(super) fn history_after(&self, head: &[u8], point: Lsn) -> Result<Option<(Lsn, Stored)>> {
        let below = keys::after_prefix(head);
        let it = self.iterate(HISTORY, &keys::history(head, point.next()), &below)?;
        let Some((key, value)) = it.item() else { return Ok(None) };
        match keys::split_history(key) {
            Some((found, end)) if found == head => {
                Ok(Some((end, Stored::decode(value).map_err(|e| damaged(key, e))?)))
            }
            _ => Ok(None),
        }
    }
}
