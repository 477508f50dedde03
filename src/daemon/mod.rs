//! The server process and how to reach it: control socket, protocol, registry of running servers, starting
//! one. `server` does the work behind the socket, `offline` the same work without a server.

pub mod care_report;
pub mod client;
pub mod control;
mod courier;
pub mod export;
pub mod handler;
mod history;
pub mod history_report;
pub mod holder;
mod keys;
pub mod lines;
pub mod logging;
pub mod metrics;
mod metrics_page;
pub mod mount_options;
mod mounts;
pub mod news;
pub mod offline;
mod places;
mod policy;
pub mod policy_report;
pub mod protocol;
mod purge;
pub mod purge_report;
pub mod registry;
pub mod report;
mod restore;
pub mod restore_report;
mod rights;
mod scrub;
pub mod server;
mod settings;
pub mod spawn;
mod status;
pub mod sys;
pub mod text;
pub mod times;
mod troubles;
mod upgrade;
mod watched;

// `cli` sits above `daemon` and must not reach past it.
pub use crate::mount::unmount;
pub use crate::store::keys::{KeyMaterial, keyfile};
pub use crate::store::{CreateOptions, Created};

/// Makes a store with its first volume, `main`.
///
/// # Errors
/// As [`crate::store::create`].
pub fn create(path: &std::path::Path, options: &CreateOptions) -> Result<Created, protocol::ControlError> {
    let created = crate::store::create(path, options)?;
    // Opening it for writing is what makes the volume, and proves that the key opens the store.
    drop(offline::open_for(path, created.key_file.as_deref(), crate::store::OpenMode::ReadWrite)?);
    Ok(created)
}
