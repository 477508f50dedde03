//! What a journal is found to be, and what is done about it, when it is opened.
//!
//! Only the last segment can hold records that were never synced (see [`super::segment`]); everything
//! else follows from that.
//!
//! | # | found | so | done |
//! |---|---|---|---|
//! | 1 | no segment | created | the first segment is made |
//! | 2 | good frames to the end of the last segment, or only zeros behind | clean | synced, goes on |
//! | 3 | a bad frame in the last one, no intact frame of its salt behind | torn tail | cut, new segment |
//! | 4 | the same, but a later intact frame says this LSN was synced | damage | |
//! | 5 | the same, but no later intact frame says so | not proven | as [`UnorderedTail`]: 4 or 3 |
//! | 6 | an intact frame whose LSN or chain does not follow | damage | |
//! | 7 | a bad frame in an earlier segment | damage | |
//! | 8 | an earlier segment ends before the next begins (file missing or cut) | damage | |
//! | 9 | an earlier segment goes on behind the next one's start | damage | |
//! | 10 | a header with another chain than the records before, or the wrong LSN | damage | |
//! | 11 | bad or short header of the last one, zeros behind, chain before known | torn header | made anew |
//! | 12 | any other bad header | damage | |
//! | 13 | an intact header of another store | [`Error::Corrupt`] | |
//! | 14 | an intact header of another version | [`Error::Version`] | |
//! | 14a | records behind [`JournalOptions::cut_after`] | torn tail | later segments removed first, newest first |
//! | 15 | the mark of a failed sync, with 1, 2, 3 or 11 | as there | first, the last segment is rewritten |
//!
//! Damage: the journal is read-only up to there, and not a byte is changed; so too whenever it is opened
//! read-only. Torn tail: the file is cut to its good frames and synced before a new segment (with a new salt)
//! gets its name, so the bytes behind are gone; if it had no good frame, the new one replaces it.
//!
//! Row 5 is either rot in the last synced batch or the remains of a power cut during a sync (pages reach the
//! disk in any order). The journal alone cannot tell which.
//!
//! Row 15: after a failed fdatasync Linux calls the pages clean; a restarted server would read its records
//! from memory, sync "successfully", and promise what is on no disk. The mark need not be durable itself:
//! after a reboot the page cache is gone too.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::{Chain, FRAME_HEADER_BYTES, FrameFault};
use super::reader::{Cursor, STEP_BYTES, Step, all_zero, read_upto};
use super::segment::{self, HeaderFault, Prepared, SEGMENT_HEADER_BYTES, Segment, SegmentHeader};
use super::{Damage, JournalOptions, Outcome, TornTail, UnorderedTail};
use crate::types::error::IoContext;
use crate::types::{Disk, DiskFile, Error, Lsn, Result, StoreUuid, limits};

/// Left in the directory when a sync failed; see row 15.
const POISON_MARK: &str = "sync-failed";

/// What was found.
pub struct Found {
    /// Segments that can be read, oldest first.
    pub segments: Vec<Segment>,
    /// The last good record; the LSN before the first segment if there is none.
    pub last: Lsn,
    /// The chain after it.
    pub chain: Chain,
    /// Which row of the table.
    pub outcome: Outcome,
    /// Records whose checksum and chain were verified.
    pub verified: u64,
    temporaries: Vec<PathBuf>,
    /// Segments wholly behind the cut that was asked for, oldest first.
    behind_cut: Vec<PathBuf>,
    sync_failed: bool,
}

