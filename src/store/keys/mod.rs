//! Keys: who may read the store, and how every secret byte of it is sealed.
//!
//! | file | holds |
//! |---|---|
//! | `xaes` | XAES-256-GCM, the one cipher of the store |
//! | `secrets` | the keys of an unlocked store, in memory only |
//! | `seal` | [`Sealer`]: the envelope around chunks, records and index values, and all keyed hashes |
//! | `keyfile` | [`KeyMaterial`] and its text form, as a key file and as a printed recovery key |
//! | `keyring` | [`Keyring`]: the file in the store that wraps the secrets under one or more keys |
//! | `slots` | one wrapped copy of the master key |

pub mod keyfile;
pub mod keyring;
pub mod seal;
pub mod secrets;
mod slots;
mod xaes;

pub use keyfile::KeyMaterial;
pub use keyring::Keyring;
pub use seal::{SealError, Sealer};
pub use secrets::Secrets;
pub use slots::{SlotInfo, SlotKind};
