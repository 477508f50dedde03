//! rewindfs: a filesystem over your training data and models that remembers every moment of it.
//!
//! The crate is laid out in layers, and imports point only downward. `tests/it/layers.rs` reads every `use`
//! line and fails on an upward import or a cycle:
//!
//! | layer | may import |
//! |---|---|
//! | `types` | nothing |
//! | `arena` | `types` |
//! | `store` | `types` |
//! | `volume` | `store`, `arena`, `types` |
//! | `mount` | `volume`, `store`, `arena`, `types` |
//! | `daemon` | all of these |
//! | `cli` | `daemon`, `types` |

pub mod arena;
pub mod cli;
pub mod daemon;
pub mod mount;
pub mod store;
pub mod types;
pub mod volume;
