//! What `diff` and `log` ask and what a server answers them. The structs that `--json` prints are a stable format:
//! fields are added, never renamed.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::text::{wire_path, wire_path_option};
use super::times::rfc3339;
use crate::types::Timestamp;

/// A part of an answer that takes more than one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// To `Diff`.
    Changes(Vec<ChangeInfo>),
    /// To `Log`.
    Versions(Vec<VersionInfo>),
}

/// How something differs between two points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It is there only after.
    Added,
    /// It was there only before.
    Removed,
    /// It has the same name, and differs otherwise.
    Modified,
    /// It has another path, and may differ otherwise.
    Renamed,
}

/// What something in a tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
}

/// In what something differs that is there before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aspect {
    /// Its bytes, size or modification time; or another file took its name.
    Content,
    /// Permission bits.
    Mode,
    /// Owner.
    Owner,
    /// Group.
    Group,
    /// Extended attributes, ACLs among them.
    Xattrs,
}

/// A difference as `diff --json` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeInfo {
    /// How it differs.
    pub change: ChangeKind,
    /// Its path from what was asked about on: after; of what was removed, before. `.` is what was asked about.
    #[serde(with = "wire_path")]
    pub path: PathBuf,
    /// Of something renamed, its path before.
    #[serde(with = "wire_path_option", default, skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
    /// What it is.
    pub kind: NodeKind,
    /// Size before in bytes, of files and symbolic links.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_before: Option<u64>,
    /// Size after in bytes, of files and symbolic links.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_after: Option<u64>,
    /// In what it differs, if it was modified or renamed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub what: Vec<Aspect>,
}

/// How much differs between two points, as `diff --summary --json` shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffTotals {
    /// The earlier point's LSN.
    pub from_lsn: u64,
    /// The later point's LSN.
    pub to_lsn: u64,
    /// How many were added.
    pub added: u64,
    /// How many were removed.
    pub removed: u64,
    /// How many were modified.
    pub modified: u64,
    /// How many were renamed.
    pub renamed: u64,
}

/// A version of a file as `log --json` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// Its modification time.
    #[serde(with = "rfc3339")]
    pub time: Timestamp,
    /// Its size in bytes.
    pub size: u64,
    /// Who wrote it: a user id.
    pub author: u32,
    /// That user's name, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author_name: Option<String>,
    /// The newest moment at which it can be read, as `@lsn:N`.
    pub lsn: u64,
    /// The snapshots that show it, newest first; the first hundred.
    pub snapshots: Vec<String>,
    /// How many snapshots show it.
    pub snapshots_total: u64,
    /// Its path at that moment, from the volume's root on.
    #[serde(with = "wire_path")]
    pub path: PathBuf,
    /// Its path in the newest of the snapshots, where that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "wire_path_option")]
    pub snapshot_path: Option<PathBuf>,
    /// What it is.
    pub kind: NodeKind,
}
