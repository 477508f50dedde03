//! The values of the index: stored versions, chunk entries and the rows of the default column family.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::store::chunks::pack::Location;
use crate::store::model::{Policy, SnapshotKind, SnapshotSpec};
use crate::types::limits::SNAPSHOT_NAME_BYTES_MAX;
use crate::types::wire::{Decoder, Encoder, WireError};
use crate::types::{Lsn, PackId, Term, Timestamp, VolumeId};

/// A version as it lies in the index: `since 8 ‖ check 16 ‖ public length ‖ public ‖ sealed secret`.
///
/// `check` is a keyed hash of the key, `since` and both plain halves: what the digest sums up, and what
/// `fsck` compares. The sealed secret is bound to the head key, so a version moves to the history as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The LSN at which the version began.
    pub since: Lsn,
    /// Keyed hash of the version.
    pub check: u128,
    /// The item's public half.
    pub public: Vec<u8>,
    /// The item's secret half, sealed; empty when there is none.
    pub sealed: Vec<u8>,
}

impl Stored {
    /// The bytes stored.
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::with_capacity(28 + self.public.len() + self.sealed.len());
        e.u64(self.since.0).raw(&self.check.to_le_bytes()).bytes(&self.public).raw(&self.sealed);
        e.finish()
    }

    /// Reads what [`Stored::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Stored, WireError> {
        let mut d = Decoder::new(bytes);
        let (since, check) = (Lsn(d.u64()?), u128::from_le_bytes(d.array()?));
        let public = d.bytes(bytes.len(), "public length")?.to_vec();
        Ok(Stored { since, check, public, sealed: d.rest().to_vec() })
    }

    /// Only the LSN at which a stored version began.
    pub fn since_of(bytes: &[u8]) -> Result<Lsn, WireError> {
        Ok(Lsn(Decoder::new(bytes).u64()?))
    }
}

/// What the index knows of a chunk. Local: locations and counts differ between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkEntry {
    /// Where its bytes lie.
    pub location: Location,
    /// Recipe pieces that name it, in heads and history.
    pub refs: u64,
}

impl ChunkEntry {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::with_capacity(40);
        e.varint(self.refs);
        self.location.encode(&mut e);
        e.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<ChunkEntry, WireError> {
        let mut d = Decoder::new(bytes);
        let refs = d.varint()?;
        let location = Location::decode(&mut d)?;
        d.end()?;
        Ok(ChunkEntry { location, refs })
    }
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Name, view number, tags, hold.
    pub spec: SnapshotSpec,
    /// When it was taken.
    pub time: Timestamp,
    /// Whether it was deleted and what only it needed is being forgotten.
    pub deleting: bool,
    /// Inodes from this number on were made later.
    pub next_ino: u64,
}

impl Snapshot {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new();
        e.i64(self.time.secs).u32(self.time.nanos).u8(u8::from(self.deleting)).u64(self.next_ino);
        self.spec.encode(&mut e);
        e.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Snapshot, WireError> {
        let mut d = Decoder::new(bytes);
        let time = Timestamp { secs: d.i64()?, nanos: d.u32()? };
        let deleting = d.u8()? != 0;
        let next_ino = d.u64()?;
        let spec = SnapshotSpec::decode(&mut d)?;
        d.end()?;
        Ok(Snapshot { spec, time, deleting, next_ino })
    }

    /// Whether it has no name and belongs to the continuous window.
    pub fn is_mark(&self) -> bool {
        self.spec.kind == SnapshotKind::Mark
    }
}

/// A volume and its points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name, unique among the volumes that are not deleted.
    pub name: String,
    /// The record that made it.
    pub created: Lsn,
    /// Whether it was deleted and is being swept.
    pub deleted: bool,
    /// The next inode number.
    pub next_ino: u64,
    /// The next snapshot's view number.
    pub next_view: u32,
    /// Every LSN from here on is readable (the continuous window).
    pub floor: Lsn,
    /// The moment that the floor stands for; `None` while it is where the volume began.
    pub floor_time: Option<Timestamp>,
    /// The last record that changed the tree; after opening the store, the last record. In memory only.
    pub changed: Lsn,
    /// Bytes of file data in heads, before deduplication and compression.
    pub live_bytes: u64,
    /// Likewise in history entries.
    pub history_bytes: u64,
    /// Inodes that are alive.
    pub inodes: u64,
    /// Snapshots and marks by LSN, those being deleted included. In rows of their own.
    pub points: BTreeMap<Lsn, Snapshot>,
    /// What it does by itself. In a row of its own.
    pub policy: Policy,
}

