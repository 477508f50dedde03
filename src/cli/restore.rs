//! `restore`.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr as _;

use clap::Args;

use super::progress::Display;
use super::resolve::{self, DEFAULT_VOLUME, Resolved};
use super::{Outcome, io_error, output, shown, unexpected};
use crate::daemon::export::{self, Unfinished};
use crate::daemon::protocol::{
    ControlError, HERE, Kind, PastPlace, Place, Request, Response, RestoreReport, RestoreRequest,
};
use crate::daemon::registry::{self, MountAttribute};
use crate::types::point::Point;

/// Bring back a file or a directory tree as it was.
///
/// In its place, which costs no data and is seen in one step; what is there now is in a snapshot that is taken
/// before, whose name is printed. With --to as a copy: inside the same mount without data, too, anywhere else as
/// ordinary files. A restore to another place that was interrupted goes on when it is run again.
#[derive(Debug, Args)]
pub(super) struct Restore {
    /// A path inside a mount, which need not exist any more; or a store directory, with --to.
    path: PathBuf,
    /// A snapshot's name, a time (@2026-11-21T10:00:00Z), how long ago (@10m) or a record (@lsn:N).
    #[arg(long, value_name = "POINT", value_parser = point)]
    at: String,
    /// Where the copy goes; a new name, or an empty directory outside of the mount.
    #[arg(long, value_name = "DEST")]
    to: Option<PathBuf>,
    /// The volume, with a store directory [default: main].
    #[arg(long)]
    volume: Option<String>,
    /// The key file, if it is not in its default place and no server runs.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Only say what would change.
    #[arg(long)]
    dry_run: bool,
    /// Report as one JSON object.
    #[arg(long)]
    json: bool,
}

/// A point, as it was typed.
pub(super) fn point(text: &str) -> Result<String, String> {
    Point::from_str(text).map(|_| text.to_owned()).map_err(|e| e.to_string())
}

/// A path in a mount: the mount, the directory that exists, and what is beneath it.
pub(super) struct Inside {
    mount: MountAttribute,
    pub(super) dir: PathBuf,
    pub(super) place: Place,
}

/// Finds the mount that a path lies in, which may not exist itself; None when it lies in none of ours.
pub(super) fn inside(path: &Path) -> Result<Option<Inside>, ControlError> {
    let mut at = std::path::absolute(path).map_err(|e| io_error("looking at", path, &e))?;
    let mut below = Vec::new();
    // A link is what is restored, not where it leads; a directory is both.
    while !fs::symlink_metadata(&at).is_ok_and(|m| m.is_dir()) {
        if !below.is_empty() && fs::metadata(&at).is_ok_and(|m| m.is_dir()) {
            break;
        }
        let last = at.components().next_back();
        let Some(Component::Normal(name)) = last else {
            return Err(ControlError::usage(format!("{}: not a path in a mount", shown(path))));
        };
        below.push(name.to_owned());
        if !at.pop() {
            return Ok(None);
        }
    }
    let dir = at.canonicalize().map_err(|e| io_error("looking at", &at, &e))?;
    let Some(mount) = resolve::mount_of(&dir)? else { return Ok(None) };
    let number = fs::metadata(&dir).map_err(|e| io_error("looking at", &dir, &e))?.ino();
    if number != mount.ino {
        let text = format!("{} lies in a snapshot; name the path in the live tree", shown(path));
        return Err(ControlError::usage(text));
    }
    let below = if below.is_empty() { HERE.into() } else { below.into_iter().rev().collect() };
    let place = Place { volume: mount.volume.clone(), dir: mount.ino, below };
    Ok(Some(Inside { mount, dir, place }))
}

impl Restore {
    pub(super) fn run(self) -> Outcome {
        let report = match inside(&self.path)? {
            Some(from) if self.volume.as_ref().is_some_and(|volume| *volume != from.mount.volume) => {
                return Err(ControlError::usage("--volume is for a store directory"));
            }
            Some(from) => self.mounted(&from)?,
            None => self.store()?,
        };
        self.print(&report)
    }

    /// Of a path in a mount.
    fn mounted(&self, from: &Inside) -> Result<RestoreReport, ControlError> {
        let resolved = resolve::path(&from.dir, None, self.key_file.as_deref())?;
        match &self.to {
            Some(dest) => match inside(dest)?.filter(|to| same_volume(&from.mount, &to.mount)) {
                Some(to) => self.ask(&resolved, from, Some(to.place)),
                None => self.written_out(
                    &resolved,
                    from.place.clone(),
                    (&from.mount.store, &from.mount.node),
                    dest,
                ),
            },
            None => {
                // What programs changed through shared mappings belongs to the snapshot that is taken.
                resolve::sync_mounts([from.dir.as_path()])?;
                self.ask(&resolved, from, None)
            }
        }
    }

