//! What programs notice when servers and holders are killed or replaced: nothing.

mod arena;
mod holder;
mod load;
mod refused;
pub mod server;
mod unsent;
mod upgrade;
