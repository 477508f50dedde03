//! A segment file: a header block, then frames, then (while it is the active one) zeros written ahead.
//!
//! All integers are little-endian. The header has a 4 KiB block of its own, so that no later write touches
//! its sector.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `RWFSSEG\0` |
//! | 8 | 4 | format version ([`limits::FORMAT_VERSION`]) |
//! | 12 | 4 | salt, random, never 0 |
//! | 16 | 16 | store uuid |
//! | 32 | 8 | LSN of the first record; also the file's name, in 16 hex digits |
//! | 40 | 32 | chain before the first record |
//! | 72 | 4 | CRC-32C of bytes 0..72 |
//! | 76 | 4020 | zeros, not checked |
//! | 4096 | | frames |
//!
//! Magic, version and the place of the CRC are the same in every version: a header of a newer version can
//! be told from a damaged one.
//!
//! A segment is made under a temporary name, synced and renamed, after the segment before it was cut to
//! its last frame and synced. So only the last segment can hold records that were never synced.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::Chain;
use crate::types::error::IoContext;
use crate::types::wire::{Decoder, Encoder};
use crate::types::{Disk, DiskFile, Error, Lsn, Result, StoreUuid, limits};

/// Where frames begin.
pub const SEGMENT_HEADER_BYTES: u64 = 4096;
/// Zeros are written ahead up to multiples of this: an fdatasync on a growing file costs a third more.
pub const PREWRITE_BYTES: u64 = 1 << 20;
/// A place in a segment is remembered every so many bytes, so that reading need not start at its front.
pub const MARK_BYTES: u64 = 256 * 1024;

const MAGIC: &[u8; 8] = b"RWFSSEG\0";
const CRC_AT: usize = 72;
const ENCODED_BYTES: usize = CRC_AT + 4;
const SUFFIX: &str = ".seg";
const TEMPORARY_SUFFIX: &str = ".seg.new";

/// What a segment says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// What every frame of it begins with.
    pub salt: u32,
    /// The store it belongs to.
    pub store: StoreUuid,
    /// Its first record.
    pub first: Lsn,
    /// The chain before its first record.
    pub before: Chain,
}

/// Why bytes are no header of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderFault {
    /// Shorter than a header.
    #[error("the file ends inside the header")]
    Short,
    /// Not a segment at all.
    #[error("the header does not begin like a segment")]
    Magic,
    /// Damaged or torn.
    #[error("header checksum mismatch")]
    Crc,
    /// An intact header of another version.
    #[error("format version {0}")]
    Version(u32),
}

impl SegmentHeader {
    /// A header with a fresh random salt.
    pub fn fresh(store: StoreUuid, first: Lsn, before: Chain) -> Result<SegmentHeader> {
        let mut salt = 0;
        // Zero is what lies in unwritten places, so it is no salt.
        while salt == 0 {
            salt = getrandom::u32().map_err(|e| Error::Invalid(format!("no random numbers: {e}")))?;
        }
        Ok(SegmentHeader { salt, store, first, before })
    }

    /// The bytes of the header, without the padding of its block.
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::with_capacity(ENCODED_BYTES);
        e.raw(MAGIC).u32(limits::FORMAT_VERSION).u32(self.salt).raw(&self.store.0);
        e.u64(self.first.0).raw(&self.before.0);
        let mut bytes = e.finish();
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header; whose store it is and which LSN it should have is for the caller to compare.
    pub fn decode(input: &[u8]) -> Result<SegmentHeader, HeaderFault> {
        let short = |_| HeaderFault::Short;
        let mut d = Decoder::new(input);
        let covered = d.raw(CRC_AT).map_err(short)?;
        let crc = d.u32().map_err(short)?;
        // What follows is padding up to the first frame; a byte in it that is not zero is damage as well.
        let padding = d.rest().get(..(SEGMENT_HEADER_BYTES as usize).saturating_sub(CRC_AT + 4));
        let padded = padding.unwrap_or(d.rest()).iter().all(|b| *b == 0);
        let mut d = Decoder::new(covered);
        if d.raw(MAGIC.len()).map_err(short)? != MAGIC {
            return Err(HeaderFault::Magic);
        }
        if crc != crc32c::crc32c(covered) || !padded {
            return Err(HeaderFault::Crc);
        }
        let version = d.u32().map_err(short)?;
        if version != limits::FORMAT_VERSION {
            return Err(HeaderFault::Version(version));
        }
        Ok(SegmentHeader {
            salt: d.u32().map_err(short)?,
            store: StoreUuid(d.array().map_err(short)?),
            first: Lsn(d.u64().map_err(short)?),
            before: Chain(d.array().map_err(short)?),
        })
    }
}

