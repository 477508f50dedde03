//! Snapshots and points. A snapshot is one record behind a barrier: everything that had returned before is
//! in it, and nothing that came later.

use super::{FsError, FsResult, Shared, Volume, Volumes};
use crate::store::model::{Edit, RequestId, SnapshotKind, SnapshotSpec};
use crate::types::limits::{SNAPSHOT_VIEW_MAX, TAG_BYTES_MAX, TAGS_MAX};
use crate::types::point::{Point, check_name, default_snapshot_name, rfc3339};
use crate::types::{Lsn, Timestamp, VolumeId};

/// Dirty bytes that a barrier leaves to be committed while everybody waits.
const BARRIER_BYTES: u64 = 1 << 20;

/// A snapshot to be taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotCreate {
    /// Its name; the present time where there is none.
    pub name: Option<String>,
    /// Its tags.
    pub tags: Vec<(String, String)>,
    /// Whether only a release lets it be deleted.
    pub hold: bool,
    /// Who takes it; not a mark.
    pub kind: SnapshotKind,
    /// Of which request, if of one of the kernel's.
    pub request: Option<RequestId>,
}

/// A snapshot as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRow {
    /// Its name, tags, hold and view number.
    pub spec: SnapshotSpec,
    /// When it was taken.
    pub time: Timestamp,
    /// Its point.
    pub lsn: Lsn,
}

impl Shared {
    /// Runs `change` at a moment when everything that returned is committed and nothing else can be.
    pub(super) fn barrier<T>(&self, change: impl FnOnce() -> FsResult<T>) -> FsResult<T> {
        // While much is sealed only writers wait; everything else waits for the little that is left.
        let draining = (self.budget.used() > BARRIER_BYTES).then(|| self.budget.drain());
        if draining.is_some() {
            self.flush_all()?;
        }
        let _alone = self.gate.write();
        drop(draining);
        self.flush_all()?;
        change()
    }
}

impl Volumes {
    /// Takes a snapshot of all `volumes` at one moment, durable when this returns.
    ///
    /// # Errors
    /// [`FsError::Exists`] when one of them has a snapshot of that name; [`FsError::Invalid`].
    pub fn snapshot(&self, volumes: &[VolumeId], create: &SnapshotCreate) -> FsResult<SnapshotRow> {
        if let Some(reason) = self.shared.store.read_only() {
            return Err(crate::types::Error::ReadOnly(reason).into());
        }
        if create.name.as_deref().is_some_and(|name| check_name(name).is_err()) {
            return Err(FsError::Invalid("not a snapshot name: 1-128 bytes, no /, not starting with @ or ."));
        }
        if create.tags.len() > TAGS_MAX
            || create.tags.iter().any(|(k, v)| k.is_empty() || k.len() + v.len() > TAG_BYTES_MAX)
        {
            return Err(FsError::Invalid("too many tags, or a tag is too long"));
        }
        let _admin = self.shared.admin.lock();
        let store = &self.shared.store;
        let name = self.free_name(volumes, create.name.as_deref())?;
        let row = self.shared.barrier(|| {
            let mut edits = Vec::with_capacity(volumes.len());
            let mut first = None;
            for vol in volumes {
                let view = store.index().state().volumes.get(vol).ok_or(FsError::NotFound)?.next_view;
                if view > SNAPSHOT_VIEW_MAX {
                    return Err(FsError::Invalid("the volume has used all its snapshot numbers"));
                }
                let (tags, hold, kind) = (create.tags.clone(), create.hold, create.kind);
                let spec = SnapshotSpec { name: name.clone(), view, tags, hold, kind };
                first.get_or_insert_with(|| spec.clone());
                edits.push(Edit::SnapshotCreate { vol: *vol, spec });
            }
            let lsn = store.commit(edits, create.request)?;
            let spec = first.ok_or(FsError::Invalid("no volume to take a snapshot of"))?;
            let time = store.index().state().time;
            Ok(SnapshotRow { spec, time, lsn })
        })?;
        store.sync(row.lsn)?;
        Ok(row)
    }

    /// The name asked for, or one made of the time that no snapshot has.
    fn free_name(&self, volumes: &[VolumeId], wanted: Option<&str>) -> FsResult<String> {
        let state = self.shared.store.index().state();
        let taken = |name: &str| {
            volumes.iter().filter_map(|v| state.volumes.get(v)).any(|v| v.snapshot_named(name).is_some())
        };
        if let Some(name) = wanted {
            return if taken(name) { Err(FsError::Exists) } else { Ok(name.to_owned()) };
        }
        let base = default_snapshot_name(self.shared.now());
        let mut name = base.clone();
        let mut n = 2;
        while taken(&name) {
            name = format!("{base}-{n}");
            n += 1;
        }
        Ok(name)
    }

    /// Numbers of all volumes.
    pub fn ids(&self) -> Vec<VolumeId> {
        let state = self.shared.store.index().state();
        state.volumes.iter().filter(|(_, v)| !v.deleted).map(|(id, _)| *id).collect()
    }
}

