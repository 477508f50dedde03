//! Snapshots and points. A snapshot is one record behind a barrier: everything that had returned before is
//! in it, and nothing that came later.

use std::collections::BTreeSet;

use super::protect::{check_may_go, immutable_until};
use super::{FsError, FsResult, Shared, Volume, Volumes};
use crate::store::index::OnlyKept;
use crate::store::index::rows::{Snapshot, Volume as VolumeRow};
use crate::store::index::steps::STEP_NANOS_MIN;
use crate::store::model::{Edit, RequestId, SnapshotKind, SnapshotSpec};
use crate::types::limits::{POINTS_MAX, SNAPSHOT_VIEW_MAX, TAG_BYTES_MAX, TAGS_MAX};
use crate::types::point::{Point, check_new_name, default_snapshot_name, rfc3339, scheduled_snapshot_name};
use crate::types::{Ino, Lsn, Timestamp, VolumeId};

/// Dirty bytes that a barrier leaves to be committed while everybody waits.
const BARRIER_BYTES: u64 = 1 << 20;

/// A snapshot to be taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotCreate {
    /// Its name; where there is none, one made of the present time.
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
    /// Until when the policy lets nothing delete it.
    pub immutable_until: Option<Timestamp>,
}

impl SnapshotRow {
    fn of(volume: &VolumeRow, lsn: Lsn, snapshot: &Snapshot, now: Timestamp) -> SnapshotRow {
        let Snapshot { spec, time, .. } = snapshot.clone();
        SnapshotRow { spec, time, lsn, immutable_until: immutable_until(volume, snapshot, now) }
    }
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

    /// Takes a snapshot of all `volumes` at one moment, durable when this returns.
    ///
    /// # Errors
    /// [`FsError::Exists`] when one of them has a snapshot of that name; [`FsError::Invalid`].
    pub(super) fn snapshot(&self, volumes: &[VolumeId], create: &SnapshotCreate) -> FsResult<SnapshotRow> {
        if let Some(reason) = self.store.read_only() {
            return Err(crate::types::Error::ReadOnly(reason).into());
        }
        if create.name.as_deref().is_some_and(|name| check_new_name(name).is_err()) {
            return Err(FsError::Invalid(
                "not a snapshot name: 1-128 bytes that can be seen, no /, not starting with @ or .",
            ));
        }
        if create.tags.len() > TAGS_MAX
            || create.tags.iter().any(|(k, v)| k.is_empty() || k.len() + v.len() > TAG_BYTES_MAX)
        {
            return Err(FsError::Invalid("too many tags, or a tag is too long"));
        }
        let _admin = self.admin.lock();
        let row = self.barrier(|| self.commit_snapshot(volumes, create))?;
        self.store.sync(row.lsn)?;
        Ok(row)
    }

    /// The record of a snapshot, at a barrier. The caller holds the admin lock, too.
    ///
    /// # Errors
    /// As [`Shared::snapshot`].
    pub(super) fn commit_snapshot(
        &self,
        volumes: &[VolumeId],
        create: &SnapshotCreate,
    ) -> FsResult<SnapshotRow> {
        let store = &self.store;
        let moment = || default_snapshot_name(self.now());
        let name = match (&create.name, create.kind) {
            (Some(name), _) if self.free_name(volumes, name) == *name => name.clone(),
            (Some(_), _) => return Err(FsError::Exists),
            (None, SnapshotKind::Scheduled) => self.free_name(volumes, &scheduled_snapshot_name(self.now())),
            (None, SnapshotKind::BeforeRestore) => {
                self.free_name(volumes, &format!("before-restore-{}", moment()))
            }
            (None, _) => self.free_name(volumes, &moment()),
        };
        let mut edits = Vec::with_capacity(volumes.len());
        for vol in volumes {
            let (view, points) = {
                let state = store.index().state();
                let volume = state.volumes.get(vol).ok_or(FsError::NotFound)?;
                (volume.next_view, volume.points.len())
            };
            if points >= POINTS_MAX {
                return Err(FsError::Invalid("the volume has as many snapshots as it may; delete some"));
            }
            if view > SNAPSHOT_VIEW_MAX {
                return Err(FsError::Invalid("the volume has used all its snapshot numbers"));
            }
            let (tags, hold, kind) = (create.tags.clone(), create.hold, create.kind);
            let spec = SnapshotSpec { name: name.clone(), view, tags, hold, kind };
            edits.push(Edit::SnapshotCreate { vol: *vol, spec });
        }
        let lsn = store.commit(edits, create.request)?;
        let vol = volumes.first().ok_or(FsError::Invalid("no volume to take a snapshot of"))?;
        let state = store.index().state();
        let volume = state.volumes.get(vol).ok_or(FsError::NotFound)?;
        let snapshot = volume.points.get(&lsn).ok_or(FsError::NotFound)?;
        Ok(SnapshotRow::of(volume, lsn, snapshot, self.now()))
    }