/// A place in a segment from which reading may start.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// The record that begins there.
    pub lsn: Lsn,
    /// Its offset in the file.
    pub at: u64,
    /// The chain before it.
    pub before: Chain,
}

/// What the journal remembers of a segment file.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Its first record.
    pub first: Lsn,
    /// The file.
    pub path: PathBuf,
    /// Salt of its frames.
    pub salt: u32,
    /// Offset behind its last good frame.
    pub end: u64,
    /// Length of the file in bytes, zeros written ahead included.
    pub bytes: u64,
    /// Places to start reading from, ascending, the first frame always among them.
    pub marks: Vec<Mark>,
}

impl Segment {
    /// A segment of which only the header is known.
    pub fn new(dir: &Path, header: &SegmentHeader, bytes: u64) -> Segment {
        let start = Mark { lsn: header.first, at: SEGMENT_HEADER_BYTES, before: header.before };
        Segment {
            first: header.first,
            path: path_of(dir, header.first),
            salt: header.salt,
            end: SEGMENT_HEADER_BYTES,
            bytes,
            marks: vec![start],
        }
    }

    /// A copy for a reader that already has its place.
    #[must_use]
    pub fn without_marks(&self) -> Segment {
        let Segment { first, salt, end, bytes, .. } = *self;
        Segment { first, path: self.path.clone(), salt, end, bytes, marks: Vec::new() }
    }

    /// Notes that the frame of `lsn` begins at `at`; kept only every [`MARK_BYTES`].
    pub fn mark(&mut self, lsn: Lsn, at: u64, before: Chain) {
        let previous = self.marks.last().map_or(0, |m| m.at);
        if at.saturating_sub(previous) >= MARK_BYTES {
            self.marks.push(Mark { lsn, at, before });
        }
    }

    /// The nearest remembered place at or before `lsn`.
    pub fn nearest(&self, lsn: Lsn) -> Option<Mark> {
        let behind = self.marks.partition_point(|m| m.lsn <= lsn);
        self.marks.get(behind.checked_sub(1)?).copied()
    }
}

/// The file of the segment that begins at `first`.
pub fn path_of(dir: &Path, first: Lsn) -> PathBuf {
    dir.join(format!("{:016x}{SUFFIX}", first.0))
}

/// The first LSN of a segment file by its name, `None` if it is no segment.
pub fn first_of(name: &str) -> Option<Lsn> {
    let digits = name.strip_suffix(SUFFIX)?;
    let well_formed = digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    well_formed.then(|| u64::from_str_radix(digits, 16).ok().map(Lsn)).flatten()
}

/// Whether a name is that of a segment whose creation was interrupted.
pub fn is_temporary(name: &str) -> bool {
    name.ends_with(TEMPORARY_SUFFIX)
}

