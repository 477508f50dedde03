//! What the handlers of a mount share, and the steps that many of them take.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fuser::{INodeNo, OpenAccMode, OpenFlags, Request};

use super::nodeid::Node;
use super::notify::forget_attributes;
use super::orphans::Orphans;
use super::outcomes::{Outcome, Outcomes};
use super::settings::Settings;
use super::snapdir;
use super::views::Views;
use crate::arena::Ticket;
use crate::store::model::{FileKind, RequestId};
use crate::types::{Ino, Lsn};
use crate::volume::acl::{Acl, AclKind};
use crate::volume::{AccessTimes, Attr, FsError, FsResult, NewNode, Volume, Volumes};

/// All change passes through us, so the kernel may keep what it knows.
pub(super) const FOREVER: Duration = Duration::from_secs(24 * 3600);
/// Names of snapshots come and go by the command line as well, and a deleted one must be gone at once.
pub(super) const NEVER: Duration = Duration::ZERO;
/// The bit of a request's number that says that the kernel sends it again.
const RESENT: u64 = 1 << 63;

/// What every handler needs; shared with threads that answer later.
pub(super) struct Inner {
    pub(super) volumes: Arc<Volumes>,
    pub(super) volume: Arc<Volume>,
    pub(super) views: Views,
    pub(super) orphans: Arc<Orphans>,
    pub(super) settings: Settings,
    pub(super) connection: u64,
    pub(super) outcomes: Outcomes,
    /// Whether the kernel checks POSIX ACLs on this connection.
    pub(super) acls: AtomicBool,
    /// Whether requests that change nothing are noted too: where the kernel does not send them again.
    pub(super) notes_all: AtomicBool,
    /// For messages to the kernel.
    pub(super) device: File,
    /// The directory below, for `statfs`.
    pub(super) below: File,
}

/// Where an operation happens: the live tree, or a point.
pub(super) type At = Option<Lsn>;

impl Inner {
    /// Runs a reading operation on a node, and makes sure afterwards that its view was whole all the time.
    pub(super) fn read<T>(&self, node: INodeNo, run: impl FnOnce(At, Ino) -> FsResult<T>) -> FsResult<T> {
        match Node::from_id(node.0) {
            Node::Live(ino) | Node::Second(ino) => run(None, ino),
            Node::Past { view, ino } => {
                let at = self.views.point(view)?;
                let result = run(Some(at), ino)?;
                self.views.check(at)?;
                Ok(result)
            }
            Node::Snapshots(_) => Err(FsError::IsDir),
        }
    }

    /// The live inode of a node that is to be changed.
    pub(super) fn live(node: INodeNo) -> FsResult<Ino> {
        match Node::from_id(node.0) {
            Node::Live(ino) | Node::Second(ino) => Ok(ino),
            _ => Err(FsError::ReadOnly),
        }
    }

