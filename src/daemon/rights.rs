//! Who may ask for what (the control socket is open to everyone).

use std::sync::Arc;

use super::control::Caller;
use super::protocol::{ControlError, Target};
use crate::store::model::{Attrs, FileKind};
use crate::types::Ino;
use crate::types::limits::PATH_DEPTH_MAX;
use crate::volume::{DEFAULT_VOLUME, FsError, SEARCH, User, Volume, Volumes, WRITE};

/// An error of the volume layer, about `what`.
pub(super) fn control_error(what: &str, error: FsError) -> ControlError {
    match error {
        FsError::Store(e) => e.into(),
        FsError::NotFound => ControlError::failed(format!("{what}: it does not exist")),
        FsError::Exists => ControlError::failed(format!("{what}: it exists already")),
        FsError::Invalid(why) => ControlError::usage(format!("{what}: {why}")),
        e => ControlError::failed(format!("{what}: {e}")),
    }
}

/// The volume that a target means, after making sure that the caller may do `wanted` with it.
pub(super) fn volume_for(
    volumes: &Volumes,
    owner: u32,
    caller: &Caller,
    target: &Target,
    wanted: u16,
) -> Result<Arc<Volume>, ControlError> {
    let (name, ino) = match target {
        Target::File { volume, ino } => (volume.as_str(), Ino(*ino)),
        Target::Volume { volume } => (volume.as_str(), Ino::ROOT),
        Target::Store => (DEFAULT_VOLUME, Ino::ROOT),
    };
    let volume = volumes.open(name).map_err(|e| control_error(&format!("volume {name}"), e))?;
    if let Some(user) = user_of(caller, owner) {
        check(&volume, &user, ino, wanted)?;
    }
    Ok(volume)
}

/// The caller as one who is held to modes and ACLs; None for root and the store's owner, who are not.
pub(super) fn user_of(caller: &Caller, owner: u32) -> Option<User> {
    let user = || User { uid: caller.uid, gid: caller.gid, groups: caller.groups.clone() };
    (!caller.is_root_or(owner)).then(user)
}

fn check(volume: &Volume, user: &User, ino: Ino, wanted: u16) -> Result<(), ControlError> {
    let denied = || {
        let verb = if wanted == WRITE { "write" } else { "read" };
        ControlError::failed(format!(
            "permission denied: you may not {verb} that path of volume {}",
            volume.name()
        ))
    };
    // The number is the caller's claim, so no detail of what lies there is told.
    let attrs = volume.getattr(None, ino).map_err(|_| denied())?.attrs;
    let granted = |ino, attrs: &Attrs| volume.granted(None, ino, attrs, user).map_err(|_| denied());
    if granted(ino, &attrs)? & wanted != wanted {
        return Err(denied());
    }
    let mut dir = if attrs.kind == FileKind::Dir { attrs.parent } else { Ino::ROOT };
    for _ in 0..PATH_DEPTH_MAX {
        let attrs = volume.getattr(None, dir).map_err(|_| denied())?.attrs;
        if granted(dir, &attrs)? & SEARCH == 0 {
            return Err(denied());
        }
        if dir == Ino::ROOT {
            return Ok(());
        }
        dir = attrs.parent;
    }
    Err(denied())
}
