//! Appending, rolling to the next segment, and group commit.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::{self, BODY_BYTES_MAX, Chain, FRAME_HEADER_BYTES};
use super::recovery;
use super::segment::{Mark, PREWRITE_BYTES, Prepared, SEGMENT_HEADER_BYTES, Segment, SegmentHeader, is_full};
use super::{Appended, Journal};
use crate::types::error::IoContext;
use crate::types::{DiskFile, Error, Lsn, Result, Term};

/// The most that [`Journal::append_many`] takes at once, frame headers included.
pub const BATCH_BYTES_MAX: usize = 2 * BODY_BYTES_MAX;
/// A larger encoding buffer is given back after use.
const BUFFER_KEEP_BYTES: usize = 1 << 20;

/// The segment being appended to.
pub(super) struct Active {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    salt: u32,
    /// Offset of the next frame.
    end: u64,
    /// Up to here the file is known to hold frames, then zeros.
    prewritten: u64,
    buffer: Vec<u8>,
    /// Where the newest record stands, if it was appended to this file alone; see [`Journal::withdraw`].
    newest: Option<Mark>,
}

impl Active {
    pub(super) fn new(file: Arc<dyn DiskFile>, segment: &Segment) -> Active {
        Active {
            file,
            path: segment.path.clone(),
            salt: segment.salt,
            end: segment.end,
            prewritten: segment.bytes,
            buffer: Vec::new(),
            newest: None,
        }
    }

    pub(super) fn file(&self) -> (Arc<dyn DiskFile>, PathBuf) {
        (self.file.clone(), self.path.clone())
    }

    /// Writes zeros behind `end`, the end of the frames about to be written, if they go beyond what has
    /// been written ahead. Returns up to where the file is then prepared.
    fn prewrite(&self, end: u64, segment_bytes: u64) -> Result<u64> {
        if end <= self.prewritten {
            return Ok(self.prewritten);
        }
        let target = end.next_multiple_of(PREWRITE_BYTES).min(segment_bytes.max(end));
        match self.file.write_all_at(&vec![0; (target - end) as usize], end) {
            Ok(()) => Ok(target),
            // Only for speed: the frames themselves may still fit.
            Err(e) if is_full(&e) => Ok(end),
            Err(e) => Err(Error::io("writing", &self.path, e)),
        }
    }
}

/// What is durable, and who is making more so.
pub(super) struct SyncState {
    /// Somebody is in a sync; its outcome decides for all, so there is only ever one.
    busy: bool,
    durable: Lsn,
    poisoned: Option<String>,
}

impl SyncState {
    pub(super) fn new(durable: Lsn) -> SyncState {
        SyncState { busy: false, durable, poisoned: None }
    }

    pub(super) fn check(&self) -> Result<()> {
        self.poisoned.as_ref().map_or(Ok(()), |reason| Err(Error::Poisoned(reason.clone())))
    }
}

/// What readers and syncs see.
pub(super) struct Published {
    pub(super) last: Lsn,
    pub(super) chain: Chain,
    /// The file that holds every record up to `last` which is not durable; `None` when read-only.
    pub(super) file: Option<(Arc<dyn DiskFile>, PathBuf)>,
    /// Oldest first; the last one is the active one.
    pub(super) segments: VecDeque<Segment>,
}

impl Published {
    pub(super) fn oldest(&self) -> Lsn {
        let next = self.last.next();
        self.segments.front().map_or(next, |s| s.first.min(next))
    }

    /// Where a reader of nothing stands.
    pub(super) fn start(&self) -> Mark {
        Mark { lsn: self.last.next(), at: SEGMENT_HEADER_BYTES, before: self.chain }
    }
}

impl Journal {
    /// Appends one record: written to the OS when this returns, durable after [`Journal::sync`].
    ///
    /// # Errors
    /// As [`Journal::append_many`].
    pub fn append(&self, term: Term, body: &[u8]) -> Result<Appended> {
        let made = self.append_many(&[(term, body)])?;
        made.first().copied().ok_or_else(|| Error::Invalid("nothing was appended".to_owned()))
    }

