//! `upgrade`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;

use super::{Outcome, io_error, output, resolve, shown};
use crate::daemon::client::Backend as _;
use crate::daemon::protocol::{ControlError, Progress, Request, Response};
use crate::daemon::registry::{self, Entry, Found};

/// How long the next server may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Replace the running servers by another version of the program, without unmounting.
#[derive(Debug, Args)]
pub(super) struct Upgrade {
    /// The program that is to serve from now on [default: this one].
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Only the server of this store [default: all that the caller may].
    #[arg(long, value_name = "STORE")]
    store: Option<PathBuf>,
}

impl Upgrade {
    pub(super) fn run(self) -> Outcome {
        let program = match &self.binary {
            Some(path) => path.canonicalize().map_err(|e| io_error("reading", path, &e))?,
            None => std::env::current_exe().map_err(|e| io_error("finding", "this program", &e))?,
        };
        let mut entries = registry::running();
        if let Some(store) = &self.store {
            let store = resolve::store_directory(store)?;
            entries.retain(|entry| entry.store == store);
        }
        if entries.is_empty() {
            output::line("no server runs")?;
        }
        for entry in entries {
            let text = replace(&entry, program.clone())?;
            output::line(&text)?;
        }
        output::done()
    }
}

fn version(entry: &Entry) -> Option<String> {
    match resolve::server_of(&entry.store, entry).call(Request::Ping {}, &mut |_: Progress| {}) {
        Ok(Response::Pong { version, .. }) => Some(version),
        _ => None,
    }
}

/// Replaces one server, and waits until the next one serves.
fn replace(entry: &Entry, program: PathBuf) -> Result<String, ControlError> {
    let before = version(entry).unwrap_or_else(|| "unknown".to_owned());
    resolve::server_of(&entry.store, entry).call(Request::Upgrade { program }, &mut |_: Progress| {})?;
    let node = registry::node_of(&entry.store)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match registry::find(&entry.store, node) {
            Found::Running(new) if new.pid != entry.pid && !new.mounts.is_empty() => {
                let after = version(&new).unwrap_or_else(|| "unknown".to_owned());
                let store = shown(&entry.store);
                return Ok(format!(
                    "{store}: {before} (process {}) -> {after} (process {})",
                    entry.pid, new.pid
                ));
            }
            Found::Failed(new) => return Err(resolve::servers_die(&new)),
            _ if Instant::now() >= deadline => {
                let text = format!("{}: the next server does not answer; see its log", shown(&entry.store));
                return Err(ControlError::failed(text));
            }
            _ => std::thread::sleep(PAUSE),
        }
    }
}