impl Volume {
    /// A new volume, made by the record `created`.
    pub fn new(name: String, created: Lsn) -> Volume {
        Volume {
            name,
            created,
            deleted: false,
            next_ino: 2,
            next_view: 1,
            floor: created,
            floor_time: None,
            changed: created,
            live_bytes: 0,
            history_bytes: 0,
            inodes: 0,
            points: BTreeMap::new(),
            policy: Policy::default(),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new();
        e.bytes(self.name.as_bytes()).u64(self.created.0).u8(u8::from(self.deleted));
        e.u64(self.next_ino).u32(self.next_view).u64(self.floor.0);
        e.u64(self.live_bytes).u64(self.history_bytes).u64(self.inodes);
        let time = self.floor_time.unwrap_or_default();
        e.u8(u8::from(self.floor_time.is_some())).i64(time.secs).u32(time.nanos);
        e.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Volume, WireError> {
        let mut d = Decoder::new(bytes);
        let name = d.bytes(SNAPSHOT_NAME_BYTES_MAX, "volume name")?.to_vec();
        let mut volume =
            Volume::new(String::from_utf8(name).map_err(|_| WireError::Bad("volume name"))?, Lsn(d.u64()?));
        volume.deleted = d.u8()? != 0;
        volume.next_ino = d.u64()?;
        volume.next_view = d.u32()?;
        volume.floor = Lsn(d.u64()?);
        volume.live_bytes = d.u64()?;
        volume.history_bytes = d.u64()?;
        volume.inodes = d.u64()?;
        let moved = d.u8()? != 0;
        let time = Timestamp { secs: d.i64()?, nanos: d.u32()? };
        volume.floor_time = moved.then_some(time);
        d.end()?;
        Ok(volume)
    }

    /// The first point, not being deleted, within `since..end`; 0 when only the window needs the interval; `None`
    /// when nothing does.
    pub fn first_point(&self, since: Lsn, end: Lsn) -> Option<Lsn> {
        let point = self.points.range(since..end).find(|(_, s)| !s.deleting).map(|(at, _)| *at);
        point.or_else(|| (end > self.floor).then_some(Lsn::ZERO))
    }

    /// Whether the state after record `at` can still be read in full.
    pub fn is_readable(&self, at: Lsn) -> bool {
        at >= self.created && (at >= self.floor || self.points.get(&at).is_some_and(|s| !s.deleting))
    }

    /// The snapshots that can be read, oldest first.
    pub fn snapshots(&self) -> impl DoubleEndedIterator<Item = (Lsn, &Snapshot)> {
        self.snapshots_behind(Lsn::ZERO)
    }

    /// Those made after the record `after`.
    pub fn snapshots_behind(&self, after: Lsn) -> impl DoubleEndedIterator<Item = (Lsn, &Snapshot)> {
        let behind = self.points.range(after.next()..);
        behind.filter(|(_, s)| !s.deleting && !s.is_mark()).map(|(at, s)| (*at, s))
    }

    /// The snapshot of that name.
    pub fn snapshot_named(&self, name: &str) -> Option<(Lsn, &Snapshot)> {
        self.snapshots().find(|(_, s)| s.spec.name == name)
    }
}

/// What the index knows of a pack. Local.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackStat {
    /// Bytes of the frames of chunks that some recipe names.
    pub live_bytes: u64,
}

/// A step back of the clock, or the end of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The first record behind it.
    pub lsn: Lsn,
    /// The time of the record before it, which never runs backwards.
    pub last: Timestamp,
    /// Its own.
    pub at: Timestamp,
    /// What the clock said then.
    pub set_to: Timestamp,
}

impl Step {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::with_capacity(36);
        for time in [self.last, self.at, self.set_to] {
            e.i64(time.secs).u32(time.nanos);
        }
        e.finish()
    }

    pub(super) fn decode(lsn: Lsn, row: &[u8]) -> Result<Step, WireError> {
        let mut d = Decoder::new(row);
        let mut time = || Ok(Timestamp { secs: d.i64()?, nanos: d.u32()? });
        let step = Step { lsn, last: time()?, at: time()?, set_to: time()? };
        d.end()?;
        Ok(step)
    }
}