    fn ask(
        &self,
        resolved: &Resolved,
        from: &Inside,
        to: Option<Place>,
    ) -> Result<RestoreReport, ControlError> {
        let (place, at, dry_run) = (from.place.clone(), self.at.clone(), self.dry_run);
        match resolved.ask(Request::Restore(RestoreRequest { place, at, to, dry_run }))? {
            Response::Restored(report) => Ok(*report),
            _ => Err(unexpected()),
        }
    }

    /// Writes out what a mount shows.
    fn written_out(
        &self,
        resolved: &Resolved,
        place: Place,
        (store, node): (&Path, &str),
        dest: &Path,
    ) -> Result<RestoreReport, ControlError> {
        self.refuse_dry_run()?;
        let volume = place.volume.clone();
        let ask = |at: String| match resolved.ask(Request::PastPlace { place: place.clone(), at })? {
            Response::PastPlace(past) => Ok::<PastPlace, ControlError>(past),
            _ => Err(unexpected()),
        };
        let past = match export::unfinished(dest).filter(|u| u.is_of(node, &volume, &self.at)) {
            // A moment keeps what it meant when the restore began.
            Some(unfinished) => ask(format!("@lsn:{}", unfinished.lsn))?,
            None => ask(self.at.clone())?,
        };
        let what = Unfinished {
            node: node.to_owned(),
            volume,
            path: past.path.clone(),
            at: self.at.clone(),
            lsn: past.lsn,
        };
        let mut display = Display::new();
        export::from_mount(&past, (store, dest), &what, &mut |news| display.show(&news))
    }

    fn refuse_dry_run(&self) -> Result<(), ControlError> {
        if self.dry_run {
            return Err(ControlError::usage(
                "--dry-run is for restoring within a mount: nothing is replaced here",
            ));
        }
        Ok(())
    }

    /// Of a store directory.
    fn store(&self) -> Result<RestoreReport, ControlError> {
        let store = resolve::store_directory(&self.path)?;
        let node = registry::node_of(&store)?;
        let volume = self.volume.clone().unwrap_or_else(|| DEFAULT_VOLUME.to_owned());
        let Some(dest) = &self.to else {
            let text =
                "without a mount a volume can only be written out: say --to DIR, or name a path in a mount";
            return Err(ControlError::usage(text));
        };
        if let registry::Found::Running(_) = registry::find(&store, node) {
            let target = crate::daemon::protocol::Target::Volume { volume: volume.clone() };
            let resolved = resolve::store(&store, target, self.key_file.as_deref())?;
            let place = Place { volume, dir: 1, below: HERE.into() };
            return self.written_out(&resolved, place, (&store, &node.to_string()), dest);
        }
        self.refuse_dry_run()?;
        let (at, path) = (self.at.clone(), HERE.into());
        let what = Unfinished { node: node.to_string(), volume, path, at, lsn: 0 };
        let mut display = Display::new();
        let key_file = self.key_file.as_deref();
        export::from_store((&store, key_file), what, dest, &mut |news| display.show(&news))
    }

    fn print(&self, report: &RestoreReport) -> Outcome {
        if self.json {
            output::json(report)?;
        } else {
            for line in lines(report) {
                output::line(&line)?;
            }
        }
        if report.failed.is_empty() {
            return output::done();
        }
        for failure in &report.failed {
            output::warn(&format!("not restored: {failure}"));
        }
        let count = report.failed.len() as u64 + report.more_failed;
        let text = format!("{count} parts could not be restored; the rest is there");
        Err(ControlError::new(Kind::Partial, text))
    }
}

fn same_volume(a: &MountAttribute, b: &MountAttribute) -> bool {
    (&a.node, &a.volume) == (&b.node, &b.volume)
}

fn lines(report: &RestoreReport) -> Vec<String> {
    let RestoreReport { brought_back, replaced, removed, skipped, .. } = report;
    let would = if report.dry_run { "would be " } else { "" };
    let mut counts = format!("{would}brought back {brought_back}, replaced {replaced}, removed {removed}");
    if *skipped > 0 {
        counts.push_str(&format!(", there already {skipped}"));
    }
    counts.push_str(&format!("; {} of data", output::bytes(report.bytes)));
    let before = report.snapshot.iter().map(|name| format!("snapshot of what was there before: {name}"));
    before.chain([counts]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_said_in_lines() {
        let report =
            RestoreReport { snapshot: Some("s".into()), brought_back: 2, ..RestoreReport::default() };
        let expected =
            ["snapshot of what was there before: s", "brought back 2, replaced 0, removed 0; 0 B of data"];
        assert_eq!(lines(&report), expected);
        let report = RestoreReport { dry_run: true, skipped: 3, bytes: 5, ..RestoreReport::default() };
        let expected = ["would be brought back 0, replaced 0, removed 0, there already 3; 5 B of data"];
        assert_eq!(lines(&report), expected);
    }

    #[test]
    fn a_path_outside_of_every_mount_is_in_none() {
        assert!(inside(Path::new("/proc/self/none/at/all")).unwrap().is_none());
        assert!(inside(Path::new("/..")).is_ok_and(|found| found.is_none()));
    }
}
