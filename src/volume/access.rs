//! Access times. A read must not cost a record, so what was read is noted here, and one record states many
//! access times together; a crash may lose those of the last moments.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{FsError, FsResult, Shared, Volume};
use crate::store::model::{Attrs, Edit};
use crate::types::limits::ACCESSES_PENDING_MAX;
use crate::types::{Ino, Timestamp, VolumeId};

/// How long a noted time may wait for its record.
const INTERVAL: Duration = Duration::from_secs(30);
/// Access times that one record states: bounds how many inodes are locked together.
const ACCESSES_PER_RECORD: usize = 1024;
/// Age at which relatime moves an access time that nothing else makes stale.
const DAY_SECS: i64 = 24 * 3600;

/// When reading moves the access time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessTimes {
    /// Never.
    Never,
    /// When it is not newer than the last change, or a day old (`relatime` of mount(8)).
    Relatime,
    /// Always.
    Always,
}

impl AccessTimes {
    fn moves(self, attrs: &Attrs, now: Timestamp) -> bool {
        match self {
            AccessTimes::Never => false,
            AccessTimes::Always => true,
            AccessTimes::Relatime => {
                attrs.atime <= attrs.mtime.max(attrs.ctime)
                    || now.secs.saturating_sub(attrs.atime.secs) >= DAY_SECS
            }
        }
    }
}

#[derive(Debug, Default)]
struct Pending {
    times: BTreeMap<(VolumeId, Ino), Timestamp>,
    /// Since when there are any.
    since: Option<Instant>,
}

/// Access times that no record states yet.
#[derive(Debug, Default)]
pub(super) struct Accesses {
    pending: Mutex<Pending>,
    /// How many, so that most looks need no lock.
    count: AtomicUsize,
}

impl Accesses {
    /// The noted time of an inode. To be asked for before its attributes are read: what is no longer noted then
    /// is in them.
    pub(super) fn of(&self, vol: VolumeId, ino: Ino) -> Option<Timestamp> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.pending.lock().times.get(&(vol, ino)).copied()
    }

    /// Forgets the noted time of an inode, and returns it.
    pub(super) fn take(&self, vol: VolumeId, ino: Ino) -> Option<Timestamp> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut pending = self.pending.lock();
        let time = pending.times.remove(&(vol, ino));
        self.count.store(pending.times.len(), Ordering::Release);
        if pending.times.is_empty() {
            pending.since = None;
        }
        time
    }

    /// Notes a time; false where there is no room.
    fn note(&self, vol: VolumeId, ino: Ino, time: Timestamp) -> bool {
        let mut pending = self.pending.lock();
        if pending.times.len() >= ACCESSES_PENDING_MAX && !pending.times.contains_key(&(vol, ino)) {
            return false;
        }
        pending.times.insert((vol, ino), time);
        pending.since.get_or_insert_with(Instant::now);
        self.count.store(pending.times.len(), Ordering::Release);
        true
    }

    /// Whether some have waited long enough, or there are many.
    pub(super) fn are_due(&self) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let pending = self.pending.lock();
        pending.times.len() >= ACCESSES_PENDING_MAX / 2
            || pending.since.is_some_and(|since| since.elapsed() >= INTERVAL)
    }

    /// Inodes of one volume behind `after`, in the order of their numbers, which is that of their locks.
    fn some(&self, after: Option<(VolumeId, Ino)>) -> Vec<(VolumeId, Ino)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let pending = self.pending.lock();
        let from = after.map_or(Unbounded, Excluded);
        let mut found: Vec<_> =
            pending.times.range((from, Unbounded)).map(|(key, _)| *key).take(ACCESSES_PER_RECORD).collect();
        let first = found.first().map(|(vol, _)| *vol);
        found.retain(|(vol, _)| Some(*vol) == first);
        found
    }
}