/// Reads the journal in `dir` and decides which row of the table it is. Writes nothing.
///
/// # Errors
/// Rows 13 and 14, and [`Error::Io`] when something cannot be read.
pub fn inspect(disk: &dyn Disk, dir: &Path, store: StoreUuid, options: &JournalOptions) -> Result<Found> {
    let mut found = Found {
        segments: Vec::new(),
        last: Lsn::ZERO,
        chain: Chain::origin(store),
        outcome: Outcome::Created,
        verified: 0,
        temporaries: Vec::new(),
        behind_cut: Vec::new(),
        sync_failed: false,
    };
    let mut firsts = Vec::new();
    for name in disk.list(dir).at("listing", dir)? {
        let Some(name) = name.to_str() else { continue };
        firsts.extend(segment::first_of(name).filter(|first| *first >= options.ignore_before));
        found.sync_failed |= name == POISON_MARK;
        if segment::is_temporary(name) {
            found.temporaries.push(dir.join(name));
        }
    }
    firsts.sort_unstable();
    if let Some(cut) = options.cut_after {
        let kept = firsts.partition_point(|first| *first <= cut).max(1).min(firsts.len());
        found.behind_cut =
            firsts.split_off(kept).into_iter().map(|first| segment::path_of(dir, first)).collect();
    }
    let mut scan = Scan { disk, dir, store, options, chain: None, found };
    for (i, &first) in firsts.iter().enumerate() {
        let following = firsts.get(i + 1).copied();
        // The last two are always walked: making a torn last one anew needs the chain before it.
        let walk = i + 2 >= firsts.len() || following.is_none_or(|f| f > options.verify_from);
        if i == 0 {
            scan.found.last = Lsn(first.0.saturating_sub(1));
            scan.chain = (first == Lsn(1)).then(|| Chain::origin(store));
        }
        if let Some(outcome) = scan.segment(first, following, walk)? {
            scan.found.outcome = outcome;
            break;
        }
    }
    scan.found.chain = scan.chain.unwrap_or(scan.found.chain);
    Ok(scan.found)
}

struct Scan<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    store: StoreUuid,
    options: &'a JournalOptions,
    /// The chain after `found.last`, where it is known.
    chain: Option<Chain>,
    found: Found,
}

