//! What `diff` and `log` do. Both answer in parts, and neither keeps anything for a client between requests.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use super::control::Caller;
use super::news::Listener;
use super::places;
use super::protocol::{
    Aspect, ChangeInfo, ChangeKind, ControlError, DiffRequest, DiffTotals, LogRequest, NodeKind, Part,
    Response, Target, VersionInfo,
};
use super::rights::{control_error, user_of, volume_for};
use crate::store::model::FileKind;
use crate::types::limits::LOG_VERSIONS_MAX;
use crate::types::point::Point;
use crate::types::{Ino, Lsn};
use crate::volume::{
    Change, FileVersion, FsError, How, NamePath, READ, SEARCH, Scope, User, Volume, Volumes,
};

type Outcome = Result<Response, ControlError>;

/// Items in one part, and bytes of their texts; far under a reply's limit, also in hex.
const PART_ITEMS: usize = 1000;
const PART_BYTES: usize = 1 << 20;
/// How long a comparison waits for another to end.
const TURN_PATIENCE: Duration = Duration::from_secs(60);
/// How often a comparison with the present begins anew because the window moved past it.
const TRIES: u32 = 3;

/// An open store.
#[derive(Clone, Copy)]
pub(super) struct Open<'a> {
    /// Its volumes.
    pub(super) volumes: &'a Volumes,
    /// The user who owns it.
    pub(super) owner: u32,
    /// Whose turn it is to compare.
    pub(super) turns: &'a Turns,
}

/// A comparison may take much memory, so there is one at a time, and one more for those whose right it is to
/// everything: nobody else can keep them waiting.
#[derive(Debug, Default)]
pub(super) struct Turns {
    everyone: Mutex<()>,
    privileged: Mutex<()>,
}

impl Turns {
    fn take(&self, user: Option<&User>) -> Result<MutexGuard<'_, ()>, ControlError> {
        let turns = if user.is_some() { &self.everyone } else { &self.privileged };
        let busy = || ControlError::failed("other comparisons are under way; try again when they are done");
        turns.try_lock_for(TURN_PATIENCE).ok_or_else(busy)
    }
}

/// What a request is about.
struct Subject {
    volume: Arc<Volume>,
    /// A directory of the present, or the root.
    dir: Ino,
    /// The names from there on.
    names: Vec<Vec<u8>>,
    /// None may see everything.
    user: Option<User>,
}

fn subject(
    open: Open<'_>,
    caller: &Caller,
    target: &Target,
    path: Option<&Path>,
) -> Result<Subject, ControlError> {
    let names = path.map_or(Ok(Vec::new()), places::names)?;
    // Who knows a name needs no list of them.
    let wanted = if names.is_empty() { READ | SEARCH } else { SEARCH };
    let volume = volume_for(open.volumes, open.owner, caller, target, wanted)?;
    let dir = if let Target::File { ino, .. } = target { Ino(*ino) } else { Ino::ROOT };
    Ok(Subject { volume, dir, names, user: user_of(caller, open.owner) })
}

impl Subject {
    /// The whole path; None of the root. Of a directory that has no name any more it begins there.
    fn path(&self) -> Result<Option<NamePath>, FsError> {
        let (from, mut names) = match places::names_to(&self.volume, self.dir) {
            Ok(above) => (Ino::ROOT, above),
            Err(_) => (self.dir, Vec::new()),
        };
        names.extend_from_slice(&self.names);
        if names.is_empty() { Ok(None) } else { self.volume.name_path(from, &names).map(Some) }
    }

    /// What is compared of the volume, at each of two points.
    fn scopes(&self, path: Option<&NamePath>, points: [Lsn; 2]) -> Result<[Scope; 2], ControlError> {
        let failed = |e| control_error(&format!("comparing {}", self.shown()), e);
        let Some(path) = path else { return Ok([Scope::Dir(self.dir); 2]) };
        let inside = self.names.is_empty();
        let scopes = self.volume.scopes(path, inside, points, self.user.as_ref()).map_err(failed)?;
        let shown = self.shown();
        scopes.ok_or_else(|| ControlError::failed(format!("{shown}: nothing has that name at either point")))
    }