    /// `base`, or where one of the volumes has a snapshot of that name, the first name like it that none has.
    fn free_name(&self, volumes: &[VolumeId], base: &str) -> String {
        let state = self.store.index().state();
        let taken = |name: &str| {
            volumes.iter().filter_map(|v| state.volumes.get(v)).any(|v| v.snapshot_named(name).is_some())
        };
        let mut name = base.to_owned();
        let mut n = 2;
        while taken(&name) {
            name = format!("{base}-{n}");
            n += 1;
        }
        name
    }
}

impl Volumes {
    /// Takes a snapshot of all `volumes` at one moment, durable when this returns.
    ///
    /// # Errors
    /// [`FsError::Exists`] when one of them has a snapshot of that name; [`FsError::Invalid`].
    pub fn snapshot(&self, volumes: &[VolumeId], create: &SnapshotCreate) -> FsResult<SnapshotRow> {
        self.shared.snapshot(volumes, create)
    }

    /// Numbers of all volumes.
    pub fn ids(&self) -> Vec<VolumeId> {
        let state = self.shared.store.index().state();
        state.volumes.iter().filter(|(_, v)| !v.deleted).map(|(id, _)| *id).collect()
    }
}

impl Volume {
    pub(super) fn with_state<T>(
        &self,
        read: impl FnOnce(&crate::store::index::rows::Volume) -> T,
    ) -> FsResult<T> {
        let state = self.shared.store.index().state();
        state.volumes.get(&self.vol).map(read).ok_or(FsError::NotFound)
    }

    /// The snapshots behind `after`, oldest first, at most `limit`.
    pub fn snapshots(&self, after: Lsn, limit: usize) -> FsResult<Vec<SnapshotRow>> {
        let now = self.shared.now();
        self.with_state(|volume| {
            let snapshots = volume.snapshots_behind(after).take(limit);
            snapshots.map(|(lsn, s)| SnapshotRow::of(volume, lsn, s, now)).collect()
        })
    }

