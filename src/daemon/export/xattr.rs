//! Extended attributes of a path that may be a symbolic link, which neither std nor nix wraps.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::types::limits::{XATTR_LIST_BYTES_MAX, XATTR_VALUE_BYTES_MAX};

/// Extended attributes: names and values.
pub(super) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

fn length(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn is_none(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP))
}

/// All of them that the caller may see.
///
/// # Errors
/// What `llistxattr(2)` and `lgetxattr(2)` say.
pub(super) fn all(path: &Path) -> io::Result<Xattrs> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut list = vec![0u8; XATTR_LIST_BYTES_MAX];
    // SAFETY: the path ends with NUL, and `list` has room for the length that is passed.
    let listed = unsafe { libc::llistxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    match length(listed) {
        Ok(len) => list.truncate(len),
        Err(e) if is_none(&e) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    }
    let mut found = Vec::new();
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let c_name = CString::new(name)?;
        let mut value = vec![0u8; XATTR_VALUE_BYTES_MAX];
        let got =
            // SAFETY: both strings end with NUL, and `value` has room for the length that is passed.
            unsafe { libc::lgetxattr(path.as_ptr(), c_name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        match length(got) {
            Ok(len) => value.truncate(len),
            // Removed since it was listed.
            Err(e) if is_none(&e) => continue,
            Err(e) => return Err(e),
        }
        found.push((name.to_vec(), value));
    }
    Ok(found)
}

/// Sets one.
///
/// # Errors
/// What `lsetxattr(2)` says.
pub(super) fn set(path: &Path, name: &[u8], value: &[u8]) -> io::Result<()> {
    let (path, name) = (CString::new(path.as_os_str().as_bytes())?, CString::new(name)?);
    // SAFETY: both strings end with NUL, and `value` has the length that is passed.
    let result =
        unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
