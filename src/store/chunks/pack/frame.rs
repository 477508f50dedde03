//! The byte layouts of a pack: header, frame, footer. See `docs/FORMAT.md` for the tables.

use super::Location;
use crate::store::chunks::codec::{self, Codec};
use crate::store::keys::{SealError, Sealer};
use crate::types::limits::{CHUNK_MAX_BYTES, FORMAT_VERSION, PACK_CHUNKS_MAX};
use crate::types::wire::{Decoder, Encoder, WireError};
use crate::types::{ChunkId, PackId, StoreUuid};

const PACK_MAGIC: &[u8; 8] = b"RWFSPACK";
/// Bytes of a pack's header; the first frame follows.
pub const PACK_HEADER_BYTES: usize = 8 + 4 + 16 + 8 + 4;

pub(super) const FRAME_MAGIC: &[u8; 4] = b"RWFC";
/// Bytes of a frame before its body.
pub const FRAME_HEADER_BYTES: usize = 4 + 4 + 4 + 1 + 3 + 32 + 4 + 4;
/// The longest sealed body: codecs never make a chunk longer, sealing adds a constant.
pub const STORED_BYTES_MAX: usize = CHUNK_MAX_BYTES + Sealer::OVERHEAD;

pub(super) const FOOTER_MAGIC: &[u8; 4] = b"RWFI";
pub(super) const TAIL_MAGIC: &[u8; 8] = b"RWFSPEND";
/// Bytes after the footer's entries: footer offset, CRC, tail magic.
pub(super) const TAIL_BYTES: usize = 8 + 4 + 8;
/// Bytes of a footer without entries.
pub(super) const FOOTER_FIXED_BYTES: usize = 8 + TAIL_BYTES;
pub(super) const FOOTER_ENTRY_BYTES: usize = 32 + 8 + 4 + 4 + 1 + 3;
/// The longest footer that a decoder accepts.
pub const FOOTER_BYTES_MAX: usize = FOOTER_FIXED_BYTES + PACK_CHUNKS_MAX * FOOTER_ENTRY_BYTES;

/// What the CRC of every structure of one pack starts from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Salt(u32);

impl Salt {
    pub(super) fn new(store: StoreUuid, pack: PackId) -> Salt {
        Salt(crc32c::crc32c_append(crc32c::crc32c(&store.0), &pack.0.to_le_bytes()))
    }

    pub(super) fn crc(self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.0, bytes)
    }
}

/// The header of a new pack.
pub(super) fn encode_pack_header(store: StoreUuid, pack: PackId) -> Vec<u8> {
    let mut e = Encoder::with_capacity(PACK_HEADER_BYTES);
    e.raw(PACK_MAGIC).u32(FORMAT_VERSION).raw(&store.0).u64(pack.0);
    let mut bytes = e.finish();
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// What a pack's header says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PackHeader {
    pub(super) version: u32,
    pub(super) store: StoreUuid,
    pub(super) pack: PackId,
}

/// Reads a header; only whether it is whole is checked here, not whether it is the right one.
pub(super) fn decode_pack_header(bytes: &[u8; PACK_HEADER_BYTES]) -> Result<PackHeader, WireError> {
    let mut d = Decoder::new(bytes);
    let whole = d.raw(PACK_HEADER_BYTES - 4)?;
    if d.u32()? != crc32c::crc32c(whole) {
        return Err(WireError::Bad("pack header checksum"));
    }
    let mut d = Decoder::new(whole);
    if d.array()? != *PACK_MAGIC {
        return Err(WireError::Bad("pack magic"));
    }
    Ok(PackHeader { version: d.u32()?, store: StoreUuid(d.array()?), pack: PackId(d.u64()?) })
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) id: ChunkId,
    pub(super) stored_len: u32,
    pub(super) raw_len: u32,
    pub(super) codec: u8,
    pub(super) body_crc: u32,
}

