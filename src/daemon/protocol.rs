//! The control protocol: JSON, one line each way, over the control socket and over the ready pipe of a
//! starting server. A request line is answered by any number of progress and alive lines, then one result.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use super::care_report::*;
pub use super::history_report::*;
use super::mount_options::MountOptions;
pub use super::purge_report::*;
pub use super::report::*;
pub use super::restore_report::*;
pub use super::text::{Secret, one_line, wire_path, wire_path_option};
use crate::types;
use crate::types::limits::{CONTROL_REQUEST_BYTES_MAX, TAG_BYTES_MAX, TAGS_MAX};

/// Version of this protocol; another one is refused with a sentence that says so.
pub const PROTOCOL_VERSION: u32 = 1;
/// Bytes of one reply line. Lists are paged ([`SNAPSHOT_PAGE`]), so nothing honest comes near it.
pub const REPLY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Snapshots in one [`Response::Snapshots`].
pub const SNAPSHOT_PAGE: usize = 1000;
/// Seconds between [`Reply::Alive`] lines while a request is worked on.
pub const ALIVE_SECS: u64 = 5;

/// What a failure means to the caller; each has its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It did not work.
    Failed,
    /// It was asked for wrongly.
    Usage,
    /// Some of it worked, or something needs attention.
    Partial,
    /// There is no store at that path.
    NoStore,
    /// The store or volume is in use.
    InUse,
    /// The key does not open the store.
    WrongKey,
    /// This node is not the primary.
    NotPrimary,
    /// The server ends; the store is free when its process is gone.
    Ending,
}

impl Kind {
    /// The exit code of CLI.md.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::Partial => 3,
            Kind::NoStore => 10,
            Kind::InUse | Kind::Ending => 11,
            Kind::WrongKey => 12,
            Kind::NotPrimary => 13,
        }
    }
}

/// A failure in one line: what failed, on what, what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlError {
    /// What it means to the caller.
    pub kind: Kind,
    /// The line; [`Display`](fmt::Display) replaces control characters, because it may come from a peer.
    pub message: String,
}

impl ControlError {
    /// An error of that kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> ControlError {
        ControlError { kind, message: message.into() }
    }

    /// [`Kind::Failed`].
    pub fn failed(message: impl Into<String>) -> ControlError {
        ControlError::new(Kind::Failed, message)
    }

    /// [`Kind::Usage`].
    pub fn usage(message: impl Into<String>) -> ControlError {
        ControlError::new(Kind::Usage, message)
    }

    /// [`Kind::InUse`].
    pub fn in_use(message: impl Into<String>) -> ControlError {
        ControlError::new(Kind::InUse, message)
    }

    /// [`Kind::NoStore`], in the words of the store layer.
    pub fn no_store(path: impl Into<PathBuf>) -> ControlError {
        types::Error::NoStore(path.into()).into()
    }

    /// The caller lacks the rights for `what`, a verb phrase.
    pub fn denied(what: impl fmt::Display) -> ControlError {
        ControlError::failed(format!("permission denied: {what} is for root and the store's owner"))
    }
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&self.message))
    }
}

impl std::error::Error for ControlError {}

impl From<types::Error> for ControlError {
    fn from(error: types::Error) -> ControlError {
        let kind = match &error {
            types::Error::NoStore(_) => Kind::NoStore,
            types::Error::InUse(_) => Kind::InUse,
            types::Error::WrongKey { .. } => Kind::WrongKey,
            _ => Kind::Failed,
        };
        match &error {
            // Nobody wants a store made of what is no directory.
            types::Error::NoStore(path) if !path.is_dir() => {
                let text = format!("{} is neither in a mount of rewindfs nor a store", path.display());
                ControlError::new(kind, text)
            }
            _ => ControlError::new(kind, error.to_string()),
        }
    }
}

