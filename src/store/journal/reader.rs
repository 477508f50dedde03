//! Reading records back: [`Cursor`] walks the frames of one file, [`Reader`] the records of a journal.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::{self, Chain, FRAME_HEADER_BYTES, FrameFault, FrameHeader, Record};
use super::segment::{Mark, Segment};
use crate::types::error::IoContext;
use crate::types::{Disk, DiskFile, Error, Lsn, Result};

/// Bytes read ahead at once; a larger frame is read whole.
const READ_BYTES: usize = 256 * 1024;

/// What a cursor finds at its place.
#[derive(Debug)]
pub enum Step {
    /// The record expected; the cursor has moved behind it.
    Frame(Record),
    /// The limit.
    End,
    /// Something else; the cursor has not moved.
    Bad(FrameFault),
}

/// Walks the frames of one segment file up to a limit, verifying each.
pub struct Cursor {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    salt: u32,
    at: u64,
    limit: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl Cursor {
    /// Starts at the frame at offset `at`; bytes from `limit` on are not looked at.
    pub fn new(file: Arc<dyn DiskFile>, path: &Path, salt: u32, at: u64, limit: u64) -> Cursor {
        Cursor { file, path: path.to_owned(), salt, at, limit, window: Vec::new(), window_at: at }
    }

    /// Offset of the next frame.
    pub fn offset(&self) -> u64 {
        self.at
    }

    /// The next frame, which must be the record `expect` after the chain `before`.
    ///
    /// # Errors
    /// Only when the file cannot be read; bytes that are no such frame are [`Step::Bad`].
    pub fn next(&mut self, expect: Lsn, before: &Chain) -> Result<Step> {
        if self.at >= self.limit {
            return Ok(Step::End);
        }
        let salt = self.salt;
        let bytes = match FrameHeader::decode(self.view(FRAME_HEADER_BYTES)?, salt) {
            Ok(header) => header.frame_bytes(),
            Err(fault) => return Ok(Step::Bad(fault)),
        };
        // Checked before the window grows: a damaged length allocates nothing that the file does not have.
        if bytes as u64 > self.limit - self.at {
            return Ok(Step::Bad(FrameFault::Short));
        }
        let found = frame::decode(self.view(bytes)?, salt)
            .and_then(|(header, body)| header.follows(expect, before, body).map(|()| (header, body)));
        let (header, body) = match found {
            Ok(found) => found,
            Err(fault) => return Ok(Step::Bad(fault)),
        };
        let record = Record { lsn: header.lsn, term: header.term, chain: header.chain, body: body.to_vec() };
        self.at += bytes as u64;
        Ok(Step::Frame(record))
    }

    /// Moves ahead by `bytes`.
    pub fn skip(&mut self, bytes: u64) {
        self.at = self.at.saturating_add(bytes).min(self.limit);
    }

    /// Whether there is nothing but zeros from here to the limit.
    pub fn only_zeros(&self) -> Result<bool> {
        all_zero(&*self.file, &self.path, self.at, self.limit)
    }

    /// Searches from here for the next intact frame of this segment, whatever its LSN, and moves behind it.
    /// Returns its offset too; `None` at the limit.
    pub fn find(&mut self) -> Result<Option<(u64, FrameHeader)>> {
        let needle = self.salt.to_le_bytes();
        loop {
            self.view(FRAME_HEADER_BYTES)?;
            let skip = usize::try_from(self.at - self.window_at).unwrap_or(usize::MAX);
            let ahead = self.window.get(skip..).unwrap_or_default();
            if ahead.len() < FRAME_HEADER_BYTES {
                return Ok(None);
            }
            let Some(hit) = ahead.windows(needle.len()).position(|w| *w == needle) else {
                self.at += (ahead.len() - needle.len() + 1) as u64;
                continue;
            };
            self.at += hit as u64;
            let at = self.at;
            if let Some(header) = self.intact()? {
                self.at += header.frame_bytes() as u64;
                return Ok(Some((at, header)));
            }
            self.at += 1;
        }
    }

    /// The header of the frame here if its checksum holds.
    fn intact(&mut self) -> Result<Option<FrameHeader>> {
        let salt = self.salt;
        let Ok(header) = FrameHeader::decode(self.view(FRAME_HEADER_BYTES)?, salt) else {
            return Ok(None);
        };
        if header.frame_bytes() as u64 > self.limit - self.at {
            return Ok(None);
        }
        Ok(frame::decode(self.view(header.frame_bytes())?, salt).ok().map(|(header, _)| header))
    }

    /// The next `n` bytes, or fewer at the limit or the end of the file.
    fn view(&mut self, n: usize) -> Result<&[u8]> {
        let left = usize::try_from(self.limit - self.at).unwrap_or(usize::MAX);
        let n = n.min(left);
        let skip = usize::try_from(self.at - self.window_at).unwrap_or(usize::MAX);
        if self.window.len().saturating_sub(skip) < n {
            self.window.resize(n.max(READ_BYTES).min(left), 0);
            let got = read_upto(&*self.file, &mut self.window, self.at).at("reading", &self.path)?;
            self.window.truncate(got);
            self.window_at = self.at;
            return Ok(self.window.get(..n).unwrap_or(&self.window));
        }
        Ok(self.window.get(skip..skip.saturating_add(n)).unwrap_or_default())
    }
}

/// Bytes copied or compared at once.
pub(super) const STEP_BYTES: usize = 1 << 20;

/// Whether `from..bytes` holds nothing but zeros.
pub fn all_zero(file: &dyn DiskFile, path: &Path, mut from: u64, bytes: u64) -> Result<bool> {
    let mut window = Vec::new();
    while from < bytes {
        window.resize(usize::try_from(bytes - from).unwrap_or(usize::MAX).min(STEP_BYTES), 0);
        let got = read_upto(file, &mut window, from).at("reading", path)?;
        window.truncate(got);
        if got == 0 || window.iter().any(|&b| b != 0) {
            return Ok(got == 0);
        }
        from += got as u64;
    }
    Ok(true)
}

/// Fills `buf` from `offset` as far as the file goes.
pub fn read_upto(file: &dyn DiskFile, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset.saturating_add(done as u64))? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

/// Iterates over the records from one LSN up to the last that was appended when it was made, each verified
/// (checksum, salt, sequence, chain). Ends after the first error.
///
/// It holds no lock and may run while appending goes on. Segments are opened as they are reached: one that
/// retention removed meanwhile is an error that says so.
pub struct Reader {
    disk: Arc<dyn Disk>,
    segments: VecDeque<Segment>,
    cursor: Option<Cursor>,
    /// Records before this are walked over, not returned.
    from: Lsn,
    next: Lsn,
    chain: Chain,
    last: Lsn,
    failed: bool,
}

impl Reader {
    /// Reads `from..=last` out of `segments`, the first of which holds `from`; `start` lies in it.
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        segments: VecDeque<Segment>,
        start: Mark,
        from: Lsn,
        last: Lsn,
    ) -> Result<Reader> {
        // Nothing to read needs no walk from the place remembered, and no file.
        let next = if from <= last { start.lsn } else { from };
        let chain = start.before;
        let mut reader = Reader { disk, segments, cursor: None, from, next, chain, last, failed: false };
        if from <= last {
            reader.enter(start.at)?;
        }
        Ok(reader)
    }

