//! What a user may do with an object, as the kernel decides it from mode and ACL. Programs in a mount are
//! checked by the kernel itself; this is for requests that reach a volume another way.

use super::acl::AclKind;
use super::{FsResult, Volume};
use crate::store::model::Attrs;
use crate::types::{Ino, Lsn};

/// Reading, in the bits of a mode.
pub const READ: u16 = 4;
/// Writing.
pub const WRITE: u16 = 2;
/// Searching a directory.
pub const SEARCH: u16 = 1;

/// Someone without privilege.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

impl User {
    pub(super) fn is_in(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }

    /// The bits on an object without an ACL.
    pub(super) fn by_mode(&self, attrs: &Attrs) -> u16 {
        let shift = match () {
            () if self.uid == attrs.uid => 6,
            () if self.is_in(attrs.gid) => 3,
            () => 0,
        };
        (attrs.mode >> shift) & 7
    }
}

impl Volume {
    /// The bits that a user has on an inode with these attributes.
    ///
    /// # Errors
    /// From the store.
    pub fn granted(&self, at: Option<Lsn>, ino: Ino, attrs: &Attrs, user: &User) -> FsResult<u16> {
        if let Some(acl) = self.acl(at, ino, attrs, AclKind::Access)? {
            return Ok(acl.granted(user.uid, (attrs.uid, attrs.gid), |gid| user.is_in(gid)));
        }
        Ok(user.by_mode(attrs))
    }
}
