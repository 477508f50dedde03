//! What can be asked of a restore, and what is answered.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::text::wire_path;

/// The path of a directory itself.
pub const HERE: &str = ".";

/// A place in a volume: a live directory, as a path of the caller's led to it, and what may or may not exist
/// beneath.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The volume's name.
    pub volume: String,
    /// The directory's inode number.
    pub dir: u64,
    /// Names beneath it, joined by slashes; [`HERE`] for the directory itself.
    #[serde(with = "wire_path")]
    pub below: PathBuf,
}

/// A restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// What is to come back.
    pub place: Place,
    /// From which point, as it was typed.
    pub at: String,
    /// Where a copy is to go instead, in the same volume.
    pub to: Option<Place>,
    /// Only says what would change.
    pub dry_run: bool,
}

/// Where the past of a place can be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastPlace {
    /// The directory or file, in the snapshot directory of the volume's mount.
    #[serde(with = "wire_path")]
    pub source: PathBuf,
    /// Its names from the volume's root.
    #[serde(with = "wire_path")]
    pub path: PathBuf,
    /// The point's record.
    pub lsn: u64,
}

/// What a restore did, or would do, as `--json` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// The volume.
    pub volume: String,
    /// What was brought back, from the volume's root; for display.
    pub path: String,
    /// The point's record.
    pub lsn: u64,
    /// Nothing was changed.
    pub dry_run: bool,
    /// The snapshot of what was replaced; none where nothing was.
    pub snapshot: Option<String>,
    /// Where the copy is, if it was not put in its own place; for display.
    pub to: Option<String>,
    /// Names that did not exist.
    pub brought_back: u64,
    /// Names of files that were others, and directories that had other attributes.
    pub replaced: u64,
    /// Names that were not there at the point, and are gone.
    pub removed: u64,
    /// Names that an earlier try had written out and that are equal.
    pub skipped: u64,
    /// Bytes of data in what came back.
    pub bytes: u64,
    /// What could not be brought back, one sentence each, at most [`FAILURES_MAX`].
    pub failed: Vec<String>,
    /// How many more there are.
    pub more_failed: u64,
}

/// Failures that are listed one by one.
pub const FAILURES_MAX: usize = 100;

impl RestoreReport {
    /// Notes what could not be brought back.
    pub fn fail(&mut self, what: String) {
        if self.failed.len() < FAILURES_MAX {
            self.failed.push(what);
        } else {
            self.more_failed += 1;
        }
    }
}
