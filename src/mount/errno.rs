//! Which errno an error is: decided here and nowhere else.

use fuser::Errno;

use crate::types::Error;
use crate::volume::FsError;

/// The errno of a failed operation; what an operator should know of is logged.
pub(super) fn errno(error: &FsError) -> Errno {
    match error {
        FsError::Store(e) => store_errno(e),
        FsError::NotFound | FsError::NoSuchPoint(_) => Errno::ENOENT,
        FsError::Exists => Errno::EEXIST,
        FsError::NotDir => Errno::ENOTDIR,
        FsError::IsDir => Errno::EISDIR,
        FsError::NotEmpty => Errno::ENOTEMPTY,
        FsError::NameTooLong => Errno::ENAMETOOLONG,
        FsError::Invalid(_) | FsError::Refused(_) => Errno::EINVAL,
        FsError::TooManyLinks => Errno::EMLINK,
        FsError::TooLarge => Errno::EFBIG,
        FsError::TooMany(_) => Errno::E2BIG,
        FsError::ReadOnly => Errno::EROFS,
        FsError::NoAttribute => Errno::ENODATA,
        FsError::AttributeTooLarge => Errno::ENOSPC,
        FsError::NoSuchOffset => Errno::ENXIO,
        FsError::NoAccess | FsError::Denied(_) => Errno::EACCES,
        FsError::NotPermitted(_) => Errno::EPERM,
        FsError::NotSupported => Errno::EOPNOTSUPP,
        FsError::Held(_) => Errno::EBUSY,
        FsError::Stale => Errno::ESTALE,
    }
}

fn store_errno(error: &Error) -> Errno {
    match error {
        Error::NoSpace(_) => Errno::ENOSPC,
        Error::ReadOnly(_) => Errno::EROFS,
        Error::Invalid(_) => Errno::EINVAL,
        other => {
            tracing::error!(error = %other, "input/output error");
            Errno::EIO
        }
    }
}