    /// Whether it is a directory that the caller can see now.
    fn may_know_directory(&self) -> bool {
        let at = self.volume.latest();
        let place = self
            .path()
            .ok()
            .flatten()
            .and_then(|path| self.volume.place_at(&path, at, self.user.as_ref()).ok().flatten());
        self.names.is_empty() || place.is_some_and(|place| self.volume.is_directory(place, at))
    }

    /// The path asked about, for messages.
    fn shown(&self) -> String {
        if self.names.is_empty() {
            return format!("volume {}", self.volume.name());
        }
        self.names.iter().map(|name| String::from_utf8_lossy(name)).collect::<Vec<_>>().join("/")
    }

    fn resolve(&self, text: &str) -> Result<Lsn, ControlError> {
        let point: Point = text.parse().map_err(|e| ControlError::usage(format!("{text} {e}")))?;
        self.volume.resolve(&point).map_err(|e| match (e, point) {
            (FsError::NotFound, Point::Name(name)) => {
                let volume = self.volume.name();
                ControlError::failed(format!(
                    "volume {volume} has no snapshot {name}; see rewindfs snapshot list"
                ))
            }
            (e, _) => control_error(text, e),
        })
    }
}

/// Answers `Diff`.
pub(super) fn diff(
    open: Open<'_>,
    caller: &Caller,
    request: &DiffRequest,
    listener: &mut dyn Listener,
) -> Outcome {
    let subject = subject(open, caller, &request.target, request.path.as_deref())?;
    let failed = |e| control_error(&format!("comparing {}", subject.shown()), e);
    let path = subject.path().map_err(failed)?;
    let _turn = open.turns.take(subject.user.as_ref())?;
    let mut tries = 0;
    let (from, to, changes) = loop {
        if request.to.is_none() {
            subject.volume.commit_all().map_err(failed)?;
        }
        let from = subject.resolve(&request.from)?;
        let to = request.to.as_deref().map_or(Ok(subject.volume.latest()), |to| subject.resolve(to))?;
        if from > to {
            return Err(ControlError::usage(format!(
                "{} is later than {}; name the earlier point first",
                request.from,
                request.to.as_deref().unwrap_or("now")
            )));
        }
        tries += 1;
        let scopes = subject.scopes(path.as_ref(), [from, to])?;
        match subject.volume.diff(from, to, scopes, subject.user.as_ref()) {
            Err(FsError::NoSuchPoint(_)) if request.to.is_none() && tries < TRIES => {}
            result => break (from, to, result.map_err(failed)?),
        }
    };
    let mut totals = DiffTotals { from_lsn: from.0, to_lsn: to.0, ..DiffTotals::default() };
    let mut part = Vec::new();
    let mut bytes = 0;
    for change in changes {
        let count = match change.how {
            How::Added => &mut totals.added,
            How::Removed => &mut totals.removed,
            How::Modified => &mut totals.modified,
            How::Renamed => &mut totals.renamed,
        };
        *count += 1;
        if request.summary {
            continue;
        }
        bytes += change.path.len() + change.from.as_ref().map_or(0, Vec::len);
        part.push(change_info(change));
        if part.len() >= PART_ITEMS || bytes >= PART_BYTES {
            bytes = 0;
            listener.part(Part::Changes(std::mem::take(&mut part)))?;
        }
    }
    if !part.is_empty() {
        listener.part(Part::Changes(part))?;
    }
    Ok(Response::Diff(totals))
}