    /// A live directory and a name in it that is to be changed; the snapshot directory's cannot be.
    pub(super) fn place<'a>(&self, parent: INodeNo, name: &'a OsStr) -> FsResult<(Ino, &'a [u8])> {
        let ino = Self::live(parent)?;
        if self.is_snapdir(name) { Err(FsError::ReadOnly) } else { Ok((ino, name.as_bytes())) }
    }

    pub(super) fn is_snapdir(&self, name: &OsStr) -> bool {
        name.as_bytes() == self.settings.snapdir_name.as_bytes()
    }

    pub(super) fn request(&self, req: &Request) -> Option<RequestId> {
        Some(RequestId { connection: self.connection, unique: req.unique().0 & !RESENT })
    }

    /// Notes in the arena that a request which changes something is being carried out. To be dropped after
    /// the answer.
    pub(super) fn note(&self, req: &Request) -> Ticket {
        let unique = req.unique().0 & !RESENT;
        let repeated = req.unique().0 & RESENT != 0;
        self.volume.arena().begin((self.connection, unique), repeated, self.volume.store().last())
    }

    /// As [`Inner::note`], for a request that only reads.
    pub(super) fn note_read(&self, req: &Request) -> Option<Ticket> {
        self.notes_all.load(Ordering::Relaxed).then(|| self.note(req))
    }

    /// What a request did that an earlier server carried out and did not answer.
    pub(super) fn outcome(&self, req: &Request) -> Option<&Outcome> {
        if req.unique().0 & RESENT == 0 { None } else { self.outcomes.of_request(req.unique().0 & !RESENT) }
    }

    /// Carries a request out, unless that has been done: then `again` says what it came to.
    pub(super) fn once<T>(
        &self,
        req: &Request,
        again: impl FnOnce(&Outcome) -> FsResult<T>,
        run: impl FnOnce(Option<RequestId>) -> FsResult<T>,
    ) -> FsResult<T> {
        match self.outcome(req) {
            Some(outcome) => again(outcome),
            None => run(self.request(req)),
        }
    }

    /// The attributes of what a repeated request made. It may have been removed again meanwhile; then the
    /// kernel is to look anew.
    pub(super) fn made(&self, outcome: &Outcome) -> FsResult<Attr> {
        let ino = outcome.named.ok_or(FsError::Stale)?;
        self.volume.getattr(None, ino).map_err(|_| FsError::Stale)
    }

    pub(super) fn attr(&self, node: INodeNo) -> FsResult<(Node, Attr)> {
        let node = Node::from_id(node.0);
        if let Node::Snapshots(dir) = node {
            return Ok((node, snapdir::attr(&self.volume, dir)?));
        }
        Ok((node, self.read(INodeNo(node.id()), |at, ino| self.volume.getattr(at, ino))?))
    }

    pub(super) fn lookup(&self, parent: INodeNo, name: &OsStr) -> FsResult<(Node, Attr, Duration)> {
        match Node::from_id(parent.0) {
            Node::Snapshots(dir) => {
                let (node, attr) = snapdir::lookup(&self.volume, &self.views, dir, name.as_bytes())?;
                Ok((node, attr, NEVER))
            }
            Node::Live(dir) if self.is_snapdir(name) => {
                Ok((Node::Snapshots(dir), snapdir::attr(&self.volume, dir)?, NEVER))
            }
            parent_node => {
                let attr = self.read(parent, |at, dir| self.volume.lookup(at, dir, name.as_bytes()))?;
                Ok((beside(parent_node, attr.ino), attr, FOREVER))
            }
        }
    }

    pub(super) fn make(&self, req: &Request, parent: INodeNo, name: &OsStr, node: NewNode) -> FsResult<Attr> {
        let (dir, name) = self.place(parent, name)?;
        self.once(req, |o| self.made(o), |request| self.volume.make(dir, name, node, request))
    }

    /// Notes that a live node was read, and has the kernel ask for its access time if that moved.
    pub(super) fn accessed(&self, node: INodeNo, policy: AccessTimes) {
        let Ok(ino) = Self::live(node) else { return };
        // Whoever reads is told what goes wrong by the reading.
        if let Ok(true) = self.volume.accessed(ino, policy) {
            let _ = forget_attributes(&self.device, node.0);
        }
    }

    /// Sets or removes an ACL. Who is not in the file's group does not make a setgid file of it; the kernel
    /// leaves that to us, since it cannot say so in this request's form.
    pub(super) fn set_acl(
        &self,
        req: &Request,
        ino: Ino,
        kind: AclKind,
        acl: Option<Acl>,
        request: Option<RequestId>,
    ) -> FsResult<()> {
        let attrs = self.volume.getattr(None, ino)?.attrs;
        let clear = attrs.mode & 0o2000 != 0 && !is_in_group(req, attrs.gid);
        self.volume.set_acl(ino, kind, acl, clear, request)
    }

    /// Whether a node may be opened for writing.
    pub(super) fn check_open(node: INodeNo, flags: OpenFlags) -> FsResult<()> {
        let writes = flags.acc_mode() != OpenAccMode::O_RDONLY || flags.0 & libc::O_TRUNC != 0;
        if writes { Self::live(node).map(drop) } else { Ok(()) }
    }
}

/// Whether a request comes from someone of that group, or from root. What cannot be found out is no.
fn is_in_group(req: &Request, gid: u32) -> bool {
    let supplementary = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", req.pid())).ok()?;
        let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"))?;
        Some(groups.split_whitespace().any(|group| group.parse() == Ok(gid)))
    };
    req.uid() == 0 || req.gid() == gid || supplementary().unwrap_or(false)
}

/// The node of `ino` in the same tree as `node`.
pub(super) fn beside(node: Node, ino: Ino) -> Node {
    match node {
        Node::Past { view, .. } => Node::Past { view, ino },
        _ => Node::Live(ino),
    }
}

/// Something new that belongs to whoever asks; `mode` holds permission bits and perhaps a format.
pub(super) fn new_node(kind: FileKind, mode: u32, umask: u32, req: &Request) -> NewNode {
    let (mode, umask, owner) = (mode as u16, umask as u16, (req.uid(), req.gid()));
    NewNode { kind, mode, umask, owner, rdev: 0, target: Vec::new() }
}
