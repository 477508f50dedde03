//! The frame around one record body, and the hash chain that ties records together.
//!
//! All integers are little-endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | salt of the segment: bytes that lay there before it can never pass |
//! | 4 | 4 | body length, at most [`BODY_BYTES_MAX`] |
//! | 8 | 4 | CRC-32C of bytes 0..8 and 12..68 and the body |
//! | 12 | 8 | LSN |
//! | 20 | 8 | term |
//! | 28 | 8 | synced: the highest LSN known to be durable when this frame was made |
//! | 36 | 32 | chain after this record |
//! | 68 | n | body |
//!
//! `chain_n = BLAKE3(chain_{n-1} ‖ lsn ‖ term ‖ body)`, so salt and `synced` (which differ between nodes)
//! are no part of it, and `chain_0 = BLAKE3-derive-key("rewindfs journal chain 0", store uuid)`.
//!
//! `synced` is what lets recovery tell a rotten record from one that a power cut never wrote: a bad frame
//! at LSN n is proven damage once any later frame says `synced ≥ n`.

use std::fmt;

use crate::types::ids::hex;
use crate::types::wire::{Decoder, Encoder, WireError};
use crate::types::{Lsn, StoreUuid, Term, limits};

/// Bytes of a frame before its body.
pub const FRAME_HEADER_BYTES: usize = 68;
/// The largest body: a record and what sealing adds to it.
pub const BODY_BYTES_MAX: usize = limits::RECORD_BYTES_MAX + 1024;
/// The CRC covers what lies before and after its own four bytes.
const CRC_AT: usize = 8;

/// The hash over a record and all before it. Equal LSN and equal chain mean equal journals.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Chain(pub [u8; 32]);

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chain({self})")
    }
}

impl Chain {
    /// The chain before the first record of a store.
    pub fn origin(store: StoreUuid) -> Chain {
        Chain(blake3::derive_key("rewindfs journal chain 0", &store.0))
    }

    /// The chain after one more record.
    #[must_use]
    pub fn after(&self, lsn: Lsn, term: Term, body: &[u8]) -> Chain {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0).update(&lsn.0.to_le_bytes()).update(&term.0.to_le_bytes()).update(body);
        Chain(*hasher.finalize().as_bytes())
    }
}

/// One record as read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its position.
    pub lsn: Lsn,
    /// The reign it was written in.
    pub term: Term,
    /// The chain after it.
    pub chain: Chain,
    /// The sealed body.
    pub body: Vec<u8>,
}

/// Why bytes are not the frame that should be there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    /// The file ends inside it.
    #[error("the file ends inside the frame")]
    Short,
    /// Not a frame of this segment.
    #[error("no frame of this segment (salt {found:08x}, expected {expected:08x})")]
    Salt {
        /// What is there.
        found: u32,
        /// What the segment header says.
        expected: u32,
    },
    /// Longer than any writer produces.
    #[error("impossible body length {0}")]
    Length(u32),
    /// The checksum does not match.
    #[error("checksum mismatch")]
    Crc,
    /// An intact frame of another position.
    #[error("an intact frame, but of LSN {0}")]
    Lsn(Lsn),
    /// An intact frame that does not follow from the records before it.
    #[error("an intact frame, but its hash chain does not follow from the record before")]
    Chain,
}

impl FrameFault {
    /// Whether the frame is whole, so that no torn write explains it.
    pub fn intact(&self) -> bool {
        matches!(self, FrameFault::Lsn(_) | FrameFault::Chain)
    }
}

impl From<WireError> for FrameFault {
    fn from(_: WireError) -> FrameFault {
        FrameFault::Short
    }
}

/// The fields before a body. Checked against nothing until [`decode`] has seen the body too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Salt of the segment.
    pub salt: u32,
    /// Bytes of body.
    pub body_len: u32,
    /// CRC-32C of all but itself.
    pub crc: u32,
    /// Position.
    pub lsn: Lsn,
    /// Reign.
    pub term: Term,
    /// Known durable when it was written.
    pub synced: Lsn,
    /// Chain after it.
    pub chain: Chain,
}

impl FrameHeader {
    /// Reads the header fields and refuses a foreign salt and a length that no writer produces.
    pub fn decode(input: &[u8], salt: u32) -> Result<FrameHeader, FrameFault> {
        let mut d = Decoder::new(input);
        let header = FrameHeader {
            salt: d.u32()?,
            body_len: d.u32()?,
            crc: d.u32()?,
            lsn: Lsn(d.u64()?),
            term: Term(d.u64()?),
            synced: Lsn(d.u64()?),
            chain: Chain(d.array()?),
        };
        if header.salt != salt {
            return Err(FrameFault::Salt { found: header.salt, expected: salt });
        }
        if header.body_len as usize > BODY_BYTES_MAX {
            return Err(FrameFault::Length(header.body_len));
        }
        Ok(header)
    }

