//! Finding what a pack holds without the index, and what of it is damaged. Needs no key.

use super::frame::{
    FOOTER_BYTES_MAX, FOOTER_FIXED_BYTES, FOOTER_MAGIC, FRAME_HEADER_BYTES, FRAME_MAGIC, FrameHeader,
    PACK_HEADER_BYTES, Salt, TAIL_BYTES, decode_footer, decode_pack_header, footer_offset,
};
use super::{Location, pack_path};
use crate::types::error::IoContext as _;
use crate::types::limits::FORMAT_VERSION;
use crate::types::{ChunkId, Disk, DiskFile, Error, PackId, Result, StoreUuid};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes read at once while searching for the next frame behind damage.
const SEARCH_BYTES: usize = 1 << 20;

/// How much a scan believes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// A whole footer stands for its frames, which were durable when it was written. For recovery.
    Footer,
    /// Every frame is read and its checksums are verified; a footer only says where frames end. For fsck.
    Frames,
}

/// The state of a pack's footer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Footer {
    /// It is there and holds together.
    Whole,
    /// There is none: the pack is being written, or a crash ended it.
    Absent,
    /// There is one, but it cannot be used. The frames do not need it; after a crash while it was written
    /// this is no sign of a bad disk.
    Unusable(String),
}

/// A stretch of a pack that is not what was written, followed by something that is (a frame, or a footer).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The bytes concerned; chunks that lie there are lost from this pack.
    pub bytes: Range<u64>,
    /// What did not hold at its start.
    pub detail: String,
}

/// What a scan found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanReport {
    /// The file.
    pub path: PathBuf,
    /// Frames visited.
    pub chunks: u64,
    /// End of the last whole frame; the start of the scan if there was none.
    pub valid_end: u64,
    /// The footer.
    pub footer: Footer,
    /// Damage in the middle, ascending. Where the caller knows that bytes before some position were synced,
    /// damage behind that position can be what a crash left of unsynced writes; before it, it is the disk.
    pub damage: Vec<Damage>,
    /// Bytes at the end that are no whole frame and have none behind them: a torn write.
    pub torn: Option<Range<u64>>,
}

impl ScanReport {
    /// The damage as errors that name file and offset.
    pub fn errors(&self) -> impl Iterator<Item = Error> + '_ {
        self.damage.iter().map(|d| {
            let Range { start, end } = d.bytes;
            let place = format!("{} at offset {start}", self.path.display());
            Error::corrupt(
                "pack",
                place,
                format!("{}; {} bytes are affected", d.detail, end.saturating_sub(start)),
            )
        })
    }
}

/// Calls `visit` for each chunk of a pack whose frame starts at `from` or behind, ascending. `from` is 0 or a
/// position that [`PackWriter::position`](super::PackWriter::position) gave. Nothing is changed on the disk.
///
/// # Errors
/// [`Error::Io`]; [`Error::Version`]; [`Error::Corrupt`] if the file is whole but belongs to another store or
/// another pack number; whatever `visit` returns. Damage is not an error but in the report.
pub fn scan(
    disk: &dyn Disk,
    dir: &Path,
    store: StoreUuid,
    pack: PackId,
    from: u64,
    trust: Trust,
    visit: &mut dyn FnMut(ChunkId, Location) -> Result<()>,
) -> Result<ScanReport> {
    let path = pack_path(dir, pack);
    let file = disk.open(&path, false).at("opening", &path)?;
    let len = file.len().at("reading", &path)?;
    let mut scanner = Scanner { file, pack, salt: Salt::new(store, pack), end: len, buffer: Vec::new() };
    let from = from.max(PACK_HEADER_BYTES as u64);
    let mut report = ScanReport {
        path: path.clone(),
        chunks: 0,
        valid_end: from.min(len),
        footer: Footer::Absent,
        damage: Vec::new(),
        torn: None,
    };
    let bad_header = scanner.check_header(store, &path, len)?;
    match scanner.footer(len).at("reading", &path)? {
        Found::Whole(start, entries) => {
            report.footer = Footer::Whole;
            scanner.end = start;
            if trust == Trust::Footer {
                if let Some(detail) = bad_header {
                    report.damage.push(Damage { bytes: 0..PACK_HEADER_BYTES as u64, detail });
                }
                for (id, at) in entries.into_iter().filter(|(_, at)| at.offset >= from) {
                    visit(id, at)?;
                    report.chunks += 1;
                    report.valid_end = at.offset + at.frame_bytes();
                }
                return Ok(report);
            }
        }
        Found::Unusable(detail) => report.footer = Footer::Unusable(detail),
        Found::Absent => {}
    }
    if bad_header.is_some() && from == PACK_HEADER_BYTES as u64 && len <= from {
        // What a crash leaves of a pack that had just been made.
        report.valid_end = 0;
        report.torn = (len > 0).then_some(0..len);
        return Ok(report);
    }
    if from > len {
        let detail = "the file is shorter than it once was".into();
        report.damage.push(Damage { bytes: len..from, detail });
        return Ok(report);
    }
    scanner.frames(from, bad_header, &mut report, visit)?;
    Ok(report)
}

