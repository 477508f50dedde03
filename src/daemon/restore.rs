//! Restoring in a mounted volume, with the caller's own rights.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use super::control::Caller;
use super::handler::Handler;
use super::places::{join, names, names_to};
use super::protocol::{
    ControlError, Kind, PastPlace, Place, Progress, Response, RestoreReport, RestoreRequest, Target,
};
use super::rights::{control_error, user_of, volume_for};
use crate::store::model::FileKind;
use crate::types::point::Point;
use crate::types::{Ino, Lsn};
use crate::volume::restore::{Restore, Restored};
use crate::volume::{FsError, Volume};

pub(super) fn point(volume: &Volume, text: &str) -> Result<Lsn, ControlError> {
    let point = Point::from_str(text).map_err(|e| ControlError::usage(format!("POINT {text:?} {e}")))?;
    volume.resolve(&point).map_err(|e| match e {
        FsError::NotFound => ControlError::failed(format!("there is no snapshot named {text}")),
        e => control_error(&format!("POINT {text}"), e),
    })
}

fn taken(to: &str) -> ControlError {
    ControlError::failed(format!("{to}: it exists already; give a new name"))
}

impl Handler {
    /// The volume of a place whose directory the caller could reach, and the names that lead to it now.
    pub(super) fn open_place(
        &self,
        caller: &Caller,
        place: &Place,
    ) -> Result<(Arc<Volume>, Vec<Vec<u8>>), ControlError> {
        let target = Target::File { volume: place.volume.clone(), ino: place.dir };
        let volume = volume_for(&self.volumes, self.owner, caller, &target, 0)?;
        let mut path = names_to(&volume, Ino(place.dir))?;
        path.extend(names(&place.below)?);
        Ok((volume, path))
    }

    /// Where the kernel shows the past of a place, for a caller who reads it with own rights.
    pub(super) fn past_place(
        &self,
        caller: &Caller,
        place: &Place,
        at: &str,
    ) -> Result<Response, ControlError> {
        let (volume, path) = self.open_place(caller, place)?;
        let lsn = point(&volume, at)?;
        let snapshots = self.mounts.as_ref().and_then(|mounts| mounts.snapshots_of(volume.id()));
        let snapshots = snapshots.ok_or_else(|| {
            ControlError::in_use(format!(
                "a server runs for this store and volume {} is not mounted; mount it, or unmount the others",
                volume.name()
            ))
        })?;
        let path = join(&path);
        let source = snapshots.join(format!("@lsn:{lsn}")).join(&path);
        Ok(Response::PastPlace(PastPlace { source, path, lsn: lsn.0 }))
    }

    pub(super) fn restore(
        &self,
        caller: &Caller,
        request: &RestoreRequest,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Response, ControlError> {
        let (volume, path) = self.open_place(caller, &request.place)?;
        let mounted =
            self.mounts.as_ref().and_then(|m| m.list().into_iter().find(|m| m.volume == volume.name()));
        let (Some(mounts), Some(mounted)) = (&self.mounts, mounted) else {
            let text = "without a mount a tree can only be written out: say --to DIR";
            return Err(ControlError::usage(text));
        };
        if mounts.is_read_only(&mounted.mountpoint) && !request.dry_run {
            return Err(ControlError::failed(format!(
                "{} is mounted read-only; use --to to bring it back elsewhere",
                mounted.mountpoint.display()
            )));
        }
        let (at, shown) = (point(&volume, &request.at)?, join(&path));
        let what = format!("restoring {} of volume {}", shown.display(), volume.name());
        let to = request.to.as_ref().map(|to| self.target(caller, &volume, to)).transpose()?;
        let actor = user_of(caller, self.owner);
        let shown_to = to.as_ref().map(|(.., shown)| shown.display().to_string());
        let restore = Restore { at, path, to: to.map(|(dir, name, _)| (dir, name)), actor };
        let mut told = |what: &'static str, done, total| {
            let (what, unit) = (what.to_owned(), "files".to_owned());
            progress(Progress { what, done, total, unit });
        };
        let Restored { snapshot, counts, touched } = self
            .volumes
            .restore(&volume, &restore, request.dry_run, &mut told)
            .map_err(|e| match (e, &shown_to) {
                (FsError::Exists, Some(to)) => taken(to),
                (e, _) => control_error(&what, e),
            })?;
        let snapshot = snapshot.map(|row| row.spec.name);
        mounts.tell(volume.id(), &touched).map_err(|e| {
            let before = snapshot.as_deref().map_or(String::new(), |s| format!(" (before it: snapshot {s})"));
            ControlError::new(
                Kind::Partial,
                format!(
                    "{what} is done{before}, but programs may see the old names until it is remounted: {e}"
                ),
            )
        })?;
        Ok(Response::Restored(Box::new(RestoreReport {
            volume: volume.name().to_owned(),
            path: shown.display().to_string(),
            lsn: at.0,
            dry_run: request.dry_run,
            snapshot,
            to: shown_to,
            brought_back: counts.brought_back,
            replaced: counts.replaced,
            removed: counts.removed,
            bytes: counts.bytes,
            ..RestoreReport::default()
        })))
    }

    /// The live directory and the name that a copy gets in it.
    fn target(
        &self,
        caller: &Caller,
        volume: &Volume,
        to: &Place,
    ) -> Result<(Ino, Vec<u8>, PathBuf), ControlError> {
        let (other, path) = self.open_place(caller, to)?;
        if other.id() != volume.id() {
            return Err(ControlError::usage("--to lies in another volume"));
        }
        let shown = join(&path);
        let mut below = names(&to.below)?;
        let name = below.pop().ok_or_else(|| taken(&shown.display().to_string()))?;
        let dir = Ino(to.dir);
        let is_dir = volume.getattr(None, dir).is_ok_and(|attr| attr.attrs.kind == FileKind::Dir);
        if !below.is_empty() || !is_dir {
            return Err(ControlError::failed(format!("{}: its directory does not exist", shown.display())));
        }
        Ok((dir, name, shown))
    }
}