    /// Bytes of the whole frame.
    pub fn frame_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.body_len as usize
    }

    /// Checks that this intact frame is the record `expect` after the chain `before`.
    pub fn follows(&self, expect: Lsn, before: &Chain, body: &[u8]) -> Result<(), FrameFault> {
        if self.lsn != expect {
            return Err(FrameFault::Lsn(self.lsn));
        }
        if self.chain != before.after(self.lsn, self.term, body) {
            return Err(FrameFault::Chain);
        }
        Ok(())
    }
}

/// Appends one frame to `out`.
///
/// The body's length must already be checked against [`BODY_BYTES_MAX`].
pub fn encode(out: &mut Vec<u8>, salt: u32, synced: Lsn, record: (Lsn, Term, Chain), body: &[u8]) {
    let (lsn, term, chain) = record;
    let mut head = Encoder::with_capacity(CRC_AT);
    head.u32(salt).u32(body.len() as u32);
    let mut tail = Encoder::with_capacity(FRAME_HEADER_BYTES);
    tail.u64(lsn.0).u64(term.0).u64(synced.0).raw(&chain.0);
    let (head, tail) = (head.finish(), tail.finish());
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&head), &tail), body);
    out.reserve(FRAME_HEADER_BYTES + body.len());
    out.extend_from_slice(&head);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&tail);
    out.extend_from_slice(body);
}

/// The frame at the start of `input`, its checksum verified; what follows it is ignored.
pub fn decode(input: &[u8], salt: u32) -> Result<(FrameHeader, &[u8]), FrameFault> {
    let header = FrameHeader::decode(input, salt)?;
    let mut d = Decoder::new(input);
    let head = d.raw(CRC_AT)?;
    d.u32()?;
    let rest = d.raw(header.frame_bytes() - CRC_AT - 4)?;
    if crc32c::crc32c_append(crc32c::crc32c(head), rest) != header.crc {
        return Err(FrameFault::Crc);
    }
    let body = rest.get(FRAME_HEADER_BYTES - CRC_AT - 4..).ok_or(FrameFault::Short)?;
    Ok((header, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(salt: u32, body: &[u8]) -> Vec<u8> {
        let before = Chain::origin(StoreUuid([7; 16]));
        let chain = before.after(Lsn(1), Term(3), body);
        let mut out = Vec::new();
        encode(&mut out, salt, Lsn(0), (Lsn(1), Term(3), chain), body);
        out
    }

    #[test]
    fn the_chain_is_pinned() {
        // A change of these values would make every existing journal and standby unreadable.
        let origin = Chain::origin(StoreUuid([7; 16]));
        let by_hand = blake3::derive_key("rewindfs journal chain 0", &[7; 16]);
        assert_eq!(origin.0, by_hand);
        let mut flat = by_hand.to_vec();
        flat.extend_from_slice(&1u64.to_le_bytes());
        flat.extend_from_slice(&3u64.to_le_bytes());
        flat.extend_from_slice(b"body");
        assert_eq!(origin.after(Lsn(1), Term(3), b"body").0, *blake3::hash(&flat).as_bytes());
    }

    #[test]
    fn every_flipped_bit_of_a_frame_is_noticed() {
        let good = frame(0x1234_5678, b"some body");
        assert!(decode(&good, 0x1234_5678).is_ok());
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad, 0x1234_5678).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert_eq!(decode(&good[..len], 0x1234_5678), Err(FrameFault::Short));
        }
    }

    #[test]
    fn a_damaged_length_is_refused_before_anything_is_read() {
        let mut bad = frame(9, b"x");
        bad[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(decode(&bad, 9), Err(FrameFault::Length(u32::MAX)));
    }

    proptest! {
        #[test]
        fn frames_round_trip(salt: u32, body: Vec<u8>, junk: Vec<u8>) {
            let mut bytes = frame(salt, &body);
            bytes.extend_from_slice(&junk);
            let (header, got) = decode(&bytes, salt).unwrap();
            prop_assert_eq!(got, &body[..]);
            let origin = Chain::origin(StoreUuid([7; 16]));
            prop_assert!(header.follows(Lsn(1), &origin, got).is_ok());
            prop_assert!(header.follows(Lsn(2), &origin, got).unwrap_err().intact());
            prop_assert!(header.follows(Lsn(1), &header.chain, got).unwrap_err().intact());
        }

        #[test]
        fn hostile_bytes_are_an_error_and_not_a_panic(salt: u32, mut bytes: Vec<u8>, salted: bool) {
            if salted && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&salt.to_le_bytes());
            }
            prop_assert!(decode(&bytes, salt).is_err());
        }
    }
}
