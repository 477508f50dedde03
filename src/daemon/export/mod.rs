//! Writing a tree of the past out as ordinary files, by the process and with the rights of whoever asks for it.
//!
//! A file appears under its name when it is whole: it is written aside, into a directory of the destination that
//! also says what is being written. As long as that is there, the destination is an unfinished restore, which the
//! same command goes on with; what is there already is compared byte by byte and then left alone.

mod source;
mod write;
mod xattr;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::offline::open_store;
use super::protocol::{ControlError, PastPlace, Progress, RestoreReport};
use super::rights::control_error;
use super::text::wire_path;
use crate::store::OpenMode;
use crate::types::{Ino, Lsn};
use crate::volume::FsError;
use source::{Shown, Source, Spot, Stored};
use write::Writer;

/// Bytes read and written at a time.
const BUFFER_BYTES: usize = 1 << 20;
/// The directory that an unfinished destination has.
const ASIDE: &str = ".rewindfs-restore";
/// What it says, in that directory.
const FROM: &str = "from.json";

/// What a destination is being filled with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    /// The store, by the id of its node.
    pub node: String,
    /// The volume.
    pub volume: String,
    /// The path from its root.
    #[serde(with = "wire_path")]
    pub path: PathBuf,
    /// The point as it was typed.
    pub at: String,
    /// The record that it meant at first.
    pub lsn: u64,
}

impl Unfinished {
    /// Whether it is this restore, whatever moment the point means by now.
    pub fn is_of(&self, node: &str, volume: &str, at: &str) -> bool {
        self.node == node && self.volume == volume && self.at == at
    }
}

fn failed(what: &str, path: &Path, error: &io::Error) -> ControlError {
    ControlError::failed(format!("{what} {}: {error}", path.display()))
}

/// What is being restored to `dest`, if a restore to it was not finished.
pub fn unfinished(dest: &Path) -> Option<Unfinished> {
    serde_json::from_slice(&fs::read(dest.join(ASIDE).join(FROM)).ok()?).ok()
}

/// Makes sure that `dest` does not exist, is empty, or is the unfinished restore `what`; then it is that.
/// Returns whether it was.
fn begin(dest: &Path, what: &Unfinished) -> Result<bool, ControlError> {
    if let Some(found) = unfinished(dest) {
        if found == *what {
            return Ok(true);
        }
        return Err(ControlError::failed(format!(
            "{} is the unfinished restore of {} of volume {} at {}; finish that, or remove it",
            dest.display(),
            found.path.display(),
            found.volume,
            found.at
        )));
    }
    match fs::read_dir(dest) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(ControlError::failed(format!("{} exists and is not empty", dest.display())));
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            fs::create_dir(dest).map_err(|e| failed("making", dest, &e))?;
        }
        Err(e) => return Err(failed("looking at", dest, &e)),
    }
    let aside = dest.join(ASIDE);
    fs::create_dir(&aside).map_err(|e| failed("making", &aside, &e))?;
    let text = serde_json::to_vec(what).map_err(|e| ControlError::failed(format!("writing JSON: {e}")))?;
    // Renamed, so that it is there as a whole or not at all.
    let (part, from) = (aside.join("part"), aside.join(FROM));
    fs::write(&part, text)
        .and_then(|()| fs::rename(&part, &from))
        .map_err(|e| failed("writing", &from, &e))?;
    Ok(false)
}

/// Refuses a destination within the store: what it seals must not lie in it in plain text, and nothing of others'
/// among its files. By the directories themselves, so that neither links nor `..` nor bind mounts lead there.
fn refuse_within(store: &Path, dest: &Path) -> Result<(), ControlError> {
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let Some(forbidden) = identity(store) else { return Ok(()) };
    let absolute = std::path::absolute(dest).map_err(|e| failed("looking at", dest, &e))?;
    // What does not exist yet will be made in the nearest directory that does.
    let Some(nearest) = absolute.ancestors().find_map(|path| path.canonicalize().ok()) else { return Ok(()) };
    if nearest.ancestors().any(|dir| identity(dir) == Some(forbidden)) {
        return Err(ControlError::failed(format!(
            "{} lies within the store {}; name a place outside of it",
            dest.display(),
            store.display()
        )));
    }
    Ok(())
}

