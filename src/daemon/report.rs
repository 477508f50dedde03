//! What a server answers. The structs whose fields `--json` prints are a stable format: fields are added,
//! never renamed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::care_report::{FsckReport, RepairReport, ScrubState};
use super::history_report::DiffTotals;
use super::policy_report::{PolicyInfo, WindowReport};
use super::purge_report::PurgeReport;
use super::restore_report::{PastPlace, RestoreReport};
use super::text::{Secret, wire_path};
use super::times::{rfc3339, rfc3339_option};
use crate::types::Timestamp;

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// Done, and there is nothing to say.
    Done {},
    /// To `Ping`.
    Pong {
        /// The program's version.
        version: String,
        /// The server's process.
        pid: u32,
    },
    /// To `Mount`, and the last line of a starting server.
    Mounted {
        /// Where, as the mount table has it.
        #[serde(with = "wire_path")]
        mountpoint: PathBuf,
    },
    /// To `Unmount`: everything is durable.
    Unmounted {
        /// The server ends now, because that was its last mount.
        stopping: bool,
    },
    /// To `VolumeList`.
    Volumes(Vec<VolumeInfo>),
    /// To `VolumeDelete`.
    VolumeDeleted(VolumeInfo),
    /// To `SnapshotCreate`.
    SnapshotCreated(SnapshotCreated),
    /// To `SnapshotList`: at most [`super::protocol::SNAPSHOT_PAGE`].
    Snapshots {
        /// Ascending by LSN.
        snapshots: Vec<SnapshotInfo>,
        /// There are some after the last of these.
        more: bool,
    },
    /// To `SnapshotDelete`.
    SnapshotsDeleted(SnapshotsDeleted),
    /// To `Policy`.
    Policy(PolicyInfo),
    /// To `Diff`, after its parts.
    Diff(DiffTotals),
    /// To `Log`, after its parts.
    Log {
        /// How many versions there were in them.
        versions: u64,
        /// There are older ones.
        more: bool,
    },
    /// To `Restore`.
    Restored(Box<RestoreReport>),
    /// To `Purge`.
    Purged(Box<PurgeReport>),
    /// To `PastPlace`.
    PastPlace(PastPlace),
    /// To `Status`.
    Status(Vec<StatusReport>),
    /// To `Fsck`.
    Fsck(FsckReport),
    /// To `Repair`.
    Repair(Box<RepairReport>),
    /// To `Scrub`.
    Scrub(Box<ScrubState>),
    /// To `Gc`.
    Gc(GcInfo),
    /// To `KeyList`.
    Keys(Vec<KeySlotInfo>),
    /// To `KeyExport`.
    RecoveryKey {
        /// The text of the key.
        key: Secret,
    },
    /// To `KeyAdd`.
    KeyAdded {
        /// The new slot.
        slot: u8,
    },
    /// To `KeyRemove`.
    KeyRemoved(KeySlotInfo),
    /// To `KeyRotate`.
    KeyRotated {
        /// Number of the key that new data is sealed with.
        epoch: u16,
    },
}

/// Who made a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MadeBy {
    /// Somebody who asked for it.
    #[default]
    Request,
    /// The schedule.
    Schedule,
    /// A rule for completed files.
    OnClose,
    /// A restore, of what it replaced.
    Restore,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// When it was made.
    #[serde(with = "rfc3339")]
    pub created: Timestamp,
    /// How many snapshots it has.
    pub snapshots: u64,
    /// Where it is mounted, for display.
    pub mountpoint: Option<String>,
}

/// A snapshot as `snapshot list --json` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Its name.
    pub name: String,
    /// Its moment.
    #[serde(with = "rfc3339")]
    pub time: Timestamp,
    /// Its place in the journal.
    pub lsn: u64,
    /// Labels.
    pub tags: BTreeMap<String, String>,
    /// Held against deletion.
    pub hold: bool,
    /// Until when nothing can delete it, by the policy.
    #[serde(default, with = "rfc3339_option", skip_serializing_if = "Option::is_none")]
    pub immutable_until: Option<Timestamp>,
    /// Who made it.
    #[serde(default)]
    pub made_by: MadeBy,
    /// Bytes of file data that only it shows, before deduplication and compression.
    pub bytes_only: u64,
}

/// A snapshot just taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotCreated {
    /// Its name.
    pub name: String,
    /// Its moment.
    #[serde(with = "rfc3339")]
    pub time: Timestamp,
    /// Its place in the journal.
    pub lsn: u64,
    /// The volumes that have it.
    pub volumes: Vec<String>,
}

/// What `snapshot delete` did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotsDeleted {
    /// Nothing was changed.
    pub dry_run: bool,
    /// Those deleted.
    pub deleted: Vec<String>,
    /// Those not deleted.
    pub failed: Vec<SnapshotFailure>,
    /// Bytes in packs that this gives back: chunks that nothing else names.
    pub bytes_freed: u64,
    /// Bytes of file data that only these showed, before deduplication and compression.
    pub data_bytes: u64,
    /// `bytes_freed` is a bound, since there were too many chunks to count.
    pub at_most: bool,
}

