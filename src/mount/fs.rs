//! The handlers: decode, call, encode. Nothing is decided here.
//!
//! Long because the FUSE protocol has that many operations; each handler is a few lines.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::convert::{file_attr, file_type, from_request, kind_of_mode, time_or_now};
use super::errno::errno;
use super::nodeid::Node;
use super::orphans::Orphans;
use super::outcomes::Outcome;
pub(super) use super::outcomes::Outcomes;
use super::settings::Settings;
use super::snapdir;
use super::views::Views;
use crate::arena::Ticket;
use crate::store::chunks::pool::Pool;
use crate::store::model::{FileKind, RequestId};
use crate::types::{Ino, Lsn};
use crate::volume::{
    Allocate, Attr, CopySource, FsError, FsResult, NewNode, RenameMode, Seek, SetAttr, Volume, Volumes,
    XattrMode,
};

/// All change passes through us, so the kernel may keep what it knows.
const FOREVER: Duration = Duration::from_secs(24 * 3600);
/// Names of snapshots come and go by the command line as well, and a deleted one must be gone at once.
const NEVER: Duration = Duration::ZERO;
/// Largest request.
const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Requests that the kernel has in flight in the background (read-ahead, mostly).
const BACKGROUND_MAX: u16 = 64;
/// Threads for requests that wait for a disk: fsync, snapshots, copies, writes over the budget.
const WAITERS: usize = 16;
/// The bit of a request's number that says that the kernel sends it again.
const RESENT: u64 = 1 << 63;
/// The flag of `fallocate` that keeps the size.
const KEEP_SIZE: i32 = libc::FALLOC_FL_KEEP_SIZE;

/// What every handler needs; shared with threads that answer later.
pub(super) struct Inner {
    pub(super) volumes: Arc<Volumes>,
    pub(super) volume: Arc<Volume>,
    pub(super) views: Views,
    pub(super) orphans: Arc<Orphans>,
    pub(super) settings: Settings,
    pub(super) connection: u64,
    pub(super) outcomes: Outcomes,
    /// Whether requests that change nothing are noted too: where the kernel does not send them again.
    pub(super) notes_all: AtomicBool,
    /// The directory below, for `statfs`.
    pub(super) below: File,
}

/// The filesystem that fuser calls.
pub(super) struct Adapter {
    inner: Arc<Inner>,
    waiters: Pool,
}

impl Adapter {
    pub(super) fn new(inner: Arc<Inner>) -> std::io::Result<Adapter> {
        Ok(Adapter { inner, waiters: Pool::new("rewindfs-wait", WAITERS)? })
    }
}

/// Where an operation happens: the live tree, or a point.
type At = Option<Lsn>;

impl Inner {
    /// Runs a reading operation on a node, and makes sure afterwards that its view was whole all the time.
    fn read<T>(&self, node: INodeNo, run: impl FnOnce(At, Ino) -> FsResult<T>) -> FsResult<T> {
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
    fn live(node: INodeNo) -> FsResult<Ino> {
        match Node::from_id(node.0) {
            Node::Live(ino) | Node::Second(ino) => Ok(ino),
            _ => Err(FsError::ReadOnly),
        }
    }

    /// A live directory and a name in it that is to be changed; the snapshot directory's cannot be.
    fn place<'a>(&self, parent: INodeNo, name: &'a OsStr) -> FsResult<(Ino, &'a [u8])> {
        let ino = Self::live(parent)?;
        if self.is_snapdir(name) { Err(FsError::ReadOnly) } else { Ok((ino, name.as_bytes())) }
    }

    fn is_snapdir(&self, name: &OsStr) -> bool {
        name.as_bytes() == self.settings.snapdir_name.as_bytes()
    }

    fn request(&self, req: &Request) -> Option<RequestId> {
        Some(RequestId { connection: self.connection, unique: req.unique().0 & !RESENT })
    }

    /// Notes in the arena that a request which changes something is being carried out. To be dropped after
    /// the answer.
    fn note(&self, req: &Request) -> Ticket {
        let unique = req.unique().0 & !RESENT;
        let repeated = req.unique().0 & RESENT != 0;
        self.volume.arena().begin((self.connection, unique), repeated, self.volume.store().last())
    }

