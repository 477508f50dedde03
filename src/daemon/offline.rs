//! The same work without a server: the store is opened in this process for one command, and only as far as
//! that command needs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::client::Backend;
use super::control::Local;
use super::handler::Handler;
use super::news::Listener;
use super::protocol::{ControlError, FsckReport, Progress, RepairReport, Request, Response};
use super::rights::control_error;
use crate::arena;
use crate::store::repair::repair;
use crate::store::{OpenMode, OpenOptions, Store, identify};
use crate::volume::Volumes;

/// A store that is opened for each request.
struct Offline {
    store: PathBuf,
    key_file: Option<PathBuf>,
}

/// A store opened in this process; closing it makes everything durable.
pub(super) struct Opened {
    local: Local<Handler>,
    volumes: Arc<Volumes>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Err(e) = self.volumes.close() {
            tracing::error!(error = %e, "closing the store");
        }
    }
}

/// What a request needs the store for.
fn mode_of(request: &Request) -> OpenMode {
    match request {
        Request::Ping {}
        | Request::VolumeList {}
        | Request::SnapshotList { .. }
        | Request::Restore(_)
        | Request::PastPlace { .. }
        | Request::Status { .. }
        | Request::Diff(_)
        | Request::Log(_)
        | Request::Fsck {}
        | Request::Scrub { .. }
        | Request::Gc { dry_run: true }
        | Request::KeyList {}
        | Request::VolumeDelete { dry_run: true, .. }
        | Request::SnapshotDelete { dry_run: true, .. } => OpenMode::ReadOnly,
        _ => OpenMode::ReadWrite,
    }
}

impl Backend for Offline {
    fn call(&self, request: Request, listener: &mut dyn Listener) -> Result<Response, ControlError> {
        if let Request::Repair { agreed } = &request {
            return self.repair(agreed.as_deref(), &mut |news| listener.progress(news));
        }
        let opened = open_for(&self.store, self.key_file.as_deref(), mode_of(&request))?;
        opened.local.call(request, listener)
    }
}

impl Offline {
    /// Whoever may open the store may repair it.
    fn repair(
        &self,
        agreed: Option<&str>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Response, ControlError> {
        let options = OpenOptions { key_file: self.key_file.clone(), ..OpenOptions::default() };
        let done = repair(&self.store, &options, agreed, &mut |what, done| {
            progress(Progress { what: what.to_owned(), done, total: 100, unit: "%".to_owned() });
        })?;
        let store = self.store.display().to_string();
        Ok(Response::Repair(Box::new(RepairReport {
            plan: done.plan.id(),
            dry_run: done.aside.is_none(),
            steps: done.plan.steps.iter().map(ToString::to_string).collect(),
            cannot: done.plan.cannot,
            aside: done.aside.map(|path| path.display().to_string()),
            failed: done.failed,
            fsck: FsckReport::of(store, &done.findings),
        })))
    }
}

/// Opens the store in `path`.
///
/// # Errors
/// As [`Store::open`].
pub(super) fn open_for(path: &Path, key_file: Option<&Path>, mode: OpenMode) -> Result<Opened, ControlError> {
    let volumes = open_store(path, key_file, mode)?;
    let handler = Handler::new(volumes.clone(), None, key_file.map(Path::to_owned))?;
    Ok(Opened { local: Local(handler), volumes })
}

/// The volumes of the store in `path`.
///
/// # Errors
/// As [`Store::open`].
pub(super) fn open_store(
    path: &Path,
    key_file: Option<&Path>,
    mode: OpenMode,
) -> Result<Arc<Volumes>, ControlError> {
    let options = OpenOptions { mode, key_file: key_file.map(Path::to_owned), ..OpenOptions::default() };
    open_volumes(Store::open(path, options, &mut |_, _| {})?)
}

/// The volumes of an open store. For writing this includes what a killed server left in memory.
pub(super) fn open_volumes(store: Arc<Store>) -> Result<Arc<Volumes>, ControlError> {
    if store.trouble().is_some() {
        note_left(&store);
    }
    let volumes = match store.read_only() {
        None => Volumes::surviving(store),
        Some(_) => Volumes::new(store),
    };
    Ok(Arc::new(volumes.map_err(|e| control_error("opening the store", e))?))
}

/// Says that acknowledged writes wait in memory for a store that cannot be written now.
fn note_left(store: &Store) {
    if let Some((path, bytes)) = arena::pending(store.path(), store.node()).filter(|(_, bytes)| *bytes > 0) {
        let path = path.display();
        store.note_problem(format!(
            "{bytes} bytes that were acknowledged and not committed are not shown; they wait in {path} for a mount \
             that can write, until this machine restarts"
        ));
    }
}

/// The store in `path`, for commands that need no mount.
///
/// # Errors
/// There is no store.
pub fn open(path: &Path, key_file: Option<&Path>) -> Result<Box<dyn Backend>, ControlError> {
    identify(path)?;
    Ok(Box::new(Offline { store: path.to_owned(), key_file: key_file.map(Path::to_owned) }))
}
