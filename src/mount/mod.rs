//! The FUSE adapter: translates requests into calls of a [`Volume`](crate::volume::Volume) and back, and
//! keeps nothing that a request needs. Everything an operation must know is in the node id.

mod connection;
mod convert;
mod errno;
mod fs;
mod kernel;
pub mod nodeid;
mod orphans;
mod outcomes;
mod prefault;
mod session;
mod settings;
mod snapdir;
mod views;

pub use connection::{Connection, Negotiated, refuse, resend};
pub use kernel::{KernelOptions, is_mounted, unmount};
pub use session::Mounted;
pub use settings::{Attribute, Settings};
