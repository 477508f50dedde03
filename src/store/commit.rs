//! Committing a record: journal, then index, both or neither.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::index::apply::Place;
use super::journal::Appended;
use super::model::{Edit, Record, RequestId};
use super::room::Use;
use super::{FLUSH_SPARE_BYTES, Store, index, record_aad};
use crate::types::limits::{RECORD_BYTES_MAX, RECORD_EDITS_MAX};
use crate::types::{Error, Lsn, Result, Term};

/// How long a change waits for RocksDB, which tries again every five seconds.
const RESUME_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks.
const RESUME_LOOK: Duration = Duration::from_millis(20);
/// Changes of the index that freeing may add in memory while those before wait for room.
const FREEING_BYTES: u64 = 64 << 20;

impl Store {
    /// Journals the edits as one record and applies it. When this returns, every view shows it and a
    /// process kill loses nothing of it; a power cut may, until [`Store::sync`].
    ///
    /// # Errors
    /// Each leaves everything as it was: [`Error::NoSpace`] (of what frees space only when the reserve is used
    /// up as well, and then perhaps after some seconds), [`Error::Invalid`], [`Error::Poisoned`], [`Error::ReadOnly`], and what kept the record from
    /// being applied.
    pub fn commit(&self, edits: Vec<Edit>, request: Option<RequestId>) -> Result<Lsn> {
        self.commit_noted(edits, request, &|_| {})
    }

    /// As [`Store::commit`]. `note` is called with the record's LSN before it is appended, and with
    /// [`Lsn::ZERO`] if it then was not: whoever finds the note after a crash asks the journal whether it
    /// reaches that far. Both under the append lock.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub fn commit_noted(
        &self,
        edits: Vec<Edit>,
        request: Option<RequestId>,
        note: &dyn Fn(Lsn),
    ) -> Result<Lsn> {
        let mut record = Record { time: self.clock.now(), durable: self.durable(), request, edits };
        if record.edits.len() > RECORD_EDITS_MAX {
            return Err(Error::Invalid(format!(
                "{} changes are too many for one record",
                record.edits.len()
            )));
        }
        let mut plain = record.encode();
        #[cfg(test)]
        assert_eq!(Record::decode(&plain).as_ref(), Ok(&record), "a record that recovery could not read");
        if plain.len() > RECORD_BYTES_MAX {
            return Err(Error::Invalid(format!(
                "a change of {} bytes is too large for one record",
                plain.len()
            )));
        }
        match self.commit_now(&mut record, &mut plain, note) {
            Err(Error::NoSpace(_)) if self.index_came_back(Use::of(&record.edits)) => {
                self.commit_now(&mut record, &mut plain, note)
            }
            result => result,
        }
    }

    fn commit_now(&self, record: &mut Record, plain: &mut Vec<u8>, note: &dyn Fn(Lsn)) -> Result<Lsn> {
        let what = Use::of(&record.edits);
        let committed = self.commit.lock();
        self.check_writable()?;
        self.admit(what)?;
        // One that waited for the lock while others did not is no sign that the clock was set back.
        if self.index.state().behind(record.time) > 0 {
            record.time = self.clock.now();
            *plain = record.encode();
        }
        let lsn = self.journal.next_lsn();
        let sealed = self
            .sealer
            .seal(&record_aad(lsn, committed.term), plain)
            .map_err(|e| Error::Invalid(e.to_string()))?;
        note(lsn);
        let appended = self.append(committed.term, &sealed, what).inspect_err(|_| note(Lsn::ZERO))?;
        let place = Place {
            lsn: appended.lsn,
            term: committed.term,
            chain: appended.chain.0,
            packed: self.chunks.low_mark(),
        };
        if let Err(e) = self.index.apply(place, record, &self.chunks) {
            let given = self.take_back(appended.lsn, e);
            // Only now: until it is gone from the journal, the next server would find it there.
            note(Lsn::ZERO);
            return Err(given);
        }
        self.settled.store(appended.lsn.0, Ordering::Release);
        Ok(appended.lsn)
    }

    /// Whether a change may begin; the rest of the disk and of the index's memory is kept for what frees.
    fn admit(&self, what: Use) -> Result<()> {
        self.room.admit(what)?;
        self.room.noticed(self.index.ready())?;
        if self.index_is_behind(what) {
            return Err(Error::NoSpace("the index: its changes wait for room to be written".into()));
        }
        Ok(())
    }

    /// Whether so much waits to be written to the index, for want of room, that no more may be added.
    fn index_is_behind(&self, what: Use) -> bool {
        let more = if what == Use::Grows { 0 } else { FREEING_BYTES };
        self.care.starves() && self.index.unwritten_bytes() > self.unwritten_bytes_max() + more
    }

    /// Changes of the index that may wait for room to be written.
    pub(super) fn unwritten_bytes_max(&self) -> u64 {
        self.config.index_flush_bytes.saturating_mul(2)
    }

    /// Appends to the journal, with what was kept back if that is needed and may be used.
    fn append(&self, term: Term, sealed: &[u8], what: Use) -> Result<Appended> {
        match self.room.noticed(self.journal.append(term, sealed)) {
            Err(Error::NoSpace(_)) if what != Use::Grows && self.room.give_up() => {
                self.journal.append(term, sealed)
            }
            result => result,
        }
    }

    /// Takes back a record that could not be applied, so that memory and disk agree. Returns the error to give.
    fn take_back(&self, lsn: Lsn, cause: Error) -> Error {
        let undone = self.index.reload().and_then(|applied| {
            if applied.next() != lsn {
                return Err(Error::corrupt("record order", format!("lsn {lsn}"), "it was applied in part"));
            }
            self.journal.withdraw(lsn)
        });
        if let Err(e) = undone {
            tracing::error!(error = %e, "a record that could not be applied cannot be taken back");
            return self.poisoned(&cause);
        }
        if let Error::NoSpace(_) = &cause {
            return self.no_room_for_index(cause);
        }
        tracing::error!(%lsn, error = %cause, "a record could not be applied and was taken back");
        cause
    }

    /// After RocksDB found no room: it repeats its flush by itself, with all that was applied since, so the
    /// journal must be on the disk up to there.
    pub(super) fn no_room_for_index(&self, cause: Error) -> Error {
        let _ = self.room.noticed(self.sync_all());
        self.care.starve(true);
        self.room.noticed::<()>(Err(cause)).err().unwrap_or(Error::NoSpace("the index".into()))
    }

    /// Where RocksDB found no room in the middle of a flush and takes no writes: waits for its next try, if there
    /// is room by now. What frees space gives it what was kept back. Whether it takes writes again.
    fn index_came_back(&self, what: Use) -> bool {
        let waits = || matches!(self.index.ready(), Err(Error::NoSpace(_))) || self.index_is_behind(what);
        if !waits() {
            // It was not the index that had no room, or it came back meanwhile: another try costs little.
            return true;
        }
        let _lent = self.room.lend();
        let needed = index::RESUME_FREE_BYTES as u64 + FLUSH_SPARE_BYTES;
        let is_room = if what == Use::Frees { self.room.make(needed).is_ok() } else { self.room.has(needed) };
        if !is_room {
            return false;
        }
        let since = Instant::now();
        while since.elapsed() < RESUME_PATIENCE {
            if !waits() {
                return true;
            }
            std::thread::sleep(RESUME_LOOK);
        }
        false
    }
}
