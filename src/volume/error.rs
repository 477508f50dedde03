//! What a filesystem operation can fail with. Which errno that is, is decided in `mount::errno` alone.

use crate::types::Error as StoreError;

/// A failed operation.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The store could not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing has that name, or the inode is gone.
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("it exists already")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotDir,
    /// A directory was not wanted.
    #[error("is a directory")]
    IsDir,
    /// The directory has entries.
    #[error("the directory is not empty")]
    NotEmpty,
    /// The name or the link target is too long.
    #[error("name too long")]
    NameTooLong,
    /// An argument that makes no sense here.
    #[error("{0}")]
    Invalid(&'static str),
    /// The file has as many links as it may.
    #[error("too many links")]
    TooManyLinks,
    /// The file would be too large.
    #[error("file too large")]
    TooLarge,
    /// The tree is a past one, or the store is read-only.
    #[error("read-only")]
    ReadOnly,
    /// The extended attribute does not exist.
    #[error("no such attribute")]
    NoAttribute,
    /// The extended attribute or their list does not fit.
    #[error("attribute too large")]
    AttributeTooLarge,
    /// There is no data or no hole behind the offset.
    #[error("no such offset")]
    NoSuchOffset,
    /// The answer would take more memory than it may.
    #[error("{0}")]
    TooMany(&'static str),
    /// The caller may not do that.
    #[error("not permitted: {0}")]
    NotPermitted(&'static str),
    /// The permissions do not allow it, or no permissions could.
    #[error("permission denied")]
    NoAccess,
    /// The permissions do not allow it, with what and where.
    #[error("permission denied: {0}")]
    Denied(String),
    /// It cannot be done as things are, with the reason.
    #[error("{0}")]
    Refused(String),
    /// The operation does not exist for this object.
    #[error("not supported")]
    NotSupported,
    /// The point is not, or no longer, readable.
    #[error("{0}")]
    NoSuchPoint(String),
    /// The view that the object was seen in is gone.
    #[error("the snapshot is gone")]
    Stale,
    /// A snapshot is held.
    #[error("{0}")]
    Held(String),
}

/// Shorthand for results of the volume layer.
pub type FsResult<T> = Result<T, FsError>;