    /// Opens the segment at the front.
    fn enter(&mut self, at: u64) -> Result<()> {
        let Some(segment) = self.segments.front() else {
            self.cursor = None;
            return Ok(());
        };
        let file = match self.disk.open(&segment.path, false) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Invalid(format!("record {} is no longer in the journal", self.next)));
            }
            Err(e) => return Err(Error::io("opening", &segment.path, e)),
        };
        self.cursor = Some(Cursor::new(file, &segment.path, segment.salt, at, segment.end));
        Ok(())
    }

    /// The next record, whether wanted or only on the way.
    fn advance(&mut self) -> Result<Record> {
        if self.segments.get(1).is_some_and(|following| following.first == self.next) {
            self.segments.pop_front();
            self.enter(super::segment::SEGMENT_HEADER_BYTES)?;
        }
        let (Some(cursor), Some(segment)) = (self.cursor.as_mut(), self.segments.front()) else {
            return Err(Error::corrupt("journal", format!("record {}", self.next), "no segment holds it"));
        };
        let detail = match cursor.next(self.next, &self.chain)? {
            Step::Frame(record) => {
                self.next = record.lsn.next();
                self.chain = record.chain;
                return Ok(record);
            }
            Step::End => "the segment ends before it".to_owned(),
            Step::Bad(fault) => fault.to_string(),
        };
        let place = format!("{} at offset {}", segment.path.display(), cursor.offset());
        Err(Error::corrupt("journal record", place, format!("record {}: {detail}", self.next)))
    }
}

impl Iterator for Reader {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        while !self.failed && self.next <= self.last {
            match self.advance() {
                Ok(record) if record.lsn < self.from => {}
                Ok(record) => return Some(Ok(record)),
                Err(e) => {
                    self.failed = true;
                    return Some(Err(e));
                }
            }
        }
        None
    }
}