/// A snapshot that could not be deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFailure {
    /// Its name.
    pub name: String,
    /// Why, as a sentence.
    pub reason: String,
}

/// Which part a node plays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Writes, and has a standby.
    Primary,
    /// Follows a primary.
    Standby,
    /// Has no pair.
    #[default]
    Alone,
}

/// How a store fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Nothing to do.
    #[default]
    Ok,
    /// Works; someone should look at the problems.
    Attention,
    /// Does not work.
    Failed,
}

/// Bytes of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BytesReport {
    /// Plain bytes of the live tree.
    pub live: u64,
    /// Plain bytes that only history holds.
    pub history: u64,
    /// Bytes of the pack files.
    pub packs: u64,
    /// Bytes in packs that nothing names any more.
    pub dead: u64,
    /// Bytes free on the filesystem below.
    pub free: u64,
}

/// What rewriting packs came to, or would, as `--json` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcInfo {
    /// The store's directory.
    pub store: String,
    /// Whether nothing was done.
    pub dry_run: bool,
    /// Packs rewritten.
    pub packs: u64,
    /// Bytes copied out of them.
    pub copied_bytes: u64,
    /// Bytes of all packs before.
    pub before_bytes: u64,
    /// And after.
    pub after_bytes: u64,
    /// What the filesystem below has got back. Programs may have written meanwhile.
    pub freed_bytes: u64,
}

/// One peer of a replicated store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicationReport {
    /// Who.
    pub peer: String,
    /// What the connection does.
    pub state: String,
    /// `async` or `sync`.
    pub mode: String,
    /// Records the peer is behind.
    pub lag_records: u64,
    /// Bytes the peer is behind.
    pub lag_bytes: u64,
    /// Seconds the peer is behind, with a fraction.
    pub lag_seconds: f64,
    /// Equal LSN meant equal digest; None while nothing could be compared.
    pub digest_equal: Option<bool>,
}

impl Eq for ReplicationReport {}

/// Where an adopted directory stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptReport {
    /// `importing`, `protecting` or `protected`.
    pub state: String,
    /// Files of the directory.
    pub files_total: u64,
    /// Files whose contents are in the store.
    pub files_protected: u64,
    /// Bytes whose contents are in the store.
    pub bytes_protected: u64,
}

/// The newest snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastSnapshot {
    /// Its name.
    pub name: String,
    /// Its moment.
    #[serde(with = "rfc3339")]
    pub time: Timestamp,
}

/// What the server did so far, so that costs can be compared without a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterReport {
    /// Point look-ups in the index.
    pub index_gets: u64,
    /// Range reads of the index begun.
    pub index_seeks: u64,
    /// Bytes of values that the index returned.
    pub index_bytes: u64,
    /// Chunks read from packs.
    pub chunk_reads: u64,
    /// Chunks served from memory.
    pub chunk_hits: u64,
    /// Plain bytes that were stored as chunks.
    pub stored_bytes: u64,
    /// Of them, bytes that were there already.
    pub duplicate_bytes: u64,
    /// Bytes appended to packs.
    pub packed_bytes: u64,
    /// Bytes written by programs and not yet committed.
    pub dirty_bytes: u64,
}

/// `status` of one volume, as `--json` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The store's directory.
    pub store: String,
    /// The store's id, in hex.
    pub store_id: String,
    /// The node's id, in hex.
    pub node: String,
    /// Where the volume is mounted.
    pub mountpoint: Option<String>,
    /// The volume's name.
    pub volume: String,
    /// Which part this node plays.
    pub role: Role,
    /// The number of the current reign.
    pub term: u64,
    /// The last record.
    pub lsn: u64,
    /// The last record that a crash cannot take.
    pub durable_lsn: u64,
    /// Hash chain at `lsn`, in hex.
    pub chain: String,
    /// Digest of the plain logical state at `lsn`, in hex.
    pub digest: String,
    /// The server, if one runs.
    pub server_pid: Option<u32>,
    /// The holder, if one runs.
    pub holder_pid: Option<u32>,
    /// No writes.
    pub read_only: bool,
    /// How it fares.
    pub health: Health,
    /// Why it is not `ok`, as sentences.
    pub problems: Vec<String>,
    /// How many snapshots the volume has.
    pub snapshots: u64,
    /// Snapshots and marks that are deleted and whose space is not all freed yet.
    #[serde(default)]
    pub forgetting: u64,
    /// The newest of them.
    pub last_snapshot: Option<LastSnapshot>,
    /// What is readable between snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<WindowReport>,
    /// Space.
    pub bytes: BytesReport,
    /// Work done since the store was opened.
    #[serde(default)]
    pub counters: CounterReport,
    /// Peers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replication: Vec<ReplicationReport>,
    /// Where adopting stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopt: Option<AdoptReport>,
}

/// What kind of key opens a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    /// A key file, for daily use.
    KeyFile,
    /// The recovery key.
    Recovery,
}

/// A key slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySlotInfo {
    /// Its number.
    pub slot: u8,
    /// What opens it.
    pub kind: KeyKind,
    /// When it was made.
    #[serde(with = "rfc3339")]
    pub created: Timestamp,
}
