//! Attributes: stat and its changes.

use super::policy::burst::Kind;
use super::{FsError, FsResult, Volume};
use crate::store::model::{Attrs, Edit, FileKind, RequestId};
use crate::types::limits::FILE_BYTES_MAX;
use crate::types::{Ino, Lsn, Timestamp};

/// What `stat` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    /// The inode.
    pub ino: Ino,
    /// Its attributes.
    pub attrs: Attrs,
    /// Bytes of file data, holes not counted; before compression.
    pub data_bytes: u64,
}

/// Who changes the content of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writer {
    /// The user; `None` where the kernel does not say, as when it writes mapped pages back.
    pub uid: Option<u32>,
    /// Whether setuid and setgid go, as they do when someone without privilege writes.
    pub kill_privileges: bool,
}

impl Writer {
    /// Root.
    pub const ROOT: Writer = Writer { uid: Some(0), kill_privileges: false };

    /// Notes in `attrs` that the content was changed.
    pub(super) fn changed(self, attrs: &mut Attrs, now: Timestamp) {
        (attrs.mtime, attrs.ctime) = (now, now);
        attrs.author = self.uid.unwrap_or(attrs.author);
        if self.kill_privileges {
            kill_privileges(attrs);
        }
    }
}

/// Changes of attributes; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size: a cut or an extension.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<Timestamp>,
    /// Last change of the content.
    pub mtime: Option<Timestamp>,
    /// Last change of the inode; normally now.
    pub ctime: Option<Timestamp>,
    /// Clear setuid and setgid, as a change of size or owner by someone without privilege does.
    pub kill_privileges: bool,
    /// Who it is that changes the size.
    pub author: Option<u32>,
}

impl SetAttr {
    pub(super) fn apply(&self, attrs: &mut Attrs, now: Timestamp) {
        if let Some(uid) = self.uid {
            attrs.uid = uid;
        }
        if let Some(gid) = self.gid {
            attrs.gid = gid;
        }
        if self.kill_privileges {
            kill_privileges(attrs);
        }
        if let Some(mode) = self.mode {
            attrs.mode = mode & 0o7777;
        }
        if self.size.is_some() {
            attrs.author = self.author.unwrap_or(attrs.author);
        }
        attrs.atime = self.atime.unwrap_or(attrs.atime);
        attrs.mtime = self.mtime.unwrap_or(attrs.mtime);
        attrs.ctime = self.ctime.unwrap_or(now);
    }
}

/// Clears setuid, and setgid where the group may execute (else it means mandatory locking).
pub(super) fn kill_privileges(attrs: &mut Attrs) {
    if attrs.kind == FileKind::Dir {
        return;
    }
    attrs.mode &= !0o4000;
    if attrs.mode & 0o010 != 0 {
        attrs.mode &= !0o2000;
    }
}

/// Attributes of a new inode.
pub(super) fn new_attrs(
    kind: FileKind,
    mode: u16,
    owner: (u32, u32),
    now: Timestamp,
    generation: u64,
) -> Attrs {
    Attrs {
        kind,
        mode,
        uid: owner.0,
        gid: owner.1,
        nlink: if kind == FileKind::Dir { 2 } else { 1 },
        size: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        rdev: 0,
        generation,
        parent: Ino(0),
        name: [0; 16],
        author: owner.0,
        entries: 0,
        xattrs: 0,
        target: Vec::new(),
        excluded: false,
        hidden: None,
    }
}

impl Volume {
    /// The attributes of an inode.
    ///
    /// # Errors
    /// [`FsError::NotFound`].
    pub fn getattr(&self, at: Option<Lsn>, ino: Ino) -> FsResult<Attr> {
        // The cell first: while it is held here it stays, and what it commits meanwhile shows in both. The
        // other way round a commit between the two would hide a write that had returned.
        let read = if at.is_none() { self.shared.accesses.of(self.vol, ino) } else { None };
        let cell = if at.is_none() { self.cell_if_any(ino) } else { None };
        let inode = self.inode(at, ino)?.item;
        let mut attr = Attr { ino, attrs: inode.attrs, data_bytes: inode.data_bytes };
        if let Some(cell) = cell {
            let live = cell.state.read();
            if live.gone {
                return Err(FsError::NotFound);
            }
            attr.attrs = live.attrs.clone();
            attr.data_bytes = attr
                .data_bytes
                .saturating_add(live.dirty_bytes())
                .min(attr.attrs.size.next_multiple_of(4096));
        }
        attr.attrs.atime = read.unwrap_or(attr.attrs.atime);
        Ok(attr)
    }