    /// The snapshot of that name.
    ///
    /// # Errors
    /// [`FsError::NotFound`].
    pub fn snapshot_named(&self, name: &str) -> FsResult<SnapshotRow> {
        let now = self.shared.now();
        self.with_state(|volume| {
            let (lsn, s) = volume.snapshot_named(name)?;
            Some(SnapshotRow::of(volume, lsn, s, now))
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

    /// A number below that of every inode made after `at`, as near as the points before it tell.
    pub(super) fn made_after(&self, at: Lsn) -> FsResult<Ino> {
        let next = self.with_state(|v| v.points.range(..=at).next_back().map(|(_, point)| point.next_ino))?;
        Ok(next.map_or(Ino::ROOT, Ino))
    }

    /// Bytes of file data that only the snapshot at `at` keeps, before deduplication and compression.
    pub fn bytes_only(&self, at: Lsn) -> FsResult<u64> {
        Ok(self.shared.store.index().bytes_only(self.vol, at)?)
    }

    /// What deleting these snapshots would free.
    ///
    /// # Errors
    /// From the store.
    pub fn only_kept(&self, points: &BTreeSet<Lsn>) -> FsResult<OnlyKept> {
        Ok(self.shared.store.index().only_kept(self.vol, points)?)
    }

    /// Fails when one of the snapshots may not be deleted now.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::Held`] (also for what is immutable).
    pub fn check_deletable(&self, names: &[&str]) -> FsResult<Vec<SnapshotRow>> {
        let rows = names.iter().map(|n| self.snapshot_named(n)).collect::<FsResult<Vec<_>>>()?;
        let now = self.shared.now();
        self.with_state(|v| check_may_go(v, rows.iter().filter_map(|r| v.points.get(&r.lsn)), now))??;
        Ok(rows)
    }

    /// Begins to forget snapshots; they cannot be seen any more, and their space is freed in the background.
    ///
    /// # Errors
    /// As [`Volume::check_deletable`]; then none was deleted.
    pub fn delete_snapshots(&self, names: &[&str], request: Option<RequestId>) -> FsResult<()> {
        let _admin = self.shared.admin.lock();
        let rows = self.check_deletable(names)?;
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
                "record {lsn} is no longer readable by its number; those from {floor} on are, and so is every \
                 snapshot"
            )));
        }
        Ok(lsn)
    }

    /// The state at a moment. One from before the clock was set back means two, and is refused unless both are the
    /// same: what is restored must never be another state than was meant.
    fn lsn_at(&self, time: Timestamp) -> FsResult<Lsn> {
        let (now, moment) = (self.shared.now(), rfc3339(time));
        if time >= now {
            return Err(FsError::NoSuchPoint(format!("{moment} has not come yet")));
        }
        let (meaning, behind, last) = {
            let state = self.shared.store.index().state();
            (state.meaning(time, now), state.behind(now), (state.applied, state.clock()))
        };
        if behind >= STEP_NANOS_MIN {
            return Err(FsError::NoSuchPoint(format!(
                "the clock stands before the last record ({}, of {}), so times and ages mean nothing now; name a \
                 snapshot or @lsn:N",
                last.0,
                rfc3339(last.1)
            )));
        }
        let told = self.readable_before(meaning.told)?;
        if let Some(step) = meaning.before {
            let passed = self.readable_before(meaning.passed)?;
            if told != passed {
                let named = |at: Option<Lsn>| at.map_or("nothing".to_owned(), |at| format!("@lsn:{at}"));
                return Err(FsError::NoSuchPoint(format!(
                    "since {moment} the clock was set back, to {}: by the clock of then it means {}, by the time that \
                     passed {}; name what you mean, or a snapshot",
                    rfc3339(step.set_to),
                    named(told),
                    named(passed)
                )));
            }
        }
        let Some(at) = told else {
            let oldest = self.kept()?.history_since;
            let since = oldest.map_or(String::new(), |t| format!("; the oldest is {}", rfc3339(t)));
            return Err(FsError::NoSuchPoint(format!(
                "{moment} is before every moment that is readable{since}"
            )));
        };
        Ok(at)
    }

    /// The state at a time that never runs backwards: within the window the last record before it, to a hundredth
    /// of a second; before that the newest snapshot or mark that is not younger.
    fn readable_before(&self, time: Timestamp) -> FsResult<Option<Lsn>> {
        let lsn = self.shared.store.index().lsn_before(time)?;
        let state = self.shared.store.index().state();
        let volume = state.volumes.get(&self.vol).ok_or(FsError::NotFound)?;
        if volume.is_readable(lsn) {
            return Ok(Some(lsn));
        }
        let mut points = volume.points.iter().rev().filter(|(_, p)| !p.deleting);
        Ok(points.find(|(at, p)| state.time_of(**at, p.time) <= time).map(|(at, _)| *at))
    }
}
