//! The journal: numbered, hash-chained records in segment files `<first lsn, 16 hex>.seg`. Bodies are opaque
//! (sealed above); nothing here needs a key.
//!
//! * [`frame`]: the bytes around a body, the chain. [`segment`]: the file and its header.
//! * [`writer`](Journal::append): appending, rolling, group commit.
//! * [`reader`]: walking records. [`recovery`]: the decision table of what is found at open.
//!
//! What holds: record n+1 is in the same file as record n or begins the next one; every segment but the last
//! is complete and durable; a record is written to the OS when `append` returns and durable when `sync` says
//! so; a record that `append` refused is never read back.
//!
//! About the medium: a write does not change bytes beside it; what a sync reported stays; a rename is atomic.
//! Between two syncs pages may reach the disk in any order.

pub mod frame;
pub mod reader;
mod recovery;
pub mod segment;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

pub use frame::{BODY_BYTES_MAX, Chain, Record};
pub use reader::Reader;
use segment::{Prepared, Segment, SegmentHeader};
pub use writer::BATCH_BYTES_MAX;
use writer::{Active, Published, SyncState};

use crate::types::error::IoContext;
use crate::types::{Disk, Error, Lsn, Result, StoreUuid, limits};

/// How a journal is kept.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// A segment is closed rather than grown beyond this many bytes; one record may be larger.
    pub segment_bytes: u64,
    /// Segments wholly below this LSN are checked by name and header only when opening; their records are
    /// verified when they are read. Zero verifies everything. Give the LSN from which replay begins.
    pub verify_from: Lsn,
    /// A record that somebody else has proof of (the index never gets ahead of the synced journal). A journal
    /// that ends before it has lost records; nothing of it is repaired.
    pub must_reach: Lsn,
    /// Row 5 of the recovery table.
    pub unordered_tail: UnorderedTail,
    /// Records behind this one are cut off as if they had been torn: what they refer to elsewhere did not
    /// survive. The caller knows that none of them was promised to anybody.
    pub cut_after: Option<Lsn>,
    /// Segments that begin before this record are not looked at: what a journal would be without them.
    pub ignore_before: Lsn,
}

impl Default for JournalOptions {
    fn default() -> JournalOptions {
        JournalOptions {
            segment_bytes: limits::SEGMENT_BYTES,
            verify_from: Lsn::ZERO,
            must_reach: Lsn::ZERO,
            unordered_tail: UnorderedTail::Damage,
            cut_after: None,
            ignore_before: Lsn::ZERO,
        }
    }
}

/// What a bad frame in the last segment means when intact frames follow it, but none of them says that the
/// bad one was ever synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnorderedTail {
    /// Damage: the journal opens read-only. Never drops an acknowledged record, but a power cut that kept
    /// later pages of an unfinished sync and not earlier ones needs an operator.
    Damage,
    /// The remains of a power cut: the tail is cut. If the bad frame rotted after the very last sync before
    /// the stop, acknowledged records of that last sync go with it; the report says so.
    Cut,
}

/// What opening found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The row of the table.
    pub outcome: Outcome,
    /// The oldest record that can be read (`last.next()` if there is none).
    pub oldest: Lsn,
    /// The last good record; the journal's start less one if there is none.
    pub last: Lsn,
    /// The chain after `last`. Means nothing if the very first segment's header is damaged.
    pub chain: Chain,
    /// Segment files that can be read.
    pub segments: usize,
    /// Records whose checksum and chain were verified.
    pub records_verified: u64,
}

/// A row of the recovery table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There was no journal; there is one now, unless opened read-only.
    Created,
    /// Nothing was wrong.
    Clean,
    /// The last write was torn; its remains were cut off, unless opened read-only.
    TornTail(TornTail),
    /// The last segment was torn while it was made; it held no record, and was made anew unless read-only.
    TornHeader {
        /// Which.
        file: PathBuf,
    },
    /// Records are missing or not what was written. The journal is read-only and ends before them.
    Damaged(Damage),
}

/// What was cut off the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The segment.
    pub file: PathBuf,
    /// Where the last good frame ends, in bytes.
    pub offset: u64,
    /// The record that would have been there.
    pub lsn: Lsn,
    /// Bytes from there to the end of the file, zeros written ahead included.
    pub bytes: u64,
    /// What was wrong with them.
    pub detail: String,
}

/// Damage that is never repaired silently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment.
    pub file: PathBuf,
    /// Where, in bytes; 0 is the header.
    pub offset: u64,
    /// The record that should be there.
    pub lsn_expected: Lsn,
    /// What is there instead.
    pub detail: String,
    /// False in row 5 only: it may also be what a power cut left. Opening with [`UnorderedTail::Cut`]
    /// then drops it.
    pub proven: bool,
}

