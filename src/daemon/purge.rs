//! Purging in a mounted volume, and going on with what was cut short.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::control::Caller;
use super::handler::Handler;
use super::mounts::Mounts;
use super::protocol::{
    ControlError, HERE, Progress, PurgeReport, PurgeRequest, PurgedName, Response, SharingFile,
};
use super::rights::control_error;
use super::watched::watched;
use crate::store::control::Control;
use crate::types::{Ino, VolumeId};
use crate::volume::purge::{Host, Past, Purged};
use crate::volume::restore::Touched;
use crate::volume::{FsError, Volume, Volumes};

/// Between two looks for purges that were cut short.
const ROUND: Duration = Duration::from_secs(2);
/// Before a purge that could not be carried through is tried again; doubled each time, up to [`RETRY_MAX`].
const RETRY: Duration = Duration::from_secs(15);
/// See [`RETRY`].
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// How long its end waits for a step that is under way.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// The kernel where a volume is mounted.
struct Kernel<'a> {
    mounts: Option<&'a dyn Mounts>,
    volume: VolumeId,
}

impl Host for Kernel<'_> {
    fn tell(&self, touched: &Touched) -> Result<(), String> {
        self.mounts.map_or(Ok(()), |mounts| mounts.tell(self.volume, touched)).map_err(|e| e.message)
    }

    fn tell_past(&self, past: &Past) -> Result<(), String> {
        self.mounts.map_or(Ok(()), |mounts| mounts.tell_past(self.volume, past)).map_err(|e| e.message)
    }

    fn holds(&self, inodes: &[Ino]) -> Vec<Ino> {
        self.mounts.map_or_else(Vec::new, |mounts| mounts.holds(self.volume, inodes))
    }
}

