//! The FUSE adapter: translates requests into calls of a [`Volume`](crate::volume::Volume) and back, and
//! keeps nothing that a request needs. Everything an operation must know is in the node id.

mod answers;
mod connection;
mod convert;
mod errno;
mod fs;
mod inner;
mod kernel;
mod listing;
pub mod nodeid;
mod notify;
mod orphans;
mod outcomes;
mod prefault;
mod session;
mod settings;
mod snapdir;
mod views;

pub use connection::{Connection, Negotiated, refuse, resend};
pub use kernel::{KernelOptions, is_mounted, unmount};
pub use notify::{forget_entry, forget_inode, forget_name, forget_pages};
pub use session::{Mounted, PastNodes};
pub use settings::{Attribute, Settings};
