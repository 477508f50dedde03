//! Mounts as they come and go, and who may do what with them.

mod helper;
mod hostile;
mod metrics;
mod mounts;
mod server;
mod snapdir;
mod socket;
mod users;