impl Handler {
    pub(super) fn purge(
        &self,
        caller: &Caller,
        request: &PurgeRequest,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Response, ControlError> {
        self.admin(caller, "purging")?;
        let (volume, names) = self.open_place(caller, &request.place)?;
        let shown = super::places::join(&names).display().to_string();
        if request.place.below == Path::new(HERE) {
            return Err(is_directory(&shown));
        }
        let mounted = self.mounts.as_ref().map(|mounts| mounts.list()).unwrap_or_default();
        let mounted = mounted.into_iter().find(|mount| mount.volume == volume.name());
        if let (Some(mounts), Some(mount)) = (&self.mounts, mounted)
            && mounts.is_read_only(&mount.mountpoint)
            && !request.dry_run
        {
            let text =
                format!("{} is mounted read-only; nothing is purged there", mount.mountpoint.display());
            return Err(ControlError::failed(text));
        }
        let host = Kernel { mounts: self.mounts.as_deref(), volume: volume.id() };
        let control = Control::new(0);
        let failed = |e| match e {
            FsError::NotFound => {
                ControlError::failed(format!("{shown}: nothing of that name is known, now or before"))
            }
            FsError::IsDir => is_directory(&shown),
            e => control_error(&format!("purging {shown}"), e),
        };
        let purged = watched(&control, progress, || {
            let path = volume.name_path(Ino::ROOT, &names)?;
            match self.volumes.purge(&volume, &path, request.dry_run, &host, &control) {
                // What an earlier one has taken away by name is still to be carried through.
                Err(FsError::NotFound) if !request.dry_run => {
                    let resumed = self.volumes.resume_purge(&volume, &host, &control)?;
                    resumed.map(|purged| (purged, true)).ok_or(FsError::NotFound)
                }
                purged => purged.map(|purged| (purged, false)),
            }
        })?;
        let (purged, resumed) = purged.map_err(failed)?;
        let volume = volume.name().to_owned();
        Ok(Response::Purged(Box::new(report(volume, shown, request.dry_run, resumed, purged))))
    }
}

fn is_directory(shown: &str) -> ControlError {
    ControlError::usage(format!("{shown} is a directory; purge erases files, one at a time"))
}

fn report(volume: String, path: String, dry_run: bool, resumed: bool, purged: Purged) -> PurgeReport {
    let path_of = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    let name = |name: &crate::volume::purge::PurgedName| PurgedName {
        path: path_of(&name.path),
        live: name.live,
        versions: name.versions,
    };
    let file =
        |(volume, path): &(String, Vec<u8>)| SharingFile { volume: volume.clone(), path: path_of(path) };
    PurgeReport {
        volume,
        path,
        dry_run,
        resumed,
        names: purged.names.iter().map(name).collect(),
        names_total: purged.names_total,
        files: purged.files,
        versions: purged.versions,
        snapshots: purged.snapshots,
        snapshots_total: purged.snapshots_total,
        bytes: purged.bytes,
        shared_bytes: purged.shared_bytes,
        shared_with: purged.shared_with.map(|files| files.iter().map(file).collect()),
        refused: purged.refused,
        bytes_go_when: purged.left,
        notes: purged.notes,
    }
}

/// The thread that goes on with purges that an earlier server began, or that wait for something. Dropping it ends
/// the thread after its current step, if that does not take long.
pub(super) struct Purger {
    stop: Arc<(Mutex<bool>, Condvar)>,
    /// Of a purge that is under way.
    control: Arc<Mutex<Option<Arc<Control>>>>,
    thread: Option<JoinHandle<()>>,
}

impl Purger {
    /// Starts it. Keeps neither volumes nor mounts open. Where the operating system gives no thread, purges wait for
    /// whoever purges next.
    pub(super) fn start(volumes: &Arc<Volumes>, mounts: Weak<dyn Mounts>) -> Purger {
        let stop: Arc<(Mutex<bool>, Condvar)> = Arc::default();
        let control: Arc<Mutex<Option<Arc<Control>>>> = Arc::default();
        let (volumes, signal, current) = (Arc::downgrade(volumes), stop.clone(), control.clone());
        let thread = std::thread::Builder::new().name("rewindfs-purge".into()).spawn(move || {
            let (mut retry, mut next) = (RETRY, Instant::now());
            loop {
                {
                    let (stopped, wake) = &*signal;
                    let mut stopped = stopped.lock();
                    if !*stopped {
                        wake.wait_for(&mut stopped, ROUND);
                    }
                    if *stopped {
                        return;
                    }
                }
                let (Some(volumes), Some(mounts)) = (volumes.upgrade(), mounts.upgrade()) else { return };
                if Instant::now() < next {
                    continue;
                }
                let control = Arc::new(Control::new(0));
                *current.lock() = Some(control.clone());
                let whole = round(&volumes, &*mounts, &control);
                *current.lock() = None;
                retry = if whole { RETRY } else { (retry * 2).min(RETRY_MAX) };
                next = if whole { Instant::now() } else { Instant::now() + retry };
            }
        });
        let thread = thread.inspect_err(|error| tracing::error!(%error, "no thread for purges")).ok();
        Purger { stop, control, thread }
    }
}

impl Drop for Purger {
    fn drop(&mut self) {
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
        if let Some(control) = &*self.control.lock() {
            control.cancel();
        }
        // One that waits for a volume to change again, which it never may when another server is to go on.
        let Some(thread) = self.thread.take() else { return };
        let since = Instant::now();
        while !thread.is_finished() && since.elapsed() < PATIENCE {
            std::thread::sleep(PAUSE);
        }
    }
}

/// Goes on with the purges of all volumes. Whether nothing is left of them.
fn round(volumes: &Volumes, mounts: &dyn Mounts, control: &Control) -> bool {
    if volumes.store().read_only().is_some() {
        return true;
    }
    let mut whole = true;
    for name in volumes.names() {
        let Ok(volume) = volumes.open(&name) else { continue };
        match resume(volumes, &volume, mounts, control) {
            Ok(None) => {}
            Ok(Some(purged)) if purged.left.is_empty() => {
                tracing::info!(volume = %name, files = purged.files, "a purge was carried through");
            }
            Ok(Some(purged)) => {
                whole = false;
                tracing::info!(volume = %name, "bytes of a purge go when {}", purged.left.join("; "));
            }
            Err(error) => {
                whole = false;
                tracing::warn!(volume = %name, %error, "a purge cannot go on yet");
            }
        }
    }
    whole
}

fn resume(
    volumes: &Volumes,
    volume: &Volume,
    mounts: &dyn Mounts,
    control: &Control,
) -> Result<Option<Purged>, FsError> {
    if !volumes.has_purges(volume)? {
        return Ok(None);
    }
    let host = Kernel { mounts: Some(mounts), volume: volume.id() };
    volumes.resume_purge(volume, &host, control)
}