enum Found {
    Whole(u64, Vec<(ChunkId, Location)>),
    Unusable(String),
    Absent,
}

enum At {
    Frame(FrameHeader),
    /// The header holds, so its length can be followed; the body does not.
    BadBody(u64),
    Nothing(String),
}

struct Scanner {
    file: Arc<dyn DiskFile>,
    pack: PackId,
    salt: Salt,
    /// Frames end here: at the footer, or at the end of the file.
    end: u64,
    buffer: Vec<u8>,
}

impl Scanner {
    /// What is wrong with the pack's header, if anything. The frames do not depend on it.
    fn check_header(&self, store: StoreUuid, path: &Path, len: u64) -> Result<Option<String>> {
        if len < PACK_HEADER_BYTES as u64 {
            return Ok(Some("the file is shorter than its header".into()));
        }
        let mut bytes = [0; PACK_HEADER_BYTES];
        self.file.read_exact_at(&mut bytes, 0).at("reading", path)?;
        let header = match decode_pack_header(&bytes) {
            Ok(header) => header,
            Err(e) => return Ok(Some(e.to_string())),
        };
        if header.version != FORMAT_VERSION {
            let (found, expected) = (header.version, FORMAT_VERSION);
            return Err(Error::Version { path: path.to_owned(), found, expected });
        }
        if (header.store, header.pack) != (store, self.pack) {
            let detail = format!("it is pack {:016x} of store {}", header.pack.0, header.store);
            return Err(Error::corrupt("pack", path.display().to_string(), detail));
        }
        Ok(None)
    }

    fn footer(&self, len: u64) -> std::io::Result<Found> {
        let mut tail = [0; TAIL_BYTES];
        let Some(tail_start) = len.checked_sub(TAIL_BYTES as u64) else { return Ok(Found::Absent) };
        self.file.read_exact_at(&mut tail, tail_start)?;
        let Some(start) = footer_offset(&tail) else { return Ok(Found::Absent) };
        let bytes = len.checked_sub(start).and_then(|n| usize::try_from(n).ok());
        let bytes = bytes.filter(|n| (FOOTER_FIXED_BYTES..=FOOTER_BYTES_MAX).contains(n));
        let Some(bytes) = bytes else { return Ok(Found::Unusable("bad footer offset".into())) };
        let mut footer = vec![0; bytes];
        self.file.read_exact_at(&mut footer, start)?;
        Ok(match decode_footer(&footer, start, self.pack, self.salt) {
            Ok(entries) => Found::Whole(start, entries),
            Err(e) => Found::Unusable(e.to_string()),
        })
    }