/// What a request is about. The server checks the caller's rights against it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Target {
    /// A file or directory of a mounted volume, as its `user.rewindfs.mount` attribute named it.
    File {
        /// The volume's name.
        volume: String,
        /// Inode number.
        ino: u64,
    },
    /// A volume as a whole: the caller needs the rights on its root.
    Volume {
        /// The volume's name.
        volume: String,
    },
    /// The store.
    Store,
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Answers [`Response::Pong`]; for everyone.
    Ping {},
    /// Unmounts everything and ends the server.
    Stop {},
    /// Replaces the server by that program, without unmounting.
    Upgrade {
        /// Absolute path.
        #[serde(with = "wire_path")]
        program: PathBuf,
    },
    /// Mounts another volume; already mounted is [`Kind::InUse`].
    Mount(MountRequest),
    /// Unmounts; the answer comes when everything is durable. `Kind::InUse` while files are open.
    Unmount {
        /// Absolute path, as the mount table has it.
        #[serde(with = "wire_path")]
        mountpoint: PathBuf,
    },
    /// Makes an empty volume.
    VolumeCreate {
        /// Its name.
        name: String,
    },
    /// Lists volumes, by name.
    VolumeList {},
    /// Deletes a volume with all of its snapshots; a mounted one is [`Kind::InUse`].
    VolumeDelete {
        /// Its name.
        name: String,
        /// Only says what would be deleted.
        dry_run: bool,
    },
    /// Takes a snapshot.
    SnapshotCreate(SnapshotCreate),
    /// One page of snapshots, ascending by LSN.
    SnapshotList {
        /// Of which volume.
        target: Target,
        /// Only those after this LSN.
        after: Option<u64>,
    },
    /// Deletes snapshots; what cannot be deleted is named in the answer and the others are deleted.
    SnapshotDelete {
        /// Of which volume.
        target: Target,
        /// Their names.
        names: Vec<String>,
        /// Only says what would be deleted and freed.
        dry_run: bool,
    },
    /// Holds a snapshot against deletion, or lets it go.
    SnapshotHold {
        /// Of which volume.
        target: Target,
        /// Its name.
        name: String,
        /// Hold or let go.
        hold: bool,
    },
    /// Changes a volume's policy; without settings only shows it.
    Policy {
        /// Of which volume.
        target: Target,
        /// `NAME=VALUE` each.
        settings: Vec<String>,
        /// Only says what it would be.
        dry_run: bool,
    },
    /// What changed between two points: parts, then [`Response::Diff`].
    Diff(DiffRequest),
    /// The versions of a file, newest first: parts, then [`Response::Log`].
    Log(LogRequest),
    /// Brings back what was, in its place or as a copy within the volume.
    Restore(RestoreRequest),
    /// Erases a file from every point.
    Purge(PurgeRequest),
    /// Asks where the past of a place can be read.
    PastPlace {
        /// Of what.
        place: Place,
        /// At which point, as it was typed.
        at: String,
    },
    /// One report per volume that the target means; [`Target::Store`] means all that are mounted, or `main`.
    Status {
        /// About what.
        target: Target,
    },
    /// Checks the store's structure; streams progress.
    Fsck {},
    /// Plans a repair, or carries out the plan that was agreed to. A store with a server is [`Kind::InUse`].
    Repair {
        /// The plan's id; None only plans.
        agreed: Option<String>,
    },
    /// Reads and verifies everything, in the background where there is a server.
    Scrub {
        /// What is wanted.
        action: ScrubAction,
    },
    /// Rewrites packs that hold dead chunks; streams progress.
    Gc {
        /// Only says what that would come to.
        dry_run: bool,
    },
    /// Lists key slots.
    KeyList {},
    /// Answers the recovery key, and notes that it was given out.
    KeyExport {},
    /// Adds a slot for a key, which the caller has stored already.
    KeyAdd {
        /// The text of a key file.
        key: Secret,
    },
    /// Removes a slot; the last one is refused.
    KeyRemove {
        /// Its number.
        slot: u8,
        /// Only says which slot would go.
        dry_run: bool,
    },
    /// Wraps the master key anew and gives new data a new key.
    KeyRotate {},
}

/// See [`Request::Mount`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountRequest {
    /// The volume's name.
    pub volume: String,
    /// Absolute path of an existing directory.
    #[serde(with = "wire_path")]
    pub mountpoint: PathBuf,
    /// How; read-only is [`MountOptions::ro`].
    pub options: MountOptions,
}

/// See [`Request::SnapshotCreate`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// Of which volume.
    pub target: Target,
    /// Its name; None lets the server choose one after the time.
    pub name: Option<String>,
    /// Free-form labels.
    pub tags: BTreeMap<String, String>,
    /// Holds it from the start.
    pub hold: bool,
    /// Takes one of every volume, at the same moment, under the same name.
    pub all_volumes: bool,
}