    /// As [`Inner::note`], for a request that only reads.
    fn note_read(&self, req: &Request) -> Option<Ticket> {
        self.notes_all.load(Ordering::Relaxed).then(|| self.note(req))
    }

    /// What a request did that an earlier server carried out and did not answer.
    fn outcome(&self, req: &Request) -> Option<&Outcome> {
        if req.unique().0 & RESENT == 0 { None } else { self.outcomes.of_request(req.unique().0 & !RESENT) }
    }

    /// Carries a request out, unless that has been done: then `again` says what it came to.
    fn once<T>(
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
    fn made(&self, outcome: &Outcome) -> FsResult<Attr> {
        let ino = outcome.named.ok_or(FsError::Stale)?;
        self.volume.getattr(None, ino).map_err(|_| FsError::Stale)
    }

    fn attr(&self, node: INodeNo) -> FsResult<(Node, Attr)> {
        let node = Node::from_id(node.0);
        if let Node::Snapshots(dir) = node {
            return Ok((node, snapdir::attr(&self.volume, dir)?));
        }
        Ok((node, self.read(INodeNo(node.id()), |at, ino| self.volume.getattr(at, ino))?))
    }

    fn lookup(&self, parent: INodeNo, name: &OsStr) -> FsResult<(Node, Attr, Duration)> {
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

    fn make(&self, req: &Request, parent: INodeNo, name: &OsStr, node: NewNode) -> FsResult<Attr> {
        let (dir, name) = self.place(parent, name)?;
        self.once(req, |o| self.made(o), |request| self.volume.make(dir, name, node, request))
    }

    /// Whether a node may be opened for writing.
    fn check_open(node: INodeNo, flags: OpenFlags) -> FsResult<()> {
        let writes = flags.acc_mode() != OpenAccMode::O_RDONLY || flags.0 & libc::O_TRUNC != 0;
        if writes { Self::live(node).map(drop) } else { Ok(()) }
    }
}

/// The node of `ino` in the same tree as `node`.
fn beside(node: Node, ino: Ino) -> Node {
    match node {
        Node::Past { view, .. } => Node::Past { view, ino },
        _ => Node::Live(ino),
    }
}

/// Something new that belongs to whoever asks; `mode` holds permission bits and perhaps a format.
fn new_node(kind: FileKind, mode: u32, req: &Request) -> NewNode {
    NewNode { kind, mode: mode as u16, owner: (req.uid(), req.gid()), rdev: 0, target: Vec::new() }
}

fn answer_entry(reply: ReplyEntry, result: FsResult<(Node, Attr, Duration)>) {
    match result {
        Ok((node, attr, keep)) => {
            let generation = Generation(attr.attrs.generation);
            reply.entry_with_ttls(&keep, &keep, &file_attr(node, &attr), generation);
        }
        Err(e) => reply.error(errno(&e)),
    }
}

fn answer_attr(reply: ReplyAttr, result: FsResult<(Node, Attr)>) {
    match result {
        Ok((node, attr)) => {
            let keep = if matches!(node, Node::Snapshots(_)) { NEVER } else { FOREVER };
            let mut file = file_attr(node, &attr);
            file.ino = INodeNo(node.st_ino());
            reply.attr(&keep, &file);
        }
        Err(e) => reply.error(errno(&e)),
    }
}

fn answer_data(reply: ReplyData, result: FsResult<Vec<u8>>) {
    match result {
        Ok(bytes) => reply.data(&bytes),
        Err(e) => reply.error(errno(&e)),
    }
}

fn answer_empty<T>(reply: ReplyEmpty, result: FsResult<T>) {
    match result {
        Ok(_) => reply.ok(),
        Err(e) => reply.error(errno(&e)),
    }
}

fn answer_xattr(reply: ReplyXattr, size: u32, result: FsResult<Vec<u8>>) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(e) => reply.error(errno(&e)),
    }
}