    /// Walks the frames from `pos` to the end, over damage where there is some.
    fn frames(
        &mut self,
        mut pos: u64,
        bad_header: Option<String>,
        report: &mut ScanReport,
        visit: &mut dyn FnMut(ChunkId, Location) -> Result<()>,
    ) -> Result<()> {
        let path = report.path.clone();
        // Where the stretch began that nothing whole has followed yet.
        let mut bad: Option<(u64, String)> = None;
        if let Some(detail) = bad_header {
            if pos == PACK_HEADER_BYTES as u64 && self.end > pos {
                // In front of the frames, so it is one stretch with what may follow it.
                bad = Some((0, detail));
            } else {
                report.damage.push(Damage { bytes: 0..PACK_HEADER_BYTES as u64, detail });
            }
        }
        while pos < self.end {
            match self.at(pos).at("reading", &path)? {
                At::Frame(header) => {
                    if let Some((start, detail)) = bad.take() {
                        report.damage.push(Damage { bytes: start..pos, detail });
                    }
                    let at = header.location(self.pack, pos);
                    visit(header.id, at)?;
                    pos += at.frame_bytes();
                    report.chunks += 1;
                    report.valid_end = pos;
                }
                At::BadBody(next) => {
                    bad.get_or_insert((pos, "the body of a frame does not match its checksum".into()));
                    pos = next;
                }
                At::Nothing(detail) => {
                    bad.get_or_insert((pos, detail));
                    pos = self.search(pos + 1).at("reading", &path)?;
                }
            }
        }
        let Some((start, detail)) = bad else { return Ok(()) };
        if report.footer == Footer::Whole {
            // A footer is written behind durable frames only, so this cannot be a torn write.
            report.damage.push(Damage { bytes: start..self.end, detail });
            return Ok(());
        }
        if report.footer == Footer::Absent && self.starts_with(start, FOOTER_MAGIC).at("reading", &path)? {
            report.footer = Footer::Unusable("it is cut short".into());
        }
        report.torn = Some(start..self.end);
        Ok(())
    }

    fn at(&mut self, pos: u64) -> std::io::Result<At> {
        let room = self.end - pos;
        if room < FRAME_HEADER_BYTES as u64 {
            return Ok(At::Nothing("the file ends inside a frame header".into()));
        }
        let mut header = [0; FRAME_HEADER_BYTES];
        self.file.read_exact_at(&mut header, pos)?;
        let header = match FrameHeader::decode(&header, self.salt) {
            Ok(header) => header,
            Err(e) => return Ok(At::Nothing(e.to_string())),
        };
        let at = header.location(self.pack, pos);
        if at.frame_bytes() > room {
            return Ok(At::Nothing("the file ends inside a frame".into()));
        }
        self.buffer.resize(header.stored_len as usize, 0);
        self.file.read_exact_at(&mut self.buffer, pos + FRAME_HEADER_BYTES as u64)?;
        if crc32c::crc32c(&self.buffer) == header.body_crc {
            Ok(At::Frame(header))
        } else {
            Ok(At::BadBody(pos + at.frame_bytes()))
        }
    }

    /// The next position from `pos` on where a frame header holds, or the end.
    fn search(&mut self, mut pos: u64) -> std::io::Result<u64> {
        let mut window =
            vec![0; SEARCH_BYTES.min(usize::try_from(self.end.saturating_sub(pos)).unwrap_or(0))];
        while pos + FRAME_HEADER_BYTES as u64 <= self.end {
            let room = usize::try_from(self.end - pos).unwrap_or(usize::MAX);
            window.truncate(room);
            self.file.read_exact_at(&mut window, pos)?;
            let starts = window.windows(FRAME_HEADER_BYTES);
            let found = starts.enumerate().find(|(_, bytes)| {
                bytes.starts_with(FRAME_MAGIC) && FrameHeader::decode(bytes, self.salt).is_ok()
            });
            if let Some((at, _)) = found {
                return Ok(pos + at as u64);
            }
            // Windows overlap by a header less one byte, so that none is missed at the seam.
            pos += (window.len() - FRAME_HEADER_BYTES + 1) as u64;
        }
        Ok(self.end)
    }

    fn starts_with(&self, pos: u64, magic: &[u8; 4]) -> std::io::Result<bool> {
        let mut bytes = [0; 4];
        Ok(self.file.read_at(&mut bytes, pos)? == 4 && bytes == *magic)
    }
}