/// See [`Request::Diff`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffRequest {
    /// A directory, or a volume.
    pub target: Target,
    /// What is meant below that directory, which may be gone; None means the directory.
    #[serde(with = "wire_path_option")]
    pub path: Option<PathBuf>,
    /// The earlier point.
    pub from: String,
    /// The later point; None means now.
    pub to: Option<String>,
    /// Only the totals are wanted.
    pub summary: bool,
}

/// See [`Request::Log`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogRequest {
    /// A directory.
    pub target: Target,
    /// The file's path below it; the file may be gone.
    #[serde(with = "wire_path")]
    pub path: PathBuf,
    /// No more versions than that.
    pub limit: Option<u64>,
}

impl Request {
    /// The cheap bounds that every implementation relies on: names and tags in form and size. Called by
    /// the control server before the handler sees a request.
    pub fn check(&self) -> Result<(), ControlError> {
        let name_ok = |name: &str| {
            types::point::check_new_name(name).map_err(|e| ControlError::usage(format!("name {name:?} {e}")))
        };
        match self {
            Request::VolumeCreate { name } => name_ok(name),
            Request::Mount(mount) => mount.options.check().map_err(ControlError::usage),
            Request::Diff(diff) => {
                let points = std::iter::once(&diff.from).chain(&diff.to);
                let bad =
                    |text: &String| text.parse::<types::point::Point>().err().map(|e| (text.clone(), e));
                let bad = points.into_iter().find_map(bad);
                bad.map_or(Ok(()), |(text, e)| Err(ControlError::usage(format!("point {text:?} {e}"))))
            }
            Request::SnapshotCreate(create) => {
                create.name.as_deref().map_or(Ok(()), name_ok)?;
                let long = create.tags.iter().any(|(k, v)| k.is_empty() || k.len() + v.len() > TAG_BYTES_MAX);
                if long || create.tags.len() > TAGS_MAX {
                    let limits = format!("at most {TAGS_MAX} tags of 1 to {TAG_BYTES_MAX} bytes");
                    return Err(ControlError::usage(limits));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// How far a long request has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done ("rebuilding the index").
    pub what: String,
    /// Units done.
    pub done: u64,
    /// Units in all; 0 when not known.
    pub total: u64,
    /// The unit ("records", "bytes"); empty for a plain remark.
    pub unit: String,
}

/// One line of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Still working, nothing new: keeps the client's deadline from running out.
    Alive {},
    /// Still working. Lines may be left out when the peer reads slowly.
    Progress(Progress),
    /// The next part of the answer. None is left out.
    Part(Part),
    /// The last line: done.
    Ok(Response),
    /// The last line: failed.
    Error(ControlError),
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    v: u32,
    m: T,
}

/// Reads the version alone, so that a message of another version is refused as such and not as garbage.
#[derive(Deserialize)]
struct VersionOnly {
    v: u32,
}

/// One line with its line end.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ControlError> {
    let envelope = Envelope { v: PROTOCOL_VERSION, m: message };
    let mut line =
        serde_json::to_vec(&envelope).map_err(|e| ControlError::failed(format!("encoding: {e}")))?;
    line.push(b'\n');
    Ok(line)
}

/// The message of one line, without its line end. Garbage is [`Kind::Failed`] with a sentence, never a panic.
pub fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<T, ControlError> {
    let version: VersionOnly =
        serde_json::from_slice(line).map_err(|_| ControlError::failed("not a rewindfs control message"))?;
    if version.v != PROTOCOL_VERSION {
        return Err(ControlError::failed(format!(
            "control protocol {}, not {PROTOCOL_VERSION}; use the rewindfs version of the server",
            version.v
        )));
    }
    let envelope: Envelope<T> = serde_json::from_slice(line)
        .map_err(|e| ControlError::failed(format!("bad control message: {}", one_line(&e.to_string()))))?;
    Ok(envelope.m)
}

/// [`encode`] for a request; one that is too large for the server is refused here.
pub fn encode_request(request: &Request) -> Result<Vec<u8>, ControlError> {
    let line = encode(request)?;
    if line.len() > CONTROL_REQUEST_BYTES_MAX {
        return Err(ControlError::usage(format!("the request is over {CONTROL_REQUEST_BYTES_MAX} bytes")));
    }
    Ok(line)
}