    /// Appends several records with one write; all or none of them.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a body over [`BODY_BYTES_MAX`] or a batch over [`BATCH_BYTES_MAX`];
    /// [`Error::NoSpace`] when the disk is full (appending goes on once there is room); [`Error::Io`];
    /// [`Error::Poisoned`] after a failed sync; [`Error::ReadOnly`]. On every error nothing was appended.
    pub fn append_many(&self, records: &[(Term, &[u8])]) -> Result<Vec<Appended>> {
        let bytes = batch_bytes(records)?;
        let mut writer = self.writer.lock();
        self.writable()?;
        let read_only = || Error::ReadOnly("the journal has no active segment".to_owned());
        let active = writer.as_mut().ok_or_else(read_only)?;
        let (mut lsn, mut chain) = self.last();
        if lsn.0.checked_add(records.len() as u64).is_none_or(|last| last == u64::MAX) {
            return Err(Error::Invalid("the journal has no record numbers left".to_owned()));
        }
        let full = active.end.saturating_add(bytes) > self.options.segment_bytes;
        if full && active.end > SEGMENT_HEADER_BYTES {
            self.roll(active)?;
        }
        let synced = self.durable();
        let mut buffer = std::mem::take(&mut active.buffer);
        let mut made = Vec::with_capacity(records.len());
        let mut places = Vec::with_capacity(records.len());
        buffer.clear();
        for &(term, body) in records {
            lsn = lsn.next();
            places.push(Mark { lsn, at: active.end + buffer.len() as u64, before: chain });
            chain = chain.after(lsn, term, body);
            frame::encode(&mut buffer, active.salt, synced, (lsn, term, chain), body);
            made.push(Appended { lsn, chain });
        }
        let written = self.write(active, &buffer, records.len());
        buffer.clear();
        buffer.shrink_to(BUFFER_KEEP_BYTES);
        active.buffer = buffer;
        written?;
        active.newest = places.first().filter(|_| places.len() == 1).copied();
        let mut published = self.published.lock();
        (published.last, published.chain) = (lsn, chain);
        if let Some(segment) = published.segments.back_mut() {
            places.iter().for_each(|p| segment.mark(p.lsn, p.at, p.before));
            (segment.end, segment.bytes) = (active.end, active.prewritten);
        }
        Ok(made)
    }

    /// Begins another segment if the present one holds a record, so that all records until now can be removed
    /// ([`Journal::remove_before`]). The caller sees to it that nobody withdraws a record meanwhile.
    ///
    /// # Errors
    /// As [`Journal::append_many`]; on a full disk nothing has changed.
    pub fn begin_segment(&self) -> Result<Lsn> {
        let mut writer = self.writer.lock();
        self.writable()?;
        let read_only = || Error::ReadOnly("the journal has no active segment".to_owned());
        let active = writer.as_mut().ok_or_else(read_only)?;
        if active.end > SEGMENT_HEADER_BYTES {
            self.roll(active)?;
        }
        Ok(self.last().0.next())
    }

    /// Takes the newest record back: it could be appended and not be applied. When this returns it is gone,
    /// whatever happens, and its number is free. The caller appended it alone, still holds the lock under
    /// which it did, and has told nobody of it.
    ///
    /// # Errors
    /// [`Error::Poisoned`] if the cut or its sync failed; [`Error::Invalid`] if it is not the newest.
    pub fn withdraw(&self, lsn: Lsn) -> Result<()> {
        let mut writer = self.writer.lock();
        self.writable()?;
        let newest = |active: &mut Active| active.newest.take().filter(|mark| mark.lsn == lsn);
        let found = writer.as_mut().and_then(|active| Some((newest(active)?, active)));
        let Some((mark, active)) = found.filter(|_| self.last().0 == lsn) else {
            return Err(Error::Invalid(format!("record {lsn} is not the newest")));
        };
        // No sync may count it while it goes; one that was under way has counted it, so that is undone.
        self.take_turn()?;
        let before = Lsn(lsn.0.saturating_sub(1));
        active.end = mark.at;
        {
            let mut published = self.published.lock();
            (published.last, published.chain) = (before, mark.before);
            if let Some(segment) = published.segments.back_mut() {
                segment.end = mark.at;
            }
        }
        let result = self.cut(active).and_then(|()| active.file.sync_data());
        {
            let mut state = self.sync.lock();
            state.durable = state.durable.min(before);
        }
        self.finish_sync(&active.path, result, before)
    }

    /// Writes encoded frames at the end. On an error the file is as before.
    fn write(&self, active: &mut Active, frames: &[u8], count: usize) -> Result<()> {
        let end = active.end + frames.len() as u64;
        let prewritten = active.prewrite(end, self.options.segment_bytes)?;
        match active.file.write_all_at(frames, active.end) {
            Ok(()) => {
                active.end = end;
                active.prewritten = prewritten;
                Ok(())
            }
            Err(e) => {
                self.undo(active, count > 1 || !is_full(&e))?;
                Err(Error::io("writing", &active.path, e))
            }
        }
    }

    /// Cuts what a failed write may have left. `whole`: it may have left whole frames, so the cut is synced,
    /// lest a power cut bring back refused records. (A single frame that found no room is not whole.)
    fn undo(&self, active: &mut Active, whole: bool) -> Result<()> {
        if let Err(e) = self.cut(active) {
            return Err(self.poison("cutting", &active.path, &e));
        }
        if whole { self.sync_file(&active.file, &active.path, self.last().0) } else { Ok(()) }
    }

    /// Cuts the active segment to its frames.
    fn cut(&self, active: &mut Active) -> io::Result<()> {
        active.file.set_len(active.end)?;
        active.prewritten = active.end;
        if let Some(segment) = self.published.lock().segments.back_mut() {
            segment.bytes = active.end;
        }
        Ok(())
    }

