//! How a chunk's bytes are packed before they are sealed. The codec is chosen per chunk and named in its
//! frame, so new ones can be added without touching old packs.

use crate::types::limits::CHUNK_MAX_BYTES;
use std::cell::RefCell;
use zstd::bulk::{Compressor, Decompressor};

/// A way of packing bytes; the number is part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// As they are.
    Raw = 0,
    /// One zstd frame (RFC 8878).
    Zstd = 1,
}

/// Why packed bytes could not be unpacked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Written by a newer program, or damaged.
    #[error("unknown codec {0}")]
    Unknown(u8),
    /// More than a chunk may have.
    #[error("a chunk of {0} bytes is longer than any writer makes")]
    TooLong(usize),
    /// The content has another length than its frame says.
    #[error("it unpacks to {found} bytes instead of {expected}")]
    Length {
        /// Bytes that came out.
        found: usize,
        /// Bytes that the frame names.
        expected: usize,
    },
    /// Not a zstd frame, or one that holds more than the chunk may.
    #[error("zstd: {0}")]
    Zstd(String),
}

impl TryFrom<u8> for Codec {
    type Error = CodecError;

    fn try_from(number: u8) -> Result<Codec, CodecError> {
        match number {
            0 => Ok(Codec::Raw),
            1 => Ok(Codec::Zstd),
            other => Err(CodecError::Unknown(other)),
        }
    }
}

/// zstd level of the probe, and the highest level that is not worth probing for: at level 1 zstd gives up on
/// incompressible bytes at 6 GB/s by itself.
const PROBE_LEVEL: i32 = 1;
/// Bytes of each of the three samples (start, middle, end) that the probe packs.
const PROBE_BYTES: usize = 2048;
/// Below this the probe would cost as much as the real thing.
const PROBE_WORTH_BYTES: usize = 16 * 1024;

struct Packer {
    zstd: Compressor<'static>,
    /// The level `zstd` is set to; setting it resets its tables.
    level: Option<i32>,
}

thread_local! {
    // Contexts hold a megabyte of tables each: one per sealer thread, not one per chunk.
    static PACKER: RefCell<Packer> = RefCell::new(Packer { zstd: Compressor::default(), level: None });
    static UNPACKER: RefCell<Decompressor<'static>> = RefCell::new(Decompressor::default());
}

/// Packs `data` with zstd at `level` (1-22; 0 or less stores raw) if that saves at least a thirty-second of
/// it. The result lies in `data` or in `scratch`, which is overwritten and best kept for the next call.
pub fn encode<'a>(level: i32, data: &'a [u8], scratch: &'a mut Vec<u8>) -> (Codec, &'a [u8]) {
    if level <= 0 || data.len() < 64 || !promising(level, data, scratch) {
        return (Codec::Raw, data);
    }
    // Packing is only ever a saving: if zstd fails, say for want of memory, the raw bytes are as good.
    if compress(level, data, scratch) && worthwhile(scratch.len(), data.len()) {
        (Codec::Zstd, scratch)
    } else {
        (Codec::Raw, data)
    }
}

fn worthwhile(packed: usize, len: usize) -> bool {
    packed < len - len / 32
}

/// Whether three small samples pack at a cheap level.
fn promising(level: i32, data: &[u8], scratch: &mut Vec<u8>) -> bool {
    if level <= PROBE_LEVEL || data.len() < PROBE_WORTH_BYTES {
        return true;
    }
    let mut sample = [0; 3 * PROBE_BYTES];
    let starts = [0, (data.len() - PROBE_BYTES) / 2, data.len() - PROBE_BYTES];
    for (out, start) in sample.as_chunks_mut::<PROBE_BYTES>().0.iter_mut().zip(starts) {
        if let Some(piece) = data.get(start..start + PROBE_BYTES) {
            out.copy_from_slice(piece);
        }
    }
    compress(PROBE_LEVEL, &sample, scratch) && worthwhile(scratch.len(), sample.len())
}