/// Answers `Log`.
pub(super) fn log(
    open: Open<'_>,
    caller: &Caller,
    request: &LogRequest,
    listener: &mut dyn Listener,
) -> Outcome {
    let subject = subject(open, caller, &request.target, Some(&request.path))?;
    let shown = subject.shown();
    // A user does not learn whether something has a name where he may not look.
    let what = if subject.user.is_some() {
        "nothing of that name that you may read"
    } else {
        "nothing of that name"
    };
    let nothing = || ControlError::failed(format!("{shown}: {what} is known, now or before"));
    let failed = |e| match e {
        FsError::NotFound => nothing(),
        FsError::IsDir if subject.user.is_none() || subject.may_know_directory() => {
            ControlError::usage(format!("{shown} is a directory; log tells the versions of a file"))
        }
        FsError::IsDir => nothing(),
        e => control_error(&shown, e),
    };
    let path = subject.path().and_then(|path| path.ok_or(FsError::IsDir)).map_err(failed)?;
    let limit = request.limit.unwrap_or(u64::MAX).min(LOG_VERSIONS_MAX as u64);
    let (mut told, mut more, mut bytes) = (0, false, 0);
    let mut part = Vec::new();
    let mut left = None;
    let mut visit = |version: FileVersion| {
        if told >= limit {
            more = true;
            return Ok(false);
        }
        told += 1;
        bytes += version.path.len() + version.snapshot_path.as_ref().map_or(0, Vec::len);
        bytes += version.snapshots.iter().map(String::len).sum::<usize>();
        part.push(version_info(version));
        if part.len() >= PART_ITEMS || bytes >= PART_BYTES {
            bytes = 0;
            left = listener.part(Part::Versions(std::mem::take(&mut part))).err();
        }
        Ok(left.is_none())
    };
    subject.volume.versions(&path, subject.user.as_ref(), &mut visit).map_err(failed)?;
    if let Some(left) = left {
        return Err(left);
    }
    if told == 0 && limit > 0 {
        return Err(nothing());
    }
    if !part.is_empty() {
        listener.part(Part::Versions(part))?;
    }
    Ok(Response::Log { versions: told, more })
}

fn path_of(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(if bytes.is_empty() { OsString::from(".") } else { OsString::from_vec(bytes) })
}

fn kind_of(kind: FileKind) -> NodeKind {
    match kind {
        FileKind::File => NodeKind::File,
        FileKind::Dir => NodeKind::Directory,
        FileKind::Symlink => NodeKind::Symlink,
        FileKind::Fifo => NodeKind::Fifo,
        FileKind::Socket => NodeKind::Socket,
        FileKind::Char => NodeKind::CharDevice,
        FileKind::Block => NodeKind::BlockDevice,
    }
}

fn change_info(change: Change) -> ChangeInfo {
    let what = change.what;
    let aspects = [
        (what.content, Aspect::Content),
        (what.mode, Aspect::Mode),
        (what.owner, Aspect::Owner),
        (what.group, Aspect::Group),
        (what.xattrs, Aspect::Xattrs),
    ];
    ChangeInfo {
        change: match change.how {
            How::Added => ChangeKind::Added,
            How::Removed => ChangeKind::Removed,
            How::Modified => ChangeKind::Modified,
            How::Renamed => ChangeKind::Renamed,
        },
        path: path_of(change.path),
        from: change.from.map(path_of),
        kind: kind_of(change.kind),
        size_before: change.size_before,
        size_after: change.size_after,
        what: aspects.into_iter().filter(|(differs, _)| *differs).map(|(_, aspect)| aspect).collect(),
    }
}

fn version_info(version: FileVersion) -> VersionInfo {
    VersionInfo {
        time: version.time,
        size: version.size,
        author: version.author,
        author_name: None,
        lsn: version.lsn.0,
        snapshots: version.snapshots,
        snapshots_total: version.snapshots_total,
        path: path_of(version.path),
        snapshot_path: version.snapshot_path.map(path_of),
        kind: kind_of(version.kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_take_turns_and_keep_nobody_privileged_waiting() {
        let turns = Turns::default();
        let user = User { uid: 1, gid: 1, groups: Vec::new() };
        let first = turns.take(Some(&user)).unwrap();
        assert!(turns.everyone.try_lock().is_none(), "one at a time");
        drop(turns.take(None).unwrap());
        drop(first);
        drop(turns.take(Some(&user)).unwrap());
    }
}
