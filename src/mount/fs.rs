//! The handlers: decode, call, encode. Nothing is decided here.
//!
//! Long because the FUSE protocol has that many operations; each handler is a few lines.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::answers::{answer_attr, answer_data, answer_empty, answer_entry, answer_xattr};
use super::convert::{file_attr, file_type, from_request, kind_of_mode, time_or_now};
use super::errno::errno;
use super::inner::{FOREVER, Inner, NEVER, new_node};
use super::nodeid::Node;
use super::snapdir;
use crate::store::chunks::pool::Pool;
use crate::store::model::FileKind;
use crate::types::Ino;
use crate::volume::acl::{Acl, AclKind};
use crate::volume::{
    AccessTimes, Allocate, CopySource, FsError, FsResult, NewNode, RenameMode, Seek, SetAttr, Writer,
    XattrMode,
};

/// Largest request.
const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Requests that the kernel has in flight in the background (read-ahead, mostly).
const BACKGROUND_MAX: u16 = 64;
/// Threads for requests that wait for a disk: fsync, snapshots, copies, writes over the budget.
const WAITERS: usize = 16;
/// The flag of `fallocate` that keeps the size.
const KEEP_SIZE: i32 = libc::FALLOC_FL_KEEP_SIZE;

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

/// The namespaces that are kept. Of `system.` only ACLs exist, and those where the kernel checks them.
fn check_xattr_name(inner: &Inner, name: &OsStr) -> FsResult<()> {
    if AclKind::of_name(name.as_bytes()).is_some() && inner.acls.load(Ordering::Relaxed) {
        return Ok(());
    }
    let kept = [b"user.".as_slice(), b"trusted.", b"security."];
    match kept.iter().find_map(|space| name.as_bytes().strip_prefix(*space)) {
        None => Err(FsError::NotSupported),
        Some(b"") => Err(FsError::Invalid("a name without its namespace is empty")),
        Some(_) => Ok(()),
    }
}

/// The list of names that those without privilege see.
fn without_trusted(names: &[u8]) -> Vec<u8> {
    let seen = names.split_inclusive(|b| *b == 0).filter(|name| !name.starts_with(b"trusted."));
    seen.flatten().copied().collect()
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
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA
            // With ACLs the umask is ours to apply: a default ACL takes its place.
            | InitFlags::FUSE_POSIX_ACL
            | InitFlags::FUSE_DONT_MASK;
        // An older kernel does without what it does not know.
        let mut agreed = wanted & config.capabilities();
        if self.inner.settings.access_times == AccessTimes::Always {
            // Every reading of a link counts, so every one must reach us.
            agreed.remove(InitFlags::FUSE_CACHE_SYMLINKS);
        }
        let _ = config.add_capabilities(agreed);
        self.inner.acls.store(agreed.contains(InitFlags::FUSE_POSIX_ACL), Ordering::Relaxed);
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
            author: Some(req.uid()),
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
        let target = self.inner.read(ino, |at, ino| self.inner.volume.readlink(at, ino));
        if target.is_ok() {
            self.inner.accessed(ino, self.inner.settings.access_times);
        }
        answer_data(reply, target);
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let _ticket = self.inner.note(req);
        let made = kind_of_mode(mode).ok_or(FsError::Invalid("no such kind of file")).and_then(|kind| {
            let node = NewNode { rdev, ..new_node(kind, mode, umask, req) };
            self.inner.make(req, parent, name, node)
        });
        answer_entry(reply, made.map(|attr| (Node::Live(attr.ino), attr, FOREVER)));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
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
        let node = new_node(FileKind::Dir, mode, umask, req);
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
        let node = NewNode { target, ..new_node(FileKind::Symlink, 0o777, 0, req) };
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
                // Most reads come out of the kernel's cache, so opening counts for them.
                if flags.acc_mode() != OpenAccMode::O_WRONLY && flags.0 & libc::O_NOATIME == 0 {
                    self.inner.accessed(ino, self.inner.settings.access_times);
                }
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
        let writer = Writer {
            // What is written back of mapped pages is sent by nobody in particular.
            uid: (!write_flags.contains(WriteFlags::FUSE_WRITE_CACHE)).then_some(req.uid()),
            kill_privileges: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        let answer = move |inner: &Inner, data: &[u8], reply: ReplyWrite| match Inner::live(ino)
            .and_then(|ino| inner.volume.write(ino, offset, data, writer))
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
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let _ticket = self.inner.note_read(req);
        reply.ok();
        if let Node::Live(ino) = Node::from_id(ino.0) {
            self.inner.orphans.hint(ino);
            if flags.acc_mode() != OpenAccMode::O_RDONLY {
                self.inner.volume.completed(ino);
            }
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

    fn opendir(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _ticket = self.inner.note_read(req);
        if flags.0 & libc::O_NOATIME == 0 {
            self.inner.accessed(ino, self.inner.settings.dir_access_times);
        }
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
            f if f == libc::XATTR_CREATE | libc::XATTR_REPLACE => XattrMode::Neither,
            _ => return reply.error(Errno::EINVAL),
        };
        let (_ticket, inner) = (self.inner.note(req), &self.inner);
        let result = check_xattr_name(inner, name).and_then(|()| Inner::live(ino)).and_then(|ino| {
            inner.once(
                req,
                |_| Ok(()),
                |request| match AclKind::of_name(name.as_bytes()) {
                    Some(kind) => inner.set_acl(req, ino, kind, Acl::decode(value)?, request),
                    None => inner.volume.setxattr(ino, name.as_bytes(), value, mode, request),
                },
            )
        });
        answer_empty(reply, result);
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _ticket = self.inner.note_read(req);
        if let Some(value) = (self.inner.settings.attribute)(name.as_bytes(), Node::from_id(ino.0)) {
            return answer_xattr(reply, size, Ok(value));
        }
        let result = check_xattr_name(&self.inner, name).and_then(|()| match Node::from_id(ino.0) {
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
        let result = result.map(|names| if req.uid() == 0 { names } else { without_trusted(&names) });
        answer_xattr(reply, size, result);
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (_ticket, inner) = (self.inner.note(req), &self.inner);
        let result = check_xattr_name(inner, name).and_then(|()| Inner::live(ino)).and_then(|ino| {
            inner.once(
                req,
                |_| Ok(()),
                |request| match AclKind::of_name(name.as_bytes()) {
                    Some(kind) => inner.set_acl(req, ino, kind, None, request),
                    None => inner.volume.removexattr(ino, name.as_bytes(), request),
                },
            )
        });
        answer_empty(reply, result);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let _ticket = self.inner.note(req);
        let node = new_node(FileKind::File, mode, umask, req);
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
        let (inner, request, writer) = (self.inner.clone(), self.inner.request(req), writer(req));
        let ticket = self.inner.note(req);
        self.waiters.run(move || {
            let result = Inner::live(ino)
                .and_then(|ino| inner.volume.allocate(ino, offset, length, how, writer, request));
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
        let writer = writer(req);
        let (inner, ticket) = (self.inner.clone(), self.inner.note_read(req));
        self.waiters.run(move || {
            let result = Inner::live(ino_out).and_then(|out| {
                inner.read(ino_in, |at, ino| {
                    let from = CopySource { at, ino, offset: offset_in };
                    inner.volume.copy_range(from, out, offset_out, len, writer)
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

/// Whoever sends a request that changes content and does not say itself what becomes of setuid.
fn writer(req: &Request) -> Writer {
    Writer { uid: Some(req.uid()), kill_privileges: req.uid() != 0 }
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
