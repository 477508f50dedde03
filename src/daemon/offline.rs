//! The same work without a server: the store is opened in this process for one command.

use std::path::Path;
use std::sync::Arc;

use super::client::Backend;
use super::control::Local;
use super::handler::Handler;
use super::protocol::{ControlError, Progress, Request, Response};
use super::rights::control_error;
use crate::store::{OpenOptions, Store};
use crate::volume::Volumes;

struct Offline {
    local: Local<Handler>,
    volumes: Arc<Volumes>,
}

impl Backend for Offline {
    fn call(&self, request: Request, progress: &mut dyn FnMut(Progress)) -> Result<Response, ControlError> {
        self.local.call(request, progress)
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        if let Err(e) = self.volumes.close() {
            tracing::error!(error = %e, "closing the store");
        }
    }
}

/// Opens the store in `path` for commands that need no mount.
///
/// # Errors
/// As [`Store::open`].
pub fn open(path: &Path, key_file: Option<&Path>) -> Result<Box<dyn Backend>, ControlError> {
    let options = OpenOptions { key_file: key_file.map(Path::to_owned), ..OpenOptions::default() };
    let store = Store::open(path, options, &mut |_, _| {})?;
    let volumes = Arc::new(Volumes::new(store).map_err(|e| control_error("opening the store", e))?);
    let handler = Handler::new(volumes.clone(), None, key_file.map(Path::to_owned))?;
    Ok(Box::new(Offline { local: Local(handler), volumes }))
}
