//! rewindfs: a filesystem over your training data and models that remembers every moment of it.
//!
//! The crate is laid out in layers, and imports point only downward. `tests/it/layers.rs` reads every `use`
//! line and fails on an upward import or a cycle:
//!
//! | layer | may import |
//! |---|---|
//! | `types` | nothing |
//! | `store` | `types` |
//! | `volume` | `store`, `types` |
//! | `mount` | `volume`, `store`, `types` |
//! | `daemon` | all of these |
//! | `cli` | `daemon`, `types` |

pub mod cli;
pub mod daemon;
pub mod mount;
pub mod store;
pub mod types;
pub mod volume;
