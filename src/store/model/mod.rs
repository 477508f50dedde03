//! The items a volume is made of, with their byte encodings (docs/FORMAT.md, "Items").
//!
//! Every item splits into a *public* part, which the index keeps as it is, and a *secret* part (names, link
//! targets, extended attributes, inline bytes), which the index seals.

mod edit;
mod inode;
mod past;
mod policy;
mod recipe;
mod record;
mod request;
mod snapshot;

pub use edit::Edit;
pub use inode::{Attrs, Cut, Dirent, FileKind, Hidden, Inode, Xattr};
pub use past::{ForgetFrom, ItemKey, PastVersion};
pub use policy::{ImmutableStep, Policy, Retention, Share};
pub use recipe::{Piece, Recipe, Source};
pub use record::Record;
pub use request::RequestId;
pub use snapshot::{SnapshotKind, SnapshotSpec};

use crate::types::wire::WireError;

/// An item's two halves, encoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// What may stand in the index in plain.
    pub public: Vec<u8>,
    /// What must be sealed; empty when there is nothing to hide.
    pub secret: Vec<u8>,
}

/// A versioned item: what a head or a history entry holds.
pub trait Item: Sized {
    /// Encodes the item.
    fn split(&self) -> Split;
    /// Decodes the two halves.
    fn join(public: &[u8], secret: &[u8]) -> Result<Self, WireError>;
}
