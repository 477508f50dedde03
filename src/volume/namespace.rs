//! Names: looking up, making, linking, unlinking.

use super::{Attr, FsError, FsResult, Volume, new_attrs};
use crate::store::model::{Attrs, Dirent, Edit, FileKind, RequestId};
use crate::types::limits::{LINKS_MAX, NAME_BYTES_MAX, SYMLINK_BYTES_MAX};
use crate::types::{Ino, Lsn};

/// What is to be made.
#[derive(Clone, Debug)]
pub struct NewNode {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits as asked for.
    pub mode: u16,
    /// Bits that it shall not have, where no default ACL says which.
    pub umask: u16,
    /// Owner and group of the process; a setgid directory overrules the group.
    pub owner: (u32, u32),
    /// Device number of a device node.
    pub rdev: u32,
    /// Target of a symbolic link.
    pub target: Vec<u8>,
}

/// Checks a name that is about to be looked up or made.
pub(super) fn check_name(name: &[u8]) -> FsResult<()> {
    if name.len() > NAME_BYTES_MAX {
        return Err(FsError::NameTooLong);
    }
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return Err(FsError::Invalid("not a file name"));
    }
    Ok(())
}

impl Volume {
    /// The entry `name` of directory `parent`.
    pub(super) fn entry(&self, at: Option<Lsn>, parent: Ino, name: &[u8]) -> FsResult<Option<Dirent>> {
        Ok(self.view(at).dirent(parent, &self.name_hash(name))?)
    }

    /// The object that `name` means in directory `parent`.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NameTooLong`].
    pub fn lookup(&self, at: Option<Lsn>, parent: Ino, name: &[u8]) -> FsResult<Attr> {
        if name.len() > NAME_BYTES_MAX {
            return Err(FsError::NameTooLong);
        }
        let entry = self.entry(at, parent, name)?.ok_or(FsError::NotFound)?;
        self.getattr(at, entry.ino)
    }

    /// The parent of a directory.
    pub fn parent(&self, at: Option<Lsn>, ino: Ino) -> FsResult<Ino> {
        Ok(self.inode(at, ino)?.item.attrs.parent)
    }

    /// A directory's attributes, for a change of its entries. The caller holds the namespace lock and the
    /// directory's state.
    pub(super) fn check_parent(attrs: &Attrs) -> FsResult<()> {
        if attrs.kind != FileKind::Dir {
            return Err(FsError::NotDir);
        }
        if attrs.nlink == 0 {
            return Err(FsError::NotFound);
        }
        Ok(())
    }

    /// Makes something new under `parent`.
    ///
    /// # Errors
    /// [`FsError::Exists`], [`FsError::NotDir`], [`FsError::NotFound`], [`FsError::NameTooLong`].
    pub fn make(
        &self,
        parent: Ino,
        name: &[u8],
        node: NewNode,
        request: Option<RequestId>,
    ) -> FsResult<Attr> {
        self.check_writable()?;
        check_name(name)?;
        if node.target.len() > SYMLINK_BYTES_MAX {
            return Err(FsError::NameTooLong);
        }
        let hash = self.name_hash(name);
        self.shared.wait_for_room_for_names();
        let _gate = self.enter();
        let _names = self.namespace.lock();
        let cell = self.cell(parent)?;
        let exists = self.view(None).dirent(parent, &hash)?.is_some();
        let excluded = !exists && self.excludes(parent, name)?;
        if !exists {
            self.admit(parent, !excluded, excluded)?;
        }
        let mut dir = cell.state.write();
        Self::check_parent(&dir.attrs)?;
        if exists {
            return Err(FsError::Exists);
        }
        let now = self.shared.now();
        let mut attrs = new_attrs(node.kind, node.mode & 0o7777, node.owner, now, self.shared.store.term().0);
        if dir.attrs.mode & 0o2000 != 0 {
            attrs.gid = dir.attrs.gid;
            if node.kind == FileKind::Dir {
                attrs.mode |= 0o2000;
            }
        }
        let mut parent_attrs = dir.attrs.clone();
        parent_attrs.entries = parent_attrs.entries.saturating_add(1);
        (parent_attrs.mtime, parent_attrs.ctime) = (now, now);
        (attrs.parent, attrs.name, attrs.excluded) = (parent, hash, excluded);
        if excluded {
            parent_attrs.count_hidden(1, node.kind);
        }
        if node.kind == FileKind::Dir {
            parent_attrs.nlink = parent_attrs.nlink.checked_add(1).ok_or(FsError::TooManyLinks)?;
        }
        attrs.rdev = node.rdev;
        attrs.size = node.target.len() as u64;
        attrs.target = node.target;
        let acls = self.inherit(parent, &dir.attrs, node.umask, &mut attrs)?;
        let ino = self.new_ino()?;
        let dirent = Dirent { ino, kind: node.kind, name: name.to_vec(), excluded };
        let vol = self.vol;
        let mut edits = vec![
            Edit::PutInode { vol, ino, attrs: attrs.clone() },
            Edit::PutDirent { vol, parent, hash, dirent },
            Edit::PutInode { vol, ino: parent, attrs: parent_attrs.clone() },
        ];
        edits.extend(acls.iter().map(|(kind, acl)| self.put_acl(ino, *kind, acl)));
        self.commit(edits, request)?;
        dir.attrs = parent_attrs;
        Ok(Attr { ino, attrs, data_bytes: 0 })
    }