impl FrameHeader {
    pub(super) fn encode(&self, salt: Salt) -> Vec<u8> {
        let mut e = Encoder::with_capacity(FRAME_HEADER_BYTES);
        e.raw(FRAME_MAGIC).u32(self.stored_len).u32(self.raw_len).u8(self.codec).raw(&[0; 3]);
        e.raw(&self.id.0).u32(self.body_crc);
        let mut bytes = e.finish();
        let crc = salt.crc(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the header at the start of `bytes`.
    pub(super) fn decode(bytes: &[u8], salt: Salt) -> Result<FrameHeader, WireError> {
        let mut d = Decoder::new(bytes);
        let whole = d.raw(FRAME_HEADER_BYTES - 4)?;
        if !whole.starts_with(FRAME_MAGIC) {
            return Err(WireError::Bad("frame magic"));
        }
        if d.u32()? != salt.crc(whole) {
            return Err(WireError::Bad("frame header checksum"));
        }
        let mut d = Decoder::new(whole);
        d.raw(FRAME_MAGIC.len())?;
        let (stored_len, raw_len, codec) = (d.u32()?, d.u32()?, d.u8()?);
        check_lengths(stored_len, raw_len)?;
        if d.array()? != [0; 3] {
            return Err(WireError::Bad("reserved bytes"));
        }
        Ok(FrameHeader { id: ChunkId(d.array()?), stored_len, raw_len, codec, body_crc: d.u32()? })
    }

    pub(super) fn location(&self, pack: PackId, offset: u64) -> Location {
        let FrameHeader { stored_len, raw_len, codec, .. } = *self;
        Location { pack, offset, stored_len, raw_len, codec }
    }
}

/// Whether a frame may have these lengths; what keeps a damaged length from allocating.
pub(super) fn check_lengths(stored_len: u32, raw_len: u32) -> Result<(), WireError> {
    if stored_len == 0 || stored_len as usize > STORED_BYTES_MAX {
        return Err(WireError::Bad("stored length"));
    }
    if raw_len == 0 || raw_len as usize > CHUNK_MAX_BYTES {
        return Err(WireError::Bad("chunk length"));
    }
    Ok(())
}

/// The footer of a pack whose frames end at `offset`.
pub(super) fn encode_footer(entries: &[(ChunkId, Location)], offset: u64, salt: Salt) -> Vec<u8> {
    let mut e = Encoder::with_capacity(FOOTER_FIXED_BYTES + entries.len() * FOOTER_ENTRY_BYTES);
    // The writer finishes a pack before its count is over the limit.
    e.raw(FOOTER_MAGIC).u32(entries.len() as u32);
    for (id, at) in entries {
        e.raw(&id.0).u64(at.offset).u32(at.stored_len).u32(at.raw_len).u8(at.codec).raw(&[0; 3]);
    }
    e.u64(offset);
    let mut bytes = e.finish();
    let crc = salt.crc(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(TAIL_MAGIC);
    bytes
}

/// Where the footer starts, from the last [`TAIL_BYTES`] of a pack; nothing is verified but the magic.
pub(super) fn footer_offset(tail: &[u8; TAIL_BYTES]) -> Option<u64> {
    let (offset, rest) = tail.split_first_chunk::<8>()?;
    rest.ends_with(TAIL_MAGIC).then_some(u64::from_le_bytes(*offset))
}

/// Reads a whole footer that starts at `offset` of its pack. Its entries must cover all of the pack between
/// header and footer, in order.
pub(super) fn decode_footer(
    bytes: &[u8],
    offset: u64,
    pack: PackId,
    salt: Salt,
) -> Result<Vec<(ChunkId, Location)>, WireError> {
    let checked = bytes.len().checked_sub(4 + TAIL_MAGIC.len()).ok_or(WireError::Short)?;
    let mut d = Decoder::new(bytes);
    let mut content = Decoder::new(d.raw(checked)?);
    if d.u32()? != salt.crc(content.rest()) || d.array()? != *TAIL_MAGIC {
        return Err(WireError::Bad("footer checksum"));
    }
    if content.array()? != *FOOTER_MAGIC {
        return Err(WireError::Bad("footer magic"));
    }
    let count = usize::try_from(content.u32()?).ok().filter(|&n| n <= PACK_CHUNKS_MAX);
    let count = count.ok_or(WireError::Bad("footer count"))?;
    if content.remaining() != count * FOOTER_ENTRY_BYTES + 8 {
        return Err(WireError::Bad("footer count"));
    }
    let mut entries = Vec::with_capacity(count);
    let mut end = PACK_HEADER_BYTES as u64;
    for _ in 0..count {
        let id = ChunkId(content.array()?);
        let offset = content.u64()?;
        let (stored_len, raw_len, codec) = (content.u32()?, content.u32()?, content.u8()?);
        content.raw(3)?;
        check_lengths(stored_len, raw_len)?;
        if offset != end {
            return Err(WireError::Bad("footer entry offset"));
        }
        let at = Location { pack, offset, stored_len, raw_len, codec };
        end += at.frame_bytes();
        entries.push((id, at));
    }
    if content.u64()? != offset || end != offset {
        return Err(WireError::Bad("footer offset"));
    }
    Ok(entries)
}

/// The AAD of a chunk: its id ‖ raw length u32 LE ‖ codec u8. It binds the body to everything else that
/// decides what is served, and to nothing about where it lies.
fn chunk_aad(id: &ChunkId, raw_len: u32, codec: u8) -> Vec<u8> {
    let mut e = Encoder::with_capacity(37);
    e.raw(&id.0).u32(raw_len).u8(codec);
    e.finish()
}

/// Why a sealed chunk could not be made or opened; the caller adds the place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// Lengths that no chunk has.
    #[error(transparent)]
    Format(#[from] WireError),
    /// The seal does not open, or could not be made.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The codec refused.
    #[error(transparent)]
    Codec(#[from] codec::CodecError),
    /// The bytes are not those that the id names.
    #[error("its bytes hash to {0} and not to its name")]
    WrongId(ChunkId),
}

/// A chunk ready to be stored or sent: packed, sealed, named. Holding one says nothing about its contents
/// being right; that is known when it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedChunk {
    header: FrameHeader,
    /// Room for the frame header, then the body: a pack is written with one call and without a copy.
    frame: Vec<u8>,
}

impl SealedChunk {
    /// Packs and seals `plain`, whose [id](Sealer::chunk_id) the caller has computed to look it up. `level`
    /// and `scratch` are those of [`codec::encode`].
    ///
    /// # Errors
    /// A chunk that is empty or too long; no random bytes.
    pub fn seal(
        sealer: &Sealer,
        level: i32,
        id: ChunkId,
        plain: &[u8],
        scratch: &mut Vec<u8>,
    ) -> Result<SealedChunk, ChunkError> {
        let raw_len = u32::try_from(plain.len()).map_err(|_| WireError::Bad("chunk length"))?;
        check_lengths(1, raw_len)?;
        let (codec, packed) = codec::encode(level, plain, scratch);
        let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + packed.len() + sealer.overhead());
        frame.resize(FRAME_HEADER_BYTES, 0);
        sealer.seal_into(&chunk_aad(&id, raw_len, codec as u8), packed, &mut frame)?;
        SealedChunk::from_frame(id, raw_len, codec as u8, frame)
    }

    /// A chunk that was sealed elsewhere and came over the wire or out of an object store.
    ///
    /// # Errors
    /// Lengths that no frame has.
    pub fn from_parts(id: ChunkId, raw_len: u32, codec: u8, body: &[u8]) -> Result<SealedChunk, ChunkError> {
        if body.len() > STORED_BYTES_MAX {
            return Err(WireError::Bad("stored length").into());
        }
        let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + body.len());
        frame.resize(FRAME_HEADER_BYTES, 0);
        frame.extend_from_slice(body);
        SealedChunk::from_frame(id, raw_len, codec, frame)
    }

    fn from_frame(id: ChunkId, raw_len: u32, codec: u8, frame: Vec<u8>) -> Result<SealedChunk, ChunkError> {
        let body = frame.get(FRAME_HEADER_BYTES..).unwrap_or_default();
        let stored_len = u32::try_from(body.len()).map_err(|_| WireError::Bad("stored length"))?;
        check_lengths(stored_len, raw_len)?;
        let body_crc = crc32c::crc32c(body);
        Ok(SealedChunk { header: FrameHeader { id, stored_len, raw_len, codec, body_crc }, frame })
    }

    /// A frame as read from a pack; `header` has been checked.
    pub(super) fn from_read(header: FrameHeader, frame: Vec<u8>) -> SealedChunk {
        SealedChunk { header, frame }
    }

    /// The name of the chunk.
    pub fn id(&self) -> ChunkId {
        self.header.id
    }

    /// Bytes of the chunk, unpacked.
    pub fn raw_len(&self) -> u32 {
        self.header.raw_len
    }

    /// Number of the codec.
    pub fn codec(&self) -> u8 {
        self.header.codec
    }

    /// The sealed body.
    pub fn body(&self) -> &[u8] {
        self.frame.get(FRAME_HEADER_BYTES..).unwrap_or_default()
    }

    /// The plain bytes, proven to be those that the id names.
    ///
    /// # Errors
    /// Anything that does not hold; never wrong bytes.
    pub fn open(mut self, sealer: &Sealer) -> Result<Vec<u8>, ChunkError> {
        let FrameHeader { id, raw_len, codec, .. } = self.header;
        let codec_known = Codec::try_from(codec)?;
        let body = self.frame.get_mut(FRAME_HEADER_BYTES..).unwrap_or_default();
        let packed = sealer.open_in_place(&chunk_aad(&id, raw_len, codec), body)?;
        let plain = codec::decode(codec_known, packed, raw_len as usize)?;
        let found = sealer.chunk_id(&plain);
        if found == id { Ok(plain) } else { Err(ChunkError::WrongId(found)) }
    }

    pub(super) fn header(&self) -> &FrameHeader {
        &self.header
    }

    /// The bytes to write into the pack of `salt`.
    pub(super) fn frame_for(&mut self, salt: Salt) -> &[u8] {
        let header = self.header.encode(salt);
        if let Some(room) = self.frame.get_mut(..FRAME_HEADER_BYTES) {
            room.copy_from_slice(&header);
        }
        &self.frame
    }
}