/// The namespaces that are kept. POSIX ACLs (`system.`) need more than storing; until they are kept in full
/// they are refused.
fn check_xattr_name(name: &OsStr) -> FsResult<()> {
    let kept = [b"user.".as_slice(), b"trusted.", b"security."];
    match kept.iter().find_map(|space| name.as_bytes().strip_prefix(*space)) {
        None => Err(FsError::NotSupported),
        Some(b"") => Err(FsError::Invalid("a name without its namespace is empty")),
        Some(_) => Ok(()),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP
            | InitFlags::FUSE_NO_EXPORT_SUPPORT
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA;
        // An older kernel does without what it does not know.
        let _ = config.add_capabilities(wanted & config.capabilities());
        let _ = config.set_max_write(REQUEST_BYTES_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _ticket = self.inner.note_read(req);
        answer_entry(reply, self.inner.lookup(parent, name));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, _nlookup: u64) {
        if let Node::Live(ino) = Node::from_id(ino.0) {
            self.inner.orphans.hint(ino);
        }
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let _ticket = self.inner.note_read(req);
        answer_attr(reply, self.inner.attr(ino));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let ticket = self.inner.note(req);
        let now = self.inner.volume.store().clock().now();
        let set = SetAttr {
            mode: mode.map(|m| (m & 0o7777) as u16),
            uid,
            gid,
            size,
            atime: atime.map(|t| time_or_now(t, now)),
            mtime: mtime.map(|t| time_or_now(t, now)),
            ctime: ctime.map(from_request),
            kill_privileges: uid.is_some() || gid.is_some() || (size.is_some() && req.uid() != 0),
        };
        let (inner, request) = (self.inner.clone(), self.inner.request(req));
        if self.inner.outcome(req).is_some() {
            return answer_attr(reply, self.inner.attr(ino));
        }
        let run = move || {
            let result = Inner::live(ino).and_then(|live| inner.volume.setattr(live, &set, request));
            answer_attr(reply, result.map(|attr| (Node::from_id(ino.0), attr)));
            drop(ticket);
        };
        // A cut waits for data of the file that is being sealed.
        if size.is_some() { self.waiters.run(run) } else { run() }
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let _ticket = self.inner.note_read(req);
        answer_data(reply, self.inner.read(ino, |at, ino| self.inner.volume.readlink(at, ino)));
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let _ticket = self.inner.note(req);
        let made = kind_of_mode(mode).ok_or(FsError::Invalid("no such kind of file")).and_then(|kind| {
            let node = NewNode { rdev, ..new_node(kind, mode, req) };
            self.inner.make(req, parent, name, node)
        });
        answer_entry(reply, made.map(|attr| (Node::Live(attr.ino), attr, FOREVER)));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        if let Node::Snapshots(dir) = Node::from_id(parent.0) {
            let (inner, name) = (self.inner.clone(), name.to_owned());
            let (done, request) = (self.inner.outcome(req).is_some(), self.inner.request(req));
            let ticket = self.inner.note(req);
            self.waiters.run(move || {
                let (volume, views) = (&inner.volume, &inner.views);
                let made =
                    if done { Ok(()) } else { snapdir::create(&inner.volumes, volume, dir, &name, request) };
                let made = made.and_then(|()| snapdir::lookup(volume, views, dir, name.as_bytes()));
                answer_entry(reply, made.map(|(node, attr)| (node, attr, NEVER)));
                drop(ticket);
            });
            return;
        }
        let _ticket = self.inner.note(req);
        let node = new_node(FileKind::Dir, mode, req);
        let made = self.inner.make(req, parent, name, node);
        answer_entry(reply, made.map(|attr| (Node::Live(attr.ino), attr, FOREVER)));
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (_ticket, inner) = (self.inner.note(req), &self.inner);
        let result = inner.place(parent, name).and_then(|(dir, name)| {
            inner.once(req, |o| Ok(o.orphan), |request| inner.volume.unlink(dir, name, request))
        });
        self.answer_removed(reply, result);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if let Node::Snapshots(dir) = Node::from_id(parent.0) {
            let (inner, name, uid) = (self.inner.clone(), name.to_owned(), req.uid());
            if self.inner.outcome(req).is_some() {
                return reply.ok();
            }
            let (ticket, request) = (self.inner.note(req), self.inner.request(req));
            self.waiters.run(move || {
                let owner = inner.settings.owner_uid;
                answer_empty(reply, snapdir::delete(&inner.volume, dir, &name, (uid, owner), request));
                drop(ticket);
            });
            return;
        }
        let (_ticket, inner) = (self.inner.note(req), &self.inner);
        let result = inner.place(parent, name).and_then(|(dir, name)| {
            inner.once(req, |o| Ok(o.orphan), |request| inner.volume.rmdir(dir, name, request))
        });
        self.answer_removed(reply, result);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let _ticket = self.inner.note(req);
        let target = target.as_os_str().as_bytes().to_vec();
        let node = NewNode { target, ..new_node(FileKind::Symlink, 0o777, req) };
        let made = self.inner.make(req, parent, name, node);
        answer_entry(reply, made.map(|attr| (Node::Live(attr.ino), attr, FOREVER)));
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            f if f.is_empty() => RenameMode::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let (_ticket, inner) = (self.inner.note(req), &self.inner);
        let result = inner.place(parent, name).and_then(|from| {
            let to = inner.place(newparent, newname)?;
            inner.once(req, |o| Ok(o.orphan), |request| inner.volume.rename(from, to, mode, request))
        });
        self.answer_removed(reply, result);
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let (_ticket, inner) = (self.inner.note(req), &self.inner);
        let result = Inner::live(ino).and_then(|ino| {
            let (dir, name) = inner.place(newparent, newname)?;
            inner.once(req, |o| inner.made(o), |request| inner.volume.link(ino, dir, name, request))
        });
        answer_entry(reply, result.map(|attr| (Node::Live(attr.ino), attr, FOREVER)));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _ticket = self.inner.note_read(req);
        match Inner::check_open(ino, flags) {
            Ok(()) => {
                let cache = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
                reply.opened(FileHandle(0), cache);
            }
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _ticket = self.inner.note_read(req);
        let len = size as usize;
        answer_data(reply, self.inner.read(ino, |at, ino| self.inner.volume.read(at, ino, offset, len)));
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // Written again if it was not answered: the same bytes at the same place.
        let ticket = self.inner.note_read(req);
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let answer = move |inner: &Inner, data: &[u8], reply: ReplyWrite| match Inner::live(ino)
            .and_then(|ino| inner.volume.write(ino, offset, data, kill))
        {
            Ok(()) => reply.written(data.len() as u32),
            Err(e) => reply.error(errno(&e)),
        };
        if self.inner.volume.write_would_wait(data.len()) {
            let (inner, data) = (self.inner.clone(), data.to_vec());
            self.waiters.run(move || {
                answer(&inner, &data, reply);
                drop(ticket);
            });
        } else {
            answer(&self.inner, data, reply);
        }
    }

    fn flush(&self, req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        let _ticket = self.inner.note_read(req);
        reply.ok();
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _ticket = self.inner.note_read(req);
        reply.ok();
        if let Node::Live(ino) = Node::from_id(ino.0) {
            self.inner.orphans.hint(ino);
        }
    }

    fn fsync(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let (inner, ticket) = (self.inner.clone(), self.inner.note_read(req));
        self.waiters.run(move || {
            // A past file has nothing that is not durable.
            let result = Inner::live(ino).map_or(Ok(()), |ino| inner.volume.fsync(ino));
            answer_empty(reply, result);
            drop(ticket);
        });
    }

    fn fsyncdir(&self, req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let (inner, ticket) = (self.inner.clone(), self.inner.note_read(req));
        self.waiters.run(move || {
            answer_empty(reply, inner.volume.fsync_names());
            drop(ticket);
        });
    }

    fn opendir(&self, req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _ticket = self.inner.note_read(req);
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn readdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let _ticket = self.inner.note_read(req);
        let result = self.inner.list(ino, offset, |entry| {
            let ino = INodeNo(entry.node.st_ino());
            !reply.add(ino, entry.cookie, file_type(entry.kind), OsStr::from_bytes(&entry.name))
        });
        match result {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let _ticket = self.inner.note_read(req);
        let mut failed = None;
        let result = self.inner.list(ino, offset, |entry| {
            let (_, attr) = match self.inner.attr(INodeNo(entry.node.id())) {
                Ok(found) => found,
                // Gone since it was listed: a file, or the snapshot of a name under the snapshot directory.
                Err(FsError::NotFound | FsError::Stale) => return true,
                Err(e) => {
                    failed = Some(e);
                    return false;
                }
            };
            let name = OsStr::from_bytes(&entry.name);
            let generation = Generation(attr.attrs.generation);
            let file = file_attr(entry.node, &attr);
            !reply.add(INodeNo(entry.node.id()), entry.cookie, name, &entry.keep, &file, generation)
        });
        match result.and(failed.map_or(Ok(()), Err)) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn statfs(&self, req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let _ticket = self.inner.note_read(req);
        match nix::sys::statvfs::fstatvfs(&self.inner.below) {
            Ok(s) => reply.statfs(
                s.blocks(),
                s.blocks_free(),
                s.blocks_available(),
                s.files(),
                s.files_free(),
                s.block_size() as u32,
                255,
                s.fragment_size() as u32,
            ),
            Err(e) => reply.error(Errno::from_i32(e as i32)),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            0 => XattrMode::Set,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return reply.error(Errno::EINVAL),
        };
        let (_ticket, inner) = (self.inner.note(req), &self.inner);
        let result = check_xattr_name(name).and_then(|()| Inner::live(ino)).and_then(|ino| {
            let set = |request| inner.volume.setxattr(ino, name.as_bytes(), value, mode, request);
            inner.once(req, |_| Ok(()), set)
        });
        answer_empty(reply, result);
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _ticket = self.inner.note_read(req);
        if let Some(value) = (self.inner.settings.attribute)(name.as_bytes(), Node::from_id(ino.0)) {
            return answer_xattr(reply, size, Ok(value));
        }
        let result = check_xattr_name(name).and_then(|()| match Node::from_id(ino.0) {
            Node::Snapshots(_) => Err(FsError::NoAttribute),
            _ => self.inner.read(ino, |at, ino| self.inner.volume.getxattr(at, ino, name.as_bytes())),
        });
        answer_xattr(reply, size, result);
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _ticket = self.inner.note_read(req);
        let result = match Node::from_id(ino.0) {
            Node::Snapshots(_) => Ok(Vec::new()),
            _ => self.inner.read(ino, |at, ino| self.inner.volume.listxattr(at, ino)),
        };
        answer_xattr(reply, size, result);
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (_ticket, inner) = (self.inner.note(req), &self.inner);
        let result = check_xattr_name(name).and_then(|()| Inner::live(ino)).and_then(|ino| {
            let remove = |request| inner.volume.removexattr(ino, name.as_bytes(), request);
            inner.once(req, |_| Ok(()), remove)
        });
        answer_empty(reply, result);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let _ticket = self.inner.note(req);
        let node = new_node(FileKind::File, mode, req);
        match self.inner.make(req, parent, name, node) {
            Ok(attr) => {
                let cache = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
                let generation = Generation(attr.attrs.generation);
                let file = file_attr(Node::Live(attr.ino), &attr);
                reply.created(&FOREVER, &file, generation, FileHandle(0), cache);
            }
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let keep_size = mode & KEEP_SIZE != 0;
        let how = match mode & !KEEP_SIZE {
            0 => Allocate::Reserve { keep_size },
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => Allocate::Punch,
            libc::FALLOC_FL_ZERO_RANGE => Allocate::Zero { keep_size },
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        if self.inner.outcome(req).is_some() {
            return reply.ok();
        }
        let (inner, request) = (self.inner.clone(), self.inner.request(req));
        let ticket = self.inner.note(req);
        self.waiters.run(move || {
            let result =
                Inner::live(ino).and_then(|ino| inner.volume.allocate(ino, offset, length, how, request));
            answer_empty(reply, result);
            drop(ticket);
        });
    }

    /// There are none. fuser would answer the same, with a warning in the log for every terminal check
    /// (`isatty`) of a program.
    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let _ticket = self.inner.note_read(req);
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        match self.inner.read(ino, |at, ino| self.inner.volume.seek(at, ino, offset, what)) {
            Ok(found) => reply.offset(found as i64),
            Err(e) => reply.error(errno(&e)),
        }
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // Copied again if it was not answered.
        let (inner, ticket) = (self.inner.clone(), self.inner.note_read(req));
        self.waiters.run(move || {
            let result = Inner::live(ino_out).and_then(|out| {
                inner.read(ino_in, |at, ino| {
                    let from = CopySource { at, ino, offset: offset_in };
                    inner.volume.copy_range(from, out, offset_out, len)
                })
            });
            match result {
                Ok(copied) => reply.written(copied as u32),
                Err(e) => reply.error(errno(&e)),
            }
            drop(ticket);
        });
    }
}

impl Adapter {
    /// Answers a removal, and notes an inode that lost its last name by it.
    fn answer_removed(&self, reply: ReplyEmpty, result: FsResult<Option<Ino>>) {
        if let Ok(Some(ino)) = &result {
            self.inner.orphans.add(*ino);
        }
        answer_empty(reply, result);
    }
}

/// An entry of any directory's listing.
struct Listed {
    node: Node,
    kind: FileKind,
    name: Vec<u8>,
    cookie: u64,
    keep: Duration,
}

/// The cookie behind the snapshot directory where it is shown; above all others.
const SNAPDIR_COOKIE: u64 = i64::MAX as u64;

impl Inner {
    /// Visits a directory's entries behind `offset` while `add` has room.
    fn list(&self, node: INodeNo, offset: u64, mut add: impl FnMut(Listed) -> bool) -> FsResult<()> {
        let this = Node::from_id(node.0);
        if let Node::Snapshots(dir) = this {
            return self.list_snapshots(dir, offset, add);
        }
        let mut room = true;
        if offset < SNAPDIR_COOKIE {
            self.read(node, |at, dir| {
                self.volume.readdir(at, dir, offset, |entry| {
                    let (kind, cookie) = (entry.kind, entry.cookie);
                    let node = beside(this, entry.ino);
                    room = add(Listed { node, kind, name: entry.name, cookie, keep: FOREVER });
                    Ok(room)
                })
            })?;
        }
        if room && offset < SNAPDIR_COOKIE && self.settings.snapdir_visible && this == Node::Live(Ino::ROOT) {
            add(Listed {
                node: Node::Snapshots(Ino::ROOT),
                kind: FileKind::Dir,
                name: self.settings.snapdir_name.clone().into_bytes(),
                cookie: SNAPDIR_COOKIE,
                keep: NEVER,
            });
        }
        Ok(())
    }

    fn list_snapshots(&self, dir: Ino, offset: u64, mut add: impl FnMut(Listed) -> bool) -> FsResult<()> {
        let dots = [(1, ".", Node::Snapshots(dir)), (2, "..", Node::Live(dir))];
        for (cookie, name, node) in dots {
            let name = name.as_bytes().to_vec();
            if offset < cookie && !add(Listed { node, kind: FileKind::Dir, name, cookie, keep: NEVER }) {
                return Ok(());
            }
        }
        let mut after = offset.saturating_sub(2);
        loop {
            let page = snapdir::list(&self.volume, dir, after)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.cookie;
            for entry in page {
                // Seen now, so that its number needs no search later.
                debug_assert!(entry.at.0 == entry.cookie);
                let node = Node::Past { view: entry.view, ino: dir };
                let name = entry.name.into_bytes();
                if !add(Listed { node, kind: FileKind::Dir, name, cookie: entry.cookie + 2, keep: NEVER }) {
                    return Ok(());
                }
            }
        }
    }
}
