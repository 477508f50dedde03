//! The vocabulary every other layer shares: identifiers, limits, errors, the wire codec and the seams to
//! the disk and the clock. Imports nothing from the rest of the crate.

pub mod clock;
pub mod disk;
pub mod error;
pub mod ids;
pub mod limits;
pub mod point;
pub mod text;
pub mod wire;

pub use clock::{Clock, SystemClock, Timestamp};
pub use disk::{Disk, DiskFile, OsDisk, Space};
pub use error::{Error, Result};
pub use ids::{ChunkId, Ino, Lsn, NodeUuid, PackId, StoreUuid, Term, VolumeId};
