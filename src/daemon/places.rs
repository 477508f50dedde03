//! Paths in a volume as requests name them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::protocol::{ControlError, HERE};
use crate::types::Ino;
use crate::types::limits::{NAME_BYTES_MAX, PATH_DEPTH_MAX};
use crate::volume::Volume;

/// The names that a relative path consists of.
pub(super) fn names(below: &Path) -> Result<Vec<Vec<u8>>, ControlError> {
    if below == Path::new(HERE) {
        return Ok(Vec::new());
    }
    let parts = below.as_os_str().as_bytes().split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    let names: Vec<Vec<u8>> = parts.map(<[u8]>::to_vec).collect();
    let bad =
        |name: &Vec<u8>| name.len() > NAME_BYTES_MAX || name == b"." || name == b".." || name.contains(&0);
    if names.len() > PATH_DEPTH_MAX || names.iter().any(bad) {
        return Err(ControlError::usage(format!("{}: not a path", below.display())));
    }
    Ok(names)
}

/// The names that lead from the root to a live directory.
pub(super) fn names_to(volume: &Volume, dir: Ino) -> Result<Vec<Vec<u8>>, ControlError> {
    let gone = || ControlError::failed("the directory has been removed meanwhile; try again");
    let mut path = Vec::new();
    let mut at = dir;
    while at != Ino::ROOT {
        let (parent, name) = volume.name_of(at).map_err(|_| gone())?.ok_or_else(gone)?;
        path.push(name);
        at = parent;
        if path.len() > PATH_DEPTH_MAX {
            return Err(gone());
        }
    }
    path.reverse();
    Ok(path)
}

/// A path for messages.
pub(super) fn join(names: &[Vec<u8>]) -> PathBuf {
    if names.is_empty() {
        return PathBuf::from(HERE);
    }
    names.iter().map(|name| OsStr::from_bytes(name)).collect()
}
