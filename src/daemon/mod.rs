//! The server process and how to reach it: control socket, protocol, registry of running servers, starting
//! one. `server` does the work behind the socket, `offline` the same work without a server.

pub mod client;
pub mod control;
pub mod handler;
mod keys;
pub mod lines;
pub mod logging;
pub mod mount_options;
pub mod offline;
pub mod protocol;
pub mod registry;
pub mod report;
mod rights;
pub mod server;
pub mod spawn;
mod status;
pub mod sys;
pub mod text;

// `cli` sits above `daemon` and must not reach past it.
pub use crate::store::keys::{KeyMaterial, keyfile};
pub use crate::store::{CreateOptions, Created, create};