impl Scan<'_> {
    /// Looks at one segment; `None` if the next one is to be looked at.
    fn segment(&mut self, first: Lsn, following: Option<Lsn>, walk: bool) -> Result<Option<Outcome>> {
        let path = segment::path_of(self.dir, first);
        let file = self.disk.open(&path, false).at("opening", &path)?;
        let bytes = file.len().at("measuring", &path)?;
        let mut block = vec![0; SEGMENT_HEADER_BYTES as usize];
        let got = read_upto(&*file, &mut block, 0).at("reading", &path)?;
        block.truncate(got);
        let header = match SegmentHeader::decode(&block) {
            Ok(header) => header,
            Err(HeaderFault::Version(found)) => {
                return Err(Error::Version { path, found, expected: limits::FORMAT_VERSION });
            }
            Err(fault) => return self.bad_header(path, &*file, bytes, following, fault).map(Some),
        };
        if header.store != self.store {
            let detail = format!("it belongs to store {}, not to {}", header.store, self.store);
            return Err(Error::corrupt("journal segment", path.display().to_string(), detail));
        }
        if header.first != first || first == Lsn::ZERO {
            let detail = format!("the header is that of the segment beginning at record {}", header.first);
            return Ok(Some(self.damage(path, 0, detail, true)));
        }
        let before = *self.chain.get_or_insert(header.before);
        if before != header.before {
            let detail =
                format!("it continues chain {}, the records before it end in {before}", header.before);
            return Ok(Some(self.damage(path, 0, detail, true)));
        }
        let mut segment = Segment::new(self.dir, &header, bytes);
        if let (false, Some(following)) = (walk, following) {
            segment.end = bytes;
            self.found.segments.push(segment);
            self.found.last = Lsn(following.0.saturating_sub(1));
            self.chain = None;
            return Ok(None);
        }
        let mut cursor = Cursor::new(file, &path, header.salt, SEGMENT_HEADER_BYTES, bytes);
        let stopped = self.walk(&mut segment, &mut cursor, before, following);
        let end = segment.end;
        self.found.segments.push(segment);
        match stopped? {
            Stop::Joined => Ok(None),
            Stop::Cut => {
                let (lsn, bytes) = (self.found.last.next(), bytes - end);
                let detail = "what its records refer to is lost".to_owned();
                Ok(Some(Outcome::TornTail(TornTail { file: path, offset: end, lsn, bytes, detail })))
            }
            Stop::Overlap => Ok(Some(self.damage(path, end, "the next segment begins here too", true))),
            Stop::End => Ok(Some(match following {
                None => Outcome::Clean,
                Some(next) => {
                    let detail = format!("it ends, but the next segment begins at record {next}");
                    self.damage(path, end, detail, true)
                }
            })),
            Stop::Bad(fault) => self.bad_frame(path, cursor, bytes, following, fault).map(Some),
        }
    }

    /// Verifies the frames of one segment as far as they are good, or to the next one's start.
    fn walk(
        &mut self,
        segment: &mut Segment,
        cursor: &mut Cursor,
        mut chain: Chain,
        following: Option<Lsn>,
    ) -> Result<Stop> {
        loop {
            let expect = self.found.last.next();
            let joined = following == Some(expect);
            match cursor.next(expect, &chain)? {
                Step::Frame(_) if joined => return Ok(Stop::Overlap),
                _ if joined => return Ok(Stop::Joined),
                Step::Frame(_) if self.options.cut_after.is_some_and(|cut| expect > cut) => {
                    return Ok(Stop::Cut);
                }
                Step::Frame(record) => {
                    segment.mark(expect, segment.end, chain);
                    segment.end = cursor.offset();
                    chain = record.chain;
                    self.chain = Some(chain);
                    self.found.last = expect;
                    self.found.verified += 1;
                }
                Step::End => return Ok(Stop::End),
                Step::Bad(fault) => return Ok(Stop::Bad(fault)),
            }
        }
    }

    /// Rows 11 and 12.
    fn bad_header(
        &self,
        path: PathBuf,
        file: &dyn DiskFile,
        bytes: u64,
        following: Option<Lsn>,
        fault: HeaderFault,
    ) -> Result<Outcome> {
        let known = self.chain.is_some() && following.is_none();
        if known && all_zero(file, &path, SEGMENT_HEADER_BYTES, bytes)? {
            return Ok(Outcome::TornHeader { file: path });
        }
        Ok(self.damage(path, 0, fault.to_string(), true))
    }

    /// Rows 2 to 7.
    fn bad_frame(
        &self,
        path: PathBuf,
        mut cursor: Cursor,
        bytes: u64,
        following: Option<Lsn>,
        fault: FrameFault,
    ) -> Result<Outcome> {
        let (offset, lsn) = (cursor.offset(), self.found.last.next());
        if let Some(next) = following {
            let detail = format!("{fault}; the next segment begins at record {next}");
            return Ok(self.damage(path, offset, detail, true));
        }
        if fault.intact() {
            return Ok(self.damage(path, offset, fault.to_string(), true));
        }
        if cursor.only_zeros()? {
            return Ok(Outcome::Clean);
        }
        let Some(later) = Later::find(&mut cursor, lsn)? else {
            let detail = fault.to_string();
            return Ok(Outcome::TornTail(TornTail {
                file: path,
                offset,
                lsn,
                bytes: bytes - offset,
                detail,
            }));
        };
        let proven = later.synced >= lsn;
        let detail = format!("{fault}; {later}");
        if proven || self.options.unordered_tail == UnorderedTail::Damage {
            return Ok(self.damage(path, offset, detail, proven));
        }
        Ok(Outcome::TornTail(TornTail { file: path, offset, lsn, bytes: bytes - offset, detail }))
    }

    fn damage(&self, file: PathBuf, offset: u64, detail: impl Into<String>, proven: bool) -> Outcome {
        let lsn_expected = self.found.last.next();
        Outcome::Damaged(Damage { file, offset, lsn_expected, detail: detail.into(), proven })
    }
}

/// Why a walk over a segment stopped.
enum Stop {
    /// At the record with which the next segment begins.
    Joined,
    /// There too, but this segment holds that record as well.
    Overlap,
    /// At the first record behind the cut that was asked for.
    Cut,
    /// At the end of the file.
    End,
    /// At something that is not the next record.
    Bad(FrameFault),
}

/// Intact frames behind a bad one.
struct Later {
    at: u64,
    lsn: Lsn,
    count: u64,
    synced: Lsn,
}

impl std::fmt::Display for Later {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} intact frames follow, the first is record {} at offset {}",
            self.count, self.lsn, self.at
        )?;
        write!(f, "; they say that records up to {} were synced", self.synced)
    }
}

