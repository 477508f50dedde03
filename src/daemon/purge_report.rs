//! What can be asked of a purge, and what is answered.

use serde::{Deserialize, Serialize};

use std::path::PathBuf;

use super::restore_report::Place;
use super::text::wire_path;

/// A purge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PurgeRequest {
    /// What is to be erased; it may be gone from the present.
    pub place: Place,
    /// Only says what that would be.
    pub dry_run: bool,
}

/// A name under which the file is or was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgedName {
    /// Its path from the volume's root.
    #[serde(with = "wire_path")]
    pub path: PathBuf,
    /// Whether it had it when the purge began.
    pub live: bool,
    /// Versions that the file had under it.
    pub versions: u64,
}

/// A file that has some of the same data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharingFile {
    /// Its volume.
    pub volume: String,
    /// Its path from there.
    #[serde(with = "wire_path")]
    pub path: PathBuf,
}

/// What a purge came to, or would come to, as `--json` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgeReport {
    /// The volume.
    pub volume: String,
    /// What was named, from the volume's root; for display.
    pub path: String,
    /// Nothing was changed.
    pub dry_run: bool,
    /// A purge that had been cut short was carried through; what is told of it is only what is left to be done.
    pub resumed: bool,
    /// Its names, at most 1000.
    pub names: Vec<PurgedName>,
    /// How many there are.
    pub names_total: u64,
    /// Files that had the name, one after the other, and those that they replaced.
    pub files: u64,
    /// Versions of them.
    pub versions: u64,
    /// Snapshots that showed one of these, oldest first, at most 1000.
    pub snapshots: Vec<String>,
    /// How many there are.
    pub snapshots_total: u64,
    /// Bytes of data in all versions, before deduplication and compression.
    pub bytes: u64,
    /// Bytes of it that remain, since other files have them, too.
    pub shared_bytes: u64,
    /// Some of these files, at most 20; none where it would take too long to find them.
    pub shared_with: Option<Vec<SharingFile>>,
    /// Why it would be refused, one sentence each; only of a dry run.
    pub refused: Vec<String>,
    /// What keeps some of its bytes on the disk: they go when this comes true. The server goes on by itself.
    pub bytes_go_when: Vec<String>,
    /// What else may hold some of it, and is left to the caller.
    pub notes: Vec<String>,
}