impl Volume {
    fn with_state<T>(&self, read: impl FnOnce(&crate::store::index::rows::Volume) -> T) -> FsResult<T> {
        let state = self.shared.store.index().state();
        state.volumes.get(&self.vol).map(read).ok_or(FsError::NotFound)
    }

    /// The snapshots behind `after`, oldest first, at most `limit`.
    pub fn snapshots(&self, after: Lsn, limit: usize) -> FsResult<Vec<SnapshotRow>> {
        self.with_state(|volume| {
            let snapshots = volume.snapshots_behind(after).take(limit);
            snapshots.map(|(lsn, s)| SnapshotRow { spec: s.spec.clone(), time: s.time, lsn }).collect()
        })
    }

    /// The snapshot of that name.
    ///
    /// # Errors
    /// [`FsError::NotFound`].
    pub fn snapshot_named(&self, name: &str) -> FsResult<SnapshotRow> {
        self.with_state(|volume| {
            let (lsn, s) = volume.snapshot_named(name)?;
            Some(SnapshotRow { spec: s.spec.clone(), time: s.time, lsn })
        })?
        .ok_or(FsError::NotFound)
    }

    /// The point of the snapshot with that view number.
    pub fn snapshot_of_view(&self, view: u32) -> FsResult<Option<Lsn>> {
        self.with_state(|v| v.snapshots().find(|(_, s)| s.spec.view == view).map(|(lsn, _)| lsn))
    }

    /// Whether the state at `at` can still be read.
    pub fn is_readable(&self, at: Lsn) -> bool {
        self.with_state(|v| v.is_readable(at)).unwrap_or(false)
    }

    /// Bytes that only the snapshot at `at` keeps.
    pub fn bytes_only(&self, at: Lsn) -> FsResult<u64> {
        Ok(self.shared.store.index().bytes_only(self.vol, at)?)
    }

    /// Begins to forget snapshots; they cannot be seen any more, and their space is freed in the background.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::Held`]; then none was deleted.
    pub fn delete_snapshots(&self, names: &[&str], request: Option<RequestId>) -> FsResult<()> {
        let _admin = self.shared.admin.lock();
        let rows = names.iter().map(|n| self.snapshot_named(n)).collect::<FsResult<Vec<_>>>()?;
        if let Some(held) = rows.iter().find(|r| r.spec.hold) {
            return Err(FsError::Held(format!("snapshot {} is held; release it first", held.spec.name)));
        }
        let edits = rows.iter().map(|r| Edit::SnapshotDelete { vol: self.vol, at: r.lsn }).collect();
        let lsn = self.commit(edits, request)?;
        self.shared.store.sync(lsn)?;
        Ok(())
    }

    /// Sets or lifts a hold.
    ///
    /// # Errors
    /// [`FsError::NotFound`].
    pub fn hold_snapshot(&self, name: &str, hold: bool) -> FsResult<()> {
        let _admin = self.shared.admin.lock();
        let row = self.snapshot_named(name)?;
        let lsn = self.commit(vec![Edit::SnapshotHold { vol: self.vol, at: row.lsn, hold }], None)?;
        self.shared.store.sync(lsn)?;
        Ok(())
    }

    /// The LSN that a point means now.
    ///
    /// # Errors
    /// [`FsError::NotFound`] for an unknown name; [`FsError::NoSuchPoint`] for a moment that is not
    /// readable, saying since when moments are.
    pub fn resolve(&self, point: &Point) -> FsResult<Lsn> {
        let store = &self.shared.store;
        let lsn = match point {
            Point::Name(name) => return Ok(self.snapshot_named(name)?.lsn),
            Point::Lsn(lsn) => *lsn,
            Point::Time(time) => self.lsn_at(*time)?,
            Point::Ago(ago) => {
                let now = store.clock().now();
                let secs = now.secs.saturating_sub_unsigned(ago.as_secs());
                self.lsn_at(Timestamp { secs, nanos: now.nanos })?
            }
        };
        if lsn > store.last() {
            return Err(FsError::NoSuchPoint(format!(
                "record {lsn} does not exist yet; the last is {}",
                store.last()
            )));
        }
        if !self.is_readable(lsn) {
            let floor = self.with_state(|v| v.floor)?;
            return Err(FsError::NoSuchPoint(format!(
                "that moment (record {lsn}) is no longer readable; every moment is from record {floor} on, \
                 and so is every snapshot"
            )));
        }
        Ok(lsn)
    }

    /// The last record before a moment, to a hundredth of a second.
    fn lsn_at(&self, time: Timestamp) -> FsResult<Lsn> {
        let now = self.shared.now();
        if time >= now {
            return Err(FsError::NoSuchPoint(format!("{} has not come yet", rfc3339(time))));
        }
        let created = self.with_state(|v| v.created)?;
        let lsn = self.shared.store.index().lsn_at(time)?;
        if lsn < created {
            let moment = rfc3339(time);
            return Err(FsError::NoSuchPoint(format!("{moment} is before every moment that is readable")));
        }
        Ok(lsn)
    }
}