/// The in-memory view of the rows that are not versioned; `apply` keeps both in step.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The last record applied.
    pub applied: Lsn,
    /// The journal's chain hash at it.
    pub chain: [u8; 32],
    /// Its term.
    pub term: Term,
    /// Its time, which never runs backwards: what the clock said, and what it was set back by.
    pub time: Timestamp,
    /// The steps back of the clock, oldest first.
    pub steps: Vec<Step>,
    /// Order-independent digest of all versions.
    pub digest: u128,
    /// The next volume's number.
    pub next_volume: u32,
    /// How far the packs had been written when `applied` was: replay looks for chunks from here on.
    pub packed: (PackId, u64),
    /// The volumes, deleted ones included until they are swept.
    pub volumes: BTreeMap<VolumeId, Volume>,
    /// The packs.
    pub packs: HashMap<PackId, PackStat>,
    /// Packs that nothing lies in any more, with the record as of which that is so.
    pub retired: BTreeMap<PackId, Lsn>,
    /// Volumes whose row must be written with the next batch.
    pub(super) dirty_volumes: BTreeSet<VolumeId>,
    /// Packs likewise.
    pub(super) dirty_packs: BTreeSet<PackId>,
}

impl State {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::with_capacity(120);
        e.u64(self.applied.0).raw(&self.chain).u64(self.term.0);
        e.i64(self.time.secs).u32(self.time.nanos).raw(&self.digest.to_le_bytes());
        e.u32(self.next_volume).u64(self.packed.0.0).u64(self.packed.1);
        e.finish()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<State, WireError> {
        let mut d = Decoder::new(bytes);
        let state = State {
            applied: Lsn(d.u64()?),
            chain: d.array()?,
            term: Term(d.u64()?),
            time: Timestamp { secs: d.i64()?, nanos: d.u32()? },
            digest: u128::from_le_bytes(d.array()?),
            next_volume: d.u32()?,
            packed: (PackId(d.u64()?), d.u64()?),
            ..State::default()
        };
        d.end()?;
        Ok(state)
    }

    /// A volume for writing; its row goes out with the next batch.
    pub(super) fn volume_mut(&mut self, vol: VolumeId) -> Option<&mut Volume> {
        self.dirty_volumes.insert(vol);
        self.volumes.get_mut(&vol)
    }

    /// The volume of that name.
    pub fn volume_named(&self, name: &str) -> Option<(VolumeId, &Volume)> {
        self.volumes.iter().find(|(_, v)| !v.deleted && v.name == name).map(|(id, v)| (*id, v))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn volume_with(points: &[(u64, bool)], floor: u64) -> Volume {
        let mut v = Volume::new("v".into(), Lsn(1));
        v.floor = Lsn(floor);
        for (at, deleting) in points {
            let spec = SnapshotSpec { name: at.to_string(), view: 1, ..SnapshotSpec::default() };
            let point = Snapshot { spec, time: Timestamp::default(), deleting: *deleting, next_ino: 2 };
            v.points.insert(Lsn(*at), point);
        }
        v
    }

    #[test]
    fn an_interval_is_kept_by_its_first_snapshot_or_by_the_window() {
        let v = volume_with(&[(10, false), (20, true), (30, false)], 100);
        assert_eq!(v.first_point(Lsn(5), Lsn(11)), Some(Lsn(10)));
        assert_eq!(v.first_point(Lsn(5), Lsn(10)), None, "the end is not part of the interval");
        assert_eq!(v.first_point(Lsn(11), Lsn(25)), None, "a snapshot being deleted keeps nothing");
        assert_eq!(v.first_point(Lsn(11), Lsn(31)), Some(Lsn(30)));
        assert_eq!(v.first_point(Lsn(40), Lsn(101)), Some(Lsn::ZERO));
        assert_eq!(v.first_point(Lsn(40), Lsn(100)), None);
        assert!(v.is_readable(Lsn(10)) && v.is_readable(Lsn(100)) && !v.is_readable(Lsn(20)));
    }

    proptest! {
        #[test]
        fn hostile_rows_are_refused(bytes: Vec<u8>) {
            let _ = Stored::decode(&bytes);
            let _ = ChunkEntry::decode(&bytes);
            let _ = Snapshot::decode(&bytes);
            let _ = Volume::decode(&bytes);
            let _ = State::decode(&bytes);
        }
    }
}