/// Writes a tree out. Failures on single files are in the report; nothing half written has a name.
fn export(
    source: &dyn Source,
    root: u64,
    dest: &Path,
    what: &Unfinished,
    progress: &mut dyn FnMut(Progress),
) -> Result<RestoreReport, ControlError> {
    let spot = Spot { path: PathBuf::new(), ino: root };
    let node = source.node(&spot).map_err(|e| failed("looking at", &what.path, &e))?;
    let mut report = RestoreReport {
        volume: what.volume.clone(),
        path: what.path.display().to_string(),
        lsn: what.lsn,
        to: Some(dest.display().to_string()),
        ..RestoreReport::default()
    };
    let is_dir = node.kind == crate::store::model::FileKind::Dir;
    if !is_dir {
        if fs::symlink_metadata(dest).is_ok() {
            return Err(ControlError::failed(format!("{} exists already", dest.display())));
        }
        let dir = dest.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !dir.is_dir() {
            return Err(ControlError::failed(format!("{}: its directory does not exist", dest.display())));
        }
        let mut name = dest.file_name().unwrap_or_default().to_owned();
        name.push(".rewindfs-part");
        Writer::new(source, dest, dest.with_file_name(name), false, &mut report, progress)
            .file(&spot, &node)?;
        return Ok(report);
    }
    let resumed = begin(dest, what)?;
    let aside = dest.join(ASIDE);
    let mut writer = Writer::new(source, dest, aside.join("part"), resumed, &mut report, progress);
    writer.tree(&spot)?;
    // What has a name is on the disk before the destination stops being an unfinished one.
    let dir = fs::File::open(dest).map_err(|e| failed("opening", dest, &e))?;
    nix::unistd::syncfs(&dir).map_err(|e| failed("syncing", dest, &e.into()))?;
    if writer.is_complete() {
        fs::remove_dir_all(&aside).map_err(|e| failed("removing", &aside, &e))?;
    }
    // Last: it may not be for its owner to write in.
    writer.finish(&spot, &node);
    Ok(report)
}

/// Writes out what a mount of `store` shows at `past`.
///
/// # Errors
/// What keeps the whole from being written; see [`RestoreReport::failed`] for single files.
pub fn from_mount(
    past: &PastPlace,
    (store, dest): (&Path, &Path),
    what: &Unfinished,
    progress: &mut dyn FnMut(Progress),
) -> Result<RestoreReport, ControlError> {
    refuse_within(store, dest)?;
    export(&Shown { root: past.source.clone() }, 0, dest, what, progress)
}

/// Writes out a whole volume of a store that nobody has open.
///
/// # Errors
/// As [`from_mount`]; and as opening the store.
pub fn from_store(
    (store, key_file): (&Path, Option<&Path>),
    what: Unfinished,
    dest: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<RestoreReport, ControlError> {
    refuse_within(store, dest)?;
    let opened = open_store(store, key_file, OpenMode::ReadOnly)?;
    let name = format!("volume {}", what.volume);
    let volume = opened.open(&what.volume).map_err(|e| control_error(&name, e))?;
    let at = match unfinished(dest) {
        Some(found) if found.is_of(&what.node, &what.volume, &what.at) => Lsn(found.lsn),
        _ => super::restore::point(&volume, &what.at)?,
    };
    if !volume.is_readable(at) {
        return Err(control_error(&format!("POINT {}", what.at), FsError::Stale));
    }
    let what = Unfinished { lsn: at.0, ..what };
    export(&Stored { volume, at }, Ino::ROOT.0, dest, &what, progress)
}