fn compress(level: i32, data: &[u8], out: &mut Vec<u8>) -> bool {
    out.clear();
    out.reserve(zstd::zstd_safe::compress_bound(data.len()));
    let packed = PACKER.try_with(|packer| {
        let mut packer = packer.try_borrow_mut().ok()?;
        if packer.level != Some(level) {
            packer.level = None;
            packer.zstd.set_compression_level(level).ok()?;
            packer.level = Some(level);
        }
        packer.zstd.compress_to_buffer(data, out).ok()
    });
    matches!(packed, Ok(Some(_)))
}

/// Unpacks `stored` into exactly `raw_len` bytes, never allocating more.
///
/// # Errors
/// A length above [`CHUNK_MAX_BYTES`], a content of another length, or bytes that are no zstd frame.
pub fn decode(codec: Codec, stored: &[u8], raw_len: usize) -> Result<Vec<u8>, CodecError> {
    if raw_len > CHUNK_MAX_BYTES {
        return Err(CodecError::TooLong(raw_len));
    }
    let data = match codec {
        // Compared before the copy, so that an oversized body is not copied first.
        Codec::Raw if stored.len() == raw_len => stored.to_vec(),
        Codec::Raw => return Err(CodecError::Length { found: stored.len(), expected: raw_len }),
        Codec::Zstd => decompress(stored, raw_len)?,
    };
    if data.len() != raw_len {
        return Err(CodecError::Length { found: data.len(), expected: raw_len });
    }
    Ok(data)
}

fn decompress(stored: &[u8], raw_len: usize) -> Result<Vec<u8>, CodecError> {
    // zstd writes no further than the capacity.
    let mut out = Vec::with_capacity(raw_len);
    let unpacked = UNPACKER.try_with(|unpacker| {
        let mut unpacker = unpacker.try_borrow_mut().map_err(|e| CodecError::Zstd(e.to_string()))?;
        unpacker.decompress_to_buffer(stored, &mut out).map_err(|e| CodecError::Zstd(e.to_string()))
    });
    unpacked.map_err(|e| CodecError::Zstd(e.to_string()))??;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut out);
        out
    }

    proptest! {
        #[test]
        fn round_trip(level in -1..6, unit: Vec<u8>, times in 0usize..2000, tail in 0usize..40_000) {
            let mut data: Vec<u8> = unit.iter().copied().cycle().take(unit.len() * times).collect();
            data.extend(noise(tail));
            data.truncate(CHUNK_MAX_BYTES);
            let mut scratch = Vec::new();
            let (codec, packed) = encode(level, &data, &mut scratch);
            prop_assert!(packed.len() <= data.len());
            prop_assert_eq!(&decode(codec, packed, data.len()).unwrap(), &data);
            for wrong in [data.len() + 1, data.len().saturating_sub(1)] {
                prop_assert!(wrong == data.len() || decode(codec, packed, wrong).is_err());
            }
        }

        #[test]
        fn hostile_input_is_an_error_or_exact(number: u8, stored: Vec<u8>, raw_len in 0usize..1000) {
            if let Ok(codec) = Codec::try_from(number % 3)
                && let Ok(data) = decode(codec, &stored, raw_len)
            {
                prop_assert_eq!(data.len(), raw_len);
                prop_assert!(data.capacity() <= raw_len.max(8));
            }
        }
    }

    #[test]
    fn noise_stays_raw_and_text_does_not() {
        let mut scratch = Vec::new();
        for level in [1, 3, 9] {
            assert_eq!(encode(level, &noise(65_536), &mut scratch).0, Codec::Raw);
            let text = b"the same line again\n".repeat(3000);
            let (codec, packed) = encode(level, &text, &mut scratch);
            assert!(codec == Codec::Zstd && packed.len() < 1000);
        }
        assert_eq!(encode(0, &[0; 65_536], &mut scratch).0, Codec::Raw);
    }

    #[test]
    fn a_bomb_is_refused_within_its_named_length() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        assert!(matches!(decode(Codec::Zstd, &bomb, CHUNK_MAX_BYTES), Err(CodecError::Zstd(_))));
        let too_long = CHUNK_MAX_BYTES + 1;
        assert_eq!(decode(Codec::Zstd, &bomb, too_long), Err(CodecError::TooLong(too_long)));
        assert_eq!(Codec::try_from(2), Err(CodecError::Unknown(2)));
    }
}