    /// Closes the active segment and begins the next.
    ///
    /// The next one is made ready first: on a full disk nothing has changed. Then the old one is cut to its
    /// frames and synced; only then does the next one get its name.
    fn roll(&self, active: &mut Active) -> Result<()> {
        let (last, chain) = self.last();
        let header = SegmentHeader::fresh(self.store, last.next(), chain)?;
        let prepared = Prepared::new(&*self.disk, &self.dir, &header, self.options.segment_bytes)?;
        let closed = self
            .cut(active)
            .at("cutting", &active.path)
            .and_then(|()| self.sync_file(&active.file, &active.path, last));
        if let Err(e) = closed {
            prepared.discard(&*self.disk);
            return Err(e);
        }
        let (segment, file) = match prepared.publish(&*self.disk) {
            Ok(published) => published,
            Err(e) if is_full(&e) => return Err(Error::io("renaming", &active.path, e)),
            // It may have happened: appending to the old one could then lose records.
            Err(e) => return Err(self.poison("renaming", &active.path, &e)),
        };
        self.disk.sync_dir(&self.dir).map_err(|e| self.poison("syncing", &self.dir, &e))?;
        let buffer = std::mem::take(&mut active.buffer);
        let next = Active { buffer, ..Active::new(file, &segment) };
        let mut published = self.published.lock();
        published.file = Some(next.file());
        published.segments.push_back(segment);
        *active = next;
        Ok(())
    }

    /// Everything up to here survives a power cut.
    pub fn durable(&self) -> Lsn {
        self.sync.lock().durable
    }

    /// Returns when records up to `upto` are durable, with the durable LSN, which may be later. Callers that
    /// come together share one fdatasync; appends go on meanwhile.
    ///
    /// # Errors
    /// [`Error::Poisoned`] if this sync or an earlier one failed: it is never retried. [`Error::Invalid`] if
    /// `upto` was not appended. [`Error::ReadOnly`].
    pub fn sync(&self, upto: Lsn) -> Result<Lsn> {
        self.writable()?;
        let last = self.last().0;
        if upto > last {
            return Err(Error::Invalid(format!("record {upto} cannot be synced; the last is {last}")));
        }
        {
            let mut state = self.sync.lock();
            loop {
                state.check()?;
                if state.durable >= upto {
                    return Ok(state.durable);
                }
                if !state.busy {
                    break;
                }
                self.sync_done.wait(&mut state);
            }
            state.busy = true;
        }
        // Taken only now, so that this sync also covers what was appended while it waited its turn.
        let (file, last) = {
            let published = self.published.lock();
            (published.file.clone(), published.last)
        };
        let result = file.as_ref().map_or(Ok(()), |(file, _)| file.sync_data());
        let path = file.map_or_else(|| self.dir.clone(), |(_, path)| path);
        self.finish_sync(&path, result, last)?;
        Ok(self.durable())
    }

    /// Syncs a file that holds every record up to `last` which is not durable, in turn with other syncs: the
    /// kernel tells of a failed write-back only once, so a sync beside one that fails could succeed.
    fn sync_file(&self, file: &Arc<dyn DiskFile>, path: &Path, last: Lsn) -> Result<()> {
        self.take_turn()?;
        let result = file.sync_data();
        self.finish_sync(path, result, last)
    }

    /// Waits until nobody syncs and keeps others from it until [`Journal::finish_sync`].
    fn take_turn(&self) -> Result<()> {
        let mut state = self.sync.lock();
        while state.busy {
            self.sync_done.wait(&mut state);
        }
        state.check()?;
        state.busy = true;
        Ok(())
    }

    fn finish_sync(&self, path: &Path, result: io::Result<()>, last: Lsn) -> Result<()> {
        let result = result.map_err(|e| self.poison("syncing", path, &e));
        let mut state = self.sync.lock();
        state.busy = false;
        if result.is_ok() {
            state.durable = state.durable.max(last);
        }
        drop(state);
        self.sync_done.notify_all();
        result
    }

    /// Refuses everything from now on, and leaves word for the next server. Returns the error to give.
    pub(super) fn poison(&self, what: &str, path: &Path, e: &io::Error) -> Error {
        let mut state = self.sync.lock();
        let reason = state.poisoned.get_or_insert_with(|| format!("{what} {}: {e}", path.display())).clone();
        drop(state);
        recovery::mark_poisoned(&*self.disk, &self.dir);
        Error::Poisoned(reason)
    }
}

/// The bytes that `records` take as frames.
fn batch_bytes(records: &[(Term, &[u8])]) -> Result<u64> {
    let mut bytes = 0usize;
    for (_, body) in records {
        if body.len() > BODY_BYTES_MAX {
            let what = format!("a record of {} bytes is over the limit of {BODY_BYTES_MAX}", body.len());
            return Err(Error::Invalid(what));
        }
        bytes = bytes.saturating_add(FRAME_HEADER_BYTES + body.len());
    }
    if bytes > BATCH_BYTES_MAX {
        return Err(Error::Invalid(format!(
            "a batch of {bytes} bytes is over the limit of {BATCH_BYTES_MAX}"
        )));
    }
    Ok(bytes as u64)
}