/// What `append` made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The record's position.
    pub lsn: Lsn,
    /// The chain after it.
    pub chain: Chain,
}

/// An open journal. All methods may be called from several threads.
///
/// Lock order: `retention`, `writer`, `sync`, `published`. `sync` and `published` are never held during
/// I/O; `writer` is not taken by a sync.
pub struct Journal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    store: StoreUuid,
    options: JournalOptions,
    /// Why nothing may be appended, if so.
    read_only: Option<String>,
    /// 1st lock: one remover at a time; held while files are removed.
    retention: Mutex<()>,
    /// 2nd lock: one appender at a time; held while it writes and rolls. `None` when read-only.
    writer: Mutex<Option<Active>>,
    /// 3rd lock: who syncs, what is durable, whether a sync failed. Released during the sync itself.
    sync: Mutex<SyncState>,
    /// With `sync`.
    sync_done: Condvar,
    /// 4th lock: what readers and syncs see. Held for copying only.
    published: Mutex<Published>,
}

impl Journal {
    /// Opens the journal in `dir` (made if missing, its parent must exist), recovering as the table in
    /// `recovery` says, and makes everything found durable.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`]; [`Error::Corrupt`] for a foreign store's segment;
    /// [`Error::Version`]. Damage is no error: the report names it and the journal is read-only.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        store: StoreUuid,
        options: JournalOptions,
    ) -> Result<(Journal, RecoveryReport)> {
        disk.create_dir(dir).at("creating", dir)?;
        let mut found = reached(recovery::inspect(&*disk, dir, store, &options)?, dir, &options);
        let (active, read_only) = match &found.outcome {
            Outcome::Damaged(d) => {
                (None, Some(format!("the journal is damaged at record {}", d.lsn_expected)))
            }
            _ => (Some(recovery::repair(&*disk, dir, store, &options, &mut found)?), None),
        };
        let segments = found.segments.clone();
        let report = report(found);
        Ok((Journal::assemble(disk, dir, store, options, segments, &report, active, read_only), report))
    }

    /// Opens without a single write, for checking. What a torn tail held is not read.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn open_read_only(
        disk: Arc<dyn Disk>,
        dir: &Path,
        store: StoreUuid,
        options: JournalOptions,
    ) -> Result<(Journal, RecoveryReport)> {
        let found = reached(recovery::inspect(&*disk, dir, store, &options)?, dir, &options);
        let segments = found.segments.clone();
        let report = report(found);
        let reason = Some("it was opened for checking".to_owned());
        Ok((Journal::assemble(disk, dir, store, options, segments, &report, None, reason), report))
    }

    /// Makes an empty journal whose first record will be `first`, following the chain `before`: what a
    /// full sync leaves behind.
    ///
    /// # Errors
    /// [`Error::Invalid`] if `dir` already holds segments or `first` is 0; [`Error::Io`], [`Error::NoSpace`].
    pub fn start_at(
        disk: Arc<dyn Disk>,
        dir: &Path,
        store: StoreUuid,
        options: JournalOptions,
        first: Lsn,
        before: Chain,
    ) -> Result<Journal> {
        disk.create_dir(dir).at("creating", dir)?;
        let names = disk.list(dir).at("listing", dir)?;
        if names.iter().any(|n| n.to_str().is_some_and(|n| segment::first_of(n).is_some())) {
            return Err(Error::Invalid(format!("{} already holds a journal", dir.display())));
        }
        if first == Lsn::ZERO {
            return Err(Error::Invalid("a journal cannot start at record 0".to_owned()));
        }
        let header = SegmentHeader::fresh(store, first, before)?;
        let path = segment::path_of(dir, first);
        Prepared::new(&*disk, dir, &header, options.segment_bytes)?.publish(&*disk).at("renaming", &path)?;
        disk.sync_dir(dir).at("syncing", dir)?;
        Ok(Journal::open(disk, dir, store, options)?.0)
    }

    #[expect(clippy::too_many_arguments, reason = "the one constructor, called from three places above")]
    fn assemble(
        disk: Arc<dyn Disk>,
        dir: &Path,
        store: StoreUuid,
        options: JournalOptions,
        segments: Vec<Segment>,
        report: &RecoveryReport,
        active: Option<Arc<dyn crate::types::DiskFile>>,
        read_only: Option<String>,
    ) -> Journal {
        let active = active.zip(segments.last()).map(|(file, segment)| Active::new(file, segment));
        let published = Published {
            last: report.last,
            chain: report.chain,
            file: active.as_ref().map(Active::file),
            segments: VecDeque::from(segments),
        };
        Journal {
            disk,
            dir: dir.to_owned(),
            store,
            options,
            read_only,
            retention: Mutex::new(()),
            writer: Mutex::new(active),
            sync: Mutex::new(SyncState::new(report.last)),
            sync_done: Condvar::new(),
            published: Mutex::new(published),
        }
    }

    /// Why the journal is read-only, if it is.
    pub fn read_only(&self) -> Option<&str> {
        self.read_only.as_deref()
    }

    /// The last record appended and the chain after it; the start less one if there is none.
    pub fn last(&self) -> (Lsn, Chain) {
        let published = self.published.lock();
        (published.last, published.chain)
    }

    /// The LSN that the next append will give. Stable only under the caller's commit lock.
    pub fn next_lsn(&self) -> Lsn {
        self.published.lock().last.next()
    }

    /// The oldest record still here; [`Journal::next_lsn`] if there is none.
    pub fn oldest(&self) -> Lsn {
        self.published.lock().oldest()
    }

    /// Segment files.
    pub fn segments(&self) -> usize {
        self.published.lock().segments.len()
    }

    /// Bytes of all segment files, zeros written ahead included.
    pub fn bytes(&self) -> u64 {
        self.published.lock().segments.iter().map(|s| s.bytes).sum()
    }

    /// The records from `lsn` to the last appended now. `lsn` may be [`Journal::next_lsn`]: nothing yet.
    ///
    /// # Errors
    /// [`Error::Invalid`] if `lsn` is older than [`Journal::oldest`] or beyond the next one.
    pub fn read_from(&self, lsn: Lsn) -> Result<Reader> {
        let (segments, start, last) = {
            let published = self.published.lock();
            let (oldest, last) = (published.oldest(), published.last);
            if lsn < oldest {
                let what = format!("record {lsn} is no longer in the journal; the oldest is {oldest}");
                return Err(Error::Invalid(what));
            }
            if lsn > last.next() {
                return Err(Error::Invalid(format!(
                    "record {lsn} is not in the journal; the last is {last}"
                )));
            }
            let behind = published.segments.partition_point(|s| s.first <= lsn);
            let first = behind.saturating_sub(1);
            let start = published.segments.get(first).and_then(|s| s.nearest(lsn));
            let segments: VecDeque<Segment> =
                published.segments.iter().skip(first).map(Segment::without_marks).collect();
            (segments, start.unwrap_or(published.start()), last)
        };
        Reader::new(self.disk.clone(), segments, start, lsn, last)
    }

    /// Removes segments whose records are all below `lsn`, oldest first, each removal made durable before
    /// the next, so that a crash leaves one contiguous run. Never the active one. Returns how many.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::Poisoned`], [`Error::Io`]; what was removed until then stays removed.
    pub fn remove_before(&self, lsn: Lsn) -> Result<usize> {
        let _one = self.retention.lock();
        self.writable()?;
        let mut removed = 0;
        loop {
            let path = {
                let published = self.published.lock();
                match (published.segments.front(), published.segments.get(1)) {
                    (Some(oldest), Some(second)) if second.first <= lsn => oldest.path.clone(),
                    _ => return Ok(removed),
                }
            };
            match self.disk.remove(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("removing", &path, e)),
                _ => {}
            }
            // Only appends change the list besides, and those at its other end.
            self.published.lock().segments.pop_front();
            removed += 1;
            self.disk.sync_dir(&self.dir).map_err(|e| self.poison("syncing", &self.dir, &e))?;
        }
    }

    /// Fails if the journal is read-only or a sync failed.
    fn writable(&self) -> Result<()> {
        if let Some(reason) = &self.read_only {
            return Err(Error::ReadOnly(reason.clone()));
        }
        self.sync.lock().check()
    }
}

/// Row 16: a journal that ends before a record that must be there.
fn reached(mut found: recovery::Found, dir: &Path, options: &JournalOptions) -> recovery::Found {
    if found.last < options.must_reach && !matches!(found.outcome, Outcome::Damaged(_)) {
        let file = found.segments.last();
        let file = file.map_or_else(|| segment::path_of(dir, found.last.next()), |s| s.path.clone());
        let detail = format!("the index has record {}, the journal ends here", options.must_reach);
        found.outcome = Outcome::Damaged(Damage {
            file,
            offset: 0,
            lsn_expected: found.last.next(),
            detail,
            proven: true,
        });
    }
    found
}

fn report(found: recovery::Found) -> RecoveryReport {
    RecoveryReport {
        oldest: found.segments.first().map_or(found.last.next(), |s| s.first.min(found.last.next())),
        outcome: found.outcome,
        last: found.last,
        chain: found.chain,
        segments: found.segments.len(),
        records_verified: found.verified,
    }
}