/// Whether the filesystem below is full, or the quota.
pub fn is_full(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// A segment that is complete and synced but does not have its name yet.
pub struct Prepared {
    temporary: PathBuf,
    file: Arc<dyn DiskFile>,
    segment: Segment,
}

impl Prepared {
    /// Writes a header and the first zeros under a temporary name and syncs them.
    ///
    /// # Errors
    /// [`Error::NoSpace`] or [`Error::Io`]; the temporary file is then removed as far as possible, and
    /// nothing else was touched: no record depends on this file yet, so even its failed sync poisons nothing.
    pub fn new(disk: &dyn Disk, dir: &Path, header: &SegmentHeader, segment_bytes: u64) -> Result<Prepared> {
        let segment = Segment::new(dir, header, SEGMENT_HEADER_BYTES);
        let temporary = dir.join(format!("{:016x}{TEMPORARY_SUFFIX}", header.first.0));
        match disk.remove(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("removing", &temporary, e));
            }
            _ => {}
        }
        let file = disk.create(&temporary).at("creating", &temporary)?;
        let mut prepared = Prepared { temporary, file, segment };
        match prepared.fill(header, segment_bytes) {
            Ok(()) => Ok(prepared),
            Err(e) => {
                prepared.discard(disk);
                Err(Error::io("writing", &prepared.temporary, e))
            }
        }
    }

    fn fill(&mut self, header: &SegmentHeader, segment_bytes: u64) -> io::Result<()> {
        let mut block = header.encode();
        block.resize(SEGMENT_HEADER_BYTES as usize, 0);
        self.file.write_all_at(&block, 0)?;
        let ahead = PREWRITE_BYTES.min(segment_bytes).saturating_sub(SEGMENT_HEADER_BYTES);
        match self.file.write_all_at(&vec![0; ahead as usize], SEGMENT_HEADER_BYTES) {
            Ok(()) => self.segment.bytes += ahead,
            // Zeros ahead are only for speed: a nearly full disk must still let the store open.
            Err(e) if is_full(&e) => {}
            Err(e) => return Err(e),
        }
        self.file.sync_data()
    }

    /// Removes the temporary file; a leftover is harmless, the next attempt or open removes it.
    pub fn discard(&self, disk: &dyn Disk) {
        let _ = disk.remove(&self.temporary);
    }

    /// Gives the segment its name, replacing a torn file of that name. Not durable before the directory
    /// is synced.
    pub fn publish(self, disk: &dyn Disk) -> io::Result<(Segment, Arc<dyn DiskFile>)> {
        disk.rename(&self.temporary, &self.segment.path)?;
        Ok((self.segment, self.file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> SegmentHeader {
        SegmentHeader { salt: 5, store: StoreUuid([1; 16]), first: Lsn(0xabc), before: Chain([2; 32]) }
    }

    #[test]
    fn a_header_round_trips_and_every_flipped_bit_is_noticed() {
        let good = header().encode();
        assert_eq!(good.len(), ENCODED_BYTES);
        assert_eq!(SegmentHeader::decode(&good), Ok(header()));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let fault = SegmentHeader::decode(&bad).unwrap_err();
            assert!(matches!(fault, HeaderFault::Magic | HeaderFault::Crc), "bit {bit}: {fault}");
        }
    }

    #[test]
    fn names_are_exact() {
        let dir = Path::new("/j");
        assert_eq!(path_of(dir, Lsn(0xabc)), Path::new("/j/0000000000000abc.seg"));
        assert_eq!(first_of("0000000000000abc.seg"), Some(Lsn(0xabc)));
        for bad in [
            "0000000000000ABC.seg",
            "abc.seg",
            "0000000000000abc",
            "0000000000000abc.seg.new",
            "+000000000000abc.seg",
        ] {
            assert_eq!(first_of(bad), None, "{bad}");
        }
        assert!(is_temporary("0000000000000abc.seg.new"));
    }

    proptest! {
        #[test]
        fn hostile_headers_are_an_error_and_not_a_panic(mut bytes: Vec<u8>, magic: bool) {
            if magic && bytes.len() >= 8 {
                bytes[..8].copy_from_slice(MAGIC);
            }
            prop_assert!(SegmentHeader::decode(&bytes).is_err());
        }
    }
}