impl Shared {
    /// Records the noted access times.
    ///
    /// # Errors
    /// From the store; the times that could not be recorded are lost.
    pub(super) fn commit_accesses(&self) -> FsResult<()> {
        // The last room is not for these.
        self.store.admit_data()?;
        let mut after = None;
        loop {
            let some = self.accesses.some(after);
            let Some(last) = some.last() else { return Ok(()) };
            after = Some(*last);
            self.commit_some_accesses(&some)?;
        }
    }

    /// As [`Shared::commit_accesses`], for those to whom access times do not matter enough to fail for them.
    pub(super) fn try_commit_accesses(&self) {
        if let Err(error) = self.commit_accesses() {
            tracing::debug!(%error, "access times cannot be recorded");
        }
    }

    fn commit_some_accesses(&self, inodes: &[(VolumeId, Ino)]) -> FsResult<()> {
        let mut cells = Vec::with_capacity(inodes.len());
        for &(vol, ino) in inodes {
            match self.cell(vol, ino) {
                Ok(cell) => cells.push(cell),
                // Removed since it was read.
                Err(FsError::NotFound) => {
                    self.accesses.take(vol, ino);
                }
                Err(e) => return Err(e),
            }
        }
        let mut states: Vec<_> = cells.iter().map(|cell| (cell.vol, cell.ino, cell.state.write())).collect();
        let mut edits = Vec::with_capacity(states.len());
        for (vol, ino, live) in &mut states {
            // Under the state's lock, so that whoever asks meanwhile finds it here or there.
            let Some(time) = self.accesses.take(*vol, *ino).filter(|_| !live.gone) else { continue };
            live.attrs.atime = time;
            edits.push(Edit::PutInode { vol: *vol, ino: *ino, attrs: live.recordable() });
        }
        if !edits.is_empty() {
            self.store.commit(edits, None)?;
        }
        Ok(())
    }
}

impl Volume {
    /// Notes that a file, directory or link was read. Returns whether that moved its access time.
    ///
    /// # Errors
    /// [`FsError::NotFound`], from the store.
    pub fn accessed(&self, ino: Ino, policy: AccessTimes) -> FsResult<bool> {
        if policy == AccessTimes::Never || self.shared.store.read_only().is_some() {
            return Ok(false);
        }
        let now = self.shared.now();
        if !policy.moves(&self.getattr(None, ino)?.attrs, now) {
            return Ok(false);
        }
        if !self.shared.accesses.note(self.vol, ino, now) {
            self.shared.commit_accesses()?;
            self.shared.accesses.note(self.vol, ino, now);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relatime_is_that_of_mount_8() {
        let at = |secs| Timestamp { secs, nanos: 0 };
        let moves = |atime, mtime, ctime, now| {
            let new = super::super::new_attrs(crate::store::model::FileKind::File, 0o644, (0, 0), at(0), 1);
            let attrs = Attrs { atime: at(atime), mtime: at(mtime), ctime: at(ctime), ..new };
            AccessTimes::Relatime.moves(&attrs, at(now))
        };
        assert!(moves(5, 5, 5, 6), "never read since it was made");
        assert!(moves(7, 8, 5, 9) && moves(7, 5, 8, 9), "changed since");
        assert!(!moves(9, 8, 8, 9 + DAY_SECS - 1));
        assert!(moves(9, 8, 8, 9 + DAY_SECS), "a day ago");
        assert!(!moves(9, 8, 8, i64::MIN), "clocks may be anywhere");
    }

    #[test]
    fn what_is_noted_is_bounded() {
        let (accesses, time) = (Accesses::default(), Timestamp { secs: 1, nanos: 0 });
        let noted = (0..).take_while(|i| accesses.note(VolumeId(1), Ino(*i), time)).count();
        assert_eq!(noted, ACCESSES_PENDING_MAX);
        assert!(accesses.note(VolumeId(1), Ino(3), time), "one that is noted already");
        assert!(accesses.are_due());
        assert_eq!(accesses.some(None).len(), ACCESSES_PER_RECORD);
        assert_eq!(accesses.take(VolumeId(1), Ino(3)), Some(time));
        assert_eq!(accesses.take(VolumeId(1), Ino(3)), None);
    }
}
