//! Packs: append-only files of sealed chunks, `packs/<16 hex digits>.pack`.
//!
//! A pack is a header, frames back to back, and, once it is finished, a footer that lists them. Rules:
//!
//! * Bytes never change once written; only whole packs are deleted. Pack numbers are never used again.
//! * A frame says what it is (chunk id, lengths, codec) and carries a CRC-32C of its header and of its sealed
//!   body, so that structure can be checked, repaired and copied without a key. The body itself is
//!   authenticated by its seal, and what comes out of it by the keyed hash that names the chunk.
//! * The CRC of a header starts from the store id and the pack number: a pack file that was itself stored as
//!   a user's file cannot be mistaken for frames of the pack around it.
//! * A footer is written only after the frames it lists are durable: a whole footer means whole frames.
//! * After a crash, writing always goes on in a new pack. The unfinished one is read as it is and never gets
//!   a footer; scanning does without.
//!
//! `frame` has the byte layouts, `writer` appends, `reader` serves, `recovery` scans.

pub mod frame;
pub mod reader;
pub mod recovery;
pub mod writer;

#[cfg(test)]
mod tests;

pub use frame::{FOOTER_BYTES_MAX, SealedChunk};
pub use reader::PackReader;
pub use recovery::{Damage, Footer, ScanReport, Trust, scan};
pub use writer::{PackWriter, make_durable, write_footer_anew};

use crate::types::error::IoContext as _;
use crate::types::wire::{Decoder, Encoder, WireError};
use crate::types::{Disk, PackId, Result};
use std::path::{Path, PathBuf};

/// Where a chunk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    /// The pack.
    pub pack: PackId,
    /// Offset of the frame in it, in bytes.
    pub offset: u64,
    /// Bytes of the sealed body.
    pub stored_len: u32,
    /// Bytes of the chunk, unpacked.
    pub raw_len: u32,
    /// Number of the codec; see [`Codec`](super::codec::Codec).
    pub codec: u8,
}

impl Location {
    /// Of a chunk whose bytes are lost: it is still counted, reading it fails, and storing the same bytes
    /// again brings it back.
    pub const LOST: Location =
        Location { pack: PackId(u64::MAX), offset: 0, stored_len: 0, raw_len: 0, codec: 0 };

    /// Whether this is [`Location::LOST`].
    pub fn is_lost(&self) -> bool {
        *self == Location::LOST
    }

    /// Bytes that the chunk takes in its pack, frame header included.
    pub fn frame_bytes(&self) -> u64 {
        frame::FRAME_HEADER_BYTES as u64 + u64::from(self.stored_len)
    }

    /// Appends the stored form, at most 27 bytes: the first four fields as varints, then the codec.
    pub fn encode(&self, e: &mut Encoder) {
        e.varint(self.pack.0).varint(self.offset).varint(self.stored_len.into());
        e.varint(self.raw_len.into()).u8(self.codec);
    }

    /// Takes the stored form off `d`.
    ///
    /// # Errors
    /// An input that ends early, or lengths that no frame has.
    pub fn decode(d: &mut Decoder<'_>) -> Result<Location, WireError> {
        let (pack, offset) = (PackId(d.varint()?), d.varint()?);
        let stored_len = d.count(frame::STORED_BYTES_MAX, "stored length")? as u32;
        let raw_len = d.count(crate::types::limits::CHUNK_MAX_BYTES, "chunk length")? as u32;
        Ok(Location { pack, offset, stored_len, raw_len, codec: d.u8()? })
    }
}

/// The file of a pack.
pub fn pack_path(dir: &Path, pack: PackId) -> PathBuf {
    dir.join(format!("{:016x}.pack", pack.0))
}

/// Whether a pack has been deleted.
pub fn is_gone(disk: &dyn Disk, dir: &Path, pack: PackId) -> bool {
    disk.open(&pack_path(dir, pack), false).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
}

/// The packs in `dir`, ascending; other files are ignored.
///
/// # Errors
/// [`Error::Io`](crate::types::Error::Io) naming the directory.
pub fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<PackId>> {
    let names = disk.list(dir).at("listing", dir)?;
    let mut packs: Vec<PackId> = names.iter().filter_map(|name| parse_name(name.to_str()?)).collect();
    packs.sort_unstable();
    Ok(packs)
}

fn parse_name(name: &str) -> Option<PackId> {
    let digits = name.strip_suffix(".pack")?;
    let number = crate::types::ids::unhex::<8>(digits).map(u64::from_be_bytes)?;
    // Upper-case digits would name another file than the one that `pack_path` opens.
    (!digits.bytes().any(|b| b.is_ascii_uppercase())).then_some(PackId(number))
}