    /// Gives a file one more name.
    ///
    /// # Errors
    /// [`FsError::Exists`], [`FsError::NotPermitted`] for a directory, [`FsError::TooManyLinks`],
    /// [`FsError::NotFound`] for a file that has lost its last name.
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8], request: Option<RequestId>) -> FsResult<Attr> {
        self.check_writable()?;
        check_name(name)?;
        // A name that appears must never show less than was written before.
        self.commit_file(ino)?;
        self.shared.wait_for_room_for_names();
        let hash = self.name_hash(name);
        let vol = self.vol;
        {
            let _gate = self.enter();
            let _names = self.namespace.lock();
            let (dir_cell, file_cell) = (self.cell(parent)?, self.cell(ino)?);
            let exists = self.view(None).dirent(parent, &hash)?.is_some();
            // What has a history keeps it under all its names.
            let (was_excluded, goes_on) = {
                let file = file_cell.state.read();
                let named = !file.gone && (1..LINKS_MAX).contains(&file.attrs.nlink);
                (file.attrs.excluded, !exists && named && file.attrs.kind != FileKind::Dir)
            };
            let excluded = was_excluded && goes_on && self.excludes(parent, name)?;
            if goes_on {
                self.admit(parent, !excluded, excluded)?;
            }
            if parent == ino {
                return Err(FsError::NotPermitted("a directory cannot have a second name"));
            }
            // States in the order of their numbers.
            let (mut dir, mut file);
            if parent < ino {
                dir = dir_cell.state.write();
                file = file_cell.state.write();
            } else {
                file = file_cell.state.write();
                dir = dir_cell.state.write();
            }
            Self::check_parent(&dir.attrs)?;
            if file.attrs.kind == FileKind::Dir {
                return Err(FsError::NotPermitted("a directory cannot have a second name"));
            }
            if file.gone || file.attrs.nlink == 0 {
                return Err(FsError::NotFound);
            }
            if file.attrs.nlink >= LINKS_MAX {
                return Err(FsError::TooManyLinks);
            }
            if exists {
                return Err(FsError::Exists);
            }
            let now = self.shared.now();
            let (mut dir_attrs, mut file_attrs) = (dir.attrs.clone(), file.recordable());
            dir_attrs.entries = dir_attrs.entries.saturating_add(1);
            (dir_attrs.mtime, dir_attrs.ctime) = (now, now);
            file_attrs.nlink += 1;
            file_attrs.ctime = now;
            (file_attrs.parent, file_attrs.name, file_attrs.excluded) = (parent, hash, excluded);
            if excluded {
                dir_attrs.count_hidden(1, file_attrs.kind);
            }
            let dirent = Dirent { ino, kind: file_attrs.kind, name: name.to_vec(), excluded };
            let nlink = file_attrs.nlink;
            self.commit(
                vec![
                    Edit::PutInode { vol, ino, attrs: file_attrs },
                    Edit::PutDirent { vol, parent, hash, dirent },
                    Edit::PutInode { vol, ino: parent, attrs: dir_attrs.clone() },
                ],
                request,
            )?;
            dir.attrs = dir_attrs;
            (file.attrs.nlink, file.attrs.ctime) = (nlink, now);
            (file.attrs.parent, file.attrs.name, file.attrs.excluded) = (parent, hash, excluded);
        }
        self.getattr(None, ino)
    }

    /// Removes the name of something that is not a directory. Returns its inode if that was its last name.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::IsDir`].
    pub fn unlink(&self, parent: Ino, name: &[u8], request: Option<RequestId>) -> FsResult<Option<Ino>> {
        self.remove(parent, name, false, None, request)
    }

    /// Removes an empty directory. Returns its inode, which those who have it open may still hold.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotDir`], [`FsError::NotEmpty`].
    pub fn rmdir(&self, parent: Ino, name: &[u8], request: Option<RequestId>) -> FsResult<Option<Ino>> {
        self.remove(parent, name, true, None, request)
    }

    /// As [`Volume::unlink`], if the name still means that inode.
    pub(super) fn unlink_from(&self, parent: Ino, name: &[u8], ino: Ino) -> FsResult<Option<Ino>> {
        self.remove(parent, name, false, Some(ino), None)
    }

    fn remove(
        &self,
        parent: Ino,
        name: &[u8],
        directory: bool,
        only: Option<Ino>,
        request: Option<RequestId>,
    ) -> FsResult<Option<Ino>> {
        self.check_writable()?;
        if name.len() > NAME_BYTES_MAX {
            return Err(FsError::NameTooLong);
        }
        let hash = self.name_hash(name);
        let vol = self.vol;
        let _gate = self.enter();
        let _names = self.namespace.lock();
        let entry = self.view(None).dirent(parent, &hash)?;
        let entry = entry.filter(|entry| only.is_none_or(|ino| entry.ino == ino)).ok_or(FsError::NotFound)?;
        match (entry.kind == FileKind::Dir, directory) {
            (true, false) => return Err(FsError::IsDir),
            (false, true) => return Err(FsError::NotDir),
            _ => {}
        }
        let ino = entry.ino;
        let (dir_cell, cell) = (self.cell(parent)?, self.cell(ino)?);
        // Numbers grow downwards in the tree except after renames; either order must be possible.
        let (mut dir, mut live);
        if parent < ino {
            dir = dir_cell.state.write();
            live = cell.state.write();
        } else {
            live = cell.state.write();
            dir = dir_cell.state.write();
        }
        if directory && live.attrs.entries > 0 {
            return Err(FsError::NotEmpty);
        }
        let now = self.shared.now();
        let (mut dir_attrs, mut attrs) = (dir.attrs.clone(), live.recordable());
        dir_attrs.entries = dir_attrs.entries.saturating_sub(1);
        (dir_attrs.mtime, dir_attrs.ctime) = (now, now);
        attrs.ctime = now;
        attrs.nlink = if directory { 0 } else { attrs.nlink.saturating_sub(1) };
        if directory {
            dir_attrs.nlink = dir_attrs.nlink.saturating_sub(1);
        }
        if entry.excluded {
            dir_attrs.count_hidden(-1, entry.kind);
        }
        attrs.unname(parent, &hash);
        let (nlink, place) = (attrs.nlink, (attrs.parent, attrs.name));
        let mut edits = vec![
            Edit::DelDirent { vol, parent, hash },
            Edit::PutInode { vol, ino: parent, attrs: dir_attrs.clone() },
            Edit::PutInode { vol, ino, attrs },
        ];
        if nlink == 0 {
            edits.push(Edit::Orphan { vol, ino, orphan: true });
        }
        let held = if nlink == 0 && !directory { Some(self.held_bytes(ino, &live)?) } else { None };
        self.commit(edits, request)?;
        if let Some(held) = held {
            self.shared.keeping.alarms.removed(vol, held);
        }
        dir.attrs = dir_attrs;
        (live.attrs.nlink, live.attrs.ctime) = (nlink, now);
        (live.attrs.parent, live.attrs.name) = place;
        Ok((nlink == 0).then_some(ino))
    }
}