    /// Changes attributes, the size included; returns the new ones.
    ///
    /// # Errors
    /// [`FsError::IsDir`] and [`FsError::Invalid`] for a size that the object cannot have.
    pub fn setattr(&self, ino: Ino, set: &SetAttr, request: Option<RequestId>) -> FsResult<Attr> {
        self.check_writable()?;
        if let Some(size) = set.size {
            self.truncate(ino, size, set, request)?;
        } else {
            let _gate = self.enter();
            let cell = self.cell(ino)?;
            let mut live = cell.state.write();
            if live.gone {
                return Err(FsError::NotFound);
            }
            let acl = match set.mode {
                Some(mode) => self.follow_mode(ino, &live.attrs, mode)?,
                None => None,
            };
            if set.atime.is_some() {
                self.shared.accesses.take(self.vol, ino);
            }
            let before = live.attrs.clone();
            set.apply(&mut live.attrs, self.shared.now());
            let put = Edit::PutInode { vol: self.vol, ino, attrs: live.recordable() };
            if let Err(e) = self.commit(std::iter::once(put).chain(acl).collect(), request) {
                live.attrs = before;
                return Err(e);
            }
        }
        self.getattr(None, ino)
    }

    fn truncate(&self, ino: Ino, size: u64, set: &SetAttr, request: Option<RequestId>) -> FsResult<()> {
        if size > FILE_BYTES_MAX {
            return Err(FsError::TooLarge);
        }
        let _gate = self.enter();
        let cell = self.cell(ino)?;
        let _flush = cell.flush.lock();
        // What stays must be committed before the record that states the new size.
        self.shared.flush_below(self.vol, &cell, size)?;
        let mut live = cell.state.write();
        match live.attrs.kind {
            FileKind::File if !live.gone => {}
            FileKind::File => return Err(FsError::NotFound),
            FileKind::Dir => return Err(FsError::IsDir),
            _ => return Err(FsError::Invalid("only a regular file has a size to set")),
        }
        let now = self.shared.now();
        let changed = live.attrs.size != size;
        let mut attrs = live.attrs.clone();
        attrs.size = size;
        if changed || set.mtime.is_none() {
            attrs.mtime = now;
        }
        set.apply(&mut attrs, now);
        let mut edits = vec![Edit::PutInode { vol: self.vol, ino, attrs: attrs.clone() }];
        let mut held = 0;
        if live.committed_size > size {
            held = self.inode(None, ino)?.item.data_bytes;
            self.remove_range(ino, size, live.committed_size, live.committed_size, &mut edits)?;
        }
        self.shared.store.defragment(&edits)?;
        let note = |lsn| live.dirty.slots().filter(|s| s.end() > size).for_each(|s| s.note(lsn, 0, size));
        self.shared.store.commit_noted(edits, request, &note)?;
        // At most what held data: the end of a sparse file is no loss.
        let cut = live.committed_size.saturating_sub(size).min(held);
        self.shared.keeping.alarms.add(self.vol, Kind::OverwrittenBytes, cut);
        live.attrs = attrs;
        live.committed_size = size;
        live.dirty.truncate(size);
        if live.dirty.is_empty() && live.sealing.is_empty() {
            live.dirty_since = None;
        }
        Ok(())
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// [`FsError::Invalid`] for anything else.
    pub fn readlink(&self, at: Option<Lsn>, ino: Ino) -> FsResult<Vec<u8>> {
        let attrs = self.inode(at, ino)?.item.attrs;
        if attrs.kind == FileKind::Symlink {
            Ok(attrs.target)
        } else {
            Err(FsError::Invalid("not a symbolic link"))
        }
    }
}
