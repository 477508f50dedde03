//! Extended attributes.

use super::{FsError, FsResult, Volume};
use crate::store::model::{Attrs, Edit, RequestId, Xattr};
use crate::types::limits::{NAME_BYTES_MAX, XATTR_LIST_BYTES_MAX, XATTR_VALUE_BYTES_MAX};
use crate::types::{Ino, Lsn};

/// Whether an attribute must exist already, or must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    /// Either.
    Set,
    /// It must not exist.
    Create,
    /// It must exist.
    Replace,
    /// Both: whoever asks for that learns which of the two it is.
    Neither,
}

/// What becomes of an attribute.
pub(super) enum Changed {
    /// It gets this value.
    To(Vec<u8>),
    /// It goes.
    Removed,
    /// It stays as it is, the inode changes.
    Attributes,
    /// Everything stays.
    Nothing,
}

impl Volume {
    pub(super) fn xattr_hash(&self, name: &[u8]) -> [u8; 16] {
        self.shared.store.sealer().name_hash(b"xattr", name)
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// [`FsError::NoAttribute`], [`FsError::NotFound`].
    pub fn getxattr(&self, at: Option<Lsn>, ino: Ino, name: &[u8]) -> FsResult<Vec<u8>> {
        if self.inode(at, ino)?.item.attrs.xattrs == 0 {
            return Err(FsError::NoAttribute);
        }
        let found = self.view(at).xattr(ino, &self.xattr_hash(name))?;
        found.map(|x| x.value).ok_or(FsError::NoAttribute)
    }

    /// The names of an inode's extended attributes, each ended by a zero byte.
    ///
    /// # Errors
    /// [`FsError::NotFound`].
    pub fn listxattr(&self, at: Option<Lsn>, ino: Ino) -> FsResult<Vec<u8>> {
        if self.inode(at, ino)?.item.attrs.xattrs == 0 {
            return Ok(Vec::new());
        }
        let mut names: Vec<Vec<u8>> = self.view(at).xattrs(ino)?.into_iter().map(|x| x.name).collect();
        names.sort_unstable();
        Ok(names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect())
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// [`FsError::Exists`], [`FsError::NoAttribute`], [`FsError::AttributeTooLarge`].
    pub fn setxattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        request: Option<RequestId>,
    ) -> FsResult<()> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(FsError::AttributeTooLarge);
        }
        if value.len() > XATTR_VALUE_BYTES_MAX {
            return Err(FsError::AttributeTooLarge);
        }
        self.change_xattr(ino, name, request, |attrs, exists| match (mode, exists) {
            (XattrMode::Create | XattrMode::Neither, true) => Err(FsError::Exists),
            (XattrMode::Replace | XattrMode::Neither, false) => Err(FsError::NoAttribute),
            (_, false) if !self.name_fits(ino, attrs.xattrs, name)? => Err(FsError::AttributeTooLarge),
            _ => Ok(Changed::To(value.to_vec())),
        })
    }

    /// Whether the list of an inode's names has room for one more. It is read, which takes all attributes with
    /// their values, only where there are so many that it may have none.
    fn name_fits(&self, ino: Ino, count: u32, name: &[u8]) -> FsResult<bool> {
        let room = XATTR_LIST_BYTES_MAX - (name.len() + 1);
        if count as usize * (NAME_BYTES_MAX + 1) <= room {
            return Ok(true);
        }
        let list: usize = self.view(None).xattrs(ino)?.iter().map(|x| x.name.len() + 1).sum();
        Ok(list <= room)
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// [`FsError::NoAttribute`].
    pub fn removexattr(&self, ino: Ino, name: &[u8], request: Option<RequestId>) -> FsResult<()> {
        self.change_xattr(ino, name, request, |_, exists| {
            if exists { Ok(Changed::Removed) } else { Err(FsError::NoAttribute) }
        })
    }

    /// Changes an attribute to what `decide` says, which is told whether it exists and may change the mode.
    pub(super) fn change_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        request: Option<RequestId>,
        decide: impl FnOnce(&mut Attrs, bool) -> FsResult<Changed>,
    ) -> FsResult<()> {
        self.check_writable()?;
        let (vol, hash) = (self.vol, self.xattr_hash(name));
        let _gate = self.enter();
        let cell = self.cell(ino)?;
        let mut live = cell.state.write();
        if live.gone {
            return Err(FsError::NotFound);
        }
        let exists = live.attrs.xattrs > 0 && self.view(None).xattr(ino, &hash)?.is_some();
        let mut attrs = live.recordable();
        let (change, count) = match decide(&mut attrs, exists)? {
            Changed::To(value) => {
                let xattr = Xattr { name: name.to_vec(), value };
                (Some(Edit::PutXattr { vol, ino, hash, xattr }), attrs.xattrs + u32::from(!exists))
            }
            Changed::Removed => (Some(Edit::DelXattr { vol, ino, hash }), attrs.xattrs.saturating_sub(1)),
            Changed::Attributes => (None, attrs.xattrs),
            Changed::Nothing => return Ok(()),
        };
        (attrs.xattrs, attrs.ctime) = (count, self.shared.now());
        let (mode, ctime) = (attrs.mode, attrs.ctime);
        let edits = std::iter::once(Edit::PutInode { vol, ino, attrs }).chain(change).collect();
        self.commit(edits, request)?;
        (live.attrs.mode, live.attrs.xattrs, live.attrs.ctime) = (mode, count, ctime);
        Ok(())
    }
}