impl Later {
    /// Searches behind the bad frame at the cursor, which should be record `lsn`.
    fn find(cursor: &mut Cursor, lsn: Lsn) -> Result<Option<Later>> {
        let bad_at = cursor.offset();
        let mut later: Option<Later> = None;
        cursor.skip(1);
        while let Some((at, header)) = cursor.find()? {
            // The records between them must fit between them; at least one does, the bad one.
            let room = (at - bad_at) / FRAME_HEADER_BYTES as u64;
            if header.lsn <= lsn || header.lsn.0 - lsn.0 > room {
                continue;
            }
            let l = later.get_or_insert(Later { at, lsn: header.lsn, count: 0, synced: Lsn::ZERO });
            l.count += 1;
            l.synced = l.synced.max(header.synced);
        }
        Ok(later)
    }
}

/// Does what the table says, for every row that is not damage, and returns the file of the last segment,
/// which is then the active one, durable up to `found.last`.
///
/// # Errors
/// [`Error::Io`], [`Error::NoSpace`]. It may be tried again: nothing good was removed.
pub fn repair(
    disk: &dyn Disk,
    dir: &Path,
    store: StoreUuid,
    options: &JournalOptions,
    found: &mut Found,
) -> Result<Arc<dyn DiskFile>> {
    for leftover in found.temporaries.drain(..) {
        disk.remove(&leftover).at("removing", &leftover)?;
    }
    while let Some(path) = found.behind_cut.pop() {
        disk.remove(&path).at("removing", &path)?;
        disk.sync_dir(dir).at("syncing", dir)?;
    }
    let mut active = None;
    let torn = matches!(found.outcome, Outcome::TornTail(_));
    if let Some(last) = found.segments.last_mut() {
        let file = disk.open(&last.path, true).at("opening", &last.path)?;
        if found.sync_failed {
            write_again(&*file, last)?;
        }
        if torn {
            // Cut durably, so that these bytes are gone whatever is appended elsewhere.
            file.set_len(last.end).at("cutting", &last.path)?;
            last.bytes = last.end;
        }
        file.sync_data().inspect_err(|_| mark_poisoned(disk, dir)).at("syncing", &last.path)?;
        active = Some(file);
    }
    let active = match active {
        Some(file) if matches!(found.outcome, Outcome::Clean) => file,
        _ => renew(disk, dir, store, options, found)?,
    };
    disk.sync_dir(dir).inspect_err(|_| mark_poisoned(disk, dir)).at("syncing", dir)?;
    if found.sync_failed {
        let mark = dir.join(POISON_MARK);
        disk.remove(&mark).at("removing", &mark)?;
    }
    Ok(active)
}

/// Makes the segment that follows `found.last`, in place of a torn one that holds no record.
fn renew(
    disk: &dyn Disk,
    dir: &Path,
    store: StoreUuid,
    options: &JournalOptions,
    found: &mut Found,
) -> Result<Arc<dyn DiskFile>> {
    let header = SegmentHeader::fresh(store, found.last.next(), found.chain)?;
    let prepared = Prepared::new(disk, dir, &header, options.segment_bytes)?;
    let path = segment::path_of(dir, header.first);
    let (segment, file) = prepared.publish(disk).at("renaming", &path)?;
    found.segments.retain(|s| s.first != header.first);
    found.segments.push(segment);
    Ok(file)
}

/// Row 15: makes every page of the segment dirty again, with the bytes it has.
fn write_again(file: &dyn DiskFile, segment: &Segment) -> Result<()> {
    let mut window = Vec::new();
    let mut at = 0;
    while at < segment.end {
        window.resize(usize::try_from(segment.end - at).unwrap_or(usize::MAX).min(STEP_BYTES), 0);
        file.read_exact_at(&mut window, at).at("reading", &segment.path)?;
        file.write_all_at(&window, at).at("rewriting", &segment.path)?;
        at += window.len() as u64;
    }
    Ok(())
}

/// Leaves word for the next server that a sync failed. Where even this fails, so will its open.
pub fn mark_poisoned(disk: &dyn Disk, dir: &Path) {
    let _ = disk.create(&dir.join(POISON_MARK));
}
